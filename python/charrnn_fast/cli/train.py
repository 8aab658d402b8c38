"""``charrnn-fast train``: from text files to a checkpoint."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from .. import checkpoint, demo, get_num_threads
from ..corpus import Corpus
from ..model import CharLM
from ..rnn import _zoneout
from ..schedules import Constant, Cosine, Decay, Linear, Plateau, Schedule
from ..trainer import Trainer
from ..vocabulary import Vocabulary
from . import options, show
from .parsing import Commands, add_threads

_FAILED = 1
_INTERRUPTED = 130  # as a shell reports SIGINT
_EPOCHS = 20


def add(commands: Commands) -> None:
    train = commands.add("train", run, "Train a model on text files.")
    train.add_argument(
        "text", nargs="*", metavar="TEXT", help="UTF-8 files, read one after another"
    )
    train.add_argument("-o", "--output", metavar="FILE", help="where the model is saved")
    train.add_argument(
        "--demo",
        action="store_true",
        help="train on the source of Python's standard library for about a minute",
    )
    existing = train.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="go on with the training that -o FILE holds"
    )
    existing.add_argument(
        "--overwrite", action="store_true", help="start anew where -o FILE holds a model"
    )
    add_threads(train)
    options.add(train)


def run(arguments: argparse.Namespace) -> int:
    _check_paths(arguments)
    given = options.given(arguments)
    values = given
    vocabulary = None
    if arguments.resume:
        model, stored = _stored(arguments.output)
        _check_same_model(arguments.output, model, given)
        values = options.override(stored, given, "the command line")
        vocabulary = model.vocabulary
    elif values.get("bytes"):
        vocabulary = Vocabulary.from_bytes()
    if arguments.demo:
        corpus = Corpus.from_text(demo.text(), vocabulary)
    else:
        corpus = Corpus.from_files(*arguments.text, vocabulary=vocabulary)
    trainer, steps = _trainer(arguments, corpus, values, given)
    _describe(trainer, corpus, steps)
    if trainer.num_steps >= steps:
        print(f"nothing left to train: {trainer.num_steps:,} steps are done")
        return 0
    try:
        trainer.fit(steps=steps - trainer.num_steps)
    except KeyboardInterrupt:
        print(f"\ninterrupted after step {trainer.num_steps:,}")
        if arguments.output and os.path.exists(arguments.output):
            print(f"to go on from {arguments.output}: the same command with --resume")
        return _INTERRUPTED
    return _conclude(arguments, trainer, plain=arguments.demo and not given)


def _check_paths(arguments: argparse.Namespace) -> None:
    """Refuses, before any work, paths with which the training could not end well."""
    output: str | None = arguments.output
    if arguments.demo and arguments.text:
        raise ValueError("--demo brings its own text; leave out either --demo or the files")
    if not arguments.demo and not arguments.text:
        raise ValueError("no text to train on: name one or more files, or use --demo")
    if output is None:
        if arguments.resume:
            raise ValueError("--resume goes on with the file that -o names; -o is missing")
        if not arguments.demo:
            raise ValueError("-o is missing: the file that the model is saved to")
        return
    for text in arguments.text:
        if os.path.exists(output) and os.path.samefile(output, text):
            raise ValueError(f"{output} is a text to train on; -o would overwrite it")
    if arguments.resume and not os.path.exists(output):
        raise ValueError(f"{output} does not exist: nothing to resume")
    checkpoint.check_writable(output)
    if arguments.resume or arguments.overwrite or not os.path.exists(output):
        return
    if os.path.getsize(output):
        raise ValueError(f"{output} exists: --resume goes on with it, --overwrite starts anew")


def _stored(path: str) -> tuple[CharLM, options.Values]:
    """The model of a checkpoint to go on with, and the settings it was trained with."""
    tensors, config = checkpoint.read(path)
    model = CharLM._from_checkpoint(path, tensors, config)
    training = config.get("training", {})
    return model, options.from_json(training.get("configuration", {}), path)


def _check_same_model(path: str, model: CharLM, given: Mapping[str, Any]) -> None:
    """Refuses settings with which the weights of a checkpoint would have no meaning."""
    for option in options.MODEL:
        name = option.name
        asked, ours = given.get(name), model._config[name]
        if name == "zoneout" and isinstance(asked, float):
            asked = list(_zoneout(asked, model.rnn.cell, model.rnn.proj_size))
        if asked not in (None, ours):
            raise ValueError(f"{option.flag} is {asked}, but {path} was trained with {ours}")
    if given.get("bytes") and model.vocabulary.kind != "bytes":
        raise ValueError(f"--bytes is given, but {path} was trained on characters")


def _trainer(
    arguments: argparse.Namespace, corpus: Corpus, values: options.Values, given: options.Values
) -> tuple[Trainer, int]:
    """The trainer, new or gone on with, and the number of steps that it is to reach."""
    training = options.pick(options.TRAINING, values)
    run = options.pick(options.RUN, values)
    files = {"checkpoint_path": arguments.output, "checkpoint_every": run["checkpoint_every"]}
    settings = {**files, "evaluate_every": run["evaluate_every"]}
    if arguments.resume:
        changed = {name: value for name, value in training.items() if name in given}
        trainer = Trainer.resume(arguments.output, corpus, **settings, **changed)
    else:
        model = CharLM(corpus.vocabulary, **options.pick(options.MODEL, values))
        trainer = Trainer(model, corpus, **settings, **training)
    steps = run["steps"]
    if steps is None and run["epochs"] is None and arguments.demo:
        steps = demo.STEPS
    if steps is None:
        steps = (run["epochs"] or _EPOCHS) * trainer.steps_per_epoch
    trainer.schedule = _schedule(
        options.pick(options.SCHEDULE, values), steps / trainer.steps_per_epoch
    )
    trainer.configuration = options.to_json(values)
    return trainer, steps


def _schedule(values: options.Values, epochs: float) -> Schedule:
    kind, warmup, decay = values["schedule"], values["warmup"], values["lr_decay"]
    if kind == "decay":
        decay = Decay().decay if decay is None else decay
        return Decay(warmup=warmup, decay=decay, after=values["lr_decay_after"])
    if kind == "plateau":
        decay = Plateau().decay if decay is None else decay
        return Plateau(warmup=warmup, decay=decay, patience=values["lr_patience"])
    if kind in ("cosine", "linear"):
        falling = Cosine if kind == "cosine" else Linear
        return falling(warmup=warmup, epochs=epochs, final=values["final_lr"])
    return Constant(warmup=warmup)


def _describe(trainer: Trainer, corpus: Corpus, steps: int) -> None:
    """What is trained, on what and for how long, before it begins."""
    print(
        f"text        {len(corpus):,} {corpus.vocabulary.kind}: {len(corpus.train):,} to train on, "
        f"the last {len(corpus.validation):,} held out"
    )
    print(f"vocabulary  {show.vocabulary_line(corpus.vocabulary)}")
    print(f"model       {show.model_line(trainer.model)}")
    print(f"training    {show.training_line(trainer._settings())}")
    epochs = steps / trainer.steps_per_epoch
    print(
        f"length      {steps:,} steps, {epochs:.4g} epochs, on {get_num_threads()} threads"
        + (f"; {trainer.num_steps:,} steps are done" if trainer.num_steps else ""),
        flush=True,
    )


def _conclude(arguments: argparse.Namespace, trainer: Trainer, plain: bool) -> int:
    """Says what came of the training, and what to do with it.

    plain: it was the demonstration as it is, so that its bound holds.
    """
    model = trainer.model
    loss = trainer.history[-1].validation_loss
    print(f"\nheld-out loss: {show.losses(loss, model.vocabulary)}")
    if arguments.demo:
        print(f"\n{model.sample(400, prime='def ', temperature=0.7, seed=1)}\n")
    if arguments.output:
        size = os.path.getsize(arguments.output)
        print(f"saved to {arguments.output} ({show.size(size)})")
        print(f"next: charrnn-fast sample {shlex.quote(arguments.output)}")
    elif arguments.demo:
        print("next: charrnn-fast train your-text.txt -o your-model.safetensors")
    uniform = math.log(len(model.vocabulary))
    if loss > uniform:
        print(
            f"charrnn-fast: warning: the held-out loss is above ln {len(model.vocabulary)} = "
            f"{uniform:.4f}, that of uniform guessing; try a smaller --learning-rate",
            file=sys.stderr,
        )
    if not plain:
        return 0
    if loss < demo.BOUND:
        print(f"the demonstration worked: {loss:.3f} is below its bound of {demo.BOUND}")
        return 0
    return show.complain(
        f"the demonstration failed: its held-out loss must be below {demo.BOUND} nats per "
        f"character, and is {loss:.4f}",
        _FAILED,
    )

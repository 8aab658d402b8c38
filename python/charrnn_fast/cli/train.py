"""``charrnn-fast train``: from text files to a checkpoint."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from .. import atomic_file, checkpoint, demo, get_num_threads
from ..callbacks import Callback
from ..corpus import Corpus
from ..log import JsonLog, TensorBoardLog
from ..model import CharLM
from ..rnn import _zoneout
from ..schedules import Constant, Cosine, Decay, Linear, Plateau, Schedule
from ..text_files import UTF8, find_files
from ..trainer import Trainer, best_path
from ..vocabulary import Vocabulary
from . import options, show
from .parsing import FAILED, INTERRUPTED, Commands, add_threads, unescaped

_EPOCHS = 20


def add(commands: Commands) -> None:
    train = commands.add("train", run, "Train a model on text files.")
    train.add_argument(
        "text", nargs="*", metavar="TEXT", help="files, folders and patterns such as '**/*.txt'"
    )
    train.add_argument("-o", "--output", metavar="FILE", help="where the model is saved")
    train.add_argument(
        "--demo",
        action="store_true",
        help="train on the source of Python's standard library for about a minute",
    )
    train.add_argument(
        "--log",
        metavar="FILE",
        help="a log of JSON lines, for charrnn-fast plot (default: MODEL.jsonl beside the model)",
    )
    train.add_argument("--tensorboard", metavar="FOLDER", help="write a log for TensorBoard, too")
    train.add_argument(
        "--init-from",
        metavar="FILE",
        help="begin with the weights and the vocabulary of a trained model, on another text",
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


class _Origin(NamedTuple):
    """A checkpoint that a training goes on with, or begins from."""

    path: str
    model: CharLM
    values: options.Values  # the settings that it was trained with


def run(arguments: argparse.Namespace) -> int:
    _check_output(arguments)
    given = options.given(arguments)
    origin = _origin(arguments, given)
    values = options.override(origin.values, given, "") if arguments.resume and origin else given
    files = _files(arguments, values)
    corpus = _corpus(arguments, files, values, origin)
    trainer, steps = _trainer(arguments, corpus, values, given, origin)
    _describe(trainer, corpus, len(files), steps)
    if trainer.num_steps >= steps and not trainer._evaluation_due:
        print(f"nothing left to train: {trainer.num_steps:,} steps are done")
        return 0
    try:
        trainer.fit(steps=max(steps - trainer.num_steps, 0))
    except KeyboardInterrupt:
        print(f"\ninterrupted after step {trainer.num_steps:,}")
        if arguments.output and os.path.exists(arguments.output):
            print(f"to go on: charrnn-fast train -o {shlex.quote(arguments.output)} --resume")
        return INTERRUPTED
    return _conclude(arguments, trainer, plain=arguments.demo and not given)


def _check_output(arguments: argparse.Namespace) -> None:
    """Refuses, before any work, an output with which the training could not end well."""
    output: str | None = arguments.output
    if output is None:
        if arguments.resume:
            raise ValueError("--resume goes on with the file that -o names; -o is missing")
        if not arguments.demo:
            raise ValueError("-o is missing: the file that the model is saved to")
        return
    if arguments.resume and arguments.init_from:
        raise ValueError("--resume goes on with a training, --init-from begins one; give one")
    if arguments.resume and not os.path.exists(output):
        raise ValueError(f"{output} does not exist: nothing to resume")
    checkpoint.check_writable(output)
    if arguments.resume or arguments.overwrite or not os.path.exists(output):
        return
    if os.path.getsize(output):
        raise ValueError(f"{output} exists: --resume goes on with it, --overwrite starts anew")


def _files(arguments: argparse.Namespace, values: options.Values) -> list[str]:
    """The files to train on; ValueError where the output would be one of them."""
    output, paths = arguments.output, values.get("text") or []
    if arguments.demo:
        if paths:
            raise ValueError("--demo brings its own text; leave out either --demo or the files")
        return []
    if not paths:
        raise ValueError("no text to train on: name one or more files, or use --demo")
    files = find_files(paths)
    for file in files if output else ():
        if os.path.exists(output) and os.path.samefile(output, file):
            raise ValueError(f"{output} is a text to train on; -o would overwrite it")
    for folder in filter(os.path.isdir, paths if output else ()):
        if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(folder)):
            raise ValueError(
                f"{output} lies in {folder}, a folder to train on, and would be read as a text the "
                f"next time; save the model elsewhere, or name the texts by a pattern"
            )
    return files


def _origin(arguments: argparse.Namespace, given: options.Values) -> _Origin | None:
    path = arguments.output if arguments.resume else arguments.init_from
    if path is None:
        return None
    tensors, config = checkpoint.read(path)
    model = CharLM._from_checkpoint(path, tensors, config)
    training = config.get("training", {})
    values = options.from_json(training.get("configuration", {}), path)
    # What is left out in training may be another thing for another text.
    fixed = options.MODEL if arguments.resume else options.SHAPE
    for option in fixed:
        asked, stored = given.get(option.name), model._config[option.name]
        if option.name == "zoneout" and isinstance(asked, float):
            asked = list(_zoneout(asked, model.rnn.cell, model.rnn.proj_size))
        if asked not in (None, stored):
            raise ValueError(f"{option.flag} is {asked}, but {path} was trained with {stored}")
    min_count = values.get("min_count", 1)
    if arguments.resume and given.get("min_count", min_count) != min_count:
        raise ValueError(
            f"--min-count is {given['min_count']}, but {path} was trained with {min_count}"
        )
    if given.get("bytes") and model.vocabulary.kind != "bytes":
        raise ValueError(f"--bytes is given, but {path} was trained on characters")
    return _Origin(path, model, values)


def _corpus(
    arguments: argparse.Namespace, files: list[str], values: options.Values, origin: _Origin | None
) -> Corpus:
    """The text to train on, read as the settings of the text say."""
    text = options.pick(options.TEXT, values)
    encoding, mark = text["encoding"], text["document_mark"]
    mark = None if mark is None else unescaped(mark)
    # The vocabulary of a training that is gone on with was made by the number it began with.
    min_count = 1 if arguments.resume else text["min_count"]
    vocabulary = None
    if origin is not None:
        vocabulary = origin.model.vocabulary
    elif text["bytes"]:
        vocabulary = Vocabulary.from_bytes()
    if not arguments.demo:
        return Corpus.from_files(
            *files,
            vocabulary=vocabulary,
            encoding=encoding,
            min_count=min_count,
            document_mark=mark,
        )
    if encoding != UTF8:
        raise ValueError(f"encoding is {encoding}, but --demo brings its own text")
    return Corpus.from_text(demo.text(), vocabulary, min_count=min_count, document_mark=mark)


def _trainer(
    arguments: argparse.Namespace,
    corpus: Corpus,
    values: options.Values,
    given: options.Values,
    origin: _Origin | None,
) -> tuple[Trainer, int]:
    """The trainer, new or gone on with, and the number of steps that it is to reach."""
    training = options.pick(options.TRAINING, values)
    run = options.pick(options.RUN, values)
    epochs, steps, log_every = run.pop("epochs"), run.pop("steps"), run.pop("log_every")
    settings = {**run, "checkpoint_path": arguments.output}
    settings["callbacks"] = _callbacks(arguments, log_every)
    if arguments.resume:
        atomic_file.remove_litter(arguments.output)
        changed = {name: value for name, value in training.items() if name in given}
        trainer = Trainer.resume(arguments.output, corpus, **settings, **changed)
    else:
        model = _model(corpus.vocabulary, values, origin)
        trainer = Trainer(model, corpus, **settings, **training)
    if steps is None and epochs is None and arguments.demo:
        steps = demo.STEPS
    if steps is None:
        steps = (epochs or _EPOCHS) * trainer.steps_per_epoch
    trainer.schedule = _schedule(
        options.pick(options.SCHEDULE, values), steps / trainer.steps_per_epoch
    )
    trainer.configuration = options.to_json(options.pick(options.ALL, values))
    return trainer, steps


def _model(vocabulary: Vocabulary, values: options.Values, origin: _Origin | None) -> CharLM:
    if origin is None:
        return CharLM(vocabulary, **options.pick(options.MODEL, values))
    asked = {o.name: values[o.name] for o in options.MODEL if o.name in values}
    model = CharLM(vocabulary, **{**origin.model._config, **asked})
    model.rnn.load_parameters(origin.model.rnn.parameters())
    return model


def _callbacks(arguments: argparse.Namespace, log_every: int) -> list[Callback]:
    callbacks: list[Callback] = []
    path = arguments.log
    if path is None and arguments.output:
        path = f"{os.path.splitext(arguments.output)[0]}.jsonl"
    if path is not None:
        callbacks.append(JsonLog(path, log_every))
    if arguments.tensorboard is not None:
        callbacks.append(TensorBoardLog(arguments.tensorboard))
    return callbacks


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


def _describe(trainer: Trainer, corpus: Corpus, num_files: int, steps: int) -> None:
    """What is trained, on what and for how long, before it begins."""
    in_files = f" in {num_files:,} files" if num_files > 1 else ""
    print(
        f"text        {len(corpus):,} {corpus.vocabulary.kind}{in_files}: {len(corpus.train):,} to "
        f"train on, the last {len(corpus.validation):,} held out"
    )
    print(f"vocabulary  {show.vocabulary_line(corpus.vocabulary)}")
    print(f"model       {show.model_line(trainer.model)}")
    print(f"training    {show.training_line(trainer._settings())}")
    print(f"memory      {show.size(trainer.memory)} beside the text")
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
    loss, best = trainer.history[-1].validation_loss, trainer.best
    print(f"\nheld-out loss: {show.losses(loss, model.vocabulary)}")
    if best is not None and best.validation_loss < loss and arguments.output:
        print(
            f"the best was {best.validation_loss:.4f} after {best.step:,} steps: "
            f"{best_path(arguments.output)}"
        )
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
        FAILED,
    )

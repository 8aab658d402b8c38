"""``charrnn-fast train``: from text files to a checkpoint."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from .._checks import brief, calling
from ..language.model import CharLM
from ..rnn import zoneout_rates
from ..runtime import get_num_threads
from ..storage import atomic_file, configuration, streams
from ..storage.input_files import STANDARD_INPUT, shown
from ..text import demo
from ..text.corpus import Corpus
from ..text.files import UTF8, find_files
from ..text.vocabulary import Vocabulary
from ..training import log
from ..training.callbacks import Callback
from ..training.log import JsonLog, TensorBoardLog
from ..training.resume import best_path, check_checkpoints, locked
from ..training.schedules import Constant, Cosine, Decay, Linear, Plateau, Schedule
from ..training.trainer import Trainer
from . import options, show
from .parsing import (
    FAILED,
    INTERRUPTED,
    Commands,
    add_threads,
    file_option,
    output_option,
    path_option,
    unescaped,
)

_EPOCHS = 20

# The settings of schedules are called otherwise than their flags.
_OF_SCHEDULES = {
    "warmup": "--warmup",
    "epochs": "--epochs",
    "decay": "--lr-decay",
    "after": "--lr-decay-after",
    "patience": "--lr-patience",
    "final": "--final-lr",
}


def add(commands: Commands) -> None:
    train = commands.add("train", run, "Train a model on text files.")
    train.add_argument(
        "text",
        type=path_option,
        nargs="*",
        metavar="TEXT",
        help="files, folders and patterns such as '**/*.txt'; - for standard input",
    )
    train.add_argument(
        "-o",
        "--output",
        type=output_option(".safetensors"),
        metavar="FILE",
        help="where the model is saved",
    )
    train.add_argument(
        "--init-from",
        type=file_option,
        metavar="FILE",
        help="begin with the weights and the vocabulary of a trained model, on another text",
    )
    existing = train.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="go on with the training that -o FILE holds"
    )
    existing.add_argument(
        "--overwrite",
        action="store_true",
        help="start anew where -o FILE holds a model; it is kept up to the first checkpoint",
    )
    add_threads(train)
    options.add(train)


class _Origin(NamedTuple):
    """A checkpoint that a training goes on with, or begins from."""

    path: str
    model: CharLM
    values: options.Values  # the settings that it was trained with


def run(arguments: argparse.Namespace) -> int:
    given = options.given(arguments)
    with _checked_output(arguments, demo=bool(given.get("demo"))):
        origin = _origin(arguments, given)
        values = _resumed(origin, given) if arguments.resume and origin else given
        log_path = values.get("log") or (arguments.output and _default_log(arguments.output))
        files = _files(arguments, values, given, log_path)
        _check_logs(arguments, values, log_path)
        corpus = _corpus(arguments, files, values, origin)
        trainer, steps = _trainer(arguments, corpus, values, given, origin, log_path)
        begun = trainer.num_steps
        streams.output(sys.stdout).goes_on = True  # the model is worth more than what is printed
        _describe(trainer, corpus, len(files), steps)
    if not trainer.evaluation_due and (begun >= steps or trainer.is_stale()):
        print(f"nothing left to train: {_ending(trainer, steps)}")
        return 0
    try:
        trainer.fit(steps=max(steps - begun, 0))
    except KeyboardInterrupt:
        with suppress(BrokenPipeError):  # the same Ctrl-C may have ended the reader
            _interrupted(arguments, trainer, begun)
        return INTERRUPTED
    if trainer.num_steps < steps:
        print(f"\n{_ending(trainer, steps)}")
    plain = set(given) == {"demo"}
    return _conclude(arguments, trainer, demonstration=bool(values.get("demo")), plain=plain)


def _ending(trainer: Trainer, steps: int) -> str:
    """Why a training goes no further."""
    if trainer.num_steps >= steps:
        return f"{trainer.num_steps:,} steps are done; --epochs or --steps asks for more"
    patience = trainer.patience
    looks = "evaluation" if patience == 1 else "evaluations"
    return (
        f"ended after {trainer.num_steps:,} of {steps:,} steps: {patience} {looks} without a new "
        f"best; a larger --patience goes on"
    )


def _interrupted(arguments: argparse.Namespace, trainer: Trainer, begun: int) -> None:
    """Says what is saved, and how to go on."""
    print(f"\ninterrupted after step {trainer.num_steps:,}")
    output: str | None = arguments.output
    saved = begun if trainer.saved_step is None else trainer.saved_step
    if output is None or not saved:
        where = "there is no -o" if output is None else "it was too early"
        print(f"nothing was saved: {where}")
        return
    if saved != trainer.num_steps:
        print(f"{output} holds step {saved:,}")
    print(f"to go on: charrnn-fast train -o {shlex.quote(output)} --resume")


def _resumed(origin: _Origin, given: options.Values) -> options.Values:
    """The settings of a training that is gone on with."""
    values = options.override(origin.values, given, "")
    for one, other in (("text", "demo"), ("demo", "text")):
        if given.get(one):
            values.pop(other, None)
    return values


def _default_log(output: str) -> str:
    """model.jsonl beside model.safetensors."""
    return f"{output.removesuffix('.safetensors')}.jsonl"


@contextmanager
def _checked_output(arguments: argparse.Namespace, demo: bool) -> Iterator[None]:
    """Keeps the output for this training until it begins, which keeps it from then on.

    Refuses, before any work, one with which the training could not end well.
    """
    output: str | None = arguments.output
    if output is None:
        if arguments.resume:
            raise ValueError("--resume goes on with the file that -o names; -o is missing")
        if not demo:
            raise ValueError("-o is missing: the file that the model is saved to")
        yield
        return
    if arguments.resume and arguments.init_from:
        raise ValueError("--resume goes on with a training, --init-from begins one; give one")
    if arguments.resume and not os.path.exists(output):
        raise ValueError(f"{output} does not exist: nothing to resume")
    check_checkpoints(output)
    with locked(output):
        if not (arguments.resume or arguments.overwrite) and _is_there(output):
            raise ValueError(f"{output} exists: --resume goes on with it, --overwrite starts anew")
        yield


def _is_there(path: str) -> bool:
    return os.path.exists(path) and os.path.getsize(path) > 0


def _check_logs(
    arguments: argparse.Namespace, values: options.Values, log_path: str | None
) -> None:
    """Refuses, before any work, logs and a best checkpoint that would overwrite something."""
    output: str | None = arguments.output
    best = None if output is None else best_path(output)
    for name, path in (("-o", output), ("the best checkpoint", best)):
        if path and log_path and os.path.realpath(path) == os.path.realpath(log_path):
            raise ValueError(f"{log_path} would be the log and {name}; --log names another file")
    folder = values.get("tensorboard")
    if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
        raise ValueError(f"--tensorboard takes a folder, and {folder} is a file")
    if folder is not None:
        log.check_folder(folder)
    if log_path:
        log.check_writable(log_path)
    if arguments.resume or arguments.overwrite:
        return
    lost = [path for path in (best,) if path and _is_there(path)]
    if log_path and log.is_worth_keeping(log_path):
        lost.append(log_path)
    for path in lost:
        raise ValueError(
            f"{path} exists, of another training; --overwrite replaces it, another -o keeps it"
        )


def _files(
    arguments: argparse.Namespace,
    values: options.Values,
    given: options.Values,
    log_path: str | None,
) -> list[str]:
    """The files to train on; ValueError where what is written would be one of them."""
    paths = values.get("text") or []
    if values.get("demo"):
        if paths:
            raise ValueError("--demo brings its own text; leave out either --demo or the files")
        return []
    if not paths:
        raise ValueError("no text to train on: name one or more files, or use --demo")
    output: str | None = arguments.output
    if log_path and atomic_file.is_standard_error(log_path):
        log_path = None
    written = {"-o": output, "the log": log_path, "--tensorboard": values.get("tensorboard")}
    for name, path in written.items():
        for folder in filter(os.path.isdir, paths if path else ()):
            if path and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
                raise ValueError(
                    f"{path} lies in {folder}, a folder to train on, and would be read as a text "
                    f"the next time; {name} takes another place, or a pattern names the texts"
                )
    if arguments.resume and not given.get("text"):
        _check_again(paths, output)
    ours = [path for path in (output, output and best_path(output), log_path) if path]
    files = find_files(paths, without=ours)
    there = [file for file in files if os.path.exists(file)]
    for path in filter(os.path.exists, ours):
        if any(os.path.samefile(path, file) for file in there):
            raise ValueError(f"{path} is a text to train on; the training would overwrite it")
    return files


def _check_again(paths: list[str], output: str | None) -> None:
    """ValueError where a text that a training was begun on could be read once only."""
    for path in paths:
        kept = os.path.isfile(path) or os.path.isdir(path) or not os.path.exists(path)
        if path == STANDARD_INPUT or not kept:
            raise ValueError(
                f"{output} was trained on a text from {shown(path)}, which could be read once "
                f"only; give it again: charrnn-fast train TEXT -o {shlex.quote(str(output))} "
                f"--resume"
            )


def _origin(arguments: argparse.Namespace, given: options.Values) -> _Origin | None:
    path = arguments.output if arguments.resume else arguments.init_from
    if path is None:
        return None
    tensors, config = configuration.read(path)
    model = CharLM.from_checkpoint(path, tensors, config)
    training = config.get("training", {})
    values = options.restored(training.get("configuration", {}), path)
    # What is left out in training may be another thing for another text.
    fixed = options.MODEL if arguments.resume else options.SHAPE
    for option in fixed:
        asked, stored = given.get(option.name), model.settings()[option.name]
        if option.name == "zoneout" and isinstance(asked, float):
            asked = list(zoneout_rates(asked, model.rnn.cell, model.rnn.proj_size))
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
    if not text["demo"]:
        try:
            return Corpus.from_files(
                *files,
                vocabulary=vocabulary,
                encoding=encoding,
                min_count=min_count,
                document_mark=mark,
            )
        except FileNotFoundError as error:
            if not arguments.resume or arguments.text:
                raise
            raise ValueError(
                f"{error.filename} is not there, the text that {arguments.output} was trained on; "
                f"name it where it is now: charrnn-fast train TEXT -o "
                f"{shlex.quote(arguments.output)} --resume"
            ) from None
    if encoding != UTF8:
        raise ValueError(f"--encoding is {encoding}, but --demo brings its own text")
    return Corpus.from_text(demo.text(), vocabulary, min_count=min_count, document_mark=mark)


def _trainer(
    arguments: argparse.Namespace,
    corpus: Corpus,
    values: options.Values,
    given: options.Values,
    origin: _Origin | None,
    log_path: str | None,
) -> tuple[Trainer, int]:
    """The trainer, new or gone on with, and the number of steps that it is to reach."""
    asked = given if arguments.resume else options.pick(options.TRAINING, values)
    training = {o.name: asked[o.name] for o in options.TRAINING if o.name in asked}
    # A training that Python began has no settings of the command: what it has stays.
    foreign = arguments.resume and origin is not None and not origin.values
    run = options.pick(options.RUN, values)
    epochs, steps, log_every = run.pop("epochs"), run.pop("steps"), run.pop("log_every")
    if foreign:
        run = {name: value for name, value in run.items() if name in given}
    settings = {**run, **training, "checkpoint_path": arguments.output}
    settings["callbacks"] = _callbacks(log_path, values.get("tensorboard"), log_every)
    if arguments.resume:
        trainer = Trainer.resume(arguments.output, corpus, **settings)
    else:
        trainer = Trainer(_model(corpus.vocabulary, values, origin), corpus, **settings)
    if steps is None and epochs is None and values.get("demo"):
        steps = demo.STEPS
    if steps is None:
        steps = (epochs or _EPOCHS) * trainer.steps_per_epoch
    scheduled = any(option.name in given for option in options.SCHEDULE)
    if trainer.num_steps < steps and (scheduled or not foreign):
        with calling(_OF_SCHEDULES):
            trainer.schedule = _schedule(
                options.pick(options.SCHEDULE, values), steps / trainer.steps_per_epoch
            )
    if not foreign:
        settings = options.pick(options.ALL, values)
        model = {o.name: trainer.model.settings()[o.name] for o in options.MODEL}
        settings |= {**model, "bytes": corpus.vocabulary.kind == "bytes"}
        trainer.configuration |= options.stored(settings)
    return trainer, steps


def _model(vocabulary: Vocabulary, values: options.Values, origin: _Origin | None) -> CharLM:
    if origin is None:
        return CharLM(vocabulary, **options.pick(options.MODEL, values))
    asked = {o.name: values[o.name] for o in options.MODEL if o.name in values}
    model = CharLM(vocabulary, **{**origin.model.settings(), **asked})
    model.rnn.load_parameters(origin.model.rnn.parameters())
    return model


def _callbacks(log_path: str | None, tensorboard: str | None, log_every: int) -> list[Callback]:
    callbacks: list[Callback] = []
    if log_path is not None:
        callbacks.append(JsonLog(log_path, log_every))
    if tensorboard is not None:
        callbacks.append(TensorBoardLog(tensorboard))
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
    print(f"training    {show.training_line(trainer.settings())}")
    print(f"memory      {show.size(trainer.memory)} beside the text")
    epochs = steps / trainer.steps_per_epoch
    print(
        f"length      {show.count(steps, 'step')}, {show.count(epochs, 'epoch')}, on "
        f"{show.count(get_num_threads(), 'thread')}"
        + (f"; {trainer.num_steps:,} steps are done" if trainer.num_steps else ""),
        flush=True,
    )


def _conclude(
    arguments: argparse.Namespace, trainer: Trainer, *, demonstration: bool, plain: bool
) -> int:
    """Says what came of the training, and what to do with it.

    plain: it was the demonstration as it is, so that its bound holds.
    """
    model = trainer.model
    loss, best = trainer.history[-1].validation_loss, trainer.best
    print(f"\nheld-out loss: {show.losses(loss, model.vocabulary)}")
    if best is not None and best.validation_loss < loss and arguments.output:
        print(
            f"the best was {brief(best.validation_loss, 4)} after {best.step:,} steps: "
            f"{best_path(arguments.output)}"
        )
    if demonstration:
        print(f"\n{model.sample(400, prime='def ', temperature=0.7, seed=1)}\n")
    if arguments.output:
        size = os.path.getsize(arguments.output)
        print(f"saved to {arguments.output} ({show.size(size)})")
        print(f"next: charrnn-fast sample {shlex.quote(arguments.output)}")
    elif demonstration:
        print("next: charrnn-fast train your-text.txt -o your-model.safetensors")
    uniform = math.log(len(model.vocabulary))
    if loss > uniform:
        show.warn(
            f"the held-out loss is above ln {len(model.vocabulary)} = {uniform:.4f}, that of "
            f"uniform guessing; try more --epochs or a smaller --learning-rate"
        )
    if not plain:
        return 0
    if loss < demo.BOUND:
        print(f"the demonstration worked: {loss:.3f} is below its bound of {demo.BOUND}")
        return 0
    return show.complain(
        f"the demonstration failed: its held-out loss must be below {demo.BOUND} nats per "
        f"character, and is {brief(loss, 4)}",
        FAILED,
    )

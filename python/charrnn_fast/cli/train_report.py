"""The lines that ``charrnn-fast train`` prints before and after a training."""

from __future__ import annotations

import argparse
import math
import os
import shlex

from .. import _devices
from .._checks import brief
from ..language.model import CharLM
from ..runtime import get_num_threads
from ..text import demo
from ..text.corpus import Corpus
from ..text.vocabulary import Vocabulary
from ..training import advice
from ..training.callbacks import Evaluation
from ..training.resume import best_path, found_best
from ..training.schedules import Cosine
from ..training.trainer import Trainer
from . import show
from .parsing import FAILED


def ending(trainer: Trainer, steps: int) -> str:
    """Why a training ends."""
    if trainer.num_steps >= steps:
        return f"{trainer.num_steps:,} steps are done; --epochs or --steps asks for more"
    patience = trainer.patience
    looks = "evaluation" if patience == 1 else "evaluations"
    return (
        f"ended after {trainer.num_steps:,} of {steps:,} steps: {patience} {looks} without a new "
        f"best; a larger --patience goes on"
    )


def interrupted(arguments: argparse.Namespace, trainer: Trainer, begun: int) -> None:
    """Prints what is saved, and how to resume."""
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


def describe(
    trainer: Trainer,
    corpus: Corpus,
    num_files: int,
    steps: int,
    num_processes: int,
    extended: Vocabulary | None = None,
    *,
    advised: bool = False,
) -> None:
    """Prints, before the training, the model, the text and the duration. extended: the vocabulary
    that the training has extended. advised: whether what to expect is told.
    """
    print(f"text        {text_line(corpus, num_files)}")
    if corpus.num_left_out:
        unknown = show.count(corpus.num_left_out, "character")
        print(f"left out    {unknown}, which the vocabulary lacks")
    print(f"vocabulary  {show.vocabulary_line(corpus.vocabulary)}")
    if extended is not None:
        new = corpus.vocabulary.symbols[len(extended) :]
        print(f"new         {show.count(len(new), 'character')}{show.quoted(new)}")
    print(f"model       {show.model_line(trainer.model)}")
    print(f"training    {show.training_line(trainer.settings())}")
    each = " in each process" if num_processes > 1 else ""
    print(f"memory      {show.size(trainer.memory)}{each} beside the text")
    epochs = trainer.epoch_at(steps)
    place = show.count(get_num_threads(), "thread")
    if num_processes > 1:
        place = f"{num_processes} processes of {place}"
    if trainer.device != "cpu":
        place = trainer.device
        if num_processes > 1:
            place = f"{_devices.kind(place)}, {num_processes} processes"
    print(
        f"length      {show.count(steps, 'step')}, {show.count(epochs, 'epoch')}, on {place}"
        + (f"; {trainer.num_steps:,} steps are done" if trainer.num_steps else ""),
        flush=True,
    )
    remark = expectation(trainer, corpus, epochs) if advised else ""
    if remark:
        print(f"advice      {remark}", flush=True)


# Where the rule of `advice` was measured, or nearly: Adam and its like, learning rates and symbols
# per update near the default, texts that are not tiny.
_OPTIMIZERS, _LEARNING_RATES = ("adam", "adamw", "rmsprop"), (5e-4, 1e-2)
_SYMBOLS_PER_STEP, _LEAST_TEXT = (600, 10_000), 10_000
_ANNEALED_TO = 0.1  # or less, of the learning rate


def expectation(trainer: Trainer, corpus: Corpus, epochs: float) -> str:
    """Whether a new training will overfit or underfit, and what to change; empty where the rule
    has nothing to say, or does not hold.
    """
    settings, model = trainer.settings(), trainer.model.settings()
    (least, most), (fewest, largest) = _LEARNING_RATES, _SYMBOLS_PER_STEP
    others = (model["recurrent_dropout"], model["weight_drop"], *model["zoneout"])
    if (
        settings["optimizer"] not in _OPTIMIZERS
        or not least <= settings["learning_rate"] <= most
        or not fewest <= trainer.symbols_per_step <= largest
        or len(corpus.train) < _LEAST_TEXT
        or any(others)
        or not epochs
    ):
        return ""
    schedule, layers = trainer.schedule, model["num_layers"]
    case = advice.Case(
        len(corpus.train),
        trainer.model.num_parameters,
        epochs,
        model["dropout"] if layers > 1 else model["output_dropout"],
        layers,
        annealed=isinstance(schedule, Cosine) and schedule.final <= _ANNEALED_TO,
    )
    return advice.advice(case)


def text_line(corpus: Corpus, num_files: int) -> str:
    """The size of a text and of its parts."""
    in_files = f" in {num_files:,} files" if num_files > 1 else ""
    return (
        f"{len(corpus):,} {corpus.vocabulary.kind}{in_files}: {len(corpus.train):,} to train on, "
        f"{_others(corpus)}"
    )


def _others(corpus: Corpus) -> str:
    """What is for validation and test."""
    validation = f"{len(corpus.validation):,}"
    if corpus.own_identity("validation") is not None:
        validation = f"another {validation}"
    elif corpus.test is None or corpus.own_identity("test") is not None:
        validation = f"the last {validation}"
    if corpus.test is None:
        return f"{validation} for validation"
    which = "another" if corpus.own_identity("test") is not None else "the last"
    return f"{validation} for validation, {which} {len(corpus.test):,} for the test"


def check_best(arguments: argparse.Namespace, trainer: Trainer) -> None:
    """Warns, before a training, that --final-test will have no weights unless it finds better."""
    best = trainer.best
    if best is None or best.step == trainer.num_steps or found_best(arguments.output, best):
        return
    show.warn(f"{_gone(arguments.output, best)}; --final-test needs it, or a new best evaluation")


def _gone(output: str, best: Evaluation) -> str:
    return (
        f"{best_path(output)}, the checkpoint of the best evaluation (step {best.step:,}), is gone"
    )


def final_test(arguments: argparse.Namespace, trainer: Trainer) -> None:
    """Prints the test loss of the weights with the lowest validation loss; warns if those are
    gone.
    """
    model, best, corpus = trainer.averaged(), trainer.best, trainer.corpus
    assert corpus is not None and corpus.test is not None
    step = trainer.num_steps
    if best is not None:
        path = found_best(arguments.output, best)
        if path is not None:
            model = CharLM.load(path, device=trainer.device, compute_dtype=model.rnn.compute_dtype)
            step = best.step
        elif best.step != step:
            show.warn(
                f"{_gone(arguments.output, best)}; charrnn-fast eval "
                f"{shlex.quote(arguments.output)} --test measures the last weights"
            )
            return
    loss = model.evaluate_ids(corpus.test, corpus.test_starts)
    print(f"test loss: {show.losses(loss, model.vocabulary)}, after {step:,} steps", flush=True)


def conclude(
    arguments: argparse.Namespace,
    trainer: Trainer,
    *,
    demonstration: bool,
    plain: bool,
    tested: bool = False,
) -> int:
    """Prints the result of the training, and what to do with it.

    plain: this was the unchanged demonstration, so that its bound holds. tested: the test part is
    evaluated, too.
    """
    model = trainer.averaged()
    loss, best = trainer.history[-1].validation_loss, trainer.best
    print(f"\nvalidation loss: {show.losses(loss, model.vocabulary)}")
    if best is not None and best.validation_loss < loss and arguments.output:
        print(
            f"the best was {brief(best.validation_loss, 4)} after {best.step:,} steps: "
            f"{best_path(arguments.output)}"
        )
    if tested:
        final_test(arguments, trainer)
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
            f"the validation loss is above ln {len(model.vocabulary)} = {uniform:.4f}, that of "
            f"uniform guessing; try more --epochs or a smaller --learning-rate"
        )
    if not plain:
        return 0
    if loss < demo.BOUND:
        print(f"the demonstration worked: {loss:.3f} is below its bound of {demo.BOUND}")
        return 0
    return show.complain(
        f"the demonstration failed: its validation loss must be below {demo.BOUND} nats per "
        f"character, and is {brief(loss, 4)}",
        FAILED,
    )

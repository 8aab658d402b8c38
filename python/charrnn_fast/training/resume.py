"""A training in a checkpoint: what it holds, its files, and how it is resumed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import Any, NamedTuple, NoReturn

from numpy.typing import NDArray

from .. import _devices, optim
from .._checks import StrPath, called
from ..language.model import STATES, CharLM, average_name, tensor_name, trained_name
from ..registry import DROPOUT_RATES
from ..storage import atomic_file, checkpoint, configuration
from ..text.corpus import OWN_PARTS, USUAL_SPLIT, Corpus, shown_split
from .averaging import Average
from .callbacks import Evaluation
from .distributed import Group
from .schedules import from_config

REGULARIZATION = (*DROPOUT_RATES, "variational", "zoneout")
"""The keywords of `CharLM` that a resumed training may change."""

_STEP_DIGITS = 8  # so that the names of kept checkpoints sort by their steps

_IN_USE = "a running training saves to this file"


class Stored(NamedTuple):
    """A training as a checkpoint holds it."""

    model: CharLM
    settings: dict[str, Any]
    """The keywords of `Trainer`; the learning rate may be 0, unlike the argument."""
    training: dict[str, Any]
    tensors: checkpoint.Tensors


def read_stored(
    path: StrPath, corpus: Corpus | None, changes: Mapping[str, Any], group: Group
) -> Stored:
    """The training of a checkpoint that `Trainer.resume` continues; process 0 reads it for all.

    Raises as `Trainer.resume` does if the file is damaged, holds no training, or does not match
    corpus and changes.
    """
    name = os.fspath(path)
    device, compute_dtype = changes.get("device") or "cpu", changes.get("compute_dtype")
    _devices.find(device)  # before the file is read
    tensors, config = group.on_first(lambda: configuration.read(path))
    model = CharLM.from_checkpoint(path, tensors, config, device, compute_dtype)
    if "training" not in config:
        raise ValueError(
            f"{name} holds a model without its training; to begin one from its weights, use "
            f"Trainer(CharLM.load({name!r}), corpus)"
        )
    training = config["training"]
    settings = {
        **training["settings"],
        "schedule": from_config(training["settings"]["schedule"]),
    }
    if settings["optimizer"] is None:
        raise ValueError(
            f"{name} was trained with an optimizer object, whose settings it does not hold; "
            f"name the optimizer, as in Trainer(..., optimizer='adam'), to resume later"
        )
    for key in ("seq_len", "optimizer"):
        if changes.get(key, settings[key]) != settings[key]:
            raise ValueError(
                f"{called(key)} must be {settings[key]!r}, with which {name} was trained, got "
                f"{changes[key]!r}"
            )
    if corpus is not None and training["corpus"] is not None:
        check_vocabulary(model, corpus)
        check_corpus(name, corpus, training["corpus"])
    if "averaged" in training:
        names = {name: trained_name(tensor_name(name)) for name in model.rnn.parameters()}
        model.rnn.load_parameters({name: tensors[stored] for name, stored in names.items()})
    return Stored(_with_changes(model, changes), settings, training, tensors)


def _with_changes(model: CharLM, changes: Mapping[str, Any]) -> CharLM:
    """The model with another regularization, if the changes have one."""
    asked = {name: changes[name] for name in REGULARIZATION if name in changes}
    if not asked:
        return model
    changed = CharLM(model.vocabulary, **{**model.settings(), **asked}, device=model.device)
    changed.rnn.load_parameters(model.rnn.parameters())
    return changed


def check_corpus(
    name: str, corpus: Corpus, stored: Mapping[str, Any], advice: Mapping[str, str] | None = None
) -> None:
    """ValueError unless corpus is the one, divided in the same way, of the checkpoint name.

    stored: the identity of that one. advice: what to do with another text, by "text" or the part
    that has one of its own.
    """
    advice = {
        "text": f"to train its weights on another text, use Trainer(CharLM.load({name!r}), "
        f"corpus), or train --init-from",
        **(advice or {}),
    }
    ours = corpus.identity()
    if ours["document_mark"] != stored["document_mark"]:
        raise ValueError(
            f"{called('document_mark')} must be {stored['document_mark']!r}, with which {name} "
            f"was trained, got {ours['document_mark']!r}"
        )
    _check_text(
        f"the corpus must be the one that {name} was trained on",
        ours,
        stored,
        corpus.vocabulary.unit,
        advice["text"],
    )
    divided, before = _divided(ours), _divided(stored)
    if divided != before or ours.get("split") != stored.get("split"):
        raise ValueError(
            f"the corpus must be divided as that with which {name} was trained, by {before}, got "
            f"{divided}; with train --resume, leave out --split, --validation and --test to go on"
        )
    if "test_part" in stored and ours.get("test_part") != stored["test_part"]:
        raise ValueError(
            f"the corpus must have the test part of the one that {name} was trained on, got "
            f"another; {advice['text']}"
        )
    for part in OWN_PARTS:
        if part in stored:
            unit = corpus.vocabulary.unit
            check_own_text(name, part, ours[part], stored[part], unit, advice.get(part, ""))
    if ours["file_starts"] != stored["file_starts"]:
        _refuse_starts("the corpus", name)


def check_own_text(
    name: str,
    part: str,
    ours: Mapping[str, Any],
    stored: Mapping[str, Any],
    unit: str,
    advice: str = "",
) -> None:
    """As `check_corpus`, of the text for validation or test alone."""
    what = f"the text for {called(part)}"
    _check_text(f"{what} must be the one with which {name} was trained", ours, stored, unit, advice)
    if ours["file_starts"] != stored["file_starts"]:
        _refuse_starts(what, name)


def _refuse_starts(what: str, name: str) -> NoReturn:
    raise ValueError(
        f"{what} is the text that {name} was trained on, but its files begin at other places, and "
        f"with a {called('document_mark')} each is a document"
    )


def _check_text(
    what: str, ours: Mapping[str, Any], stored: Mapping[str, Any], unit: str, advice: str = ""
) -> None:
    # "whole": of large texts of their own; checkpoints of older versions lack it.
    digest = "whole" if "whole" in stored else "fingerprint"
    before, now = (text.get(digest, text["fingerprint"]) for text in (stored, ours))
    if (stored["length"], before) != (ours["length"], now):
        raise ValueError(
            f"{what}, {stored['length']} {unit}s (fingerprint {before[:12]}), got "
            f"{ours['length']} (fingerprint {now[:12]}){advice and f'; {advice}'}"
        )


def _divided(text: Mapping[str, Any]) -> str:
    """How a text is divided, by its identity."""
    own = [part for part in OWN_PARTS if part in text]
    names = [called(part) for part in own]
    if "validation" not in own:
        names.insert(0, f"{called('split')} {shown_split(text.get('split', USUAL_SPLIT))}")
    return " and ".join(names)


@contextmanager
def errors_name(path: StrPath, changes: Mapping[str, Any]) -> Iterator[None]:
    """Names the file in errors while a trainer is made from the checkpoint at path."""
    name = os.fspath(path)
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"{name}: {error}") from None
    except checkpoint.CheckpointError as error:
        raise checkpoint.CheckpointError(f"{name}: {error}") from None
    except (TypeError, ValueError) as error:
        if changes:  # they may be what is wrong
            raise
        raise checkpoint.CheckpointError(
            f"{name} does not hold the training that it describes: {error}"
        ) from error


def tensors_of_average(model: CharLM, average: Average) -> dict[str, NDArray[Any]]:
    """The tensors of the weights that train, and of their average."""
    tensors = {}
    for name, weight in model.rnn.parameters().items():
        tensors[trained_name(tensor_name(name))] = weight
        tensors[average_name(tensor_name(name))] = average.values[name]
    return tensors


def restore_average(stored: Stored, average: Average) -> None:
    """Restores the average from `tensors_of_average`."""
    average.restore(
        stored.training["averaged"],
        {
            name: stored.tensors[average_name(tensor_name(name))]
            for name in stored.model.rnn.parameters()
        },
    )


def tensors_of(
    model: CharLM, optimizer: optim.Optimizer, state: NDArray[Any] | None
) -> dict[str, NDArray[Any]]:
    """The tensors besides the model's: the optimizer's and the carried state."""
    tensors = {
        _slot_name(slot, name): optimizer.core.slot(slot, name)
        for slot in optimizer.core.slot_names
        for name in model.rnn.parameters()
    }
    if state is not None:
        parts = model.rnn.states.parts(state)
        tensors |= {f"state.{name}": s for name, s in zip(STATES, parts, strict=False)}
    return tensors


def restore_optimizer(stored: Stored, optimizer: optim.Optimizer) -> None:
    """Restores the optimizer from `tensors_of`; CheckpointError for another optimizer's tensors."""
    core = optimizer.core
    core.num_steps = stored.training["optimizer_steps"]
    names = {
        _slot_name(slot, name): (slot, name)
        for slot in core.slot_names
        for name in stored.model.rnn.parameters()
    }
    there = {name for name in stored.tensors if name.startswith("optimizer.")}
    for name in sorted(names.keys() ^ there):
        state = "is missing" if name in names else "is none of its optimizer's"
        raise checkpoint.CheckpointError(f"the tensor {name!r} {state}")
    for tensor, (slot, name) in names.items():
        core.set_slot(slot, name, stored.tensors[tensor])


def restored_state(stored: Stored) -> NDArray[Any] | None:
    """The carried state of the training, in the kernels' form; None: zero."""
    if not stored.training["has_state"]:
        return None
    tensors = stored.tensors
    parts = [tensors[f"state.{name}"] for name in STATES if f"state.{name}" in tensors]
    return stored.model.rnn.states.joined(parts)


def best_path(path: StrPath) -> str:
    """Where the checkpoint of the best evaluation is kept: model.best.safetensors beside
    model.safetensors.
    """
    root, extension = os.path.splitext(os.fspath(path))
    return f"{root}.best{extension}"


def kept_path(path: StrPath, step: int) -> str:
    """Where the checkpoint of a step is kept: model.step-00000500.safetensors beside
    model.safetensors.
    """
    root, extension = os.path.splitext(os.fspath(path))
    return f"{root}.step-{step:0{_STEP_DIGITS}d}{extension}"


def trained_path(path: StrPath) -> str:
    """The path of a training whose `best_path` or `kept_path` is this one, else path itself."""
    root, extension = os.path.splitext(os.fspath(path))
    return re.sub(rf"\.(best|step-\d{{{_STEP_DIGITS},}})$", "", root) + extension


def kept_paths(path: StrPath) -> dict[int, str]:
    """The checkpoints that are kept beside path, by their steps, in this order."""
    root, extension = os.path.splitext(os.path.basename(path))
    name = re.compile(rf"{re.escape(root)}\.step-(\d{{{_STEP_DIGITS},}}){re.escape(extension)}")
    folder = os.path.dirname(path)
    found = {}
    for file in os.listdir(folder or os.curdir):
        if match := name.fullmatch(file):
            found[int(match[1])] = os.path.join(folder, file)
    return dict(sorted(found.items()))


def found_best(path: StrPath, best: Evaluation) -> str | None:
    """The checkpoint of the best evaluation of the training that saves to path, of those that it
    may have written after this step; None: there is none.

    Another training's, or one of a part that was given up for a kept checkpoint, is not taken.
    """
    names = (best_path(path), kept_path(path, best.step), os.fspath(path))
    return next((name for name in names if _ends_with(name, best)), None)


def _ends_with(path: str, evaluation: Evaluation) -> bool:
    """Whether path is a checkpoint of this evaluation, as far as its configuration tells."""
    try:
        training = configuration.read_alone(path).get("training")
    except (FileNotFoundError, checkpoint.CheckpointError):
        return False
    if training is None or training["num_steps"] != evaluation.step or not training["history"]:
        return False
    last = Evaluation(*training["history"][-1])  # its train_loss may be NaN
    return (last.step, last.validation_loss) == (evaluation.step, evaluation.validation_loss)


def check_checkpoints(path: StrPath, *, keeps: bool = False) -> None:
    """Raises OSError or ValueError if checkpoints cannot, or should not, be written to path, its
    `best_path` and, if it keeps some, the paths of those. Changes nothing.
    """
    best = best_path(path)
    for file in (path, best):
        checkpoint.check_writable(file)
    if keeps:
        for file in (kept_path(path, 0), *kept_paths(path).values()):
            checkpoint.check_writable(file)
    if os.path.realpath(path) == os.path.realpath(best):
        raise ValueError(
            f"{best}, for the best checkpoint, is a link to {os.fspath(path)}; it must be a file "
            f"of its own"
        )


@contextmanager
def locked(path: StrPath | None) -> Iterator[None]:
    """Locks path and its `best_path` for one training; None: nothing.

    Raises BlockingIOError if a running training saves to one of them.
    """
    with ExitStack() as held:
        for file in () if path is None else (path, best_path(path)):
            held.enter_context(locked_file(file))
        yield


def locked_file(path: StrPath) -> closing[atomic_file.Lock]:
    """Locks path for one training; raises BlockingIOError if a running one saves to it."""
    return closing(atomic_file.Lock(path, _IN_USE))


def check_vocabulary(model: CharLM, corpus: Corpus) -> None:
    """ValueError unless corpus has the vocabulary of model."""
    ours, theirs = model.vocabulary, corpus.vocabulary
    if ours != theirs:
        raise ValueError(
            f"the corpus must have the vocabulary of the model, {ours!r}, got {theirs!r}; read it "
            f"with vocabulary=model.vocabulary"
        )


def _slot_name(slot: str, parameter: str) -> str:
    """The name of an optimizer's tensor in a checkpoint."""
    return f"optimizer.{slot}.{tensor_name(parameter)}"

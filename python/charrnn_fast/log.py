"""A training's log: a file of JSON lines, as `JsonLog` writes it, and TensorBoard's.

Each line is an object with a ``type``. ``start``: the version, the model, the settings, the text.
``updates``: the means of loss and gradient norm over the updates since the last such line, the
learning rate of the last one, characters per second, and seconds of training since it was started
or resumed. ``evaluation``: an `Evaluation` and the text drawn with it. ``resume``: a training goes
on behind this step. All losses are in nats per character (or byte).

A new training that is to replace another one, whose checkpoint it has not replaced yet, begins
behind that one's lines; with its first checkpoint those are taken out.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from . import atomic_file, build_info
from ._checks import StrPath, integer
from .callbacks import Callback, Evaluation, Update

if TYPE_CHECKING:
    from .trainer import Trainer

_IN_USE = "a training that goes on writes to this log"


class JsonLog(Callback):
    """Writes what happens to a file of JSON lines, each of them at once.

    A resumed training goes on in the file of the one before: what was written after the step that
    it is resumed from, and will come again, is taken out. Only one training at a time has a file.
    """

    def __init__(self, path: StrPath, every: int = 100) -> None:
        """every: the updates that one line sums up, or fewer before a checkpoint.

        Raises OSError where path cannot be written, holds a file that is no such log, or is the log
        of a training that goes on.
        """
        self._path = os.fspath(path)
        self._every = integer("every", every, 1)
        self._file: IO[str] | None = None
        self._replaces = False  # whether another training's lines are still there
        _check(self._path)

    def started(self, trainer: Trainer, steps: int) -> None:
        self._window: list[Update] = []
        self._seconds = 0.0
        self._open()
        begins = trainer.num_steps == 0
        kept = _kept(self._path, trainer)
        if os.path.getsize(self._path):
            self._rewrite(kept)
        self._replaces = begins and bool(kept)
        if begins or not kept:
            self._write(_start(trainer))
        if not begins:
            self._write({"type": "resume", "step": trainer.num_steps})

    def updated(self, trainer: Trainer, update: Update) -> None:
        self._window.append(update)
        if len(self._window) == self._every:
            self._sum_up(trainer)

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, sample: str) -> None:
        self._sum_up(trainer)
        self._write({"type": "evaluation", **evaluation._asdict(), "sample": sample})

    def saved(self, trainer: Trainer, path: str) -> None:
        self._sum_up(trainer)  # what a training that is resumed from here finds is whole
        if self._replaces and path == trainer._checkpoint_path:
            self._rewrite(list(read(self._path)))
            self._replaces = False

    def ended(self, trainer: Trainer) -> None:
        if self._file is not None:
            self._sum_up(trainer)
            self._close()

    def _sum_up(self, trainer: Trainer) -> None:
        window, seconds = self._window, trainer.seconds - self._seconds
        if not window:
            return
        self._write(
            {
                "type": "updates",
                "step": window[-1].step,
                "epoch": window[-1].epoch,
                "count": len(window),
                "loss": math.fsum(u.loss for u in window) / len(window),
                "gradient_norm": math.fsum(u.gradient_norm for u in window) / len(window),
                "learning_rate": window[-1].learning_rate,
                "symbols_per_second": sum(u.symbols for u in window) / seconds,
                "seconds": trainer.seconds,
            }
        )
        self._window, self._seconds = [], trainer.seconds

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(_line(entry))
            self._file.flush()
        except OSError as error:
            raise atomic_file.of_path(error, self._path) from error

    def _open(self) -> None:
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        atomic_file.lock(self._file, _IN_USE)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rewrite(self, entries: list[dict[str, Any]]) -> None:
        """Replaces the file as one."""
        atomic_file.replace(self._path, (_line(entry).encode() for entry in entries))
        self._close()
        self._open()


class TensorBoardLog(Callback):
    """Writes the same numbers for TensorBoard; takes the extra ``charrnn-fast[tensorboard]``."""

    def __init__(self, folder: StrPath) -> None:
        """Raises ImportError, which names the extra, where tensorboardX is not installed."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard's log takes tensorboardX: pip install 'charrnn-fast[tensorboard]'"
            ) from error
        self._folder = os.fspath(folder)
        self._make: Any = SummaryWriter

    def started(self, trainer: Trainer, steps: int) -> None:
        # Events of a killed training behind this step are hidden by TensorBoard itself.
        purge = trainer.num_steps + 1 if trainer.num_steps else None
        self._writer: Any = self._make(self._folder, purge_step=purge)

    def updated(self, trainer: Trainer, update: Update) -> None:
        for name in ("loss", "gradient_norm", "learning_rate"):
            self._writer.add_scalar(f"training/{name}", getattr(update, name), update.step)

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, sample: str) -> None:
        loss = evaluation.validation_loss
        self._writer.add_scalar("validation/loss", loss, evaluation.step)
        self._writer.add_text("sample", sample, evaluation.step)

    def ended(self, trainer: Trainer) -> None:
        self._writer.close()


def read(path: StrPath) -> Iterator[dict[str, Any]]:
    """The entries of the training that a log is of, the last one where it holds two.

    A last line without an end, of a training that is at it or was killed, is left out. Raises
    ValueError, with the line's number, for a file that is no log.
    """
    return iter(_trainings(path)[-1])


def _trainings(path: StrPath) -> list[list[dict[str, Any]]]:
    """The entries of each training in a file, one at least."""
    trainings: list[list[dict[str, Any]]] = [[]]
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                if not isinstance(entry["type"], str):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{os.fspath(path)} is no log of a training: line {number} is no entry"
                ) from None
            if entry["type"] == "start" and trainings[-1]:
                trainings.append([])
            trainings[-1].append(entry)
    return trainings


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"


def _start(trainer: Trainer) -> dict[str, Any]:
    corpus = trainer.corpus
    return {
        "type": "start",
        "version": build_info()["version"],
        "model": {**trainer.model._config, "num_parameters": trainer.model.num_parameters},
        "settings": trainer._settings(),
        "configuration": trainer.configuration,
        "vocabulary": len(trainer.model.vocabulary),
        "unit": trainer.model.vocabulary._unit,
        "text": None if corpus is None else len(corpus),
        "steps_per_epoch": trainer.steps_per_epoch,
    }


def _check(path: str) -> None:
    """OSError unless path can be written to and holds nothing but a log."""
    if not os.path.exists(path):
        atomic_file.check_folder(path)
        return
    with open(path, "a", encoding="utf-8") as file:
        atomic_file.lock(file, _IN_USE)
    if os.path.getsize(path):
        try:
            first = next(read(path), {"type": None})
        except ValueError:
            first = {"type": None}
        if first["type"] != "start":
            raise FileExistsError(
                errno.EEXIST, "this file is no log of a training; it is not overwritten", path
            )


def _kept(path: str, trainer: Trainer) -> list[dict[str, Any]]:
    """What stays of a log when a training begins or goes on."""
    before = _trainings(path)[0]  # of two, the later one never came to a checkpoint
    last = trainer.num_steps
    if last == 0:
        return [] if trainer._checkpoint_path is None else before
    again = "evaluation" if trainer._evaluation_due else None
    return [
        entry
        for entry in before
        if entry.get("step", 0) < last or (entry["step"] == last and entry["type"] != again)
    ]

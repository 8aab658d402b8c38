"""A training's log: a file of JSON lines, as `JsonLog` writes it, and TensorBoard's.

Each line is an object with a ``type``. ``start``: the version, the model, the settings, the text.
``updates``: the means of loss and gradient norm over the updates since the last such line, the
learning rate of the last one, characters per second, and seconds of training since it was started
or resumed. ``evaluation``: an `Evaluation` and the text drawn with it. ``resume``: a training goes
on behind this step. All losses are in nats per character (or byte).
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


class JsonLog(Callback):
    """Writes what happens to a file of JSON lines, each of them at once.

    A resumed training goes on in the file of the one before: what was written after the step that
    it is resumed from, and will come again, is taken out.
    """

    def __init__(self, path: StrPath, every: int = 100) -> None:
        """every: the updates that one line sums up.

        Raises OSError where path cannot be written or holds a file that is no such log.
        """
        self._path = os.fspath(path)
        self._every = integer("every", every, 1)
        self._file: IO[str] | None = None
        _check(self._path)

    def started(self, trainer: Trainer, steps: int) -> None:
        if trainer.num_steps == 0:
            self._file = open(self._path, "w", encoding="utf-8")  # noqa: SIM115
            self._write(_start(trainer))
        else:
            if os.path.exists(self._path):
                _keep(self._path, trainer.num_steps)
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
            if not os.path.getsize(self._path):
                self._write(_start(trainer))
            self._write({"type": "resume", "step": trainer.num_steps})
        self._window: list[Update] = []
        self._seconds = 0.0

    def updated(self, trainer: Trainer, update: Update) -> None:
        self._window.append(update)
        if len(self._window) == self._every:
            self._sum_up(trainer)

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, sample: str) -> None:
        self._sum_up(trainer)
        self._write({"type": "evaluation", **evaluation._asdict(), "sample": sample})

    def ended(self, trainer: Trainer) -> None:
        if self._file is not None:
            self._sum_up(trainer)
            self._file.close()
            self._file = None

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
        if self._file is not None:
            self._file.write(_line(entry))
            self._file.flush()


class TensorBoardLog(Callback):
    """Writes the same numbers for TensorBoard; takes the extra ``charrnn-fast[tensorboard]``."""

    def __init__(self, folder: StrPath) -> None:
        """Raises ImportError, which names the extra, where tensorboardX is not installed."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard's log takes tensorboardX: pip install charrnn-fast[tensorboard]"
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
    """The entries of a log. Raises ValueError, with the line's number, where it is none.

    A last line without an end, of a training that is at it or was killed, is left out.
    """
    name = os.fspath(path)
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                entry = json.loads(line)
                if not isinstance(entry["type"], str):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{name} is no log of a training: line {number} is no entry"
                ) from None
            yield entry


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
    with open(path, "a", encoding="utf-8"):
        pass
    if os.path.getsize(path):
        try:
            first = next(read(path), {"type": None})
        except ValueError:
            first = {"type": None}
        if first["type"] != "start":
            raise FileExistsError(
                errno.EEXIST, "this file is no log of a training; it is not overwritten", path
            )


def _keep(path: str, step: int) -> None:
    """Takes out of a log what lies behind a step; the file is replaced as one."""
    lines = (_line(entry).encode() for entry in read(path) if entry.get("step", 0) <= step)
    atomic_file.replace(path, lines)

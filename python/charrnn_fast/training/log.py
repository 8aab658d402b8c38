"""Training logs: JSON lines, as `JsonLog` writes them, and TensorBoard's format.

Each line is an object with a ``type``. All losses are in nats per character (or byte).

``start``: the version, the model, the settings, the text
``updates``: mean loss and mean gradient norm over the updates since the last such line, the
    learning rate of the last one, characters per second (null if the clock stood still), and
    seconds of training since it was started or resumed
``evaluation``: an `Evaluation` and the text drawn with it
``checkpoint``: the first checkpoint is written, at this step
``resume``: a training resumes after this step

A new training appends its lines to those of the training that it will replace, and removes the
latter with its first checkpoint. Nothing is kept of a training that ends before its first
evaluation and its first checkpoint.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import secrets
import select
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

from .._checks import StrPath, calling, integer
from ..runtime import build_info
from ..storage import atomic_file, input_files, schema
from .callbacks import Callback, Evaluation, Update
from .clock import speed
from .resume import REGULARIZATION

if TYPE_CHECKING:
    from ..language.model import CharLM
    from .trainer import Trainer

_LINE_LIMIT = 1 << 28  # bytes: a text of many characters is drawn at an evaluation

# What readers rely on; later versions may add keys and types of entries.
_SIZE = schema.number(least=0)
_STEP = schema.integer(0, 2**63 - 1)
_ENTRY = schema.table(
    {"type": schema.text()},
    {"step": _STEP, "unit": schema.one_of("character", "byte")},
    others=True,
)
_ENTRIES = {
    "updates": schema.table(
        {
            "step": _STEP,
            "epoch": _SIZE,
            "loss": _SIZE,
            "gradient_norm": _SIZE,
            "learning_rate": _SIZE,
        },
        others=True,
    ),
    "evaluation": schema.table(
        {"step": _STEP, "epoch": _SIZE, "validation_loss": _SIZE}, others=True
    ),
    "resume": schema.table({"step": _STEP}, others=True),
}

_NO_LOG = " is no log of a training"
_IN_USE = "a running training writes to this log"
_FLUSH_SECONDS = 30.0  # of TensorBoard's log, between evaluations


class JsonLog(Callback):
    """Writes events to a file of JSON lines, each line at once.

    A resumed training continues the file: lines after the step that it resumes from are removed,
    since they will come again. Only one training at a time can use a file. On standard error, as
    ``/dev/stderr``, lines are only added.
    """

    def __init__(self, path: StrPath, every: int = 100) -> None:
        """every: updates per line, or fewer before a checkpoint.

        Raises OSError if path cannot be written, holds a file that is not such a log or not
        regular, or is the log of a running training.
        """
        self._path = os.fspath(path)
        self._every = integer("every", every, 1)
        self._file: IO[bytes] | None = None
        self._lock: atomic_file.Lock | None = None
        self._window: list[Update] = []
        self._seconds = 0.0
        self._replaces = False  # whether another training's lines are still in the file
        self._has_checkpoint = False
        self._is_stream = atomic_file.is_standard_error(path)
        check_writable(path)

    def started(self, trainer: Trainer, steps: int) -> None:
        self._window, self._seconds = [], 0.0
        begins = trainer.num_steps == 0
        self._has_checkpoint = not begins
        try:
            kept = self._open(trainer)
            self._replaces = begins and bool(kept)
            if begins or not kept:
                self._write(_start(trainer))
            if not begins:
                self._write({"type": "resume", "step": trainer.num_steps})
        except BaseException:
            self._close()
            raise

    def __getstate__(self) -> Any:
        _check_idle(self, self._file is None and self._lock is None)
        return super().__getstate__()

    def updated(self, trainer: Trainer, update: Update) -> None:
        self._window.append(update)
        if len(self._window) == self._every:
            self._sum_up(trainer)

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, sample: str) -> None:
        self._sum_up(trainer)
        self._write({"type": "evaluation", **evaluation._asdict(), "sample": sample})

    def saved(self, trainer: Trainer, path: str) -> None:
        self._sum_up(trainer)  # so that a training resumed from here finds whole lines
        if path != trainer.checkpoint_path:
            return
        if self._replaces:
            self._rewrite(list(read(self._path)))
            self._replaces = False
        if not self._has_checkpoint:
            self._write({"type": "checkpoint", "step": trainer.num_steps})
            self._has_checkpoint = True

    def ended(self, trainer: Trainer) -> None:
        try:
            self._sum_up(trainer)
        finally:
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
                "symbols_per_second": speed(sum(u.symbols for u in window), seconds),
                "seconds": trainer.seconds,
            }
        )
        self._window, self._seconds = [], trainer.seconds

    def _write(self, entry: dict[str, Any]) -> None:
        """Adds a line. If that fails, earlier lines stay whole and no more are written."""
        if self._file is None:
            return
        status = os.fstat(self._file.fileno())
        rest = _line(entry)
        try:
            while rest:
                written = self._file.write(rest)
                if written is None:  # another program has made the stream non-blocking
                    select.select([], [self._file], [])
                rest = rest[written or 0 :]
        except OSError as error:
            with suppress(OSError):
                if stat.S_ISREG(status.st_mode) and not self._is_stream:
                    os.ftruncate(self._file.fileno(), status.st_size)
            self._file.close()
            self._file = None
            raise atomic_file.of_path(error, self._path) from error

    def _open(self, trainer: Trainer) -> list[dict[str, Any]]:
        """Opens the file and returns the entries that are kept."""
        if self._is_stream:
            self._file = open(os.dup(2), "wb", buffering=0)  # noqa: SIM115
            return []
        self._lock = atomic_file.Lock(self._path, _IN_USE)
        self._file = atomic_file.append(self._path)
        if not os.fstat(self._file.fileno()).st_size:
            return []
        kept = _kept(self._path, trainer)
        self._rewrite(kept)
        return kept

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _rewrite(self, entries: list[dict[str, Any]]) -> None:
        """Replaces the file atomically."""
        atomic_file.replace(self._path, map(_line, entries), _LOG)
        if self._file is not None:
            self._file.close()
        self._file = atomic_file.append(self._path)


class TensorBoardLog(Callback):
    """Writes the same numbers for TensorBoard; needs the extra ``charrnn-fast[tensorboard]``.

    Each training adds a file to the folder. Of earlier files, TensorBoard shows the steps up to the
    one from which this training starts.
    """

    def __init__(self, folder: StrPath) -> None:
        """Raises ImportError, which names the extra, if tensorboardX is not installed, and OSError
        if the folder cannot be made or written to.
        """
        try:
            from tensorboardX import record_writer, summary
            from tensorboardX.proto import event_pb2
        except ImportError as error:
            raise ImportError(
                "TensorBoard's log takes tensorboardX: pip install 'charrnn-fast[tensorboard]'"
            ) from error
        self._folder = os.fspath(folder)
        # Not its SummaryWriter: that writes in a thread, and waits forever where it cannot.
        self._records: Any = record_writer
        self._summary: Any = summary
        self._proto: Any = event_pb2
        self._writer: Any = None
        check_folder(self._folder)

    def __reduce__(self) -> tuple[Any, ...]:
        _check_idle(self, self._writer is None)
        own = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return type(self), (self._folder,), own

    def started(self, trainer: Trainer, steps: int) -> None:
        # TensorBoard reads files in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        with self._errors():
            self._records.directory_check(self._folder)
            self._writer = self._records.RecordWriter(
                os.path.join(self._folder, f"{name}.{secrets.token_hex(4)}")
            )
        self._flushed = time.monotonic()
        self._write(0, file_version="brain.Event:2")
        # TensorBoard hides what a failed or killed training wrote after this step.
        start = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._write(trainer.num_steps + 1, session_log=start)

    def updated(self, trainer: Trainer, update: Update) -> None:
        for name in ("loss", "gradient_norm", "learning_rate"):
            self._add(update.step, f"training/{name}", getattr(update, name))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, sample: str) -> None:
        self._add(evaluation.step, "validation/loss", evaluation.validation_loss)
        text = sample.encode("utf-8", "replace").decode()  # a model may draw half a character
        self._write(evaluation.step, summary=self._summary.text("sample", text))
        self._flush()

    def ended(self, trainer: Trainer) -> None:
        self._flush()
        with self._errors():
            if self._writer is not None:
                self._writer.close()
        self._writer = None

    def _add(self, step: int, name: str, value: float) -> None:
        self._write(step, summary=self._summary.scalar(name, value))

    def _write(self, step: int, **content: Any) -> None:
        with self._errors():
            if self._writer is not None:
                event = self._proto.Event(step=step, wall_time=time.time(), **content)
                self._writer.write(event.SerializeToString())

    def _flush(self) -> None:
        with self._errors():
            if self._writer is not None:
                self._writer.flush()
        self._flushed = time.monotonic()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Names the folder in errors; after one nothing more is written."""
        try:
            yield
        except OSError as error:
            writer, self._writer = self._writer, None
            with suppress(OSError):  # close() retries the failed write
                if writer is not None:
                    writer.close()
            raise atomic_file.of_path(error, self._folder) from error


def _check_idle(log: Callback, idle: bool) -> None:
    if not idle:
        raise TypeError(
            f"a {type(log).__name__} cannot be copied or pickled while a training writes to it; do "
            f"so before or after fit()"
        )


def read(path: StrPath) -> Iterator[dict[str, Any]]:
    """The entries of a log's training, or of the last one if it holds two.

    An unfinished last line, of a running or killed training, is skipped. Raises ValueError, with
    the line's number, for a file that is not a log and for an entry with invalid numbers.
    """
    return iter(_trainings(path)[-1])


def _trainings(path: StrPath) -> list[list[dict[str, Any]]]:
    """The entries of each training in a file, at least one list."""
    trainings: list[list[dict[str, Any]]] = [[]]
    name = os.fspath(path)
    with input_files.open_input(path) as file:
        for number in itertools.count(1):
            line = file.readline(_LINE_LIMIT)
            if not line.endswith(b"\n") and len(line) < _LINE_LIMIT:
                break
            try:
                entry = _entry(line)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{name}{_NO_LOG}: line {number}{error}") from None
            if entry["type"] == "start" and trainings[-1]:
                trainings.append([])
            trainings[-1].append(entry)
    return trainings


def check_writable(path: StrPath) -> None:
    """Raises OSError if a `JsonLog` cannot, or should not, be written to path. Changes nothing."""
    if not atomic_file.is_standard_error(path):
        atomic_file.check(path, _LOG)
        atomic_file.Lock(path, _IN_USE).close()
    elif sys.__stderr__ is None:  # which a shell does by 2>&-
        raise OSError(errno.EBADF, "standard error is closed", os.fspath(path))


def check_folder(path: StrPath) -> None:
    """Raises OSError if a `TensorBoardLog` cannot write to a folder. Changes nothing."""
    if "://" not in os.fspath(path):  # tensorboardX can write to storage of other kinds
        atomic_file.check_folder(path)


def is_worth_keeping(path: StrPath) -> bool:
    """Whether path is the log of a training that reached an evaluation or a checkpoint."""
    if atomic_file.is_standard_error(path) or not os.path.exists(path):
        return False
    return not all(map(_came_to_nothing, _trainings(path)))


def is_of(path: StrPath, model: CharLM, training: Mapping[str, Any]) -> bool:
    """Whether path is the log of the training in a checkpoint, as far as its entries tell.

    model: with the shape of the one in the checkpoint; a resumed training may have another
    regularization. training: as the checkpoint has it. Up to its step the log must have the
    evaluations of its history, but for the last, after which a disk may have been full.
    """
    if not os.path.isfile(path):
        return False
    try:
        entries = _trainings(path)[0]
    except ValueError:
        return False
    if not entries or entries[0]["type"] != "start":
        return False
    start, corpus = entries[0], training["corpus"]
    facts = {
        "vocabulary": len(model.vocabulary),
        "unit": model.vocabulary.unit,
        "text": None if corpus is None else corpus["length"],
    }
    may_change = (*REGULARIZATION, "compute_dtype")
    shape = {n: v for n, v in model.settings().items() if n not in may_change}
    shape["num_parameters"] = model.num_parameters
    known = start.get("model")
    if not isinstance(known, dict) or any(start.get(n) != v for n, v in facts.items()):
        return False
    if any(known[n] != v for n, v in shape.items() if n in known):  # older logs have fewer
        return False
    begun = entries[1]["step"] if len(entries) > 1 and entries[1]["type"] == "resume" else 0
    history = [(e.step, e.validation_loss) for e in map(Evaluation._make, training["history"])]
    last = training["num_steps"] - training["evaluation_due"]  # a due one comes again
    logged = {
        (entry["step"], entry["validation_loss"])
        for entry in entries
        if entry["type"] == "evaluation" and entry["step"] <= last
    }
    return logged <= set(history) and logged >= {e for e in history[:-1] if e[0] > begun}


def _came_to_nothing(entries: list[dict[str, Any]]) -> bool:
    return {entry["type"] for entry in entries} <= {"start", "updates"}


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, allow_nan=False).encode() + b"\n"


def _entry(line: bytes) -> dict[str, Any]:
    """ValueError or TypeError, to follow the line's number in a message, if it is no entry."""
    try:
        if len(line) == _LINE_LIMIT:
            raise ValueError("it is too long")
        entry: Any = schema.loads(line.decode())
        if type(entry) is not dict or type(entry.get("type")) is not str:
            raise TypeError("it has no type")
    except (ValueError, TypeError) as error:
        raise ValueError(f" is no entry ({error})") from None
    try:
        with calling({}):  # the file's keys are not arguments
            _ENTRY("", entry)
            _ENTRIES.get(entry["type"], _ENTRY)("", entry)
    except (ValueError, TypeError) as error:
        raise ValueError(f": {error}") from None
    return entry


def _start(trainer: Trainer) -> dict[str, Any]:
    corpus = trainer.corpus
    return {
        "type": "start",
        "version": build_info()["version"],
        "model": {**trainer.model.settings(), "num_parameters": trainer.model.num_parameters},
        "settings": trainer.settings(),
        "configuration": trainer.configuration,
        "vocabulary": len(trainer.model.vocabulary),
        "unit": trainer.model.vocabulary.unit,
        "text": None if corpus is None else len(corpus),
        "steps_per_epoch": trainer.steps_per_epoch,
    }


def _is_log(path: str) -> bool:
    try:
        first = next(iter(_trainings(path)[0]), None)
    except ValueError:
        return False
    if first is None:  # there is no whole line
        beginning = b'{"type": "start", '
        with open(path, "rb") as file:
            return file.read(len(beginning)) == beginning
    return bool(first["type"] == "start")


_LOG = atomic_file.Kind("log of a training", _is_log)


def _kept(path: str, trainer: Trainer) -> list[dict[str, Any]]:
    """The entries of a log that are kept when a training begins or resumes."""
    before = _trainings(path)[0]  # of two, the later one never reached a checkpoint
    last = trainer.num_steps
    if last == 0:
        return [] if trainer.checkpoint_path is None or _came_to_nothing(before) else before
    again = "evaluation" if trainer.evaluation_due else None
    return [
        entry
        for entry in before
        if entry.get("step", 0) < last or (entry["step"] == last and entry["type"] != again)
    ]

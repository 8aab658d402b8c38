"""The results of a run, and their JSON. Times are in seconds per unit of the suite."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import atomic_file
from .errors import BenchError

FORMAT = 1


@dataclass(frozen=True)
class Spread:
    """The median of some values, their quartiles, extremes and number."""

    median: float
    q1: float
    q3: float
    min: float
    max: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            (value,) = values
            return cls(value, value, value, value, value, 1)
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3, min(values), max(values), len(values))

    def overlaps(self, other: Spread) -> bool:
        """Whether the quartiles of the two meet."""
        return self.q1 <= other.q3 and other.q1 <= self.q3


@dataclass(frozen=True)
class Side:
    """How a peer did. ratio: its time over the kernels', of pairs timed one after the other.

    cores: processor time over time. preparation: seconds of making and checking, compilation
    included, in none of the times.
    """

    seconds: Spread
    ratio: Spread
    cores: float
    preparation: float


@dataclass(frozen=True)
class Reached:
    """When a training first had a validation loss (nats per character) of the target or less."""

    steps: int
    seconds: float  # of training alone
    loss: float
    reached: bool


@dataclass(frozen=True)
class Row:
    """One case on a number of threads. seconds: the kernels', per unit.

    limit: what bounds the time from below, "fma" (FLOP/s) or "read" (bytes/s of weights); peak:
    that of the machine, measured beside the case; share: how much of it the kernels reach.
    efficiency: on one thread, the share while they had the processor, which other programs' turns
    on it do not lower; on more, the share.
    free: the part of the cores' time that other programs left, on average, beside the blocks.
    """

    suite: str
    case: str
    threads: int
    unit: str
    seconds: Spread
    cores: float
    characters_per_second: float | None
    flops: float
    intensity: float  # FLOP per byte of weights
    weight_bytes: int
    limit: str
    peak: float
    share: Spread
    efficiency: Spread
    free: float
    peers: dict[str, Side]
    notes: list[str] = field(default_factory=list)
    target: float | None = None  # time-to-loss: nats per character
    reached: dict[str, Reached] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int]:
        return self.suite, self.case, self.threads


@dataclass
class Run:
    """peaks: by threads, "fma" in FLOP/s and "read" in bytes/s by footprint in bytes."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    peers: dict[str, str]  # versions by name
    unavailable: dict[str, str]  # reasons by name
    peaks: dict[str, dict[str, Any]]
    rows: list[Row] = field(default_factory=list)

    def write(self, path: Path) -> None:
        data = json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"
        atomic_file.replace(path, [data.encode()])

    @classmethod
    def read(cls, path: Path) -> Run:
        """A run that `write` has written; BenchError where the file holds something else."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise BenchError(f"{path}: {error.strerror}") from None
        except ValueError as error:
            raise BenchError(f"{path} is no result of a benchmark: {error}") from None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise BenchError(f"{path} is no result of a benchmark of format {FORMAT}")
        try:
            rows = [_row(row) for row in data.pop("rows")]
            return cls(**data, rows=rows)
        except (TypeError, KeyError, AttributeError) as error:
            raise BenchError(f"{path} is no result of a benchmark: {error!r}") from None


def _row(data: dict[str, Any]) -> Row:
    spreads: Any = {name: Spread(**data.pop(name)) for name in ("seconds", "share", "efficiency")}
    peers = {name: _side(side) for name, side in data.pop("peers").items()}
    reached = {name: Reached(**entry) for name, entry in data.pop("reached").items()}
    return Row(**data, **spreads, peers=peers, reached=reached)


def _side(data: dict[str, Any]) -> Side:
    spreads: Any = {name: Spread(**data.pop(name)) for name in ("seconds", "ratio")}
    return Side(**data, **spreads)

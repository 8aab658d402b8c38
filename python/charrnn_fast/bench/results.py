"""The results of a run, and their JSON. Times are in seconds per unit of the suite."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..storage import atomic_file, input_files, schema
from ..storage.schema import (
    anything,
    flag,
    integer,
    list_of,
    mapping,
    number,
    one_of,
    optional,
    table,
    text,
)
from .errors import BenchError

FORMAT = 1
_LARGEST = 100_000_000  # bytes of a run's JSON

_TIME = number(above=0)
_SIZE = number(least=0)
_SPREAD = table(
    {"median": _TIME, "q1": _TIME, "q3": _TIME, "min": _TIME, "max": _TIME, "count": integer(1)}
)
_SIDE = table({"seconds": _SPREAD, "ratio": _SPREAD, "cores": _SIZE, "preparation": _SIZE})
_REACHED = table({"steps": integer(0), "seconds": _SIZE, "loss": number(), "reached": flag})
_ROW = table(
    {
        "suite": text(),
        "case": text(),
        "threads": integer(1),
        "unit": text(),
        "seconds": _SPREAD,
        "cores": _SIZE,
        "characters_per_second": optional(_SIZE),
        "flops": _SIZE,
        "intensity": _SIZE,
        "weight_bytes": integer(0, 2**62),
        "limit": one_of("fma", "read"),
        "peak": _TIME,
        "share": _SPREAD,
        "efficiency": _SPREAD,
        "free": _SIZE,
        "peers": mapping(_SIDE),
        "notes": list_of(text()),
        "target": optional(number()),
        "reached": mapping(_REACHED),
    }
)
_RUN = table(
    {
        "machine": mapping(anything),
        "settings": mapping(anything),
        "peers": mapping(text()),
        "unavailable": mapping(text()),
        "peaks": mapping(mapping(anything)),
        "rows": list_of(_ROW),
    }
)


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
        """Whether the two quartile ranges overlap."""
        return self.q1 <= other.q3 and other.q1 <= self.q3


@dataclass(frozen=True)
class Side:
    """A peer's result. ratio: its time over the kernels', of pairs timed one after the other.

    cores: processor time over time. preparation: seconds of building and checking, compilation
    included, which no other time contains.
    """

    seconds: Spread
    ratio: Spread
    cores: float
    preparation: float


@dataclass(frozen=True)
class Reached:
    """When a training first reached the target validation loss (nats per character)."""

    steps: int
    seconds: float  # of training alone
    loss: float
    reached: bool


@dataclass(frozen=True)
class Row:
    """One case on a number of threads. seconds: the kernels', per unit.

    limit: what bounds the time from below, "fma" (FLOP/s) or "read" (bytes/s of weights). peak: the
    machine's, measured beside the case. share: the share of it that the kernels reach. efficiency:
    on one thread, the share while the kernels had the processor, which other programs do not lower;
    on more threads, the share.
    free: the share of the cores' time that other programs left, on average, beside the blocks.
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

    @property
    def one_process(self) -> bool:
        """Whether the peers ran in the kernels' process; files from before that could be have no
        entry for it."""
        return self.settings.get("one_process") is True

    def write(self, path: Path) -> None:
        data = json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"
        atomic_file.replace(path, [data.encode()])

    @classmethod
    def read(cls, path: Path) -> Run:
        """A run written by `write`; BenchError if the file holds something else."""
        try:
            content = input_files.read_whole(str(path), _LARGEST, "a result")
            data = schema.loads(input_files.decoded(content, "it"))
        except OSError as error:
            raise BenchError(f"{path}: {error.strerror}") from None
        except ValueError as error:
            raise BenchError(f"{path} is no result of a benchmark: {error}") from None
        if type(data) is not dict or schema.shown(data.pop("format", None)) != str(FORMAT):
            raise BenchError(f"{path} is no result of a benchmark of format {FORMAT}")
        try:
            _RUN("", data)
        except (ValueError, TypeError) as error:
            raise BenchError(f"{path} is no result of a benchmark: {error}") from None
        return cls(**{**data, "rows": [_row(row) for row in data["rows"]]})


def _row(data: dict[str, Any]) -> Row:
    spreads: Any = {name: Spread(**data.pop(name)) for name in ("seconds", "share", "efficiency")}
    peers = {name: _side(side) for name, side in data.pop("peers").items()}
    reached = {name: Reached(**entry) for name, entry in data.pop("reached").items()}
    return Row(**data, **spreads, peers=peers, reached=reached)


def _side(data: dict[str, Any]) -> Side:
    spreads: Any = {name: Spread(**data.pop(name)) for name in ("seconds", "ratio")}
    return Side(**data, **spreads)

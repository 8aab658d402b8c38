"""Two sides of a comparison, timed in turns; for benchmarks that compare with one peer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

TURN = 0.02  # seconds: short calls are repeated for as long


@dataclass(frozen=True)
class Times:
    """theirs, ours: medians in milliseconds. ratio: the median over pairs of adjacent turns."""

    theirs: float
    ours: float
    ratio: float
    turns: int


def measure(sides: tuple[Callable[[], Any], Callable[[], Any]], seconds: float) -> Times:
    """The calls of theirs and ours, over at least 3 turns; ratio: their time over ours."""
    repeats = []
    for call in sides:
        call()
        begin = time.perf_counter()
        call()
        repeats.append(max(1, math.ceil(TURN / (time.perf_counter() - begin))))
    times: list[list[float]] = [[], []]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for call, count, found in zip(sides, repeats, times, strict=True):
            begin = time.perf_counter()
            for _ in range(count):
                call()
            found.append((time.perf_counter() - begin) / count * 1e3)
    theirs, ours = np.array(times)
    ratio = float(np.median(theirs / ours))
    return Times(float(np.median(theirs)), float(np.median(ours)), ratio, len(ours))

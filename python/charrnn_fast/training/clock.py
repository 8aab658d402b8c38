"""Elapsed time and speeds, robust to a clock that stands still or goes back.

Some virtual machines, tests with frozen time and browser sandboxes have such clocks.
"""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """0 or more."""
        return max(0.0, time.perf_counter() - self._start)


def speed(count: float, seconds: float) -> float | None:
    """count per second; None where no time has passed."""
    return count / seconds if seconds > 0 else None

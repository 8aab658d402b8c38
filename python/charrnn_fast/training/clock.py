"""Time that has passed, and speeds, also where the clock stands still or goes back.

The clocks of some virtual machines, of frozen time in tests and of browsers' sandboxes do.
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

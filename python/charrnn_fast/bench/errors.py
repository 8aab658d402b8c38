"""The two ways in which a benchmark can fail."""

from __future__ import annotations


class BenchError(ValueError):
    """What keeps the benchmarks from running; the command line tells it in one line."""


class UnavailableError(Exception):
    """Why a peer cannot take part: it is left out, and named with this reason."""

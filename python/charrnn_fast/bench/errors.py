"""The two ways in which a benchmark can fail."""

from __future__ import annotations


class BenchError(ValueError):
    """The benchmarks cannot run; the command line prints the reason in one line."""


class UnavailableError(Exception):
    """A peer cannot take part: it is skipped and listed with this reason."""

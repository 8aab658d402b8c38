"""Memory: logits never stand in memory all at once, and the rest grows with T as the tape does.

Each peak is that of a process of its own. Bounds are of sizes, never of times.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest

import peak_memory

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="peaks are read from /proc, which Linux has"
)

MB = 1_000_000
BOUND = 64 * MB  # beside parameters, gradients and optimizer, at B 50, T 50, H 128


@pytest.mark.parametrize("work", ["train_step", "language_model"])
def test_logits_are_never_all_in_memory(work: str) -> None:
    T, B, V = 50, 50, 20_000
    assert 4 * T * B * V > 3 * BOUND  # all of them would be far past the bound
    peaks = peak_memory.run(work, T, B, 128, 1, V)
    assert peaks["train"] - peaks["model"] < BOUND
    assert peaks["build"] < peaks["model"]
    if work == "language_model":
        # One stream, 2000 characters: beside the parameters there is no need for more either, but
        # for the copy of the decoder that drawing keeps.
        assert peaks["sample"] - peaks["model"] / peak_memory.ARRAYS < BOUND


@pytest.mark.slow
@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("work", ["train_step", "language_model"])
def test_a_vocabulary_of_100_000(work: str, L: int) -> None:
    peaks = peak_memory.run(work, 50, 50, 128, L, 100_000)
    assert peaks["train"] - peaks["model"] < BOUND
    assert peaks["build"] < peaks["model"]


@pytest.mark.parametrize("L", [1, 2])
def test_memory_is_linear_in_time(L: int) -> None:
    """Within 10 % of the tape: h, c and five values more of every unit, one layer's gates, dh."""
    T, B, H = np.array([100, 300, 500]), 20, 128
    peaks = [peak_memory.run("train_step", t, B, H, L, 50)["train"] for t in T]
    slope, start = np.polyfit(T, peaks, 1)
    tape = 4 * B * H * (7 * L + 4 + 1)
    assert slope == pytest.approx(tape, rel=0.1)
    assert np.allclose(start + slope * T, peaks, atol=2 * MB, rtol=0)
    assert 0 <= start < 10 * MB

"""Dropout masks: their bits against NumPy, their rates, and their arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cases import Array
from charrnn_fast import _core, reference
from tolerances import assert_same_bits

SEED = 0xFEDCBA9876543210


def _philox(key: int, counter: list[Array]) -> list[Array]:
    """Philox4x32-10 of whole arrays of counters (uint64 that hold 32 bits)."""
    low = np.uint64(2**32 - 1)
    half = np.uint64(32)
    c = counter
    for r in range(10):
        k0, k1 = key + r * 0x9E3779B9, (key >> 32) + r * 0xBB67AE85
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            p1 >> half ^ c[1] ^ np.uint64(k0 % 2**32),
            p1 & low,
            p0 >> half ^ c[3] ^ np.uint64(k1 % 2**32),
            p0 & low,
        ]
    return c


def _expected(
    seed: int, site: int, rate: float, time: int, streams: Array, cols: int, dtype: str
) -> Array:
    unit, stream = np.meshgrid(np.arange(cols, dtype="uint64"), streams.astype("uint64"))
    place = [np.full_like(unit, n) for n in (time, site)]
    words = _philox(seed, [unit // 64 * 16 + unit % 16, stream, *place])
    word = np.choose((unit % 64 // 16).astype(int), words)
    return np.where(word < np.uint64(int(rate * 2**32)), 0, 1 / (1 - rate)).astype(dtype)


def test_philox_in_numpy_is_that_of_the_reference() -> None:
    """Of the counters that it takes: their last word is 0."""
    rng = np.random.default_rng(0)
    low, high, lane = rng.integers(0, 2**32, (3, 50), "uint64")
    found = _philox(SEED, [low, high, lane, np.zeros_like(lane)])
    for i in range(50):
        expected = reference.philox(SEED, int(low[i]) | int(high[i]) << 32, int(lane[i]))
        assert tuple(int(word[i]) for word in found) == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cols", [0, 1, 15, 16, 17, 63, 64, 65, 100, 130, 512])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999])
def test_bits(rate: float, cols: int, dtype: str) -> None:
    streams = np.array([0, 1, 7, 2**31, 2**32 - 1] * 4)
    for seed, site, time in ((SEED, 3, 5), (0, 0, 0), (2**64 - 1, 2**32 - 1, 2**32 - 1)):
        found = _core.mask(seed, site, rate, time, streams, cols, dtype)
        assert found.dtype == dtype
        assert_same_bits("mask", found, _expected(seed, site, rate, time, streams, cols, dtype))


def test_rate_and_independence() -> None:
    """Every pair of masks that differ in one number agrees as often as chance has it."""
    given: dict[str, Any] = {
        "seed": 1,
        "site": 8,
        "rate": 0.25,
        "time": 3,
        "streams": np.arange(256),
        "cols": 512,
        "dtype": "float32",
    }
    dropped = _core.mask(**given) == 0
    deviation = np.sqrt(0.25 * 0.75 / dropped.size)
    assert abs(dropped.mean() - 0.25) < 5 * deviation
    for name, value in {
        "seed": 1 + 2**32,
        "site": 9,
        "time": 4,
        "streams": np.arange(256, 512),
    }.items():
        other = _core.mask(**{**given, name: value}) == 0
        both = (dropped & other).mean()
        assert abs(both - 0.25**2) < 5 * np.sqrt(0.0625 * 0.9375 / dropped.size), name


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_out_of_range(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate must be at least 0, below 1, got"):
        _core.mask(0, 0, rate, 0, np.arange(3), 4, "float32")


def test_wrong_arguments() -> None:
    streams = np.arange(3)
    with pytest.raises(ValueError, match="cols must be >= 0, got -1"):
        _core.mask(0, 0, 0.5, 0, streams, -1, "float32")
    with pytest.raises(ValueError, match=r"streams must have shape \[N\], got \[1, 3\]"):
        _core.mask(0, 0, 0.5, 0, streams[None], 4, "float32")
    with pytest.raises(TypeError, match="streams must have dtype int64, got int32"):
        _core.mask(0, 0, 0.5, 0, streams.astype("int32"), 4, "float32")
    with pytest.raises(ValueError, match=r"dtype must be .*got 'int32'"):
        _core.mask(0, 0, 0.5, 0, streams, 4, "int32")

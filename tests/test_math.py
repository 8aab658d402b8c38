"""exp, sigmoid, tanh, softplus of the kernels: errors in ulp, special values; random draws."""

from __future__ import annotations

import numpy as np
import pytest

from cases import SIZES, Array
from charrnn_fast import _core, reference
from tolerances import assert_same_bits, eps

FUNCTIONS = ("exp", "sigmoid", "tanh", "softplus")
ALL_FLOATS = 2**32


def _exact(function: str, x: Array) -> Array:
    """The function in the widest type that NumPy has."""
    wide = x.astype(np.longdouble)
    if function == "sigmoid":
        e = np.exp(-np.abs(wide))
        return np.asarray(np.where(wide < 0, e, 1) / (1 + e))
    if function == "softplus":
        return np.asarray(np.maximum(wide, 0) + np.log1p(np.exp(-np.abs(wide))))
    return np.asarray(getattr(np, function)(wide))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_errors_of_a_sample_are_below_the_stated_bound(function: str) -> None:
    """Every 4099th float32 (a prime: all exponents, mantissas spread evenly)."""
    worst, at = _core.math_max_ulp(function, 0, ALL_FLOATS // 4099, 4099)
    bound = _core.math_ulp_bound(function)
    assert worst <= bound, f"{function}({at!r}) is off by {worst} ulp, stated are {bound}"
    assert worst > bound / 2, f"{bound} ulp are stated for {function}, {worst} would do"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_errors_where_it_matters_most(function: str) -> None:
    """Every 97th float32 from 2^-10 to 16, of either sign: where the gates of a network live."""
    bound = _core.math_ulp_bound(function)
    for low, high in ((2.0**-10, 16.0), (-(2.0**-10), -16.0)):
        first, last = np.array([low, high], "float32").view("uint32")
        worst, at = _core.math_max_ulp(function, int(first), int(last - first) // 97, 97)
        assert worst <= bound, f"{function}({at!r}) is off by {worst} ulp, stated are {bound}"


@pytest.mark.exhaustive
@pytest.mark.parametrize("function", FUNCTIONS)
def test_errors_of_all_floats_are_below_the_stated_bound(function: str) -> None:
    worst, at = _core.math_max_ulp(function, 0, ALL_FLOATS, 1)
    bound = _core.math_ulp_bound(function)
    assert worst <= bound, f"{function}({at!r}) is off by {worst} ulp, stated are {bound}"
    assert worst > bound - 0.02, f"{bound} ulp are stated for {function}, {worst} would do"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_measurement_agrees_with_a_second_one(function: str) -> None:
    """The largest error by NumPy's long double, over the same floats."""
    first, count, stride = np.array([0.5], "float32").view("uint32")[0], 5000, 1009
    x = (first + stride * np.arange(count, dtype="uint32")).view("float32")
    expected = _exact(function, x)
    ulp = np.spacing(np.abs(expected.astype("float32"))).astype(np.longdouble)
    errors = np.abs(_core.apply_math(function, x) - expected) / ulp
    worst, at = _core.math_max_ulp(function, int(first), count, stride)
    # next to a power of two, the rounded result has another ulp than the exact one
    assert worst / 2.01 < errors.max() < worst * 2.01
    assert at in x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_relative_error(function: str, dtype: str) -> None:
    """Within 4 eps of the true value for results in the normal range, in either dtype."""
    rng = np.random.default_rng(0)
    for spread in (1e-6, 1e-2, 1.0, 10.0, 80.0):
        x = rng.uniform(-spread, spread, 4096).astype(dtype)
        expected = _exact(function, x)
        error = np.abs(_core.apply_math(function, x) - expected) / np.abs(expected)
        assert error.max() <= 4 * eps(dtype), f"{function}({x[error.argmax()]!r})"


_HUGE = (np.inf, -np.inf, 1e30, -1e30)
SPECIAL = {
    "exp": [(0.0, 1.0), (-0.0, 1.0), *zip(_HUGE, (np.inf, 0.0) * 2, strict=True)],
    "sigmoid": [(0.0, 0.5), (-0.0, 0.5), *zip(_HUGE, (1.0, 0.0) * 2, strict=True)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), *zip(_HUGE, (1.0, -1.0) * 2, strict=True)],
    "softplus": [*zip(_HUGE, (np.inf, 0.0, 1e30, 0.0), strict=True)],
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_special_values(function: str, dtype: str) -> None:
    """Zeros keep tanh's sign, infinities and huge numbers saturate, in every lane of a vector."""
    for x, expected in SPECIAL[function]:
        for size in (1, 5, 16, 37):
            found = _core.apply_math(function, np.full(size, x, dtype))
            assert_same_bits(f"{function}({x})", found, np.full(size, expected, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_passes_through_its_own_lane_only(function: str, dtype: str) -> None:
    x = np.linspace(-3, 3, 37).astype(dtype)
    expected = _core.apply_math(function, x)
    for lane in range(37):
        damaged = x.copy()
        damaged[lane] = np.nan
        found = _core.apply_math(function, damaged)
        assert np.isnan(found[lane])
        found[lane] = expected[lane]
        assert_same_bits(function, found, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_subnormals(dtype: str) -> None:
    """tanh(x) = x for tiny x, and results below the normal range are not flushed to zero."""
    info = np.finfo(dtype)
    tiny = np.array([1, 2, 3, 1000], dtype) * info.smallest_subnormal
    for x in (tiny, -tiny):
        assert_same_bits("tanh", _core.apply_math("tanh", x), x)
        assert_same_bits("exp", _core.apply_math("exp", x), np.ones_like(x))
    below = np.log(info.smallest_normal) - np.arange(1, 10).astype(dtype)
    expected = _exact("exp", below)
    for function in ("exp", "sigmoid", "softplus"):
        found = _core.apply_math(function, below)
        assert (found > 0).all() and (found < info.smallest_normal).all()
        # half a subnormal's step for the rounding into their range, and the function's own ulp
        allowed = info.smallest_subnormal + 4 * eps(dtype) * expected
        assert (np.abs(found - expected) <= allowed).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_value_does_not_depend_on_its_place(function: str, dtype: str) -> None:
    """Full vectors and tails of every length give an element the same bits."""
    x = np.random.default_rng(0).uniform(-9, 9, max(SIZES)).astype(dtype)
    alone = np.concatenate([_core.apply_math(function, x[i : i + 1]) for i in range(len(x))])
    for size in SIZES:
        assert_same_bits(function, _core.apply_math(function, x[:size]), alone[:size])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_monotonic_to_saturation(function: str) -> None:
    """Results never leave the range of the function, and saturated ones are exactly its ends."""
    x = np.linspace(-120, 120, 20011).astype("float32")
    y = _core.apply_math(function, x)
    ranges = {"exp": (0, np.inf), "sigmoid": (0, 1), "tanh": (-1, 1), "softplus": (0, np.inf)}
    low, high = ranges[function]
    assert (y >= low).all() and (y <= high).all()
    if function == "softplus":
        assert (y[x > 20] == x[x > 20]).all() and (y[x < -20] <= 3e-9).all()
    elif function != "exp":
        assert (y[x > 20] == high).all()
        assert (y[x < -20] <= 3e-9 if function == "sigmoid" else y[x < -20] == low).all()


def test_unknown_function() -> None:
    with pytest.raises(ValueError, match=r"'exp', 'sigmoid', 'tanh' or 'softplus', got 'cosh'"):
        _core.apply_math("cosh", np.zeros(3, "float32"))


def test_philox_is_that_of_the_reference() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        seed, position = (int(n) for n in rng.integers(0, 2**64, 2, "uint64"))
        lane = int(rng.integers(0, 2**32))
        assert tuple(_core.philox(seed, position, lane)) == reference.philox(seed, position, lane)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("top_k", [0, 1, 3, 50])
@pytest.mark.parametrize("top_p", [0.01, 0.7, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0, 3.0])
def test_draws_are_those_of_the_reference(
    temperature: float, top_p: float, top_k: int, dtype: str
) -> None:
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((40, 50))).astype(dtype)
    seeds = rng.integers(0, 2**64, 40, "uint64")
    for position in (0, 1, 2**40):
        found = _core.sample_tokens(logits, seeds, position, temperature, top_k, top_p)
        expected = reference.sample_tokens(
            logits.astype("float64"),
            [int(seed) for seed in seeds],
            position,
            temperature=temperature,
            top_k=top_k or None,
            top_p=top_p,
        )
        # none of these numbers happens to lie within rounding of the border between two tokens
        assert found.tolist() == expected.tolist()

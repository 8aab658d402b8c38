"""The losses against their formulas in float64: values, gradients, weights, edges, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import charrnn_fast as cf
from cases import Array, wide
from charrnn_fast import _core
from tolerances import assert_close, assert_same_bits, elementwise, losses

DTYPES = ("float32", "float64")
REDUCTIONS = ("mean", "sum")
# each with the name of its first argument
ELEMENT_LOSSES: list[tuple[Callable[..., tuple[float, Array]], str]] = [
    (cf.binary_cross_entropy, "logits"),
    (cf.mean_square, "y"),
]


def _reduced(
    single: Array, gradients: Array, weights: Array, reduction: str
) -> tuple[np.float64, Array]:
    """sum(w l), over sum(w) for the mean, and the gradient of that; all in float64."""
    total = weights.sum() if reduction == "mean" else 1.0
    shares = weights / total if total > 0 else np.zeros_like(weights)
    scale = shares.reshape(shares.shape + (1,) * (gradients.ndim - shares.ndim))
    return np.float64((shares * single).sum()), scale * gradients


def _cross_entropy(x: Array, targets: Array) -> tuple[Array, Array]:
    shifted = x - x.max(axis=-1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(axis=-1, keepdims=True)
    one_hot = np.arange(x.shape[-1]) == targets[..., np.newaxis]
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return -(one_hot * log_p).sum(axis=-1), p - one_hot


def _binary_cross_entropy(x: Array, z: Array) -> tuple[Array, Array]:
    e = np.exp(-np.abs(x))
    return np.maximum(x, 0) - x * z + np.log1p(e), np.where(x < 0, e, 1) / (1 + e) - z


def _mean_square(y: Array, z: Array) -> tuple[Array, Array]:
    return (y - z) ** 2, 2 * (y - z)


def _probabilities(rng: np.random.Generator, shape: Any, dtype: str) -> Array:
    """Targets in [0, 1], a third of them 0 and a third 1."""
    return np.asarray(np.clip(rng.uniform(-1, 2, shape), 0, 1)).astype(dtype)


def _weights(rng: np.random.Generator, shape: Any, dtype: str, size: float) -> Array:
    """Weights up to `size`, a third of them 0."""
    return np.asarray(size * np.maximum(rng.uniform(-0.5, 1, shape), 0)).astype(dtype)


SHAPES = st.lists(st.sampled_from((0, 1, 2, 3, 7, 16, 33, 300)), min_size=0, max_size=2)
# of the weights, which the mean divides by; None: no weights
SIZES = st.sampled_from((None, 1.0, 1e-42, 2e38))


@given(
    shape=SHAPES,
    classes=st.sampled_from((1, 2, 5, 16, 33, 100)),
    dtype=st.sampled_from(DTYPES),
    reduction=st.sampled_from(REDUCTIONS),
    spread=st.sampled_from((0.0, 1.0, 30.0)),
    size=SIZES,
    seed=st.integers(0, 2**16),
)
def test_cross_entropy_with_weights(
    shape: list[int],
    classes: int,
    dtype: str,
    reduction: str,
    spread: float,
    size: float | None,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    if len(shape) == 2 and shape[0] * shape[1] > 1000:
        shape = shape[:1]
    logits = np.asarray(rng.uniform(-spread, spread, (*shape, classes))).astype(dtype)
    targets = np.asarray(rng.integers(-1, classes, shape))
    size = 1.0 if size and reduction == "sum" else size
    weights = None if size is None else _weights(rng, shape, dtype, size)
    loss, dlogits = cf.cross_entropy(logits, targets, reduction, weights=weights)
    counts = np.where(targets == -1, 0.0, 1.0 if weights is None else wide(weights))
    expected, gradient = _reduced(*_cross_entropy(wide(logits), targets), counts, reduction)
    assert type(loss) is float and dlogits.dtype == dtype and dlogits.shape == logits.shape
    tolerance = losses(dtype, classes=classes, rows=targets.size, largest=spread)
    terms = max(1.0, counts.sum()) if reduction == "sum" else 1.0
    assert_close("loss", loss / terms, expected / terms, tolerance)
    assert_close("dlogits", dlogits, gradient, tolerance)
    assert not dlogits[counts == 0].any()


@given(
    shape=SHAPES,
    dtype=st.sampled_from(DTYPES),
    reduction=st.sampled_from(REDUCTIONS),
    spread=st.sampled_from((0.0, 1.0, 30.0)),
    size=SIZES,
    seed=st.integers(0, 2**16),
)
def test_losses_of_elements(
    shape: list[int], dtype: str, reduction: str, spread: float, size: float | None, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = np.asarray(rng.uniform(-spread, spread, shape)).astype(dtype)
    z = _probabilities(rng, shape, dtype)
    size = 1.0 if size and reduction == "sum" else size
    weights = None if size is None else _weights(rng, shape, dtype, size)
    counts = np.ones(shape) if weights is None else wide(weights)
    terms = max(1.0, counts.sum()) if reduction == "sum" else 1.0
    tolerances = (
        losses(dtype, classes=2, rows=x.size, largest=spread),
        elementwise(dtype, operations=4) + elementwise("float64", operations=x.size),
    )
    formulas = (_binary_cross_entropy, _mean_square)
    for (function, _), formula, tolerance in zip(ELEMENT_LOSSES, formulas, tolerances, strict=True):
        loss, gradient = function(x, z, reduction, weights=weights)
        expected, expected_gradient = _reduced(*formula(wide(x), wide(z)), counts, reduction)
        assert type(loss) is float and gradient.dtype == dtype and gradient.shape == x.shape
        assert_close(formula.__name__, loss / terms, expected / terms, tolerance)
        assert_close(f"d {formula.__name__}", gradient, expected_gradient, tolerance)
        assert not gradient[counts == 0].any()


# ---- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_with_weights_of_one_is_the_sum_without(dtype: str) -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((50, 7)).astype(dtype), rng.integers(-1, 7, 50)
    z = _probabilities(rng, logits.shape, dtype)
    results = [
        (
            cf.cross_entropy(logits, targets, "sum"),
            cf.cross_entropy(logits, targets, "sum", weights=np.ones(50, dtype)),
        ),
        *(
            (f(logits, z, "sum"), f(logits, z, "sum", weights=np.ones_like(z)))
            for f, _ in ELEMENT_LOSSES
        ),
    ]
    for (plain, gradient), (weighted, weighted_gradient) in results:
        assert plain == weighted
        assert_same_bits("gradient", gradient, weighted_gradient)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_of_zero_leaves_out_whatever_is_there(dtype: str, reduction: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 9)).astype(dtype)
    targets, z = rng.integers(0, 9, 40), _probabilities(rng, x.shape, dtype)
    rows = _weights(rng, 40, dtype, 1.0)
    out = rows == 0
    damaged = x.copy()
    damaged[out] = np.array([np.nan, np.inf, -np.inf] * 3, dtype)
    assert 0 < out.sum() < 40
    for ignored in (targets, np.where(out, -1, targets)):
        loss, gradient = cf.cross_entropy(damaged, ignored, reduction, weights=rows)
        expected, expected_gradient = cf.cross_entropy(x, targets, reduction, weights=rows)
        assert loss == expected and not gradient[out].any()
        assert_same_bits("dlogits", gradient, expected_gradient)
    weights = np.repeat(rows[:, np.newaxis], 9, axis=1)
    for function, name in ELEMENT_LOSSES:
        loss, gradient = function(damaged, z, reduction, weights=weights)
        expected, expected_gradient = function(x, z, reduction, weights=weights)
        assert loss == expected and not gradient[out].any()
        assert_same_bits(f"d {name}", gradient, expected_gradient)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_nothing_counts(dtype: str, reduction: str) -> None:
    """Weights of 0, targets of -1 or no elements at all: a loss and gradients of zero."""
    logits, ones = np.ones((2, 3), dtype), np.ones(2, dtype)
    for targets, weights in (
        (np.array([0, 2]), 0 * ones),
        (np.array([-1, -1]), ones),
        (np.array([-1, 2]), np.array([1, 0], dtype)),
    ):
        loss, gradient = cf.cross_entropy(logits, targets, reduction, weights=weights)
        assert loss == 0.0 and not gradient.any()
    empty = np.zeros((0, 3), dtype)
    loss, gradient = cf.cross_entropy(
        empty, np.zeros(0, "int64"), reduction, weights=np.zeros(0, dtype)
    )
    assert loss == 0.0 and gradient.shape == (0, 3)
    for function, _ in ELEMENT_LOSSES:
        loss, gradient = function(logits, 0 * logits, reduction, weights=0 * logits)
        assert loss == 0.0 and not gradient.any()
        for none in (None, empty):
            loss, gradient = function(empty, empty, reduction, weights=none)
            assert (type(loss), loss, gradient.shape) == (float, 0.0, (0, 3))


def test_the_weight_of_an_ignored_target_does_not_matter() -> None:
    x, targets = np.zeros((2, 2), "float32"), np.array([-1, 0])
    expected = cf.cross_entropy(x, targets, weights=np.ones(2, "float32"))
    for ignored in (0, 1e-42, 3e38):
        weights = np.array([ignored, 1e-42], "float32")
        loss, gradient = cf.cross_entropy(x, targets, weights=weights)
        assert loss == expected[0]
        assert_same_bits("dlogits", gradient, expected[1])


def test_a_single_number() -> None:
    """Arrays of no axes: one element."""
    for dtype in DTYPES:
        x, z, w = np.array(0.0, dtype), np.array(0.25, dtype), np.array(3.0, dtype)
        loss, gradient = cf.mean_square(x, z, "sum", weights=w)
        assert (loss, gradient.shape, float(gradient)) == (0.1875, (), -1.5)
        loss, gradient = cf.binary_cross_entropy(x, z, weights=w)
        assert_close("loss", loss, np.log(2), elementwise(dtype, operations=16))
        assert (gradient.shape, float(gradient)) == ((), 0.25)


# ---- large and infinite numbers -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_cross_entropy_is_stable(dtype: str) -> None:
    largest = float(np.finfo(dtype).max)
    for x in (1e4, largest):
        for logit, target, expected in ((x, 1, 0), (x, 0, x), (-x, 0, 0), (-x, 1, x)):
            loss, gradient = cf.binary_cross_entropy(
                np.array([logit], dtype), np.array([target], dtype)
            )
            assert loss == expected
            assert gradient.tolist() == [0 if expected == 0 else 1 if logit > 0 else -1]
    # what is left of a small loss keeps its digits, on either side
    for logit, target in ((20, 1), (-20, 0)):
        loss, _ = cf.binary_cross_entropy(np.array([logit], dtype), np.array([target], dtype))
        assert_close("loss", loss / np.log1p(np.exp(-20)), 1, elementwise(dtype, operations=16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_shows(dtype: str) -> None:
    """Among many finite numbers, in every lane of a vector."""
    cases = [
        (cf.binary_cross_entropy, np.inf, 0.0, np.inf),
        (cf.binary_cross_entropy, np.inf, 0.5, np.inf),
        (cf.binary_cross_entropy, np.inf, 1.0, np.nan),
        (cf.binary_cross_entropy, -np.inf, 1.0, np.inf),
        (cf.binary_cross_entropy, -np.inf, 0.0, np.nan),
        (cf.binary_cross_entropy, np.nan, 1.0, np.nan),
        (cf.mean_square, np.inf, 1.0, np.inf),
        (cf.mean_square, np.nan, 1.0, np.nan),
    ]
    for function, value, target, expected in cases:
        for place in range(37):
            x, z, w = np.zeros(37, dtype), np.zeros(37, dtype), np.ones(37, dtype)
            x[place], z[place] = value, target
            for weights in (None, w):
                loss, gradient = function(x, z, weights=weights)
                np.testing.assert_equal(loss, expected)
                assert np.isfinite(np.delete(gradient, place)).all()
                assert np.isnan(gradient[place]) == np.isnan(value)


def test_squares_do_not_overflow_float32() -> None:
    y = np.array([1e30, -1e30], "float32")
    loss, gradient = cf.mean_square(y, np.zeros_like(y), "sum")
    assert loss == 2 * float(y[0]) ** 2
    assert gradient.tolist() == (2 * y).tolist()


# ---- what is refused ----------------------------------------------------------------------------


def _wrong_weights(like: Array) -> list[tuple[Any, type[Exception], str]]:
    """What no loss takes as weights, where it takes an array [5, 2] like this one."""
    at = (3, 1)

    def holding(value: float) -> Array:
        weights = like.copy()
        weights[at] = value
        return weights

    return [
        (like.tolist(), TypeError, "weights must be an array of float32, got list"),
        (1.0, TypeError, "weights must be an array of float32, got float"),
        (like.astype("float64"), TypeError, "weights .*float32, got an array of float64"),
        (like.astype("int32"), TypeError, "weights .*float32, got an array of int32"),
        (like[:4].copy(), ValueError, r"weights must have shape \(5, 2\), got \(4, 2\)"),
        (like.reshape(-1), ValueError, r"weights must have shape \(5, 2\), got \(10,\)"),
        (like[:, ::-1], ValueError, r"weights must be C-contiguous: pass .*\(weights\)"),
        (holding(-1), ValueError, r"weights\[3, 1\] must be finite numbers >= 0, got -1.0"),
        (holding(np.nan), ValueError, r"weights\[3, 1\] must be finite numbers >= 0, got nan"),
        (holding(np.inf), ValueError, r"weights\[3, 1\] must be finite numbers >= 0, got inf"),
    ]


def test_wrong_weights_are_refused() -> None:
    logits, targets = np.zeros((5, 2, 7), "float32"), np.zeros((5, 2), "int64")
    x = np.zeros((5, 2), "float32")
    for weights, error, message in _wrong_weights(np.ones((5, 2), "float32")):
        with pytest.raises(error, match=message):
            cf.cross_entropy(logits, targets, weights=weights)
        for function, _ in ELEMENT_LOSSES:
            with pytest.raises(error, match=message):
                function(x, x, weights=weights)
    with pytest.raises(TypeError, match="positional"):
        cf.cross_entropy(logits, targets, "mean", x)  # type: ignore[call-arg]


def test_weights_whose_sum_overflows_are_refused_for_the_mean() -> None:
    weights, z = np.full(2, 1e308), np.zeros(2)
    calls: list[Callable[[str], tuple[float, Array]]] = [
        lambda reduction: cf.cross_entropy(
            z[:, np.newaxis], np.zeros(2, "int64"), reduction, weights=weights
        ),
        lambda reduction: cf.mean_square(z, z, reduction, weights=weights),
        lambda reduction: cf.binary_cross_entropy(z, z, reduction, weights=weights),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="the sum of weights must be finite"):
            call("mean")
        loss, gradient = call("sum")
        assert loss < np.inf and np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("function", "name"), ELEMENT_LOSSES, ids=lambda v: getattr(v, "__name__", v)
)
def test_losses_of_elements_refuse(function: Callable[..., tuple[float, Array]], name: str) -> None:
    x = np.zeros((5, 2), "float32")
    wrong: list[tuple[Any, Any, str, type[Exception], str]] = [
        (x, x, "none", ValueError, "reduction .*'mean' or 'sum', got 'none'"),
        (x.tolist(), x, "mean", TypeError, f"{name} .*float32 or float64, got list"),
        (x.astype("float16"), x, "mean", TypeError, f"{name} .*array of float16"),
        (x.astype("int64"), x, "mean", TypeError, f"{name} .*array of int64"),
        (x, x.tolist(), "mean", TypeError, "targets must be an array of float32, got list"),
        (x, x.astype("float64"), "mean", TypeError, "targets .*float32, got an array of float64"),
        (x, x.astype("int64"), "mean", TypeError, "targets .*float32, got an array of int64"),
        (x, x[:4].copy(), "mean", ValueError, r"targets must have shape \(5, 2\), got \(4, 2\)"),
        (x[:, ::-1], x, "mean", ValueError, f"{name} must be C-contiguous"),
        (x, x[:, ::-1], "mean", ValueError, "targets must be C-contiguous"),
    ]
    for values, targets, reduction, error, message in wrong:
        with pytest.raises(error, match=message):
            function(values, targets, reduction)


@pytest.mark.parametrize("dtype", DTYPES)
def test_targets_that_are_no_probabilities_are_refused(dtype: str) -> None:
    x = np.zeros((5, 2), dtype)
    for value, shown in ((-0.5, "-0.5"), (1.5, "1.5"), (np.nan, "nan"), (np.inf, "inf")):
        targets = x.copy()
        targets[2, 1] = targets[4, 0] = value
        for weights in (None, x):
            with pytest.raises(
                ValueError, match=rf"targets\[2, 1\] must be in 0 to 1, got {shown}"
            ):
                cf.binary_cross_entropy(x, targets, weights=weights)
    with pytest.raises(ValueError, match=r"targets must be in 0 to 1, got 2.0"):
        cf.binary_cross_entropy(np.array(0.0, dtype), np.array(2.0, dtype))
    assert cf.mean_square(x, x - 1)[0] == 1.0  # any real number


def test_the_kernels_check_for_themselves() -> None:
    x, bad = np.zeros(3, "float32"), np.array([0, 1, 2], "float32")
    logits, targets = np.zeros((3, 4), "float32"), np.zeros(3, "int32")
    with pytest.raises(ValueError, match=r"targets\[2\] must be in 0 to 1, got 2"):
        _core.binary_cross_entropy(x, bad, "mean", None)
    calls: list[Callable[[Array], tuple[float, Array]]] = [
        lambda w: _core.binary_cross_entropy(x, x, "mean", w),
        lambda w: _core.mean_square(x, x, "sum", w),
        lambda w: _core.cross_entropy(logits, targets, "mean", w),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"weights\[1\] must be finite numbers >= 0, got -1"):
            call(x - np.array([0, 1, 0], "float32"))
        with pytest.raises(ValueError, match=r"weights must have shape \[3\], got \[2\]"):
            call(x[:2])
        with pytest.raises(TypeError, match="weights must have dtype float32, got float64"):
            call(x.astype("float64"))
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'none'"):
        _core.mean_square(x, x, "none", None)

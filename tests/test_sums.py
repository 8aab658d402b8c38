"""Gradients of long sequences: sums over rows whose error does not grow with their number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import charrnn_fast as cf
import tolerances
from marks import slow_but
from tolerances import assert_same_bits

CELLS = ("rnn", "gru", "lstm", "peephole_lstm", "coupled_lstm")


def _relative_rms(found: Any, expected: Any) -> float:
    error = np.asarray(found, "float64") - expected
    return float(np.sqrt(np.square(error).mean() / np.square(expected).mean()))


def _both(cell: str, size: tuple[int, int, int | None], **options: Any) -> tuple[cf.RNN, cf.RNN]:
    """The same network in float32 and in float64."""
    single = cf.RNN(*size, cell=cell, seed=1, **options)
    double = cf.RNN(*size, cell=cell, dtype="float64", **options)
    double.load_parameters({k: v.astype("float64") for k, v in single.parameters().items()})
    return single, double


def _gradients(net: cf.RNN, x: NDArray[Any], dy: NDArray[Any]) -> dict[str, NDArray[Any]]:
    net.forward(x if x.dtype.kind == "i" else x.astype(net.dtype))
    gradients: dict[str, NDArray[Any]] = net.backward(dy.astype(net.dtype))[2]
    return gradients


@pytest.mark.slow
def test_ones_are_counted_beyond_two_to_the_24() -> None:
    rows = (20000, 1000)
    net = cf.RNN(2, 1, 1)
    y, _ = net.forward(np.zeros(rows, "i1"))
    assert net.backward(np.ones_like(y))[2]["decoder.bias"] == 20_000_000


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_gradients_of_one_sign_over_four_million_rows(cell: str) -> None:
    """0.1 is no float32: alike roundings add up, and a plain sum of blocks would be off."""
    T, B = 4000, 1000
    single, double = _both(cell, (3, 1, 1))
    x = np.random.default_rng(0).integers(0, 3, (T, B), "i4")
    dy = np.full((T, B, 1), 0.1, "float32")
    found, expected = _gradients(single, x, dy), _gradients(double, x, dy)
    for name, gradient in expected.items():
        error = _relative_rms(found[name], gradient)
        assert error <= tolerances.OF_ONE_SIGN, (name, error)


def test_a_sum_of_four_million_numbers_of_one_sign() -> None:
    net = cf.RNN(1, 1, 1)
    y, _ = net.forward(np.zeros((4000, 1000), "i1"))
    dy = np.random.default_rng(0).uniform(0.5, 1.5, y.shape).astype("float32")
    bias = net.backward(dy)[2]["decoder.bias"]
    assert _relative_rms(bias, dy.astype("float64").sum()) <= tolerances.row_sums("float32")


@pytest.mark.parametrize(("tokens", "layer_norm"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("cell", slow_but(["lstm"], CELLS))
def test_gradients_of_sixteen_thousand_rows(cell: str, tokens: bool, layer_norm: bool) -> None:
    # Normalized networks are chaotic: over many steps errors of any size grow to that of h.
    T, B, H = (8, 2000, 64) if layer_norm else (2000, 8, 64)
    single, double = _both(cell, (65, H, None), layer_norm=layer_norm)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 65, (T, B)) if tokens else rng.standard_normal((T, B, 65), "float32")
    dy = rng.standard_normal((T, B, H), "float32")
    found, expected = _gradients(single, x, dy), _gradients(double, x, dy)
    assert any("gain" in name for name in expected) == layer_norm
    for name, gradient in expected.items():
        error = _relative_rms(found[name], gradient)
        assert error <= tolerances.row_sums("float32"), (name, error)


@pytest.mark.parametrize("cell", CELLS)
def test_tokens_are_one_hot_vectors_over_many_blocks(cell: str) -> None:
    """Sums go by the row's number, whether or not a block holds the token."""
    T, B = 170, 25  # above 4096 rows, whose sums are carried with their errors
    net = cf.RNN(40, 17, 3, cell=cell, seed=2)
    rng = np.random.default_rng(0)
    x = np.minimum(rng.geometric(0.2, (T, B)), 40) - 1  # some tokens are rare
    dy = rng.standard_normal((T, B, 3), "float32")
    by_tokens = _gradients(net, x, dy)
    for name, gradient in _gradients(net, np.eye(40, dtype="float32")[x], dy).items():
        assert_same_bits(name, by_tokens[name], gradient)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("hidden_size", [128, 1024])
def test_the_error_of_outputs_does_not_grow_with_the_hidden_size(
    cell: str, hidden_size: int
) -> None:
    single, double = _both(cell, (64, hidden_size, None))
    x = np.random.default_rng(0).standard_normal((20, 4, 64), "float32")
    y, exact = single.forward(x)[0], double.forward(x.astype("float64"))[0]
    assert _relative_rms(y, exact) <= tolerances.chains("float32")

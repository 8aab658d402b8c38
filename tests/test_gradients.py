"""Gradients against central differences of the loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from cases import BIASES, UNITS, Case, parts, smallest_preactivation
from marks import slow_but
from tolerances import assert_close, finite_difference, finite_difference_step

Array = np.ndarray[Any, Any]
STEP = finite_difference_step("float64")


def _problem(case: Case) -> tuple[cf.RNN, dict[str, Any]]:
    """A network and everything that its loss depends on; relu networks kept off their kinks."""
    while True:
        network = case.network()
        values = {name: np.array(value) for name, value in network.parameters().items()}
        if smallest_preactivation(values, case) > 3 * finite_difference_step(case.dtype):
            break
        case = case.but(seed=case.seed + 1)
    return network, {
        "x": case.x(),
        "state": case.state(),
        "targets": case.targets(),
        "dstate": case.dstate(),
        "parameters": values,
    }


def _loss(network: cf.RNN, given: dict[str, Any]) -> tuple[float, Array]:
    """Cross-entropy of the decoder's output, and a linear function of the final state."""
    y, state = network.forward(given["x"], given["state"])
    loss, dy = cf.cross_entropy(y, given["targets"], "sum")
    pairs = zip(parts(state), parts(given["dstate"]), strict=True)
    return loss + sum(float(np.vdot(s, w)) for s, w in pairs), dy


def _gradients(network: cf.RNN, given: dict[str, Any]) -> Iterator[tuple[str, Array, Array]]:
    """Each array that the loss depends on: its name, itself, its gradient by backpropagation."""
    dx, dstate, grads = network.backward(_loss(network, given)[1], given["dstate"])
    for name, value in given["parameters"].items():
        yield name, value, grads[name]
    for name, value, grad in zip("hc", parts(given["state"]), parts(dstate), strict=False):
        yield f"{name}_0", value, grad
    if dx is not None:
        yield "x", given["x"], dx


def _differences(loss: Callable[[], float], value: Array) -> Array:
    """(f(v + h) - f(v - h)) / 2h for every element v of an array that `loss` reads."""
    result = np.empty_like(value)
    for index in np.ndindex(value.shape):
        kept = value[index]
        value[index] = kept + STEP
        above = loss()
        value[index] = kept - STEP
        below = loss()
        value[index] = kept
        result[index] = (above - below) / (2 * STEP)
    return result


@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("unit", UNITS)
def test_every_gradient_in_float64(
    unit: str, num_layers: int, bias: bool | str, tokens: bool
) -> None:
    case = Case(
        unit=unit,
        num_layers=num_layers,
        bias=bias,
        tokens=tokens,
        dtype="float64",
        seq_len=4,
        batch=2,
        input_size=3,
        hidden_size=5,
        output_size=3,
    )
    network, given = _problem(case)

    def loss() -> float:
        network.load_parameters(given["parameters"])
        return _loss(network, given)[0]

    checked = 0
    for name, value, grad in list(_gradients(network, given)):
        expected = _differences(loss, value)
        assert_close(f"d {name}", grad, expected, finite_difference(case.dtype))
        assert np.abs(expected).max() > 1e-3, f"the loss does not depend on {name}"
        checked += 1
    assert checked == len(given["parameters"]) + case.num_states + (not tokens)


@pytest.mark.parametrize(
    ("hidden_size", "unit"),
    slow_but(
        [(1, unit) for unit in UNITS] + [(17, "gru"), (17, "lstm")],
        itertools.product((1, 17), UNITS),
    ),
)
def test_directional_derivatives_in_float32(unit: str, hidden_size: int) -> None:
    case = Case(
        unit=unit,
        num_layers=2,
        seq_len=3,
        batch=2,
        input_size=3,
        hidden_size=hidden_size,
        output_size=5,
    )
    network, given = _problem(case)
    step, rng = finite_difference_step(case.dtype), np.random.default_rng(0)
    for name, value, grad in list(_gradients(network, given)):
        direction: Array = np.asarray(rng.standard_normal(value.shape))
        direction /= np.linalg.norm(direction)
        kept, losses = value.copy(), list[float]()
        for signed in (step, -step):
            value[...] = kept + signed * direction
            network.load_parameters(given["parameters"])
            losses.append(_loss(network, given)[0])
        value[...] = kept
        expected = (losses[0] - losses[1]) / (2 * step)
        assert_close(f"d {name}", np.vdot(grad, direction), expected, finite_difference("float32"))


def _some_weights(shape: tuple[int, ...]) -> Array:
    """Weights of which some are 0."""
    return np.maximum(np.random.default_rng(0).uniform(-0.3, 1, shape), 0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_gradient(reduction: str, weighted: bool) -> None:
    case = Case(dtype="float64", output_size=7)
    logits, targets = 3 * case.dy(), case.targets()
    weights = _some_weights(targets.shape) if weighted else None
    assert (targets == -1).any() and (targets >= 0).any()
    _, grad = cf.cross_entropy(logits, targets, reduction, weights=weights)
    expected = _differences(
        lambda: cf.cross_entropy(logits, targets, reduction, weights=weights)[0], logits
    )
    assert_close("dlogits", grad, expected, finite_difference(case.dtype))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", [cf.binary_cross_entropy, cf.mean_square])
def test_gradients_of_losses_of_elements(
    loss: Callable[..., tuple[float, Array]], reduction: str, weighted: bool
) -> None:
    case = Case(dtype="float64", seq_len=2, batch=2, output_size=5)
    x, targets = 2 * case.dy(), (1 + case.but(seed=1).dy()) / 2
    weights = _some_weights(x.shape) if weighted else None
    _, grad = loss(x, targets, reduction, weights=weights)
    expected = _differences(lambda: loss(x, targets, reduction, weights=weights)[0], x)
    assert_close("gradient", grad, expected, finite_difference(case.dtype))
    assert (grad == 0).any() == weighted

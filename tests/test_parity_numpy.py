"""The kernels against the NumPy reference in float64, from the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import charrnn_fast as cf
from cases import (
    BIASES,
    SIZES,
    UNITS,
    Case,
    cases,
    moved_off_kinks,
    off_kinks,
    parts,
    run,
    run_reference,
    wide,
)
from charrnn_fast import reference
from tolerances import assert_close, elementwise, eps, error, losses, network


def _compare(case: Case) -> None:
    net = case.network()
    parameters = {name: np.array(value) for name, value in net.parameters().items()}
    tolerance = network(case.dtype, terms=case.terms, steps=case.steps)
    found, expected = run(net, case), run_reference(parameters, case)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == case.dtype, name
        assert_close(name, found[name], value, tolerance)


@given(case=cases())
def test_forward_and_backward(case: Case) -> None:
    assume(off_kinks(case))
    _compare(case)


@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
@pytest.mark.parametrize("unit", UNITS)
def test_every_hidden_size(unit: str, tokens: bool) -> None:
    """One short of, equal to and one past every vector width and register tile, up to 65."""
    for hidden_size in SIZES:
        case = Case(unit, batch=7, hidden_size=hidden_size, output_size=3, tokens=tokens)
        _compare(moved_off_kinks(case))


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("unit", UNITS)
def test_wide_and_deep(unit: str, bias: bool | str) -> None:
    """Long sums, more rows than any tile; float64 keeps 300,000 relu units off their kinks."""
    dtype = "float64" if unit == "rnn_relu" else "float32"
    case = Case(unit, 2, bias, dtype, seq_len=30, batch=37, input_size=67, hidden_size=131)
    _compare(moved_off_kinks(case.but(output_size=71, tokens=bias is True)))


def test_parameters_have_pytorchs_names_and_shapes() -> None:
    for unit in UNITS:
        for bias in BIASES:
            case = Case(unit, 2, bias, output_size=3)
            found = {name: value.shape for name, value in case.network().parameters().items()}
            assert found == {name: value.shape for name, value in case.parameters().items()}


def test_backward_without_dstate_takes_it_as_zero() -> None:
    case = Case("lstm", 2)
    net = case.network()
    net.forward(case.x())
    _, dstate, grads = net.backward(case.dy())
    zeros = tuple(np.zeros_like(s) for s in case.state())
    net.forward(case.x(), zeros)
    _, same, again = net.backward(case.dy(), zeros)
    for a, b in zip((*dstate, *grads.values()), (*same, *again.values()), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("unit", UNITS)
def test_a_wrong_weight_exceeds_the_tolerance(unit: str) -> None:
    """The tolerances tell one weight of thousands that is off by a thousandth."""
    case = Case(unit, 2, seq_len=12, batch=8, input_size=33, hidden_size=33, output_size=9)
    case = moved_off_kinks(case)
    net = case.network()
    parameters = {name: np.array(value) for name, value in net.parameters().items()}
    tolerance = network(case.dtype, terms=case.terms, steps=case.steps)
    found = run(net, case)
    for name in ("weight_ih_l0", "weight_hh_l1", "bias_ih_l0", "decoder.weight"):
        wrong = {**parameters, name: parameters[name].copy()}
        wrong[name].flat[0] += 1e-3
        expected = run_reference(wrong, case)
        assert max(error(found[n], expected[n]) for n in expected) > tolerance, name


def test_the_tolerance_of_float64_is_far_below_that_of_float32() -> None:
    """A float64 kernel that computed anything in float32 would fail its own tolerance."""
    assert network("float64", terms=4096, steps=256) < eps("float32") / 4


@given(
    shape=st.lists(st.sampled_from((1, 2, 3, 7, 16)), min_size=0, max_size=2),
    size=st.sampled_from((*SIZES, 255, 256, 257, 1000)),
    dtype=st.sampled_from(("float32", "float64")),
    reduction=st.sampled_from(("mean", "sum")),
    spread=st.sampled_from((0.0, 1.0, 30.0, 80.0)),
    seed=st.integers(0, 2**16),
)
def test_cross_entropy(
    shape: list[int], size: int, dtype: str, reduction: str, spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.uniform(-spread, spread, (*shape, size)).astype(dtype)
    targets = np.asarray(rng.integers(-1, size, shape))
    loss, dlogits = cf.cross_entropy(logits, targets, reduction)
    expected, gradient = reference.cross_entropy(wide(logits), targets, reduction)
    assert dlogits.dtype == dtype and isinstance(loss, float)
    tolerance = losses(dtype, classes=size, rows=targets.size, largest=spread)
    count = max(1, int((targets != -1).sum())) if reduction == "sum" else 1
    assert_close("loss", loss / count, expected / count, tolerance)
    assert_close("dlogits", dlogits, gradient, tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clipping(dtype: str) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 7, 16, 1000, 4097):
        grads = {"a": rng.standard_normal((size, 3)).astype(dtype), "b": np.ones(5, dtype)}
        for limit in (1e-3, 1.0, 1e6):
            ours = {name: grad.copy() for name, grad in grads.items()}
            theirs = wide(grads)
            tolerance = elementwise(dtype, operations=4 * size)
            norm = cf.clip_grad_norm(ours, limit)
            expected = reference.clip_grad_norm(theirs, limit)
            assert_close("norm", norm / expected, 1.0, tolerance)
            for name in grads:
                assert_close(name, ours[name], theirs[name], tolerance)
            cf.clip_grad_value(grads_value := {n: g.copy() for n, g in grads.items()}, limit)
            for name, grad in grads.items():
                np.testing.assert_array_equal(
                    grads_value[name], np.clip(grad, -limit, limit).astype(dtype)
                )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("unit", UNITS)
def test_learning_by_hand(unit: str, dtype: str) -> None:
    """Thirty updates of a whole language model: losses, weights and the carried state."""
    case = Case(unit, 2, dtype=dtype, tokens=True, seq_len=9, input_size=11, output_size=11)
    net = case.network()
    parameters = {name: np.array(value) for name, value in net.parameters().items()}
    exact = wide(parameters)
    ours, theirs = cf.optim.Adam(net, lr=2e-2), reference.Adam(exact, lr=2e-2)
    state: Any = None
    carried: Any = None
    curves: list[tuple[float, float]] = []
    for update in range(30):
        tokens = case.but(seed=update % 3, seq_len=10).x()
        y, state = net.forward(tokens[:-1], state)
        loss, dy = cf.cross_entropy(y, tokens[1:])
        _, _, grads = net.backward(dy)
        cf.clip_grad_norm(grads, 1.0)
        ours.step(grads)

        z, carried, cache = reference.forward(exact, tokens[:-1], carried, **case.kind)
        exact_loss, dz = reference.cross_entropy(z, tokens[1:])
        _, _, expected_grads = reference.backward(exact, cache, dz)
        reference.clip_grad_norm(expected_grads, 1.0)
        theirs.step(expected_grads)
        curves.append((loss, exact_loss))
    # each update adds an error of its own and passes on the earlier ones
    tolerance = 30 * network(dtype, terms=case.terms, steps=case.steps)
    assert curves[-1][1] < curves[0][1] - 0.1
    found, expected = np.transpose(curves)
    assert_close("losses", found, expected, tolerance)
    for name, value in net.parameters().items():
        assert_close(name, value, exact[name], tolerance)
    for a, b in zip(parts(state), parts(carried), strict=True):
        assert_close("state", a, b, tolerance)

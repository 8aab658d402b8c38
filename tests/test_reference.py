"""The NumPy reference: against the article's code and differences, in both dtypes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cases import UNITS, Case, named, parts, run_reference, smallest_preactivation, wide
from charrnn_fast import reference
from charrnn_fast.reference.masks import philox_words
from marks import slow_but
from tolerances import (
    assert_close,
    elementwise,
    finite_difference,
    finite_difference_step,
    losses,
    network,
)

Array = np.ndarray[Any, Any]


def test_imports_nothing_compiled_but_numpy() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import reference; "
        "print(*sorted({m.partition('.')[0] for m in sys.modules}\n"
        "             & {'charrnn_fast', '_core', 'scipy', 'torch'}))"
    )
    folder = str(Path(reference.__file__).parents[1])
    command = [sys.executable, "-c", code, folder]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"


def test_forward_is_the_articles_step() -> None:
    """h = tanh(W_hh h + W_xh x); y = W_hy h, one vector at a time."""
    article = reference.RNN(4, 3, 4, dtype="float64", seed=5)
    parameters = {
        "weight_ih_l0": article.W_xh,
        "weight_hh_l0": article.W_hh,
        "decoder.weight": article.W_hy,
    }
    x = Case(input_size=4, batch=1, dtype="float64").x()
    y, state, _ = reference.forward(parameters, x)
    by_step = np.stack([article.step(x_t[0]) for x_t in x])
    tolerance = network("float64", terms=7, steps=len(x))
    assert_close("y", y[:, 0], by_step, tolerance)
    assert_close("h", parts(state)[0][0, 0], article.h, tolerance)


def test_matches_min_char_rnn() -> None:
    """The loss and gradients of min-char-rnn's lossFun, written out as there (before clipping)."""
    case = Case(bias="single", tokens=True, dtype="float64", batch=1, input_size=7, output_size=7)
    parameters, inputs = case.parameters(), case.x()[:, 0]
    targets = np.roll(inputs, -1)
    Wxh, Whh, bh, Why, by = parameters.values()

    first: Array = parts(case.state())[0][0, 0]
    xs, hs, ps, loss = {}, {-1: first}, {}, 0.0
    for t, token in enumerate(inputs):
        xs[t] = np.eye(7)[token]
        hs[t] = np.tanh(Wxh @ xs[t] + Whh @ hs[t - 1] + bh)
        ys = Why @ hs[t] + by
        ps[t] = np.exp(ys) / np.sum(np.exp(ys))
        loss += -np.log(ps[t][targets[t]])
    expected = {name: np.zeros_like(p) for name, p in parameters.items()}
    dhnext = np.zeros_like(bh)
    for t in reversed(range(len(inputs))):
        dy = np.copy(ps[t])
        dy[targets[t]] -= 1
        expected["decoder.weight"] += np.outer(dy, hs[t])
        expected["decoder.bias"] += dy
        dhraw = (1 - hs[t] * hs[t]) * (Why.T @ dy + dhnext)
        expected["bias_ih_l0"] += dhraw
        expected["weight_ih_l0"] += np.outer(dhraw, xs[t])
        expected["weight_hh_l0"] += np.outer(dhraw, hs[t - 1])
        dhnext = Whh.T @ dhraw

    y, _, cache = reference.forward(parameters, case.x(), case.state())
    found, dy = reference.cross_entropy(y, targets[:, None], "sum")
    dx, dh_0, grads = reference.backward(parameters, cache, dy)
    tolerance = network("float64", terms=case.terms, steps=case.steps)
    assert dx is None
    assert_close("loss", found, loss, tolerance)
    assert_close("dh_0", parts(dh_0)[0][0, 0], dhnext, tolerance)
    for name in parameters:
        assert_close(f"d {name}", grads[name], expected[name], tolerance)


@pytest.mark.parametrize("num_layers", slow_but([1], [1, 3]))
@pytest.mark.parametrize("unit", UNITS)
def test_gradients_against_differences(unit: str, num_layers: int) -> None:
    case = Case(unit=unit, num_layers=num_layers, dtype="float64", output_size=3)
    step = finite_difference_step("float64")
    while smallest_preactivation(case.parameters(), case) < 3 * step:
        case = case.but(seed=case.seed + 1)
    parameters, x, state = case.parameters(), case.x(), case.state()

    def value() -> float:
        y, last, _ = reference.forward(parameters, x, state, **case.kind)
        pairs = [(y, case.dy()), *zip(parts(last), parts(case.dstate()), strict=True)]
        return sum(float(np.vdot(a, weight)) for a, weight in pairs)

    y, last, cache = reference.forward(parameters, x, state, **case.kind)
    results = reference.backward(parameters, cache, case.dy(), case.dstate())
    grads = dict(named(y, last, *results))
    arrays = {f"d {name}": p for name, p in parameters.items()}
    arrays |= dict(zip(("dh_0", "dc_0"), parts(state), strict=False), dx=x)
    for name, array in arrays.items():
        for index in list(np.ndindex(array.shape))[:: max(1, array.size // 20)]:
            kept = array[index]
            array[index] = kept + step
            above = value()
            array[index] = kept - step
            below = value()
            array[index] = kept
            expected = (above - below) / (2 * step)
            assert_close(name, grads[name][index], expected, finite_difference("float64"))


@pytest.mark.parametrize("unit", UNITS)
def test_float32_is_float64_rounded(unit: str) -> None:
    case = Case(unit=unit, num_layers=2, output_size=9)
    parameters = case.parameters()
    y, state, cache = reference.forward(parameters, case.x(), case.state(), **case.kind)
    results = reference.backward(parameters, cache, case.dy(), case.dstate())
    tolerance = network("float32", terms=case.terms, steps=case.steps)
    exact = run_reference(parameters, case)
    for name, value in named(y, state, *results):
        assert value.dtype == np.float32, name
        assert_close(name, value, exact[name], tolerance)


@pytest.mark.parametrize("unit", UNITS)
def test_empty_sequence(unit: str) -> None:
    case = Case(unit=unit, seq_len=0, num_layers=2, output_size=3)
    parameters = case.parameters()
    y, state, cache = reference.forward(parameters, case.x(), case.state(), **case.kind)
    dx, dstate, grads = reference.backward(parameters, cache, case.dy(), case.dstate())
    assert y.shape == (0, 3, 3) and dx is not None and dx.shape == (0, 3, 4)
    for found, given in ((state, case.state()), (dstate, case.dstate())):
        for a, b in zip(parts(found), parts(given), strict=True):
            np.testing.assert_array_equal(a, b)
    assert list(grads) == list(parameters)
    assert not any(grad.any() for grad in grads.values())


def test_refuses_what_numpy_would_take() -> None:
    case = Case(tokens=True, output_size=3)
    parameters = case.parameters()
    for bad in (-1, case.input_size):
        with pytest.raises(
            ValueError, match=rf"x must be integers in \[0, 4\), got {bad} to {bad}"
        ):
            reference.forward(parameters, np.full((1, 1), bad))
    with pytest.raises(ValueError, match=r"targets must be integers in \[-1, 3\), got -2 to -2"):
        reference.cross_entropy(np.zeros((1, 3)), np.array([-2]))
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'none'"):
        reference.cross_entropy(np.zeros((1, 3)), np.array([0]), "none")
    with pytest.raises(
        ValueError, match=r"one of 'rnn' with 'tanh', 'rnn' with 'relu'.*, got 'mgu'"
    ):
        reference.forward(parameters, case.x(), cell="mgu")
    with pytest.raises(ValueError, match="got 'lstm' with 'relu'"):
        reference.forward(parameters, case.x(), cell="lstm", nonlinearity="relu")
    with pytest.raises(ValueError, match="bias must be True, 'single' or False, got 'both'"):
        reference.init_parameters(2, 3, bias="both")


def test_cross_entropy() -> None:
    p = np.array([0.5, 0.25, 0.25])
    logits = np.stack([np.log(p) + 1000, np.log(p) - 1000, np.log(p)])
    targets = np.array([0, 1, -1])
    total, grad = reference.cross_entropy(logits, targets, "sum")
    mean, half = reference.cross_entropy(logits, targets)
    tolerance = elementwise("float64", operations=1_000_000)  # 1000 takes three digits
    assert_close("sum", total, np.log(2) + np.log(4), tolerance)
    assert_close("mean", mean, total / 2, tolerance)
    assert_close("dlogits", grad, [p - [1, 0, 0], p - [0, 1, 0], [0, 0, 0]], tolerance)
    assert_close("dlogits of the mean", half, grad / 2, tolerance)
    assert reference.cross_entropy(logits, np.full(3, -1))[0] == 0.0


def _loss_arguments(name: str, weighted: bool, dtype: str = "float64") -> tuple[Any, ...]:
    """A loss, what it is of, targets, and weights with zeros among them."""
    rng = np.random.default_rng(4)
    x = rng.uniform(-2, 2, (2, 3, 5)).astype(dtype)
    targets: Array = np.asarray(rng.uniform(0, 1, x.shape), dtype)
    if name == "cross_entropy":
        targets = np.array([[3, -1, 0], [4, -1, 3]])
    weights = np.asarray(rng.uniform(0, 2, targets.shape), dtype)
    weights[0, 2] = 0
    return getattr(reference, name), x, targets, weights if weighted else None


LOSSES = ("cross_entropy", "binary_cross_entropy", "mean_square")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_gradients(name: str, reduction: str, weighted: bool) -> None:
    loss, x, targets, weights = _loss_arguments(name, weighted)
    _, gradient = loss(x, targets, reduction, weights)
    step = finite_difference_step("float64")
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + step
        above = loss(x, targets, reduction, weights)[0]
        x[index] = kept - step
        below = loss(x, targets, reduction, weights)[0]
        x[index] = kept
        expected = (above - below) / (2 * step)
        assert_close("gradient", gradient[index], expected, finite_difference("float64"))


@pytest.mark.parametrize("name", LOSSES)
def test_weights_of_losses(name: str) -> None:
    """They multiply each loss; a mean is over their sum; those of ignored rows do not count."""
    loss, x, targets, weights = _loss_arguments(name, True)
    counted = targets != -1
    tolerance = elementwise("float64", operations=100)
    total, gradient = loss(x, targets, "sum", weights)
    by_hand = 0.0
    for index in np.ndindex(targets.shape):
        own, single = loss(x[index][None], targets[index][None], "sum")
        by_hand += weights[index] * own
        assert_close("gradient", gradient[index], weights[index] * single[0], tolerance)
    assert_close("sum", total, by_hand, tolerance)
    mean, share = loss(x, targets, "mean", weights)
    assert_close("mean", mean, total / weights[counted].sum(), tolerance)
    assert_close("its gradient", share, gradient / weights[counted].sum(), tolerance)
    for reduction in ("mean", "sum"):
        plain, gradient = loss(x, targets, reduction)
        ones, the_same = loss(x, targets, reduction, np.where(counted, 1.0, np.nan))
        assert_close("weights of one", ones, plain, tolerance)
        assert_close("weights of one", the_same, gradient, tolerance)
        nothing, none = loss(x, targets, reduction, np.zeros(targets.shape))
        assert nothing == 0 and not none.any()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_float32(name: str) -> None:
    loss, x, targets, weights = _loss_arguments(name, True, "float32")
    exact, gradient = loss(wide(x), wide(targets), "mean", wide(weights))
    found, rounded = loss(x, targets, "mean", weights)
    tolerance = losses("float32", classes=5, rows=targets.size, largest=2)
    assert isinstance(found, float) and rounded.dtype == np.float32
    assert_close("loss", found, exact, tolerance)
    assert_close("gradient", rounded, gradient, tolerance)


def test_binary_cross_entropy_of_extremes() -> None:
    x = np.array([0.0, 1000.0, -1000.0, 1000.0])
    z = np.array([0.5, 1.0, 0.0, 0.0])
    loss, gradient = reference.binary_cross_entropy(x, z, "sum")
    assert_close("loss", loss, 1000 + np.log(2), elementwise("float64", operations=10))
    assert gradient.tolist() == [0, 0, 0, 1]
    loss, gradient = reference.mean_square(np.array([1.0, 4.0]), np.array([0.0, 2.0]))
    assert (loss, gradient.tolist()) == (2.5, [1, 2])
    for empty in (reference.binary_cross_entropy, reference.mean_square):
        assert empty(x[:0], z[:0])[0] == 0
        with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'max'"):
            empty(x, z, "max")


def test_clipping() -> None:
    grads = {"a": np.array([3.0, 0.0], "float32"), "b": np.array([[4.0]], "float32")}
    assert reference.clip_grad_norm(grads, 10.0) == 5.0
    np.testing.assert_array_equal(grads["a"], [3, 0])
    assert reference.clip_grad_norm(grads, 1.0) == 5.0
    assert_close("a", grads["a"], [0.6, 0], 1e-6)  # the formula's own 1e-6
    assert_close("b", grads["b"], [[0.8]], 1e-6)
    reference.clip_grad_value(grads, 0.7)
    np.testing.assert_array_equal(grads["b"], np.array([[0.7]], "float32"))


def test_philox_known_answers() -> None:
    """The answers in Random123's kat_vectors, with Python's integers and in arrays."""
    assert reference.philox(0, 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones, pi = 2**32 - 1, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    known = [
        (0, (0,) * 4, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, (ones,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (0x299F31D0A4093822, pi, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ]
    for key, counter, words in known:
        assert philox_words(key, *counter) == words
        arrays = philox_words(key, *(np.full(3, c, "uint64") for c in counter))
        assert [word.tolist() for word in arrays] == [[word] * 3 for word in words]
    # once computed by this code, for the counter words of `philox`
    found = reference.philox(0x299F31D0A4093822, 0x85A308D3243F6A88, 0x13198A2E)
    assert found == (0xAE120E9D, 0xA08A4CAB, 0xD28EC6A2, 0x42D73C1F)


def test_draws_follow_the_probabilities() -> None:
    p = np.array([0.1, 0.2, 0.3, 0.4])
    logits = np.log(p)[None]

    def frequencies(**options: Any) -> Array:
        draws = [reference.sample_tokens(logits, [7], n, **options)[0] for n in range(4000)]
        return np.bincount(draws, minlength=4) / len(draws)

    # four standard deviations of a share of 4000 draws are at most 0.032
    assert_close("p", frequencies(), p, 0.032)
    assert_close("squared", frequencies(temperature=0.5), p**2 / (p**2).sum(), 0.032)
    assert_close("top 2", frequencies(top_k=2), [0, 0, 3 / 7, 4 / 7], 0.032)
    assert_close("top 0.65", frequencies(top_p=0.65), [0, 0, 3 / 7, 4 / 7], 0.032)
    assert frequencies(temperature=0).tolist() == [0, 0, 0, 1]
    assert frequencies(top_k=1).tolist() == [0, 0, 0, 1]
    assert frequencies(top_p=0.01).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("unit", UNITS)
def test_a_stream_depends_on_its_seed_alone(unit: str) -> None:
    case = Case(unit=unit, num_layers=2, tokens=True, input_size=9, output_size=9)
    parameters, first = case.parameters(), np.array([1, 2, 3])
    together, state = reference.sample(parameters, 20, first, [5, 6, 7], **case.kind)
    for b, seed in enumerate([5, 6, 7]):
        alone, last = reference.sample(parameters, 20, first[b : b + 1], [seed], **case.kind)
        assert together[:, b].tolist() == alone[:, 0].tolist()
        for s, t in zip(parts(state), parts(last), strict=True):
            np.testing.assert_allclose(s[:, b], t[:, 0], rtol=1e-5)
    head, middle = reference.sample(parameters, 8, first, [5, 6, 7], **case.kind)
    tail, _ = reference.sample(parameters, 12, head[-1], [5, 6, 7], middle, position=8, **case.kind)
    assert np.concatenate((head, tail)).tolist() == together.tolist()

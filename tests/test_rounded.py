"""compute_dtype="bfloat16": what the reference rounds, and the kernels against the reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from cases import Array, named, wide
from charrnn_fast import reference
from charrnn_fast.reference import Regularization
from charrnn_fast.reference.number_types import operand
from features import ByKernels, FeatureCase, combinations, label, run, single_features
from tolerances import (
    DRAWS_OF_ROUNDED,
    NEARLY_CONSTANT,
    assert_close,
    assert_same_bits,
    error,
    losses,
    network,
)

EXACT = network("float64", terms=64, steps=64)


def nearest(a: Any, bits: int = 8) -> Array:
    """So many significant bits of each number, by its exponent and not by its bits."""
    fraction, exponent = np.frexp(np.asarray(a, np.float32).astype("float64"))
    # rint takes the even one of two that are equally near
    return np.asarray(np.ldexp(np.rint(np.ldexp(fraction, bits)), exponent - bits))


# ---- one number ---------------------------------------------------------------------------


def test_known_numbers() -> None:
    one, ulp = np.float32(1), np.float32(2**-7)
    for given, wanted in (
        (1, 1),
        (one + ulp / 2, 1),  # ties to even, below and above
        (one + 3 * ulp / 2, 1 + 2 * ulp),
        (np.nextafter(one + ulp / 2, 2, dtype="float32"), 1 + ulp),
        (-(one + 3 * ulp / 2), -(1 + 2 * ulp)),
        (0.1, 0.10009765625),
        (-0.0, -0.0),
        (2**-126, 2**-126),
        (np.nextafter(np.float32(2**-126), 0, dtype="float32"), 0.0),
        (-1e-40, -0.0),
        (3.4e38, np.inf),
        (-np.inf, -np.inf),
    ):
        found = operand(np.array([given], np.float32), "bfloat16")
        assert_same_bits(repr(given), found, np.array([wanted], np.float32))
    for bits in (0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000):
        a = np.array([bits], np.uint32).view(np.float32)
        assert np.isnan(operand(a, "bfloat16")).all() and np.isnan(operand(a, "tf32")).all()


@pytest.mark.parametrize(("compute_dtype", "bits_kept"), [("bfloat16", 8), ("tf32", 11)])
def test_it_is_the_nearest(compute_dtype: str, bits_kept: int) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, np.uint32)
    bits[: 2**17] = np.arange(2**17, dtype=np.uint32) << 15  # every bfloat16, and every tie
    a = bits.view(np.float32)
    a = a[np.isfinite(a) & (np.abs(a) < 3e38) & (np.abs(a) >= np.finfo(np.float32).tiny)]
    expected = nearest(a, bits_kept)
    assert_same_bits("operand", operand(a, compute_dtype), expected.astype(np.float32))
    assert_same_bits("float64", operand(wide(a), compute_dtype), expected)


def test_nothing_is_rounded_without_it() -> None:
    a = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    assert operand(a, "float32") is a


def test_other_names_are_refused() -> None:
    case = FeatureCase("gru")
    for name in ("float16", ""):
        with pytest.raises(ValueError, match="compute_dtype must be one of 'float32', 'tf32', 'bf"):
            reference.forward(case.parameters(), case.x(), compute_dtype=name, **case.kind)


# ---- networks -----------------------------------------------------------------------------


def _by_hand(p: dict[str, Array], tokens: Array, scale: Array, dy: Array) -> dict[str, Array]:
    """A GRU of one layer with a decoder, and its backward, one element of a product at a time."""
    (T, B), H, r = tokens.shape, p["weight_hh_l0"].shape[1], nearest

    def product(a: Array, b: Array) -> Array:
        return np.array([[(r(row) * r(column)).sum() for column in b.T] for row in a])

    x = np.zeros((T, B, p["weight_ih_l0"].shape[1]))
    for t in range(T):
        x[t, np.arange(B), tokens[t]] = scale[t]
    h, kept, ys = np.zeros((B, H)), list[Any](), np.empty_like(dy)
    for t in range(T):
        gx = product(x[t], p["weight_ih_l0"].T) + p["bias_ih_l0"]
        gh = product(h, p["weight_hh_l0"].T) + p["bias_hh_l0"]
        reset, z = (1 / (1 + np.exp(-(gx + gh)[:, k * H : (k + 1) * H])) for k in (0, 1))
        n = np.tanh(gx[:, 2 * H :] + reset * gh[:, 2 * H :])
        kept.append((h, reset, z, n, gh[:, 2 * H :]))
        h = (1 - z) * n + z * h
        ys[t] = product(h, p["decoder.weight"].T) + p["decoder.bias"]
    found = {"y": ys, "h_n": h[None]}
    d = {name: np.zeros_like(value) for name, value in p.items()}
    dh = np.zeros((B, H))
    for t in reversed(range(T)):
        before, reset, z, n, ghn = kept[t]
        after = kept[t + 1][0] if t + 1 < T else h
        d["decoder.weight"] += product(dy[t].T, after)
        d["decoder.bias"] += dy[t].sum(0)
        dh = dh + product(dy[t], p["decoder.weight"])
        dn = dh * (1 - z) * (1 - n * n)
        dz, dr = dh * (before - n) * z * (1 - z), dn * ghn * reset * (1 - reset)
        dgx, dgh = np.hstack((dr, dz, dn)), np.hstack((dr, dz, dn * reset))
        d["weight_ih_l0"] += product(dgx.T, x[t])
        d["weight_hh_l0"] += product(dgh.T, before)
        d["bias_ih_l0"] += dgx.sum(0)
        d["bias_hh_l0"] += dgh.sum(0)
        dh = dh * z + product(dgh, p["weight_hh_l0"])
    return {**found, **{f"d {name}": value for name, value in d.items()}, "dh_0": dh[None]}


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_gru_by_hand(rate: float) -> None:
    """The scale of the tokens that dropout keeps, 1 / 0.7, is a factor that is rounded, too."""
    case = FeatureCase(
        "gru",
        output_size=3,
        tokens=True,
        compute_dtype="bfloat16",
        regularization=Regularization(input_dropout=rate),
    )
    p, x = wide(case.parameters()), case.x()
    place, steps = reference.site(reference.INPUT, 0), np.arange(case.seq_len)[:, None]
    scale = np.ones(x.shape)
    if rate:
        scale = reference.multipliers(11, place, rate, steps, np.arange(case.batch), x)
        assert 1 / 0.7 in scale and 0 in scale
    y, last, cache = reference.forward(p, x, **case.options())
    results = reference.backward(p, cache, wide(case.dy()))
    wanted = _by_hand(p, x, scale, wide(case.dy()))
    found = dict(named(y, last, *results))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_close(name, found[name], value, EXACT)


def _cases() -> Iterator[Any]:
    """Combinations of features, which repeat them one by one, are among the slow tests."""
    for cases, marks in ((single_features(), ()), (combinations(), pytest.mark.slow)):
        for case in cases:
            rounded = case.but(compute_dtype="bfloat16")
            yield pytest.param(rounded, marks=marks, id=label(rounded))


@pytest.mark.parametrize("case", [c for c in _cases() if c.values[0].tokens])
def test_tokens_are_one_hot_vectors(case: FeatureCase) -> None:
    p, x = case.parameters(), case.x()
    one_hot = np.eye(case.input_size)[x]
    results = []
    for given in (x, one_hot):
        y, last, cache = reference.forward(p, given, case.state(), **case.options())
        _, dstate, gradients = reference.backward(p, cache, case.dy(), case.dstate())
        results.append(dict(named(y, last, None, dstate, gradients)))
    for name, value in results[1].items():
        assert_close(name, results[0][name], value, EXACT)


@pytest.mark.parametrize("case", [*_cases()])
def test_every_result_is_rounded(case: FeatureCase) -> None:
    """By some 2^-9 of each operand, which rows of little deviation and kinks of relu enlarge."""
    p, exact = case.parameters(), case.but(compute_dtype="float32")
    found, expected = run(p, case), run(p, exact)
    for name in found.keys() - {"d decoder.bias"}:  # the sum of dy
        difference = error(found[name], expected[name])
        assert difference > 2e-5, name
        if case.unit != "rnn_relu" and not case.layer_norm:
            assert difference < 2**-5, name


# ---- the kernels --------------------------------------------------------------------------


def assert_rounds_as_the_reference(case: FeatureCase, by: Any = ByKernels) -> None:
    """See DRAWS_OF_ROUNDED. A product whose operands are not rounded alike fails in every draw."""
    case = case.but(dtype="float32")
    tolerance = case.tolerance * (NEARLY_CONSTANT if case.layer_norm else 1)
    shares = []
    for seed in range(DRAWS_OF_ROUNDED):
        drawn = case.but(seed=seed)
        parameters = drawn.parameters()
        found, expected = run(parameters, drawn, by), run(parameters, drawn)
        assert list(found) == list(expected)
        shares.append(max(error(found[name], expected[name]) / tolerance for name in expected))
        if shares[-1] <= 1:
            return
    pytest.fail(f"{case}: errors as shares of the tolerance: {shares}")


@pytest.mark.parametrize("case", [*_cases()])
def test_kernels_round_as_the_reference(case: FeatureCase) -> None:
    assert_rounds_as_the_reference(case)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_language_model_rounds_as_the_reference(cell: str) -> None:
    """Its loss, whose decoder has kernels of its own, and its text."""
    text = "the quick brown fox jumps over the lazy dog\n"
    vocabulary = cf.Vocabulary.from_text(text)
    ids = vocabulary.encode(text)[:, None]
    tolerance = losses("float32", classes=len(vocabulary), rows=len(ids), largest=22)
    shares = []
    for seed in range(DRAWS_OF_ROUNDED):
        model = cf.CharLM(vocabulary, 24, 2, cell, seed, compute_dtype="bfloat16")
        options: dict[str, Any] = {"cell": cell, "compute_dtype": "bfloat16"}
        parameters = model.rnn.parameters(copy=True)
        parameters["decoder.weight"] *= 8  # else all characters are about equally likely
        model.rnn.load_parameters(parameters)
        logits, _, _ = reference.forward(parameters, ids[:-1], **options)
        expected, _ = reference.cross_entropy(logits, ids[1:])
        shares.append(abs(model.evaluate(text) - float(expected)) / tolerance)
        first = np.array([vocabulary.id_of(ord("\n"))], np.int32)
        drawn, _ = reference.sample(parameters, 40, first, [seed], **options)
        same_text = model.sample(40, seed=seed) == vocabulary.decode(drawn[:, 0])
        # These weights are rounded already.
        assert model.sample(40, seed=seed, weight_dtype="bfloat16") == model.sample(40, seed=seed)
        if shares[-1] <= 1 and same_text:
            return
    pytest.fail(f"errors as shares of the tolerance: {shares}")

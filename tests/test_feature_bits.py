"""The options of the layers give the same bits too; the kernels' wide paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from cases import Array, named, parts, wide
from cases import rows as rows_of
from charrnn_fast import _core, reference
from charrnn_fast.reference import Regularization
from features import ALL_UNITS, DROPOUTS, LSTMS, ByKernels, FeatureCase, combinations, label, run
from tolerances import assert_close, assert_same_bits

THREADS = (2, 3, 4, 7)


@pytest.fixture
def threads() -> Any:
    """Small cases run on all threads, too."""
    before = cf.get_num_threads()
    _core.set_sharing_limits(0, 0)
    yield
    _core.set_sharing_limits(1e6, 1e5)
    cf.set_num_threads(before)


def _assert_same(found: dict[str, Array], expected: dict[str, Array], when: str) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert_same_bits(f"{name} {when}", found[name], value)


def _kinds() -> list[FeatureCase]:
    """Every option on wide layers of many rows, in float32; some with products of bfloat16."""
    cases = [c.but(dtype="float32") for c in combinations() if c.unit in ("gru", "lstm")]
    cases += [c.but(compute_dtype="bfloat16") for c in cases[::4]]
    return [
        # of few features dropout may leave none, and normalizing those magnifies rounding
        c.but(seq_len=6, batch=23, hidden_size=35, input_size=9, proj_size=c.proj_size and 17)
        for c in cases
    ]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("case", _kinds(), ids=label)
def test_any_number_of_threads(case: FeatureCase) -> None:
    for batch in (23, 2):
        small = case.but(batch=batch)
        parameters = small.parameters()
        cf.set_num_threads(1)
        expected = run(parameters, small, ByKernels)
        for n in THREADS:
            cf.set_num_threads(n)
            _assert_same(run(parameters, small, ByKernels), expected, f"on {n} threads")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", [c for c in _kinds() if c.compute_dtype == "float32"], ids=label)
def test_wide_layers_against_the_reference(case: FeatureCase, dtype: str) -> None:
    # What normalization divides by may be small: then float32 keeps fewer digits than other sums.
    case = case.but(dtype=dtype, layer_norm=case.layer_norm and dtype == "float64")
    parameters = case.parameters()
    found = run(parameters, case, ByKernels)
    exact = wide(parameters)
    y, last, cache = reference.forward(exact, wide(case.x()), wide(case.state()), **case.options())
    results = reference.backward(exact, cache, wide(case.dy()), wide(case.dstate()))
    for name, value in named(y, last, *results):
        assert_close(name, found[name], value, case.tolerance)


@pytest.mark.parametrize("case", _kinds(), ids=label)
def test_a_row_does_not_see_its_company(case: FeatureCase) -> None:
    """The first rows of a batch, whose masks go by their place, are what they are alone."""
    parameters, few = case.parameters(), slice(0, 9)
    network = case.network()
    network.load_parameters(parameters)
    lengths = case.lengths()
    y, last = network.forward(case.x(), case.state(), lengths=lengths, mask_seed=case.mask_seed)
    dx, dstate, _ = network.backward(case.dy(), case.dstate())
    alone, end = network.forward(
        np.ascontiguousarray(case.x()[:, few]),
        rows_of(case.state(), few),
        lengths=None if lengths is None else lengths[few],
        mask_seed=case.mask_seed,
    )
    dx_alone, dstate_alone, _ = network.backward(
        np.ascontiguousarray(case.dy()[:, few]), rows_of(case.dstate(), few)
    )
    assert_same_bits("y", alone, y[:, few])
    if dx is not None and dx_alone is not None:
        assert_same_bits("dx", dx_alone, dx[:, few])
    pairs = [*zip(parts(end), parts(last), strict=True)]
    pairs += zip(parts(dstate_alone), parts(dstate), strict=True)
    for found, expected in pairs:
        assert_same_bits("state", found, expected[:, few])


@pytest.mark.parametrize("case", _kinds(), ids=label)
def test_keeping_changes_nothing(case: FeatureCase) -> None:
    network = case.network()
    options: Any = {"lengths": case.lengths(), "mask_seed": case.mask_seed}
    y, last = network.forward(case.x(), case.state(), **options)
    bare, end = network.forward(case.x(), case.state(), keep=False, **options)
    assert_same_bits("y", bare, y)
    for found, expected in zip(parts(end), parts(last), strict=True):
        assert_same_bits("state", found, expected)


@pytest.mark.parametrize("unit", ALL_UNITS)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_steps_equal_the_sequence(unit: str, layer_norm: bool) -> None:
    """Zoneout's expectation is part of a step; dropout is not."""
    for proj_size in (0, 5) if unit in LSTMS else (0,):
        zoneout = (0.0 if proj_size else 0.1, 0.2)
        case = FeatureCase(
            unit,
            num_layers=2,
            seq_len=6,
            hidden_size=17,
            proj_size=proj_size,
            layer_norm=layer_norm,
            regularization=DROPOUTS._replace(zoneout=zoneout, weight_drop=0.5),
            mask_seed=None,
            output_size=3,
        )
        network = case.network()
        y, last = network.forward(case.x())
        for t in range(case.seq_len):
            assert_same_bits(f"y at {t}", network.step(case.x()[t]), y[t])
        for found, expected in zip(parts(network.state), parts(last), strict=True):
            assert_same_bits("state", found, expected)


@pytest.mark.parametrize("variational", [False, True])
def test_a_dropped_token_is_a_dropped_one_hot_vector(variational: bool) -> None:
    rates = Regularization(input_dropout=0.5, variational=variational)
    case = FeatureCase("gru", tokens=True, hidden_size=33, input_size=70, regularization=rates)
    network = case.network()
    y, _ = network.forward(case.x(), mask_seed=3)
    _, _, grads = network.backward(case.dy())
    one_hot = np.eye(70, dtype="float32")[case.x()]
    same, _ = network.forward(one_hot, mask_seed=3)
    _, _, same_grads = network.backward(case.dy())
    assert_same_bits("y", same, y)
    _assert_same(same_grads, grads, "of one-hot vectors")
    other, _ = network.forward(case.x(), mask_seed=4)
    assert (other != y).any()


def test_masks_are_off_without_a_seed() -> None:
    case = FeatureCase("lstm", num_layers=2, regularization=DROPOUTS._replace(weight_drop=0.4))
    plain = case.but(regularization=Regularization())
    found, _ = case.network().forward(case.x())
    expected, _ = plain.network().forward(case.x())
    assert_same_bits("y", found, expected)


def test_backward_without_dy() -> None:
    for output_size in (None, 3):
        case = FeatureCase("lstm", num_layers=2, output_size=output_size, ragged=True)
        network = case.network()
        network.forward(case.x(), lengths=case.lengths())
        expected = network.backward(np.zeros_like(case.dy()), case.dstate())
        network.forward(case.x(), lengths=case.lengths())
        found = network.backward(None, case.dstate())
        y, state = case.dy(), case.dstate()  # placeholders: only gradients are compared
        _assert_same(dict(named(y, state, *found)), dict(named(y, state, *expected)), "without dy")

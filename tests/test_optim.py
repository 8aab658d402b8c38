"""The optimizers against the NumPy reference, and as a caller sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import charrnn_fast as cf
from cases import BIASES, UNITS, Array, Case, wide
from charrnn_fast import reference
from tolerances import assert_close, assert_same_bits, elementwise

RULES = ("SGD", "RMSprop", "Adagrad", "Adam", "AdamW")
_share = st.sampled_from((0.0, 0.1, 0.5, 0.9, 0.99))
_long = st.sampled_from((0.9, 0.99, 0.999))
_betas = st.tuples(_share, _share | _long)
_decay = st.sampled_from((0.0, 0.01, 0.3))
_eps = st.sampled_from((1e-10, 1e-8, 1e-2))
# Decay passes an error of p on to g, which is divided by about its own size, however near to 0,
# where the average of squares holds little else: so little decay for RMSprop, whose average begins
# at 0, and none for Adam of a short memory.
OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "SGD": st.one_of(
        st.fixed_dictionaries({"momentum": _share, "dampening": _share, "weight_decay": _decay}),
        st.fixed_dictionaries({"momentum": st.just(0.9), "nesterov": st.just(True)}),
    ),
    "RMSprop": st.fixed_dictionaries(
        {
            "alpha": st.sampled_from((0.5, 0.9, 0.99)),
            "eps": st.sampled_from((1e-3, 1e-1)),
            "momentum": _share,
            "centered": st.booleans(),
            "weight_decay": st.sampled_from((0.0, 0.01)),
        }
    ),
    "Adagrad": st.fixed_dictionaries(
        {
            "lr_decay": _decay,
            "eps": _eps,
            "initial_accumulator_value": _decay,
            "weight_decay": _decay,
        }
    ),
    "Adam": st.one_of(
        st.fixed_dictionaries({"betas": _betas, "eps": _eps}),
        st.fixed_dictionaries(
            {"betas": st.tuples(_share, _long), "eps": _eps, "weight_decay": _decay}
        ),
    ),
    "AdamW": st.fixed_dictionaries({"betas": _betas, "eps": _eps, "weight_decay": _decay}),
}


def _gradients(case: Case, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng((seed, 77))
    shapes = {name: value.shape for name, value in case.parameters().items()}
    return {n: rng.standard_normal(shape).astype(case.dtype) for n, shape in shapes.items()}


def _copies(net: cf.RNN) -> dict[str, Array]:
    return {name: np.array(value) for name, value in net.parameters().items()}


@given(
    rule=st.sampled_from(RULES),
    data=st.data(),
    unit=st.sampled_from(UNITS),
    bias=st.sampled_from(BIASES),
    dtype=st.sampled_from(("float32", "float64")),
    hidden_size=st.sampled_from((1, 2, 5, 8, 17, 33)),
)
def test_updates_are_those_of_the_reference(
    rule: str, data: st.DataObject, unit: str, bias: bool | str, dtype: str, hidden_size: int
) -> None:
    """Six updates with random options; a learning rate of 0.5 lets no error hide behind weights."""
    options = data.draw(OPTIONS[rule])
    case = Case(unit, 2, bias, dtype, hidden_size=hidden_size, output_size=3)
    net, steps = case.network(), 6
    exact = wide(_copies(net))
    ours = getattr(cf.optim, rule)(net, lr=0.5, **options)
    theirs = getattr(reference, rule)(exact, lr=0.5, **options)
    for step in range(steps):
        grads = _gradients(case, step)
        ours.step(grads)
        theirs.step(wide(grads))
    # an eps against which the root of a near-zero average stands magnifies what rounding left in it
    magnified = 1 / np.sqrt(options["eps"]) if options.get("centered") else 1.0
    tolerance = magnified * elementwise(dtype, operations=10 * steps)
    for name, value in net.parameters().items():
        assert_close(name, value, exact[name], tolerance)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.3, 0.49, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", ["Adam", "AdamW", "RMSprop", "RMSprop with momentum"])
def test_averages_keep_their_digits(rule: str, dtype: str, beta: float) -> None:
    """Of gradients far smaller and far larger than those before: those of beta 0 are themselves."""
    options: dict[str, Any] = {"betas": (beta, beta)}
    if rule.startswith("RMSprop"):
        options = {"alpha": beta or 0.05, "centered": True}  # of 0: no variance to divide by
    if rule.endswith("momentum"):
        options["momentum"] = 0.9
    case = Case("gru", dtype=dtype, output_size=3)
    net = case.network()
    ours = getattr(cf.optim, rule.split()[0])(net, lr=0.0, **options)
    theirs = getattr(reference, rule.split()[0])(wide(_copies(net)), lr=0.0, **options)
    averages = [slot for slot in ours._core.slot_names if slot != "momentum_buffer"]
    for step, scale in enumerate((1e6, 1e-2, 1e6)):
        # of one sign, or sums would lose digits to differences
        grads = {
            name: (scale * np.abs(g)).astype(dtype) for name, g in _gradients(case, step).items()
        }
        ours.step(grads)
        theirs.step(wide(grads))
        for slot in averages:
            for name in grads:
                found = ours._core.slot(slot, name) / theirs.slots[name][slot]
                tolerance = elementwise(dtype, operations=10 * (step + 1))
                assert_close(f"{slot} of {name}", found, np.ones_like(found), tolerance)


def test_first_updates_by_hand() -> None:
    """p = 0 and g = 2, so that each formula can be worked out on paper."""
    expected = {
        "SGD": -0.2,  # lr g
        "RMSprop": -0.1 * 2 / np.sqrt(0.01 * 4),  # lr g / sqrt((1 - alpha) g^2)
        "Adagrad": -0.1,  # lr g / |g|
        "Adam": -0.1,  # both moments corrected: lr g / |g|
        "AdamW": -0.1,  # 0 decays to 0
    }
    for rule, value in expected.items():
        net = cf.RNN(1, 1, dtype="float64")
        net.load_parameters({name: np.zeros_like(p) for name, p in net.parameters().items()})
        grads = {name: np.full_like(p, 2.0) for name, p in net.parameters().items()}
        getattr(cf.optim, rule)(net, lr=0.1).step(grads)
        for name, p in net.parameters().items():
            assert p.ravel()[0] == pytest.approx(value, rel=1e-6), f"{rule}: {name}"


@pytest.mark.parametrize("rule", RULES)
def test_the_learning_rate_may_change_between_steps(rule: str) -> None:
    case = Case("gru", dtype="float64", output_size=3)
    net = case.network()
    exact = wide(_copies(net))
    ours = getattr(cf.optim, rule)(net, lr=0.5)
    theirs = getattr(reference, rule)(exact, lr=0.5)
    for step, lr in enumerate((0.5, 0.1, 0.0, 0.2)):
        ours.lr = theirs.lr = lr
        before = _copies(net)
        ours.step(_gradients(case, step))
        theirs.step(_gradients(case, step))
        for name, value in net.parameters().items():
            assert_close(name, value, exact[name], elementwise("float64", operations=40))
            assert lr == 0 or not np.array_equal(value, before[name])
    assert ours._core.num_steps == 4


@pytest.mark.parametrize("rule", RULES)
def test_memory_layout_of_gradients_does_not_matter(rule: str) -> None:
    case = Case("lstm", 2, output_size=3)
    results = []
    for layout in (
        np.ascontiguousarray,
        np.asfortranarray,
        lambda g: g.repeat(2, axis=-1)[..., ::2],
    ):
        net = case.network()
        optimizer = getattr(cf.optim, rule)(net, lr=0.5)
        for step in range(2):
            grads = {name: layout(grad) for name, grad in _gradients(case, step).items()}
            kept = {name: np.array(grad) for name, grad in grads.items()}
            optimizer.step(grads)
            for name, grad in grads.items():
                assert_same_bits(f"d {name}", np.array(grad), kept[name])
        results.append(_copies(net))
    for other in results[1:]:
        for name, value in other.items():
            assert_same_bits(name, value, results[0][name])


@pytest.mark.parametrize("rule", RULES)
def test_a_step_refuses_and_changes_nothing(rule: str) -> None:
    case = Case("lstm", output_size=3)
    net = case.network()
    optimizer = getattr(cf.optim, rule)(net, lr=0.5)
    good = _gradients(case)
    optimizer.step(good)
    before = _copies(net)
    slots = {
        (slot, name): np.array(optimizer._core.slot(slot, name))
        for slot in optimizer._core.slot_names
        for name in good
    }
    last = next(reversed(good))
    lacking = {name: grad for name, grad in good.items() if name != last}
    wrong: list[tuple[Any, type[Exception], str]] = [
        (lacking, ValueError, f"grads .*{last}"),
        ({**good, "weight_ih_l9": good[last]}, ValueError, "grads .*weight_ih_l9"),
        ({**good, last: good[last][:-1]}, ValueError, rf"grads\['{last}'\] .*\(3,\), got \(2,\)"),
        ({**good, last: good[last].astype("float64")}, TypeError, rf"{last}.*float32, got float64"),
        (None, TypeError, "grads must be a mapping of arrays by name, got NoneType"),
        (list(good.values()), TypeError, "grads must be a mapping of arrays by name, got list"),
        ({**good, last: None}, TypeError, rf"grads\['{last}'\] .*array, got NoneType"),
    ]
    for grads, error, message in wrong:
        with pytest.raises(error, match=message):
            optimizer.step(grads)
    for lr, error, message in (
        (np.nan, ValueError, "lr .*finite.*nan"),
        (-1.0, ValueError, "lr .*at least 0, got -1"),
        ("fast", TypeError, "lr .*number.*'fast'"),
    ):
        optimizer.lr = lr
        with pytest.raises(error, match=message):
            optimizer.step(good)
    for name, value in net.parameters().items():
        assert_same_bits(name, value, before[name])
    for (slot, name), value in slots.items():
        assert_same_bits(f"{slot} of {name}", np.array(optimizer._core.slot(slot, name)), value)
    assert optimizer._core.num_steps == 1


REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("SGD", {"lr": -0.1}, ValueError, "lr .*at least 0, got -0.1"),
    ("SGD", {"lr": np.inf}, ValueError, "lr .*finite.*inf"),
    ("SGD", {"lr": "0.1"}, TypeError, "lr .*number.*'0.1'"),
    ("SGD", {"momentum": -0.1}, ValueError, "momentum must be finite, at least 0, got -0.1"),
    ("SGD", {"weight_decay": np.nan}, ValueError, "weight_decay .*nan"),
    ("SGD", {"nesterov": True}, ValueError, "nesterov .*momentum"),
    ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "nesterov .*damp"),
    ("RMSprop", {"alpha": 1.0}, ValueError, "alpha must be finite, below 1, got 1"),
    ("RMSprop", {"alpha": -0.1}, ValueError, "alpha .*-0.1"),
    ("RMSprop", {"eps": -1e-8}, ValueError, "eps .*-1e-08"),
    ("RMSprop", {"momentum": np.inf}, ValueError, "momentum .*inf"),
    ("Adagrad", {"lr_decay": -1.0}, ValueError, "lr_decay .*-1"),
    ("Adagrad", {"initial_accumulator_value": -1.0}, ValueError, "initial_accumulator_value .*-1"),
    ("Adam", {"betas": (1.0, 0.9)}, ValueError, "beta.*1"),
    ("Adam", {"betas": (0.9, -0.1)}, ValueError, "beta.*-0.1"),
    ("Adam", {"betas": 0.9}, TypeError, "betas"),
    ("AdamW", {"betas": (0.9,)}, ValueError, "betas"),
    ("AdamW", {"weight_decay": -0.1}, ValueError, "weight_decay .*-0.1"),
    ("AdamW", {"eps": "small"}, TypeError, "eps .*'small'"),
]


@pytest.mark.parametrize(
    ("rule", "options", "error", "message"), REFUSED, ids=lambda v: str(v)[:40]
)
def test_construction_refuses(
    rule: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(cf.optim, rule)(Case().network(), **options)


def test_an_optimizer_is_of_a_network() -> None:
    with pytest.raises(TypeError, match=r"rnn must be an RNN.*dict"):
        cf.optim.Adam(_copies(Case().network()))


@pytest.mark.host("others give copies")
def test_an_optimizer_keeps_its_network_alive() -> None:
    case = Case(output_size=3)
    net = case.network()
    optimizer, view = cf.optim.SGD(net, lr=1.0), net.W_hy
    before = np.array(view)
    del net
    grads = _gradients(case)
    optimizer.step(grads)
    assert_same_bits("W_hy", view, before - grads["decoder.weight"])


def test_two_optimizers_of_one_network_are_independent() -> None:
    case = Case(output_size=3)
    net = case.network()
    first, second = cf.optim.Adam(net), cf.optim.Adam(net)
    first.step(_gradients(case))
    assert (first._core.num_steps, second._core.num_steps) == (1, 0)
    assert not any(second._core.slot("exp_avg", name).any() for name in case.parameters())


def test_updates_reach_steps_and_samples_at_once() -> None:
    """No packed copy of the weights outlives an update."""
    case = Case("lstm", 2, tokens=True, hidden_size=17, output_size=4)
    net, fresh = case.network(), case.network()
    tokens, seeds = case.x()[0].astype("int32"), np.arange(3, dtype="uint64")

    def sample(of: cf.RNN) -> list[list[int]]:
        return of._core.sample(9, tokens, of.states.zeros(3), seeds, 0, 1.0, 0, 1.0).tolist()  # type: ignore[no-any-return]

    first, sampled = net.step(tokens), sample(net)
    cf.optim.SGD(net, lr=3.0).step(_gradients(case))
    fresh.load_parameters(_copies(net))
    net.reset()
    changed = net.step(tokens)
    assert not np.array_equal(changed, first)
    assert_same_bits("y", changed, fresh.step(tokens))
    assert sample(net) == sample(fresh) != sampled

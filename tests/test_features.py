"""All options of the layers, in the reference and in the kernels.

Gradients by differences, lengths and masks; and the kernels against the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cases import Array, named, parts, rows, wide
from charrnn_fast import reference
from charrnn_fast.reference import Regularization, mask, multipliers, site
from charrnn_fast.reference.cells import CELLS
from features import (
    ALL_UNITS,
    DROPOUTS,
    LSTMS,
    ByKernels,
    ByReference,
    FeatureCase,
    combinations,
    label,
    run,
    single_features,
)
from marks import slow_but
from tolerances import (
    assert_close,
    assert_same_bits,
    finite_difference,
    finite_difference_step,
    network,
)

# Of fourth order, so that the large higher derivatives of layer norm do not count; then a longer
# step leaves less rounding.
STEP = 8 * finite_difference_step("float64")


def _smallest_preactivation(case: FeatureCase) -> float:
    """How near a relu network comes to a kink, in any step that is computed."""
    found, key = [np.inf], ("rnn", "relu")
    if case.unit != "rnn_relu":
        return np.inf
    cell = CELLS[key]

    def recording(gx: Array, gh: Array, prev: Any) -> Any:
        found.append(float(np.abs(gx + gh).min()))
        return cell.forward(gx, gh, prev)

    CELLS[key] = cell._replace(forward=recording)
    try:
        reference.forward(case.parameters(), case.x(), case.state(), **case.options())
    finally:
        CELLS[key] = cell
    return min(found)


def _check_gradients(
    case: FeatureCase, by: type[ByReference] | type[ByKernels] = ByReference
) -> None:
    """Along a random direction of each array that the results depend on."""
    parameters, x, state = case.parameters(), case.x(), case.state()
    dy, dstate = case.dy(), case.dstate()
    network = by(case, parameters)
    y, last = network.forward(x, state)
    grads = dict(named(y, last, *network.backward(dy, dstate)))

    def value() -> float:
        y, last = network.forward(x, state)
        pairs = [(y, dy), *zip(parts(last), parts(dstate), strict=True)]
        return sum(float(np.vdot(a, weight)) for a, weight in pairs)

    arrays = {f"d {name}": p for name, p in parameters.items()}
    arrays |= dict(zip(("dh_0", "dc_0"), parts(state), strict=False))
    if not case.tokens:
        arrays["dx"] = x
    assert set(arrays) == set(grads) - {"y", "h_n", "c_n"}
    rng = np.random.default_rng(case.seed)
    for name, array in arrays.items():
        direction: Array = np.asarray(rng.standard_normal(array.shape))
        direction /= np.linalg.norm(direction)
        kept, values = array.copy(), dict[int, float]()
        for n in (-2, -1, 1, 2):
            array[...] = kept + n * STEP * direction
            values[n] = value()
        array[...] = kept
        near, far = values[1] - values[-1], values[2] - values[-2]
        expected = (8 * near - far) / (12 * STEP)
        found = np.vdot(grads[name], direction)
        assert_close(name, found, expected, finite_difference("float64"))


def _off_kinks(case: FeatureCase) -> FeatureCase:
    moved = (case.but(seed=n) for n in range(200))
    return next(c for c in moved if _smallest_preactivation(c) > 5 * STEP)


BY_KERNELS = [(case, ByKernels) for case in (*single_features(), *combinations())]
BY_REFERENCE = [(case, ByReference) for case in single_features()]


@pytest.mark.parametrize(
    ("case", "by"),
    slow_but(
        [*BY_KERNELS, *BY_REFERENCE],
        [*BY_KERNELS, *BY_REFERENCE, *((case, ByReference) for case in combinations())],
    ),
    ids=lambda value: label(value) if isinstance(value, FeatureCase) else value.__name__,
)
def test_gradients_against_differences(
    case: FeatureCase, by: type[ByReference] | type[ByKernels]
) -> None:
    _check_gradients(_off_kinks(case), by)


_RATES = st.sampled_from((0.0, 0.0, 0.25, 0.5))
_CASES = st.builds(
    FeatureCase,
    unit=st.sampled_from(ALL_UNITS),
    num_layers=st.integers(1, 3),
    bias=st.sampled_from((True, "single", False)),
    dtype=st.just("float64"),
    seq_len=st.integers(0, 5),
    batch=st.integers(1, 5),
    input_size=st.integers(3, 6),
    hidden_size=st.integers(3, 7),
    output_size=st.sampled_from((None, 2)),
    tokens=st.booleans(),
    seed=st.integers(0, 2**16),
    bidirectional=st.booleans(),
    proj_size=st.sampled_from((0, 0, 3)),
    layer_norm=st.booleans(),
    ragged=st.booleans(),
    regularization=st.builds(
        Regularization,
        _RATES,
        _RATES,
        _RATES,
        _RATES,
        variational=st.booleans(),
        weight_drop=_RATES,
        zoneout=st.tuples(_RATES, _RATES),
    ),
    mask_seed=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
)


@pytest.mark.slow
@settings(max_examples=30)
@given(case=_CASES)
def test_gradients_of_any_combination(case: FeatureCase) -> None:
    if case.unit not in LSTMS:
        case = case.but(proj_size=0)
    if case.proj_size:
        zoneout = (0.0, case.regularization.zoneout[1])
        case = case.but(regularization=case.regularization._replace(zoneout=zoneout))
    # normalizing what is dropped or weightless to nothing, or nearly, has no small derivatives
    if case.layer_norm:
        case = case.but(bias=True, hidden_size=7, input_size=6)
    assume(_smallest_preactivation(case) > 5 * STEP)
    for by in (ByReference, ByKernels):
        _check_gradients(case, by)


@pytest.mark.parametrize("case", [c for c in combinations() if not c.tokens], ids=label)
def test_float32_is_float64_rounded(case: FeatureCase) -> None:
    case = case.but(dtype="float32", layer_norm=False)
    parameters = case.parameters()
    found = run(parameters, case)
    exact, options = wide(parameters), case.options()
    y, state, cache = reference.forward(exact, wide(case.x()), wide(case.state()), **options)
    results = reference.backward(exact, cache, wide(case.dy()), wide(case.dstate()))
    for name, value in named(y, state, *results):
        assert found[name].dtype == np.float32, name
        assert_close(name, found[name], value, case.tolerance)


def test_parameters() -> None:
    """Names in their order, shapes, and what they start as."""
    parameters = reference.init_parameters(
        3,
        8,
        7,
        cell="peephole_lstm",
        num_layers=2,
        bidirectional=True,
        proj_size=2,
        layer_norm=True,
        dtype="float64",
    )
    shapes = {name: p.shape for name, p in parameters.items()}
    expected = dict[str, tuple[int, ...]]()
    for k, suffix in [(0, "_l0"), (0, "_l0_reverse"), (1, "_l1"), (1, "_l1_reverse")]:
        expected |= {
            f"weight_ih{suffix}": (32, 4 if k else 3),
            f"weight_hh{suffix}": (32, 2),
            f"bias_ih{suffix}": (32,),
            f"bias_hh{suffix}": (32,),
            f"weight_peephole{suffix}": (3, 8),
            f"gain_ih{suffix}": (32,),
            f"gain_hh{suffix}": (32,),
            f"weight_hr{suffix}": (2, 8),
        }
    expected |= {"decoder.weight": (7, 4), "decoder.bias": (7,)}
    assert list(shapes.items()) == list(expected.items())
    for name, p in parameters.items():
        if name.startswith("gain"):
            assert (p == 1).all()
        else:
            assert 0 < np.abs(p).max() <= 8**-0.5 and np.unique(p).size == p.size
    assert reference.init_parameters(3, 4, cell="coupled_lstm")["weight_hh_l0"].shape == (12, 4)
    with pytest.raises(ValueError, match="proj_size must be 0 with cell='gru', got 2"):
        reference.init_parameters(3, 4, cell="gru", proj_size=2)


def test_initial_state_is_zero() -> None:
    case = FeatureCase("lstm", num_layers=2, bidirectional=True, proj_size=3, seq_len=0)
    y, (h, c), _ = reference.forward(case.parameters(), case.x(), **case.options())
    assert (y.shape, h.shape, c.shape) == ((0, 5, 6), (4, 5, 3), (4, 5, 5))
    assert not h.any() and not c.any() and h.dtype == c.dtype == np.float32


@pytest.mark.parametrize("unit", ALL_UNITS)
def test_the_reverse_direction_is_a_network_on_the_reversed_sequence(unit: str) -> None:
    case = FeatureCase(unit, dtype="float64", bidirectional=True)
    parameters = case.parameters()
    backwards = {
        name.removesuffix("_reverse"): p for name, p in parameters.items() if "reverse" in name
    }
    y, last, _ = reference.forward(parameters, case.x(), case.state(), **case.options())
    first = tuple(s[1:] for s in parts(case.state()))
    expected, end, _ = reference.forward(
        backwards, case.x()[::-1], first if len(first) == 2 else first[0], **case.kind
    )
    np.testing.assert_array_equal(y[..., 5:], expected[::-1])
    for s, t in zip(parts(last), parts(end), strict=True):
        np.testing.assert_array_equal(s[1:], t)


# ---- Lengths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ALL_UNITS)
@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"tokens": True}], ids=str)
def test_a_row_ends_as_if_it_were_alone(unit: str, options: dict[str, Any]) -> None:
    proj_size = 3 if unit in LSTMS else 0
    case = FeatureCase(
        unit,
        num_layers=2,
        dtype="float64",
        output_size=3,
        ragged=True,
        bidirectional=True,
        proj_size=proj_size,
        **options,
    )
    parameters, lengths = case.parameters(), case.lengths()
    assert lengths is not None and {0, case.seq_len} < set(lengths)
    found = run(parameters, case)
    # the rows by themselves, put together again: side by side, gradients of parameters as sums
    together = {name: np.zeros_like(value) for name, value in found.items()}
    for b, n in enumerate(lengths):
        row = slice(b, b + 1)
        x, dy = case.x()[:n, row], case.dy()[:n, row]
        y, last, cache = reference.forward(parameters, x, rows(case.state(), row), **case.kind)
        results = reference.backward(parameters, cache, dy, rows(case.dstate(), row))
        for name, value in named(y, last, *results):
            if name.startswith("d "):
                together[name] += value
            else:
                together[name][: len(value), row] = value
    for name, value in together.items():
        assert_close(name, found[name], value, case.tolerance)


@pytest.mark.parametrize("case", [c for c in combinations() if c.ragged], ids=label)
def test_nothing_past_the_end_is_read(case: FeatureCase) -> None:
    parameters, lengths = case.parameters(), case.lengths()
    assert lengths is not None
    x, dy = case.x(), case.dy()
    expected = run(parameters, case)
    past = np.arange(case.seq_len)[:, None] >= lengths
    dy[past] = np.nan
    x[past] = (x[past] + 1) % case.input_size if case.tokens else np.nan
    y, state, cache = reference.forward(parameters, x, case.state(), **case.options())
    results = reference.backward(parameters, cache, dy, case.dstate())
    for name, value in named(y, state, *results):
        assert_same_bits(name, value, expected[name])


def test_full_lengths_change_nothing() -> None:
    case = FeatureCase("gru", num_layers=2, output_size=3, bidirectional=True)
    parameters, options = case.parameters(), {**case.options(), "lengths": [4] * 5}
    plain = reference.forward(parameters, case.x(), case.state(), **case.options())
    full = reference.forward(parameters, case.x(), case.state(), **options)
    assert_same_bits("y", full[0], plain[0])
    assert_same_bits("h", full[1], plain[1])  # type: ignore[arg-type]


# ---- Masks --------------------------------------------------------------------------------------


def _word(seed: int, c0: int, c1: int, c2: int, c3: int, word: int) -> int:
    """Philox4x32-10 with Python's integers, apart from the one under test."""
    counter, key = [c0, c1, c2, c3], [seed % 2**32, seed >> 32]
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * counter[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * counter[2], 2**32)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter[word]


@given(
    seed=st.integers(0, 2**64 - 1),
    layer=st.integers(0, 99),
    direction=st.integers(0, 1),
    kind=st.integers(0, 5),
    rate=st.floats(0, 1, exclude_max=True),
    time=st.integers(0, 2**32 - 1),
    stream=st.integers(0, 2**32 - 1),
    unit=st.integers(0, 2**20),
)
def test_a_mask_is_what_the_words_say(
    seed: int,
    layer: int,
    direction: int,
    kind: int,
    rate: float,
    time: int,
    stream: int,
    unit: int,
) -> None:
    place = site(kind, layer, direction)
    assert place == (layer * 2 + direction) * 8 + kind
    counter = (unit // 64) * 16 + unit % 16, stream, time, place
    dropped = _word(seed, *counter, (unit % 64) // 16) < int(rate * 2**32)
    found = mask(seed, place, rate, time, stream, unit)
    assert found.shape == () and bool(found) == dropped
    found = mask(seed, place, rate, [[time], [time]], stream, np.array([unit, unit, unit]))
    assert found.shape == (2, 3) and (found == dropped).all()
    assert multipliers(seed, place, rate, time, stream, unit) == (0 if dropped else 1 / (1 - rate))


def _bits(seed: int, place: int, rate: float, time: int, stream: int) -> str:
    packed: Array = np.packbits(mask(seed, place, rate, time, stream, np.arange(128)))
    return packed.tobytes().hex()


def test_known_masks() -> None:
    """The first 128 units of a few masks: the numbers that checkpoints and other code rely on."""
    assert _bits(0, site(reference.INPUT, 0), 0.5, 0, 0) == "a486755a202c77436fd6d47450262008"
    assert (
        _bits(1234, site(reference.RECURRENT, 1, 1), 0.25, 7, 3)
        == "00000d12a0d05101e240102000000125"
    )
    assert (
        _bits(2**64 - 1, site(reference.ZONEOUT_C, 2, 1), 0.1, 49, 1000)
        == "00040800008821000000000000028000"
    )
    assert (
        _bits(0x123456789ABCDEF0, site(reference.OUTPUT, 2), 0.9, 1, 2)
        == "bfff5fdffff4fffeb77e2feffe3bffb5"
    )


def test_kinds_are_numbered_as_specified() -> None:
    kinds = ("INPUT", "RECURRENT", "ZONEOUT_H", "ZONEOUT_C", "WEIGHT_DROP", "OUTPUT")
    assert [getattr(reference, kind) for kind in kinds] == list(range(6))


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.1, 0.5, 0.9])
def test_a_mask_drops_its_rate(rate: float) -> None:
    where = np.arange(20)[:, None, None], np.arange(50)[:, None], np.arange(500)
    dropped = mask(3, site(reference.RECURRENT, 0), rate, *where)
    n = dropped.size
    deviation = np.sqrt(rate * (1 - rate))
    assert abs(dropped.mean() - rate) <= 4 * deviation / np.sqrt(n)
    # and so does each step, each row of the batch and each unit
    for axes in ((1, 2), (0, 2), (0, 1)):
        shares = dropped.mean(axes)
        assert np.abs(shares - rate).max() <= 5 * deviation / np.sqrt(n / shares.size)
    kept = multipliers(3, site(reference.RECURRENT, 0), rate, *where)
    assert abs(kept.mean() - 1) <= 4 * deviation / (1 - rate) / np.sqrt(n)


def test_masks_are_independent() -> None:
    """Of other seeds, sites, steps, streams and of the neighbouring units."""
    time, streams, units = np.arange(30)[:, None, None], np.arange(33)[:, None], np.arange(129)
    place = site(reference.RECURRENT, 1)
    base = mask(5, place, 0.5, time, streams, units)
    others = {
        "seed": mask(6, place, 0.5, time, streams, units),
        "high half of the seed": mask(5 + 2**32, place, 0.5, time, streams, units),
        "site": mask(5, place + 1, 0.5, time, streams, units),
        "direction": mask(5, site(reference.RECURRENT, 1, 1), 0.5, time, streams, units),
        "step": mask(5, place, 0.5, time + 1, streams, units),
        "stream": mask(5, place, 0.5, time, streams + 1, units),
        **{f"unit + {n}": mask(5, place, 0.5, time, streams, units + n) for n in (1, 16, 64)},
    }
    for name, other in others.items():
        agreement = (base == other).mean()
        assert abs(agreement - 0.5) <= 4 * 0.5 / np.sqrt(base.size), name


@pytest.mark.parametrize("unit", ALL_UNITS)
def test_a_row_does_not_depend_on_its_company(unit: str) -> None:
    """Its mask is that of its number in the batch, whoever else is there."""
    case = FeatureCase(
        unit,
        num_layers=2,
        dtype="float64",
        output_size=3,
        bidirectional=True,
        regularization=DROPOUTS._replace(weight_drop=0.2, zoneout=(0.2, 0.2)),
    )
    parameters, options = case.parameters(), case.options()
    y, _, _ = reference.forward(parameters, case.x(), case.state(), **options)
    few = rows(case.state(), slice(0, 2))
    z, _, _ = reference.forward(parameters, case.x()[:, :2], few, **options)
    assert_close("y", z, y[:, :2], case.tolerance)


@pytest.mark.parametrize("unit", ALL_UNITS)
def test_no_mask_seed_no_masks(unit: str) -> None:
    case = FeatureCase(
        unit,
        num_layers=2,
        regularization=DROPOUTS._replace(weight_drop=0.2, variational=True),
        mask_seed=None,
    )
    plain, parameters = case.but(regularization=Regularization()), case.parameters()
    for name, value in run(parameters, case).items():
        assert_same_bits(name, value, run(parameters, plain)[name])
    trained = run(parameters, case.but(mask_seed=0))
    assert np.abs(trained["y"] - run(parameters, plain)["y"]).max() > 0.01


@pytest.mark.parametrize("unit", ALL_UNITS)
def test_zoneout_without_masks_is_their_mean(unit: str) -> None:
    """The average of the first step over many streams, each with masks of its own."""
    streams = 4000
    case = FeatureCase(
        unit,
        seq_len=1,
        batch=1,
        dtype="float64",
        mask_seed=None,
        regularization=Regularization(zoneout=(0.3, 0.1)),
    )
    parameters, options = case.parameters(), case.options()
    _, expected, _ = reference.forward(parameters, case.x(), case.state(), **options)
    x, first = (np.repeat(a, streams, axis=1) for a in (case.x(), np.stack(parts(case.state()))[0]))
    state: Any = first
    if case.num_states == 2:
        state = first, np.repeat(parts(case.state())[1], streams, axis=1)
    _, last, _ = reference.forward(parameters, x, state, **{**options, "mask_seed": 2})
    for s, mean, start in zip(parts(last), parts(expected), parts(case.state()), strict=True):
        assert 0 < (s == start).mean() < 1
        spread = s.std(axis=1) / np.sqrt(streams)
        assert (np.abs(s.mean(axis=1) - mean[:, 0]) <= 4.5 * spread).all()


def test_sampling_takes_the_mean_of_zoneout() -> None:
    case = FeatureCase("lstm", tokens=True, input_size=9, output_size=9)
    parameters, first = case.parameters(), np.array([1, 2, 3])
    rates = Regularization(zoneout=(0.5, 0.5), dropout=0.5)
    drawn, state = reference.sample(
        parameters, 6, first, [5, 6, 7], cell="lstm", regularization=rates, temperature=0
    )
    fed = np.concatenate((first[None], drawn[:-1]))
    y, last, _ = reference.forward(parameters, fed, cell="lstm", regularization=rates)
    np.testing.assert_array_equal(y.argmax(-1), drawn)
    for s, t in zip(parts(state), parts(last), strict=True):
        assert_close("state", s, t, network("float32", terms=14, steps=7))


def test_refuses_what_numpy_would_take() -> None:
    case = FeatureCase("lstm", proj_size=2)
    parameters, x = case.parameters(), case.x()
    for bad in ([1, 2, 3, 4, 5], [-1, 1, 2, 3, 4]):
        message = rf"lengths must be integers in \[0, 5\), got {min(bad)} to {max(bad)}"
        with pytest.raises(ValueError, match=message):
            reference.forward(parameters, x, cell="lstm", lengths=bad)
    rates = Regularization(zoneout=(0.1, 0.0))
    with pytest.raises(ValueError, match=r"zoneout of h must be 0 with a projection, got 0\.1"):
        reference.forward(parameters, x, cell="lstm", regularization=rates)
    for rate in (1.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match=r"the rate of a mask must be in \[0, 1\), got"):
            mask(0, 0, rate, 0, 0, 0)

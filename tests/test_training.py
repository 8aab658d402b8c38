"""The network's own training step: sequences of different lengths, updates from micro-batches, and
its memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
import peak_memory
from cases import Array, parts
from charrnn_fast import _core
from features import ALL_UNITS, DROPOUTS, LSTMS, FeatureCase, label
from tolerances import assert_close, assert_same_bits, eps

CLIPS = (0.5, 0.02)  # by norm, by value
NO_CLIPS = (math.inf, math.inf)


def _cases(**options: Any) -> Iterator[FeatureCase]:
    """Every kind of unit: plain, with masks of every kind, and with the other options."""
    for unit in ALL_UNITS:
        plain = FeatureCase(
            unit,
            num_layers=2,
            tokens=True,
            seq_len=6,
            batch=8,
            input_size=7,
            hidden_size=17,
            output_size=9,
            mask_seed=None,
            **options,
        )
        masks = DROPOUTS._replace(weight_drop=0.3, zoneout=(0.2, 0.3))
        yield plain
        yield plain.but(regularization=masks, mask_seed=11)
        yield plain.but(
            regularization=masks._replace(variational=True, zoneout=(0.0, 0.0)),
            mask_seed=12,
            bidirectional=True,
            layer_norm=True,
            proj_size=5 if unit in LSTMS else 0,
        )


EVERY_KIND = pytest.mark.parametrize(
    "case", [c.but(dtype=d) for d in ("float32", "float64") for c in _cases()], ids=label
)


@dataclass
class Batch:
    """Tokens to train on, as the kernels take them."""

    inputs: Array
    targets: Array
    lengths: Array | None

    @classmethod
    def of(cls, case: FeatureCase) -> Batch:
        lengths = case.lengths()
        return cls(
            case.x().astype(np.int32),
            case.targets().astype(np.int32),
            None if lengths is None else lengths.astype(np.int64),
        )

    def ignored(self) -> Array:
        """The targets with -1 past the ends."""
        if self.lengths is None:
            return self.targets
        beyond = np.arange(len(self.targets))[:, np.newaxis] >= self.lengths
        return np.where(beyond, np.int32(-1), self.targets)

    def streams(self, begin: int, end: int) -> Batch:
        return Batch(
            np.ascontiguousarray(self.inputs[:, begin:end]),
            np.ascontiguousarray(self.targets[:, begin:end]),
            None if self.lengths is None else self.lengths[begin:end].copy(),
        )


def _kernel_state(net: cf.RNN, case: FeatureCase) -> Array:
    state = net._kernel_state("state", case.state(), case.batch)
    assert state is not None
    return state


def _train(
    net: cf.RNN,
    optimizer: cf.optim.Optimizer,
    batch: Batch,
    state: Array,
    *,
    mask_seed: int | None = None,
    lr: float = 0.01,
    clips: tuple[float, float] = NO_CLIPS,
    reduction: str = "mean",
) -> tuple[float, float]:
    result: tuple[float, float] = net._core.train_step(
        batch.inputs,
        batch.targets,
        state,
        optimizer._core,
        lr,
        *clips,
        reduction,
        mask_seed,
        batch.lengths,
    )
    return result


def _accumulate(
    net: cf.RNN,
    batch: Batch,
    state: Array,
    mask_seed: int | None = None,
    streams: Array | None = None,
) -> tuple[float, int, Array]:
    result: tuple[float, int, Array] = net._core.accumulate(
        batch.inputs, batch.targets, state, mask_seed, batch.lengths, streams
    )
    return result


def _copies(net: cf.RNN) -> dict[str, Array]:
    return {name: np.array(value) for name, value in net.parameters().items()}


def _assert_same(found: dict[str, Array], expected: dict[str, Array], when: str = "") -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert_same_bits(f"{name} {when}", found[name], value)


# ---- sequences of different lengths -------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_training_on_lengths_equals_training_by_hand(case: FeatureCase, reduction: str) -> None:
    """forward, cross_entropy, backward, both clips and the optimizer's step, or one call of all."""
    fused, by_hand = case.network(), case.network()
    one, other = cf.optim.Adam(fused), cf.optim.Adam(by_hand, lr=0.01)
    carried, state = _kernel_state(fused, case), case.state()
    for update in range(3):
        batch = Batch.of(case.but(seed=update, ragged=True))
        assert batch.lengths is not None
        batch.lengths = np.roll(batch.lengths, update)
        targets = batch.ignored()
        batch.targets = np.where(targets == batch.targets, targets, np.int32(2**30))  # not read
        mask_seed = None if case.mask_seed is None else case.mask_seed + update
        found = _train(
            fused, one, batch, carried, mask_seed=mask_seed, clips=CLIPS, reduction=reduction
        )
        y, state = by_hand.forward(batch.inputs, state, lengths=batch.lengths, mask_seed=mask_seed)
        loss, dy = cf.cross_entropy(y, targets, reduction)
        _, _, grads = by_hand.backward(dy)
        norm = cf.clip_grad_norm(grads, CLIPS[0])
        cf.clip_grad_value(grads, CLIPS[1])
        other.step(grads)
        assert found == (loss, norm), f"update {update}"
        _assert_same(fused.parameters(), by_hand.parameters(), f"after update {update}")
        for part, expected in zip(fused.states.parts(carried), parts(state), strict=True):
            assert_same_bits(f"state after update {update}", part, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("unit", ALL_UNITS)
def test_evaluating_lengths_equals_evaluating_by_hand(unit: str, dtype: str) -> None:
    case = FeatureCase(unit, 2, dtype=dtype, tokens=True, batch=9, output_size=7, ragged=True)
    net, batch = case.network(), Batch.of(case)
    state = _kernel_state(net, case)
    loss, count = net._core.evaluate(batch.inputs, batch.targets, state, batch.lengths)
    y, last = net.forward(batch.inputs, case.state(), lengths=batch.lengths)
    assert count == (batch.ignored() >= 0).sum()
    assert loss == cf.cross_entropy(y, batch.ignored(), "sum")[0]
    for part, expected in zip(net.states.parts(state), parts(last), strict=True):
        assert_same_bits("state", part, expected)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("unit", ALL_UNITS)
def test_the_losses_of_streams_are_those_of_each_alone(unit: str, ragged: bool) -> None:
    case = FeatureCase(unit, 2, tokens=True, batch=9, output_size=7, ragged=ragged)
    net, batch = case.network(), Batch.of(case)
    state, start = _kernel_state(net, case), net.states.parts(_kernel_state(net, case))
    losses = net._core.stream_losses(batch.inputs, batch.targets, state, batch.lengths)
    ends = np.full(9, case.seq_len) if batch.lengths is None else batch.lengths
    for b, end in enumerate(ends):
        alone = net.states.joined([part[:, b : b + 1] for part in start])
        stream = (np.ascontiguousarray(x[:end, b : b + 1]) for x in (batch.inputs, batch.targets))
        loss, _ = net._core.evaluate(*stream, alone)
        assert losses[b] == loss
        for part, expected in zip(net.states.parts(state), net.states.parts(alone), strict=True):
            assert_same_bits("state", part[:, b : b + 1], expected)


@EVERY_KIND
def test_reading_is_a_forward_without_its_output(case: FeatureCase) -> None:
    net = case.network()
    state, tokens = _kernel_state(net, case), Batch.of(case).inputs
    _, expected = net._core.forward(tokens, state, False)
    net._core.read(tokens, state)
    assert_same_bits("state", state, expected)


@EVERY_KIND
def test_lengths_of_all_steps_change_nothing(case: FeatureCase) -> None:
    nets = case.network(), case.network()
    states = [_kernel_state(net, case) for net in nets]
    batch = Batch.of(case)
    whole = Batch(batch.inputs, batch.targets, np.full(case.batch, case.seq_len))
    results = [
        _train(net, cf.optim.Adam(net), b, state, mask_seed=case.mask_seed)
        for net, b, state in zip(nets, (batch, whole), states, strict=True)
    ]
    assert results[0] == results[1]
    _assert_same(nets[1].parameters(), dict(nets[0].parameters()))
    assert_same_bits("state", states[1], states[0])


def test_more_padding_changes_nothing() -> None:
    case = FeatureCase("gru", 2, tokens=True, seq_len=6, batch=9, output_size=7, ragged=True)
    batch = Batch.of(case)
    padding = np.zeros((20, case.batch), np.int32)
    padded = Batch(
        np.concatenate([batch.inputs, padding]),
        np.concatenate([batch.targets, padding]),
        batch.lengths,
    )
    found = []
    for b in (batch, padded):
        net = case.network()
        state = _kernel_state(net, case)
        result = _train(net, cf.optim.Adam(net), b, state)
        found.append((result, _copies(net), state))
    assert found[0][0] == found[1][0]
    _assert_same(found[1][1], found[0][1])
    assert_same_bits("state", found[1][2], found[0][2])


def test_sequences_without_any_step() -> None:
    """They keep their states; where there are no others there is nothing to learn."""
    case = FeatureCase("lstm", tokens=True, batch=4, output_size=7)
    net, batch = case.network(), Batch.of(case)
    batch.lengths = np.zeros(4, np.int64)
    state, before = _kernel_state(net, case), _copies(net)
    expected = state.copy()
    assert _train(net, cf.optim.SGD(net), batch, state) == (0.0, 0.0)
    assert net._core.evaluate(batch.inputs, batch.targets, state, batch.lengths) == (0.0, 0)
    loss, count, after = _accumulate(net, batch, state)
    assert (loss, count) == (0.0, 0)
    _assert_same(net.parameters(), before)
    assert_same_bits("state", state, expected)
    assert_same_bits("state", after, expected)


def test_lengths_and_a_loss_that_is_not_finite_change_nothing() -> None:
    case = FeatureCase("lstm", tokens=True, output_size=7, ragged=True)
    net, batch, state = case.network(), Batch.of(case), case.network().states.zeros(case.batch)
    optimizer, before = cf.optim.Adam(net), _copies(net)
    state[:, :, 1] = np.nan  # of a row with all its steps
    kept = state.copy()
    loss, norm = _train(net, optimizer, batch, state)
    assert math.isnan(loss) and math.isnan(norm)
    _assert_same(net.parameters(), before)
    assert_same_bits("state", state, kept)
    assert optimizer._core.num_steps == 0


@pytest.mark.host("its threads")
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("unit", ["gru", "lstm"])
def test_training_is_the_same_on_any_number_of_threads(unit: str) -> None:
    """One batch with lengths, then another in two parts."""

    def results(case: FeatureCase) -> dict[str, Array]:
        net = case.network()
        optimizer = cf.optim.Adam(net)
        batch, state = Batch.of(case), _kernel_state(net, case)
        first = _train(net, optimizer, batch, state, mask_seed=5)
        half = case.batch // 2
        for begin, end in ((0, half), (half, case.batch)):
            part = batch.streams(begin, end)
            _accumulate(net, part, net.states.zeros(end - begin), mask_seed=6)
        second = net._core.update(optimizer._core, 0.01, *CLIPS, "mean")
        return {**_copies(net), "state": state, "results": np.array([first, second])}

    masks = DROPOUTS._replace(weight_drop=0.3)
    for batch, hidden_size in ((23, 35), (2, 150)):
        case = FeatureCase(
            unit,
            num_layers=2,
            tokens=True,
            seq_len=6,
            batch=batch,
            hidden_size=hidden_size,
            output_size=9,
            ragged=True,
            regularization=masks,
        )
        cf.set_num_threads(1)
        expected = results(case)
        for n in (2, 3, 7):
            cf.set_num_threads(n)
            before = _core.pool_teams()
            _assert_same(results(case), expected, f"on {n} threads")
            assert _core.pool_teams() > before, "the work was not shared"


# ---- a batch in parts ---------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_parts_add_up_to_the_whole_batch(case: FeatureCase, reduction: str, ragged: bool) -> None:
    """Masks and all. Sums of the same terms in another order; states are the same bits.

    SGD at a rate of 1 shows the gradients themselves; one of mean losses is divided as a whole, and
    in the batch term by term: one rounding more of each.
    """
    case = case.but(ragged=ragged)
    whole, in_parts, batch = case.network(), case.network(), Batch.of(case)
    carried, state = _kernel_state(whole, case), case.state()
    loss, norm = _train(
        whole,
        cf.optim.SGD(whole),
        batch,
        carried,
        mask_seed=case.mask_seed,
        lr=1.0,
        reduction=reduction,
    )
    optimizer = cf.optim.SGD(in_parts)
    counts, sums = [], []
    for begin, end in ((0, 3), (3, 4), (4, 8)):
        rows = tuple(np.ascontiguousarray(s[:, begin:end]) for s in parts(state))
        given = in_parts.states.joined(rows)
        kept = given.copy()
        part_sum, count, after = _accumulate(
            in_parts, batch.streams(begin, end), given, case.mask_seed
        )
        assert_same_bits("state given", given, kept)
        for found, expected in zip(
            in_parts.states.parts(after), whole.states.parts(carried), strict=True
        ):
            assert_same_bits("state", found, np.ascontiguousarray(expected[:, begin:end]))
        sums.append(part_sum)
        counts.append(count)
    found_loss, found_norm = in_parts._core.update(optimizer._core, 1.0, *NO_CLIPS, reduction)
    total = sum(counts)
    assert total == (batch.ignored() >= 0).sum()
    by = total if reduction == "mean" else 1
    assert_close("loss", found_loss, sum(sums) / by, eps("float64"))
    assert_close("loss", found_loss, loss, eps("float64") * math.sqrt(case.seq_len * case.batch))
    assert_close("norm", found_norm, norm, case.tolerance)
    for name, value in whole.parameters().items():
        assert_close(name, in_parts.parameters()[name], value, case.tolerance)


@EVERY_KIND
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_processes_add_up_to_the_whole_batch(
    case: FeatureCase, reduction: str, ragged: bool
) -> None:
    """Each has some of the streams, in any order, and draws the masks of their numbers; tolerances
    as for parts.
    """
    case = case.but(ragged=ragged)
    whole, batch = case.network(), Batch.of(case)
    carried, state = _kernel_state(whole, case), case.state()
    options: dict[str, Any] = {"mask_seed": case.mask_seed, "lr": 1.0, "reduction": reduction}
    loss, norm = _train(whole, cf.optim.SGD(whole), batch, carried, **options)
    processes = []
    for streams in ([4, 2, 0], [1], [3, 7, 6, 5]):
        net = case.network()
        mine = Batch(
            np.ascontiguousarray(batch.inputs[:, streams]),
            np.ascontiguousarray(batch.targets[:, streams]),
            None if batch.lengths is None else batch.lengths[streams],
        )
        given = net.states.joined([np.ascontiguousarray(s[:, streams]) for s in parts(state)])
        loss_sum, count, after = _accumulate(net, mine, given, case.mask_seed, np.array(streams))
        for found, expected in zip(
            net.states.parts(after), whole.states.parts(carried), strict=True
        ):
            assert_same_bits("state", found, np.ascontiguousarray(expected[:, streams]))
        gradient, *losses = net._core.accumulated()
        assert losses == [loss_sum, count]
        processes.append((net, gradient, losses))
    total = sum(gradient for _, gradient, _ in processes)
    loss_sum, count = np.sum([losses for *_, losses in processes], axis=0)
    results = []
    for net, gradient, _ in processes:
        gradient[...] = total
        net._core.set_accumulated(loss_sum, int(count), gradient)
        optimizer = cf.optim.SGD(net)
        results.append(net._core.update(optimizer._core, 1.0, *NO_CLIPS, reduction))
        _assert_same(net.parameters(), dict(processes[0][0].parameters()), "of another process")
    assert len(set(results)) == 1
    found_loss, found_norm = results[0]
    assert_close("loss", found_loss, loss, eps("float64") * math.sqrt(case.seq_len * case.batch))
    assert_close("norm", found_norm, norm, case.tolerance)
    for name, value in whole.parameters().items():
        assert_close(name, processes[0][0].parameters()[name], value, case.tolerance)


@EVERY_KIND
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_batch_in_one_part_is_a_training_step(case: FeatureCase, reduction: str) -> None:
    """The same bits, also of the mean where the number of targets is a power of two."""
    once, in_one = case.network(), case.network()
    one, other = cf.optim.Adam(once), cf.optim.Adam(in_one)
    state = _kernel_state(once, case)
    for update in range(3):
        batch = Batch.of(case.but(seed=update))
        batch.targets[4:] = -1
        batch.targets[:4] = np.abs(batch.targets[:4])
        assert (batch.targets >= 0).sum() == 32
        *_, after = _accumulate(in_one, batch, state, case.mask_seed)
        found = in_one._core.update(other._core, 0.01, *CLIPS, reduction)
        options: dict[str, Any] = {"clips": CLIPS, "reduction": reduction}
        assert found == _train(once, one, batch, state, mask_seed=case.mask_seed, **options)
        _assert_same(in_one.parameters(), dict(once.parameters()), f"after update {update}")
        assert_same_bits("state", after, state)


def test_clipping_sees_the_mean_gradient_of_all_parts() -> None:
    case = FeatureCase("lstm", tokens=True, seq_len=8, batch=8, output_size=7)
    batch = Batch.of(case)
    for clips in ((0.1, math.inf), (math.inf, 1e-3)):
        net = case.network()
        optimizer, before = cf.optim.SGD(net), _copies(net)
        for begin in (0, 4):
            _accumulate(net, batch.streams(begin, begin + 4), net.states.zeros(4))
        _, norm = net._core.update(optimizer._core, 1.0, *clips, "mean")
        steps = [before[name] - value for name, value in net.parameters().items()]
        if clips[0] < math.inf:
            assert norm > 0.1
            moved = math.sqrt(sum(float(np.square(s, dtype="float64").sum()) for s in steps))
            assert moved == pytest.approx(0.1, rel=1e-4)
        else:
            largest = max(float(np.abs(s).max()) for s in steps)
            assert largest == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("what", ["nan", "overflow"])
def test_parts_that_are_not_finite_change_nothing(what: str) -> None:
    case = FeatureCase("lstm", tokens=True, input_size=5, output_size=5)
    net = case.network()
    optimizer, damaged = cf.optim.Adam(net), _copies(net)
    if what == "nan":
        damaged["weight_hh_l0"][3, 2] = np.nan
    else:
        damaged["decoder.bias"][::2] = 3e38  # the loss of the other tokens is beyond float32
        damaged["decoder.bias"][1::2] = -3e38
    net.load_parameters(damaged)
    batch, before = Batch.of(case), _copies(net)
    for begin, end in ((0, 2), (2, 5)):
        _accumulate(net, batch.streams(begin, end), net.states.zeros(end - begin))
    loss, norm = net._core.update(optimizer._core, 1e-3, *NO_CLIPS, "mean")
    assert not (math.isfinite(loss) and math.isfinite(norm))
    _assert_same(net.parameters(), before)
    assert optimizer._core.num_steps == 0
    with pytest.raises(ValueError, match="update must follow accumulate"):
        net._core.update(optimizer._core, 1e-3, *NO_CLIPS, "mean")


def _prepared() -> tuple[cf.RNN, cf.optim.Optimizer, Batch, Array]:
    case = FeatureCase("gru", 2, tokens=True, input_size=7, output_size=7)
    net = case.network()
    return net, cf.optim.SGD(net, lr=0.1), Batch.of(case), net.states.zeros(case.batch)


def test_other_calls_between_parts_change_nothing() -> None:
    found = []
    for between in (False, True):
        net, optimizer, batch, state = _prepared()
        for _ in range(2):
            _accumulate(net, batch, state)
            if between:
                net._core.evaluate(batch.inputs, batch.targets, state.copy())
                net.forward(batch.inputs, lengths=[1, 2, 0, 1, 3])
                net.backward(None)
                net.step(batch.inputs[0])
                seeds = np.zeros(5, "uint64")
                net._core.sample(4, batch.inputs[0], state.copy(), seeds, 0, 1.0, 0, 1.0)
                with pytest.raises(ValueError, match=r"targets\[0, 0\] must be in .*, got 99"):
                    _accumulate(net, Batch(batch.inputs, batch.targets * 0 + 99, None), state)
        result = net._core.update(optimizer._core, 0.1, *NO_CLIPS, "mean")
        found.append((result, _copies(net)))
    assert found[0][0] == found[1][0]
    _assert_same(found[1][1], found[0][1])


def test_what_drops_the_accumulated_gradients() -> None:
    net, optimizer, batch, state = _prepared()
    net.forward(batch.inputs)
    _, _, grads = net.backward(None, np.ones((2, 5, net.hidden_size), "float32"))
    calls: dict[str, Callable[[], Any]] = {
        "nothing accumulated": lambda: net._core.clear_gradients(),
        "an update": lambda: net._core.update(optimizer._core, 0.1, *NO_CLIPS, "mean"),
        "a training step": lambda: _train(net, optimizer, batch, state),
        "one that is not finite": lambda: _train(net, optimizer, batch, state + np.float32("nan")),
        "an optimizer's step": lambda: optimizer.step(grads),
        "loaded parameters": lambda: net.load_parameters(_copies(net)),
    }
    for call in calls.values():
        _accumulate(net, batch, state)
        call()
        before = _copies(net)
        with pytest.raises(ValueError, match="update must follow accumulate"):
            net._core.update(optimizer._core, 0.1, *NO_CLIPS, "mean")
        with pytest.raises(ValueError, match=r"^accumulated must follow accumulate"):
            net._core.accumulated()
        with pytest.raises(ValueError, match="set_accumulated must follow accumulate"):
            net._core.set_accumulated(1.0, 1)
        _assert_same(net.parameters(), before)


@pytest.mark.host("others give copies")
def test_accumulated_gradients_are_a_view() -> None:
    """It outlives the network's other calls and the network itself."""
    net, optimizer, batch, state = _prepared()
    _accumulate(net, batch, state)
    view, *_ = net._core.accumulated()
    again, *_ = net._core.accumulated()
    assert np.shares_memory(view, again)
    assert view.dtype == net.dtype and view.flags.writeable
    assert np.abs(view).max() > 0
    view[...] = 0
    before = _copies(net)
    net._core.update(optimizer._core, 0.1, *NO_CLIPS, "mean")
    _assert_same(net.parameters(), before)
    del net, optimizer
    assert not view.any()


def test_gradients_that_were_dropped_are_not_in_the_next_sum() -> None:
    found = []
    for dropped in (False, True):
        net, optimizer, batch, state = _prepared()
        if dropped:
            _accumulate(net, Batch.of(FeatureCase(tokens=True, seed=9)), state)
            net._core.clear_gradients()
        _accumulate(net, batch, state)
        result = net._core.update(optimizer._core, 0.1, *NO_CLIPS, "mean")
        found.append((result, _copies(net)))
    assert found[0][0] == found[1][0]
    _assert_same(found[1][1], found[0][1])


def test_what_the_training_calls_refuse() -> None:
    net, optimizer, batch, state = _prepared()
    before, zero = _copies(net), state.copy()
    other = cf.optim.SGD(cf.RNN(7, 5, 7, cell="gru"))._core
    good = (batch.inputs, batch.targets, state)
    fits = np.array([4, 0, 1, 2, 3])
    wrong: list[tuple[Any, type[Exception], str]] = [
        (fits[:4], ValueError, r"lengths must have shape \[5\], got \[4\]"),
        (fits.astype("int32"), TypeError, "lengths must have dtype int64, got int32"),
        (fits.tolist(), TypeError, "lengths must be a NumPy array of int64, got list"),
        (fits + 1, ValueError, r"lengths\[0\] must be in 0 to 4, got 5"),
        (fits - 1, ValueError, r"lengths\[1\] must be in 0 to 4, got -1"),
    ]
    _accumulate(net, batch, state, 3)
    for lengths, error, message in wrong:
        calls: list[Callable[[Any], Any]] = [
            lambda lengths: net._core.train_step(
                *good, optimizer._core, 0.1, *NO_CLIPS, "mean", None, lengths
            ),
            lambda lengths: net._core.accumulate(*good, 3, lengths),
            lambda lengths: net._core.evaluate(*good, lengths),
            lambda lengths: net._core.memory(4, 5, True, lengths),
        ]
        for call in calls:
            with pytest.raises(error, match=message):
                call(lengths)
    with pytest.raises(
        ValueError, match="mask_seed must be that of the other micro-batches, 3, got 4"
    ):
        _accumulate(net, batch, state, 4)
    with pytest.raises(
        ValueError, match="mask_seed must be that of the other micro-batches, 3, got none"
    ):
        _accumulate(net, batch, state)
    for streams, error, message in (
        (fits[:4], ValueError, r"streams must have shape \[5\], got \[4\]"),
        (fits.astype("int32"), TypeError, "streams must have dtype int64, got int32"),
        (fits - 1, ValueError, r"streams\[1\] must be in 0 to 4294967295, got -1"),
        (fits << 30, ValueError, r"streams\[0\] must be in 0 to 4294967295, got 4294967296"),
    ):
        with pytest.raises(error, match=message):
            _accumulate(net, batch, state, 3, streams)
    with pytest.raises(ValueError, match="count must be >= 0, got -1"):
        net._core.set_accumulated(1.0, -1)
    with pytest.raises(ValueError, match="optimizer must be made for this network"):
        net._core.update(other, 0.1, *NO_CLIPS, "mean")
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'max'"):
        net._core.update(optimizer._core, 0.1, *NO_CLIPS, "max")
    state.flags.writeable = False
    with pytest.raises(ValueError, match="state must be writable"):
        _train(net, optimizer, batch, state)
    _assert_same(net.parameters(), before)
    assert_same_bits("state", state, zero)
    # all of them left the sum as it was
    assert net._core.update(optimizer._core, 0.1, *NO_CLIPS, "mean")[0] > 0


# ---- memory -------------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("batch", [2, 8])
def test_memory_is_known_before_it_is_taken(case: FeatureCase, batch: int, ragged: bool) -> None:
    """To the byte: for few streams the weights are not packed for backward, for more they are."""
    case = case.but(batch=batch, ragged=ragged)
    net, data = case.network(), Batch.of(case)
    bare = net._core.held_memory
    size = case.seq_len, case.batch
    training = net._core.memory(*size, lengths=data.lengths)
    evaluation = net._core.memory(*size, training=False, lengths=data.lengths)
    assert net._core.held_memory == bare  # nothing was taken for the answer
    assert bare < evaluation < training
    if not case.bidirectional:
        other = case.network()
        other._core.evaluate(data.inputs, data.targets, other.states.zeros(batch), data.lengths)
        assert other._core.held_memory == evaluation
    for _ in range(2):
        _train(net, cf.optim.SGD(net), data, net.states.zeros(batch), mask_seed=case.mask_seed)
        assert net._core.held_memory == training


def _train_and_draw(
    vocab_size: int,
    hidden_size: int,
    draw: Callable[[cf.CharLM], object] = lambda model: model.sample(2),
) -> tuple[int, int, int]:
    """Bytes held after an update, after a text drawn from it, and after one update more."""
    vocabulary = cf.Vocabulary.from_text("".join(map(chr, range(0x10000, 0x10000 + vocab_size))))
    model = cf.CharLM(vocabulary, hidden_size, num_layers=1)
    trainer = cf.Trainer(model, None, batch_size=1, seq_len=1)
    tokens, held = np.zeros((1, 1), np.int32), []
    for work in (trainer.step, lambda *_: draw(model), trainer.step):
        work(tokens, tokens)
        held.append(model.rnn._core.held_memory)
    return held[0], held[1], held[2]


def test_training_frees_what_a_text_was_drawn_by() -> None:
    decoder = 4 * 50 * 40
    trained, drawn, trained_again = _train_and_draw(50, 40)
    assert drawn - trained >= decoder  # a copy is kept for the next text
    assert drawn - trained_again >= decoder


_ALIKE = pytest.mark.unsanitized("half a minute for the accesses of the first of these")


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [
        lambda model: model.sample(2),
        pytest.param(lambda model: model.beam_search(2, beam=1), marks=_ALIKE),
        pytest.param(lambda model: model.next_probabilities(), marks=_ALIKE),
    ],
    ids=["sample", "beam_search", "next_probabilities"],
)
def test_a_large_decoder_has_no_copy_after_a_text_is_drawn(
    draw: Callable[[cf.CharLM], object],
) -> None:
    V, H = 70_000, 128
    trained, drawn, trained_again = _train_and_draw(V, H, draw)
    assert drawn - trained < 4 * V * 3  # logits and the scratch of a draw
    assert trained_again == drawn


def test_memory_of_optimizers_is_known_before_it_is_taken() -> None:
    net = cf.RNN(5, 30, 5)
    for rule, hyper, slots in (
        ("sgd", {}, 0),
        ("sgd", {"momentum": 0.9}, 1),
        ("rmsprop", {"momentum": 0.9, "centered": 1.0}, 3),
        ("adam", {}, 2),
    ):
        expected = _core.OptimizerFloat32.memory(rule, net._core, hyper)
        optimizer = _core.OptimizerFloat32(rule, net._core, hyper)
        assert optimizer.held_memory == expected
        assert slots * 4 * net._core.num_parameters <= expected <= slots * net._core.held_memory
    with pytest.raises(ValueError, match=r"optimizer must be one of .*got 'lion'"):
        _core.OptimizerFloat32.memory("lion", net._core, {})


def test_memory_of_batches_beyond_all_bounds() -> None:
    net = cf.RNN(5, 30, 5, cell="lstm")
    tape = 4 * 30 * (7 + 4 + 1)  # h, c and five values more, the gates, dh
    rows = 10**6 * 10**6
    assert net._core.memory(10**6, 10**6) == pytest.approx(tape * rows, rel=0.2)
    for size in ((2**62, 2**62), (2**40, 2**22)):
        with pytest.raises(
            ValueError, match=r"the batch must fit into memory, got seq_len \d+, batch \d+"
        ):
            net._core.memory(*size)
    with pytest.raises(ValueError, match="batch must be >= 1, got 0"):
        net._core.memory(5, 0)
    with pytest.raises(ValueError, match="seq_len must be >= 0, got -1"):
        net._core.memory(-1, 5)
    with pytest.raises(ValueError, match="output_size of a network with a loss must be >= 1"):
        cf.RNN(5, 30)._core.memory(5, 5)


@pytest.mark.unsanitized("measures memory")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, which Linux has")
def test_the_process_takes_the_memory_that_was_told() -> None:
    peaks = peak_memory.run("train_step", 100, 50, 256, 2, 500)
    assert peaks["train"] == pytest.approx(peaks["told"], rel=0.05)

"""The network on the caller's memory, `_core.NetworkFloat32` and `NetworkFloat64`: the bits of RNN
for every cell and option; tapes and the free list; what it refuses."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from cases import Array, named
from charrnn_fast import _core, reference
from features import ByKernels, FeatureCase, combinations, label, run, single_features
from tolerances import assert_same_bits

BIASES = {True: "double", "single": "single", False: "none"}
Call = dict[str, Any]


@pytest.fixture
def own_limit() -> Any:
    """The free list is empty; its limit is set back."""
    before = _core.set_free_list_limit(0)
    _core.set_free_list_limit(before)
    yield
    _core.set_free_list_limit(before)


def address(array: Array | None) -> int:
    return 0 if array is None else array.ctypes.data


def addresses(arrays: list[Array]) -> list[int]:
    return [address(a) for a in arrays]


def core_network(case: FeatureCase) -> Any:
    rates = case.regularization._asdict()
    h, c = rates.pop("zoneout")
    make: Any = _core.NetworkFloat32 if case.dtype == "float32" else _core.NetworkFloat64
    return make(
        case.kind["cell"],
        case.input_size,
        case.hidden_size,
        case.output_size or 0,
        case.num_layers,
        BIASES[case.bias],
        case.bidirectional,
        case.proj_size,
        case.layer_norm,
        rates | {"zoneout_h": h, "zoneout_c": c if case.num_states == 2 else 0.0},
        case.kind["nonlinearity"],
    )


class ByNetwork:
    """A case's network as an adapter calls it, every array apart: rows sorted and unsorted here."""

    def __init__(self, case: FeatureCase, parameters: dict[str, Array]) -> None:
        self.core, self.case = core_network(case), case
        assert {n: a.shape for n, a in parameters.items()} == self.core.parameter_shapes()
        self.names = list(parameters)
        self.parameters = [np.ascontiguousarray(a) for a in parameters.values()]

    def empty(self, *shape: int) -> Array:
        return np.full(shape, np.nan, self.case.dtype)

    def sort(self, array: Array, rows: bool = True) -> Array:
        if self.case.lengths() is None:
            return np.ascontiguousarray(array)
        order = self.rows if rows else self.order
        flat = array.reshape(-1, *array.shape[2:]) if rows else array
        return np.ascontiguousarray(flat[order] if rows else flat[:, order])

    def unsort(self, array: Array, like: tuple[int, ...]) -> Array:
        if self.case.lengths() is None:
            return array.reshape(like)
        full = np.zeros((like[0] * like[1], *like[2:]), array.dtype)
        full[self.rows] = array.reshape(len(self.rows), *like[2:])
        return full.reshape(like)

    def unsort_state(self, states: list[Array]) -> Any:
        if self.case.lengths() is not None:
            states = [s[:, np.argsort(self.order)] for s in states]
        return states[0] if len(states) == 1 else tuple(states)

    def forward(self, x: Array, state: Any, keep: bool = True) -> tuple[Array, Any]:
        case, core = self.case, self.core
        seq_len, batch = x.shape[:2]
        self.options: Call = {"tokens": case.tokens, "mask_seed": case.mask_seed}
        lengths = case.lengths()
        if lengths is not None:
            self.order, self.offsets, self.rows = _core.sorted_rows(
                lengths.astype(np.int64), seq_len
            )
            self.options |= {"offsets": address(self.offsets), "streams": address(self.order)}
        self.x = self.sort(x.astype(np.int32) if case.tokens else x)
        rows = self.x.size // (1 if case.tokens else case.input_size)
        states = [self.sort(s, rows=False) for s in (state if case.num_states == 2 else [state])]
        self.shapes = core.state_shapes(batch)
        assert [s.shape for s in states] == list(self.shapes)
        last = [self.empty(*s) for s in self.shapes]
        self.h = self.empty(rows, core.hidden_width)
        per_row, per_stream, constant = core.tape_size(
            tokens=case.tokens, ragged=lengths is not None, masked=case.mask_seed is not None
        )
        self.tape = core.new_tape(per_row * rows + per_stream * batch + constant)
        assert self.tape.dtype == case.dtype
        self.tape[:] = np.nan  # all of it is written
        core.forward(
            addresses(self.parameters),
            address(self.x),
            seq_len,
            batch,
            addresses(states),
            address(self.h),
            addresses(last),
            address(self.tape) if keep else 0,
            **self.options,
        )
        y, features = self.h, core.hidden_width
        if case.output_size:
            features = case.output_size
            y = self.empty(rows, features)
            core.decode(addresses(self.parameters), address(self.h), rows, address(y))
        return self.unsort(y, (seq_len, batch, features)), self.unsort_state(last)

    def backward(self, dy: Array, dstate: Any) -> Any:
        case, core = self.case, self.core
        seq_len, batch = dy.shape[:2]
        dh = self.sort(dy)
        gradients = [self.empty(*a.shape) for a in self.parameters]
        if case.output_size:
            given, dh = dh, self.empty(*self.h.shape)
            core.decode_backward(
                addresses(self.parameters),
                address(self.h),
                address(given),
                len(self.h),
                address(dh),
                addresses(gradients),
            )
        dlast = [self.sort(s, rows=False) for s in (dstate if case.num_states == 2 else [dstate])]
        dfirst = [self.empty(*s) for s in self.shapes]
        dx = None if case.tokens else self.empty(*self.x.shape)
        core.backward(
            addresses(self.parameters),
            address(self.x),
            seq_len,
            batch,
            address(self.tape),
            address(dh),
            addresses(dlast),
            address(dx),
            addresses(dfirst),
            addresses(gradients),
            **self.options,
        )
        if dx is not None:
            dx = self.unsort(dx, (seq_len, batch, case.input_size))
        return dx, self.unsort_state(dfirst), dict(zip(self.names, gradients, strict=True))


def of_forward(y: Array, state: Any) -> dict[str, Array]:
    states = state if isinstance(state, tuple) else (state,)
    return {"y": y} | dict(zip(("h_n", "c_n"), states, strict=False))


def same(found: dict[str, Array], expected: dict[str, Array], when: str) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert_same_bits(f"{name} {when}", found[name], value)


@pytest.mark.parametrize("case", [*single_features(), *combinations()], ids=label)
def test_the_bits_of_rnn(case: FeatureCase) -> None:
    """Also of one stream, of rows that fill vectors and of those that do not."""
    for changes in ({}, {"batch": 1, "hidden_size": 16, "input_size": 3, "proj_size": 8}):
        if not case.proj_size:
            changes.pop("proj_size", None)
        for dtype in ("float32", "float64"):
            this = case.but(dtype=dtype, **changes)
            parameters = this.parameters()
            found = run(parameters, this, ByNetwork)
            same(found, run(parameters, this, ByKernels), f"of {dtype} {changes}")


@pytest.mark.parametrize("case", [*combinations()], ids=label)
def test_the_tape(case: FeatureCase) -> None:
    """Equal calls write equal bytes; backward only reads it, any number of times; forward gives the
    same without one."""
    network = ByNetwork(case, case.parameters())
    expected = network.forward(case.x(), case.state())
    tape, before = network.tape, network.tape.tobytes()
    assert np.isfinite(tape).all()
    first = dict(named(*expected, *network.backward(case.dy(), case.dstate())))
    same(dict(named(*expected, *network.backward(case.dy(), case.dstate()))), first, "once more")
    assert tape.tobytes() == before
    for keep in (True, False):
        found = network.forward(case.x(), case.state(), keep)
        assert network.tape is not tape
        same(of_forward(*found), of_forward(*expected), f"with keep={keep}")
        assert not keep or network.tape.tobytes() == before


def test_weights_packed_before() -> None:
    """As an adapter that freezes them does; for tokens there is a table of them."""
    for tokens in (False, True):
        case = FeatureCase("lstm", num_layers=2, tokens=tokens, batch=9)
        network = ByNetwork(case, case.parameters())
        expected = network.forward(case.x(), case.state())
        dexpected = network.backward(case.dy(), case.dstate())[2]
        copies = []
        for name in ("forward", "forward_tokens" if tokens else "forward_dense"):
            copies.append(network.empty(network.core.packed_elements(name)))
            network.core.pack(name, addresses(network.parameters), address(copies[-1]))
        original, forward = network.core, network.core.forward
        network.core = _Bound(original, forward=_with(forward, packed=tuple(addresses(copies))))
        found = network.forward(case.x(), case.state())
        same(of_forward(*found), of_forward(*expected), "of packed weights")
        backs = []
        for name in ("backward", "backward_dense"):
            backs.append(network.empty(original.packed_elements(name)))
            original.pack(name, addresses(network.parameters), address(backs[-1]))
        backward = _with(original.backward, packed=tuple(addresses(backs)))
        network.core = _Bound(original, backward=backward)
        same(network.backward(case.dy(), case.dstate())[2], dexpected, "of packed weights")


def _with(call: Callable[..., Any], **more: Any) -> Callable[..., Any]:
    return lambda *args, **options: call(*args, **options, **more)


class _Bound:
    """A network with some calls replaced."""

    def __init__(self, core: Any, **calls: Any) -> None:
        self._core = core
        vars(self).update(calls)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_head(dtype: str) -> None:
    """The loss in one call: decoder, softmax cross-entropy and their gradients."""
    case = FeatureCase("gru", dtype=dtype, hidden_size=7, output_size=11)
    network = ByNetwork(case, case.parameters())
    network.forward(case.x(), case.state())
    core, h, rows = network.core, network.h, len(network.h)
    given = addresses(network.parameters)
    targets = case.targets().astype(np.int32).reshape(-1)
    logits, losses = network.empty(rows, 11), network.empty(rows)
    core.decode(given, address(h), rows, address(logits))
    loss, dlogits = cf.cross_entropy(logits, targets, "sum")
    dh, dh_head = network.empty(*h.shape), network.empty(*h.shape)
    grads, head = ([network.empty(*a.shape) for a in network.parameters] for _ in range(2))
    core.decode_backward(given, address(h), address(dlogits), rows, address(dh), addresses(grads))
    for scale in (1.0, 0.5):
        core.head(given, address(h), address(targets), rows, scale, address(losses),
                  address(dh_head), addresses(head))  # fmt: skip
        assert losses.astype(float).sum() == pytest.approx(loss, rel=1e-12)
        assert_same_bits("dh", dh_head, np.multiply(dh, scale, dtype=dtype))
        for name, found, wanted in zip(network.names, head, grads, strict=True):
            if name.startswith("decoder."):
                assert_same_bits(name, found, np.multiply(wanted, scale, dtype=dtype))
            else:
                assert np.isnan(found).all(), f"{name} is not the decoder's"
    alone = network.empty(rows)
    core.head(given, address(h), address(targets), rows, 1.0, address(alone))
    assert_same_bits("losses alone", alone, losses)


def test_states_and_gradients_that_are_not_given() -> None:
    """No initial state is zeros, no gradient of y or of a last state is zeros."""
    case = FeatureCase("lstm", batch=3)
    network = ByNetwork(case, case.parameters())
    zeros = tuple(np.zeros_like(s) for s in case.state())
    y, last = network.forward(case.x(), zeros)
    _, _, expected = network.backward(np.zeros_like(case.dy()), (case.dstate()[0], zeros[1]))
    bare, size = network.empty(*network.h.shape), (case.seq_len, case.batch)
    given, x = addresses(network.parameters), address(network.x)
    network.core.forward(given, x, *size, None, address(bare), None, mask_seed=11)
    assert_same_bits("y", bare, y.reshape(bare.shape))
    c = network.empty(*last[1].shape)
    network.core.forward(given, x, *size, [0, 0], address(bare), [0, address(c)], mask_seed=11)
    assert_same_bits("c_n", c, last[1])
    grads = [network.empty(*a.shape) for a in network.parameters]
    dh_n = case.dstate()[0]
    network.core.backward(given, x, *size, address(network.tape), 0, [address(dh_n), 0], 0, None,
                          addresses(grads), mask_seed=11)  # fmt: skip
    same(dict(zip(network.names, grads, strict=True)), expected, "of a zero dy")


def test_nothing_to_read() -> None:
    """Sequences without steps: an empty array may have no address; the state stays."""
    case = FeatureCase("gru", seq_len=0, output_size=3)
    network = ByNetwork(case, case.parameters())
    y, last = network.forward(case.x(), case.state())
    assert y.shape == (0, case.batch, 3)
    assert_same_bits("the state", last, case.state())
    _, dstate, grads = network.backward(case.dy(), case.dstate())
    assert_same_bits("its gradient", dstate, case.dstate())
    assert all((g == 0).all() for g in grads.values())
    core, given = network.core, addresses(network.parameters)
    core.forward(given, 0, 0, case.batch, None, 0, None)
    core.decode(given, 0, 0, 0)


def test_sorted_rows() -> None:
    order, offsets, rows = _core.sorted_rows(np.array([1, 3, 0, 3]), 4)
    assert order.tolist() == [1, 3, 0, 2]
    assert offsets.tolist() == [0, 3, 5, 7, 7]
    assert rows.tolist() == [1, 3, 0, 5, 7, 9, 11]
    for lengths, message in (
        (np.array([2, 5]), r"lengths\[1\] must be in 0 to 4, got 5"),
        (np.array([-1]), r"lengths\[0\] must be in 0 to 4, got -1"),
        (np.zeros((2, 2), int), r"lengths must have shape \[B\], got \[2, 2\]"),
        (np.zeros(0, int), r"lengths must have shape \[B\], got \[0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            _core.sorted_rows(lengths, 4)


class Calls:
    """Valid arguments of each call, to be spoiled one at a time."""

    def __init__(self, **options: Any) -> None:
        case = FeatureCase("lstm", output_size=3, **options)
        network = ByNetwork(case, case.parameters())
        network.forward(case.x(), case.state())
        self.core, self.network = network.core, network
        self.kept: list[Array] = []
        n = network

        def like(array: Array) -> int:
            return self.keep(np.ones_like(array))

        given = addresses(n.parameters)
        states = [like(s) for s in case.state()]
        base: Call = {"x": address(n.x), "seq_len": case.seq_len, "batch": case.batch}
        base |= {"parameters": given, "tokens": case.tokens}
        h, tape, targets = self.keep(n.h), self.keep(n.tape), self.keep(np.ones(20, np.int32))
        head: Call = {"parameters": given, "h": h, "rows": 20}
        out = self.keep(n.empty(20, 5))
        self.arguments: dict[str, Call] = {
            "forward": base | {"state_0": states, "y": h, "state_n": states,
                               "tape": tape},
            "backward": base | {"tape": tape, "dy": h, "dstate_n": states,
                                "dx": 0 if case.tokens else like(n.x), "dstate_0": states,
                                "gradients": [like(a) for a in n.parameters]},
            "decode": head | {"y": out},
            "decode_backward": head | {"dy": h, "dh": out,
                                       "gradients": [like(a) for a in n.parameters]},
            "head": head | {"targets": targets, "scale": 1.0, "losses": out, "dh": 0,
                            "gradients": None},
        }  # fmt: skip

    def keep(self, array: Array) -> int:
        self.kept.append(array)
        return address(array)

    def __call__(self, name: str, **changes: Any) -> None:
        getattr(self.core, name)(**self.arguments[name] | changes)


@pytest.mark.parametrize("name", ["forward", "backward", "decode", "decode_backward", "head"])
def test_addresses_that_cannot_be(name: str) -> None:
    """Refused before any work: nothing is written."""
    calls = Calls()
    calls(name)
    before = [a.tobytes() for a in calls.kept]
    for key, value in calls.arguments[name].items():
        if isinstance(value, list):
            message = rf"{key} must have {len(value)} addresses, got {len(value) - 1}"
            with pytest.raises(ValueError, match=message):
                calls(name, **{key: value[:-1]})
            with pytest.raises(ValueError, match=rf"{key}.* must be aligned to 4 bytes, got addr"):
                calls(name, **{key: [*value[:-1], value[-1] + 2]})
        elif isinstance(value, int) and value > 10**6:
            with pytest.raises(ValueError, match=rf"{key} must be aligned to 4 bytes, got address"):
                calls(name, **{key: value + 1})
        if key in ("parameters", "gradients") and value:
            with pytest.raises(ValueError, match=rf"{key} \(decoder.bias\) must be the address of"):
                calls(name, **{key: [*value[:-1], 0]})
        if key in ("x", "y", "h", "losses", "targets") or (name, key) in (
            ("backward", "tape"),
            ("decode_backward", "dy"),
            ("decode_backward", "dh"),
        ):
            with pytest.raises(ValueError, match=rf"{key} must be the address of an array, got 0"):
                calls(name, **{key: 0})
            with pytest.raises(TypeError, match="incompatible function arguments"):
                calls(name, **{key: -4})
    for key in {"seq_len", "rows"} & calls.arguments[name].keys():
        with pytest.raises(ValueError, match=rf"{key} must be >= 0, got -1"):
            calls(name, **{key: -1})
        with pytest.raises(ValueError, match=rf"the batch must fit into memory, got {key} {2**60}"):
            calls(name, **{key: 2**60})
    assert [a.tobytes() for a in calls.kept] == before


def test_what_else_is_refused() -> None:
    calls, tokens = Calls(), Calls(tokens=True)
    number = np.array([9, 1, 1, 1], np.int32)
    wide = FeatureCase("gru")
    undecoded = ByNetwork(wide, wide.parameters())
    offsets = [np.array(o) for o in ([1, 2, 3, 4, 5], [0, 6, 7, 8, 9], [0, 2, 5, 6, 7])]
    dropping = Calls(regularization=reference.Regularization(weight_drop=0.5))
    gradients = calls.arguments["backward"]["gradients"]
    for call, message in (
        (lambda: calls("forward", batch=0), "batch must be >= 1, got 0"),
        (
            lambda: tokens("forward", x=address(number), seq_len=2, batch=2),
            r"x\[0, 0\] must be in 0 to 3, got 9",
        ),
        (lambda: tokens("backward", dx=8), "dx of tokens must be 0, got an address"),
        (
            lambda: calls("forward", offsets=address(offsets[0])),
            r"offsets\[0\] must be 0, got 1",
        ),
        (
            lambda: calls("forward", offsets=address(offsets[1])),
            "offsets must give step 0 0 to 5 rows, got 6",
        ),
        (
            lambda: calls("backward", offsets=address(offsets[2])),
            "offsets must give step 1 0 to 2 rows, got 3",
        ),
        (
            lambda: dropping("forward", packed=(64, 64), mask_seed=1),
            "packed must be None where weights are dropped, got addresses",
        ),
        (lambda: calls("forward", packed=(0, 64)), r"packed\[0\] must be the address of an array"),
        (
            lambda: calls("head", dh=calls.arguments["decode"]["y"]),
            "dh and gradients must be given together",
        ),
        (lambda: calls("head", gradients=gradients), "dh and gradients must be given together"),
        (
            lambda: calls("head", targets=calls.keep(np.full(20, 3, np.int32))),
            r"targets\[0\] must be in -1 to 2, got 3",
        ),
        (
            lambda: undecoded.core.decode(addresses(undecoded.parameters), 64, 1, 64),
            "output_size of a network with a decoder must be >= 1, got 0",
        ),
        (lambda: calls.core.pack("backwards", [], 64), "packing must be 'forward', .* got 'back"),
        (lambda: calls.core.packed_elements("x"), "packing must be"),
        (lambda: calls.core.new_tape(-1), "elements must be >= 0, got -1"),
        (lambda: calls.core.new_tape(2**62), "elements must fit into memory, got"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_threads_at_once() -> None:
    """A network has no state: calls of several threads give the bits of one."""
    case = FeatureCase("lstm", dtype="float32", seq_len=20, batch=9, hidden_size=33, num_layers=2)
    parameters = case.parameters()
    expected = run(parameters, case, ByNetwork)
    found: list[dict[str, Array]] = []

    def work() -> None:
        for _ in range(5):
            found.append(run(parameters, case, ByNetwork))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    for results in found:
        same(results, expected, "of another thread")


# ---- the free list


def _tape(elements: int) -> Array:
    tape: Array = _core.NetworkFloat32("rnn", 1, 1, 0, 1, "none").new_tape(elements)
    assert tape.shape == (elements,) and tape.flags.writeable
    assert tape.ctypes.data % 64 == 0
    return tape


@pytest.mark.usefixtures("own_limit")
def test_memory_of_a_tape_is_used_again() -> None:
    assert _core.free_list_bytes() == 0
    tape = _tape(10**6)
    place = address(tape)
    view = tape[1:]
    del tape
    assert _core.free_list_bytes() == 0, "a view keeps it"
    del view
    assert _core.free_list_bytes() >= 4 * 10**6
    again = _tape(10**6)
    assert address(again) == place
    assert _core.free_list_bytes() == 0
    del again
    assert address(_tape(9 * 10**5)) == place, "also for somewhat fewer elements"
    assert address(_tape(10**4 * 4)) != place, "but not for far fewer"


@pytest.mark.usefixtures("own_limit")
def test_the_free_list_is_bounded() -> None:
    _core.set_free_list_limit(10**7)
    tapes = [_tape(10**6) for _ in range(5)]
    tapes.clear()
    assert 4 * 10**6 <= _core.free_list_bytes() <= 10**7
    large = _tape(3 * 10**6)
    del large
    assert _core.free_list_bytes() <= 10**7, "larger than the limit: not kept"
    tapes = [_tape(2 * 10**4) for _ in range(100)]
    tapes.clear()
    assert 0 < _core.free_list_bytes() <= 32 * 2**17, "at most 32 blocks"
    assert _core.set_free_list_limit(0) == 10**7
    assert _core.free_list_bytes() == 0
    del tapes[:]
    _tape(10**6)
    assert _core.free_list_bytes() == 0


@pytest.mark.usefixtures("own_limit")
def test_old_sizes_make_room_for_new_ones() -> None:
    """The list is full of small blocks; larger ones that come again and again are found in it."""
    small = [_tape(2 * 10**4) for _ in range(40)]
    small.clear()
    place = address(_tape(10**6))
    assert address(_tape(10**6)) == place


@pytest.mark.usefixtures("own_limit")
def test_calls_take_from_the_free_list() -> None:
    """A call borrows what it needs and gives all of it back."""
    case = FeatureCase("lstm", dtype="float32", seq_len=30, batch=20, hidden_size=64)
    network = ByNetwork(case, case.parameters())
    network.forward(case.x(), case.state(), keep=False)
    del network.tape
    held = _core.free_list_bytes()
    assert held > 0
    for _ in range(3):
        network.forward(case.x(), case.state(), keep=False)
        del network.tape
        assert _core.free_list_bytes() == held


@pytest.mark.usefixtures("own_limit")
def test_threads_share_the_free_list() -> None:
    wrong: list[str] = []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        held: list[Array] = []
        for _ in range(300):
            tape = _tape(int(rng.integers(16_000, 60_000)))
            tape[:] = number
            held.append(tape)
            if len(held) > 8:
                old = held.pop(int(rng.integers(len(held))))
                if not (old == number).all():
                    wrong.append(f"thread {number}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong
    assert 0 < _core.free_list_bytes() <= 32 * 2**19


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.usefixtures("own_limit")
def test_a_forked_child_uses_the_free_list() -> None:
    """While another thread of the parent takes and gives back memory."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            _tape(10**5)

    thread = threading.Thread(target=work)
    thread.start()
    case = FeatureCase("gru", dtype="float32", seq_len=20, batch=9, hidden_size=33)
    parameters = case.parameters()
    expected = run(parameters, case, ByNetwork)
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    for _ in range(20):
                        tapes = [_tape(10**5) for _ in range(3)]
                        tapes.clear()
                    same(run(parameters, case, ByNetwork), expected, "in a child")
                    code = 0 if _core.free_list_bytes() <= 2**28 else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()

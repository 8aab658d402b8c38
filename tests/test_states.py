"""The state that `step` carries, read and set by hand; zero states like the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from cases import Array, parts
from tolerances import assert_same_bits

KINDS: dict[str, dict[str, Any]] = {
    "rnn": {},
    "gru": {"cell": "gru", "num_layers": 2},
    "lstm": {"cell": "lstm", "dtype": "float64"},
    "projection": {"cell": "lstm", "num_layers": 2, "proj_size": 3},
}
BOTH_WAYS: dict[str, Any] = {"bidirectional": True, "num_layers": 2}


def _network(**options: Any) -> cf.RNN:
    return cf.RNN(4, 5, 3, seed=1, **options)


def _x(net: cf.RNN, steps: int = 9, batch: int = 2) -> Array:
    return np.random.default_rng(0).uniform(-1, 1, (steps, batch, 4)).astype(net.dtype)


@pytest.mark.parametrize("options", [*KINDS.values(), BOTH_WAYS], ids=[*KINDS, "both ways"])
def test_zero_state_is_what_forward_begins_with(options: dict[str, Any]) -> None:
    net = _network(**options)
    x, zero = _x(net), net.zero_state(2)
    y, last = net.forward(x)
    assert type(zero) is type(last)
    for z, s in zip(parts(zero), parts(last), strict=True):
        assert z.shape == s.shape and z.dtype == net.dtype and not z.any() and z.flags.writeable
    assert_same_bits("y", net.forward(x, zero)[0], y)
    for batch, error in ((0, ValueError), (-1, ValueError), (2.0, TypeError), (2**40, ValueError)):
        with pytest.raises(error, match="batch must be "):
            net.zero_state(batch)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_stream_is_put_aside_and_goes_on(options: dict[str, Any]) -> None:
    net = _network(**options)
    x = _x(net)
    whole = [net.step(step) for step in x]
    net.reset()
    for step in x[:4]:
        net.step(step)
    kept = net.state
    net.state = None
    assert net.state is None
    net.step(np.zeros(4, net.dtype))  # another stream, of another batch
    net.state = kept
    for part in parts(kept):
        part[...] = np.nan  # what was given is copied
    for step, expected in zip(x[4:], whole[4:], strict=True):
        assert_same_bits("y", net.step(step), expected)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_decoder_steps_on_from_an_encoder(options: dict[str, Any]) -> None:
    encoder, decoder = _network(**options), _network(**options)
    x = _x(encoder)
    y, _ = encoder.forward(x)
    _, decoder.state = encoder.forward(x[:6])
    for step, expected in zip(x[6:], y[6:], strict=True):
        assert_same_bits("y", decoder.step(step), expected)


def test_the_state_is_a_copy() -> None:
    net = _network(cell="lstm")
    net.step(_x(net)[0])
    h, c = net.state
    before = h.copy()
    h[...] = c[...] = 7
    assert_same_bits("h", net.state[0], before)


def test_wrong_states_are_refused_and_the_old_one_stays() -> None:
    net, lstm = _network(), _network(cell="lstm")
    good = np.ones((1, 2, 5), "float32")
    net.state, lstm.state = good, (good, good)
    wrong: list[tuple[cf.RNN, Any, type[Exception], str]] = [
        (net, good[0], ValueError, r"state must have shape \[L, B, H\] = \(1, 1, 5\), got \(2, 5"),
        (net, good[:, :, :4].copy(), ValueError, r"shape .* \(1, 2, 5\), got \(1, 2, 4\)"),
        (net, good[:, :0].copy(), ValueError, "batch of 1 or more, got 0"),
        (net, good.astype("float64"), TypeError, "state must have the network's dtype float32"),
        (net, good[..., ::-1], ValueError, "state must be C-contiguous"),
        (net, good.tolist(), TypeError, "state must be a NumPy array of float32, got list"),
        (net, (good, good), TypeError, "state must be a NumPy array .*got tuple"),
        (net, 0, TypeError, "state must be a NumPy array .*got int"),
        (lstm, good, TypeError, r"state must be a tuple \(h, c\), got ndarray"),
        (lstm, (), TypeError, r"state must be a tuple \(h, c\), got tuple"),
        (lstm, (good, good[:, :1].copy()), ValueError, r"state\[1\] \(c\) must have shape"),
        (lstm, (good, None), TypeError, r"state\[1\] \(c\) must be a NumPy array.*got NoneType"),
    ]
    for network, state, error, message in wrong:
        with pytest.raises(error, match=message):
            network.state = state
        for part in parts(network.state):
            assert_same_bits("state", part, good)
    with pytest.raises(ValueError, match=r"bidirectional network .* carries no state"):
        _network(**BOTH_WAYS).state = _network(**BOTH_WAYS).zero_state(2)

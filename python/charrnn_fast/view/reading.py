"""What a model computes while reading a text: activations, guesses and losses."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import reference
from ..language.model import CharLM
from ..rnn import RNN

NUM_GUESSES = 5
MOST_GATED = 10_000
"""Symbols from the beginning by which `saturation` judges."""
_LOGITS_AT_ONCE = 2**22
_LEFT, _RIGHT = 0.1, 0.9  # Karpathy, Johnson and Fei-Fei (2015), section 4.2


class Reading(NamedTuple):
    """N symbols read one after another, from the zero state. K: guesses, at most 5."""

    activations: NDArray[np.float32]
    """[L, H, N]: tanh(c) of the LSTMs, else h, after reading symbol n; only requested layers."""
    guesses: NDArray[np.int64]
    """[N, K]: the likeliest ids after symbol n, by the model, best first."""
    shares: NDArray[np.float64]
    """[N, K]: the probabilities of the guesses."""
    losses: NDArray[np.float64]
    """[N - 1]: of symbol n + 1, in nats."""


def quantity(rnn: RNN) -> str:
    """The name of the quantity in `Reading.activations`."""
    return "tanh(c)" if rnn.kind.num_states > 1 else "h"


def is_bounded(rnn: RNN) -> bool:
    """Whether the activations lie in -1 to 1."""
    return rnn.kind.num_states > 1 or rnn.kind.bounded


class Saturation(NamedTuple):
    """How often the units of a gate are nearly closed and nearly open, as shares of the symbols."""

    gate: str
    """Its letter, as in `charrnn_fast.registry`."""
    left: NDArray[np.float64]
    """[H]: below 0.1."""
    right: NDArray[np.float64]
    """[H]: above 0.9."""


def saturation(model: CharLM, ids: NDArray[np.int32], layers: list[int]) -> list[list[Saturation]]:
    """For each layer its sigmoid gates, while the model reads ids [N] from the zero state.

    Of the first 10,000 symbols. A cell without gates has an empty list. The gates are those of the
    reference in NumPy: the kernels keep them for the backward pass alone.
    """
    rnn = model.rnn
    places = [i for i, gate in enumerate(rnn.kind.gates) if gate not in "gnh"]  # those are tanh
    if not places:
        return [[] for _ in layers]
    tokens = ids[:MOST_GATED, None]
    cache = reference.forward(
        dict(rnn.parameters()),
        tokens,
        cell=rnn.cell,
        nonlinearity=rnn.nonlinearity,
        regularization=reference.Regularization(zoneout=rnn.zoneout),
    )[2]
    found = []
    for layer in layers:
        saved = cache.layers[layer].saved
        gates = []
        for place in places:
            values = np.stack([step[place][0] for step in saved])  # [N, H]
            left, right = (values < _LEFT).mean(0), (values > _RIGHT).mean(0)
            gates.append(Saturation(rnn.kind.gates[place], left, right))
        found.append(gates)
    return found


def read(model: CharLM, ids: NDArray[np.int32], layers: list[int]) -> Reading:
    """Reads ids [N], N >= 2. Raises FloatingPointError if the model's numbers are not finite."""
    rnn, size = model.rnn, len(ids)
    num_guesses = min(NUM_GUESSES, len(model.vocabulary))
    activations = np.empty((len(layers), rnn.hidden_size, size), np.float32)
    guesses = np.empty((size, num_guesses), np.int64)
    shares = np.empty((size, num_guesses))
    losses = np.empty(size - 1)
    # `step` on our own state: the network's carried state does not change, and weights are packed
    # once, not at each step as by `forward`.
    state = rnn.states.zeros(1)
    cells = rnn.states.parts(state)[-1]  # a view: c [L, 1, H] of the LSTMs, else h
    block = max(1, _LOGITS_AT_ONCE // len(model.vocabulary))
    logits = np.empty((min(block, size), len(model.vocabulary)))
    bar = _bar(size)
    for start in range(0, size, block):
        end = min(start + block, size)
        for n in range(start, end):
            logits[n - start] = rnn.core.step(ids[n : n + 1], state)[0]
            activations[:, :, n] = cells[layers, 0]
            bar.update()
        log_shares = _log_softmax(logits[: end - start])
        guesses[start:end] = best = _largest(log_shares, num_guesses)
        shares[start:end] = np.exp(np.take_along_axis(log_shares, best, 1))
        targets = ids[start + 1 : end + 1]
        losses[start : start + len(targets)] = -log_shares[np.arange(len(targets)), targets]
    bar.close()
    if not (np.isfinite(activations).all() and np.isfinite(shares).all()):
        raise FloatingPointError("the model's activations are no longer finite on this text")
    if quantity(rnn) == "tanh(c)":
        np.tanh(activations, out=activations)
    return Reading(activations, guesses, shares, losses)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, V] for [n, V]."""
    shifted = logits - logits.max(1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """[n, count]: the indices of the largest values of each row [n, V], in descending order."""
    found = np.argpartition(-values, count - 1, 1)[:, :count]
    order = np.argsort(-np.take_along_axis(values, found, 1), 1, kind="stable")
    result: NDArray[np.int64] = np.take_along_axis(found, order, 1)
    return result


def _bar(total: int) -> Any:
    from tqdm import tqdm  # slow to import

    return tqdm(total=total, desc="reading the text", delay=1, leave=False, disable=None)

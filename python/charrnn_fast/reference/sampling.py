"""Sampling: drawing tokens, and generating text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Parameters, State
from .masks import Regularization, uniform
from .network import forward


def sample_tokens(
    logits: Array,
    seeds: Sequence[int],
    position: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    recent: NDArray[np.int32] | None = None,
) -> NDArray[np.int32]:
    """One draw for each row of logits [B, V] from softmax(logits / temperature): tokens [B].

    `temperature=0` takes the largest logit. `top_k` keeps the k most probable tokens. `top_p` then
    keeps the fewest of these whose share of the remaining probability reaches p (at least one). Of
    equals the lower id counts as more probable. Row b's draw depends only on seeds[b] and
    `position`.

    repetition_penalty comes first: it divides the logits of the tokens recent [window, B] (Keskar
    et al., 2019, arXiv 1909.05858, section 4.1), -1 for none; negative ones, which dividing would
    raise, it multiplies.
    """
    if repetition_penalty > 1 and recent is not None:
        logits = logits.copy()
        for b, row in enumerate(logits):
            tokens = np.unique(recent[:, b][recent[:, b] >= 0])
            x = row[tokens]
            penalty = row.dtype.type(repetition_penalty)
            row[tokens] = np.where(x > 0, x / penalty, x * penalty)
    if temperature == 0:
        return np.asarray(logits.argmax(axis=-1), np.int32)
    tokens = np.empty(len(logits), np.int32)
    for b, seed in enumerate(seeds):
        weights = np.exp((logits[b] - logits[b].max()) / temperature, dtype="float64")
        order = np.arange(len(weights))
        if (top_k or len(order)) < len(order) or top_p < 1:
            order = np.argsort(-weights, kind="stable")[:top_k]
            cumulative = np.cumsum(weights[order])
            order = order[: np.searchsorted(cumulative, top_p * cumulative[-1]) + 1]
        cumulative = np.cumsum(weights[order])
        # the first token whose cumulative weight exceeds u times the total
        u = uniform(seed, position)
        chosen = np.searchsorted(cumulative, u * cumulative[-1], side="right")
        tokens[b] = order[min(chosen, len(order) - 1)]
    return tokens


def sample(
    parameters: Parameters,
    length: int,
    tokens: Array,
    seeds: Sequence[int],
    state: State | None = None,
    *,
    cell: str = "rnn",
    nonlinearity: str = "tanh",
    regularization: Regularization | None = None,
    compute_dtype: str = "float32",
    position: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    recent: NDArray[np.int32] | None = None,
) -> tuple[NDArray[np.int32], State]:
    """Generate with B streams: feed tokens [B], draw from y, feed the drawn tokens, `length` times.

    Returns the drawn tokens [length, B] and the state after the last token that was fed. `position`
    counts the draws; the options are those of `sample_tokens`, with `recent` before the first draw
    (each draw then takes the place of the oldest). Of `regularization` only zoneout
    acts, by its expectation. compute_dtype: see `forward`.
    """
    kind: dict[str, Any] = {"cell": cell, "nonlinearity": nonlinearity}
    kind |= {"regularization": regularization, "compute_dtype": compute_dtype}
    if state is None:
        state = forward(parameters, tokens[None][:0], **kind)[1]
    drawn = np.empty((length, len(tokens)), np.int32)
    for t in range(length):
        y, state, _ = forward(parameters, tokens[None], state, **kind)
        tokens = drawn[t] = sample_tokens(
            y[0],
            seeds,
            position + t,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            recent=recent,
        )
        if recent is not None:
            recent = np.concatenate([recent[1:], tokens[None]])
    return drawn, state

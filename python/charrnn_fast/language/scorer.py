"""The log-probability of whole texts under a network, many texts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..losses import cross_entropy
from ..rnn import RNN

_STEPS = 1024  # of a text at once, which lets an interrupt through
_STREAMS = 256  # texts at once
_ELEMENTS = 2**24  # of logits, hidden vectors and gates at once, which are most of the memory


def log_probabilities(
    rnn: RNN, first: int, texts: Sequence[NDArray[np.int32]]
) -> NDArray[np.float64]:
    """log p of each text, in nats [N]: the sum of log p(id | first, all ids before) over its ids.

    texts: N arrays of ids [T], each T >= 0. Every text begins at the zero state, with the id
    `first` read before it. A text's result does not depend on the others.
    """
    width = (rnn.output_size or 1) + rnn.hidden_size * (rnn.num_layers + 4)
    steps = min(_STEPS, max(1, _ELEMENTS // width))  # the same for all: their sums are, too
    result = np.zeros(len(texts))
    # Texts of about one length, the longest first: a batch then has few rows that have ended.
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    while order and len(texts[order[0]]):
        longest = min(len(texts[order[0]]), steps)
        count = min(_STREAMS, max(1, _ELEMENTS // (width * longest)))
        batch, order = order[:count], order[count:]
        result[batch] = _together(rnn, first, [texts[i] for i in batch], steps)
    return result


def _together(
    rnn: RNN, first: int, texts: Sequence[NDArray[np.int32]], steps: int
) -> NDArray[np.float64]:
    """As `log_probabilities`, for texts in the order of their lengths, the longest first."""
    sums = np.zeros(len(texts))
    last = np.full(len(texts), first, np.int32)
    state: Any = None
    for start in range(0, len(texts[0]), steps):
        parts = [text[start : start + steps] for text in texts if len(text) > start]
        lengths = [len(part) for part in parts]
        targets = np.zeros((lengths[0], len(parts)), np.int32)
        for b, part in enumerate(parts):
            targets[: len(part), b] = part
        inputs = np.concatenate([last[None, : len(parts)], targets[:-1]])
        logits, state = rnn.forward(
            inputs, _first_rows(state, len(parts)), lengths=lengths, keep=False
        )
        by_row = np.ascontiguousarray(logits.swapaxes(0, 1))  # [B, T, V]
        for b, part in enumerate(parts):
            loss, _ = cross_entropy(by_row[b, : len(part)], part, "sum")
            sums[b] -= loss
        last = targets[-1]
    return sums


def _first_rows(state: Any, count: int) -> Any:
    """A state of the first rows of its batch."""
    if isinstance(state, tuple):
        return tuple(_first_rows(part, count) for part in state)
    return None if state is None else np.ascontiguousarray(state[:, :count])

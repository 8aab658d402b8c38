"""The log-probability of whole texts under a network, many texts at once."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..rnn import RNN

_STEPS = 1024  # of a text at once, which lets an interrupt through
_STREAMS = 256  # texts at once
_ELEMENTS = 2**24  # of hidden vectors and gates at once, which are most of the memory


def log_probabilities(
    rnn: RNN, first: int, texts: Sequence[NDArray[np.int32]]
) -> NDArray[np.float64]:
    """log p of each text, in nats [N]: the sum of log p(id | first, all ids before) over its ids.

    texts: N arrays of ids [T], each T >= 0. Every text starts from the zero state, and the network
    reads the id `first` before it. A text's result does not depend on the others.
    """
    blocks = log_probabilities_by_blocks(rnn, first, texts, _STREAMS)
    while True:
        try:
            next(blocks)
        except StopIteration as end:
            result: NDArray[np.float64] = end.value
            return result


def log_probabilities_by_blocks(
    rnn: RNN, first: int, texts: Sequence[NDArray[np.int32]], most: int
) -> Generator[None, None, NDArray[np.float64]]:
    """As `log_probabilities`, with a pause after each block of at most `most` texts."""
    width = rnn.hidden_size * (rnn.num_layers + 4)
    # The same for all texts: their sums go block by block, and other blocks would round otherwise.
    steps = min(_STEPS, max(1, _ELEMENTS // (width + (rnn.output_size or 1))))
    result = np.zeros(len(texts))
    # Sorted by length, the longest first: a batch then has little padding.
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    while order and len(texts[order[0]]):
        longest = min(len(texts[order[0]]), steps)
        count = min(most, max(1, _ELEMENTS // (width * longest)))
        batch, order = order[:count], order[count:]
        result[batch] = yield from _together(rnn, first, [texts[i] for i in batch], steps)
    return result


def _together(
    rnn: RNN, first: int, texts: Sequence[NDArray[np.int32]], steps: int
) -> Generator[None, None, NDArray[np.float64]]:
    """`log_probabilities_by_blocks` for texts sorted by length, the longest first."""
    network: Any = rnn.core
    sums = np.zeros(len(texts))
    last = np.full(len(texts), first, np.int32)
    state = rnn.states.zeros(len(texts))
    for start in range(0, len(texts[0]), steps):
        parts = [text[start : start + steps] for text in texts if len(text) > start]
        count, lengths = len(parts), np.array([len(part) for part in parts])
        targets = np.zeros((lengths[0], count), np.int32)
        for b, part in enumerate(parts):
            targets[: len(part), b] = part
        inputs = np.concatenate([last[None, :count], targets[:-1]])
        state = rnn.states.joined([part[:, :count] for part in rnn.states.parts(state)])
        sums[:count] -= network.stream_losses(inputs, targets, state, lengths)
        last = targets[-1]
        yield
    return sums

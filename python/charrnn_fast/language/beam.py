"""Beam search: the likeliest text of a length, or up to a stop string."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._checks import called
from .._devices import CPU
from ..rnn import RNN
from ..text.vocabulary import StreamDecoder, Vocabulary
from .sampler import Request, drawing_from, kernel_weights, read_prime


class Likeliest(NamedTuple):
    """A text and its log-probability in nats."""

    text: str
    log_probability: float


class _Ended(NamedTuple):
    """A text that a stop string ended: its log-probability, last beginning, tokens of the stop."""

    log_probability: float
    step: int
    parent: int
    cut: int


def find_likeliest(rnn: RNN, vocabulary: Vocabulary, request: Request, width: int) -> Likeliest:
    """See `CharLM.beam_search`. The beginnings are the streams of one batch."""
    start = rnn.states.zeros(1)
    needed = _memory(request, width, len(vocabulary), start.nbytes)
    advice = f"a smaller {called('beam')}"
    with CPU.enough_memory(needed, "the search", advice), drawing_from(rnn):
        return _found(rnn, vocabulary, request, width)


def _memory(request: Request, width: int, vocab_size: int, of_state: int) -> int:
    """Bytes that a step of the search takes at most. of_state: those of a beginning's state."""
    # There are no more beginnings than texts; 2 to the power of bits exceeds the width.
    rows: int = min(width, vocab_size ** min(max(request.length - 1, 0), width.bit_length()))
    # Of a candidate: log-probabilities of the kernel and in double, the sum, and what _largest
    # sorts by; where stop strings end a text.
    arrays = 8 if request.stops else 7
    return rows * (8 * arrays * vocab_size + 3 * of_state)


def _found(rnn: RNN, vocabulary: Vocabulary, request: Request, width: int) -> Likeliest:
    network: Any = rnn.core
    start, weights = read_prime(rnn, request), kernel_weights(request.sampling)
    state, fed = start.state, np.array([start.token], np.int32)
    stops = [vocabulary.encode(stop) for stop in request.stops]
    tail = np.full((1, max(map(len, stops), default=1)), -1, np.int32)  # the last tokens of each
    sums = np.zeros(1)
    parents: list[NDArray[np.intp]] = []  # of each step's beginnings, among those before
    tokens: list[NDArray[np.int32]] = []
    best: _Ended | None = None
    for step in range(request.length):
        nats = network.next(fed, state, weights).astype(np.float64)
        candidates = (sums[:, None] + nats).ravel()
        if stops and (ends := _ends(tail, stops, len(vocabulary))).any():
            at = int(np.argmax(np.where(ends > 0, candidates, -np.inf)))
            if candidates[at] > (-np.inf if best is None else best.log_probability):
                row = at // len(vocabulary)
                best = _Ended(float(candidates[at]), step, row, int(ends[at]) - 1)
            candidates[ends > 0] = -np.inf
        chosen = _largest(candidates, width)
        # A text only gets less likely: none of these can win any more.
        if not len(chosen) or (best and best.log_probability >= candidates[chosen[0]]):
            break
        sums = candidates[chosen]
        rows, ids = np.divmod(chosen, len(vocabulary))
        fed = ids.astype(np.int32)
        parents.append(rows)
        tokens.append(fed)
        tail = np.concatenate([tail[rows, 1:], fed[:, None]], axis=1)
        parts = [part[:, rows] for part in rnn.states.parts(state)]
        state = rnn.states.joined(parts)
    if best is not None and (len(parents) < request.length or best.log_probability >= sums[0]):
        ids, total = _traced(parents[: best.step], tokens, best.parent), best.log_probability
        ids = ids[: len(ids) - best.cut]
    else:
        ids, total = _traced(parents, tokens, 0), float(sums[0])
    decoder = StreamDecoder(vocabulary)
    text = decoder.decode(request.prime) + decoder.decode(ids, final=True)
    return Likeliest(text, total)


def _ends(
    tail: NDArray[np.int32], stops: list[NDArray[np.int32]], vocab_size: int
) -> NDArray[np.intp]:
    """[N * V] the length of the longest stop string that each next token completes, else 0."""
    ends = np.zeros((len(tail), vocab_size), np.intp)
    for stop in stops:
        before = stop[:-1]
        rows = np.all(tail[:, tail.shape[1] - len(before) :] == before, axis=1)
        column = ends[:, stop[-1]]
        column[rows] = np.maximum(column[rows], len(stop))
    return ends.ravel()


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """The indices of the largest finite values, the largest first; of equals the lower first."""
    among = np.flatnonzero(values > -np.inf)
    if len(among) > count:
        least = np.partition(values[among], len(among) - count)[len(among) - count]
        among = among[values[among] >= least]
    return among[np.argsort(-values[among], kind="stable")][:count]


def _traced(
    parents: list[NDArray[np.intp]], tokens: list[NDArray[np.int32]], row: int
) -> NDArray[np.int32]:
    """The tokens of a row of the last of these steps."""
    ids = np.empty(len(parents), np.int32)
    for step in range(len(parents) - 1, -1, -1):
        ids[step] = tokens[step][row]
        row = int(parents[step][row])
    return ids

"""Texts drawn together that join and leave between calls, as those of a server's clients do.

Each text is what `CharLM.sample` draws with the same request and seed: a stream depends neither on
the others of its batch nor on how many tokens are drawn per call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .model import CharLM
from .sampler import Request, kernel_weights, recent

Ids = NDArray[np.int32]


class Symbol(NamedTuple):
    """A drawn symbol: its code point or byte, and its probability under the model.

    Probabilities are the softmax of the logits, before temperature, top_k and top_p.
    """

    symbol: int
    probability: float
    alternatives: list[tuple[int, float]]
    """The likeliest symbols in its place with their probabilities, best first."""


class Stream:
    """One text of a request, and how far it is.

    alternatives: how many likely symbols to tell at each draw; 0: none, nor probabilities.
    """

    def __init__(self, request: Request, seed: int, alternatives: int = 0) -> None:
        self.request = request
        self.seed = seed
        self.alternatives = alternatives
        self.drawn = 0
        """Tokens drawn so far."""
        self.recent = recent(request.prime, request.sampling)
        """The last tokens of the text, as a repetition penalty takes them."""

    @property
    def remaining(self) -> int:
        return self.request.length - self.drawn


class Drawn(NamedTuple):
    """What a stream has drawn in one call: ids [steps], and a `Symbol` for each if asked for."""

    stream: Stream
    ids: Ids
    symbols: list[Symbol]


class _Prime:
    """A stream whose prime is being read: its state, in the kernels' layout, and its place."""

    def __init__(self, stream: Stream, state: NDArray[Any]) -> None:
        self.stream = stream
        self.state = state
        self.position = 0

    @property
    def remaining(self) -> int:
        """Drawing reads the last id."""
        return len(self.stream.request.read) - 1 - self.position


class Batch:
    """Streams of one model with the same weights, drawn together.

    A stream that has drawn its length leaves by itself. The kernels keep their packed weights
    between calls. Not for several threads at once.
    """

    def __init__(self, model: CharLM, weight_dtype: str | None) -> None:
        self._model = model
        self._rnn = model.rnn
        self._weight_dtype = weight_dtype
        self._reader: Any = None  # the network that computes probabilities, once some are asked for
        self._primes: list[_Prime] = []
        self._streams: list[Stream] = []
        self._last = np.empty(0, np.int32)  # [B] the tokens to feed next
        self._state: NDArray[Any] | None = None  # [S, L, B, H]; None for B = 0

    def __len__(self) -> int:
        """Streams in it, those included whose prime is being read."""
        return len(self._primes) + len(self._streams)

    @property
    def drawing(self) -> int:
        """B, streams that have read their prime."""
        return len(self._streams)

    @property
    def streams(self) -> list[Stream]:
        return [prime.stream for prime in self._primes] + self._streams

    def join(self, stream: Stream) -> None:
        """Adds a stream, which has something to draw. `read` reads its prime."""
        self._primes.append(_Prime(stream, self._rnn.states.zeros(1)))

    def leave(self, stream: Stream) -> None:
        """Removes a stream before its end."""
        self._primes = [prime for prime in self._primes if prime.stream is not stream]
        if stream in self._streams:
            self._keep([b for b, other in enumerate(self._streams) if other is not stream])

    def read(self, steps: int) -> None:
        """Reads at most `steps` tokens of each prime. Streams whose prime is read begin to draw."""
        while True:
            if ready := [prime for prime in self._primes if not prime.remaining]:
                self._primes = [prime for prime in self._primes if prime.remaining]
                self._begin(ready)
            if not self._primes or not steps:
                return
            count = min(steps, *(prime.remaining for prime in self._primes))
            self._read_together(count)
            steps -= count

    def _read_together(self, steps: int) -> None:
        network: Any = self._rnn.core
        ids = [p.stream.request.read[p.position : p.position + steps] for p in self._primes]
        state = self._joined([prime.state for prime in self._primes])
        # All streams of a batch have the same weights.
        weights = kernel_weights(self._primes[0].stream.request.sampling)
        network.read(np.ascontiguousarray(np.stack(ids, 1)), state, weights)
        for b, prime in enumerate(self._primes):
            prime.state = self._rows(state, [b])
            prime.position += steps

    def _begin(self, primes: Sequence[_Prime]) -> None:
        old = [] if self._state is None else [self._state]
        self._state = self._joined([*old, *(prime.state for prime in primes)])
        tokens = [int(prime.stream.request.read[-1]) for prime in primes]
        self._last = np.concatenate([self._last, np.array(tokens, np.int32)])
        self._streams += [prime.stream for prime in primes]

    def draw(self, steps: int) -> list[Drawn]:
        """Draws at most `steps` tokens of each stream, the same number of all.

        That is the smallest number of tokens that a stream has left; so none is drawn in vain.
        """
        if self._state is None:
            return []
        steps = min(steps, *(stream.remaining for stream in self._streams))
        streams, last = self._streams, self._last
        asking = [b for b, stream in enumerate(streams) if stream.alternatives]
        before = self._rows(self._state, asking) if asking else None
        options = [stream.request.sampling for stream in streams]
        symbols = len(self._model.vocabulary)
        network: Any = self._rnn.core
        penalized = any(o.repetition_penalty > 1 for o in options)
        before_them = self._recent(streams) if penalized else None
        drawn: Ids = network.sample_streams(
            steps,
            last,
            self._state,
            np.array([stream.seed for stream in streams], np.uint64),
            np.array([stream.drawn for stream in streams], np.uint64),
            np.array([o.temperature for o in options], np.float64),
            np.array([min(o.top_k or 0, symbols) for o in options], np.int64),
            np.array([1.0 if o.top_p is None else o.top_p for o in options], np.float64),
            kernel_weights(options[0]),
            np.array([o.repetition_penalty for o in options], np.float64) if penalized else None,
            np.array([o.repetition_window for o in options], np.int64) if penalized else None,
            before_them,
        )
        self._last = np.ascontiguousarray(drawn[-1])
        for b, stream in enumerate(streams):
            stream.drawn += steps
            if before_them is not None:
                stream.recent = before_them[-stream.request.sampling.repetition_window :, b].copy()
        told: dict[int, list[Symbol]] = {}
        if before is not None:
            logits = self._logits(before, last[asking], drawn[:, asking])
            for i, b in enumerate(asking):
                told[b] = self._symbols(logits[:, i], drawn[:, b], streams[b].alternatives)
        result = [Drawn(s, drawn[:, b], told.get(b, [])) for b, s in enumerate(streams)]
        kept = [b for b, stream in enumerate(streams) if stream.remaining]
        if len(kept) < len(streams):
            self._keep(kept)
        return result

    def _recent(self, streams: Sequence[Stream]) -> Ids:
        """[window, B] the last tokens of each text, for the largest window of all."""
        window = max(stream.request.sampling.repetition_window for stream in streams)
        result = np.full((window, len(streams)), -1, np.int32)
        for b, stream in enumerate(streams):
            result[window - len(stream.recent) :, b] = stream.recent
        return result

    def _logits(self, state: NDArray[Any], first: Ids, drawn: Ids) -> NDArray[Any]:
        """[steps, B, V]: what tokens `drawn` [steps, B] were drawn from, after the state."""
        if self._reader is None:
            self._reader = self._model.read_as(self._weight_dtype).rnn.core
        logits = np.empty((*drawn.shape, len(self._model.vocabulary)))
        tokens = np.ascontiguousarray(first)
        for n in range(len(drawn)):
            logits[n] = self._reader.step(tokens, state)
            tokens = np.ascontiguousarray(drawn[n])
        return logits

    def _symbols(self, logits: NDArray[Any], drawn: Ids, count: int) -> list[Symbol]:
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        best = np.argsort(-shares, 1, kind="stable")[:, :count]
        symbols = self._model.vocabulary.symbols
        return [
            Symbol(
                int(symbols[token]),
                float(shares[n, token]),
                [(int(symbols[i]), float(shares[n, i])) for i in best[n]],
            )
            for n, token in enumerate(drawn)
        ]

    def _keep(self, kept: Sequence[int]) -> None:
        """Keeps only these streams, in this order."""
        assert self._state is not None
        self._state = self._rows(self._state, kept) if kept else None
        self._last = self._last[np.array(kept, np.intp)]
        self._streams = [self._streams[b] for b in kept]

    def _rows(self, state: NDArray[Any], rows: Sequence[int]) -> NDArray[Any]:
        """A copy of these streams' states."""
        states = self._rnn.states
        return states.joined([part[:, list(rows)] for part in states.parts(state)])

    def _joined(self, several: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The states of several batches, one after another."""
        states = self._rnn.states
        parts = zip(*(states.parts(state) for state in several), strict=True)
        return states.joined([np.concatenate(part, 1) for part in parts])

"""A text chosen or drawn symbol by symbol, with the shares of those that may come next."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..rnn import RNN
from .sampler import Request, kernel_weights, read_prime, recent


class _Place(NamedTuple):
    """The state before the last token is read, and that token."""

    state: NDArray[Any]
    token: int


class Walk:
    """Where a text stands, behind the prime at first. Draws alone give the text of `sample`."""

    def __init__(self, rnn: RNN, request: Request, seed: int) -> None:
        self._rnn, self._request, self._seed = rnn, request, seed
        start = read_prime(rnn, request)
        self._places = [_Place(start.state, start.token)]
        self.ids: list[int] = []
        """The symbols behind the prime."""

    def shares(self) -> NDArray[np.float64]:
        """The probability of each symbol [V] to come next, at the temperature alone."""
        nats = self._read()[1].astype(np.float64)
        nats = (nats - nats.max()) / (self._request.sampling.temperature or 1.0)
        shares: NDArray[np.float64] = np.exp(nats)
        shares /= shares.sum()
        return shares

    def draw(self) -> int:
        """The symbol that `sample` would draw next. Depends on the seed and the place alone."""
        state, token = self._places[-1]
        sampling, network = self._request.sampling, self._rnn.core
        window = None
        if sampling.repetition_penalty > 1:
            before = np.array(self.ids[-sampling.repetition_window :], np.int32)
            text = np.concatenate([self._request.prime, before])
            window = recent(text, sampling)[:, None].copy()
        drawn = network.sample(
            1,
            np.array([token], np.int32),
            state.copy(),
            np.array([self._seed], np.uint64),
            len(self.ids),
            float(sampling.temperature),
            min(sampling.top_k or 0, self._rnn.output_size or self._rnn.hidden_size),
            1.0 if sampling.top_p is None else float(sampling.top_p),
            kernel_weights(sampling),
            float(sampling.repetition_penalty),
            window,
        )
        return int(drawn[0, 0])

    def take(self, symbol: int) -> None:
        """Appends a symbol."""
        self._places.append(_Place(self._read()[0], symbol))
        self.ids.append(symbol)

    def back(self) -> None:
        """Takes the last symbol back."""
        self._places.pop()
        self.ids.pop()

    def _read(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The state behind the last token, and the log-probabilities of the next."""
        network: Any = self._rnn.core
        state = self._places[-1].state.copy()
        nats = network.next(
            np.array([self._places[-1].token], np.int32),
            state,
            kernel_weights(self._request.sampling),
        )
        return state, nats[0]

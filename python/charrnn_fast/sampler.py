"""Drawing text from a network, one token after another. The loop itself runs in the kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._checks import integer, real
from .rnn import RNN

_PRIME_BLOCK = 1024  # steps of a prime fed at once


@dataclass(frozen=True)
class _Sampling:
    """How a token is drawn from the softmax of the logits.

    temperature divides the logits; 0 takes the most probable token. top_k keeps that many of the
    most probable tokens, top_p the smallest set of them that has this much probability
    (Holtzman et al., 2020); None keeps all.
    """

    temperature: float
    top_k: int | None
    top_p: float | None

    def __post_init__(self) -> None:
        real("temperature", self.temperature, least=0)
        if self.top_k is not None:
            integer("top_k", self.top_k, 1)
        if self.top_p is not None:
            real("top_p", self.top_p, above=0, most=1)


def _draw(
    rnn: RNN,
    prime: NDArray[np.int32],
    length: int,
    seeds: Sequence[int],
    sampling: _Sampling,
    block: int,
) -> Iterator[NDArray[np.int32]]:
    """Yields blocks of drawn tokens [at most block, B], B = len(seeds), length steps in all.

    All streams read prime [N], N >= 1, from the zero state. Draw n of a stream (counted from 0)
    depends on its seed and n alone: neither on the other streams nor on the size of the blocks.
    """
    network: Any = rnn._core
    state = rnn.zero_state(1)
    for start in range(0, len(prime) - 1, _PRIME_BLOCK):
        tokens = prime[start : min(start + _PRIME_BLOCK, len(prime) - 1), None]
        _, state = network.forward(tokens, state, False)
    state = np.ascontiguousarray(np.repeat(state, len(seeds), axis=2))
    last = np.full(len(seeds), prime[-1], np.int32)
    keys = np.array(seeds, np.uint64)
    for position in range(0, length, block):
        drawn: NDArray[np.int32] = network.sample(
            min(block, length - position),
            last,
            state,
            keys,
            position,
            float(sampling.temperature),
            min(sampling.top_k or 0, rnn.output_size or rnn.hidden_size),
            1.0 if sampling.top_p is None else float(sampling.top_p),
        )
        last = np.ascontiguousarray(drawn[-1])
        yield drawn

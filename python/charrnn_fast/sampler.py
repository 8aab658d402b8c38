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
_PRIME_LOGITS = 2**22  # and no more than make so many logits, which nobody reads


@dataclass(frozen=True)
class _Sampling:
    """How a token is drawn from the softmax of the logits.

    temperature divides the logits; 0 takes the most probable token. top_k keeps that many of the
    most probable tokens, top_p the smallest set of them that has this much probability
    (Holtzman et al., 2020); None keeps all. weight_dtype: what the weights are read as, None for
    the network's own type; "bfloat16" halves the memory that a step reads.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    weight_dtype: str | None = None

    def __post_init__(self) -> None:
        real("temperature", self.temperature, least=0)
        if self.top_k is not None:
            integer("top_k", self.top_k, 1)
        if self.top_p is not None:
            real("top_p", self.top_p, above=0, most=1)


def check_weight_dtype(weight_dtype: str | None, rnn: RNN) -> None:
    """Raises ValueError for weights that the kernels do not sample rnn with."""
    own = rnn.dtype.name
    known = [own, "bfloat16"] if own == "float32" else [own]
    if weight_dtype is not None and weight_dtype not in known:
        raise ValueError(
            f"weight_dtype is {weight_dtype!r}, a {own} model takes None or "
            + " or ".join(map(repr, known))
        )


def read_as_bfloat16(name: str, parameter: NDArray[Any]) -> NDArray[Any]:
    """The values of a parameter that sampling with bfloat16 weights computes with.

    Matrices are rounded, but for layer 0's input weights, of which a token reads one row, and for
    peepholes, which are vectors side by side.
    """
    whole = name == "weight_ih_l0" or name.startswith("weight_peephole")
    matrix = parameter.ndim == 2 and not whole
    return rounded_to_bfloat16(parameter) if matrix else parameter


def rounded_to_bfloat16(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every element's nearest bfloat16 (8 bits of significand), ties to even, as float32."""
    bits = np.ascontiguousarray(weights).view(np.uint32)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    # Rounding up a NaN could end beyond the largest one.
    return np.where(np.isnan(weights), weights, nearest.view(np.float32))


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
    fed = max(1, min(_PRIME_BLOCK, _PRIME_LOGITS // (rnn.output_size or 1)))
    for start in range(0, len(prime) - 1, fed):
        tokens = prime[start : min(start + fed, len(prime) - 1), None]
        _, state = network.forward(tokens, state, False)
    parts = [np.repeat(part, len(seeds), axis=1) for part in rnn._state_parts(state)]
    state = rnn._joined_state(parts)
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
            sampling.weight_dtype == "bfloat16",
        )
        last = np.ascontiguousarray(drawn[-1])
        yield drawn

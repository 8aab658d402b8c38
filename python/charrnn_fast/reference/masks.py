"""Random numbers, and the masks of dropout, weight drop and zoneout drawn from them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .arrays import Array


def philox(seed: int, position: int, lane: int = 0) -> tuple[int, int, int, int]:
    """Philox4x32-10: four random 32-bit words from a 64-bit key and a counter, without state.

    Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011). The key is `seed`; the
    counter's words are the low and high half of `position`, `lane`, and 0.
    """
    word = 0xFFFFFFFF
    return philox_words(seed, position & word, position >> 32 & word, lane & word, 0)


def philox_words(seed: int, c0: Any, c1: Any, c2: Any, c3: Any) -> tuple[Any, Any, Any, Any]:
    """`philox` for any counter; its words may be arrays of uint64, which are broadcast."""
    word = 0xFFFFFFFF
    key0, key1 = seed & word, seed >> 32 & word
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = b >> 32 ^ c1 ^ key0, b & word, a >> 32 ^ c3 ^ key1, a & word
        key0, key1 = key0 + 0x9E3779B9 & word, key1 + 0xBB67AE85 & word
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """The uniform number in [0, 1), of 24 bits, that decides draw `position` of stream `seed`."""
    return (philox(seed, position)[0] >> 8) * 2.0**-24


# the kinds of masks; OUTPUT counts as the layer above the last
INPUT, RECURRENT, ZONEOUT_H, ZONEOUT_C, WEIGHT_DROP, OUTPUT = range(6)


def site(kind: int, layer: int, direction: int = 0) -> int:
    """The number of a mask's place in the network: a word of its counters."""
    return (layer * 2 + direction) * 8 + kind


def mask(seed: int, site: int, rate: float, time: Any, streams: Any, units: Any) -> Array:
    """True, with probability `rate`, where an element is dropped (zoneout: keeps its old value).

    `time` is the step in the sequence (0 for one mask per call), `streams` the row of the batch
    (weight_drop: of W_hh), `units` the column: integers or arrays of them, broadcast together; the
    result has their shape. Each element depends on its own numbers alone. Raises ValueError for a
    rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the rate of a mask must be in [0, 1), got {rate}")
    # Each counter gives four words, for units 16 apart, so that 16 counters give 64 units.
    block, place = np.divmod(np.asarray(units, "int64"), 64)
    c0, c1, c2 = (np.array(c, "uint64", ndmin=1) for c in (block * 16 + place % 16, streams, time))
    words = np.choose(place // 16, philox_words(seed, c0, c1, c2, site))
    shape = np.broadcast_shapes(np.shape(time), np.shape(streams), np.shape(units))
    dropped: Array = words.reshape(shape) < math.floor(rate * 2**32)
    return dropped


def multipliers(seed: int, site: int, rate: float, time: Any, streams: Any, units: Any) -> Array:
    """0 where `mask` drops, else 1 / (1 - rate), in float64: inverted dropout."""
    return np.where(mask(seed, site, rate, time, streams, units), 0, 1 / (1 - rate))


class Regularization(NamedTuple):
    """The rates of the masks of a `forward` with a `mask_seed`.

    Dropout (Srivastava et al., 2014) multiplies by 0 or by 1 / (1 - rate).
    """

    dropout: float = 0.0  # between layers
    input_dropout: float = 0.0  # x; a token is its one-hot vector
    output_dropout: float = 0.0  # the top layer's h, before the decoder
    recurrent_dropout: float = 0.0  # h, before W_hh
    variational: bool = False  # these four: one mask for all steps (Gal and Ghahramani, 2016)
    weight_drop: float = 0.0  # W_hh, one mask for all steps (Merity et al., 2018)
    # h and c keep their old values (Krueger et al., 2017); without mask_seed the expectation:
    # rate old + (1 - rate) new
    zoneout: tuple[float, float] = (0.0, 0.0)

"""Initial weights: drawn from a seed, the same on every machine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .registry import Cell

INITS = ("uniform", "lecun", "lecun_tokens")
"""Initialization methods; see `RNN`."""

_DRAWN_AT_ONCE = 2**16  # weights


def draw(
    core: Any,
    dtype: DTypeLike,
    *,
    cell: Cell,
    hidden_size: int,
    seed: int,
    init: str,
    forget_bias: float | None,
) -> None:
    """Sets all parameters of a compiled network; the keywords are those of `RNN`, checked."""
    # Philox's raw words are the same in every version of NumPy; its distributions need not be.
    words = np.random.Philox(seed)
    H, gate = hidden_size, cell.forget_gate
    for name, shape in core.parameter_shapes().items():
        value = np.empty(shape, dtype)
        if name.startswith("gain_"):
            value[:] = 1
            core.set_parameter(name, value)
            continue
        flat, bound = value.reshape(-1), _bound(init, name, shape, hidden_size)
        # In pieces: the words and the numbers computed from them take eight bytes each.
        for start in range(0, flat.size, _DRAWN_AT_ONCE):
            piece = flat[start : start + _DRAWN_AT_ONCE]
            raw = words.random_raw(piece.size)
            piece[:] = ((raw >> np.uint64(11)) * (2.0**-52) - 1.0) * bound
        if gate is not None and forget_bias is not None and name.startswith("bias_"):
            value[gate * H : (gate + 1) * H] = forget_bias if name.startswith("bias_ih") else 0.0
        core.set_parameter(name, value)


def _bound(init: str, name: str, shape: tuple[int, ...], hidden_size: int) -> float:
    """The bound of the uniform distribution that a parameter is drawn from."""
    matrix = name.startswith(("weight_ih", "weight_hh", "weight_hr", "decoder.weight"))
    if init == "uniform" or not matrix:
        return 1 / math.sqrt(hidden_size)
    one_of_k = init == "lecun_tokens" and name.startswith("weight_ih_l0")
    return math.sqrt(3 / (1 if one_of_k else shape[1]))

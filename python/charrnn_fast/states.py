"""States of a network in two forms: the caller's and the kernels'.

Callers have h [L*D, B, R] (rnn, gru) or a tuple (h, c) with c [L*D, B, H] (the LSTMs); letters as
in `RNN`. The kernels have one array: all h, then all c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._checks import floats

Array = NDArray[Any]
State = Any
"""An array h [L*D, B, R] (rnn, gru), or a tuple (h, c), c [L*D, B, H] (the LSTMs)."""


class StateLayout:
    """The layout of one network's states, for any batch B.

    The kernels' form is [S, L*D, B, H], with S = 2 for the LSTMs, else 1. With a projection, where
    h is narrower than c, it is flat.
    """

    def __init__(self, core: Any, layers: int, width: int, hidden_size: int, dtype: Any) -> None:
        """core: the compiled network; layers: L*D; width: R."""
        self._core, self._layers, self._dtype = core, layers, dtype
        self._widths = (width, hidden_size)[: core.num_states]

    def shapes(self, batch: int) -> list[tuple[int, int, int]]:
        """The shapes of h and, for the LSTMs, of c."""
        return [(self._layers, batch, width) for width in self._widths]

    def zeros(self, batch: int) -> Array:
        """The zero state in the kernels' form."""
        return np.zeros(self._core.state_shape(batch), self._dtype)

    def batch(self, state: Any) -> int:
        """The batch size B of a state in the kernels' form."""
        one = sum(math.prod(shape) for shape in self.shapes(1))
        return int(state.size // one)

    def parts(self, state: Array) -> list[Array]:
        """h and, for the LSTMs, c: views of a state in the kernels' form."""
        flat, parts, begin = state.reshape(-1), [], 0
        for shape in self.shapes(self.batch(state)):
            end = begin + math.prod(shape)
            parts.append(flat[begin:end].reshape(shape))
            begin = end
        return parts

    def parts_of(self, state: Any, batch: int) -> list[Any]:
        """The same of an array of a device."""
        parts, begin = [], 0
        for shape in self.shapes(batch):
            parts.append(state.view(begin, shape))
            begin += math.prod(shape)
        return parts

    def joined(self, parts: Sequence[Array]) -> Array:
        """The inverse of `parts`."""
        flat: Array = np.concatenate([part.reshape(-1) for part in parts])
        return flat.reshape(self._core.state_shape(parts[0].shape[1]))

    def public(self, state: Any) -> State:
        """The caller's form of a state, as views."""
        on_host = isinstance(state, np.ndarray)
        parts = self.parts(state) if on_host else self.parts_of(state, self.batch(state))
        return parts[0] if len(parts) == 1 else (parts[0], parts[1])

    def checked(self, name: str, state: State, batch: int, letters: str) -> Array | None:
        """The kernels' form of a caller's state; None for None.

        TypeError and ValueError name the wrong part. letters: its shape, as "[L, B, H]".
        """
        if state is None:
            return None
        shapes = self.shapes(batch)
        if len(shapes) == 2:
            if not (isinstance(state, (tuple, list)) and len(state) == 2):
                raise TypeError(f"{name} must be a tuple (h, c), got {type(state).__name__}")
            parts = {f"{name}[0] (h)": state[0], f"{name}[1] (c)": state[1]}
        else:
            parts = {name: state}
        for (part, value), shape in zip(parts.items(), shapes, strict=True):
            parts[part] = value = floats(part, value, self._dtype)
            if value.shape != shape:
                raise ValueError(f"{part} must have shape {letters} = {shape}, got {value.shape}")
        return self.joined(list(parts.values()))

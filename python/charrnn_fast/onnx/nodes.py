"""ONNX's LSTM, GRU and RNN operators: which cells they are, and the order of their gates."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Form(NamedTuple):
    """How one of ONNX's operators computes a cell."""

    operator: str
    rows: tuple[tuple[int, int], ...]
    """For each gate of ONNX, in its order, the gate here and the sign of its weights."""
    attributes: dict[str, Any]
    peepholes: tuple[int, ...] = ()
    """For each row of ONNX's P, the row of weight_peephole."""

    def to_onnx(self, value: Array) -> Array:
        """The rows of a matrix or vector of all gates, in ONNX's order."""
        gates = np.split(value, 1 + max(gate for gate, _ in self.rows))
        return np.concatenate(
            [gates[gate] if sign > 0 else -gates[gate] for gate, sign in self.rows]
        )

    def from_onnx(self, value: Array) -> Array:
        """The inverse of `to_onnx`."""
        theirs = np.split(value, len(self.rows))
        ours: dict[int, Array] = {}
        for part, (gate, sign) in zip(theirs, self.rows, strict=True):
            ours.setdefault(gate, part if sign > 0 else -part)
        return np.concatenate([ours[gate] for gate in sorted(ours)])


# i, o, f, c of an LSTM, z, r, h of a GRU. With input_forget f is 1 - i, where here i is 1 - f. As
# 1 - sigmoid(a) is sigmoid(-a), i has the rows of f with the other sign; those of f are not read.
FORMS = {
    ("rnn", "tanh"): Form("RNN", ((0, 1),), {}),
    ("rnn", "relu"): Form("RNN", ((0, 1),), {"activations": ["Relu"]}),
    ("gru", "tanh"): Form("GRU", ((1, 1), (0, 1), (2, 1)), {"linear_before_reset": 1}),
    ("lstm", "tanh"): Form("LSTM", ((0, 1), (3, 1), (1, 1), (2, 1)), {}),
    ("peephole_lstm", "tanh"): Form("LSTM", ((0, 1), (3, 1), (1, 1), (2, 1)), {}, (0, 2, 1)),
    ("coupled_lstm", "tanh"): Form("LSTM", ((0, -1), (2, 1), (0, 1), (1, 1)), {"input_forget": 1}),
}
"""By cell and nonlinearity, as `registry.CELLS`."""

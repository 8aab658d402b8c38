"""The cells: one step of one layer, each backward under its forward.

gx, gh [B, G*H] are the input's and the recurrent part of the gates; states are [B, H]. prev holds
the states before the step and, after them, the per-unit weights of cells that have such. A cell's h
is the one before projection; prev[0] is projected, [B, P]. The kernels' cells are in
``cpp/include/charrnn_fast/cells.hpp``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .arrays import Array, States


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    y: Array = 0.5 * np.tanh(0.5 * x) + 0.5
    return y


def _rnn_tanh(gx: Array, gh: Array, prev: States) -> tuple[States, States]:
    h = np.tanh(gx + gh)
    return (h,), (h,)


def _rnn_tanh_backward(saved: States, prev: States, dnext: States) -> tuple[Array, Array, States]:
    (h,), (dh,) = saved, dnext
    dg = dh * (1 - h * h)
    return dg, dg, (np.zeros_like(prev[0]),)


def _rnn_relu(gx: Array, gh: Array, prev: States) -> tuple[States, States]:
    h = np.maximum(gx + gh, 0)
    return (h,), (h,)


def _rnn_relu_backward(saved: States, prev: States, dnext: States) -> tuple[Array, Array, States]:
    (h,), (dh,) = saved, dnext
    dg = dh * (h > 0)
    return dg, dg, (np.zeros_like(prev[0]),)


def _lstm(gx: Array, gh: Array, prev: States) -> tuple[States, States]:
    a_i, a_f, a_g, a_o = np.split(gx + gh, 4, axis=-1)
    i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
    c = f * prev[1] + i * g
    tanh_c = np.tanh(c)
    return (o * tanh_c, c), (i, f, g, o, tanh_c)


def _lstm_backward(saved: States, prev: States, dnext: States) -> tuple[Array, Array, States]:
    (i, f, g, o, tanh_c), (dh, dc) = saved, dnext
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    da_i = dc * g * i * (1 - i)
    da_f = dc * prev[1] * f * (1 - f)
    da_g = dc * i * (1 - g * g)
    da_o = dh * tanh_c * o * (1 - o)
    dg = np.concatenate((da_i, da_f, da_g, da_o), axis=-1)
    return dg, dg, (np.zeros_like(prev[0]), dc * f)


def _peephole_lstm(gx: Array, gh: Array, prev: States) -> tuple[States, States]:
    # the gates see c: i and f the c before the step, o the c after it
    a_i, a_f, a_g, a_o = np.split(gx + gh, 4, axis=-1)
    _, c_prev, (p_i, p_f, p_o) = prev
    i, f, g = sigmoid(a_i + p_i * c_prev), sigmoid(a_f + p_f * c_prev), np.tanh(a_g)
    c = f * c_prev + i * g
    o, tanh_c = sigmoid(a_o + p_o * c), np.tanh(c)
    return (o * tanh_c, c), (i, f, g, o, c, tanh_c)


def _peephole_lstm_backward(
    saved: States, prev: States, dnext: States
) -> tuple[Array, Array, States]:
    (i, f, g, o, c, tanh_c), (dh, dc) = saved, dnext
    _, c_prev, (p_i, p_f, p_o) = prev
    da_o = dh * tanh_c * o * (1 - o)
    dc = dc + dh * o * (1 - tanh_c * tanh_c) + da_o * p_o
    da_i = dc * g * i * (1 - i)
    da_f = dc * c_prev * f * (1 - f)
    da_g = dc * i * (1 - g * g)
    dg = np.concatenate((da_i, da_f, da_g, da_o), axis=-1)
    dp = np.stack([(da_i * c_prev).sum(0), (da_f * c_prev).sum(0), (da_o * c).sum(0)])
    return dg, dg, (np.zeros_like(prev[0]), dc * f + da_i * p_i + da_f * p_f, dp)


def _coupled_lstm(gx: Array, gh: Array, prev: States) -> tuple[States, States]:
    # the input gate is coupled to the forget gate: i = 1 - f
    a_f, a_g, a_o = np.split(gx + gh, 3, axis=-1)
    f, g, o = sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
    c = f * prev[1] + (1 - f) * g
    tanh_c = np.tanh(c)
    return (o * tanh_c, c), (f, g, o, tanh_c)


def _coupled_lstm_backward(
    saved: States, prev: States, dnext: States
) -> tuple[Array, Array, States]:
    (f, g, o, tanh_c), (dh, dc) = saved, dnext
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    da_f = dc * (prev[1] - g) * f * (1 - f)
    da_g = dc * (1 - f) * (1 - g * g)
    da_o = dh * tanh_c * o * (1 - o)
    dg = np.concatenate((da_f, da_g, da_o), axis=-1)
    return dg, dg, (np.zeros_like(prev[0]), dc * f)


def _gru(gx: Array, gh: Array, prev: States) -> tuple[States, States]:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(gx, 3, axis=-1), np.split(gh, 3, axis=-1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    n = np.tanh(x_n + r * h_n)
    return ((1 - z) * n + z * prev[0],), (r, z, n, h_n)


def _gru_backward(saved: States, prev: States, dnext: States) -> tuple[Array, Array, States]:
    (r, z, n, h_n), (dh,) = saved, dnext
    da_n = dh * (1 - z) * (1 - n * n)
    da_z = dh * (prev[0] - n) * z * (1 - z)
    da_r = da_n * h_n * r * (1 - r)
    dgx = np.concatenate((da_r, da_z, da_n), axis=-1)
    dgh = np.concatenate((da_r, da_z, da_n * r), axis=-1)
    return dgx, dgh, (dh * z,)


class Cell(NamedTuple):
    """The properties of a cell that a layer needs."""

    num_gates: int
    num_states: int
    forward: Callable[[Array, Array, States], tuple[States, States]]
    # returns only the pointwise part of dprev: the recurrence adds dgh @ W_hh to dh
    backward: Callable[[States, States, States], tuple[Array, Array, States]]
    blocks: tuple[int, ...] = (1,)  # numbers of gates that layer norm takes together
    weights: tuple[str, int] | None = None  # per unit: the name after "weight_", rows [., H]


CELLS = {
    ("rnn", "tanh"): Cell(1, 1, _rnn_tanh, _rnn_tanh_backward),
    ("rnn", "relu"): Cell(1, 1, _rnn_relu, _rnn_relu_backward),
    ("gru", "tanh"): Cell(3, 1, _gru, _gru_backward, blocks=(2, 1)),  # r and z; n alone
    ("lstm", "tanh"): Cell(4, 2, _lstm, _lstm_backward),
    ("peephole_lstm", "tanh"): Cell(
        4, 2, _peephole_lstm, _peephole_lstm_backward, weights=("peephole", 3)
    ),
    ("coupled_lstm", "tanh"): Cell(3, 2, _coupled_lstm, _coupled_lstm_backward),
}


def find_cell(cell: str, nonlinearity: str) -> Cell:
    """The cell of these names; ValueError if there is none."""
    try:
        return CELLS[cell, nonlinearity]
    except KeyError:
        raise ValueError(
            f"cell and nonlinearity must be one of "
            f"{', '.join(f'{name!r} with {its!r}' for name, its in CELLS)}, "
            f"got {cell!r} with {nonlinearity!r}"
        ) from None

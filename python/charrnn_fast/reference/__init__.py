"""The math of the kernels in NumPy, short enough to read in one sitting. Imports NumPy only.

Everything is a plain function of arrays, in any floating dtype; each backward stands right under
its forward. Shapes: T seq_len, B batch, I input_size, H hidden_size, L num_layers, D directions
(1 or 2), G num_gates, P proj_size, R the width of h (P, or H without a projection), V output_size.
Time comes first and batch second; one row of a matrix belongs to one unit.

    the article     shape       the name in a dict of parameters (PyTorch's)
    W_xh            [G*H, I]    weight_ih_l0   (upper layers: weight_ih_l1 [G*H, D*R], ...)
    W_hh            [G*H, R]    weight_hh_l0
    b_h             [G*H]       bias_ih_l0 + bias_hh_l0   (bias="single": bias_ih_l0 alone)
    (peepholes)     [3, H]      weight_peephole_l0   (peephole_lstm: those of i, f, o)
    (gains)         [G*H]       gain_ih_l0, gain_hh_l0   (layer_norm)
    (projection)    [P, H]      weight_hr_l0   (proj_size)
    W_hy            [V, D*R]    decoder.weight
    b_y             [V]         decoder.bias

The other direction's weights are named weight_ih_l0_reverse and so on. A state is h [L*D, B, R]
(rnn, gru) or (h, c), with c [L*D, B, H] (the LSTMs); layer l's direction d is row l*D + d.

Sources: "the article" is A. Karpathy, The Unreasonable Effectiveness of Recurrent Neural Networks
(2015) and its program min-char-rnn; LSTM: Hochreiter and Schmidhuber (1997) with the forget gate
of Gers et al. (2000), its variants: Greff et al., LSTM: A Search Space Odyssey (2017), its
projection: Sak et al. (2014); GRU: Cho et al. (2014), with the reset gate behind the matrix
product, as in cuDNN and PyTorch; two directions: Schuster and Paliwal (1997). Gate order and
formulas are those of torch.nn.RNN, LSTM and GRU. Further ones stand where they are used.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = [
    "INPUT",
    "OUTPUT",
    "RECURRENT",
    "RNN",
    "SGD",
    "WEIGHT_DROP",
    "ZONEOUT_C",
    "ZONEOUT_H",
    "Adagrad",
    "Adam",
    "AdamW",
    "Cache",
    "RMSprop",
    "Regularization",
    "backward",
    "binary_cross_entropy",
    "clip_grad_norm",
    "clip_grad_value",
    "cross_entropy",
    "forward",
    "init_parameters",
    "mask",
    "mean_square",
    "multipliers",
    "philox",
    "sample",
    "sample_tokens",
    "site",
    "uniform",
]

Array = NDArray[Any]
Parameters = dict[str, Array]
State = Array | tuple[Array, Array]
_States = tuple[Array, ...]  # one array for each of a cell's states: (h,) or (h, c)
_Norm = tuple[Array, Array] | None  # what layer norm keeps: N(v) and 1 / sqrt(var + 1e-5)


# ---- The article's class ------------------------------------------------------------------------


class RNN:
    """The article's class to the letter: one tanh layer, one vector at a time, no biases."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        dtype: DTypeLike = "float32",
        seed: int = 0,
    ) -> None:
        weights = init_parameters(
            input_size, hidden_size, output_size, bias=False, dtype=dtype, seed=seed
        )
        self.W_xh = weights["weight_ih_l0"]  # [H, I]
        self.W_hh = weights["weight_hh_l0"]  # [H, H]
        self.W_hy = weights["decoder.weight"]  # [V, H]
        self.h = np.zeros(hidden_size, dtype)  # [H]

    def step(self, x: Array) -> Array:
        """x [I] -> y [V]; the hidden state is carried to the next call."""
        self.h = np.tanh(np.dot(self.W_hh, self.h) + np.dot(self.W_xh, x))
        y: Array = np.dot(self.W_hy, self.h)
        return y


# ---- Cells: gx, gh [B, G*H], the input's and the recurrent part of the gates; states [B, H] -----
#
# prev are the states before the step and, behind them, the peepholes where the cell has them.
# The cell's h is the one before a projection; prev[0] is then a projected one, [B, P].


def _sigmoid(x: Array) -> Array:
    # 1 / (1 + exp(-x)) without its overflow
    y: Array = 0.5 * np.tanh(0.5 * x) + 0.5
    return y


def _rnn_tanh(gx: Array, gh: Array, prev: _States) -> tuple[_States, _States]:
    h = np.tanh(gx + gh)
    return (h,), (h,)


def _rnn_tanh_backward(
    saved: _States, prev: _States, dnext: _States
) -> tuple[Array, Array, _States]:
    (h,), (dh,) = saved, dnext
    dg = dh * (1 - h * h)
    return dg, dg, (np.zeros_like(prev[0]),)


def _rnn_relu(gx: Array, gh: Array, prev: _States) -> tuple[_States, _States]:
    h = np.maximum(gx + gh, 0)
    return (h,), (h,)


def _rnn_relu_backward(
    saved: _States, prev: _States, dnext: _States
) -> tuple[Array, Array, _States]:
    (h,), (dh,) = saved, dnext
    dg = dh * (h > 0)
    return dg, dg, (np.zeros_like(prev[0]),)


def _lstm(gx: Array, gh: Array, prev: _States) -> tuple[_States, _States]:
    a_i, a_f, a_g, a_o = np.split(gx + gh, 4, axis=-1)
    i, f, g, o = _sigmoid(a_i), _sigmoid(a_f), np.tanh(a_g), _sigmoid(a_o)
    c = f * prev[1] + i * g
    tanh_c = np.tanh(c)
    return (o * tanh_c, c), (i, f, g, o, tanh_c)


def _lstm_backward(saved: _States, prev: _States, dnext: _States) -> tuple[Array, Array, _States]:
    (i, f, g, o, tanh_c), (dh, dc) = saved, dnext
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    da_i = dc * g * i * (1 - i)
    da_f = dc * prev[1] * f * (1 - f)
    da_g = dc * i * (1 - g * g)
    da_o = dh * tanh_c * o * (1 - o)
    dg = np.concatenate((da_i, da_f, da_g, da_o), axis=-1)
    return dg, dg, (np.zeros_like(prev[0]), dc * f)


def _peephole_lstm(gx: Array, gh: Array, prev: _States) -> tuple[_States, _States]:
    # the gates see c: i and f the one before the step, o the one after it
    a_i, a_f, a_g, a_o = np.split(gx + gh, 4, axis=-1)
    _, c_prev, (p_i, p_f, p_o) = prev
    i, f, g = _sigmoid(a_i + p_i * c_prev), _sigmoid(a_f + p_f * c_prev), np.tanh(a_g)
    c = f * c_prev + i * g
    o, tanh_c = _sigmoid(a_o + p_o * c), np.tanh(c)
    return (o * tanh_c, c), (i, f, g, o, c, tanh_c)


def _peephole_lstm_backward(
    saved: _States, prev: _States, dnext: _States
) -> tuple[Array, Array, _States]:
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


def _coupled_lstm(gx: Array, gh: Array, prev: _States) -> tuple[_States, _States]:
    # as much comes in as is forgotten: i = 1 - f
    a_f, a_g, a_o = np.split(gx + gh, 3, axis=-1)
    f, g, o = _sigmoid(a_f), np.tanh(a_g), _sigmoid(a_o)
    c = f * prev[1] + (1 - f) * g
    tanh_c = np.tanh(c)
    return (o * tanh_c, c), (f, g, o, tanh_c)


def _coupled_lstm_backward(
    saved: _States, prev: _States, dnext: _States
) -> tuple[Array, Array, _States]:
    (f, g, o, tanh_c), (dh, dc) = saved, dnext
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    da_f = dc * (prev[1] - g) * f * (1 - f)
    da_g = dc * (1 - f) * (1 - g * g)
    da_o = dh * tanh_c * o * (1 - o)
    dg = np.concatenate((da_f, da_g, da_o), axis=-1)
    return dg, dg, (np.zeros_like(prev[0]), dc * f)


def _gru(gx: Array, gh: Array, prev: _States) -> tuple[_States, _States]:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(gx, 3, axis=-1), np.split(gh, 3, axis=-1)
    r, z = _sigmoid(x_r + h_r), _sigmoid(x_z + h_z)
    n = np.tanh(x_n + r * h_n)
    return ((1 - z) * n + z * prev[0],), (r, z, n, h_n)


def _gru_backward(saved: _States, prev: _States, dnext: _States) -> tuple[Array, Array, _States]:
    (r, z, n, h_n), (dh,) = saved, dnext
    da_n = dh * (1 - z) * (1 - n * n)
    da_z = dh * (prev[0] - n) * z * (1 - z)
    da_r = da_n * h_n * r * (1 - r)
    dgx = np.concatenate((da_r, da_z, da_n), axis=-1)
    dgh = np.concatenate((da_r, da_z, da_n * r), axis=-1)
    return dgx, dgh, (dh * z,)


class _Cell(NamedTuple):
    num_gates: int
    num_states: int
    forward: Callable[[Array, Array, _States], tuple[_States, _States]]
    # gives only the pointwise part of dprev: the recurrence adds dgh @ W_hh to dh
    backward: Callable[[_States, _States, _States], tuple[Array, Array, _States]]
    blocks: tuple[int, ...] = (1,)  # the shares of the gates that layer norm takes together


_CELLS = {
    ("rnn", "tanh"): _Cell(1, 1, _rnn_tanh, _rnn_tanh_backward),
    ("rnn", "relu"): _Cell(1, 1, _rnn_relu, _rnn_relu_backward),
    ("gru", "tanh"): _Cell(3, 1, _gru, _gru_backward, blocks=(2, 1)),  # r and z; n by itself
    ("lstm", "tanh"): _Cell(4, 2, _lstm, _lstm_backward),
    ("peephole_lstm", "tanh"): _Cell(4, 2, _peephole_lstm, _peephole_lstm_backward),
    ("coupled_lstm", "tanh"): _Cell(3, 2, _coupled_lstm, _coupled_lstm_backward),
}


def _find_cell(cell: str, nonlinearity: str) -> _Cell:
    try:
        return _CELLS[cell, nonlinearity]
    except KeyError:
        raise ValueError(
            f"cell={cell!r} with nonlinearity={nonlinearity!r} does not exist; "
            "cell takes 'rnn', 'gru', 'lstm', 'peephole_lstm' or 'coupled_lstm', "
            "nonlinearity 'tanh' or (rnn only) 'relu'"
        ) from None


# ---- Layer norm ---------------------------------------------------------------------------------


def _normalize(v: Array, blocks: tuple[int, ...]) -> tuple[Array, Array]:
    """N(v) = (v - mean) / sqrt(var + 1e-5) in each block of v's columns, and 1 / sqrt(var + 1e-5).

    Ba, Kiros and Hinton, Layer Normalization (2016), eq. 20 to 22; the variance is the biased one.
    """
    centred = v - _means(v, blocks)
    scale = 1 / np.sqrt(_means(centred * centred, blocks) + 1e-5)
    return centred * scale, scale


def _normalize_backward(dn: Array, n: Array, scale: Array, blocks: tuple[int, ...]) -> Array:
    dv: Array = scale * (dn - _means(dn, blocks) - n * _means(dn * n, blocks))
    return dv


def _means(v: Array, blocks: tuple[int, ...]) -> Array:
    """Each column holds its block's mean; blocks are given by their shares of the columns."""
    edges = np.cumsum(blocks)[:-1] * v.shape[-1] // sum(blocks)
    parts = np.split(v, edges, axis=-1)
    means = [np.broadcast_to(part.mean(-1, keepdims=True), part.shape) for part in parts]
    return np.concatenate(means, axis=-1)


# ---- Random numbers and masks -------------------------------------------------------------------


def philox(seed: int, position: int, lane: int = 0) -> tuple[int, int, int, int]:
    """Philox4x32-10: four random 32-bit words from a 64-bit key and a counter, with no state.

    Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011). The key is `seed`; the
    counter's words are the low and high half of `position`, `lane`, and 0.
    """
    word = 0xFFFFFFFF
    return _philox(seed, position & word, position >> 32 & word, lane & word, 0)


def _philox(seed: int, c0: Any, c1: Any, c2: Any, c3: Any) -> tuple[Any, Any, Any, Any]:
    """The same for any counter; its words may be arrays of uint64, which are broadcast."""
    word = 0xFFFFFFFF
    key0, key1 = seed & word, seed >> 32 & word
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = b >> 32 ^ c1 ^ key0, b & word, a >> 32 ^ c3 ^ key1, a & word
        key0, key1 = key0 + 0x9E3779B9 & word, key1 + 0xBB67AE85 & word
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """The uniform number in [0, 1) that decides draw `position` of stream `seed`: 24 bits."""
    return (philox(seed, position)[0] >> 8) * 2.0**-24


# the kinds of masks; OUTPUT stands at the layer above the last
INPUT, RECURRENT, ZONEOUT_H, ZONEOUT_C, WEIGHT_DROP, OUTPUT = range(6)


def site(kind: int, layer: int, direction: int = 0) -> int:
    """The number of the place in the network that a mask is for: a word of its counters."""
    return (layer * 2 + direction) * 8 + kind


def mask(seed: int, site: int, rate: float, time: Any, streams: Any, units: Any) -> Array:
    """True, with probability `rate`, where an element is dropped (zoneout: keeps its old value).

    `time` is the step in the sequence (0 for one mask per call), `streams` the row of the batch
    (weight_drop: of W_hh), `units` the column: integers or arrays of them, broadcast together; the
    result has their shape. Each element depends on its own numbers alone. Raises ValueError for a
    rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"a mask takes rates in [0, 1), got {rate}")
    # Each counter gives four words: those of units 16 apart, so that 16 counters give 64 units.
    block, place = np.divmod(np.asarray(units, "int64"), 64)
    c0, c1, c2 = (np.array(c, "uint64", ndmin=1) for c in (block * 16 + place % 16, streams, time))
    words = np.choose(place // 16, _philox(seed, c0, c1, c2, site))
    shape = np.broadcast_shapes(np.shape(time), np.shape(streams), np.shape(units))
    dropped: Array = words.reshape(shape) < math.floor(rate * 2**32)
    return dropped


def multipliers(seed: int, site: int, rate: float, time: Any, streams: Any, units: Any) -> Array:
    """0 where `mask` drops, else 1 / (1 - rate), in float64: inverted dropout."""
    return np.where(mask(seed, site, rate, time, streams, units), 0, 1 / (1 - rate))


# ---- The network --------------------------------------------------------------------------------


class Regularization(NamedTuple):
    """What a call of `forward` with a `mask_seed` makes noise of: the rates of its masks.

    Dropout (Srivastava et al., 2014) multiplies by 0 or by 1 / (1 - rate).
    """

    dropout: float = 0.0  # the input of each layer but the first
    input_dropout: float = 0.0  # x; a token is its one-hot vector
    output_dropout: float = 0.0  # the top layer's h, on its way to the decoder
    recurrent_dropout: float = 0.0  # h on its way to W_hh
    variational: bool = False  # these four: one mask for all steps (Gal and Ghahramani, 2016)
    weight_drop: float = 0.0  # W_hh, one mask for all steps (Merity et al., 2018)
    # h and c keep their old values (Krueger et al., 2017); with no mask_seed, by the expectation:
    # rate old + (1 - rate) new
    zoneout: tuple[float, float] = (0.0, 0.0)


def init_parameters(
    input_size: int,
    hidden_size: int,
    output_size: int | None = None,
    *,
    cell: str = "rnn",
    num_layers: int = 1,
    bias: bool | str = True,
    bidirectional: bool = False,
    proj_size: int = 0,
    layer_norm: bool = False,
    dtype: DTypeLike = "float32",
    seed: int = 0,
) -> Parameters:
    """Parameters drawn uniformly from [-1/sqrt(H), 1/sqrt(H)), by name, as PyTorch draws them.

    `output_size=None` leaves out the decoder. `bias` is True (bias_ih and bias_hh), "single"
    (bias_ih only) or False (neither, and no decoder.bias). `proj_size=0` leaves h as it is; the
    gains of `layer_norm` start at 1. Raises ValueError for others.
    """
    unit, H = _find_cell(cell, "tanh"), hidden_size
    if bias not in (True, False, "single"):
        raise ValueError(f"bias takes True, 'single' or False, got {bias!r}")
    if proj_size and unit.num_states == 1:
        raise ValueError(f"proj_size={proj_size} is for the LSTMs, got cell={cell!r}")
    rows, R, D = unit.num_gates * H, proj_size or H, 2 if bidirectional else 1
    shapes = dict[str, tuple[int, ...]]()
    for k in range(num_layers):
        for suffix in (f"_l{k}", f"_l{k}_reverse")[:D]:
            shapes["weight_ih" + suffix] = (rows, D * R if k else input_size)
            shapes["weight_hh" + suffix] = (rows, R)
            if bias:
                shapes["bias_ih" + suffix] = (rows,)
            if bias is True:
                shapes["bias_hh" + suffix] = (rows,)
            if cell == "peephole_lstm":
                shapes["weight_peephole" + suffix] = (3, H)
            if layer_norm:
                shapes["gain_ih" + suffix] = shapes["gain_hh" + suffix] = (rows,)
            if proj_size:
                shapes["weight_hr" + suffix] = (proj_size, H)
    if output_size is not None:
        shapes["decoder.weight"] = (output_size, D * R)
        if bias:
            shapes["decoder.bias"] = (output_size,)
    rng, limit = np.random.default_rng(seed), H**-0.5
    return {
        name: np.ones(shape, dtype)
        if name.startswith("gain")
        else rng.uniform(-limit, limit, shape).astype(dtype)
        for name, shape in shapes.items()
    }


class _Call(NamedTuple):
    """What `forward` was asked for that is the same for all layers."""

    regularization: Regularization
    seed: int | None
    dtype: DTypeLike
    time: Array  # [T, 1, 1], the steps in the order of the walk
    streams: Array  # [B, 1]
    alive: Array | None  # [T, B, 1], whether the row has such a step; None: every row has

    def turned(self) -> _Call:
        alive = None if self.alive is None else self.alive[::-1]
        return self._replace(time=self.time[::-1], alive=alive)

    def dropout(self, site: int, rate: float, units: Array) -> Array | None:
        """Multipliers [T, B, units]; None for no dropout."""
        if self.seed is None or rate == 0:
            return None
        time = 0 * self.time if self.regularization.variational else self.time
        return multipliers(self.seed, site, rate, time, self.streams, units).astype(self.dtype)

    def weight_drop(self, site: int, W_hh: Array) -> Array | None:
        """Multipliers of W_hh's shape; None for no dropout."""
        rate = self.regularization.weight_drop
        if self.seed is None or rate == 0:
            return None
        rows, columns = np.arange(len(W_hh))[:, None], np.arange(W_hh.shape[1])
        return multipliers(self.seed, site, rate, 0, rows, columns).astype(self.dtype)

    def held(self, site: int, rate: float, units: Array) -> Array | None:
        """The old state's share of the new one, [T, B, units or 1]; None where it has none."""
        held: Array | None = np.full(self.time.shape, rate) if rate else None
        if rate and self.seed is not None:
            held = mask(self.seed, site, rate, self.time, self.streams, units)
        if self.alive is not None:  # a row that has ended keeps its state
            held = np.where(self.alive, 0 if held is None else held, 1)
        return None if held is None else held.astype(self.dtype)


class _Noise(NamedTuple):
    """The masks of one layer and direction, as `_Call` gives them."""

    x: Array | None
    h: Array | None
    W_hh: Array | None
    held: list[Array | None]  # one for each state


class _Trace(NamedTuple):
    """What a layer keeps of one direction for its backward; time as the direction walks it."""

    x: Array  # [T, B, I] after dropout, or tokens [T, B]
    x_norm: _Norm
    states: list[_States]  # T + 1 of them, the initial one first; each [B, R or H]
    saved: list[_States]  # T of them: what the cell saved, each [B, H]
    h_norm: list[_Norm]  # T
    h_cell: list[Array]  # T: the cell's h [B, H], before projection and zoneout
    W_hh: Array  # after weight_drop
    noise: _Noise


class Cache(NamedTuple):
    """What `forward` keeps for `backward`."""

    cell: _Cell
    layers: list[_Trace]  # L*D
    h: Array  # [T, B, D*R], the top layer's hidden vectors after dropout
    noise: Array | None  # the multipliers in them
    alive: Array | None  # [T, B, 1]


def _gates(product: Array, own: Parameters, side: str, cell: _Cell) -> tuple[Array, _Norm]:
    """One side's part of the gates, "ih" or "hh", from W x or W h: gain N(W x) + bias."""
    norm = None
    if f"gain_{side}" in own:
        norm = _normalize(product, cell.blocks)
        product = own[f"gain_{side}"] * norm[0]
    return product + own.get(f"bias_{side}", 0), norm


def _gates_backward(
    dg: Array, own: Parameters, side: str, cell: _Cell, norm: _Norm, grads: Parameters
) -> Array:
    """The gradient of the product; those of gain and bias are added to `grads`."""
    axes = tuple(range(dg.ndim - 1))
    if f"bias_{side}" in own:
        grads[f"bias_{side}"] += dg.sum(axes)
    if norm is None:
        return dg
    grads[f"gain_{side}"] += (dg * norm[0]).sum(axes)
    return _normalize_backward(own[f"gain_{side}"] * dg, *norm, cell.blocks)


def _direction(
    cell: _Cell, own: Parameters, x: Array, first: _States, call: _Call, layer: int, direction: int
) -> tuple[Array, _Trace]:
    """One layer in one direction from x and its initial states: its hidden vectors [T, B, R].

    `own` are its parameters, without the suffix; x and `call` have time as it walks.
    """
    W_xh, W_hh, peephole = own["weight_ih"], own["weight_hh"], _peephole(own)
    rates, sites = call.regularization, [site(kind, layer, direction) for kind in range(OUTPUT)]
    columns = x[..., None] if _are_tokens(x) else np.arange(W_xh.shape[1])
    noise = _Noise(
        call.dropout(site(INPUT, layer), rates.dropout if layer else rates.input_dropout, columns),
        call.dropout(sites[RECURRENT], rates.recurrent_dropout, np.arange(W_hh.shape[1])),
        call.weight_drop(sites[WEIGHT_DROP], W_hh),
        [
            call.held(sites[kind], rate, np.arange(s.shape[1]))
            for kind, rate, s in zip((ZONEOUT_H, ZONEOUT_C), rates.zoneout, first, strict=False)
        ],
    )
    W_hh = _times(W_hh, noise.W_hh)
    if _are_tokens(x):
        _check_ids("x", x, W_xh.shape[1])
        product = _times(W_xh.T[x], noise.x)  # the column that a one-hot vector picks
    else:
        x = _times(x, noise.x)
        product = x @ W_xh.T
    gx, x_norm = _gates(product, own, "ih", cell)
    trace = _Trace(x, x_norm, [first], [], [], [], W_hh, noise)
    h = np.empty((*x.shape[:2], W_hh.shape[1]), W_hh.dtype)
    for t in range(len(x)):
        prev = trace.states[t]
        gh, h_norm = _gates(_times(prev[0], noise.h, t) @ W_hh.T, own, "hh", cell)
        (h_cell, *c), saved = cell.forward(gx[t], gh, prev + peephole)
        new = (h_cell @ own["weight_hr"].T if "weight_hr" in own else h_cell, *c)
        following = tuple(
            n if m is None else m[t] * s + (1 - m[t]) * n
            for m, s, n in zip(noise.held, prev, new, strict=True)
        )
        trace.states.append(following)
        trace.saved.append(saved)
        trace.h_norm.append(h_norm)
        trace.h_cell.append(h_cell)
        h[t] = following[0]
    return h, trace


def _direction_backward(
    cell: _Cell, own: Parameters, trace: _Trace, dh: Array, dnext: _States
) -> tuple[Array | None, _States, Parameters]:
    """dx (None for tokens), the gradients of the initial states and of `own`.

    From dh [T, B, R], the gradient of the hidden vectors, and that of the final states.
    """
    W_xh, noise, peephole = own["weight_ih"], trace.noise, _peephole(own)
    grads = {name: np.zeros_like(value) for name, value in own.items()}
    dgx = np.empty((*dh.shape[:2], len(W_xh)), dh.dtype)
    dproduct, h_prev = np.empty_like(dgx), np.empty_like(dh)
    for t in reversed(range(len(dh))):
        prev, dnext = trace.states[t], (dnext[0] + dh[t], *dnext[1:])
        dheld = [0 if m is None else m[t] * d for m, d in zip(noise.held, dnext, strict=True)]
        dh_cell, *dc = (d - kept for d, kept in zip(dnext, dheld, strict=True))
        if "weight_hr" in own:
            grads["weight_hr"] += dh_cell.T @ trace.h_cell[t]
            dh_cell = dh_cell @ own["weight_hr"]
        dgx[t], dgh, dprev = cell.backward(trace.saved[t], prev + peephole, (dh_cell, *dc))
        if peephole:
            grads["weight_peephole"] += dprev[-1]
        dproduct[t] = _gates_backward(dgh, own, "hh", cell, trace.h_norm[t], grads)
        h_prev[t] = _times(prev[0], noise.h, t)
        dstates = (dprev[0] + _times(dproduct[t] @ trace.W_hh, noise.h, t), *dprev[1:])
        dnext = tuple(d + kept for d, kept in zip(dstates, dheld, strict=False))

    grads["weight_hh"] = _times(_outer(dproduct, h_prev), noise.W_hh)
    dproduct = _gates_backward(dgx, own, "ih", cell, trace.x_norm, grads)
    if _are_tokens(trace.x):
        np.add.at(grads["weight_ih"].T, trace.x, _times(dproduct, noise.x))
        return None, dnext, grads
    grads["weight_ih"] = _outer(dproduct, trace.x)
    return _times(dproduct @ W_xh, noise.x), dnext, grads


def forward(
    parameters: Parameters,
    x: Array,
    state: State | None = None,
    *,
    cell: str = "rnn",
    nonlinearity: str = "tanh",
    lengths: ArrayLike | None = None,
    regularization: Regularization | None = None,
    mask_seed: int | None = None,
) -> tuple[Array, State, Cache]:
    """Run a stack of layers over a sequence from `state` (None: zero).

    x: [T, B, I], or integer tokens [T, B]; a token stands for its one-hot vector. Directions,
    projection and layer norm are those that `parameters` has.
    lengths [B]: row b has lengths[b] steps (None: T). Past them x is not read, y is 0 and the state
    stays; the reverse direction starts at the row's own last step.
    mask_seed: the key of the masks of `regularization`, an integer of 64 bits; None: no masks.
    Returns y [T, B, V] (without a decoder: the top layer's h [T, B, D*R]), the final state, and
    what `backward` needs. Raises ValueError for an unknown cell, a token outside [0, I), lengths
    outside [0, T] and for zoneout of an h that is projected.
    """
    unit, rates = _find_cell(cell, nonlinearity), regularization or Regularization()
    names, W_hh = _suffixes(parameters), parameters["weight_hh_l0"]
    T, B = x.shape[:2]
    alive = None
    if lengths is not None:
        _check_ids("lengths", np.asarray(lengths), T + 1)
        alive = (np.arange(T)[:, None] < np.asarray(lengths))[..., None]
        x = x if _are_tokens(x) else _living(x, alive)
    if rates.zoneout[0] and "weight_hr_l0" in parameters:
        raise ValueError(f"zoneout of h is not for projected h, got {rates.zoneout[0]}")
    if state is None:
        rows, (GH, R) = len(names) * len(names[0]), W_hh.shape
        state = np.zeros((rows, B, R), W_hh.dtype)
        if unit.num_states == 2:
            state = (state, np.zeros((rows, B, GH // unit.num_gates), W_hh.dtype))

    time, streams = np.arange(T)[:, None, None], np.arange(B)[:, None]
    call = _Call(rates, mask_seed, W_hh.dtype, time, streams, alive)
    firsts, traces, h = iter(_by_layer(state)), list[_Trace](), x
    for k, directions in enumerate(names):
        halves = []
        for d, suffix in enumerate(directions):
            # the reverse direction is the other one with time turned round
            turn, its = (slice(None, None, -1), call.turned()) if d else (slice(None), call)
            own = _own(parameters, suffix)
            half, trace = _direction(unit, own, h[turn], next(firsts), its, k, d)
            halves.append(half[turn])
            traces.append(trace)
        h = np.concatenate(halves, axis=-1)
    noise = call.dropout(site(OUTPUT, len(names)), rates.output_dropout, np.arange(h.shape[-1]))
    y = h = _times(h, noise)
    if "decoder.weight" in parameters:
        y = h @ parameters["decoder.weight"].T + parameters.get("decoder.bias", 0)
    last = _stacked([trace.states[-1] for trace in traces])
    return _living(y, alive), last, Cache(unit, traces, h, noise, alive)


def backward(
    parameters: Parameters, cache: Cache, dy: Array, dstate: State | None = None
) -> tuple[Array | None, State, Parameters]:
    """Backpropagation through time: the gradients of any scalar, given those of y and state.

    dy [T, B, V or D*R] and dstate (None: zero) are the gradients of what `forward` returned.
    Returns dx [T, B, I] (None for tokens), the gradient of the initial state, and the gradients of
    the parameters by name.
    """
    dh = dy = _living(dy, cache.alive)
    grads = Parameters()
    if "decoder.weight" in parameters:
        grads["decoder.weight"] = _outer(dy, cache.h)
        if "decoder.bias" in parameters:
            grads["decoder.bias"] = dy.sum((0, 1))
        dh = dy @ parameters["decoder.weight"]
    dh = _times(dh, cache.noise)
    if dstate is None:
        zeros = [tuple(np.zeros_like(s) for s in trace.states[-1]) for trace in cache.layers]
        dstate = _stacked(zeros)
    dlasts, traces = _by_layer(dstate), list(cache.layers)
    dx, dfirsts = None, list[_States]()
    for directions in reversed(_suffixes(parameters)):
        halves, dxs = np.split(dh, len(directions), axis=-1), []
        for suffix, half in reversed(list(zip(directions, halves, strict=True))):
            turn = slice(None, None, -1 if suffix.endswith("_reverse") else 1)
            dx, dfirst, own = _direction_backward(
                cache.cell, _own(parameters, suffix), traces.pop(), half[turn], dlasts.pop()
            )
            dfirsts.insert(0, dfirst)
            grads |= {name + suffix: grad for name, grad in own.items()}
            if dx is not None:
                dxs.append(dx[turn])
        if dxs:
            dx = dh = sum(dxs[1:], dxs[0])
    return dx, _stacked(dfirsts), {name: grads[name] for name in parameters}


def _suffixes(parameters: Parameters) -> list[list[str]]:
    """For each layer the ends of its parameters' names, one for each direction."""
    directions = ["", "_reverse"] if "weight_hh_l0_reverse" in parameters else [""]
    num_layers = sum(name.startswith("weight_hh_l") for name in parameters) // len(directions)
    return [[f"_l{k}{direction}" for direction in directions] for k in range(num_layers)]


def _own(parameters: Parameters, suffix: str) -> Parameters:
    """One layer's and direction's parameters, by names without the suffix."""
    ending = {name: p for name, p in parameters.items() if name.endswith(suffix)}
    return {name.removesuffix(suffix): p for name, p in ending.items()}


def _peephole(own: Parameters) -> _States:
    return (own["weight_peephole"],) if "weight_peephole" in own else ()


def _times(a: Array, m: Array | None, t: Any = ...) -> Array:
    """a ⊙ m[t], or a where there is no m."""
    return a if m is None else a * m[t]


def _living(a: Array, alive: Array | None) -> Array:
    """a [T, B, ...] with 0 where rows have ended."""
    return a if alive is None else np.where(alive, a, 0)


def _by_layer(state: State) -> list[_States]:
    """h or (h, c), each [L*D, B, ...], as L*D tuples of arrays [B, ...]."""
    return list(zip(*state, strict=True)) if isinstance(state, tuple) else [(h,) for h in state]


def _stacked(layers: list[_States]) -> State:
    """The inverse of `_by_layer`."""
    h, *c = (np.stack(parts) for parts in zip(*layers, strict=True))
    return (h, c[0]) if c else h


def _are_tokens(x: Array) -> bool:
    return np.issubdtype(x.dtype, np.integer)


def _outer(d: Array, x: Array) -> Array:
    """The sum of all outer products d[t, b] x[t, b]^T: a weight's gradient, [rows of d, of x]."""
    product: Array = d.reshape(-1, d.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return product


def _check_ids(name: str, ids: Array, size: int, lowest: int = 0) -> None:
    # NumPy would take a negative index from the end
    if ids.size and not lowest <= ids.min() <= ids.max() < size:
        found = f"{ids.min()} to {ids.max()}"
        raise ValueError(f"{name} takes integers in [{lowest}, {size}), got {found}")


# ---- Losses, clipping ---------------------------------------------------------------------------


def cross_entropy(
    logits: Array, targets: Array, reduction: str = "mean", weights: Array | None = None
) -> tuple[float, Array]:
    """Softmax cross-entropy in nats: -log p(target), p = exp(logits) / sum(exp(logits)).

    logits [..., V], integer targets [...] in [0, V), or -1 where there is nothing to predict,
    weights [...] (None: 1) of the rows. `reduction` is "sum", of weight times loss, or "mean": that
    over the sum of the weights where targets are not -1 (0 where that is 0).
    Returns the loss and its gradient dlogits [..., V] = p - one_hot(target), weighted likewise.
    Raises ValueError for other targets and another reduction.
    """
    _check_ids("targets", targets, logits.shape[-1], lowest=-1)
    counted = targets != -1
    w, scale = _weighting(weights, counted, reduction)
    # the largest logit is taken off so that exp cannot overflow; p stays the same
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    index = np.where(counted, targets, 0)[..., None]
    loss = -np.take_along_axis(log_p, index, axis=-1)[..., 0]

    dlogits = np.exp(log_p)
    np.put_along_axis(dlogits, index, np.take_along_axis(dlogits, index, axis=-1) - 1, axis=-1)
    dlogits = np.where(counted[..., None], dlogits, 0) * w[..., None] / scale
    return float((loss * w)[counted].sum()) / scale, dlogits.astype(logits.dtype, copy=False)


def binary_cross_entropy(
    logits: Array, targets: Array, reduction: str = "mean", weights: Array | None = None
) -> tuple[float, Array]:
    """-z log(p) - (1 - z) log(1 - p) of each element, p = sigmoid(x), targets z in [0, 1].

    logits x, targets and weights (None: 1) have one shape; `reduction` is as for `cross_entropy`.
    Returns the loss and its gradient dlogits = p - z, weighted likewise.
    """
    w, scale = _weighting(weights, np.ones(logits.shape, bool), reduction)
    # the same loss with nothing in it that overflows
    loss = np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))
    dlogits = (_sigmoid(logits) - targets) * w / scale
    return float((loss * w).sum()) / scale, dlogits.astype(logits.dtype, copy=False)


def mean_square(
    y: Array, targets: Array, reduction: str = "mean", weights: Array | None = None
) -> tuple[float, Array]:
    """(y - z)^2 of each element, z the target.

    y, targets and weights (None: 1) have one shape; `reduction` is as for `cross_entropy`.
    Returns the loss and its gradient dy = 2 (y - z), weighted likewise.
    """
    w, scale = _weighting(weights, np.ones(y.shape, bool), reduction)
    difference = y - targets
    dy = 2 * difference * w / scale
    return float((difference * difference * w).sum()) / scale, dy.astype(y.dtype, copy=False)


def _weighting(weights: Array | None, counted: Array, reduction: str) -> tuple[Array, float]:
    """Each loss's weight, 0 where it does not count, and what their sum is divided by."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction takes 'mean' or 'sum', got {reduction!r}")
    w = counted if weights is None else np.where(counted, weights, 0)
    total = float(w.sum(dtype="float64")) if reduction == "mean" else 1.0
    return (w, total) if total else (np.zeros_like(w), 1.0)  # the mean of nothing is 0


def clip_grad_norm(grads: Parameters, max_norm: float) -> float:
    """Scale all gradients in place so that their joint 2-norm is at most max_norm; return the norm.

    The factor is min(1, max_norm / (norm + 1e-6)), as in torch.nn.utils.clip_grad_norm_.
    """
    norm = math.sqrt(sum(np.square(g, dtype="float64").sum() for g in grads.values()))
    factor = min(1.0, max_norm / (norm + 1e-6))
    for g in grads.values():
        g *= factor
    return norm


def clip_grad_value(grads: Parameters, limit: float) -> None:
    """Bring every element of every gradient into [-limit, limit], in place (min-char-rnn: 5)."""
    for g in grads.values():
        np.clip(g, -limit, limit, out=g)


# ---- Optimizers: torch.optim's formulas; they change the arrays of `parameters` in place --------


class _Optimizer(ABC):
    def __init__(self, parameters: Parameters, lr: float, weight_decay: float) -> None:
        self.parameters, self.lr, self.weight_decay = parameters, lr, weight_decay
        self.num_steps = 0
        self.slots: dict[str, Parameters] = {name: {} for name in parameters}

    def step(self, grads: Parameters) -> None:
        """One update from the gradients by name, each of its parameter's shape."""
        self.num_steps += 1
        for name, p in self.parameters.items():
            g = grads[name] + self.weight_decay * p if self.weight_decay else grads[name]
            self._update(p, g, self.slots[name])

    @abstractmethod
    def _update(self, p: Array, g: Array, slot: Parameters) -> None:
        """Update p from g, which has the weight decay in it; `slot` holds p's running averages."""


class SGD(_Optimizer):
    """buf = momentum buf + (1 - dampening) g, the first time g; p -= lr buf."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov

    def _update(self, p: Array, g: Array, slot: Parameters) -> None:
        if self.momentum:
            buf = slot.get("momentum_buffer")
            buf = g if buf is None else self.momentum * buf + (1 - self.dampening) * g
            slot["momentum_buffer"] = buf
            g = g + self.momentum * buf if self.nesterov else buf
        p -= self.lr * g


class RMSprop(_Optimizer):
    """v = alpha v + (1 - alpha) g^2; p -= lr g / (sqrt(v) + eps). Tieleman and Hinton (2012).

    `centered` takes the square of g's own running mean off v; `momentum` is that of SGD.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-2,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.alpha, self.eps, self.momentum, self.centered = alpha, eps, momentum, centered

    def _update(self, p: Array, g: Array, slot: Parameters) -> None:
        v = slot["square_avg"] = self.alpha * slot.get("square_avg", 0) + (1 - self.alpha) * g * g
        if self.centered:
            mean = slot["grad_avg"] = self.alpha * slot.get("grad_avg", 0) + (1 - self.alpha) * g
            v = v - mean * mean
        update = g / (np.sqrt(v) + self.eps)
        if self.momentum:
            update = slot["momentum_buffer"] = (
                self.momentum * slot.get("momentum_buffer", 0) + update
            )
        p -= self.lr * update


class Adagrad(_Optimizer):
    """v += g^2; p -= lr / (1 + (steps - 1) lr_decay) g / (sqrt(v) + eps). Duchi et al. (2011)."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-2,
        *,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.lr_decay, self.initial, self.eps = lr_decay, initial_accumulator_value, eps

    def _update(self, p: Array, g: Array, slot: Parameters) -> None:
        v = slot["sum"] = slot.get("sum", self.initial) + g * g
        p -= self.lr / (1 + (self.num_steps - 1) * self.lr_decay) * g / (np.sqrt(v) + self.eps)


class Adam(_Optimizer):
    """Kingma and Ba (2015), algorithm 1: moments m and v of g, both corrected for their start."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.betas, self.eps = betas, eps

    def _update(self, p: Array, g: Array, slot: Parameters) -> None:
        beta1, beta2 = self.betas
        m = slot["exp_avg"] = beta1 * slot.get("exp_avg", 0) + (1 - beta1) * g
        v = slot["exp_avg_sq"] = beta2 * slot.get("exp_avg_sq", 0) + (1 - beta2) * g * g
        correction1, correction2 = 1 - beta1**self.num_steps, 1 - beta2**self.num_steps
        p -= self.lr / correction1 * m / (np.sqrt(v) / correction2**0.5 + self.eps)


class AdamW(Adam):
    """Adam with decoupled weight decay: p *= 1 - lr weight_decay. Loshchilov and Hutter (2019)."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(parameters, lr, betas=betas, eps=eps)
        self.decay = weight_decay

    def _update(self, p: Array, g: Array, slot: Parameters) -> None:
        p *= 1 - self.lr * self.decay
        super()._update(p, g, slot)


# ---- Sampling -----------------------------------------------------------------------------------


def sample_tokens(
    logits: Array,
    seeds: Sequence[int],
    position: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> NDArray[np.int32]:
    """One draw for each row of logits [B, V] from softmax(logits / temperature): tokens [B].

    `temperature=0` takes the largest logit. `top_k` keeps the k most probable tokens; `top_p` then
    the fewest of these whose share of the probability left reaches p (at least one). Of equals the
    lower id counts as more probable. Row b's draw depends on seeds[b] and `position` alone.
    """
    if temperature == 0:
        return np.asarray(logits.argmax(axis=-1), np.int32)
    tokens = np.empty(len(logits), np.int32)
    for b, seed in enumerate(seeds):
        weights = np.exp((logits[b] - logits[b].max()) / temperature, dtype="float64")
        order = np.arange(len(weights))
        if (top_k or len(order)) < len(order) or top_p < 1:
            order = np.argsort(-weights, kind="stable")[:top_k]
            cumulative = np.cumsum(weights[order])
            order = order[: np.searchsorted(cumulative, top_p * cumulative[-1]) + 1]
        cumulative = np.cumsum(weights[order])
        # the first token whose cumulative weight exceeds u times the whole
        u = uniform(seed, position)
        chosen = np.searchsorted(cumulative, u * cumulative[-1], side="right")
        tokens[b] = order[min(chosen, len(order) - 1)]
    return tokens


def sample(
    parameters: Parameters,
    length: int,
    tokens: Array,
    seeds: Sequence[int],
    state: State | None = None,
    *,
    cell: str = "rnn",
    nonlinearity: str = "tanh",
    regularization: Regularization | None = None,
    position: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> tuple[NDArray[np.int32], State]:
    """Let B networks write: feed tokens [B], draw from y, feed what was drawn, `length` times.

    Returns the drawn tokens [length, B] and the state after the last token that was fed. `position`
    counts the draws; the options are those of `sample_tokens`. Of `regularization`, the zoneout
    acts, by its expectation.
    """
    kind: dict[str, Any] = {"cell": cell, "nonlinearity": nonlinearity}
    kind["regularization"] = regularization
    if state is None:
        state = forward(parameters, tokens[None][:0], **kind)[1]
    drawn = np.empty((length, len(tokens)), np.int32)
    for t in range(length):
        y, state, _ = forward(parameters, tokens[None], state, **kind)
        tokens = drawn[t] = sample_tokens(
            y[0], seeds, position + t, temperature=temperature, top_k=top_k, top_p=top_p
        )
    return drawn, state

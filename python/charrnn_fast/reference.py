"""The math of the kernels in NumPy, short enough to read in one sitting. Imports NumPy only.

Everything is a plain function of arrays, in any floating dtype; each backward stands right under
its forward. Shapes: T seq_len, B batch, I input_size, H hidden_size, L num_layers, G num_gates,
V output_size. Time comes first and batch second; one row of a matrix belongs to one unit.

    the article     shape       the name in a dict of parameters (PyTorch's)
    W_xh            [G*H, I]    weight_ih_l0   (upper layers: weight_ih_l1 [G*H, H], ...)
    W_hh            [G*H, H]    weight_hh_l0
    b_h             [G*H]       bias_ih_l0 + bias_hh_l0   (bias="single": bias_ih_l0 alone)
    W_hy            [V, H]      decoder.weight
    b_y             [V]         decoder.bias

A state is h [L, B, H] (rnn, gru) or (h, c), each [L, B, H] (lstm).

Sources: "the article" is A. Karpathy, The Unreasonable Effectiveness of Recurrent Neural Networks
(2015) and its program min-char-rnn; LSTM: Hochreiter and Schmidhuber (1997) with the forget gate
of Gers et al. (2000); GRU: Cho et al. (2014), with the reset gate behind the matrix product, as in
cuDNN and PyTorch. Gate order and formulas are those of torch.nn.RNN, LSTM and GRU.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = [
    "RNN",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Cache",
    "RMSprop",
    "backward",
    "clip_grad_norm",
    "clip_grad_value",
    "cross_entropy",
    "forward",
    "init_parameters",
    "philox",
    "sample",
    "sample_tokens",
    "uniform",
]

Array = NDArray[Any]
Parameters = dict[str, Array]
State = Array | tuple[Array, Array]
_States = tuple[Array, ...]  # one array for each of a cell's states: (h,) or (h, c)


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
    return dg, dg, (np.zeros_like(dh),)


def _rnn_relu(gx: Array, gh: Array, prev: _States) -> tuple[_States, _States]:
    h = np.maximum(gx + gh, 0)
    return (h,), (h,)


def _rnn_relu_backward(
    saved: _States, prev: _States, dnext: _States
) -> tuple[Array, Array, _States]:
    (h,), (dh,) = saved, dnext
    dg = dh * (h > 0)
    return dg, dg, (np.zeros_like(dh),)


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
    return dg, dg, (np.zeros_like(dh), dc * f)


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


_CELLS = {
    ("rnn", "tanh"): _Cell(1, 1, _rnn_tanh, _rnn_tanh_backward),
    ("rnn", "relu"): _Cell(1, 1, _rnn_relu, _rnn_relu_backward),
    ("gru", "tanh"): _Cell(3, 1, _gru, _gru_backward),
    ("lstm", "tanh"): _Cell(4, 2, _lstm, _lstm_backward),
}


def _find_cell(cell: str, nonlinearity: str) -> _Cell:
    try:
        return _CELLS[cell, nonlinearity]
    except KeyError:
        raise ValueError(
            f"cell={cell!r} with nonlinearity={nonlinearity!r} does not exist; "
            "cell takes 'rnn', 'gru' or 'lstm', nonlinearity 'tanh' or (rnn only) 'relu'"
        ) from None


# ---- The network --------------------------------------------------------------------------------


def init_parameters(
    input_size: int,
    hidden_size: int,
    output_size: int | None = None,
    *,
    cell: str = "rnn",
    num_layers: int = 1,
    bias: bool | str = True,
    dtype: DTypeLike = "float32",
    seed: int = 0,
) -> Parameters:
    """Parameters drawn uniformly from [-1/sqrt(H), 1/sqrt(H)), by name, as PyTorch draws them.

    `output_size=None` leaves out the decoder. `bias` is True (bias_ih and bias_hh), "single"
    (bias_ih only) or False (neither, and no decoder.bias). Raises ValueError for others.
    """
    num_gates = _find_cell(cell, "tanh").num_gates
    if bias not in (True, False, "single"):
        raise ValueError(f"bias takes True, 'single' or False, got {bias!r}")
    rows, shapes = num_gates * hidden_size, dict[str, tuple[int, ...]]()
    for k in range(num_layers):
        shapes[f"weight_ih_l{k}"] = (rows, hidden_size if k else input_size)
        shapes[f"weight_hh_l{k}"] = (rows, hidden_size)
        if bias:
            shapes[f"bias_ih_l{k}"] = (rows,)
        if bias is True:
            shapes[f"bias_hh_l{k}"] = (rows,)
    if output_size is not None:
        shapes["decoder.weight"] = (output_size, hidden_size)
        if bias:
            shapes["decoder.bias"] = (output_size,)
    rng, limit = np.random.default_rng(seed), hidden_size**-0.5
    return {name: rng.uniform(-limit, limit, shape).astype(dtype) for name, shape in shapes.items()}


class _Trace(NamedTuple):
    """What one layer keeps for its backward."""

    x: Array  # [T, B, I], or tokens [T, B]
    states: list[_States]  # T + 1 of them, the initial one first; each [B, H]
    saved: list[_States]  # T of them: what the cell saved, each [B, H]


class Cache(NamedTuple):
    """What `forward` keeps for `backward`."""

    cell: _Cell
    layers: list[_Trace]
    h: Array  # [T, B, H], the top layer's hidden vectors


def _layer(
    cell: _Cell, parameters: Parameters, k: int, x: Array, first: _States
) -> tuple[Array, _Trace]:
    """Layer k from x and its initial states: its hidden vectors [T, B, H]."""
    W_xh, W_hh = parameters[f"weight_ih_l{k}"], parameters[f"weight_hh_l{k}"]
    b_xh, b_hh = parameters.get(f"bias_ih_l{k}", 0), parameters.get(f"bias_hh_l{k}", 0)
    if _are_tokens(x):
        _check_ids("x", x, W_xh.shape[1])
        gx = W_xh.T[x] + b_xh  # the column that a one-hot vector picks
    else:
        gx = x @ W_xh.T + b_xh
    trace = _Trace(x, [first], [])
    h = np.empty((*x.shape[:2], W_hh.shape[1]), W_hh.dtype)
    for t in range(len(x)):
        prev = trace.states[t]
        following, saved = cell.forward(gx[t], prev[0] @ W_hh.T + b_hh, prev)
        trace.states.append(following)
        trace.saved.append(saved)
        h[t] = following[0]
    return h, trace


def _layer_backward(
    cell: _Cell, parameters: Parameters, k: int, trace: _Trace, dh: Array, dnext: _States
) -> tuple[Array | None, _States, Parameters]:
    """dx [T, B, I] (None for tokens), the gradients of the initial states and of layer k's weights.

    From dh [T, B, H], the gradient of the layer's output, and that of its final states.
    """
    W_xh, W_hh = parameters[f"weight_ih_l{k}"], parameters[f"weight_hh_l{k}"]
    dgx = np.empty((*dh.shape[:2], len(W_hh)), dh.dtype)
    dgh, h_prev = np.empty_like(dgx), np.empty_like(dh)
    for t in reversed(range(len(dh))):
        prev, dnext = trace.states[t], (dnext[0] + dh[t], *dnext[1:])
        dgx[t], dgh[t], dprev = cell.backward(trace.saved[t], prev, dnext)
        dnext = (dprev[0] + dgh[t] @ W_hh, *dprev[1:])
        h_prev[t] = prev[0]

    if _are_tokens(trace.x):
        dx, dW_xh = None, np.zeros_like(W_xh)
        np.add.at(dW_xh.T, trace.x, dgx)
    else:
        dx, dW_xh = dgx @ W_xh, _outer(dgx, trace.x)
    grads = {f"weight_ih_l{k}": dW_xh, f"weight_hh_l{k}": _outer(dgh, h_prev)}
    if f"bias_ih_l{k}" in parameters:
        grads[f"bias_ih_l{k}"] = dgx.sum((0, 1))
    if f"bias_hh_l{k}" in parameters:
        grads[f"bias_hh_l{k}"] = dgh.sum((0, 1))
    return dx, dnext, grads


def forward(
    parameters: Parameters,
    x: Array,
    state: State | None = None,
    *,
    cell: str = "rnn",
    nonlinearity: str = "tanh",
) -> tuple[Array, State, Cache]:
    """Run a stack of layers over a sequence from `state` (None: zero).

    x: [T, B, I], or integer tokens [T, B]; a token stands for its one-hot vector.
    Returns y [T, B, V] (without a decoder: the top layer's h [T, B, H]), the final state, and what
    `backward` needs. Raises ValueError for an unknown cell or a token outside [0, I).
    """
    unit = _find_cell(cell, nonlinearity)
    num_layers = sum(name.startswith("weight_hh_l") for name in parameters)
    if state is None:
        W_hh = parameters["weight_hh_l0"]
        zero = np.zeros((num_layers, x.shape[1], W_hh.shape[1]), W_hh.dtype)
        state = (zero, zero) if unit.num_states == 2 else zero
    h, traces = x, list[_Trace]()
    for k, first in enumerate(_by_layer(state)):
        h, trace = _layer(unit, parameters, k, h, first)
        traces.append(trace)
    y = h
    if "decoder.weight" in parameters:
        y = h @ parameters["decoder.weight"].T + parameters.get("decoder.bias", 0)
    return y, _stacked([trace.states[-1] for trace in traces]), Cache(unit, traces, h)


def backward(
    parameters: Parameters, cache: Cache, dy: Array, dstate: State | None = None
) -> tuple[Array | None, State, Parameters]:
    """Backpropagation through time: the gradients of any scalar, given those of y and state.

    dy [T, B, V or H] and dstate (None: zero) are the gradients of what `forward` returned.
    Returns dx [T, B, I] (None for tokens), the gradient of the initial state, and the gradients of
    the parameters by name.
    """
    grads, dh = Parameters(), dy
    if "decoder.weight" in parameters:
        grads["decoder.weight"] = _outer(dy, cache.h)
        if "decoder.bias" in parameters:
            grads["decoder.bias"] = dy.sum((0, 1))
        dh = dy @ parameters["decoder.weight"]
    if dstate is None:
        zeros = [tuple(np.zeros_like(s) for s in trace.states[-1]) for trace in cache.layers]
        dstate = _stacked(zeros)
    dx, dfirst = None, list[_States]()
    for k, dlast in reversed(list(enumerate(_by_layer(dstate)))):
        dx, dinitial, own = _layer_backward(cache.cell, parameters, k, cache.layers[k], dh, dlast)
        dfirst.insert(0, dinitial)
        grads |= own
        if dx is not None:
            dh = dx
    return dx, _stacked(dfirst), {name: grads[name] for name in parameters}


def _by_layer(state: State) -> list[_States]:
    """h or (h, c), each [L, B, H], as L tuples of arrays [B, H]."""
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
        raise ValueError(f"{name} takes ids in [{lowest}, {size}), got {ids.min()} to {ids.max()}")


# ---- Loss, clipping -----------------------------------------------------------------------------


def cross_entropy(logits: Array, targets: Array, reduction: str = "mean") -> tuple[float, Array]:
    """Softmax cross-entropy in nats: -log p(target), p = exp(logits) / sum(exp(logits)).

    logits [..., V], integer targets [...] in [0, V), or -1 where there is nothing to predict.
    `reduction` is "mean" (over the targets that are not -1; 0 where there are none) or "sum".
    Returns the loss and its gradient dlogits [..., V] = p - one_hot(target), over the count for
    "mean". Raises ValueError for other targets and another reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction takes 'mean' or 'sum', got {reduction!r}")
    _check_ids("targets", targets, logits.shape[-1], lowest=-1)
    counted = targets != -1
    scale = max(int(counted.sum()), 1) if reduction == "mean" else 1
    # the largest logit is taken off so that exp cannot overflow; p stays the same
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    index = np.where(counted, targets, 0)[..., None]
    loss = -np.take_along_axis(log_p, index, axis=-1)[..., 0]

    dlogits = np.exp(log_p)
    np.put_along_axis(dlogits, index, np.take_along_axis(dlogits, index, axis=-1) - 1, axis=-1)
    dlogits = np.where(counted[..., None], dlogits, 0) / scale
    return float(loss[counted].sum()) / scale, dlogits.astype(logits.dtype, copy=False)


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


def philox(seed: int, position: int, lane: int = 0) -> tuple[int, int, int, int]:
    """Philox4x32-10: four random 32-bit words from a 64-bit key and a counter, with no state.

    Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011). The key is `seed`; the
    counter's words are the low and high half of `position`, `lane`, and 0.
    """
    word = 0xFFFFFFFF
    key0, key1 = seed & word, seed >> 32 & word
    c0, c1, c2, c3 = position & word, position >> 32 & word, lane & word, 0
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = b >> 32 ^ c1 ^ key0, b & word, a >> 32 ^ c3 ^ key1, a & word
        key0, key1 = key0 + 0x9E3779B9 & word, key1 + 0xBB67AE85 & word
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """The uniform number in [0, 1) that decides draw `position` of stream `seed`: 24 bits."""
    return (philox(seed, position)[0] >> 8) * 2.0**-24


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
    position: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> tuple[NDArray[np.int32], State]:
    """Let B networks write: feed tokens [B], draw from y, feed what was drawn, `length` times.

    Returns the drawn tokens [length, B] and the state after the last token that was fed. `position`
    counts the draws; the options are those of `sample_tokens`.
    """
    if state is None:
        state = forward(parameters, tokens[None][:0], cell=cell, nonlinearity=nonlinearity)[1]
    drawn = np.empty((length, len(tokens)), np.int32)
    for t in range(length):
        y, state, _ = forward(parameters, tokens[None], state, cell=cell, nonlinearity=nonlinearity)
        tokens = drawn[t] = sample_tokens(
            y[0], seeds, position + t, temperature=temperature, top_k=top_k, top_p=top_p
        )
    return drawn, state

"""The network: stacked layers, directions in parallel, a decoder on top."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .arrays import Array, Parameters, State, States, are_tokens, check_ids
from .cells import Cell, find_cell
from .layers import Call, Trace, direction, direction_backward, times
from .masks import OUTPUT, Regularization, site
from .number_types import check_compute_dtype, dot, outer


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
    """Parameters drawn uniformly from [-1/sqrt(H), 1/sqrt(H)), by name, as in PyTorch.

    `output_size=None`: no decoder. `bias`: True (bias_ih and bias_hh), "single" (bias_ih only) or
    False (neither, and no decoder.bias). `proj_size=0`: no projection. The gains of `layer_norm`
    start at 1. Raises ValueError for other values.
    """
    unit, H = find_cell(cell, "tanh"), hidden_size
    if bias not in (True, False, "single"):
        raise ValueError(f"bias must be True, 'single' or False, got {bias!r}")
    if proj_size and unit.num_states == 1:
        raise ValueError(f"proj_size must be 0 with cell={cell!r}, got {proj_size}")
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
            if unit.weights is not None:
                name, count = unit.weights
                shapes[f"weight_{name}{suffix}"] = (count, H)
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


class Cache(NamedTuple):
    """What `forward` saves for `backward`."""

    cell: Cell
    layers: list[Trace]  # L*D
    h: Array  # [T, B, D*R], the top layer's hidden vectors after dropout
    noise: Array | None  # their dropout multipliers
    alive: Array | None  # [T, B, 1]
    compute_dtype: str


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
    compute_dtype: str = "float32",
) -> tuple[Array, State, Cache]:
    """Run a stack of layers over a sequence from `state` (None: zero).

    x: [T, B, I], or integer tokens [T, B]; a token stands for its one-hot vector. Directions,
    projection and layer norm follow from `parameters`.
    lengths [B]: row b has lengths[b] steps (None: T), the rest is padding. Padding is not read, its
    y is 0 and it keeps the state; the reverse direction starts at the row's own last step.
    mask_seed: the 64-bit seed of the masks of `regularization`; None: no masks.
    compute_dtype: "tf32" (11 significant bits) and "bfloat16" (8) round the operands of all matrix
    products, here and in `backward`.
    Returns y [T, B, V] (without a decoder: the top layer's h [T, B, D*R]), the final state, and
    what `backward` needs. Raises ValueError for an unknown cell or compute_dtype, a token outside
    [0, I), lengths outside [0, T] and zoneout of a projected h.
    """
    check_compute_dtype(compute_dtype)
    unit, rates = find_cell(cell, nonlinearity), regularization or Regularization()
    names, W_hh = _suffixes(parameters), parameters["weight_hh_l0"]
    T, B = x.shape[:2]
    alive = None
    if lengths is not None:
        check_ids("lengths", np.asarray(lengths), T + 1)
        alive = (np.arange(T)[:, None] < np.asarray(lengths))[..., None]
        x = x if are_tokens(x) else _living(x, alive)
    if rates.zoneout[0] and "weight_hr_l0" in parameters:
        raise ValueError(f"zoneout of h must be 0 with a projection, got {rates.zoneout[0]}")
    if state is None:
        rows, (GH, R) = len(names) * len(names[0]), W_hh.shape
        state = np.zeros((rows, B, R), W_hh.dtype)
        if unit.num_states == 2:
            state = (state, np.zeros((rows, B, GH // unit.num_gates), W_hh.dtype))

    time, streams = np.arange(T)[:, None, None], np.arange(B)[:, None]
    call = Call(rates, compute_dtype, mask_seed, W_hh.dtype, time, streams, alive)
    firsts, traces, h = iter(_by_layer(state)), list[Trace](), x
    for k, directions in enumerate(names):
        halves = []
        for d, suffix in enumerate(directions):
            # the reverse direction is the forward one with time reversed
            turn, its = (slice(None, None, -1), call.turned()) if d else (slice(None), call)
            own = _own(parameters, suffix)
            half, trace = direction(unit, own, h[turn], next(firsts), its, k, d)
            halves.append(half[turn])
            traces.append(trace)
        h = np.concatenate(halves, axis=-1)
    noise = call.dropout(site(OUTPUT, len(names)), rates.output_dropout, np.arange(h.shape[-1]))
    y = h = times(h, noise)
    if "decoder.weight" in parameters:
        y = dot(h, parameters["decoder.weight"].T, compute_dtype)
        y = y + parameters.get("decoder.bias", 0)
    last = _stacked([trace.states[-1] for trace in traces])
    return _living(y, alive), last, Cache(unit, traces, h, noise, alive, compute_dtype)


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
        grads["decoder.weight"] = outer(dy, cache.h, cache.compute_dtype)
        if "decoder.bias" in parameters:
            grads["decoder.bias"] = dy.sum((0, 1))
        dh = dot(dy, parameters["decoder.weight"], cache.compute_dtype)
    dh = times(dh, cache.noise)
    if dstate is None:
        zeros = [tuple(np.zeros_like(s) for s in trace.states[-1]) for trace in cache.layers]
        dstate = _stacked(zeros)
    dlasts, traces = _by_layer(dstate), list(cache.layers)
    dx, dfirsts = None, list[States]()
    for directions in reversed(_suffixes(parameters)):
        halves, dxs = np.split(dh, len(directions), axis=-1), []
        for suffix, half in reversed(list(zip(directions, halves, strict=True))):
            turn = slice(None, None, -1 if suffix.endswith("_reverse") else 1)
            dx, dfirst, own = direction_backward(
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
    """For each layer the suffixes of its parameters' names, one per direction."""
    directions = ["", "_reverse"] if "weight_hh_l0_reverse" in parameters else [""]
    num_layers = sum(name.startswith("weight_hh_l") for name in parameters) // len(directions)
    return [[f"_l{k}{direction}" for direction in directions] for k in range(num_layers)]


def _own(parameters: Parameters, suffix: str) -> Parameters:
    """The parameters of one layer and direction, by names without the suffix."""
    ending = {name: p for name, p in parameters.items() if name.endswith(suffix)}
    return {name.removesuffix(suffix): p for name, p in ending.items()}


def _living(a: Array, alive: Array | None) -> Array:
    """a [T, B, ...] with 0 in padding."""
    return a if alive is None else np.where(alive, a, 0)


def _by_layer(state: State) -> list[States]:
    """h or (h, c), each [L*D, B, ...], as L*D tuples of arrays [B, ...]."""
    return list(zip(*state, strict=True)) if isinstance(state, tuple) else [(h,) for h in state]


def _stacked(layers: list[States]) -> State:
    """The inverse of `_by_layer`."""
    h, *c = (np.stack(parts) for parts in zip(*layers, strict=True))
    return (h, c[0]) if c else h

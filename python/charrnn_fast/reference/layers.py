"""One layer in one direction over a sequence, and its backward: layer norm, masks, projection."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from .arrays import Array, Parameters, States, are_tokens, check_ids
from .cells import Cell
from .masks import (
    INPUT,
    OUTPUT,
    RECURRENT,
    WEIGHT_DROP,
    ZONEOUT_C,
    ZONEOUT_H,
    Regularization,
    mask,
    multipliers,
    site,
)
from .number_types import dot, operand, outer

Norm = tuple[Array, Array] | None  # layer norm saves N(v) and 1 / sqrt(var + 1e-5)


def normalize(v: Array, blocks: tuple[int, ...]) -> tuple[Array, Array]:
    """N(v) = (v - mean) / sqrt(var + 1e-5) in each block of v's columns, and 1 / sqrt(var + 1e-5).

    Ba, Kiros and Hinton, Layer Normalization (2016), eq. 20 to 22; the variance is the biased one.
    """
    centred = v - _means(v, blocks)
    scale = 1 / np.sqrt(_means(centred * centred, blocks) + 1e-5)
    return centred * scale, scale


def normalize_backward(dn: Array, n: Array, scale: Array, blocks: tuple[int, ...]) -> Array:
    dv: Array = scale * (dn - _means(dn, blocks) - n * _means(dn * n, blocks))
    return dv


def _means(v: Array, blocks: tuple[int, ...]) -> Array:
    """In each column the mean of its block; blocks are given as shares of the columns."""
    edges = np.cumsum(blocks)[:-1] * v.shape[-1] // sum(blocks)
    parts = np.split(v, edges, axis=-1)
    means = [np.broadcast_to(part.mean(-1, keepdims=True), part.shape) for part in parts]
    return np.concatenate(means, axis=-1)


class Call(NamedTuple):
    """The arguments of `forward` that are the same for all layers."""

    regularization: Regularization
    compute_dtype: str
    seed: int | None
    dtype: DTypeLike
    time: Array  # [T, 1, 1], the steps in processing order
    streams: Array  # [B, 1]
    alive: Array | None  # [T, B, 1], False in padding; None: no padding

    def turned(self) -> Call:
        alive = None if self.alive is None else self.alive[::-1]
        return self._replace(time=self.time[::-1], alive=alive)

    def dropout(self, site: int, rate: float, units: Array) -> Array | None:
        """Multipliers [T, B, units]; None: no dropout."""
        if self.seed is None or rate == 0:
            return None
        time = 0 * self.time if self.regularization.variational else self.time
        return multipliers(self.seed, site, rate, time, self.streams, units).astype(self.dtype)

    def weight_drop(self, site: int, W_hh: Array) -> Array | None:
        """Multipliers of W_hh's shape; None: no dropout."""
        rate = self.regularization.weight_drop
        if self.seed is None or rate == 0:
            return None
        rows, columns = np.arange(len(W_hh))[:, None], np.arange(W_hh.shape[1])
        return multipliers(self.seed, site, rate, 0, rows, columns).astype(self.dtype)

    def held(self, site: int, rate: float, units: Array) -> Array | None:
        """The old state's share of the new one, [T, B, units or 1]; None: no share."""
        held: Array | None = np.full(self.time.shape, rate) if rate else None
        if rate and self.seed is not None:
            held = mask(self.seed, site, rate, self.time, self.streams, units)
        if self.alive is not None:  # padding keeps the state
            held = np.where(self.alive, 0 if held is None else held, 1)
        return None if held is None else held.astype(self.dtype)


class Noise(NamedTuple):
    """The masks of one layer and direction, as `Call` returns them."""

    x: Array | None
    h: Array | None
    W_hh: Array | None
    held: list[Array | None]  # one for each state


class Trace(NamedTuple):
    """What one direction of a layer saves for its backward, with time in processing order."""

    x: Array  # [T, B, I] after dropout, or tokens [T, B]
    x_norm: Norm
    states: list[States]  # T + 1 of them, the initial one first; each [B, R or H]
    saved: list[States]  # T of them: what the cell saved, each [B, H]
    h_norm: list[Norm]  # T
    h_cell: list[Array]  # T: the cell's h [B, H], before projection and zoneout
    W_hh: Array  # after weight_drop
    noise: Noise
    compute_dtype: str


def _gates(product: Array, own: Parameters, side: str, cell: Cell) -> tuple[Array, Norm]:
    """One side's part of the gates, "ih" or "hh", from W x or W h: gain N(W x) + bias."""
    norm = None
    if f"gain_{side}" in own:
        norm = normalize(product, cell.blocks)
        product = own[f"gain_{side}"] * norm[0]
    return product + own.get(f"bias_{side}", 0), norm


def _gates_backward(
    dg: Array, own: Parameters, side: str, cell: Cell, norm: Norm, grads: Parameters
) -> Array:
    """The gradient of the product; adds those of gain and bias to `grads`."""
    axes = tuple(range(dg.ndim - 1))
    if f"bias_{side}" in own:
        grads[f"bias_{side}"] += dg.sum(axes)
    if norm is None:
        return dg
    grads[f"gain_{side}"] += (dg * norm[0]).sum(axes)
    return normalize_backward(own[f"gain_{side}"] * dg, *norm, cell.blocks)


def direction(
    cell: Cell, own: Parameters, x: Array, first: States, call: Call, layer: int, direction: int
) -> tuple[Array, Trace]:
    """The hidden vectors [T, B, R] of one layer in one direction, from x and its initial states.

    `own` are its parameters, without the suffix; x and `call` have time in processing order.
    """
    W_xh, W_hh, unit_weights = own["weight_ih"], own["weight_hh"], _unit_weights(cell, own)
    rates, sites = call.regularization, [site(kind, layer, direction) for kind in range(OUTPUT)]
    columns = x[..., None] if are_tokens(x) else np.arange(W_xh.shape[1])
    noise = Noise(
        call.dropout(site(INPUT, layer), rates.dropout if layer else rates.input_dropout, columns),
        call.dropout(sites[RECURRENT], rates.recurrent_dropout, np.arange(W_hh.shape[1])),
        call.weight_drop(sites[WEIGHT_DROP], W_hh),
        [
            call.held(sites[kind], rate, np.arange(s.shape[1]))
            for kind, rate, s in zip((ZONEOUT_H, ZONEOUT_C), rates.zoneout, first, strict=False)
        ],
    )
    W_hh, how = times(W_hh, noise.W_hh), call.compute_dtype
    if are_tokens(x):
        check_ids("x", x, W_xh.shape[1])
        # the column that a one-hot vector selects, times its 1 or what dropout has made of it
        product = times(operand(W_xh, how).T[x], _scale(noise.x, how))
    else:
        x = times(x, noise.x)
        product = dot(x, W_xh.T, how)
    gx, x_norm = _gates(product, own, "ih", cell)
    trace = Trace(x, x_norm, [first], [], [], [], W_hh, noise, how)
    h = np.empty((*x.shape[:2], W_hh.shape[1]), W_hh.dtype)
    for t in range(len(x)):
        prev = trace.states[t]
        gh, h_norm = _gates(dot(times(prev[0], noise.h, t), W_hh.T, how), own, "hh", cell)
        (h_cell, *c), saved = cell.forward(gx[t], gh, prev + unit_weights)
        new = (dot(h_cell, own["weight_hr"].T, how) if "weight_hr" in own else h_cell, *c)
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


def direction_backward(
    cell: Cell, own: Parameters, trace: Trace, dh: Array, dnext: States
) -> tuple[Array | None, States, Parameters]:
    """dx (None for tokens), the gradients of the initial states and of `own`.

    From dh [T, B, R], the gradient of the hidden vectors, and that of the final states.
    """
    W_xh, noise, unit_weights = own["weight_ih"], trace.noise, _unit_weights(cell, own)
    how = trace.compute_dtype
    grads = {name: np.zeros_like(value) for name, value in own.items()}
    dgx = np.empty((*dh.shape[:2], len(W_xh)), dh.dtype)
    dproduct, h_prev = np.empty_like(dgx), np.empty_like(dh)
    for t in reversed(range(len(dh))):
        prev, dnext = trace.states[t], (dnext[0] + dh[t], *dnext[1:])
        dheld = [0 if m is None else m[t] * d for m, d in zip(noise.held, dnext, strict=True)]
        dh_cell, *dc = (d - kept for d, kept in zip(dnext, dheld, strict=True))
        if "weight_hr" in own:
            grads["weight_hr"] += dot(dh_cell.T, trace.h_cell[t], how)
            dh_cell = dot(dh_cell, own["weight_hr"], how)
        dgx[t], dgh, dprev = cell.backward(trace.saved[t], prev + unit_weights, (dh_cell, *dc))
        if cell.weights is not None:
            grads[f"weight_{cell.weights[0]}"] += dprev[-1]
        dproduct[t] = _gates_backward(dgh, own, "hh", cell, trace.h_norm[t], grads)
        h_prev[t] = times(prev[0], noise.h, t)
        dh_prev = times(dot(dproduct[t], trace.W_hh, how), noise.h, t)
        dstates = (dprev[0] + dh_prev, *dprev[1:])
        dnext = tuple(d + kept for d, kept in zip(dstates, dheld, strict=False))

    grads["weight_hh"] = times(outer(dproduct, h_prev, how), noise.W_hh)
    dproduct = _gates_backward(dgx, own, "ih", cell, trace.x_norm, grads)
    if are_tokens(trace.x):
        scaled = times(operand(dproduct, how), _scale(noise.x, how))
        np.add.at(grads["weight_ih"].T, trace.x, scaled)
        return None, dnext, grads
    grads["weight_ih"] = outer(dproduct, trace.x, how)
    return times(dot(dproduct, W_xh, how), noise.x), dnext, grads


def _scale(noise: Array | None, compute_dtype: str) -> Array | None:
    """What dropout makes of a one-hot vector's 1, as a factor."""
    return None if noise is None else operand(noise, compute_dtype)


def _unit_weights(cell: Cell, own: Parameters) -> States:
    return () if cell.weights is None else (own[f"weight_{cell.weights[0]}"],)


def times(a: Array, m: Array | None, t: Any = ...) -> Array:
    """a ⊙ m[t], or a if there is no m."""
    return a if m is None else a * m[t]

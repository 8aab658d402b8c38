"""Losses with their gradients, and gradient clipping."""

from __future__ import annotations

import math

import numpy as np

from .arrays import Array, Parameters, check_ids
from .cells import sigmoid


def cross_entropy(
    logits: Array, targets: Array, reduction: str = "mean", weights: Array | None = None
) -> tuple[float, Array]:
    """Softmax cross-entropy in nats: -log p(target), p = exp(logits) / sum(exp(logits)).

    logits [..., V], integer targets [...] in [0, V), or -1: ignored; weights [...] (None: 1) of the
    rows. `reduction` is "sum", of weight times loss, or "mean": that sum divided by the sum of the
    weights whose targets are not -1 (0 if that is 0).
    Returns the loss and its gradient dlogits [..., V] = p - one_hot(target), weighted likewise.
    Raises ValueError for other targets and another reduction.
    """
    check_ids("targets", targets, logits.shape[-1], lowest=-1)
    counted = targets != -1
    w, scale = _weighting(weights, counted, reduction)
    # the largest logit is subtracted so that exp cannot overflow; p stays the same
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
    # the same loss, without overflow
    loss = np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))
    dlogits = (sigmoid(logits) - targets) * w / scale
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
    """Each loss's weight, 0 if ignored, and the divisor of their sum."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
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
    """Clip every element of every gradient to [-limit, limit], in place (min-char-rnn: 5)."""
    for g in grads.values():
        np.clip(g, -limit, limit, out=g)

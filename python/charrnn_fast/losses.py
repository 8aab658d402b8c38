"""Losses with their gradients, and the clipping of gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._checks import instance, real
from .rnn import _tokens

Array = NDArray[Any]


def cross_entropy(logits: Array, targets: Array, reduction: str = "mean") -> tuple[float, Array]:
    """Softmax cross-entropy in nats: -log softmax(logits)[target], and its gradient.

    logits [..., V] float32 or float64, targets [...] integer classes 0 to V - 1, or -1: ignored
    (loss and gradient 0). reduction: "mean" over the targets that are not ignored, or "sum".
    Returns the loss and dlogits [..., V] = softmax(logits) - onehot(target), scaled likewise.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    if not isinstance(logits, np.ndarray) or logits.dtype not in (np.float32, np.float64):
        raise TypeError(f"logits must be an array of float32 or float64, got {_kind(logits)}")
    if not isinstance(targets, np.ndarray) or targets.dtype.kind not in "iu":
        raise TypeError(f"targets must be an array of integers, got {_kind(targets)}")
    if logits.ndim < 1 or logits.shape[-1] < 1 or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits must have shape [..., V] and targets [...], got {logits.shape} and "
            f"{targets.shape}"
        )
    for name, array in (("logits", logits), ("targets", targets)):
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} must be C-contiguous: pass numpy.ascontiguousarray({name})")
    classes = logits.shape[-1]
    loss, dlogits = _core.cross_entropy(
        logits.reshape(-1, classes), _tokens("targets", targets, -1, classes).reshape(-1), reduction
    )
    return loss, dlogits.reshape(logits.shape)


def clip_grad_norm(grads: Mapping[str, Array], max_norm: float) -> float:
    """Scales all gradients in place so that their common norm is at most max_norm.

    The norm is that of all arrays as one vector; the factor is min(1, max_norm / (norm + 1e-6)),
    as in PyTorch; with max_norm infinite nothing is scaled. Returns the norm before clipping, in
    double precision.
    """
    if max_norm != math.inf:
        max_norm = real("max_norm", max_norm, above=0)
    _check_gradients(grads)
    norm = math.sqrt(sum(_core.sum_of_squares(g) for g in grads.values()))
    if max_norm == math.inf:
        return norm
    factor = _core.clip_factor(norm, max_norm)
    if not factor >= 1:  # also where the norm is NaN, so that it shows
        for g in grads.values():
            _core.scale(g, factor)
    return norm


def clip_grad_value(grads: Mapping[str, Array], max_value: float) -> None:
    """Limits each element of all gradients to [-max_value, max_value], in place."""
    max_value = real("max_value", max_value, above=0)
    _check_gradients(grads)
    for g in grads.values():
        _core.clip_value(g, max_value)


def _check_gradients(grads: Mapping[str, Array]) -> None:
    instance("grads", grads, Mapping, "a mapping of arrays by name")
    for name, g in grads.items():
        if not isinstance(g, np.ndarray) or g.dtype not in (np.float32, np.float64):
            raise TypeError(
                f"grads[{name!r}] must be an array of float32 or float64, got {_kind(g)}"
            )
        if not (g.flags.c_contiguous or g.flags.f_contiguous):
            raise ValueError(f"grads[{name!r}] must be contiguous")
        if not g.flags.writeable:
            raise ValueError(f"grads[{name!r}] must be writable")


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return type(value).__name__

"""Losses with their gradients, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._checks import array, instance, real, tokens

Array = NDArray[Any]


def cross_entropy(
    logits: Array, targets: Array, reduction: str = "mean", *, weights: Array | None = None
) -> tuple[float, Array]:
    """Softmax cross-entropy in nats, -log softmax(logits)[target], and its gradient.

    logits: [..., V], float32 or float64. targets [...]: integer classes 0 to V - 1; -1 is ignored
    (loss and gradient 0). reduction: "mean" over the targets that are not ignored, or "sum".
    weights [...]: one per target, finite and >= 0, of the logits' dtype. "sum" is then sum(w *
    loss), and "mean" divides it by the sum of the weights of the targets that are not ignored (0 if
    that is 0), like PyTorch's class weights. A weight of 0 ignores its target whatever the logits
    are. Elsewhere a NaN in the logits makes the loss NaN. Returns the loss and dlogits [..., V] =
    softmax(logits) - onehot(target), scaled likewise.
    """
    _check_reduction(reduction)
    logits = _floats("logits", logits)
    targets = array("targets", targets, "an array of integers")
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets must be an array of integers, got an array of {targets.dtype}")
    if logits.ndim < 1 or logits.shape[-1] < 1 or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits must have shape [..., V] and targets [...], got {logits.shape} and "
            f"{targets.shape}"
        )
    for name, given in (("logits", logits), ("targets", targets)):
        _check_contiguous(name, given)
    classes = logits.shape[-1]
    ids = tokens("targets", targets, -1, classes)
    weights = _weights(weights, logits.dtype, targets.shape)
    loss, dlogits = _core.cross_entropy(
        logits.reshape(-1, classes),
        ids,
        reduction,
        None if weights is None else weights.reshape(-1),
    )
    return loss, dlogits.reshape(logits.shape)


def binary_cross_entropy(
    logits: Array, targets: Array, reduction: str = "mean", *, weights: Array | None = None
) -> tuple[float, Array]:
    """Binary cross-entropy in nats of the probabilities sigmoid(logits), and its gradient.

    For a logit x and its target z it is -z log sigmoid(x) - (1 - z) log(1 - sigmoid(x)), computed
    without overflow as max(x, 0) - x z + log1p(exp(-|x|)). logits: [...], float32 or float64.
    targets: in [0, 1], of the same shape and dtype. reduction: "mean" over all elements (0 if there
    are none), or "sum". weights: None, or finite and >= 0, of the same shape and dtype. "sum" is
    then sum(w * loss), and "mean" divides it by the sum of the weights (0 if that is 0). A weight
    of 0 ignores its element whatever the logit is. Elsewhere a NaN or infinite logit makes the loss
    NaN or infinite. Returns the loss and dlogits [...] = sigmoid(logits) - targets, scaled
    likewise. As torch.nn.functional.binary_cross_entropy_with_logits, except that its weighted mean
    divides by the number of elements.
    """
    _check_reduction(reduction)
    logits, targets = _pair("logits", logits, targets)
    _check_range("targets", targets, 0, 1, "in 0 to 1")
    weights = _weights(weights, logits.dtype, logits.shape)
    return _core.binary_cross_entropy(logits, targets, reduction, weights)


def mean_square(
    y: Array, targets: Array, reduction: str = "mean", *, weights: Array | None = None
) -> tuple[float, Array]:
    """Squared error (y - targets)^2, and its gradient.

    y: [...], float32 or float64. targets: of the same shape and dtype. reduction: "mean" over all
    elements (0 if there are none), or "sum". weights: None, or finite and >= 0, of the same shape
    and dtype. "sum" is then sum(w * loss), and "mean" divides it by the sum of the weights (0 if
    that is 0). A weight of 0 ignores its element whatever it holds. Elsewhere a value that is not
    finite makes the loss NaN or infinite. Returns the loss and dy [...] = 2 (y - targets), scaled
    likewise. As torch.nn.functional.mse_loss.
    """
    _check_reduction(reduction)
    y, targets = _pair("y", y, targets)
    weights = _weights(weights, y.dtype, y.shape)
    return _core.mean_square(y, targets, reduction, weights)


def clip_grad_norm(grads: Mapping[str, Array], max_norm: float) -> float:
    """Scales all gradients in place to a joint norm of at most max_norm; returns the norm before.

    The norm is that of all arrays as one vector, in double precision. As in PyTorch, the factor is
    min(1, max_norm / (norm + 1e-6)). An infinite max_norm scales nothing.
    """
    if max_norm != math.inf:
        max_norm = real("max_norm", max_norm, above=0)
    _check_gradients(grads)
    norm = math.sqrt(sum(_core.sum_of_squares(g) for g in grads.values()))
    if max_norm == math.inf:
        return norm
    factor = _core.clip_factor(norm, max_norm)
    if not factor >= 1:  # also if the norm is NaN, so that it shows
        for g in grads.values():
            _core.scale(g, factor)
    return norm


def clip_grad_value(grads: Mapping[str, Array], max_value: float) -> None:
    """Clips each element of all gradients to [-max_value, max_value], in place."""
    max_value = real("max_value", max_value, above=0)
    _check_gradients(grads)
    for g in grads.values():
        _core.clip_value(g, max_value)


def _check_gradients(grads: Mapping[str, Array]) -> None:
    instance("grads", grads, Mapping, "a mapping of arrays by name")
    for name, value in grads.items():
        g = _floats(f"grads[{name!r}]", value)
        if not (g.flags.c_contiguous or g.flags.f_contiguous):
            raise ValueError(f"grads[{name!r}] must be contiguous")
        if not g.flags.writeable:
            raise ValueError(f"grads[{name!r}] must be writable")


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")


def _floats(name: str, value: object) -> Array:
    value = array(name, value, "an array of float32 or float64")
    if value.dtype not in (np.float32, np.float64):
        raise TypeError(
            f"{name} must be an array of float32 or float64, got an array of {value.dtype}"
        )
    return value


def _check_contiguous(name: str, value: Array) -> None:
    if not value.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous: pass numpy.ascontiguousarray({name})")


def _like(name: str, value: object, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    value = array(name, value, f"an array of {dtype}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be an array of {dtype}, got an array of {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
    _check_contiguous(name, value)
    return value


def _pair(name: str, values: object, targets: object) -> tuple[Array, Array]:
    values = _floats(name, values)
    _check_contiguous(name, values)
    return values, _like("targets", targets, values.dtype, values.shape)


def _weights(weights: object, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array | None:
    if weights is None:
        return None
    weights = _like("weights", weights, dtype, shape)
    _check_range("weights", weights, 0, float(np.finfo(dtype).max), "finite numbers >= 0")
    return weights


def _check_range(name: str, values: Array, least: float, most: float, takes: str) -> None:
    """ValueError names the first element outside [least, most]; NaN counts as outside."""
    if values.size and not (values.min() >= least and values.max() <= most):
        flat = values.flatten()  # a copy: another thread may change it meanwhile
        for first in np.flatnonzero(~((flat >= least) & (flat <= most)))[:1]:
            where = ", ".join(str(int(i)) for i in np.unravel_index(first, values.shape))
            index = f"[{where}]" if values.ndim else ""
            raise ValueError(f"{name}{index} must be {takes}, got {flat[first]}")

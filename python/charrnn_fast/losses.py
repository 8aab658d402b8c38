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


def cross_entropy(
    logits: Array, targets: Array, reduction: str = "mean", *, weights: Array | None = None
) -> tuple[float, Array]:
    """Softmax cross-entropy in nats: -log softmax(logits)[target], and its gradient.

    logits [..., V] float32 or float64, targets [...] integer classes 0 to V - 1, or -1: ignored
    (loss and gradient 0). reduction: "mean" over the targets that are not ignored, or "sum".
    weights [...]: finite and >= 0, of the logits' dtype, one for each target: "sum" is then
    sum(w * loss), and "mean" divides it by the sum of the weights of the targets that are not
    ignored (0 where that is 0), as PyTorch does with its weights of classes. A weight of 0 ignores
    its target, whatever the logits are; a NaN among other logits makes the loss NaN.
    Returns the loss and dlogits [..., V] = softmax(logits) - onehot(target), scaled likewise.
    """
    _check_reduction(reduction)
    _check_floats("logits", logits)
    if not isinstance(targets, np.ndarray) or targets.dtype.kind not in "iu":
        raise TypeError(f"targets must be an array of integers, got {_kind(targets)}")
    if logits.ndim < 1 or logits.shape[-1] < 1 or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits must have shape [..., V] and targets [...], got {logits.shape} and "
            f"{targets.shape}"
        )
    for name, array in (("logits", logits), ("targets", targets)):
        _check_contiguous(name, array)
    classes = logits.shape[-1]
    tokens = _tokens("targets", targets, -1, classes).reshape(-1)
    _check_weights(weights, logits.dtype, targets.shape)
    loss, dlogits = _core.cross_entropy(
        logits.reshape(-1, classes),
        tokens,
        reduction,
        None if weights is None else weights.reshape(-1),
    )
    return loss, dlogits.reshape(logits.shape)


def binary_cross_entropy(
    logits: Array, targets: Array, reduction: str = "mean", *, weights: Array | None = None
) -> tuple[float, Array]:
    """Cross-entropy in nats of the probabilities sigmoid(logits), and its gradient.

    -z log sigmoid(x) - (1 - z) log(1 - sigmoid(x)) for a logit x and its target z, computed as
    max(x, 0) - x z + log1p(exp(-|x|)), which overflows nowhere. logits [...] float32 or float64,
    targets [...] in [0, 1] of the same shape and dtype. reduction: "mean" over all elements (0
    where there are none), or "sum". weights: None, or finite and >= 0, of the same shape and dtype:
    "sum" is then sum(w * loss), and "mean" divides it by the sum of the weights (0 where that is
    0); an element with a weight of 0 is left out, whatever its logit is. Another logit that is NaN
    or infinite makes the loss NaN or infinite.
    Returns the loss and dlogits [...] = sigmoid(logits) - targets, scaled likewise. As
    torch.nn.functional.binary_cross_entropy_with_logits, whose mean with weights divides by the
    number of elements instead.
    """
    _check_reduction(reduction)
    _check_pair("logits", logits, targets)
    _check_range("targets", targets, 0, 1, "0 to 1")
    _check_weights(weights, logits.dtype, logits.shape)
    return _core.binary_cross_entropy(logits, targets, reduction, weights)


def mean_square(
    y: Array, targets: Array, reduction: str = "mean", *, weights: Array | None = None
) -> tuple[float, Array]:
    """Squared differences (y - targets)^2, and their gradient.

    y [...] float32 or float64, targets [...] of the same shape and dtype. reduction: "mean" over
    all elements (0 where there are none), or "sum". weights: None, or finite and >= 0, of the same
    shape and dtype: "sum" is then sum(w * loss), and "mean" divides it by the sum of the weights (0
    where that is 0); an element with a weight of 0 is left out, whatever it holds. What is not
    finite elsewhere makes the loss NaN or infinite.
    Returns the loss and dy [...] = 2 (y - targets), scaled likewise. As
    torch.nn.functional.mse_loss.
    """
    _check_reduction(reduction)
    _check_pair("y", y, targets)
    _check_weights(weights, y.dtype, y.shape)
    return _core.mean_square(y, targets, reduction, weights)


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


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")


def _check_floats(name: str, array: Array) -> None:
    if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} must be an array of float32 or float64, got {_kind(array)}")


def _check_contiguous(name: str, array: Array) -> None:
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous: pass numpy.ascontiguousarray({name})")


def _check_like(name: str, array: Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        raise TypeError(f"{name} must be an array of {dtype}, got {_kind(array)}")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    _check_contiguous(name, array)


def _check_pair(name: str, values: Array, targets: Array) -> None:
    _check_floats(name, values)
    _check_contiguous(name, values)
    _check_like("targets", targets, values.dtype, values.shape)


def _check_weights(weights: Array | None, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if weights is not None:
        _check_like("weights", weights, dtype, shape)
        _check_range("weights", weights, 0, float(np.finfo(dtype).max), "finite numbers >= 0")


def _check_range(name: str, array: Array, least: float, most: float, takes: str) -> None:
    """ValueError names the first element that is not in [least, most], NaN among them."""
    if array.size and not (array.min() >= least and array.max() <= most):
        flat = array.flatten()  # a copy: another thread may put it right before it is named
        for first in np.flatnonzero(~((flat >= least) & (flat <= most)))[:1]:
            where = ", ".join(str(int(i)) for i in np.unravel_index(first, array.shape))
            index = f"[{where}]" if array.ndim else ""
            raise ValueError(f"{name}{index} is {flat[first]}, it takes {takes}")


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return type(value).__name__

"""How the operands of matrix products are rounded."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import Array

_DROPPED = {"float32": 0, "tf32": 13, "bfloat16": 16}  # bits of a float32
_TINY = np.finfo(np.float32).tiny


def check_compute_dtype(compute_dtype: str) -> None:
    """ValueError for a name that is none."""
    if compute_dtype not in _DROPPED:
        takes = ", ".join(map(repr, _DROPPED))
        raise ValueError(f"compute_dtype must be one of {takes}, got {compute_dtype!r}")


def operand(a: Any, compute_dtype: str) -> Array:
    """a as a factor of a matrix product: with "float32" as it is, else the nearest number of fewer
    bits, of two the even one. As bfloat16, what is too small for a normal float32 becomes 0.
    """
    array = np.asarray(a)
    if compute_dtype == "float32":
        return array
    single = np.asarray(array, np.float32)
    if compute_dtype == "bfloat16":
        single = np.where(np.abs(single) < _TINY, np.copysign(np.float32(0), single), single)
    dropped = _DROPPED[compute_dtype]
    last = np.uint32(1 << dropped)
    bits = single.view(np.uint32)
    nearest = (bits + (last // 2 - 1) + (bits >> dropped & 1)) & ~(last - 1)
    rounded = np.where(np.isnan(single), single, nearest.view(np.float32))
    return rounded.astype(array.dtype)


def dot(a: Array, b: Array, compute_dtype: str) -> Array:
    """a @ b."""
    product: Array = operand(a, compute_dtype) @ operand(b, compute_dtype)
    return product


def outer(d: Array, x: Array, compute_dtype: str) -> Array:
    """The sum of all outer products d[t, b] x[t, b]^T: a weight's gradient, [rows of d, of x]."""
    return dot(d.reshape(-1, d.shape[-1]).T, x.reshape(-1, x.shape[-1]), compute_dtype)

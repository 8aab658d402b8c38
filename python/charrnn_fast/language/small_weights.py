"""Weights of float32 models in fewer bits: as sampling reads them, and as files hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..registry import CELLS

SMALL_DTYPES = ("bfloat16", "int8")
"""Types of weights of float32 models, beside their own: half and a quarter of the memory."""

_UNIT_WEIGHTS = tuple(f"weight_{c.unit_weights}_l" for c in CELLS.values() if c.unit_weights)
_SCALES = ".scales"
_MOST = 127  # of int8
_UNUSED_BITS = np.uint32(0xFF)  # of a scale


def is_rounded(name: str, dimensions: int) -> bool:
    """Whether a parameter has fewer bits with small weights: matrices.

    Two kinds have not: layer 0's input weights, of which a token reads one row, and peephole
    weights, which are vectors.
    """
    return dimensions == 2 and name != "weight_ih_l0" and not name.startswith(_UNIT_WEIGHTS)


def read_as(weight_dtype: str | None, name: str, parameter: NDArray[Any]) -> NDArray[Any]:
    """The values of a parameter that sampling with weights of this type uses."""
    if weight_dtype not in SMALL_DTYPES or not is_rounded(name, parameter.ndim):
        return parameter
    if weight_dtype == "bfloat16":
        return rounded_to_bfloat16(parameter)
    integers, scales = rounded_to_int8(parameter)
    with np.errstate(invalid="ignore"):
        products: NDArray[Any] = integers * scales[:, None]  # exact
    return products


def rounded_to_bfloat16(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest bfloat16 (8-bit significand) of every element, ties to even, as float32."""
    bits = np.ascontiguousarray(weights).view(np.uint32)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    # Rounding up could overflow a NaN beyond the largest one.
    return np.where(np.isnan(weights), weights, nearest.view(np.float32))


def rounded_to_int8(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """weights [R, C] as integers -127 to 127, and the scale of each row [R].

    The scale is the row's absolute maximum / 127, cut to 16 significant bits: so that integer *
    scale is a float32, and rounding it again gives the same integers and scales. Integers are
    weight / scale, ties to even. A row that is not finite has such a scale, and integers 0.
    """
    scales = np.abs(weights).max(axis=1, initial=0) / np.float32(127)
    finite = np.isfinite(scales)
    cut = (scales.view(np.uint32) & np.uint32(0xFFFFFF00)).view(np.float32)
    scales = np.where(finite, cut, scales)
    divisors = np.where(scales > 0, scales, np.float32(np.inf))[:, None]
    with np.errstate(invalid="ignore"):
        integers = np.clip(np.rint(weights / divisors), -127, 127)
    return np.where(finite[:, None], integers, 0).astype(np.int8), scales


def stored(weight_dtype: str | None, name: str, parameter: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """What a file with these weights has for a parameter: arrays by the ends of their names.

    bfloat16: uint16, the upper halves of the floats. int8: the integers, and the scales by
    ".scales". Raises FloatingPointError where these would not be finite.
    """
    if weight_dtype not in SMALL_DTYPES or not is_rounded(name, parameter.ndim):
        return {"": parameter}
    if weight_dtype == "bfloat16":
        rounded = rounded_to_bfloat16(parameter)
        _check_finite(rounded, name, weight_dtype)
        return {"": (rounded.view(np.uint32) >> 16).astype(np.uint16)}
    integers, scales = rounded_to_int8(parameter)
    _check_finite(scales, name, "int8")
    return {"": integers, _SCALES: scales}


def _check_finite(rounded: NDArray[np.float32], name: str, weight_dtype: str) -> None:
    if not np.isfinite(rounded).all():
        raise FloatingPointError(
            f"{name} is not finite as {weight_dtype}; no checkpoint is written"
        )


def stored_shapes(
    weight_dtype: str | None, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Dtypes and shapes of what `stored` returns for a parameter of a shape and dtype."""
    if weight_dtype not in SMALL_DTYPES or not is_rounded(name, len(shape)):
        return {"": (dtype, shape)}
    if weight_dtype == "bfloat16":
        return {"": (np.dtype(np.uint16), shape)}
    return {"": (np.dtype(np.int8), shape), _SCALES: (np.dtype(np.float32), shape[:1])}


def restored(
    weight_dtype: str | None, name: str, tensor: str, tensors: Mapping[str, NDArray[Any]]
) -> NDArray[Any]:
    """The parameter that `stored` was given, rounded; of tensors with the right shapes.

    tensor: its name among tensors. Raises ValueError for numbers that `stored` cannot return.
    """
    value = tensors[tensor]
    if weight_dtype not in SMALL_DTYPES or not is_rounded(name, value.ndim):
        return value
    if weight_dtype == "bfloat16":
        floats = (value.astype(np.uint32) << 16).view(np.float32)
        if not np.isfinite(floats).all():
            raise ValueError(f"the tensor {tensor!r} is not finite")
        return floats
    scales = tensors[tensor + _SCALES]
    bits = scales.view(np.uint32)
    if not (np.isfinite(scales).all() and not np.any(np.signbit(scales) | (bits & _UNUSED_BITS))):
        raise ValueError(
            f"the tensor {tensor + _SCALES!r} must have floats of 16 significant bits, at least 0"
        )
    largest = np.abs(value.astype(np.int16)).max(axis=1, initial=0)
    if not np.array_equal(largest, np.where(scales > 0, _MOST, 0)):
        raise ValueError(
            f"the tensor {tensor!r} must reach {_MOST} or -{_MOST} in each row, and be 0 where "
            f"the scale is"
        )
    with np.errstate(over="ignore"):
        products: NDArray[np.float32] = value * scales[:, None]
    if not np.isfinite(products).all():
        raise ValueError(f"the tensor {tensor!r} is not finite, times its scales")
    return products

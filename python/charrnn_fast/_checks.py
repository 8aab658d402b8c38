"""Checks of single arguments, with messages that name the argument, what it got and takes."""

from __future__ import annotations

import math
import operator
import os
from typing import SupportsFloat

StrPath = str | os.PathLike[str]


def integer(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """value as an int; TypeError for anything that is no integer, ValueError out of range."""
    takes = f">= {minimum}" if maximum is None else f"in {minimum} to {maximum}"
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer {takes}, got {value!r}") from None
    if number < minimum or (maximum is not None and number > maximum):
        raise ValueError(f"{name} must be {takes}, got {number}")
    return number


def real(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
) -> float:
    """value as a finite float in the bounds; TypeError for anything that is no number."""
    limits = ((above, "above"), (least, "at least"), (most, "at most"))
    takes = ", ".join(["finite", *(f"{word} {x:g}" for x, word in limits if math.isfinite(x))])
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise TypeError(f"{name} must be a number ({takes}), got {value!r}")
    number = float(value)
    if not (math.isfinite(number) and above < number and least <= number <= most):
        raise ValueError(f"{name} must be {takes}, got {number}")
    return number

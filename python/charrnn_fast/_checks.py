"""Checks of single arguments, with messages that name the argument, its limits and its value."""

from __future__ import annotations

import inspect
import math
import operator
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

StrPath = str | os.PathLike[str]

LARGEST = 2**31 - 1  # the kernels' integers
LARGEST_SEED = 2**64 - 1
MOST_STEPS = 2**62  # of a training; far below a 64-bit counter's end
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))  # dtypes of networks
_MUCH_MEMORY = 2**26  # bytes; from here on the available memory is checked

_names: ContextVar[Mapping[str, str] | None] = ContextVar("_names", default=None)

_tell: ContextVar[Callable[[str], None] | None] = ContextVar("_tell", default=None)


def called(name: str) -> str:
    """An argument's name in messages: its own, or the one that `calling` gives.

    An element, as "stop[1]", is called as its argument is.
    """
    names = _names.get()
    return name if names is None else names.get(name.partition("[")[0], name)


@contextmanager
def calling(names: Mapping[str, str]) -> Iterator[None]:
    """Gives arguments other names in messages, as the command line gives them its flags."""
    token = _names.set(names)
    try:
        yield
    finally:
        _names.reset(token)


def warn(message: str) -> None:
    """A UserWarning at the line that called this package, or a call of what `telling` set."""
    tell = _tell.get()
    if tell is not None:
        tell(message)
        return
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_back is not None and _is_ours(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def _is_ours(frame: FrameType) -> bool:
    package = __name__.partition(".")[0]
    return str(frame.f_globals.get("__name__")).partition(".")[0] == package


@contextmanager
def telling(tell: Callable[[str], None]) -> Iterator[None]:
    """Sends warnings to tell."""
    token = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(token)


def instance(name: str, value: object, kind: type | tuple[type, ...], takes: str) -> None:
    """TypeError unless value is of a kind; takes names the kind in the message."""
    if not isinstance(value, kind):
        raise TypeError(f"{called(name)} must be {takes}, got {type(value).__name__}")


def array(name: str, value: object, takes: str = "a NumPy array") -> NDArray[Any]:
    """value as a plain array that shares its memory; TypeError for anything else than an array.

    A subclass, such as numpy.memmap, counts as a plain array. Masked arrays are refused: masked
    values would be read.
    """
    _check_unmasked(name, value)
    if not isinstance(value, np.ndarray):
        hint = ": convert it by numpy.asarray" if hasattr(value, "__array__") else ""
        raise TypeError(f"{called(name)} must be {takes}, got {type(value).__name__}{hint}")
    return value if type(value) is np.ndarray else np.asarray(value)


def array_like(name: str, value: object) -> NDArray[Any]:
    """As `array`, for anything that NumPy can convert to an array: lists, tensors, tables."""
    _check_unmasked(name, value)
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{called(name)} makes no array: {error}") from None


def _check_unmasked(name: str, value: object) -> None:
    if type(value) is np.ndarray:
        return
    parts = value if isinstance(value, (list, tuple)) else ()
    if any(isinstance(part, np.ma.MaskedArray) for part in (value, *parts)):
        raise TypeError(
            f"{called(name)} must have no mask, got a masked array, of which all elements would be "
            f"read: fill it by its filled(), or take its data"
        )


def floats(name: str, value: object, dtype: np.dtype[Any]) -> NDArray[Any]:
    """value as a plain, C-contiguous array of a network's dtype; else TypeError or ValueError."""
    value = array(name, value, f"a NumPy array of {dtype}")
    code = name.split()[0]  # of "state[0] (h)"
    if value.dtype != dtype:
        message = (
            f"{name} must have the network's dtype {dtype}, got {value.dtype}: convert it "
            f"by {code}.astype({dtype.name!r})"
        )
        if not value.dtype.isnative:
            message += "; its byte order is not this machine's"
        elif value.dtype in FLOATS:
            message += f", or build the network with dtype={value.dtype.name!r}"
        raise TypeError(message)
    if not value.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous: pass numpy.ascontiguousarray({code})")
    return value


def token_array(name: str, value: NDArray[Any], letters: str, size: int) -> NDArray[np.int32]:
    """Integers 0 to size - 1 of shape [letters], such as "TB", as contiguous int32."""
    if value.ndim != len(letters):
        shown = ", ".join(letters)
        raise ValueError(f"{name} of tokens must have shape [{shown}], got {value.shape}")
    if not value.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous: pass numpy.ascontiguousarray({name})")
    return tokens(name, value, 0, size)


def tokens(name: str, given: NDArray[Any], lowest: int, end: int) -> NDArray[np.int32]:
    """Integers of any type as int32 for the kernels, which copy them and check the copy.

    ValueError names the first one outside [lowest, end) if int32 cannot hold them all.
    """
    flags = given.flags
    if given.dtype == np.int32 and flags.c_contiguous and flags.aligned:
        return given
    ids = given.astype(np.int32, order="C")
    if not np.can_cast(given.dtype, np.int32) and np.count_nonzero(ids != given):
        given = np.array(given)  # a copy that no other thread changes
        in_range(name, given, lowest, end)
        ids = given.astype(np.int32, order="C")
    return ids


def in_range(name: str, ids: NDArray[Any], lowest: int, end: int) -> None:
    """ValueError unless all integers are in [lowest, end); names the first bad one."""
    bad = (ids < lowest) | (ids >= end)
    if not bad.any():
        return
    where = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(bad)))
    value = int(np.atleast_1d(ids)[where])
    index = f"[{', '.join(map(str, where))}]" if ids.ndim else ""
    raise ValueError(f"{name}{index} must be in {lowest} to {end - 1}, got {value}")


def integer(name: str, value: object, minimum: int, maximum: int = LARGEST) -> int:
    """value as an int; TypeError if it is not an integer, ValueError if out of range."""
    takes = f">= {minimum}" if maximum == LARGEST else f"in {minimum} to {maximum}"
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{called(name)} must be an integer {takes}, got {value!r}") from None
    if number < minimum:
        raise ValueError(f"{called(name)} must be {takes}, got {shown(number)}")
    if number > maximum:
        raise ValueError(f"{called(name)} must be in {minimum} to {maximum}, got {shown(number)}")
    return number


def real(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> float:
    """value as a finite float within bounds; TypeError if it is not a number."""
    # The protocol comes last: checking it is slow.
    is_number = isinstance(value, (float, int, SupportsFloat)) and not isinstance(value, bool)
    number = math.nan
    if is_number:
        try:
            number = float(value)  # type: ignore[arg-type]
        except OverflowError:  # an integer beyond the largest float
            number = math.inf
        if math.isfinite(number) and above < number < below and least <= number <= most:
            return number
    limits = ((above, "above"), (least, "at least"), (most, "at most"), (below, "below"))
    takes = ", ".join(["finite", *(f"{word} {x:g}" for x, word in limits if math.isfinite(x))])
    if not is_number:
        raise TypeError(f"{called(name)} must be a number ({takes}), got {value!r}")
    raise ValueError(f"{called(name)} must be {takes}, got {number}")


def available_memory() -> int | None:
    """Bytes of available memory, as Linux estimates it; None if unknown.

    The limit of a control group counts too (cgroup v2, as in containers).
    """
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, LookupError, ValueError):
        return None
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = int(file.read())
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as file:
            free = min(free, max(0, limit - int(file.read())))
    except (OSError, ValueError):  # there is no such group, or its limit is "max"
        pass
    return free


@contextmanager
def enough_memory(
    needed: int,
    what: str,
    advice: str,
    measure: Callable[[], int | None] | None = None,
    where: str = "",
) -> Iterator[None]:
    """Turns a MemoryError within into one that says what needs the memory and what helps.

    needed: bytes; if many and more than available, nothing is allocated: the system may promise
    more memory than it has and kill the process later. measure: the bytes that are free; None:
    those of this machine. where: " on cuda", of another memory than this machine's.
    """
    free = (measure or available_memory)() if needed > _MUCH_MEMORY else None
    try:
        if free is not None and needed > free:
            raise MemoryError
        yield
    except MemoryError:
        have = "more than there is" if free is None else f"and {free / 1e9:,.3g} GB are free"
        have += where
        raise MemoryError(f"{what} takes {needed / 1e9:,.3g} GB, {have}; try {advice}") from None


def shown(number: int) -> str:
    """number for a message; Python refuses to print thousands of digits."""
    return (
        str(number) if number.bit_length() <= 1024 else f"an integer of {number.bit_length()} bits"
    )


def brief(number: float, digits: int, width: int = 9) -> str:
    """number with so many digits after its point or, if that is wider, like 8.123e+31."""
    fixed = f"{number:.{digits}f}"
    return fixed if len(fixed) <= width else f"{number:.4g}"

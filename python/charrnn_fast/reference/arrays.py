"""Types of all files of the reference: arrays, and dicts and tuples of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Parameters = dict[str, Array]
State = Array | tuple[Array, Array]
States = tuple[Array, ...]  # one array for each of a cell's states: (h,) or (h, c)


def are_tokens(x: Array) -> bool:
    """Whether x holds integers, each of which stands for a one-hot vector."""
    return np.issubdtype(x.dtype, np.integer)


def check_ids(name: str, ids: Array, size: int, lowest: int = 0) -> None:
    """ValueError for an id outside [lowest, size): NumPy counts a negative one from the end."""
    if ids.size and not lowest <= ids.min() <= ids.max() < size:
        found = f"{ids.min()} to {ids.max()}"
        raise ValueError(f"{name} must be integers in [{lowest}, {size}), got {found}")

"""Chunks of streams in which documents begin: each document starts from the zero state.

A row of a chunk, T steps of a stream, is cut where documents begin; the parts become rows of their
own, of different lengths. The first part of a stream goes on from the state that it carries, the
others begin at zero, and the last one's state is carried on. Padding takes no time in the kernels,
so that a chunk takes the time that it takes without documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Parts:
    """A chunk of B streams as R rows, R >= B; the first B rows are the streams' first parts."""

    inputs: NDArray[np.int32]  # [T', R], T' the longest part; 0 past a row's end
    targets: NDArray[np.int32]  # [T', R], -1 past a row's end
    lengths: NDArray[np.int64]  # [R], 1 to T'
    carried: NDArray[np.int64]  # the streams whose first part does not begin a document
    last: NDArray[np.int64]  # [B] the row of each stream's last part

    def first_state(self, parts: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """States [L, R, .] of the rows, from those [L, B, .] that the streams carry."""
        states = []
        for part in parts:
            layers, _, width = part.shape
            state = np.zeros((layers, len(self.lengths), width), part.dtype)
            state[:, self.carried] = part[:, self.carried]
            states.append(state)
        return states

    def last_state(self, parts: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """States [L, B, .] that the streams carry on, from those [L, R, .] of the rows."""
        return [part[:, self.last] for part in parts]


def cut(
    inputs: NDArray[np.int32], targets: NDArray[np.int32], starts: Sequence[NDArray[np.int64]]
) -> Parts:
    """Cuts a chunk, inputs and targets [T, B], where documents begin.

    starts: of each stream the steps, 0 to T - 1 and ascending, whose input begins a document.
    """
    steps, batch = inputs.shape
    first: list[tuple[int, int, int]] = []  # stream, first step, end
    others: list[tuple[int, int, int]] = []
    last = np.arange(batch)
    for stream, begins in enumerate(starts):
        inner = [int(t) for t in begins if t > 0]
        first.append((stream, 0, inner[0] if inner else steps))
        for begin, end in pairwise([*inner, steps]):
            last[stream] = batch + len(others)
            others.append((stream, begin, end))
    rows = first + others
    lengths = np.array([end - begin for _, begin, end in rows], np.int64)
    shape = (int(lengths.max()), len(rows))
    parts = Parts(
        inputs=np.zeros(shape, np.int32),
        targets=np.full(shape, -1, np.int32),
        lengths=lengths,
        carried=np.array([b for b, begins in enumerate(starts) if 0 not in begins], np.int64),
        last=last,
    )
    for row, (stream, begin, end) in enumerate(rows):
        parts.inputs[: end - begin, row] = inputs[begin:end, stream]
        parts.targets[: end - begin, row] = targets[begin:end, stream]
    return parts

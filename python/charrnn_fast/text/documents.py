"""Where documents begin, in a text and in a chunk: each document starts from the zero state.

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

from .._checks import called
from ..storage.file_array import Ids
from . import files as text_files
from .files import in_blocks
from .vocabulary import Vocabulary


class Documents:
    """Where the documents of a text begin: behind every mark, and where a file does."""

    def __init__(
        self, ids: Ids, vocabulary: Vocabulary, mark: str, file_starts: Sequence[int]
    ) -> None:
        """mark "" is nowhere. Raises ValueError where the text does not hold the mark."""
        self._ids = ids
        self.mark = mark
        encoded = vocabulary.encode_part(mark, called("document_mark"), 0)
        if (encoded == vocabulary.unknown_id).any():
            raise ValueError(
                f"{called('document_mark')} is {mark!r}, of which the vocabulary maps a character "
                f"to its unknown symbol; the mark must be told from other text"
            )
        self._mark_ids = encoded.astype(ids.dtype)  # [M]
        self.file_starts = np.setdiff1d(np.array(file_starts, np.int64), [0])
        if mark and not self._is_marked():
            raise ValueError(
                f"{called('document_mark')} is {mark!r}, which does not occur in the text"
            )

    def starts_within(self, first: int, last: int) -> NDArray[np.int64]:
        """The positions in first to last - 1 at which a document begins, ascending, without 0."""
        first, last = max(first, 1), min(last, len(self._ids))
        found = [self._behind_marks(*ends) for ends in in_blocks(first, last)]
        begin, end = np.searchsorted(self.file_starts, (first, last))
        if len(found) == 1 and begin == end:  # a short stretch, as training asks for
            return found[0]
        return np.unique(np.concatenate([self.file_starts[begin:end], *found]))

    def _is_marked(self) -> bool:
        """Whether there is a mark at all; what comes after the first one is not read."""
        size = self._mark_ids.itemsize
        with text_files.progress(len(self._ids) * size, "looking for documents") as bar:
            for first, last in in_blocks(1, len(self._ids) + 1):
                if self._behind_marks(first, last).size:
                    return True
                bar.update((last - first) * size)
        return False

    def _behind_marks(self, first: int, last: int) -> NDArray[np.int64]:
        """The positions p in first to last - 1 with the mark as ids[p - M : p]."""
        size = len(self._mark_ids)
        begin = max(first - size, 0)
        ids = self._ids[begin : last - 1]
        if not 0 < size <= len(ids):
            return np.empty(0, np.int64)
        found = np.flatnonzero(ids[: len(ids) - size + 1] == self._mark_ids[0])
        for offset in range(1, size):
            if not found.size:
                break
            found = found[ids[found + offset] == self._mark_ids[offset]]
        return found + (begin + size)


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

"""Where documents begin, in a text and in a chunk: each document starts from the zero state.

A row of a chunk, T steps of a stream, is cut where documents begin. The pieces become rows of their
own, of different lengths. The first piece of a stream starts from the carried state, the others
from zero; the last one's state is carried on. Padding is never computed, so a chunk takes as long
as without documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._checks import called
from ..storage.file_array import Ids
from . import files as text_files
from .files import in_blocks
from .vocabulary import Vocabulary


class Documents:
    """Where the documents of a text begin: after every mark and at every file's start."""

    def __init__(
        self,
        ids: Ids,
        vocabulary: Vocabulary,
        mark: str,
        file_starts: Sequence[int],
        *,
        must_occur: bool = True,
    ) -> None:
        """mark "" occurs nowhere. Raises ValueError if the mark is not in the text, but must be."""
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
        if mark and must_occur and not self._is_marked():
            raise ValueError(f"{called('document_mark')} must occur in the text, got {mark!r}")

    def starts_within(self, first: int, last: int) -> NDArray[np.int64]:
        """The positions from first to last - 1 where a document begins, ascending, without 0."""
        first, last = max(first, 1), min(last, len(self._ids))
        found = [self._behind_marks(*ends) for ends in in_blocks(first, last)]
        begin, end = np.searchsorted(self.file_starts, (first, last))
        if len(found) == 1 and begin == end:  # a short range, as training asks for
            return found[0]
        return np.unique(np.concatenate([self.file_starts[begin:end], *found]))

    @property
    def mark_size(self) -> int:
        """M, the number of ids of the mark."""
        return len(self._mark_ids)

    def begin_at(self, places: NDArray[np.int64], ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """[T, B]: whether a document begins at a place [T, B] of the text; at place 0 one does.

        ids [M + T, B]: in each column the ids at the places and the M before them; before the
        text's beginning they can be any.
        """
        size = self.mark_size
        begins: NDArray[np.bool_] = places == 0
        if self.file_starts.size:
            at = np.searchsorted(self.file_starts, places)
            begins |= self.file_starts[np.minimum(at, self.file_starts.size - 1)] == places
        if size:
            # [n] the steps and streams that may follow a mark: all its ids so far match.
            steps, streams = np.nonzero(ids[:-size] == self._mark_ids[0])
            for offset in range(1, size):
                held = ids[steps + offset, streams] == self._mark_ids[offset]
                steps, streams = steps[held], streams[held]
            whole = places[steps, streams] >= size
            begins[steps[whole], streams[whole]] = True
        return begins

    def _is_marked(self) -> bool:
        """Whether there is a mark at all; reading stops at the first one."""
        size = self._mark_ids.itemsize
        with text_files.progress(len(self._ids) * size, "looking for documents") as bar:
            for first, last in in_blocks(1, len(self._ids) + 1):
                if self._behind_marks(first, last).size:
                    return True
                bar.update((last - first) * size)
        return False

    def _behind_marks(self, first: int, last: int) -> NDArray[np.int64]:
        """The positions p from first to last - 1 with the mark as ids[p - M : p]."""
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
    """A chunk of B streams as R rows, R >= B; the first B rows are the streams' first pieces."""

    inputs: NDArray[np.int32]  # [T', R], T' the longest piece; 0 in padding
    targets: NDArray[np.int32]  # [T', R], -1 in padding
    lengths: NDArray[np.int64]  # [R], 1 to T'
    carried: NDArray[np.int64]  # the streams whose first piece does not begin a document
    last: NDArray[np.int64]  # [B] the row of each stream's last piece

    def first_state(self, parts: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """States [L, R, .] of the rows, from the carried ones [L, B, .] of the streams."""
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


def cut(inputs: NDArray[np.int32], targets: NDArray[np.int32], begins: NDArray[np.bool_]) -> Parts:
    """Cuts a chunk, inputs and targets [T, B], where documents begin.

    begins [T, B]: whether an input begins a document.
    """
    steps, batch = inputs.shape
    # The rows: the first pieces of all streams, then the others, stream by stream.
    streams, first = np.nonzero(begins[1:].T)
    last = np.arange(batch)
    last[streams] = batch + np.arange(len(streams))  # the last of several is kept
    streams = np.concatenate([np.arange(batch), streams])
    first = np.concatenate([np.zeros(batch, np.int64), first + 1])
    # As one text of all streams, stream by stream: a piece ends where the next one begins.
    places = streams * steps + first
    order = np.argsort(places)
    lengths = np.empty(len(order), np.int64)
    lengths[order] = np.diff(places[order], append=batch * steps)
    step = np.arange(lengths.max())[:, None]
    inside = step < lengths
    taken = np.minimum(first + step, steps - 1), streams
    return Parts(
        inputs=np.where(inside, inputs[taken], np.int32(0)),
        targets=np.where(inside, targets[taken], np.int32(-1)),
        lengths=lengths,
        carried=np.flatnonzero(~begins[0]),
        last=last,
    )

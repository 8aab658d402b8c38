"""The chunks of a text that training reads, in order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .._checks import called
from ..storage.file_array import Ids, columns_of
from .documents import Documents


class Chunks:
    """The chunks of one epoch for stateful truncated backpropagation through time.

    The ids are cut into B contiguous streams. Chunk i holds the steps i T to (i + 1) T - 1 of every
    stream; the targets are the ids that follow. A hidden state carried from chunk to chunk has thus
    read its stream from the start. The rest of a stream after its last whole chunk is not used.
    """

    def __init__(self, ids: Ids, batch_size: int, seq_len: int, unit: str) -> None:
        piece = (len(ids) - 1) // batch_size
        if piece < seq_len:
            raise ValueError(
                f"the text's training part must have {batch_size * seq_len + 1} {unit}s or more, "
                f"for a chunk of {called('batch_size')}={batch_size} streams by "
                f"{called('seq_len')}={seq_len}, got {len(ids)}; use a smaller "
                f"{called('batch_size')} or {called('seq_len')}, or more text"
            )
        self._ids = ids
        # [T + 1, B] of the first chunk: of its inputs and, one later, of its targets.
        self._places = np.arange(seq_len + 1)[:, None] + np.arange(batch_size) * piece
        self._count = piece // seq_len

    def __len__(self) -> int:
        """The number of chunks of an epoch."""
        return self._count

    def read(self, index: int, offset: int = 0) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """inputs and targets [T, B] of a chunk.

        offset: where in the ids the first stream begins; reading wraps around at the end.
        """
        ids = columns_of(self._ids, self._places + self._shift(index, offset)).astype(np.int32, "C")
        return ids[:-1], ids[1:]

    def read_documents(
        self, index: int, documents: Documents, offset: int = 0
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
        """As `read`, plus [T, B]: whether an input begins a document.

        documents: of the text that begins with the ids. The first id begins a document too.
        """
        before, places = documents.mark_size, self._places + self._shift(index, offset)
        earlier = places[0] - np.arange(before, 0, -1)[:, None]
        ids = columns_of(self._ids, np.concatenate([earlier, places])).astype(np.int32, "C")
        begins = documents.begin_at(places[:-1] % len(self._ids), ids[:-1])
        return ids[before:-1], ids[before + 1 :], begins

    def _shift(self, index: int, offset: int) -> int:
        if not 0 <= index < self._count:
            raise IndexError(f"chunk must be in 0 to {self._count - 1}, got {index}")
        return offset + index * (len(self._places) - 1)

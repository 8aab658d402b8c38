"""The pieces of a text that a training reads, in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._checks import called
from ..storage.file_array import Ids

if TYPE_CHECKING:
    from .corpus import Corpus


class Chunks:
    """The chunks of one epoch for stateful truncated backpropagation through time.

    Stream b of B reads the b-th of B contiguous pieces of the ids; chunk i holds the steps i T to
    (i + 1) T - 1 of every stream, and the targets are the ids that follow. A hidden state carried
    from chunk to chunk has thus read its stream from the start. What is left after the last whole
    chunk of a piece is not used.
    """

    def __init__(self, ids: Ids, batch_size: int, seq_len: int, unit: str) -> None:
        piece = (len(ids) - 1) // batch_size
        if piece < seq_len:
            raise ValueError(
                f"the text is too short: its training part has {len(ids)} {unit}s, and one chunk "
                f"of {called('batch_size')}={batch_size} streams by {called('seq_len')}={seq_len} "
                f"takes {batch_size * seq_len + 1}; use a smaller {called('batch_size')} or "
                f"{called('seq_len')}, or more text"
            )
        self._ids = ids
        self._starts = np.arange(batch_size) * piece
        self._buffers = np.empty((2, seq_len, batch_size), np.int32)
        self._count = piece // seq_len

    def __len__(self) -> int:
        """The chunks of an epoch."""
        return self._count

    def read(self, index: int, offset: int = 0) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """inputs and targets [T, B] of a chunk, valid until the next call.

        offset: where in the ids the first stream begins; behind the last id comes the first one.
        """
        if not 0 <= index < self._count:
            raise IndexError(f"chunk {index} of {self._count}")
        inputs, targets = self._buffers
        steps, size = len(inputs), len(self._ids)
        for stream, start in enumerate(self._starts):
            first = (offset + start + index * steps) % size
            piece = self._ids[first : first + steps + 1]
            if len(piece) <= steps:
                piece = np.concatenate([piece, self._ids[: steps + 1 - len(piece)]])
            inputs[:, stream] = piece[:-1]
            targets[:, stream] = piece[1:]
        return inputs, targets

    def documents(self, index: int, corpus: Corpus, offset: int = 0) -> list[NDArray[np.int64]]:
        """Of each stream the steps of a chunk, 0 to T - 1, whose input begins a document.

        The ids are those of ``corpus.train``, whose first one begins a document too.
        """
        steps, size = len(self._buffers[0]), len(self._ids)
        starts = []
        for start in self._starts:
            first = int((offset + start + index * steps) % size)
            left = size - first  # steps to the end of the ids
            found = corpus.starts_within(first, min(first + steps, size)) - first
            if first == 0:
                found = np.concatenate([[0], found])
            if left < steps:
                behind = corpus.starts_within(0, steps - left) + left
                found = np.concatenate([found, [left], behind])
            starts.append(found)
        return starts

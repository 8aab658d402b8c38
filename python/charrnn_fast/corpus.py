"""A text of any size as an array of ids, split into a training and a validation part."""

from __future__ import annotations

import codecs
import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._checks import StrPath, instance
from .vocabulary import Vocabulary, _distinct_code_points

if TYPE_CHECKING:
    from tqdm import tqdm

_BLOCK = 1 << 22  # bytes read at a time


class Corpus:
    """The ids of a text: the first 90 % to train on, the last 10 % to validate with.

    ids [N] are of the smallest unsigned integer type that holds the vocabulary. `train` and
    `validation` are read-only views of them.
    """

    vocabulary: Vocabulary
    train: NDArray[Any]
    validation: NDArray[Any]

    def __init__(self, ids: NDArray[Any], vocabulary: Vocabulary) -> None:
        """ids [N], N >= 1, all below ``len(vocabulary)``; use `from_text` or `from_files`."""
        ids = ids.view()
        ids.flags.writeable = False
        self.vocabulary = vocabulary
        self._ids = ids
        split = len(ids) * 9 // 10
        self.train, self.validation = ids[:split], ids[split:]

    @classmethod
    def from_text(cls, text: str, vocabulary: Vocabulary | None = None) -> Corpus:
        """The corpus of a text in memory; vocabulary None: the text's own characters."""
        _check_vocabulary(vocabulary)
        if vocabulary is None:
            vocabulary = Vocabulary.from_text(text)
        ids = vocabulary.encode(text)
        if not ids.size:
            raise ValueError("text is empty; a corpus needs at least one character")
        return cls(ids.astype(_id_dtype(vocabulary)), vocabulary)

    @classmethod
    def from_files(cls, *paths: StrPath, vocabulary: Vocabulary | None = None) -> Corpus:
        """The corpus of one or more files, one after the other; it may exceed the memory.

        vocabulary None: the characters of the files. Each file is read once. The files must be
        strict UTF-8 unless the vocabulary is `Vocabulary.from_bytes()`. Ids are kept in a temporary
        file (in the folder that TMPDIR names, one to four bytes for a character) that vanishes with
        the corpus; with the byte vocabulary a single file is mapped itself, and must not be
        shortened while the corpus is in use.

        Raises ValueError with file and byte offset at invalid UTF-8, with file and position at a
        character that a given vocabulary lacks.
        """
        if not paths:
            raise TypeError("from_files takes at least one path, got none")
        _check_vocabulary(vocabulary)
        files = [os.fspath(path) for path in paths]
        if not sum(_size(path) for path in files):
            raise ValueError(f"the text is empty: {', '.join(files)}")
        if vocabulary is not None and vocabulary.kind == "bytes" and len(files) == 1:
            return cls(np.asarray(np.memmap(files[0], np.uint8, "r")), vocabulary)
        # Written first and mapped afterwards: a full disk is then an error, not a crash.
        with tempfile.TemporaryFile(prefix="charrnn_fast-") as spool:
            if vocabulary is None:
                vocabulary = _spool_and_find(files, spool)
            elif vocabulary.kind == "bytes":
                for path in files:
                    with open(path, "rb") as file:
                        shutil.copyfileobj(file, spool)
            else:
                for block in _read(files, "reading"):
                    ids = vocabulary._encode(block.text, block.path, block.position)
                    spool.write(ids.astype(_id_dtype(vocabulary)).data)
            spool.flush()
            return cls(np.asarray(np.memmap(spool, _id_dtype(vocabulary), "r")), vocabulary)

    def __len__(self) -> int:
        """N, the number of characters (or bytes) of the whole text."""
        return len(self._ids)

    def __repr__(self) -> str:
        return (
            f"<Corpus of {len(self):,} {self.vocabulary.kind}, {len(self.vocabulary)} distinct: "
            f"{len(self.train):,} to train, {len(self.validation):,} to validate>"
        )

    @cached_property
    def _fingerprint(self) -> str:
        """Tells corpora apart without reading all of a large one: up to 1024 spread blocks."""
        digest = hashlib.sha256(f"{len(self)} {self._ids.dtype}".encode())
        block = 1 << 16
        for start in range(0, len(self), max(block, len(self) // 1024)):
            digest.update(self._ids[start : start + block].data)
        return digest.hexdigest()


def _check_vocabulary(vocabulary: object) -> None:
    instance("vocabulary", vocabulary, (Vocabulary, type(None)), "a Vocabulary or None")


class _Chunks:
    """The chunks of one epoch for stateful truncated backpropagation through time.

    Stream b of B reads the b-th of B contiguous pieces of the ids; chunk i holds the steps i T to
    (i + 1) T - 1 of every stream, and the targets are the ids that follow. A hidden state carried
    from chunk to chunk has thus read its stream from the start. What is left after the last whole
    chunk of a piece is not used.
    """

    def __init__(self, ids: NDArray[Any], batch_size: int, seq_len: int, unit: str) -> None:
        piece = (len(ids) - 1) // batch_size
        if piece < seq_len:
            raise ValueError(
                f"the text is too short: its training part has {len(ids)} {unit}s, and one chunk "
                f"of batch_size={batch_size} streams by seq_len={seq_len} takes "
                f"{batch_size * seq_len + 1}; use a smaller batch_size or seq_len, or more text"
            )
        self._ids = ids
        self._starts = np.arange(batch_size) * piece
        self._buffers = np.empty((2, seq_len, batch_size), np.int32)
        self._count = piece // seq_len

    def __len__(self) -> int:
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


def _size(path: str) -> int:
    """Bytes of a regular file; pipes and devices, whose size cannot be told, are refused."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a text file is needed, but this is a folder", path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is no regular file; save the text to a file first")
    return status.st_size


def _id_dtype(vocabulary: Vocabulary) -> np.dtype[Any]:
    return np.min_scalar_type(len(vocabulary) - 1)


def _spool_and_find(files: Sequence[str], spool: IO[bytes]) -> Vocabulary:
    """Writes the ids of files, and finds their vocabulary, in one pass.

    Ids are given as characters turn up, and put into the vocabulary's order at the end.
    """
    found = np.empty(0, np.int64)  # [V] code points; an index is an id
    vocabulary, dtype = None, np.dtype(np.uint8)
    for block in _read(files, "reading"):
        new = np.setdiff1d(_distinct_code_points([block.text]), found)
        if vocabulary is None or new.size:
            found = np.concatenate([found, new])
            vocabulary = Vocabulary(found)
            if _id_dtype(vocabulary) != dtype:
                narrow, dtype = dtype, _id_dtype(vocabulary)
                _translate(spool, narrow, np.arange(len(found), dtype=dtype))
        ids = vocabulary._encode(block.text, block.path, block.position)
        spool.write(ids.astype(dtype).data)
    rank = np.argsort(np.argsort(found))
    _translate(spool, dtype, rank.astype(dtype))
    return Vocabulary(np.sort(found))


def _translate(spool: IO[bytes], dtype: np.dtype[Any], table: NDArray[Any]) -> None:
    """Replaces each id by its entry in table, whose type may be wider, in place."""
    count = spool.tell() // dtype.itemsize
    # From the end, so that wider ids are written over those only that have been read.
    for start in reversed(range(0, count, _BLOCK)):
        spool.seek(start * dtype.itemsize)
        ids = np.frombuffer(spool.read(_BLOCK * dtype.itemsize), dtype)
        spool.seek(start * table.itemsize)
        spool.write(table[ids].data)
    spool.seek(count * table.itemsize)


class _Block(NamedTuple):
    """A part of a file's text and the position of its first character in that file."""

    path: str
    position: int
    text: str


def _read(paths: Sequence[str], activity: str) -> Iterator[_Block]:
    """The texts of files in blocks, strictly decoded; a bar on a terminal if it takes long."""
    for path in paths:
        decoder = codecs.getincrementaldecoder("utf-8")()
        position = size = 0
        with (
            open(path, "rb") as file,
            _bar(os.path.getsize(path), f"{activity} {path}") as bar,
        ):
            while True:
                data = file.read(_BLOCK)
                pending = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{path}: invalid UTF-8 at byte {size - pending + error.start} "
                        f"(0x{error.object[error.start]:02x}: {error.reason}); convert the file "
                        f"to UTF-8, or use the byte vocabulary"
                    ) from None
                if text:
                    yield _Block(path, position, text)
                if not data:
                    break
                position += len(text)
                size += len(data)
                bar.update(len(data))


def _bar(total: int, description: str) -> tqdm[Any]:
    from tqdm import tqdm  # slow to import

    return tqdm(
        total=total,
        desc=description,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        delay=1,  # seconds: nothing is shown for a file that is read at once
        leave=False,
        disable=None,  # unless on a terminal
    )

"""A text of any size as an array of ids, split into a training and a validation part."""

from __future__ import annotations

import codecs
import errno
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .._checks import StrPath, array, called, instance, integer
from .._names import suggesting
from .._objects import Settled
from ..storage.file_array import FileArray, Ids
from ..storage.input_files import is_stream
from . import files as text_files
from .files import UTF8, Block, check_encoding, find_files, read_bytes, read_text
from .vocabulary import UNICODE_SIZE, Vocabulary, code_points

_Text = TypeVar("_Text", bound=str | bytes)


class Corpus(Settled):
    """The ids of a text: the first 90 % to train on, the last 10 % to validate with.

    ids [N] are of the smallest unsigned integer type that holds the vocabulary. `train` and
    `validation` are read-only parts of them. Those of `from_text` are arrays; those of `from_files`
    stay in a file: they have a length and a dtype, and a slice of them is an array in memory.

    A deep copy has arrays of its own; of ids in a file both read the same one, which nobody writes
    to. A pickle holds the ids, of a temporary file too. Of a file that is read where it is (see
    `from_files`) it holds the path, and loading it raises OSError where that file has changed.
    """

    vocabulary: Vocabulary
    train: Ids
    validation: Ids

    _advice = {"": "a corpus is one text; make another one"}  # noqa: RUF012
    _covered = frozenset(("_ids", "_documents", "_fingerprint"))

    def __init__(
        self,
        ids: NDArray[Any] | FileArray,
        vocabulary: Vocabulary,
        *,
        document_mark: str | None = None,
        file_starts: Sequence[int] = (),
    ) -> None:
        """ids [N], N >= 1, integers below ``len(vocabulary)``; use `from_text` or `from_files`.

        file_starts: the positions at which files begin; with a document_mark, documents as well.
        """
        instance("vocabulary", vocabulary, Vocabulary, "a Vocabulary")
        if not isinstance(ids, FileArray):
            ids = _checked_ids(ids, vocabulary)
        split = len(ids) * 9 // 10
        if isinstance(ids, FileArray):
            self.train, self.validation = ids.part(0, split), ids.part(split, len(ids))
        else:
            ids = ids.view()
            ids.flags.writeable = False
            self.train, self.validation = ids[:split], ids[split:]
        self.vocabulary = vocabulary
        self._ids: NDArray[Any] | FileArray = ids
        self._documents = None
        if document_mark is not None:
            self._documents = _Documents(ids, vocabulary, document_mark, file_starts)

    @classmethod
    @suggesting
    def from_text(
        cls,
        text: str,
        vocabulary: Vocabulary | None = None,
        *,
        min_count: int = 1,
        document_mark: str | None = None,
    ) -> Corpus:
        """The corpus of a text in memory; vocabulary None: the text's own characters.

        min_count, document_mark: as in `from_files`.
        """
        _check_options(vocabulary, UTF8, min_count, document_mark)
        if vocabulary is None:
            vocabulary = Vocabulary._from_text(text, min_count, document_mark or "")
        ids = vocabulary.encode(text)
        if not ids.size:
            raise ValueError("text is empty; a corpus needs at least one character")
        return cls(ids.astype(_id_dtype(vocabulary)), vocabulary, document_mark=document_mark)

    @classmethod
    @suggesting
    def from_files(
        cls,
        *paths: StrPath,
        vocabulary: Vocabulary | None = None,
        encoding: str = UTF8,
        min_count: int = 1,
        document_mark: str | None = None,
    ) -> Corpus:
        """The corpus of files, one after the other; it may exceed the memory.

        paths: files, folders (all regular files below them but hidden ones, sorted) and patterns
        such as ``"notes/**/*.txt"``, pipes, and "-" for the standard input. Each is read once,
        strictly decoded from an encoding that Python knows; a byte order mark at its start is left
        out, and line ends stay as they are.

        vocabulary None: the characters of the files. Those that occur fewer than min_count times
        are mapped to the vocabulary's unknown symbol, and so is what other texts will hold.

        document_mark: the text that ends a document; it stays a part of the text. A document
        begins behind each mark and at each file's start. The mark's characters are in the
        vocabulary however rare they are. "": files alone are documents.

        Ids are kept in a temporary file (in the folder that TMPDIR names, one to four bytes for a
        character) that vanishes with the corpus. With `Vocabulary.from_bytes()` nothing is decoded,
        and a single file is not copied but read where it is: it must stay as it is while the corpus
        is in use, and whatever reads from it raises OSError once it has changed.

        Raises ValueError with file and byte offset where a file is not in the encoding, with file
        and position at a character that a given vocabulary lacks, and where document_mark does not
        occur in the text.
        """
        if not paths:
            raise TypeError("from_files takes at least one path, got none")
        _check_options(vocabulary, encoding, min_count, document_mark)
        files = find_files(paths)
        text_files.check(files)
        in_place = len(files) == 1 and not is_stream(files[0])
        if vocabulary is not None and vocabulary.kind == "bytes" and in_place:
            with open(files[0], "rb") as file:
                ids = FileArray(file.fileno(), np.uint8, files[0])
            return cls(ids, vocabulary, document_mark=document_mark)
        starts: list[int] = []
        with _naming_folder(), tempfile.TemporaryFile(prefix="charrnn_fast-") as spool:
            if vocabulary is None:
                texts = _noting_starts(read_text(files, encoding), starts)
                vocabulary = _write_and_find(texts, spool, min_count, document_mark or "", files)
            elif vocabulary.kind == "bytes":
                _write(_noting_starts(read_bytes(files), starts), spool, vocabulary)
            else:
                _write(_noting_starts(read_text(files, encoding), starts), spool, vocabulary)
            spool.flush()
            ids = FileArray(spool.fileno(), _id_dtype(vocabulary))
        if not len(ids):
            raise ValueError(f"the text is empty: {text_files.names(files)}")
        return cls(ids, vocabulary, document_mark=document_mark, file_starts=starts)

    def __len__(self) -> int:
        """N, the number of characters (or bytes) of the whole text."""
        return len(self._ids)

    def __repr__(self) -> str:
        return (
            f"<Corpus of {len(self):,} {self.vocabulary.kind}, {len(self.vocabulary)} distinct: "
            f"{len(self.train):,} to train, {len(self.validation):,} to validate>"
        )

    def _pickled(self) -> dict[str, Any]:
        starts = () if self._documents is None else self._documents.file_starts
        return {
            "ids": self._ids,
            "vocabulary": self.vocabulary,
            "document_mark": self._document_mark,
            "file_starts": starts,
        }

    def _unpickle(self, saved: dict[str, Any]) -> None:
        Corpus.__init__(
            self,
            saved["ids"],
            saved["vocabulary"],
            document_mark=saved["document_mark"],
            file_starts=saved["file_starts"],
        )

    def _starts_within(self, first: int, last: int) -> NDArray[np.int64]:
        """The positions in first to last - 1 at which a document begins, ascending, without 0.

        Positions are those of the whole text, of which `train` is the beginning. They are found in
        the ids at each call, so that many documents take no memory. Empty without a document_mark.
        """
        if self._documents is None:
            return np.empty(0, np.int64)
        return self._documents.starts_within(first, last)

    @property
    def _has_documents(self) -> bool:
        return self._documents is not None

    @property
    def _document_mark(self) -> str | None:
        return None if self._documents is None else self._documents.mark

    @property
    def _file_starts_digest(self) -> str | None:
        """Of the places where files begin, where they matter."""
        if self._documents is None:
            return None
        return hashlib.sha256(self._documents.file_starts.tobytes()).hexdigest()

    def _validation_starts(self, first: int, last: int) -> NDArray[np.int64]:
        """As `_starts_within`, of positions in the validation part."""
        split = len(self.train)
        return self._starts_within(split + first, split + last) - split

    def _num_unknown(self) -> int:
        """How many characters of the text are mapped to the vocabulary's unknown symbol."""
        unknown = self.vocabulary._unknown_id
        blocks = (self._ids[first:last] for first, last in _blocks(0, len(self)))
        return sum(int(np.count_nonzero(block == unknown)) for block in blocks)

    @cached_property
    def _fingerprint(self) -> str:
        """Tells corpora apart without reading all of a large one: up to 1024 spread blocks."""
        digest = hashlib.sha256(f"{len(self)} {self._ids.dtype}".encode())
        block = 1 << 16
        for start in range(0, len(self), max(block, len(self) // 1024)):
            digest.update(self._ids[start : start + block].data)
        return digest.hexdigest()


class _Documents:
    """Where the documents of a text begin: behind every mark, and where a file does."""

    def __init__(
        self, ids: Ids, vocabulary: Vocabulary, mark: str, file_starts: Sequence[int]
    ) -> None:
        """mark "" is nowhere. Raises ValueError where the text does not hold the mark."""
        self._ids = ids
        self.mark = mark
        encoded = vocabulary._encode(mark, called("document_mark"), 0)
        if (encoded == vocabulary._unknown_id).any():
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
        first, last = max(first, 1), min(last, len(self._ids))
        found = [self._behind_marks(*ends) for ends in _blocks(first, last)]
        begin, end = np.searchsorted(self.file_starts, (first, last))
        if len(found) == 1 and begin == end:  # a short stretch, as training asks for
            return found[0]
        return np.unique(np.concatenate([self.file_starts[begin:end], *found]))

    def _is_marked(self) -> bool:
        """Whether there is a mark at all; what comes after the first one is not read."""
        size = self._mark_ids.itemsize
        with text_files.progress(len(self._ids) * size, "looking for documents") as bar:
            for first, last in _blocks(1, len(self._ids) + 1):
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


@contextmanager
def _naming_folder() -> Iterator[None]:
    """An error of a full disk gets the name of the folder of temporary files."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        folder = tempfile.gettempdir()
        raise OSError(
            error.errno,
            f"no room for the ids of the text ({error.strerror}); TMPDIR names another folder",
            folder,
        ) from None


def _blocks(first: int, last: int) -> Iterator[tuple[int, int]]:
    """first to last in pieces that fit into memory."""
    for start in range(first, last, text_files.BLOCK):
        yield start, min(start + text_files.BLOCK, last)


def _check_options(
    vocabulary: Vocabulary | None, encoding: str, min_count: int, document_mark: str | None
) -> None:
    instance("vocabulary", vocabulary, (Vocabulary, type(None)), "a Vocabulary or None")
    check_encoding(encoding)
    integer("min_count", min_count, 1)
    instance("document_mark", document_mark, (str, type(None)), "a str or None")
    if vocabulary is None:
        return
    if min_count != 1:
        raise ValueError(
            f"{called('min_count')} is {min_count}, which is for making a vocabulary from the "
            f"text, but one is given: {vocabulary._described()}"
        )
    if vocabulary.kind == "bytes" and codecs.lookup(encoding).name != UTF8:
        raise ValueError(
            f"{called('encoding')} is {encoding!r}, but with the byte vocabulary nothing is "
            f"decoded; leave out one of them"
        )


class _Chunks:
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
            found = corpus._starts_within(first, min(first + steps, size)) - first
            if first == 0:
                found = np.concatenate([[0], found])
            if left < steps:
                behind = corpus._starts_within(0, steps - left) + left
                found = np.concatenate([found, [left], behind])
            starts.append(found)
        return starts


def _checked_ids(ids: object, vocabulary: Vocabulary) -> NDArray[Any]:
    given = array("ids", ids)
    if given.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, got dtype {given.dtype}")
    if given.ndim != 1 or not given.size:
        raise ValueError(f"ids must have the shape [N], N >= 1, got {list(given.shape)}")
    if given.min() < 0 or given.max() >= len(vocabulary):
        raise ValueError(
            f"ids must lie in 0 to {len(vocabulary) - 1}, got {given.min()} to {given.max()}"
        )
    return given


def _id_dtype(vocabulary: Vocabulary) -> np.dtype[Any]:
    return np.min_scalar_type(len(vocabulary) - 1)


def _noting_starts(blocks: Iterable[Block[_Text]], starts: list[int]) -> Iterator[Block[_Text]]:
    """The blocks; starts gets the positions in the whole text at which their files begin."""
    total = 0
    for block in blocks:
        if block.position == 0:
            starts.append(total)
        total += len(block.text)
        yield block


def _write(blocks: Iterable[Block[str | bytes]], spool: IO[bytes], vocabulary: Vocabulary) -> None:
    """Writes the ids of blocks."""
    for block in blocks:
        ids = vocabulary._encode(block.text, block.path, block.position)
        spool.write(ids.astype(_id_dtype(vocabulary)).data)


def _write_and_find(
    blocks: Iterable[Block[str]],
    spool: IO[bytes],
    min_count: int,
    kept: str,
    files: Sequence[str],
) -> Vocabulary:
    """Writes the ids of blocks, and finds their vocabulary, in one pass.

    Ids are given as characters turn up, and put into the vocabulary's order at the end.
    """
    found = np.empty(0, np.int64)  # [D] code points; an index is an id
    table = np.zeros(UNICODE_SIZE, np.int32)  # the other way round
    counts = np.zeros(UNICODE_SIZE, np.int64)
    dtype = np.dtype(np.uint8)
    for block in blocks:
        points = code_points(block.text)
        here = np.bincount(points)
        before = counts[: here.size]
        new = np.flatnonzero((here > 0) & (before == 0))
        before += here
        table[new] = np.arange(len(found), len(found) + len(new))
        found = np.concatenate([found, new])
        needed = np.min_scalar_type(max(len(found) - 1, 0))
        if needed != dtype:
            _translate(spool, dtype, np.arange(len(found), dtype=needed))
            dtype = needed
        spool.write(table[points].astype(dtype).data)
    if not found.size:
        raise ValueError(f"the text is empty: {text_files.names(files)}")
    vocabulary = Vocabulary._from_counts(counts, min_count, kept)
    ids = vocabulary._ids.take(found, mode="clip")
    _translate(spool, dtype, ids.astype(_id_dtype(vocabulary)))
    return vocabulary


def _translate(spool: IO[bytes], dtype: np.dtype[Any], table: NDArray[Any]) -> None:
    """Replaces each id by its entry in table, whose type may be another one, in place."""
    count = spool.tell() // dtype.itemsize
    starts = range(0, count, text_files.BLOCK)
    # Wider ids are written from the end: so only ids that have been read are written over.
    for start in reversed(starts) if table.itemsize > dtype.itemsize else starts:
        spool.seek(start * dtype.itemsize)
        ids = np.frombuffer(spool.read(text_files.BLOCK * dtype.itemsize), dtype)
        spool.seek(start * table.itemsize)
        spool.write(table[ids].data)
    spool.seek(count * table.itemsize)
    spool.truncate()

"""A text of any size as an array of ids, split into a training and a validation part."""

from __future__ import annotations

import codecs
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._checks import StrPath, array, called, instance, integer
from .._names import suggesting
from .._objects import Settled
from ..storage.file_array import FileArray, Ids
from ..storage.input_files import is_stream
from . import files as text_files
from .documents import Documents
from .files import UTF8, Block, check_encoding, find_files, in_blocks, read_bytes, read_text
from .spool import id_dtype, naming_folder, noting_starts, write_and_find, write_ids
from .vocabulary import Vocabulary


class Corpus(Settled):
    """The ids of a text: the first 90 % for training, the last 10 % for validation.

    ids [N] have the smallest unsigned integer type that holds the vocabulary. `train` and
    `validation` are read-only parts of them. `from_text` keeps ids in arrays. `from_files` keeps
    them in a file: they have a length and a dtype, and slicing them gives an array in memory.

    A deep copy has its own arrays, but shares a file of ids, which is never written to. A pickle
    holds the ids, also those of a temporary file. For a file that is read in place (see
    `from_files`) it holds the path: loading raises OSError if that file has changed.
    """

    vocabulary: Vocabulary
    ids: NDArray[Any] | FileArray
    """[N], the whole text."""
    train: Ids
    validation: Ids

    _advice = {"": "a corpus is one text; make another one"}  # noqa: RUF012
    _covered = frozenset(("_documents", "_fingerprint"))

    def __init__(
        self,
        ids: NDArray[Any] | FileArray,
        vocabulary: Vocabulary,
        *,
        document_mark: str | None = None,
        file_starts: Sequence[int] = (),
    ) -> None:
        """ids [N], N >= 1, integers below ``len(vocabulary)``; use `from_text` or `from_files`.

        file_starts: the positions where files begin; with a document_mark, documents begin there
        too.
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
        self.ids = ids
        self._documents = None
        if document_mark is not None:
            self._documents = Documents(ids, vocabulary, document_mark, file_starts)

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
            vocabulary = Vocabulary.from_text_keeping(text, min_count, document_mark or "")
        ids = vocabulary.encode(text)
        if not ids.size:
            raise ValueError("text must have 1 character or more, got none")
        return cls(ids.astype(id_dtype(vocabulary)), vocabulary, document_mark=document_mark)

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
        """The corpus of files, concatenated; it may exceed the memory.

        paths: files, folders (all regular files below them except hidden ones, sorted), patterns
        such as ``"notes/**/*.txt"``, pipes, and "-" for standard input. Each is read once and
        decoded strictly from encoding, any that Python knows. A byte order mark at a file's start
        is dropped; line ends are kept.

        vocabulary None: the characters of the files. Those that occur fewer than min_count times
        map to the unknown symbol, and so will unknown characters of other texts.

        document_mark: the text that ends a document; it stays part of the text. A document begins
        after each mark and at each file's start. The vocabulary includes the mark's characters
        however rare they are. "": only files are documents.

        Ids are kept in a temporary file (in TMPDIR, one to four bytes per character) that is
        deleted with the corpus. With `Vocabulary.from_bytes()` nothing is decoded, and a single
        file is read in place. It must not change while the corpus is in use: reading a changed file
        raises OSError.

        Raises ValueError with file and byte offset if a file is not in the encoding, with file and
        position for a character that a given vocabulary lacks, and if document_mark does not occur
        in the text.
        """
        if not paths:
            raise TypeError("from_files must have at least one path, got none")
        _check_options(vocabulary, encoding, min_count, document_mark)
        files = find_files(paths)
        text_files.check(files)
        in_place = len(files) == 1 and not is_stream(files[0])
        if vocabulary is not None and vocabulary.kind == "bytes" and in_place:
            with open(files[0], "rb") as file:
                ids = FileArray(file.fileno(), np.uint8, files[0])
            return cls(ids, vocabulary, document_mark=document_mark)
        starts: list[int] = []
        with naming_folder(), tempfile.TemporaryFile(prefix="charrnn_fast-") as spool:
            if vocabulary is None:
                texts = noting_starts(read_text(files, encoding), starts)
                vocabulary = write_and_find(texts, spool, min_count, document_mark or "", files)
            else:
                blocks = _blocks(files, vocabulary, encoding)
                write_ids(noting_starts(blocks, starts), spool, vocabulary)
            spool.flush()
            ids = FileArray(spool.fileno(), id_dtype(vocabulary))
        if not len(ids):
            raise ValueError(f"the text is empty: {text_files.names(files)}")
        return cls(ids, vocabulary, document_mark=document_mark, file_starts=starts)

    @classmethod
    def of_each_file(
        cls, paths: Sequence[str], vocabulary: Vocabulary, encoding: str = UTF8
    ) -> list[Corpus]:
        """One corpus per file, as `from_files` makes it; each file is read once.

        paths: files, pipes, and "-" for standard input. The ids of several share one temporary
        file, so that many files need one descriptor. Raises ValueError as `from_files` does.
        """
        if len(paths) == 1:
            return [cls.from_files(paths[0], vocabulary=vocabulary, encoding=encoding)]
        _check_options(vocabulary, encoding, 1, None)
        text_files.check(paths)
        dtype, ends = id_dtype(vocabulary), [0]
        with naming_folder(), tempfile.TemporaryFile(prefix="charrnn_fast-") as spool:
            for path in paths:
                write_ids(_blocks([path], vocabulary, encoding), spool, vocabulary)
                ends.append(spool.tell() // dtype.itemsize)
                if ends[-1] == ends[-2]:
                    raise ValueError(f"the text is empty: {text_files.names([path])}")
            spool.flush()
            ids = FileArray(spool.fileno(), dtype)
        return [cls(ids.part(first, last), vocabulary) for first, last in pairwise(ends)]

    def __len__(self) -> int:
        """N, the number of characters (or bytes) of the whole text."""
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"<Corpus of {len(self):,} {self.vocabulary.kind}, {len(self.vocabulary)} distinct: "
            f"{len(self.train):,} to train, {len(self.validation):,} to validate>"
        )

    def _pickled(self) -> dict[str, Any]:
        starts = () if self._documents is None else self._documents.file_starts
        return {
            "ids": self.ids,
            "vocabulary": self.vocabulary,
            "document_mark": self.document_mark,
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

    def starts_within(self, first: int, last: int) -> NDArray[np.int64]:
        """The positions from first to last - 1 where a document begins, ascending, without 0.

        Positions count from the start of the whole text, which is also that of `train`. They are
        searched for at each call, so that many documents take no memory. Empty without a
        document_mark.
        """
        if self._documents is None:
            return np.empty(0, np.int64)
        return self._documents.starts_within(first, last)

    @property
    def has_documents(self) -> bool:
        """Whether the text is read as documents."""
        return self._documents is not None

    @property
    def documents(self) -> Documents | None:
        """Where documents begin, for this package's modules; None: one continuous text."""
        return self._documents

    @property
    def document_mark(self) -> str | None:
        """The text that ends a document; None: one continuous text."""
        return None if self._documents is None else self._documents.mark

    @property
    def fingerprint(self) -> str:
        """A digest that identifies the corpus."""
        return self._fingerprint

    def identity(self) -> dict[str, Any]:
        """What a checkpoint stores to check that training resumes on the same text."""
        starts = None  # where they matter
        if self._documents is not None:
            starts = hashlib.sha256(self._documents.file_starts.tobytes()).hexdigest()
        return {
            "length": len(self),
            "fingerprint": self.fingerprint,
            "document_mark": self.document_mark,
            "file_starts": starts,
        }

    def validation_starts(self, first: int, last: int) -> NDArray[np.int64]:
        """As `starts_within`, for positions in the validation part."""
        split = len(self.train)
        return self.starts_within(split + first, split + last) - split

    def num_unknown(self) -> int:
        """How many characters of the text map to the vocabulary's unknown symbol."""
        unknown = self.vocabulary.unknown_id
        if unknown < 0:
            return 0
        blocks = (self.ids[first:last] for first, last in in_blocks(0, len(self)))
        return sum(int(np.count_nonzero(block == unknown)) for block in blocks)

    @cached_property
    def _fingerprint(self) -> str:
        """Identifies a corpus without reading all of a large one: up to 1024 spread blocks."""
        digest = hashlib.sha256(f"{len(self)} {self.ids.dtype}".encode())
        block = 1 << 16
        for start in range(0, len(self), max(block, len(self) // 1024)):
            digest.update(self.ids[start : start + block].data)
        return digest.hexdigest()


def _blocks(
    files: Sequence[str], vocabulary: Vocabulary, encoding: str
) -> Iterator[Block[str]] | Iterator[Block[bytes]]:
    """The files as the vocabulary takes them."""
    return read_bytes(files) if vocabulary.kind == "bytes" else read_text(files, encoding)


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
            f"{called('min_count')} must be 1 with a given vocabulary, {vocabulary.describe()}, "
            f"got {min_count}: it makes a vocabulary from the text"
        )
    if vocabulary.kind == "bytes" and codecs.lookup(encoding).name != UTF8:
        raise ValueError(
            f"{called('encoding')} must be {UTF8!r} with the byte vocabulary, which decodes "
            f"nothing, got {encoding!r}"
        )


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

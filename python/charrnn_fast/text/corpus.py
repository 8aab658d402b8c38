"""A text of any size as an array of ids, divided for training, validation and test."""

from __future__ import annotations

import codecs
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from .._checks import StrPath, array, called, instance, integer, real
from .._names import suggesting
from .._objects import Settled
from ..storage.file_array import FileArray, Ids
from ..storage.input_files import is_stream
from . import files as text_files
from .documents import Documents
from .files import UTF8, Block, check_encoding, find_files, in_blocks, read_bytes, read_text
from .spool import id_dtype, naming_folder, noting_starts, write_and_find, write_ids
from .vocabulary import Vocabulary

Paths = StrPath | Sequence[StrPath]

USUAL_SPLIT = (0.9, 0.1)
"""The shares for training and validation, if nothing else is asked for."""
OWN_PARTS = ("validation", "test")
"""The parts that may be texts of their own."""

_DIGEST_BLOCK = 1 << 16  # ids
_DIGEST_BLOCKS = 1024
_NEAR = 1e-6  # by which the sum of shares may miss 1, as three thirds do


class OwnText(NamedTuple):
    """The ids of a text, such as one of its own for validation or test."""

    ids: NDArray[Any] | FileArray
    """[N], of the corpus's vocabulary."""
    file_starts: Sequence[int] = ()
    left_out: int = 0
    """How many unknown characters it had."""


class Corpus(Settled):
    """The ids of a text: the first 90 % for training, the last 10 % for validation.

    split, validation and test of the constructors divide it otherwise. The test part is only read
    by `Trainer.test_loss` and ``charrnn-fast eval --test``, and to tell corpora apart.

    ids [N] have the smallest unsigned integer type that holds the vocabulary. `train`,
    `validation` and `test` are read-only parts of them, or ids of texts of their own. `from_text`
    keeps ids in arrays. `from_files` keeps them in a file: they have a length and a dtype, and
    slicing them gives an array in memory.

    A deep copy has its own arrays, but shares a file of ids, which is never written to. A pickle
    holds the ids, also those of a temporary file. For a file that is read in place (see
    `from_files`) it holds the path: loading raises OSError if that file has changed.
    """

    vocabulary: Vocabulary
    ids: NDArray[Any] | FileArray
    """[N], the whole text, without texts of their own for validation and test."""
    train: Ids
    validation: Ids
    test: Ids | None
    """None: there is no test part."""
    split: tuple[float, ...]
    """The shares of `ids`: for training, then for validation and test as far as these have no texts
    of their own."""

    _advice = {"": "a corpus is one text; make another one"}  # noqa: RUF012
    _covered = frozenset(
        (
            "_documents",
            "_left_out",
            "_own",
            "_own_documents",
            "_fingerprint",
            "_identities",
            "_test_part",
        )
    )

    def __init__(
        self,
        ids: NDArray[Any] | FileArray,
        vocabulary: Vocabulary,
        *,
        document_mark: str | None = None,
        file_starts: Sequence[int] = (),
        split: Sequence[float] | None = None,
        validation: OwnText | NDArray[Any] | FileArray | None = None,
        test: OwnText | NDArray[Any] | FileArray | None = None,
        left_out: int = 0,
    ) -> None:
        """ids [N], N >= 1, integers below ``len(vocabulary)``; use `from_text` or `from_files`.

        file_starts: the positions where files begin; with a document_mark, documents begin there
        too. split, validation, test: as in `from_text`, of ids. left_out: how many unknown
        characters the text had.
        """
        instance("vocabulary", vocabulary, Vocabulary, "a Vocabulary")
        self.vocabulary = vocabulary
        self.ids = _read_only("ids", ids, vocabulary)
        self._left_out = integer("left_out", left_out, 0, 2**63 - 1)
        self._own = {
            name: _own_text(name, text, vocabulary)
            for name, text in zip(OWN_PARTS, (validation, test), strict=True)
            if text is not None
        }
        self.split = checked_split(split, self._own)
        parts = [_part(self.ids, *ends) for ends in pairwise(_ends(len(ids), self.split))]
        self.train, *rest = parts
        self.validation = rest.pop(0) if validation is None else self._own["validation"].ids
        self.test = self._own["test"].ids if test is not None else rest.pop() if rest else None
        self._documents = None
        self._own_documents: dict[str, Documents] = {}
        if document_mark is not None:
            self._documents = Documents(ids, vocabulary, document_mark, file_starts)
            for name, own in self._own.items():  # each may be a single document
                self._own_documents[name] = Documents(
                    own.ids, vocabulary, document_mark, own.file_starts, must_occur=False
                )

    @classmethod
    @suggesting
    def from_text(
        cls,
        text: str,
        vocabulary: Vocabulary | None = None,
        *,
        min_count: int = 1,
        document_mark: str | None = None,
        split: Sequence[float] | None = None,
        validation: str | None = None,
        test: str | None = None,
        allow_unknown: bool = False,
        extend_vocabulary: bool = False,
    ) -> Corpus:
        """The corpus of a text in memory; vocabulary None: the text's own characters.

        min_count, document_mark, allow_unknown, extend_vocabulary: as in `from_files`.

        split: the shares of the text for training, validation and test, in this order, which add up
        to 1, as (0.8, 0.1, 0.1); two of them: no test part; None: (0.9, 0.1). validation, test:
        texts of their own for these parts. With validation all of the text is for training, and no
        split is taken; with test alone split has two shares. The vocabulary is that of the whole
        text, and sees no text of its own: a character that only such a text has is unknown.
        """
        _check_options(vocabulary, UTF8, min_count, document_mark, extend_vocabulary)
        own = {"validation": validation, "test": test}
        checked_split(split, [name for name, other in own.items() if other is not None])
        for name, other in own.items():
            instance(name, other, (str, type(None)), "a str or None")
        if vocabulary is None:
            vocabulary = Vocabulary.from_text_keeping(text, min_count, document_mark or "")
        elif extend_vocabulary:
            vocabulary = vocabulary.extended(text)
        whole, *parts = (
            None if part is None else _encoded(name, part, vocabulary, allow_unknown)
            for name, part in (("text", text), *own.items())
        )
        assert whole is not None
        return cls(
            whole.ids,
            vocabulary,
            document_mark=document_mark,
            split=split,
            validation=parts[0],
            test=parts[1],
            left_out=whole.left_out,
        )

    @classmethod
    @suggesting
    def from_files(
        cls,
        *paths: StrPath,
        vocabulary: Vocabulary | None = None,
        encoding: str = UTF8,
        min_count: int = 1,
        document_mark: str | None = None,
        split: Sequence[float] | None = None,
        validation: Paths | None = None,
        test: Paths | None = None,
        allow_unknown: bool = False,
        extend_vocabulary: bool = False,
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

        split, validation, test: as in `from_text`, where validation and test are one path or
        several, as paths are. Folders and patterns of paths leave these files out.

        allow_unknown: characters that the vocabulary lacks, and that no unknown symbol stands for,
        are left out, as if they were not there; `num_unknown` counts them. extend_vocabulary: the
        text's characters are added to the given vocabulary, see `Vocabulary.extended`.

        Ids are kept in a temporary file (in TMPDIR, one to four bytes per character) that is
        deleted with the corpus. With `Vocabulary.from_bytes()` nothing is decoded, and a single
        file is read in place. It must not change while the corpus is in use: reading a changed file
        raises OSError.

        Raises ValueError with file and byte offset if a file is not in the encoding, with file and
        position for a character that the vocabulary lacks, if document_mark does not occur in the
        text, and if a file is named for two parts.
        """
        if not paths:
            raise TypeError("from_files must have at least one path, got none")
        _check_options(vocabulary, encoding, min_count, document_mark, extend_vocabulary)
        named = {"validation": validation, "test": test}
        checked_split(split, [name for name, part in named.items() if part is not None])
        files, others = find_parts(paths, named)
        if vocabulary is None or extend_vocabulary:
            text, vocabulary = _read_and_find(files, encoding, min_count, document_mark, vocabulary)
        else:
            text = _read(files, vocabulary, encoding, allow_unknown)
        known = vocabulary
        own = {name: _read(part, known, encoding, allow_unknown) for name, part in others.items()}
        return cls(
            text.ids,
            vocabulary,
            document_mark=document_mark,
            file_starts=text.file_starts,
            split=split,
            validation=own.get("validation"),
            test=own.get("test"),
            left_out=text.left_out,
        )

    @classmethod
    def of_each_file(
        cls,
        paths: Sequence[str],
        vocabulary: Vocabulary,
        encoding: str = UTF8,
        *,
        allow_unknown: bool = False,
    ) -> list[Corpus]:
        """One corpus per file, as `from_files` makes it; each file is read once.

        paths: files, pipes, and "-" for standard input. The ids of several share one temporary
        file, so that many files need one descriptor. Raises ValueError as `from_files` does.
        """
        if len(paths) == 1:
            return [
                cls.from_files(
                    paths[0],
                    vocabulary=vocabulary,
                    encoding=encoding,
                    allow_unknown=allow_unknown,
                )
            ]
        _check_options(vocabulary, encoding, 1, None)
        text_files.check(paths)
        dtype, ends, left_out = id_dtype(vocabulary), [0], list[int]()
        with naming_folder(), tempfile.TemporaryFile(prefix="charrnn_fast-") as spool:
            for path in paths:
                blocks = _blocks([path], vocabulary, encoding)
                left_out.append(write_ids(blocks, spool, vocabulary, allow_unknown=allow_unknown))
                ends.append(spool.tell() // dtype.itemsize)
                if ends[-1] == ends[-2]:
                    _refuse_empty([path], left_out[-1])
            spool.flush()
            ids = FileArray(spool.fileno(), dtype)
        return [
            cls(ids.part(*pair), vocabulary, left_out=unknown)
            for pair, unknown in zip(pairwise(ends), left_out, strict=True)
        ]

    def __len__(self) -> int:
        """N, the number of characters (or bytes) of the whole text."""
        return len(self.ids)

    def __repr__(self) -> str:
        test = "" if self.test is None else f", {len(self.test):,} to test"
        return (
            f"<Corpus of {len(self):,} {self.vocabulary.kind}, {len(self.vocabulary)} distinct: "
            f"{len(self.train):,} to train, {len(self.validation):,} to validate{test}>"
        )

    def _pickled(self) -> dict[str, Any]:
        starts = () if self._documents is None else self._documents.file_starts
        own = {name: tuple(text) for name, text in self._own.items()}
        return {
            "ids": self.ids,
            "vocabulary": self.vocabulary,
            "document_mark": self.document_mark,
            "file_starts": starts,
            **({} if self._has_usual_split else {"split": self.split}),
            **({"left_out": self._left_out} if self._left_out else {}),
            **own,
        }

    def _unpickle(self, saved: dict[str, Any]) -> None:
        Corpus.__init__(
            self,
            saved["ids"],
            saved["vocabulary"],
            document_mark=saved["document_mark"],
            file_starts=saved["file_starts"],
            split=saved.get("split"),
            left_out=saved.get("left_out", 0),
            **{name: OwnText(*saved[name]) for name in OWN_PARTS if name in saved},
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
        """A digest that identifies `ids`."""
        return self._fingerprint

    def identity(self) -> dict[str, Any]:
        """What a checkpoint stores to check that training resumes on the same text, divided in the
        same way.
        """
        return {
            "length": len(self),
            "fingerprint": self.fingerprint,
            "document_mark": self.document_mark,
            "file_starts": _digest_of_starts(self._documents),
            **({} if self._has_usual_split else {"split": list(self.split)}),
            **({"test_part": self._test_part} if self._test_part else {}),
            **self._identities,
        }

    @property
    def _has_usual_split(self) -> bool:
        return self.split == checked_split(None, self._own)

    def own_identity(self, name: str) -> dict[str, Any] | None:
        """The part of `identity` about the text that is "validation" or "test"; None: there is no
        such text of its own.
        """
        return self._identities.get(name)

    def validation_starts(self, first: int, last: int) -> NDArray[np.int64]:
        """As `starts_within`, for positions in the validation part."""
        return self._part_starts("validation", len(self.train), first, last)

    def test_starts(self, first: int, last: int) -> NDArray[np.int64]:
        """As `starts_within`, for positions in the test part."""
        begin = len(self.train) + len(self.validation)  # unless it is a text of its own
        return self._part_starts("test", begin, first, last)

    def _part_starts(self, name: str, begin: int, first: int, last: int) -> NDArray[np.int64]:
        """begin: of the part, if it is one of the text."""
        if name not in self._own:
            return self.starts_within(begin + first, begin + last) - begin
        if self._documents is None:
            return np.empty(0, np.int64)
        return self._own_documents[name].starts_within(first, last)

    def num_unknown(self) -> int:
        """How many characters of the text the vocabulary lacks: they map to its unknown symbol or
        are left out. Texts of their own for validation and test count too.
        """
        texts = [self.ids, *(text.ids for text in self._own.values())]
        mapped = sum(count_of(ids, self.vocabulary.unknown_id) for ids in texts)
        return mapped + self.num_left_out

    @property
    def num_left_out(self) -> int:
        """How many unknown characters are left out, with allow_unknown."""
        return self._left_out + sum(text.left_out for text in self._own.values())

    @cached_property
    def _fingerprint(self) -> str:
        return _digest(self.ids)

    @cached_property
    def _test_part(self) -> str | None:
        """A digest of all of the test part, if it is one of a text that `fingerprint` does not read
        whole.
        """
        if self.test is None or "test" in self._own or _is_read_whole(self.ids):
            return None
        return _digest(self.test, whole=True)

    @cached_property
    def _identities(self) -> dict[str, dict[str, Any]]:
        """Of the texts that are parts of their own."""
        return {
            name: identity_of(text, self._own_documents.get(name))
            for name, text in self._own.items()
        }


def count_of(ids: Ids, wanted: int) -> int:
    """How many of ids [N] are this one; of a negative one none."""
    if wanted < 0:
        return 0
    blocks = (ids[first:last] for first, last in in_blocks(0, len(ids)))
    return sum(int(np.count_nonzero(block == wanted)) for block in blocks)


def read_part(
    files: Sequence[str],
    vocabulary: Vocabulary,
    encoding: str,
    document_mark: str | None,
    *,
    allow_unknown: bool = False,
) -> tuple[OwnText, Documents | None]:
    """A text of its own for validation or test, and its documents, as `Corpus.from_files` makes
    them.
    """
    text = _read(files, vocabulary, encoding, allow_unknown)
    if document_mark is None:
        return text, None
    return text, Documents(text.ids, vocabulary, document_mark, text.file_starts, must_occur=False)


def identity_of(text: OwnText, documents: Documents | None) -> dict[str, Any]:
    """What `Corpus.identity` has of a text of its own."""
    whole = {} if _is_read_whole(text.ids) else {"whole": _digest(text.ids, whole=True)}
    return {
        "length": len(text.ids),
        "fingerprint": _digest(text.ids),
        **whole,
        "file_starts": _digest_of_starts(documents),
    }


def checked_split(
    split: Sequence[float] | None, own: Mapping[str, object] | Sequence[str]
) -> tuple[float, ...]:
    """The shares of a text for training and for each part that is no text of its own.

    own: the names of those that are. Raises ValueError for shares that cannot be.
    """
    if "validation" in own:
        if split is not None:
            raise ValueError(
                f"{called('split')} must be left out with {called('validation')}, got "
                f"{shown_split(split)}: all of the text is for training"
            )
        return (1.0,)
    if split is None:
        return USUAL_SPLIT
    takes = "2 shares" if "test" in own else "2 or 3 shares"
    about = "for training and validation" if "test" in own else "for training, validation and test"
    if isinstance(split, (str, bytes)) or not isinstance(split, Sequence):
        raise TypeError(f"{called('split')} must be {takes}, got {split!r}")
    if len(split) not in ((2,) if "test" in own else (2, 3)):
        raise ValueError(f"{called('split')} must be {takes}, {about}, got {shown_split(split)}")
    shares = tuple(real("split", share, above=0, below=1) for share in split)
    if abs(sum(shares) - 1) > _NEAR:
        raise ValueError(
            f"{called('split')} must add up to 1, got {shown_split(shares)}, which adds up to "
            f"{sum(shares):.6g}"
        )
    return shares


def shown_split(split: Sequence[float]) -> str:
    """Like "0.8,0.1,0.1"."""
    return ",".join(f"{share:.6g}" if isinstance(share, float) else str(share) for share in split)


def find_parts(
    paths: Sequence[StrPath], own: Mapping[str, Paths | None], without: Sequence[StrPath] = ()
) -> tuple[list[str], dict[str, list[str]]]:
    """The files of a text, and those of the parts that are texts of their own, by their names.

    Folders and patterns of paths leave the latter out. without: as in `find_files`. Raises
    ValueError as `text_files.check` does, and if a part has no file or a file is named for two.
    """
    others = {}
    for name, part in own.items():
        if part is None:
            continue
        named = [part] if isinstance(part, (str, os.PathLike)) else part
        if not named:
            raise ValueError(f"{called(name)} must name one file or more, got none")
        others[name] = find_files(named, without)
    kept = [file for part in others.values() for file in part]
    try:
        files = find_files(paths, [*without, *kept])
    except ValueError:
        _refuse_taken(paths, others, without)
        raise
    parts = {"text": files, **others}
    text_files.check([file for part in parts.values() for file in part])
    found: dict[str, str] = {}
    for name, part in parts.items():
        text_files.check(part)
        for file in {os.path.realpath(file): file for file in part if not is_stream(file)}.items():
            before = found.setdefault(file[0], name)
            if before != name:
                raise ValueError(
                    f"{file[1]} is named for {called(before)} and for {called(name)}; the parts of "
                    f"a corpus must have texts of their own"
                )
    return files, others


def _refuse_taken(
    paths: Sequence[StrPath], others: Mapping[str, Sequence[str]], without: Sequence[StrPath]
) -> None:
    """ValueError if a path has no files only because those of other parts are left out."""
    for path in paths:
        found = {os.path.realpath(file) for file in find_files([path], without)}
        takers = [name for name, part in others.items() if found & set(map(os.path.realpath, part))]
        if found <= {os.path.realpath(file) for name in takers for file in others[name]}:
            raise ValueError(
                f"all files of {os.fspath(path)} are for {' and '.join(map(called, takers))}; name "
                f"others for training"
            )


def _blocks(
    files: Sequence[str], vocabulary: Vocabulary, encoding: str
) -> Iterator[Block[str]] | Iterator[Block[bytes]]:
    """The files as the vocabulary takes them."""
    return read_bytes(files) if vocabulary.kind == "bytes" else read_text(files, encoding)


def _check_options(
    vocabulary: Vocabulary | None,
    encoding: str,
    min_count: int,
    document_mark: str | None,
    extend_vocabulary: bool = False,
) -> None:
    instance("vocabulary", vocabulary, (Vocabulary, type(None)), "a Vocabulary or None")
    check_encoding(encoding)
    integer("min_count", min_count, 1)
    instance("document_mark", document_mark, (str, type(None)), "a str or None")
    if extend_vocabulary and (vocabulary is None or vocabulary.kind == "bytes"):
        got = "none" if vocabulary is None else vocabulary.describe()
        raise ValueError(
            f"{called('extend_vocabulary')} must have a vocabulary of characters, which it "
            f"extends, got {got}"
        )
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


def _read(
    files: Sequence[str], vocabulary: Vocabulary, encoding: str, allow_unknown: bool
) -> OwnText:
    """The ids of files in a vocabulary."""
    if vocabulary.kind == "bytes" and len(files) == 1 and not is_stream(files[0]):
        with open(files[0], "rb") as file:  # stays where it is
            return OwnText(FileArray(file.fileno(), np.uint8, files[0]))
    starts: list[int] = []
    with naming_folder(), tempfile.TemporaryFile(prefix="charrnn_fast-") as spool:
        blocks = _blocks(files, vocabulary, encoding)
        left_out = write_ids(blocks, spool, vocabulary, starts, allow_unknown=allow_unknown)
        spool.flush()
        ids = FileArray(spool.fileno(), id_dtype(vocabulary))
    if not len(ids):
        _refuse_empty(files, left_out)
    return OwnText(ids, starts, left_out)


def _refuse_empty(files: Sequence[str], left_out: int) -> NoReturn:
    if not left_out:
        raise ValueError(f"the text is empty: {text_files.names(files)}")
    raise ValueError(
        f"none of the text's {left_out:,} characters is in the vocabulary: "
        f"{text_files.names(files)}"
    )


def _read_and_find(
    files: Sequence[str],
    encoding: str,
    min_count: int,
    document_mark: str | None,
    extended: Vocabulary | None,
) -> tuple[OwnText, Vocabulary]:
    """The ids of files in the vocabulary of their characters, or in one that these extend."""
    starts: list[int] = []
    with naming_folder(), tempfile.TemporaryFile(prefix="charrnn_fast-") as spool:
        texts = noting_starts(read_text(files, encoding), starts)
        vocabulary = write_and_find(texts, spool, min_count, document_mark or "", files, extended)
        spool.flush()
        return OwnText(FileArray(spool.fileno(), id_dtype(vocabulary)), starts), vocabulary


def _encoded(name: str, text: str, vocabulary: Vocabulary, allow_unknown: bool) -> OwnText:
    if allow_unknown:
        ids, left_out = vocabulary.encode_known(text, name, 0)
    else:
        ids, left_out = vocabulary.encode_part(text, name, 0), 0
    if not ids.size:
        got = f"{left_out:,} that the vocabulary lacks" if left_out else "none"
        raise ValueError(f"{name} must have 1 character or more, got {got}")
    return OwnText(ids.astype(id_dtype(vocabulary)), (), left_out)


def _own_text(
    name: str, text: OwnText | NDArray[Any] | FileArray, vocabulary: Vocabulary
) -> OwnText:
    if not isinstance(text, OwnText):
        text = OwnText(text)
    return text._replace(ids=_read_only(name, text.ids, vocabulary))


def _read_only(
    name: str, ids: NDArray[Any] | FileArray, vocabulary: Vocabulary
) -> NDArray[Any] | FileArray:
    """The checked ids."""
    if isinstance(ids, FileArray):
        return ids
    ids = _checked_ids(name, ids, vocabulary).view()
    ids.flags.writeable = False
    return ids


def _part(ids: NDArray[Any] | FileArray, first: int, last: int) -> Ids:
    return ids.part(first, last) if isinstance(ids, FileArray) else ids[first:last]


def _ends(length: int, split: Sequence[float]) -> list[int]:
    """Where the parts begin and end; shares count as the decimal numbers that they are written as,
    so that 0.9 of 10 is 9.
    """
    shares = [Fraction(repr(share)) for share in split]
    sums = [sum(shares[:n], Fraction()) for n in range(len(shares) + 1)]
    return [int(length * part / sums[-1]) for part in sums]


def _digest(ids: Ids, *, whole: bool = False) -> str:
    """Identifies ids without reading all of many, unless whole: up to 1024 spread blocks."""
    digest = hashlib.sha256(f"{len(ids)} {ids.dtype}".encode())
    step = _DIGEST_BLOCK if whole else max(_DIGEST_BLOCK, len(ids) // _DIGEST_BLOCKS)
    for start in range(0, len(ids), step):
        digest.update(ids[start : start + _DIGEST_BLOCK].data)
    return digest.hexdigest()


def _is_read_whole(ids: Ids) -> bool:
    """Whether `_digest` reads all of ids in any case."""
    return len(ids) // _DIGEST_BLOCKS <= _DIGEST_BLOCK


def _digest_of_starts(documents: Documents | None) -> str | None:
    """Of the places where files begin, if they matter."""
    if documents is None:
        return None
    return hashlib.sha256(documents.file_starts.tobytes()).hexdigest()


def _checked_ids(name: str, ids: object, vocabulary: Vocabulary) -> NDArray[Any]:
    given = array(name, ids)
    if given.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {given.dtype}")
    if given.ndim != 1 or not given.size:
        raise ValueError(f"{name} must have the shape [N], N >= 1, got {list(given.shape)}")
    if given.min() < 0 or given.max() >= len(vocabulary):
        raise ValueError(
            f"{name} must lie in 0 to {len(vocabulary) - 1}, got {given.min()} to {given.max()}"
        )
    return given

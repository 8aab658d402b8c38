"""Turns the texts of files into ids in a temporary file, in one pass and little memory."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import files as text_files
from .files import Block
from .vocabulary import UNICODE_SIZE, Vocabulary, code_points

_Text = TypeVar("_Text", bound=str | bytes)


@contextmanager
def naming_folder() -> Iterator[None]:
    """Names the folder of temporary files in the error of a full disk."""
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


def id_dtype(vocabulary: Vocabulary) -> np.dtype[Any]:
    """The smallest unsigned integer type that holds all ids."""
    return np.min_scalar_type(len(vocabulary) - 1)


def noting_starts(blocks: Iterable[Block[_Text]], starts: list[int]) -> Iterator[Block[_Text]]:
    """Passes on blocks; starts gets the positions in the whole text where their files begin."""
    total = 0
    for block in blocks:
        if block.position == 0:
            starts.append(total)
        total += len(block.text)
        yield block


def write_ids(
    blocks: Iterable[Block[str | bytes]],
    spool: IO[bytes],
    vocabulary: Vocabulary,
    starts: list[int] | None = None,
    *,
    allow_unknown: bool = False,
) -> int:
    """Writes the ids of blocks; starts gets the positions where their files begin.

    allow_unknown: characters that cannot be encoded are left out. Returns their number.
    """
    total = left_out = 0
    for block in blocks:
        if block.position == 0 and starts is not None:
            starts.append(total)
        if allow_unknown:
            ids, unknown = vocabulary.encode_known(block.text, block.path, block.position)
            left_out += unknown
        else:
            ids = vocabulary.encode_part(block.text, block.path, block.position)
        spool.write(ids.astype(id_dtype(vocabulary)).data)
        total += len(ids)
    return left_out


def write_and_find(
    blocks: Iterable[Block[str]],
    spool: IO[bytes],
    min_count: int,
    kept: str,
    files: Sequence[str],
    extended: Vocabulary | None = None,
) -> Vocabulary:
    """Writes the ids of blocks and finds their vocabulary, in one pass; extended: a vocabulary that
    it has to extend.

    Characters get ids as they appear; the ids are put into the vocabulary's order at the end.
    """
    found = np.empty(0, np.int64)  # [D] code points; an index is an id
    table = np.zeros(UNICODE_SIZE, np.int32)  # the inverse
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
    if extended is None:
        vocabulary = Vocabulary.from_counts(counts, min_count, kept)
    else:
        vocabulary = extended.extended_by(found)
    ids = vocabulary.ids_of(found)
    _translate(spool, dtype, ids.astype(id_dtype(vocabulary)))
    return vocabulary


def _translate(spool: IO[bytes], dtype: np.dtype[Any], table: NDArray[Any]) -> None:
    """Replaces each id by its entry in table, in place; the entries may have another type."""
    count = spool.tell() // dtype.itemsize
    starts = range(0, count, text_files.BLOCK)
    # Wider ids are written from the end, so that only ids already read are overwritten.
    for start in reversed(starts) if table.itemsize > dtype.itemsize else starts:
        spool.seek(start * dtype.itemsize)
        ids = np.frombuffer(spool.read(text_files.BLOCK * dtype.itemsize), dtype)
        spool.seek(start * table.itemsize)
        spool.write(table[ids].data)
    spool.seek(count * table.itemsize)
    spool.truncate()

"""Input files: which files a text is made of, and reading them in blocks, strictly decoded."""

from __future__ import annotations

import codecs
import glob
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from .._checks import StrPath, called, instance
from ..storage.input_files import is_stream, opened, shown

if TYPE_CHECKING:
    from tqdm import tqdm

BLOCK = 1 << 22  # bytes read at a time
UTF8 = "utf-8"

_BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"  # U+FEFF
# Python's codecs for host names, and the one that always fails: none of them decodes texts.
_NOT_FOR_TEXTS = ("idna", "punycode", "undefined")
_MOST_NAMES = 3  # of files in one message


_Text = TypeVar("_Text", bound=str | bytes, covariant=True)


class Block(NamedTuple, Generic[_Text]):
    """A block of a file, decoded or not, and its position in that file's text or bytes."""

    path: str
    position: int
    text: _Text


def find_files(paths: Iterable[StrPath], without: Iterable[StrPath] = ()) -> list[str]:
    """The files that paths name: files, folders, and patterns that the shell did not expand.

    A folder stands for all regular files below it. A pattern (``*``, ``?``, ``[...]``, ``**`` for
    folders of any depth) stands for the files that match and those below folders that match. Both
    skip hidden files (names that begin with a dot), are sorted by the paths' parts, and contain
    each file once. Links to files are followed; in a folder, links to folders are not. A path that
    exists is never a pattern. Paths keep their order and repetitions. without: files to exclude
    from folders and patterns.

    Raises ValueError if a folder or a pattern has no file, and OSError for an unreadable folder.
    Other paths are returned as they are, whether the file exists or not.
    """
    found: list[str] = []
    others = {os.path.realpath(path) for path in without}
    for path in [os.fspath(path) for path in paths]:
        if os.path.isdir(path):
            files = _once(_below(path), others)
            lacks = "holds no files (hidden ones are left out)"
        elif not os.path.lexists(path) and glob.escape(path) != path:
            files = _once(_matches(path), others)
            lacks = "matches no file (hidden ones are left out)"
        else:
            files, lacks = [path], ""
        if not files:
            raise ValueError(f"{path} {lacks}")
        found += files
    return found


def check(paths: Sequence[str]) -> None:
    """Raises ValueError if one is a device, if all are empty files, or if standard input ("-") or
    a pipe, which can be read only once, is named twice.
    """
    size, streams = 0, list[str]()
    for path in paths:
        if not is_stream(path):
            size += os.path.getsize(path)
        elif path in streams:
            raise ValueError(f"{shown(path)} is named twice, and can be read once only")
        else:
            streams.append(path)
    if not size and not streams:
        raise ValueError(f"the text is empty: {names(paths)}")


def in_blocks(first: int, last: int) -> Iterator[tuple[int, int]]:
    """Splits first to last into blocks that fit into memory, each given by its two ends."""
    for start in range(first, last, BLOCK):
        yield start, min(start + BLOCK, last)


def names(paths: Sequence[str]) -> str:
    """Paths for a message, only the first few of many."""
    first = ", ".join(map(shown, paths[:_MOST_NAMES]))
    return first if len(paths) <= _MOST_NAMES else f"{first} and {len(paths) - _MOST_NAMES} more"


def check_encoding(encoding: object) -> str:
    """encoding; ValueError unless Python has a text codec of this name."""
    instance("encoding", encoding, str, "the name of an encoding")
    assert isinstance(encoding, str)
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        known = codecs.lookup(encoding).name not in _NOT_FOR_TEXTS
    except (LookupError, ValueError):  # unknown, or not a text encoding; a NUL in the name
        known = False
    if not known:
        raise ValueError(
            f"{called('encoding')} must be one that Python has for texts, such as utf-8, latin-1, "
            f"utf-16 or gb18030, got {encoding!r}"
        )
    return encoding


def read_bytes(paths: Sequence[str]) -> Iterator[Block[bytes]]:
    """The contents of files in blocks, with an empty one at each file's end."""
    # The size of a pipe's content is not known before its end.
    total = None if any(map(is_stream, paths)) else sum(map(os.path.getsize, paths))
    about = shown(paths[0]) if len(paths) == 1 else f"{len(paths):,} files"
    with progress(total, f"reading {about}") as bar:
        for path in paths:
            with opened(path) as file:
                position, data = 0, b" "
                while data:
                    data = file.read(BLOCK)
                    yield Block(shown(path), position, data)
                    position += len(data)
                    bar.update(len(data))


def read_text(paths: Sequence[str], encoding: str) -> Iterator[Block[str]]:
    """The texts of files in blocks, strictly decoded.

    A byte order mark at a file's start is dropped; everything else is kept, line ends too.
    """
    make_decoder = codecs.getincrementaldecoder(encoding)
    for path, start, data in read_bytes(paths):
        if start == 0:
            decoder, position, begun = make_decoder(), 0, False
        text = _decode(decoder, data, path, encoding, start)
        if text and not begun:
            text, begun = text.removeprefix(_BYTE_ORDER_MARK), True
        yield Block(path, position, text)
        position += len(text)


def progress(total: int | None, description: str) -> tqdm[Any]:
    """A bar for total bytes (None: unknown), on a terminal and for long work only."""
    from tqdm import tqdm  # slow to import

    return tqdm(
        total=total,
        desc=description,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        delay=1,  # seconds: a file that is read quickly shows nothing
        leave=False,
        disable=None,  # unless on a terminal
    )


def _decode(
    decoder: codecs.IncrementalDecoder, data: bytes, path: str, encoding: str, start: int
) -> str:
    """The text completed by data, which begins at byte start of its file; no data: the end."""
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(data, final=not data)
    except UnicodeDecodeError as error:
        at = start - pending + error.start
        wrong = f"at byte {at} (0x{error.object[error.start]:02x}: {error.reason})"
    except UnicodeError as error:  # from a codec that does not say where
        wrong = f"({error})"
    if codecs.lookup(encoding).name == UTF8:
        encoding = "UTF-8"
    raise ValueError(
        f"{path}: invalid {encoding} {wrong}; name the encoding that the file is in "
        f"({called('encoding')}), or take a model of bytes, which reads any (train --bytes)"
    )


def _matches(pattern: str) -> Iterator[str]:
    for path in glob.glob(pattern, recursive=True):
        yield from _below(path) if os.path.isdir(path) else (path,)


def _below(folder: str) -> Iterator[str]:
    """Everything below a folder that is neither a folder nor hidden."""
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(parent, name) for name in files if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def _once(paths: Iterable[str], others: set[str]) -> list[str]:
    """The regular files among paths that are not in others, sorted, each with one path only."""
    files: dict[str, str] = {}
    for path in sorted(filter(os.path.isfile, paths), key=lambda path: path.split(os.sep)):
        files.setdefault(os.path.realpath(path), path)
    return [path for real, path in files.items() if real not in others]

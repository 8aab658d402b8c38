"""Input files other than training text: what may be one, its size, and the byte order mark.

`charrnn_fast.text.files` reads the training text, of any size.
"""

from __future__ import annotations

import codecs
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from .._checks import StrPath
from . import streams

STANDARD_INPUT = "-"

_PIECE = 1 << 16  # bytes
_BYTE_ORDER_MARK = codecs.BOM_UTF8


def open_input(path: StrPath) -> IO[bytes]:
    """Opens a file or a pipe; ValueError for a device, which may never end.

    Terminals, which a user ends, and the null device are allowed.
    """
    file = open(path, "rb")  # noqa: SIM115
    status = os.fstat(file.fileno())
    if stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode):
        null = stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev
        if not null and not file.isatty():
            file.close()
            raise ValueError(f"{os.fspath(path)} is a device, not a file")
    return file


def is_stream(path: str) -> bool:
    """Whether path can be read only once: standard input, a pipe, a terminal.

    ValueError for a device, OSError if it does not exist.
    """
    if path == STANDARD_INPUT:
        _check_standard_input()
        return True
    mode = os.stat(path).st_mode
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        open_input(path).close()
    return not stat.S_ISREG(mode)


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file, a pipe or, for "-", standard input, which stays open."""
    if path == STANDARD_INPUT:
        yield standard_input()
        return
    with open_input(path) as file:
        yield file


def standard_input() -> IO[bytes]:
    """Standard input for reading; tells a user at a terminal. ValueError if it is closed."""
    _check_standard_input()
    if sys.stdin.isatty():
        hint = "reading what is typed; Ctrl-D at the beginning of a line ends it"
        print(hint, file=streams.output(sys.stderr, optional=True))
    return sys.stdin.buffer


def _check_standard_input() -> None:
    if sys.stdin is None:  # which a shell does by <&-
        raise ValueError("the standard input is closed")


def shown(path: str) -> str:
    """A path in a message, or what "-" stands for."""
    return "standard input" if path == STANDARD_INPUT else path


def read_whole(path: str, most: int, what: str) -> bytes:
    """All of a file, or of standard input for "-".

    ValueError for a device and for more than `most` bytes; what names the content in that message.
    """
    if path == STANDARD_INPUT:
        data = _in_pieces(standard_input(), most + 1)
    else:
        with open_input(path) as file:
            data = read_at_most(file, most + 1)
    if len(data) > most:
        raise ValueError(f"{shown(path)} has more than {most:,} bytes, too many for {what}")
    return data


def read_at_most(file: IO[bytes], most: int) -> bytes:
    """The next bytes of a file or a pipe, at most so many; takes no more memory than they need.

    `IO.read` allocates all that it is asked for.
    """
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size:
        return file.read(min(most, max(0, status.st_size - file.tell())))
    return _in_pieces(file, most)


def _in_pieces(file: IO[bytes], most: int) -> bytes:
    pieces, left = [], most
    while left and (piece := file.read(min(left, _PIECE))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def without_mark(data: bytes) -> bytes:
    """UTF-8 without a byte order mark at the beginning, which is not part of the text."""
    return data.removeprefix(_BYTE_ORDER_MARK)


def decoded(data: bytes, name: str) -> str:
    """The text of UTF-8 without its byte order mark; ValueError names the file and the byte."""
    try:
        return without_mark(data).decode()
    except UnicodeDecodeError as error:
        at = error.start + len(data) - len(without_mark(data))
        raise ValueError(
            f"{name}: invalid UTF-8 at byte {at} (0x{data[at]:02x}: {error.reason})"
        ) from None

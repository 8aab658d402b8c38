"""Files that are read: what may be one, how large it may be, and the byte order mark before texts.

`text_files` reads the texts to train on, of any size; this is for all else.
"""

from __future__ import annotations

import codecs
import os
import stat
import sys
from typing import IO

from ._checks import StrPath

STANDARD_INPUT = "-"

_PIECE = 1 << 16  # bytes
_BYTE_ORDER_MARK = codecs.BOM_UTF8


def open_input(path: StrPath) -> IO[bytes]:
    """Opens a file or a pipe; ValueError for a device, which may never end.

    A terminal ends where somebody ends it, and the null device at once.
    """
    file = open(path, "rb")  # noqa: SIM115
    status = os.fstat(file.fileno())
    if stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode):
        null = stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev
        if not null and not file.isatty():
            file.close()
            raise ValueError(f"{os.fspath(path)} is a device, not a file")
    return file


def standard_input() -> IO[bytes]:
    """ValueError where it is closed, which a shell does by <&-."""
    if sys.stdin is None:
        raise ValueError("the standard input is closed")
    return sys.stdin.buffer


def shown(path: str) -> str:
    """A path, or what "-" stands for, in a message."""
    return "standard input" if path == STANDARD_INPUT else path


def read_whole(path: str, most: int, what: str) -> bytes:
    """All of a file, or of the standard input for "-".

    ValueError for a device and for more than so many bytes: what says of what there are too many.
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
    """The next bytes of a file or a pipe, so many or all that come; takes no more memory than that.

    As `IO.read`, which allocates all that it is asked for.
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
    """UTF-8 without the byte order mark that it may begin with, which is no part of the text."""
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

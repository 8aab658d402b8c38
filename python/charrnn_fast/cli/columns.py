"""Texts in columns on a terminal."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import zip_longest

_GAP = " | "
_NARROWEST = 16  # cells of a column; further columns go below
_TAB = 4


def side_by_side(titles: Sequence[str], texts: Sequence[str], width: int) -> Iterator[str]:
    """One or more texts in columns, each under its title: lines of at most `width` cells (>= 2).

    Lines are broken at spaces if possible. If the columns would be too narrow, as many as fit are
    side by side, and the others below them.
    """
    fitting = max(1, (width + len(_GAP)) // (_NARROWEST + len(_GAP)))
    bands = math.ceil(len(texts) / fitting)
    count = math.ceil(len(texts) / bands)  # columns in a band: about equally many in each
    cells = max(2, (width - (count - 1) * len(_GAP)) // count)
    pairs = list(zip(titles, texts, strict=True))
    for first in range(0, len(pairs), count):
        if first:
            yield ""
        columns = [
            [*_wrapped(title, cells), "-" * cells, *_wrapped(text, cells)]
            for title, text in pairs[first : first + count]
        ]
        for row in zip_longest(*columns, fillvalue=""):
            yield _GAP.join(part + " " * (cells - _width(part)) for part in row).rstrip()


def _wrapped(text: str, cells: int) -> list[str]:
    return [part for line in text.split("\n") for part in _broken(_printable(line), cells)]


def _broken(line: str, cells: int) -> list[str]:
    """A line in pieces of at most so many cells; spaces at breaks are dropped."""
    parts, used, start, space = [], 0, 0, -1
    for i, character in enumerate(line):
        used += _cells(character)
        if used > cells:
            at = i if character == " " else space
            # Not within the indentation, which would leave an empty line.
            if at >= start and line[start:at].strip():
                parts.append(line[start:at])
                start = at + 1
            else:
                parts.append(line[start:i])
                start = i
            used = _width(line[start : i + 1])
        if character == " ":
            space = i
    return [*parts, line[start:]]


def _printable(line: str) -> str:
    """A line without tabs, and with U+FFFD for characters that move the cursor or are invisible."""
    return "".join(
        " " if unicodedata.category(c) == "Zs" else c if _shows(c) else "\ufffd"
        for c in line.expandtabs(_TAB)
    )


def _shows(character: str) -> bool:
    return unicodedata.category(character)[0] not in "CZ"


def _width(text: str) -> int:
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    """The cells of a character on a terminal: none for marks, two for East Asian wide ones."""
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1

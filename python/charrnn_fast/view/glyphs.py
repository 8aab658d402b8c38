"""Glyphs: how each symbol is shown, invisible ones included."""

from __future__ import annotations

import unicodedata
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..text.vocabulary import Vocabulary

Look = Literal["plain", "faint", "wide", "hex"]

_BLANKS = {" ": "·", "\t": "→", "\n": "↵", "\u00a0": "⍽"}
_CONTROLS = {
    "\0": "NULL",
    "\t": "TAB",
    "\n": "LINE FEED",
    "\r": "CARRIAGE RETURN",
    "\x1b": "ESCAPE",
    "\x7f": "DELETE",
}
_CATEGORIES = {"Cs": "lone surrogate", "Co": "private use", "Cn": "unassigned"}
_PLACEHOLDER = "▯"  # for symbols without a look of their own


class Glyph(NamedTuple):
    """The text shown for a symbol, in one column of the page."""

    shown: str
    name: str
    look: Look
    """faint: for something invisible; wide: takes two columns in most fonts; hex: two digits."""


def of_character(character: str) -> Glyph:
    category = unicodedata.category(character)
    known = _CONTROLS.get(character, _CATEGORIES.get(category, "control character"))
    name = f"U+{ord(character):04X} {unicodedata.name(character, known)}"
    if character in _BLANKS:
        return Glyph(_BLANKS[character], name, "faint")
    if category == "Cc":
        return Glyph(f"{ord(character):02x}", name, "hex")
    if category[0] in "CZ":
        return Glyph(_PLACEHOLDER, name, "faint")
    if category[0] == "M":
        return Glyph(f"◌{character}", name, "plain")
    wide = unicodedata.east_asian_width(character) in "WF"
    return Glyph(character, name, "wide" if wide else "plain")


def of_byte(byte: int) -> Glyph:
    if byte < 0x80:
        return of_character(chr(byte))
    return Glyph(f"{byte:02x}", f"byte 0x{byte:02x}", "hex")


class Shown(NamedTuple):
    """The glyphs of a page and their places."""

    table: list[Glyph]
    text: NDArray[np.int64]
    """[N]: indices into the table."""
    guesses: NDArray[np.int64]
    """[N, K], likewise."""

    @property
    def newline(self) -> int:
        """The index of the glyph that ends a line; -1: there is none."""
        newline = of_character("\n")
        return self.table.index(newline) if newline in self.table else -1


def show(vocabulary: Vocabulary, ids: NDArray[np.int32], guesses: NDArray[np.int64]) -> Shown:
    """ids [N] and guesses [N, K] as glyphs.

    A character of several bytes is shown at its last byte, where the network has read all of it.
    Its other bytes, and bytes that are not UTF-8, are shown in hex.
    """
    of = of_byte if vocabulary.kind == "bytes" else lambda symbol: of_character(chr(symbol))
    table: dict[Glyph, int] = {}

    def index(glyph: Glyph) -> int:
        return table.setdefault(glyph, len(table))

    used = np.union1d(ids, guesses)
    symbols = vocabulary.symbols[used]
    of_ids = np.array([index(of(int(symbol))) for symbol in symbols])
    text = of_ids[np.searchsorted(used, ids)]
    if vocabulary.kind == "bytes":
        for position, glyph in _whole_characters(vocabulary.units(ids)):
            text[position] = index(glyph)
    return Shown(list(table), text, of_ids[np.searchsorted(used, guesses)])


def _whole_characters(data: bytes) -> list[tuple[int, Glyph]]:
    """The characters of several bytes, each with the position of its last byte."""
    found, position = [], 0
    for character in data.decode("utf-8", "surrogateescape"):
        size = len(character.encode("utf-8", "surrogateescape"))
        position += size
        if size > 1:
            glyph = of_character(character)
            name = f"{glyph.name}, with its last byte 0x{data[position - 1]:02x}"
            found.append((position - 1, glyph._replace(name=name)))
    return found

"""Where a model's loss comes from: the characters of a text by kind.

After section 4.4 of Karpathy, Johnson and Fei-Fei, Visualizing and Understanding Recurrent Networks
(2015), which divides a model's errors. The kinds here follow from the text alone, so that they need
no other model.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple
from unicodedata import category

import numpy as np
from numpy.typing import NDArray


class Kind(NamedTuple):
    """Characters that are predicted alike, by themselves and the one before them."""

    name: str
    about: str
    holds: Callable[[str, str], bool]
    """Of the character before and the character; the first kind that holds is its kind."""


class Errors(NamedTuple):
    """The losses of one kind of character."""

    kind: Kind
    number: int
    loss: float
    """In nats, summed."""


def in_word(character: str) -> bool:
    """Whether a character is a letter, a digit or _."""
    return character.isalnum() or character == "_"


def is_quote(character: str) -> bool:
    """Whether a character is a quotation mark, an apostrophe or a backtick."""
    return character in "\"'`" or category(character) in ("Pi", "Pf")


KINDS = (
    Kind("line end", "the character ends a line", lambda before, c: c == "\n"),
    Kind("start of a line", "behind a line end, blanks too", lambda before, c: before == "\n"),
    Kind("blank", "a blank or tab within a line", lambda before, c: c.isspace()),
    Kind("digit", "a digit", lambda before, c: c.isdigit()),
    Kind(
        "start of a word",
        "a letter or _ behind none",
        lambda before, c: in_word(c) and not in_word(before),
    ),
    Kind("in a word", "a letter or _ behind another", lambda before, c: in_word(c)),
    Kind(
        "quote or bracket",
        "a quotation mark, an apostrophe or a bracket of any kind",
        lambda before, c: is_quote(c) or category(c) in ("Ps", "Pe"),
    ),
    Kind("other sign", "all else", lambda before, c: True),
)


def by_kind(losses: NDArray[np.float64], text: str) -> list[Errors]:
    """The kinds that occur, with the largest part of the loss first.

    losses [N - 1], in nats: of the characters of text [N] from the second on.
    """
    index = np.fromiter(
        (
            next(i for i, kind in enumerate(KINDS) if kind.holds(before, character))
            for before, character in pairwise(text)
        ),
        np.int64,
        len(losses),
    )
    counts = np.bincount(index, minlength=len(KINDS))
    sums = np.bincount(index, losses, len(KINDS))
    found = [
        Errors(kind, int(count), float(loss))
        for kind, count, loss in zip(KINDS, counts, sums, strict=True)
        if count
    ]
    return sorted(found, key=lambda errors: -errors.loss)

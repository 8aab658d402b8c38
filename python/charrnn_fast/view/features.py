"""Features of a text that a cell may follow, and the cells that do.

A feature has a number for each character, computed from the text up to and including it: an
activation is also that of a network that has just read the character. Pearson's correlation r over
the text (K. Pearson, 1895) measures how well a cell follows a feature; for a feature of zeros and
ones it is the point-biserial correlation.

Among many cells, some correlate with anything by chance. The chance level comes from the same text:
the feature is shifted cyclically to 20 equidistant places, and the largest |r| of any cell with any
of these is the chance level. Shifted features keep what makes large correlations likely: how often
and how long a feature is present.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import in_word

NUM_SHIFTS = 20
NUM_BEST = 6
_CONSTANT = 1e-6  # a smaller standard deviation is rounding


class Feature(NamedTuple):
    """A number for each character of a text."""

    name: str
    about: str
    measure: Callable[[str], Iterator[float]]
    takes_memory: bool = True
    """False: it depends on the character alone."""


class Ranking(NamedTuple):
    """How well C cells follow a feature."""

    feature: Feature
    correlations: NDArray[np.float64]
    """[C]: r; 0 for a cell that never changes."""
    chance: float
    """The chance level of |r|."""

    def best(self) -> list[int]:
        """The cells above the chance level with the largest |r|, at most 6, best first."""
        size = np.abs(self.correlations)
        order = np.argsort(-size, kind="stable")[:NUM_BEST]
        return [int(cell) for cell in order if size[cell] > self.chance]


def rank(activations: NDArray[np.float32], text: str) -> tuple[list[Ranking], list[Feature]]:
    """Rankings of cells with activations [C, N] on a text of N characters.

    The second list has the features that are constant over the text: nothing can follow them.
    """
    cells, size = _standardised(activations), len(text)
    places = sorted({i * size // (NUM_SHIFTS + 1) for i in range(1, NUM_SHIFTS + 1)} - {0})
    rankings, constant = [], []
    for feature in FEATURES:
        values = np.fromiter(feature.measure(text), np.float32, size)
        if values.min() == values.max():
            constant.append(feature)
            continue
        moved = np.stack([values, *(np.roll(values, place) for place in places)])
        correlations = (cells @ _standardised(moved).T).astype(np.float64)  # [C, 1 + places]
        chance = float(np.abs(correlations[:, 1:]).max(initial=0)) if places else 1.0
        rankings.append(Ranking(feature, correlations[:, 0], chance))
    return rankings, constant


def _standardised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows [C, N] with mean 0 and norm 1, so that products are correlations; constant ones 0."""
    means = rows.mean(1, keepdims=True, dtype=np.float64)
    centred: NDArray[np.float32] = rows - means.astype(np.float32)
    norms = np.sqrt(np.einsum("cn,cn->c", centred, centred, dtype=np.float64))
    varies = norms > _CONSTANT * np.sqrt(rows.shape[1])
    centred[~varies] = 0
    centred[varies] /= norms[varies, None].astype(np.float32)
    return centred


def _double_quotes(text: str) -> Iterator[float]:
    inside, before = False, ""
    for character in text:
        if character == '"' and before != "\\":
            inside = not inside
        elif character in "“”":
            inside = character == "“"
        before = character
        yield inside


def _single_quotes(text: str) -> Iterator[float]:
    inside, before = False, ""
    for character in text:
        if character == "'" and before != "\\":
            # after a letter it is an apostrophe, or closes
            inside = not inside and not in_word(before)
        elif character == "\n":
            inside = False
        before = character
        yield inside


def _brackets(opening: str, closing: str) -> Callable[[str], Iterator[float]]:
    def measure(text: str) -> Iterator[float]:
        depth = 0
        for character in text:
            if character == opening:
                depth += 1
            elif character == closing:
                depth = max(depth - 1, 0)
            yield depth > 0

    return measure


def _comment(mark: str) -> Callable[[str], Iterator[float]]:
    def measure(text: str) -> Iterator[float]:
        inside, recent = False, ""
        for character in text:
            recent = (recent + character)[-len(mark) - 1 :]
            if character == "\n":
                inside = False
            elif recent.endswith(mark) and recent != f":{mark}":  # nor https://, color:#fff
                inside = True
            yield inside

    return measure


def _line_position(text: str) -> Iterator[float]:
    position = 0
    for character in text:
        position = 0 if character == "\n" else position + 1
        yield position


def _indentation(text: str) -> Iterator[float]:
    depth, leading = 0, True
    for character in text:
        if character == "\n":
            depth, leading = 0, True
        elif leading and character in " \t":
            depth += 1
        else:
            leading = False
        yield depth


def _word_position(text: str) -> Iterator[float]:
    position = 0
    for character in text:
        position = position + 1 if in_word(character) else 0
        yield position


def _each(test: Callable[[str], bool]) -> Callable[[str], Iterator[float]]:
    """A feature of the character alone."""
    return lambda text: (test(character) for character in text)


FEATURES = (
    Feature(
        'inside "…"', 'from " to the next one, from “ to ”; \\" is passed over', _double_quotes
    ),
    Feature(
        "inside '…'",
        "from ' that stands behind no letter to the next one, or the line's end",
        _single_quotes,
    ),
    Feature("inside (…)", "more ( than ) so far", _brackets("(", ")")),
    Feature("inside […]", "more [ than ] so far", _brackets("[", "]")),
    Feature("inside {…}", "more { than } so far", _brackets("{", "}")),
    Feature("comment #", "from a # that is behind no colon to the line's end", _comment("#")),
    Feature("comment //", "from a // that is behind no colon to the line's end", _comment("//")),
    Feature("position in the line", "characters since its beginning", _line_position),
    Feature("indentation", "blanks and tabs at the line's beginning", _indentation),
    Feature(
        "newline", "the character ends a line", _each(lambda character: character == "\n"), False
    ),
    Feature("in a word", "the character is a letter, a digit or _", _each(in_word), False),
    Feature("position in the word", "its characters so far, 0 outside words", _word_position),
    Feature("capital", "the character is a capital letter", _each(str.isupper), False),
    Feature("digit", "the character is a digit", _each(str.isdigit), False),
)

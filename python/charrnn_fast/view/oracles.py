"""What would have removed a model's errors: oracles, one after another.

After section 4.4 of Karpathy, Johnson and Fei-Fei, Visualizing and Understanding Recurrent Networks
(2015): a character is an error where the model gives it a probability below 0.5, and each oracle
removes errors from those that the ones before it have left. Oracles and order follow the section;
the exact definitions, in `ORACLES` and docs/view.md, are ours.

Everything is counted exactly. n-grams of the training text are looked up in blocks, and only those
that end at an error, so that they take about 100 MB beside the texts, whatever their length.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .._checks import array, called, instance
from ..text.vocabulary import code_points
from .errors import in_word, is_quote

LONGEST_NGRAM = 9
MEMORIES = (100, 500, 1000, 5000)
RAREST = 5
ERROR_BELOW = 0.5
NO_ERROR = 255
"""The oracle of a character that is no error, in `Division.oracles`."""

_BLOCK = 1 << 20  # characters of the training text at once
_LETTER = "ä"  # bytes above 127 count as one, as they do in the page's other tables
_WORD = re.compile(r"\w+")  # the characters for which `in_word` holds
_WORD_OF_BYTES = re.compile(rb"[0-9A-Za-z_\x80-\xff]+")

_Text = TypeVar("_Text", str, bytes)


class Oracle(NamedTuple):
    """A model that is asked about the errors that the ones before it have left."""

    name: str
    about: str
    step: str
    """What `steps` are, for a list of them; "" where there are none."""
    steps: tuple[int, ...]
    """An error belongs to the first step that removes it."""


ORACLES = (
    Oracle(
        "n-gram",
        f"some n-gram model of the training text, n up to {LONGEST_NGRAM}, gives the character "
        "more than 0.5",
        "by the shortest n",
        tuple(range(1, LONGEST_NGRAM + 1)),
    ),
    Oracle(
        "word seen before",
        f"behind the first character of a word that occurs in the {MEMORIES[-1]:,} characters "
        "before it",
        "in the last characters",
        MEMORIES,
    ),
    Oracle(
        "rare word",
        f"in a word that occurs at most {RAREST} times in the training text",
        "times in the training text",
        tuple(range(RAREST + 1)),
    ),
    Oracle(
        "start of a word",
        "behind white space or a quotation mark, or the first character of a word",
        "",
        (),
    ),
    Oracle(
        "punctuation",
        "a sign that is neither in a word nor white space, or right behind one",
        "",
        (),
    ),
    Oracle(
        "probability 0.4 to 0.5", "the model's probability plus 0.1 would be 0.5 or more", "", ()
    ),
    Oracle(
        "probability 0.1 to 0.4", "the model's probability plus 0.4 would be 0.5 or more", "", ()
    ),
    Oracle("probability below 0.1", "the rest", "", ()),
)
_NGRAM, _MEMORY, _RARE, _START, _SIGN, _BOOST, _BIG_BOOST, _REST = range(len(ORACLES))


class Removed(NamedTuple):
    """The errors that one oracle removes."""

    oracle: Oracle
    number: int
    remaining: int
    """How many are left for the oracles behind it."""
    steps: tuple[int, ...]
    """How many each of the oracle's steps removes."""


class Division(NamedTuple):
    """The errors of a text by what would have removed them."""

    predicted: int
    """N - 1."""
    errors: int
    removed: list[Removed]
    """In the order of `ORACLES`; their numbers add up to errors."""
    oracles: NDArray[np.uint8]
    """[N - 1]: the index in `ORACLES` for text[n + 1]; 255: no error."""
    contained: bool
    """Whether the training text contains the text: n-grams then know it."""


def divide_errors(
    probabilities: NDArray[np.floating[Any]], text: str | bytes, training_text: str | bytes
) -> Division:
    """Divides a model's errors on a text by the oracles that remove them.

    probabilities [N - 1]: what the model gave to text[1:], each from 0 to 1. text: N >= 2
    characters, or bytes for a model of bytes. training_text: of the same type, one character or
    more. Words are maximal runs of letters, digits and _; of bytes, those above 127 count as
    letters.

    Raises TypeError or ValueError for other arguments.
    """
    for name, value, least in (("text", text, 2), ("training_text", training_text, 1)):
        instance(name, value, (str, bytes), "a str or bytes")
        if len(value) < least:
            unit = "character" if isinstance(value, str) else "byte"
            raise ValueError(
                f"{called(name)} must have {least} {unit}{'s' * (least > 1)} or more, "
                f"got {len(value)}"
            )
    given = array("probabilities", probabilities)
    if given.dtype.kind != "f":
        raise TypeError(f"probabilities must be floating-point numbers, got dtype {given.dtype}")
    if given.shape != (len(text) - 1,):
        raise ValueError(
            f"probabilities must have the shape [{len(text) - 1}], one for each of the text but "
            f"its first, got {list(given.shape)}"
        )
    if not ((given >= 0) & (given <= 1)).all():  # nor NaN
        raise ValueError(
            f"probabilities must lie in 0 to 1, got {np.nanmin(given)} to {np.nanmax(given)}"
            f"{' and NaN' if np.isnan(given).any() else ''}"
        )
    if isinstance(text, str) and isinstance(training_text, str):
        return _divide(given, text, training_text, _WORD)
    if isinstance(text, bytes) and isinstance(training_text, bytes):
        return _divide(given, text, training_text, _WORD_OF_BYTES)
    raise TypeError(
        f"{called('training_text')} must be of the type of text, {type(text).__name__}, got "
        f"{type(training_text).__name__}"
    )


def _divide(
    probabilities: NDArray[np.floating[Any]],
    text: _Text,
    training_text: _Text,
    pattern: re.Pattern[_Text],
) -> Division:
    oracles = np.full(len(text) - 1, NO_ERROR, np.uint8)
    errors = left = np.flatnonzero(probabilities < ERROR_BELOW) + 1  # places in text
    steps: list[tuple[int, ...]] = [()] * len(ORACLES)

    def remove(oracle: int, removed: NDArray[np.bool_]) -> None:
        nonlocal left
        oracles[left[removed] - 1] = oracle
        left = left[~removed]

    def remove_by_steps(oracle: int, found: NDArray[np.int64]) -> None:
        """found: the step that removes each of the errors left; -1: none."""
        count = len(ORACLES[oracle].steps)
        steps[oracle] = tuple(np.bincount(found[found >= 0], minlength=count).tolist())
        remove(oracle, found >= 0)

    words = _Words(text, pattern)
    symbols = _symbols(text)
    word, blank, quote = (
        _holding(text, symbols, test) for test in (in_word, str.isspace, is_quote)
    )
    sign = ~word & ~blank
    remove_by_steps(_NGRAM, _shortest_ngrams(symbols, training_text, left) - 1)
    remove_by_steps(_MEMORY, words.memories(left))
    remove_by_steps(_RARE, words.counts(left, training_text))
    before = left - 1
    remove(_START, ~word[before] & (word[left] | blank[before] | quote[before]))
    remove(_SIGN, sign[left] | sign[left - 1])
    remove(_BOOST, probabilities[left - 1] >= 0.4)
    remove(_BIG_BOOST, probabilities[left - 1] >= 0.1)
    remove(_REST, np.ones(len(left), np.bool_))
    numbers = np.bincount(oracles[oracles != NO_ERROR], minlength=len(ORACLES)).tolist()
    removed = [
        Removed(oracle, number, len(errors) - sum(numbers[: i + 1]), steps[i])
        for i, (oracle, number) in enumerate(zip(ORACLES, numbers, strict=True))
    ]
    return Division(len(text) - 1, len(errors), removed, oracles, text in training_text)


def _symbols(text: str | bytes) -> NDArray[Any]:
    """[N]: code points or bytes."""
    return code_points(text) if isinstance(text, str) else np.frombuffer(text, np.uint8)


def _holding(
    text: str | bytes, symbols: NDArray[Any], test: Callable[[str], bool]
) -> NDArray[np.bool_]:
    """[N]: where a test of a character holds."""
    most = 0x110000 if isinstance(text, str) else 0x80
    known, index = np.unique(symbols, return_inverse=True)
    return np.array([test(chr(s) if s < most else _LETTER) for s in known], np.bool_)[index]


class _Words:
    """The words of a text."""

    def __init__(self, text: str | bytes, pattern: re.Pattern[Any]) -> None:
        self._text: Any = text
        self._pattern = pattern
        spans = np.array([found.span() for found in pattern.finditer(self._text)], np.int64)
        self._starts, self._ends = spans.reshape(-1, 2).T

    def _at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The index of the word that each place is in; -1: in none."""
        index = np.searchsorted(self._starts, places, "right") - 1
        inside = index >= 0
        inside[inside] = places[inside] < self._ends[index[inside]]
        return np.where(inside, index, -1)

    def _word(self, index: int) -> Any:
        return self._text[self._starts[index] : self._ends[index]]

    def memories(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first of `MEMORIES` that knows the word of each place; -1: none, or no such word."""
        index = self._at(places)
        first = index >= 0
        first[first] = places[first] == self._starts[index[first]]
        index[first] = -1
        found = np.full(len(places), -1)
        for word in np.unique(index[index >= 0]):
            start = int(self._starts[word])
            at = self._text.rfind(self._word(word), max(0, start - MEMORIES[-1]), start)
            if at >= 0:
                found[index == word] = np.searchsorted(MEMORIES, start - at)
        return found

    def counts(self, places: NDArray[np.int64], training_text: Any) -> NDArray[np.int64]:
        """How often the word of each place is in the training text; -1: above `RAREST`, or none."""
        index = self._at(places)
        inside = index >= 0
        distinct, which = np.unique(index[inside], return_inverse=True)
        words = [self._word(i) for i in distinct]
        counts = dict.fromkeys(words, 0)
        for found in self._pattern.finditer(training_text):
            word = found[0]
            if word in counts:
                counts[word] += 1
        result = np.full(len(places), -1)
        result[inside] = np.array([counts[word] for word in words], np.int64)[which]
        result[result > RAREST] = -1
        return result


class _Keys:
    """Distinct keys, and how often each of them is met."""

    def __init__(self, keys: NDArray[np.int64]) -> None:
        self._keys, self.index = np.unique(keys, return_inverse=True)
        self._counts = np.zeros(len(self._keys), np.int64)

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The place of each key among the distinct ones; -1: it is none of them."""
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, at, -1)

    def count(self, places: NDArray[np.int64]) -> None:
        self._counts += np.bincount(places, minlength=len(self._keys))

    @property
    def of_each(self) -> NDArray[np.int64]:
        """The counts, by the keys that the constructor was given."""
        return self._counts[self.index]


class _Order(NamedTuple):
    """The n-grams of one n that end at an error."""

    asked: NDArray[np.int64]
    """Which errors have so long a context."""
    contexts: _Keys
    ngrams: _Keys


def _shortest_ngrams(
    symbols: NDArray[Any], training_text: str | bytes, places: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each place the least n whose n-gram model gives its symbol more than 0.5; 0: none does.

    Maximum likelihood: how many of the places behind the same n - 1 symbols have this symbol.
    symbols: of the text.
    """
    result = np.zeros(len(places), np.int64)
    if not len(places):
        return result
    alphabet, ids = np.unique(symbols, return_inverse=True)
    base = len(alphabet) + 1  # the last id is any other symbol
    orders = _orders(ids, base, places)
    id_of = np.full(int(alphabet[-1]) + 2, base - 1, np.int64)
    id_of[alphabet] = np.arange(base - 1)
    for first in range(0, len(training_text), _BLOCK):
        reach = max(0, first - LONGEST_NGRAM + 1)  # of the longest context
        block = _symbols(training_text[reach : first + _BLOCK])
        _count(orders, id_of.take(block, mode="clip"), base, first - reach)
    for n, (asked, contexts, ngrams) in enumerate(orders, 1):
        knows = asked[2 * ngrams.of_each > contexts.of_each]
        result[knows] = np.where(result[knows] == 0, n, result[knows])
    return result


def _orders(ids: NDArray[np.int64], base: int, places: NDArray[np.int64]) -> list[_Order]:
    """A context's key is its first symbol and the number of the context without it, so that equal
    keys are equal contexts.
    """
    orders = list[_Order]()
    numbers = np.zeros(len(places), np.int64)  # of the contexts
    for length in range(LONGEST_NGRAM):
        asked = np.flatnonzero(places >= length)
        if not len(asked):
            break
        at = places[asked]
        contexts = _Keys(numbers[asked] * base + ids[at - length] if length else numbers[asked])
        numbers[asked] = contexts.index
        orders.append(_Order(asked, contexts, _Keys(contexts.index * base + ids[at])))
    return orders


def _count(orders: list[_Order], ids: NDArray[np.int64], base: int, first: int) -> None:
    """Counts the n-grams that end in a block: at ids[first:], of the training text."""
    at = np.arange(first, len(ids))
    numbers = np.zeros(len(at), np.int64)
    for length, (_, contexts, ngrams) in enumerate(orders):
        at, numbers = at[at >= length], numbers[at >= length]
        found = contexts.find(numbers * base + ids[at - length] if length else numbers)
        at, numbers = at[found >= 0], found[found >= 0]
        contexts.count(numbers)
        met = ngrams.find(numbers * base + ids[at])
        ngrams.count(met[met >= 0])

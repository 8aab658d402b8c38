"""`charrnn_fast.view.divide_errors`: the errors of a model by what would have removed them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from charrnn_fast.view import divide_errors
from charrnn_fast.view.errors import in_word, is_quote
from charrnn_fast.view.oracles import _WORD, _WORD_OF_BYTES, MEMORIES, NO_ERROR, ORACLES, Division

NOTHING = "-"  # a training text that knows no other character and no word
BOTH = "za zb " * 6  # two words, neither rare, after whose z no n-gram is sure


def of_place(
    text: str | bytes, training_text: str | bytes, place: int, probability: float = 0.2
) -> tuple[str, int | None]:
    """The oracle that removes the one error of a text, and its step."""
    probabilities = np.full(len(text) - 1, 0.9)
    probabilities[place - 1] = probability
    division = divide_errors(probabilities, text, training_text)
    assert (division.predicted, division.errors) == (len(text) - 1, 1)
    index = int(division.oracles[place - 1])
    assert np.count_nonzero(division.oracles != NO_ERROR) == 1
    for i, (oracle, number, remaining, steps) in enumerate(division.removed):
        assert oracle is ORACLES[i]
        assert (number, remaining) == (int(i == index), int(i < index))
        assert len(steps) == len(oracle.steps)
        assert sum(steps) == (number if oracle.steps else 0)
    oracle, _, _, steps = division.removed[index]
    return oracle.name, oracle.steps[steps.index(1)] if oracle.steps else None


@pytest.mark.parametrize(
    ("text", "training_text", "place", "expected"),
    [
        # n-grams: more than half of the places behind the context
        ("ba", "aab", 1, ("n-gram", 1)),
        ("ab", "abab", 1, ("n-gram", 2)),
        ("ab", "abc", 1, ("n-gram", 2)),
        ("ab", "abac", 1, ("rare word", 0)),  # exactly half
        ("xb", "ab", 1, ("rare word", 0)),  # a context that was never seen
        ("xab", "abac", 2, ("rare word", 0)),
        ("xab", "xab ac", 2, ("n-gram", 3)),
        ("a.b", "a.b c.d e.f ", 2, ("n-gram", 3)),
        ("pbcdefghX", "pbcdefghX qbcdefghY", 8, ("n-gram", 9)),
        ("pbcdefghiX", "pbcdefghiX qbcdefghiY", 9, ("rare word", 1)),  # a tenth would know
        ("ab", "ba", 1, ("rare word", 0)),  # a at the end is behind nothing
        # words seen before
        ("zelda zelda", NOTHING, 7, ("word seen before", 100)),
        ("zelda zelda", NOTHING, 10, ("word seen before", 100)),
        ("zelda zelda", NOTHING, 6, ("rare word", 0)),  # its first character
        ("zelda zelda", NOTHING, 4, ("rare word", 0)),  # not before, but in the same word
        ("zelda zelds", NOTHING, 8, ("rare word", 0)),  # the beginning alone was there
        ("Zelda zelda", NOTHING, 8, ("rare word", 0)),
        ("xaby ab", NOTHING, 6, ("word seen before", 100)),  # within another word
        ("ab ab", "ab ac", 4, ("word seen before", 100)),  # though the word is rare
        *(
            (f"qw{'.' * (distance - 2)}qw", NOTHING, distance + 1, ("word seen before", step))
            for i, step in enumerate(MEMORIES)
            for distance in (step, MEMORIES[i - 1] + 1 if i else 3)
        ),
        (f"qw{'.' * 4999}qw", NOTHING, 5002, ("rare word", 0)),
        # rare words
        ("~za", NOTHING, 2, ("rare word", 0)),
        ("~za", NOTHING, 1, ("rare word", 0)),
        *(("~za", "za zb " * n, 2, ("rare word", n)) for n in range(1, 6)),
        ("~za", BOTH, 2, ("probability 0.1 to 0.4", None)),
        ("~zaa", BOTH, 2, ("rare word", 0)),  # the whole word counts
        ("~Za", "za zb " * 6, 1, ("rare word", 0)),
        # starts of words
        ("~za", BOTH, 1, ("start of a word", None)),
        ("\t(", NOTHING, 1, ("start of a word", None)),
        (" (", NOTHING, 1, ("start of a word", None)),
        ("\n\n", NOTHING, 1, ("start of a word", None)),
        ("\u201c.", NOTHING, 1, ("start of a word", None)),
        ("'.", NOTHING, 1, ("start of a word", None)),
        ("'za", BOTH, 1, ("start of a word", None)),
        # punctuation
        ("a,", NOTHING, 1, ("punctuation", None)),
        ("a'", NOTHING, 1, ("punctuation", None)),
        (",.", NOTHING, 1, ("punctuation", None)),
        (", ", NOTHING, 1, ("punctuation", None)),
        (")\n", NOTHING, 1, ("punctuation", None)),
        # the rest
        ("a ", NOTHING, 1, ("probability 0.1 to 0.4", None)),
        ("a\n", NOTHING, 1, ("probability 0.1 to 0.4", None)),
        # bytes: those above 127 are letters, and each is itself
        (b"ab", b"abab", 1, ("n-gram", 2)),
        ("tür tür".encode(), b"-", 7, ("word seen before", 100)),
        ("tür tör".encode(), b"-", 7, ("rare word", 0)),
        ("a tür".encode(), ("tür tär " * 3).encode(), 4, ("rare word", 3)),
        ("~ü".encode(), "ü ä ".encode() * 6, 1, ("start of a word", None)),
        ("ü,".encode(), b"-", 2, ("punctuation", None)),
        ("ü ".encode(), b"-", 2, ("probability 0.1 to 0.4", None)),
        (b"\xff\xff", b"-", 1, ("rare word", 0)),
    ],
)
def test_an_error_has_its_oracle(
    text: str | bytes, training_text: str | bytes, place: int, expected: tuple[str, int | None]
) -> None:
    assert of_place(text, training_text, place) == expected


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        (0.4999, "probability 0.4 to 0.5"),
        (0.4, "probability 0.4 to 0.5"),
        (0.3999, "probability 0.1 to 0.4"),
        (0.1, "probability 0.1 to 0.4"),
        (0.0999, "probability below 0.1"),
        (0.0, "probability below 0.1"),
    ],
)
def test_what_is_left_is_told_by_its_probability(probability: float, expected: str) -> None:
    assert of_place("a ", NOTHING, 1, probability) == (expected, None)


def test_an_error_is_below_a_half() -> None:
    division = divide_errors(np.array([0.5, 0.49, 1]), "abab", "aba")
    assert (division.predicted, division.errors) == (3, 1)
    assert division.oracles.tolist() == [NO_ERROR, 0, NO_ERROR]
    without = divide_errors(np.ones(3), "abab", "ab")
    assert without.errors == 0
    assert [removed.number for removed in without.removed] == [0] * len(ORACLES)


def test_words_are_those_of_the_features() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert "".join(_WORD.findall(everything)) == "".join(filter(in_word, everything))
    every_byte = bytes(range(256))
    own = bytes(b for b in every_byte if b >= 128 or in_word(chr(b)))
    assert b"".join(_WORD_OF_BYTES.findall(every_byte)) == own


def test_the_training_text_may_contain_the_text() -> None:
    half = np.full(3, 0.3)
    assert divide_errors(half, "abcd", "xabcdx").contained
    assert not divide_errors(half, "abcd", "abc").contained
    assert divide_errors(half, b"abcd", b"abcd").contained


@pytest.mark.parametrize("block", [1, 2, 8, 9])
def test_contexts_go_beyond_a_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charrnn_fast.view.oracles._BLOCK", block)
    assert of_place("pbcdefghX", "pbcdefghX qbcdefghY", 8) == ("n-gram", 9)


# ---- against a plain implementation ----


def plain_words(text: str) -> list[tuple[int, int]]:
    spans, start = [], None
    for n, character in enumerate(f"{text} "):
        if in_word(character) and start is None:
            start = n
        elif not in_word(character) and start is not None:
            spans.append((start, n))
            start = None
    return spans


def plain_ngram(text: str, training_text: str, place: int) -> int | None:
    for n in range(1, 10):
        if place < n - 1:
            return None
        context = text[place - n + 1 : place]
        behind = [
            training_text[i]
            for i in range(n - 1, len(training_text))
            if training_text[i - n + 1 : i] == context
        ]
        if 2 * behind.count(text[place]) > len(behind):
            return n
    return None


def plainly(p: float, text: str, training_text: str, place: int) -> tuple[str, int | None]:
    n = plain_ngram(text, training_text, place)
    if n is not None:
        return "n-gram", n
    for start, end in plain_words(text):
        if not start <= place < end:
            continue
        word = text[start:end]
        if place > start:
            for n in (100, 500, 1000, 5000):
                if word in text[max(0, start - n) : start]:
                    return "word seen before", n
        count = [training_text[a:b] for a, b in plain_words(training_text)].count(word)
        if count <= 5:
            return "rare word", count
    before, here = text[place - 1], text[place]
    if before.isspace() or is_quote(before) or (in_word(here) and not in_word(before)):
        return "start of a word", None
    if not all(in_word(c) or c.isspace() for c in (before, here)):
        return "punctuation", None
    if p >= 0.4:
        return "probability 0.4 to 0.5", None
    return ("probability 0.1 to 0.4" if p >= 0.1 else "probability below 0.1"), None


def random_text(random: np.random.Generator, size: int, letters: str) -> str:
    return "".join(random.choice(list(letters), size))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [1 << 20, 7, 1])
def test_all_is_as_a_plain_implementation_has_it(
    seed: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn_fast.view.oracles._BLOCK", block)
    random = np.random.default_rng(seed)
    text = random_text(random, 160, 'aabbc\U0001d518  .\n"')
    # with a symbol that the text lacks, above all of it and below
    training_text = random_text(random, 240, 'aabbc\U0001d518  .\n"\t\U0001f600') + text[20:30]
    probabilities = random.uniform(0, 1, len(text) - 1)
    expected = {
        place: plainly(p, text, training_text, place)
        for place, p in enumerate(probabilities, 1)
        if p < 0.5
    }
    division = divide_errors(probabilities, text, training_text)
    assert division.errors == len(expected)
    assert len({name for name, _ in expected.values()}) >= 6
    for place in range(1, len(text)):
        index = division.oracles[place - 1]
        name = None if index == NO_ERROR else ORACLES[index].name
        assert name == (expected[place][0] if place in expected else None), place
    left = len(expected)
    for oracle, number, remaining, steps in division.removed:
        own = [step for name, step in expected.values() if name == oracle.name]
        left -= len(own)
        assert (number, remaining) == (len(own), left)
        assert steps == tuple(own.count(step) for step in oracle.steps)


def test_bytes_are_divided_as_their_characters() -> None:
    random = np.random.default_rng(7)
    text, training_text = (random_text(random, n, 'aabbcd  .\n"') for n in (200, 300))
    probabilities = random.uniform(0, 1, len(text) - 1).astype(np.float32)
    of_text = divide_errors(probabilities, text, training_text)
    of_bytes = divide_errors(probabilities, text.encode(), training_text.encode())
    assert [r[1:] for r in of_bytes.removed] == [r[1:] for r in of_text.removed]
    np.testing.assert_array_equal(of_bytes.oracles, of_text.oracles)


# ---- arguments ----


def divided(**changes: Any) -> Division:
    given: dict[str, Any] = {"probabilities": np.full(3, 0.3), "text": "abcd", "training_text": "a"}
    return divide_errors(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"text": 3}, TypeError, "text must be a str or bytes, got int"),
        ({"training_text": None}, TypeError, "training_text must be a str or bytes, got NoneType"),
        ({"text": b"abcd"}, TypeError, "training_text must be of the type of text, bytes, got str"),
        ({"text": "a"}, ValueError, "text must have 2 characters or more, got 1"),
        ({"training_text": b""}, ValueError, "training_text must have 1 byte or more, got 0"),
        ({"probabilities": [0.3] * 3}, TypeError, "probabilities must be a NumPy array, got list"),
        ({"probabilities": np.ones(3, int)}, TypeError, "must be floating-point numbers, got dty"),
        ({"probabilities": np.ones(4)}, ValueError, r"must have the shape \[3\], .*, got \[4\]"),
        ({"probabilities": np.full(3, 1.5)}, ValueError, "must lie in 0 to 1, got 1.5 to 1.5$"),
        ({"probabilities": np.array([0, -1, 0.0])}, ValueError, "must lie in 0 to 1, got -1.0 to"),
        ({"probabilities": np.array([0, np.nan, 0])}, ValueError, "got 0.0 to 0.0 and NaN"),
    ],
)
def test_wrong_arguments_are_refused(
    changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        divided(**changes)


def test_arguments_stay_as_they_are() -> None:
    probabilities: NDArray[np.float64] = np.linspace(0, 1, 3)
    before = probabilities.copy()
    divided(probabilities=probabilities)
    np.testing.assert_array_equal(probabilities, before)

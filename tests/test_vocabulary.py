"""Vocabulary: text to ids and back, for any text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn_fast import Vocabulary
from charrnn_fast.vocabulary import _StreamDecoder

any_text = st.text(st.characters(codec=None), min_size=1)  # lone surrogates as well
utf8_text = st.text(min_size=1)


def test_ids_follow_the_order_of_the_code_points() -> None:
    vocabulary = Vocabulary.from_text("hello")
    assert len(vocabulary) == 4
    assert vocabulary.kind == "characters"
    ids = vocabulary.encode("helo")
    assert ids.dtype == np.int32
    assert ids.tolist() == [1, 0, 2, 3]
    assert vocabulary.decode([1, 0, 2, 2, 3]) == "hello"


@given(any_text)
def test_characters_round_trip(text: str) -> None:
    vocabulary = Vocabulary.from_text(text)
    ids = vocabulary.encode(text)
    assert len(ids) == len(text)
    assert len(vocabulary) == len(set(text))
    assert sorted(set(ids.tolist())) == list(range(len(vocabulary)))
    assert vocabulary.decode(ids) == text


@given(utf8_text)
def test_bytes_round_trip(text: str) -> None:
    vocabulary = Vocabulary.from_bytes()
    ids = vocabulary.encode(text)
    assert ids.tolist() == list(text.encode())
    assert vocabulary.encode(text.encode()).tolist() == ids.tolist()
    assert vocabulary.decode(ids) == text


@given(st.binary(), st.lists(st.integers(0, 7)))
def test_a_stream_joins_to_the_whole(data: bytes, sizes: list[int]) -> None:
    vocabulary = Vocabulary.from_bytes()
    decoder = _StreamDecoder(vocabulary)
    text, start = "", 0
    for size in sizes:
        text += decoder.decode(vocabulary.encode(data[start : start + size]))
        start += size
    text += decoder.decode(vocabulary.encode(data[start:]), final=True)
    assert text == vocabulary.decode(vocabulary.encode(data)) == data.decode("utf-8", "replace")


def test_a_stream_never_splits_a_character() -> None:
    vocabulary = Vocabulary.from_bytes()
    decoder = _StreamDecoder(vocabulary)
    pieces = [decoder.decode([byte]) for byte in "aé€😀".encode()]
    assert pieces == ["a", "", "é", "", "", "€", "", "", "", "😀"]
    assert decoder.decode([0xE2], final=True) == "\N{REPLACEMENT CHARACTER}"


def test_one_hot() -> None:
    vocabulary = Vocabulary.from_text("helo")
    vectors = vocabulary.one_hot(vocabulary.encode("hello"))
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.eye(4)[[1, 0, 2, 2, 3]])
    batch = vocabulary.one_hot([[0, 1, 2], [3, 3, 0]], np.float64)
    assert batch.shape == (2, 3, 4)
    assert batch.dtype == np.float64
    np.testing.assert_array_equal(batch.argmax(-1), [[0, 1, 2], [3, 3, 0]])
    assert vocabulary.one_hot([]).shape == (0, 4)


def test_equality_is_of_ids_and_kind() -> None:
    assert Vocabulary.from_text("abc") == Vocabulary.from_text("cabbage"[:4])
    assert Vocabulary.from_text("abc") != Vocabulary.from_text("abd")
    latin = "".join(map(chr, range(256)))
    assert Vocabulary.from_text(latin) != Vocabulary.from_bytes()
    assert Vocabulary.from_bytes() == Vocabulary.from_bytes()
    assert hash(Vocabulary.from_text("abc")) == hash(Vocabulary.from_text("cba"))
    assert Vocabulary.from_text("abc") != "abc"


def test_empty_texts() -> None:
    with pytest.raises(ValueError, match="text is empty"):
        Vocabulary.from_text("")
    vocabulary = Vocabulary.from_text("a")
    assert vocabulary.encode("").shape == (0,)
    assert vocabulary.decode([]) == ""


@pytest.mark.parametrize(
    ("text", "shown", "position"),
    [("abé", "'é' (U+00E9)", 2), ("a\N{PILE OF POO}", "U+1F4A9", 1), ("\ud800", "U+D800", 0)],
)
def test_an_unknown_character_is_named_with_its_position(
    text: str, shown: str, position: int
) -> None:
    vocabulary = Vocabulary.from_text("ab\N{GRINNING FACE}")
    with pytest.raises(ValueError, match="not among the vocabulary's 3 characters") as error:
        vocabulary.encode(text)
    assert shown in str(error.value)
    assert f"position {position}," in str(error.value)


def test_a_lone_surrogate_has_no_bytes() -> None:
    with pytest.raises(ValueError, match=r"U\+DC80.*position 2, a lone surrogate"):
        Vocabulary.from_bytes().encode("ab\udc80")


def test_wrong_types_are_refused() -> None:
    vocabulary = Vocabulary.from_text("ab")
    with pytest.raises(TypeError, match="text must be a str, got bytes"):
        vocabulary.encode(b"ab")
    with pytest.raises(TypeError, match="text must be a str or bytes, got int"):
        Vocabulary.from_bytes().encode(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="text must be a str, got bytes"):
        Vocabulary.from_text(b"ab")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ids must be integers, got dtype float64"):
        vocabulary.decode([0.0])


@pytest.mark.parametrize("wrong", [-1, 2, 2**40])
def test_ids_out_of_range_are_refused(wrong: int) -> None:
    vocabulary = Vocabulary.from_text("ab")
    with pytest.raises(ValueError, match=f"ids must lie in 0 to 1, got {wrong}"):
        vocabulary.decode([0, wrong])
    with pytest.raises(ValueError, match=f"ids must lie in 0 to 1, got {wrong}"):
        vocabulary.one_hot([[0], [wrong]])


def test_decode_takes_one_dimension() -> None:
    with pytest.raises(ValueError, match=r"ids must have the shape \[N\], got \[1, 2\]"):
        Vocabulary.from_text("ab").decode([[0, 1]])


def test_symbols_are_checked() -> None:
    with pytest.raises(ValueError, match="distinct"):
        Vocabulary([97, 97])
    with pytest.raises(ValueError, match="0 to 1114111, got 0 to 1114112"):
        Vocabulary([0, 0x110000])
    with pytest.raises(ValueError, match="shape"):
        Vocabulary([])
    with pytest.raises(ValueError, match="0 to 255"):
        Vocabulary([1, 0], "bytes")
    with pytest.raises(ValueError, match="kind must be one of characters, bytes, got 'words'"):
        Vocabulary([1, 2], "words")  # type: ignore[arg-type]

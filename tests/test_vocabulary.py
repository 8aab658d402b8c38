"""Vocabulary: text to ids and back, for any text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn_fast import CharLM, Vocabulary
from charrnn_fast.storage import checkpoint
from charrnn_fast.text.vocabulary import StreamDecoder, Unknown

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

any_text = st.text(st.characters(codec=None), min_size=1)  # lone surrogates as well
# The default may draw lone surrogates too: those that stand in the package's source.
utf8_characters = st.characters(codec="utf-8")
utf8_text = st.text(utf8_characters, min_size=1)


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
    decoder = StreamDecoder(vocabulary)
    text, start = "", 0
    for size in sizes:
        text += decoder.decode(vocabulary.encode(data[start : start + size]))
        start += size
    text += decoder.decode(vocabulary.encode(data[start:]), final=True)
    assert text == vocabulary.decode(vocabulary.encode(data)) == data.decode("utf-8", "replace")


def test_a_stream_never_splits_a_character() -> None:
    vocabulary = Vocabulary.from_bytes()
    decoder = StreamDecoder(vocabulary)
    pieces = [decoder.decode([byte]) for byte in "aé€😀".encode()]
    assert pieces == ["a", "", "é", "", "", "€", "", "", "", "😀"]
    assert decoder.decode([0xE2], final=True) == "\N{REPLACEMENT CHARACTER}"


# Sequences that are valid, cut off, without their beginning, too long for their character
# ("overlong"), of surrogates, beyond U+10FFFF.
utf8_pieces = st.one_of(
    utf8_characters.map(str.encode),
    st.tuples(st.characters(codec="utf-8", min_codepoint=0x80), st.integers(1, 3)).map(
        lambda cut: cut[0].encode()[: cut[1]]
    ),
    st.sampled_from([b"\x80", b"\xbf\xbf", b"\xc0\xaf", b"\xe0\x80\x80", b"\xed\xa0\x80"]),
    st.sampled_from([b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xff", b"\xf0\x9f\x98"]),
)


@given(st.lists(utf8_pieces).map(b"".join))
def test_a_stream_of_any_bytes_joins_to_the_whole(data: bytes) -> None:
    """Byte by byte, which is the hardest; what is invalid becomes the same U+FFFD."""
    decoder = StreamDecoder(Vocabulary.from_bytes())
    pieces = [decoder.decode([byte]) for byte in data] + [decoder.decode([], final=True)]
    assert "".join(pieces) == data.decode("utf-8", "replace")


@given(st.text(utf8_characters), st.lists(st.integers(1, 7)))
def test_a_stream_gives_every_character_once_it_is_whole(text: str, sizes: list[int]) -> None:
    decoder = StreamDecoder(Vocabulary.from_bytes())
    data, shown, end = text.encode(), "", 0
    for size in sizes:
        shown += decoder.decode(list(data[end : end + size]))
        end += size
        assert shown == data[:end].decode("utf-8", "ignore")


def test_a_stream_of_characters_with_an_unknown_one() -> None:
    vocabulary = Vocabulary.from_text("aab", min_count=2)
    decoder = StreamDecoder(vocabulary)
    pieces = [decoder.decode([i]) for i in vocabulary.encode("ab\U0001f600")]
    assert pieces == ["a", "\ufffd", "\ufffd"]


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


# ---- the unknown symbol ----


@given(any_text, any_text, st.integers(2, 4))
def test_rare_and_unseen_characters_are_one_symbol(text: str, other: str, min_count: int) -> None:
    counts = Counter(text)
    if max(counts.values()) < min_count:
        with pytest.raises(ValueError, match=f"min_count must be at most .*, got {min_count}"):
            Vocabulary.from_text(text, min_count)
        return
    vocabulary = Vocabulary.from_text(text, min_count)
    own = {c for c, count in counts.items() if count >= min_count} - {REPLACEMENT}
    assert len(vocabulary) == len(own) + 1
    assert vocabulary.decode(range(len(vocabulary))) == "".join(sorted(own | {REPLACEMENT}))
    others = counts.keys() - own
    share = sum(counts[c] for c in others) / len(text)
    assert vocabulary.unknown is not None
    assert vocabulary.unknown.characters == len(others)
    assert vocabulary.unknown.share == pytest.approx(share)
    for some in (text, other):
        ids = vocabulary.encode(some)
        read = vocabulary.decode(ids)
        assert read == "".join(c if c in own else REPLACEMENT for c in some)
        assert vocabulary.encode(read).tolist() == ids.tolist()


def test_a_replacement_character_of_the_text_is_unknown_however_frequent() -> None:
    vocabulary = Vocabulary.from_text("aa" + 8 * REPLACEMENT, min_count=2)
    assert vocabulary.unknown == (1, 0.8)
    assert vocabulary.encode(f"a{REPLACEMENT}b").tolist() == [0, 1, 1]
    plain = Vocabulary.from_text("aa" + REPLACEMENT)
    assert plain.unknown is None
    with pytest.raises(ValueError, match="not among the vocabulary's 2 characters"):
        plain.encode("b")


def test_an_unknown_symbol_is_there_where_nothing_is_rare() -> None:
    vocabulary = Vocabulary.from_text("aabb", min_count=2)
    assert vocabulary.unknown == (0, 0)
    assert vocabulary.encode("abc").tolist() == [0, 1, 2]
    assert vocabulary != Vocabulary.from_text("ab" + REPLACEMENT)
    assert hash(vocabulary) != hash(Vocabulary.from_text("ab" + REPLACEMENT))
    assert vocabulary == Vocabulary.from_text("aaabbbc", min_count=2)


def test_what_is_unknown_is_shown() -> None:
    vocabulary = Vocabulary.from_text("a" * 700 + "b" * 290 + "cdefghijkk", min_count=3)
    assert repr(vocabulary) == (
        "<Vocabulary of 3 characters: 'ab\N{REPLACEMENT CHARACTER}'; U+FFFD stands for all "
        "others: 9 in the text, 1 % of it>"
    )


def test_a_checkpoint_keeps_what_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for vocabulary in (Vocabulary.from_text("aabbc", 2), Vocabulary.from_text("aab")):
        model = CharLM(vocabulary, hidden_size=2, num_layers=1)
        model.save(path)
        read = CharLM.load(path).vocabulary
        assert read == vocabulary
        assert read.unknown == vocabulary.unknown
        # as checkpoints were before there were unknown symbols
        assert ("unknown" in checkpoint.read(path)[1]) == (vocabulary.unknown is not None)
    model = CharLM(Vocabulary.from_text("aabbc", 2), hidden_size=2, num_layers=1)
    model.save(path)
    tensors, config = checkpoint.read(path)
    wrong: object
    for wrong in (3, {"characters": 1}, {"characters": "x", "share": 0.5}, {"more": 1}):
        checkpoint.write(path, tensors, {**config, "unknown": wrong})
        with pytest.raises(checkpoint.CheckpointError, match=r"model: unknown"):
            CharLM.load(path)


def test_a_model_reads_and_writes_what_it_does_not_know() -> None:
    vocabulary = Vocabulary.from_text("aabb\n", 2)
    model = CharLM(vocabulary, hidden_size=4, num_layers=1)
    assert model.evaluate("abcd") == model.evaluate("abxy")
    text = model.sample(9, prime="ab!", seed=1)
    assert text.startswith("ab\N{REPLACEMENT CHARACTER}")
    assert text == model.sample(9, prime="ab?", seed=1)
    # without a newline of its own it begins with the first symbol, not with the unknown one
    assert model.sample(9, seed=1) == model.sample(9, prime="a", seed=1)[1:]


def test_empty_texts() -> None:
    with pytest.raises(ValueError, match="text must have 1 character or more, got none"):
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
    with pytest.raises(ValueError, match=r"an unknown symbol takes .* U\+FFFD in symbols"):
        Vocabulary([97, 98], unknown=Unknown(1, 0.5))
    with pytest.raises(ValueError, match=r"unknown\.share must be finite, at least 0, at most 1"):
        Vocabulary([97, 0xFFFD], unknown=Unknown(1, 1.5))
    with pytest.raises(ValueError, match="an unknown symbol takes the kind 'characters'"):
        Vocabulary(range(256), "bytes", Unknown(1, 0.5))
    with pytest.raises(ValueError, match="kind must be one of characters, bytes, got 'words'"):
        Vocabulary([1, 2], "words")  # type: ignore[arg-type]

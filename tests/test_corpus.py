"""Corpus: files to ids, the split, and the chunks that training reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from charrnn_fast import CharLM, Corpus, Trainer, Vocabulary
from charrnn_fast.storage import input_files
from charrnn_fast.storage.file_array import FileArray
from charrnn_fast.text import files as text_files
from charrnn_fast.text.chunks import Chunks


@pytest.fixture(params=[1, 2, 3, 5, 1 << 22])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes read at a time, so that blocks end within characters."""
    size: int = request.param
    monkeypatch.setattr(text_files, "BLOCK", size)
    return size


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_split_is_contiguous_nine_to_one() -> None:
    corpus = Corpus(np.zeros(1_115_394, np.uint8), Vocabulary.from_text("ab"))
    assert (len(corpus.train), len(corpus.validation)) == (1_003_854, 111_540)
    corpus = Corpus.from_text("abcdefghijklmnopqrst")
    assert corpus.vocabulary.decode(corpus.train) == "abcdefghijklmnopqr"
    assert corpus.vocabulary.decode(corpus.validation) == "st"
    train = np.asarray(corpus.train)
    assert np.shares_memory(train, corpus.ids)
    assert not train.flags.writeable


def test_parts_of_files_are_those_of_the_text(tmp_path: Path) -> None:
    text = "abcdefghijklmnopqrst"
    corpus = Corpus.from_files(write(tmp_path / "text", text))
    assert corpus.vocabulary.decode(corpus.train) == text[:18]
    assert corpus.vocabulary.decode(corpus.validation) == text[18:]
    assert corpus.vocabulary.decode(corpus.validation[1:2]) == "t"
    assert not corpus.train[:5].flags.writeable


@pytest.mark.usefixtures("block")
def test_files_are_read_one_after_another(tmp_path: Path) -> None:
    texts = ["Größe\r\n", "", "漢字 and 😀\n"]
    paths = [write(tmp_path / f"{i}.txt", text) for i, text in enumerate(texts)]
    corpus = Corpus.from_files(*paths)
    whole = "".join(texts)
    assert corpus.vocabulary == Vocabulary.from_text(whole)
    assert corpus.vocabulary.decode(corpus.ids) == whole
    assert len(corpus) == len(whole)
    again = Corpus.from_files(*map(str, paths), vocabulary=corpus.vocabulary)
    np.testing.assert_array_equal(again.ids, corpus.ids)
    assert again.fingerprint == corpus.fingerprint == Corpus.from_text(whole).fingerprint


@pytest.mark.parametrize("size", [200, 300, 70_000])
def test_ids_widen_and_are_sorted_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Characters turn up in no order, new ones in every block."""
    monkeypatch.setattr(text_files, "BLOCK", 501)
    characters = [chr(i) for i in range(0x20000) if not 0xD800 <= i < 0xE000][:size]
    rng = np.random.default_rng(size)
    text = "".join(rng.permutation(characters)) + "".join(rng.choice(characters, 3 * size))
    corpus = Corpus.from_files(write(tmp_path / "text", text))
    expected = Corpus.from_text(text)
    assert corpus.vocabulary == expected.vocabulary
    assert corpus.ids.dtype == expected.ids.dtype
    np.testing.assert_array_equal(corpus.ids, expected.ids)


@pytest.mark.usefixtures("block")
def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path / str(i), "some text") for i in range(2)]
    opened = []

    def record(path: str) -> Any:
        opened.append(path)
        return input_files.opened(path)

    monkeypatch.setattr(text_files, "opened", record)
    Corpus.from_files(*paths)
    assert opened == [str(path) for path in paths]


@pytest.mark.parametrize(("size", "dtype"), [(2, "u1"), (256, "u1"), (257, "u2"), (65537, "u4")])
def test_ids_are_of_the_smallest_type(tmp_path: Path, size: int, dtype: str) -> None:
    characters = (chr(i) for i in range(0x20000) if not 0xD800 <= i < 0xE000)
    text = "".join(islice(characters, size))
    corpus = Corpus.from_files(write(tmp_path / "text", text))
    assert len(corpus.vocabulary) == size
    assert corpus.ids.dtype == dtype
    assert Corpus.from_text(text).ids.dtype == dtype
    np.testing.assert_array_equal(corpus.ids, np.arange(size))


def test_the_temporary_file_goes_with_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "text", "some text")
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spool))
    corpus = Corpus.from_files(path)
    assert corpus.vocabulary.decode(corpus.ids) == "some text"
    del corpus
    assert list(spool.iterdir()) == []


def test_one_file_of_bytes_is_read_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 3  # no UTF-8
    path = write(tmp_path / "data", data)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    corpus = Corpus.from_files(path, vocabulary=Vocabulary.from_bytes())
    assert corpus.ids[:].tobytes() == data
    assert corpus.ids.dtype == np.uint8


def test_several_files_of_bytes(tmp_path: Path) -> None:
    paths = [write(tmp_path / str(i), bytes([255, i])) for i in range(3)]
    corpus = Corpus.from_files(*paths, vocabulary=Vocabulary.from_bytes())
    assert corpus.ids[:].tolist() == [255, 0, 255, 1, 255, 2]


@pytest.mark.usefixtures("block")
def test_an_unknown_character_is_named_with_file_and_position(tmp_path: Path) -> None:
    paths = [write(tmp_path / "first", "aab"), write(tmp_path / "second", "abaßb")]
    with pytest.raises(ValueError, match=r"second has the character 'ß' \(U\+00DF\) at position 3"):
        Corpus.from_files(*paths, vocabulary=Vocabulary.from_text("ab"))


def test_empty_texts_are_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, "") for name in ("first", "second")]
    with pytest.raises(ValueError, match=r"text is empty: .*first, .*second"):
        Corpus.from_files(*paths)
    with pytest.raises(ValueError, match=r"text is empty: .*first"):
        Corpus.from_files(paths[0], vocabulary=Vocabulary.from_bytes())
    for vocabulary in (None, Vocabulary.from_text("ab"), Vocabulary.from_bytes()):
        with pytest.raises(ValueError, match="text must have 1 character or more, got none"):
            Corpus.from_text("", vocabulary)


def test_a_vocabulary_of_another_type_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "text", "abc")
    for wrong in ("ab", ["a", "b"]):
        message = f"vocabulary must be a Vocabulary or None, got {type(wrong).__name__}"
        with pytest.raises(TypeError, match=message):
            Corpus.from_text("abc", wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=message):
            Corpus.from_files(path, vocabulary=wrong)  # type: ignore[arg-type]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="at least one path"):
        Corpus.from_files()
    with pytest.raises(FileNotFoundError):
        Corpus.from_files(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"holds no files \(hidden ones are left out\)"):
        Corpus.from_files(tmp_path)


def test_a_byte_order_mark_alone_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "mark", b"\xef\xbb\xbf")
    for vocabulary in (None, Vocabulary.from_text("ab")):
        with pytest.raises(ValueError, match="text is empty"):
            Corpus.from_files(path, vocabulary=vocabulary)


def test_a_text_stays_as_it_is(tmp_path: Path) -> None:
    """Line ends, and characters of several code points: nothing is translated or composed."""
    text = "one\r\ntwo\rthree\n\N{FAMILY}\u200d\N{GIRL}e\u0301\N{DESERET CAPITAL LETTER EW}\0"
    corpus = Corpus.from_files(write(tmp_path / "text", text))
    assert len(corpus) == len(text)
    assert corpus.vocabulary.decode(corpus.ids) == text


def test_folders_and_patterns_are_files(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.txt", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, name)
    corpus = Corpus.from_files(tmp_path, f"{tmp_path}/b/*2*")
    assert corpus.vocabulary.decode(corpus.ids) == "a.txtb/1.txtb/2.txtb/2.txt"


def test_a_changed_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "data", b"0123456789" * 10)
    corpus = Corpus.from_files(path, vocabulary=Vocabulary.from_bytes())
    assert corpus.train[5:8].tobytes() == b"567"
    os.truncate(path, 20)
    for part, place in ((corpus.train, 5), (corpus.train, 50), (corpus.validation, 5)):
        with pytest.raises(
            OSError, match=r"data has changed since it was opened \(100 bytes then, 20 now\); "
        ):
            part[place : place + 3]


def test_training_reads_a_file_in_small_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No slice grows with the text: the validation part of 10 GB would be 1 GB."""
    sizes = []
    read = FileArray.__getitem__

    def record(array: FileArray, index: slice) -> Any:
        piece = read(array, index)
        sizes.append(len(piece))
        return piece

    text = "the quick brown fox " * 5000
    corpus = Corpus.from_files(write(tmp_path / "text", text), vocabulary=Vocabulary.from_bytes())
    monkeypatch.setattr(FileArray, "__getitem__", record)
    model = CharLM(corpus.vocabulary, hidden_size=2, num_layers=1)
    for length in (None, 5000):
        trainer = Trainer(model, corpus, batch_size=4, seq_len=8, evaluate_length=length)
        trainer.fit(steps=1, progress=False)
        assert trainer.history[-1].validation_loss == model.evaluate(text[90_000:][:length])
    assert max(sizes) < 2000


def test_chinese_trains_and_is_written(tmp_path: Path) -> None:
    """20,992 distinct characters, as a text's vocabulary."""
    characters = "".join(map(chr, range(0x4E00, 0xA000)))
    rng = np.random.default_rng(1)
    text = "".join(rng.permutation(list(characters * 2)))
    corpus = Corpus.from_files(write(tmp_path / "text", text))
    assert len(corpus.vocabulary) == len(characters)
    assert corpus.ids.dtype == np.uint16
    model = CharLM(corpus.vocabulary, hidden_size=4, num_layers=1)
    trainer = Trainer(model, corpus, batch_size=8, seq_len=16, learning_rate=0.01)
    trainer.fit(steps=3, progress=False)
    assert trainer.history[-1].train_loss == pytest.approx(np.log(len(characters)), rel=0.05)
    drawn = model.sample(20, prime=text[:3], seed=1)
    assert drawn.startswith(text[:3])
    assert len(drawn) == 23
    assert set(drawn) <= set(characters)


# ---- rare characters ----


@pytest.mark.usefixtures("block")
@given(
    st.lists(st.text(st.sampled_from("aab漢\N{REPLACEMENT CHARACTER}😀"), max_size=9), min_size=1),
    st.integers(2, 4),
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rare_characters_of_files_are_those_of_the_text(
    tmp_path: Path, texts: list[str], min_count: int
) -> None:
    paths = [write(tmp_path / str(i), text) for i, text in enumerate(texts)]
    whole = "".join(texts)
    if max(map(whole.count, whole), default=0) < min_count:
        return
    corpus = Corpus.from_files(*paths, min_count=min_count)
    expected = Corpus.from_text(whole, min_count=min_count)
    assert corpus.vocabulary == expected.vocabulary == Vocabulary.from_text(whole, min_count)
    assert corpus.vocabulary.unknown == expected.vocabulary.unknown
    np.testing.assert_array_equal(corpus.ids, expected.ids)
    rare = {c for c in whole if whole.count(c) < min_count or c == "\N{REPLACEMENT CHARACTER}"}
    assert corpus.num_unknown() == sum(map(whole.count, rare))


@pytest.mark.parametrize(("rare", "before", "after"), [(300, "u2", "u1"), (70_000, "u4", "u2")])
def test_ids_become_narrower_without_rare_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rare: int, before: str, after: str
) -> None:
    monkeypatch.setattr(text_files, "BLOCK", 501)
    frequent = "".join(chr(0x30000 + i) for i in range(300 if after == "u2" else 9)) * 5
    text = "".join(chr(i) for i in range(0x20000) if not 0xD800 <= i < 0xE000)[:rare] + frequent
    path = write(tmp_path / "text", text)
    assert Corpus.from_files(path).ids.dtype == before
    corpus, expected = Corpus.from_files(path, min_count=5), Corpus.from_text(text, min_count=5)
    assert corpus.ids.dtype == expected.ids.dtype == after
    np.testing.assert_array_equal(corpus.ids, expected.ids)
    assert corpus.fingerprint == expected.fingerprint


def test_unseen_characters_are_unknown(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_text("aaabbc", min_count=2)
    corpus = Corpus.from_files(write(tmp_path / "text", "abcd"), vocabulary=vocabulary)
    assert vocabulary.decode(corpus.ids) == "ab" + 2 * "\N{REPLACEMENT CHARACTER}"
    assert corpus.num_unknown() == 2


def test_options_without_a_meaning_are_refused(tmp_path: Path) -> None:
    path, in_bytes = write(tmp_path / "text", "aab"), Vocabulary.from_bytes()
    with pytest.raises(ValueError, match=r"min_count must be 1 .* the 256 bytes, got 2"):
        Corpus.from_files(path, vocabulary=in_bytes, min_count=2)
    with pytest.raises(ValueError, match=r"min_count must be 1 .* 2 characters.*, got 2"):
        Corpus.from_text("aab", Vocabulary.from_text("ab"), min_count=2)
    with pytest.raises(ValueError, match=r"min_count must be >= 1, got 0"):
        Corpus.from_files(path, min_count=0)
    with pytest.raises(ValueError, match=r"min_count must be at most 2, .* 'a', got 3"):
        Corpus.from_files(path, min_count=3)
    with pytest.raises(ValueError, match="encoding must be 'utf-8' with the byte vocabulary"):
        Corpus.from_files(path, vocabulary=in_bytes, encoding="latin-1")
    with pytest.raises(ValueError, match=r"encoding must be one .*, got 'klingon'"):
        Corpus.from_files(tmp_path / "missing", encoding="klingon")
    with pytest.raises(TypeError, match="document_mark must be a str or None, got bytes"):
        Corpus.from_text("aab", document_mark=b"a")  # type: ignore[arg-type]


# ---- documents ----


def starts(text: str, mark: str, file_starts: Sequence[int] = ()) -> list[int]:
    """Where documents begin, by definition."""
    behind = {p for p in range(1, len(text)) if mark and text[:p].endswith(mark)}
    return sorted(behind | {p for p in file_starts if 0 < p < len(text)})


@pytest.mark.usefixtures("block")
@given(
    st.lists(st.text("ab\n漢", max_size=9), min_size=1, max_size=4),
    st.text("ab\n", max_size=3),
    st.sampled_from(["characters", "bytes"]),
    st.integers(0, 40),
    st.integers(0, 40),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_documents_begin_behind_marks_and_with_files(
    tmp_path: Path, texts: list[str], mark: str, kind: str, first: int, last: int
) -> None:
    whole = "".join(texts)
    if not whole or mark not in whole:
        return
    paths = [write(tmp_path / str(i), text) for i, text in enumerate(texts)]
    vocabulary = Vocabulary.from_bytes() if kind == "bytes" else None
    corpus = Corpus.from_files(*paths, vocabulary=vocabulary, document_mark=mark)
    if kind == "bytes":
        texts = [text.encode().decode("latin-1") for text in texts]
        whole = "".join(texts)
    expected = starts(whole, mark, np.cumsum([len(text) for text in texts]).tolist())
    found = corpus.starts_within(0, len(whole))
    assert found.dtype == np.int64
    assert found.tolist() == expected
    part = corpus.starts_within(first, last).tolist()
    assert part == [p for p in expected if first <= p < last]


def test_documents_of_a_text_in_memory() -> None:
    text = "one<|end|>two<|end|><|end|>three"
    corpus = Corpus.from_text(text, document_mark="<|end|>")
    assert corpus.starts_within(0, len(text)).tolist() == [10, 20, 27]
    assert corpus.vocabulary.decode(corpus.ids) == text
    assert Corpus.from_text(text).starts_within(0, len(text)).size == 0


def test_a_mark_is_in_the_vocabulary_however_rare() -> None:
    text = "aaaa§bbbb¶cccc"
    corpus = Corpus.from_text(text, min_count=3, document_mark="§")
    assert set(corpus.vocabulary.decode(range(len(corpus.vocabulary)))) == {*"abc§\ufffd"}
    assert corpus.starts_within(0, len(text)).tolist() == [5]
    with pytest.raises(ValueError, match="document_mark is '¶', of which the vocabulary maps a"):
        Corpus.from_text(text, corpus.vocabulary, document_mark="¶")


def test_a_mark_that_does_not_occur_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "text", "abcabd")
    for vocabulary in (None, Vocabulary.from_bytes()):
        with pytest.raises(ValueError, match="document_mark must occur in the text, got 'ac'"):
            Corpus.from_files(path, vocabulary=vocabulary, document_mark="ac")
        last = Corpus.from_files(path, vocabulary=vocabulary, document_mark="bd")
        assert last.starts_within(0, 6).size == 0  # nothing is behind it
    with pytest.raises(ValueError, match="document_mark has the character 'x'"):
        Corpus.from_files(path, document_mark="x")


def test_fingerprints_differ_where_texts_do() -> None:
    vocabulary = Vocabulary.from_text("ab")
    ids = np.zeros(300_000, np.uint8)
    prints = {Corpus(ids, vocabulary).fingerprint, Corpus(ids[:-1], vocabulary).fingerprint}
    for at in (0, 65_535, 65_536, 299_999):
        other = ids.copy()
        other[at] = 1
        prints.add(Corpus(other, vocabulary).fingerprint)
    assert len(prints) == 6


@given(st.integers(2, 300), st.integers(1, 9), st.integers(1, 9))
def test_chunks_walk_each_stream_without_a_gap(n: int, batch_size: int, seq_len: int) -> None:
    ids = np.arange(n, dtype=np.uint16)
    if n - 1 < batch_size * seq_len:
        with pytest.raises(ValueError, match="training part must have"):
            Chunks(ids, batch_size, seq_len, "character")
        return
    chunks = Chunks(ids, batch_size, seq_len, "character")
    pairs = [(x.copy(), y.copy()) for x, y in (chunks.read(i) for i in range(len(chunks)))]
    inputs = np.concatenate([x for x, _ in pairs])
    targets = np.concatenate([y for _, y in pairs])
    assert inputs.dtype == targets.dtype == np.int32
    piece = (n - 1) // batch_size
    assert len(chunks) == piece // seq_len
    steps = np.arange(len(chunks) * seq_len)
    expected = steps[:, None] + piece * np.arange(batch_size)
    np.testing.assert_array_equal(inputs, expected)
    np.testing.assert_array_equal(targets, expected + 1)


def test_an_offset_turns_the_text() -> None:
    """A chunk at an offset is that of the text turned by as much, its end before its beginning."""
    ids = np.arange(1000, dtype=np.uint16)
    chunks = Chunks(ids, 7, 5, "character")
    for offset in (1, 5, 137, 860, 998, 999):
        turned = Chunks(np.roll(ids, -offset), 7, 5, "character")
        for index in range(len(chunks)):
            for ours, theirs in zip(chunks.read(index, offset), turned.read(index), strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_chunks_are_read_where_they_are() -> None:
    chunks = Chunks(np.arange(1000, dtype=np.uint16), 7, 5, "character")
    x, y = chunks.read(0)
    assert x.flags.c_contiguous
    assert y.flags.c_contiguous
    for wrong in (-1, len(chunks)):
        with pytest.raises(IndexError):
            chunks.read(wrong)


def test_a_short_text_is_told_what_it_takes() -> None:
    with pytest.raises(
        ValueError, match=r"must have 46 bytes .*batch_size=9 .*seq_len=5, got 45; use"
    ):
        Chunks(np.zeros(45, np.uint8), 9, 5, "byte")
    assert len(Chunks(np.zeros(46, np.uint8), 9, 5, "byte")) == 1

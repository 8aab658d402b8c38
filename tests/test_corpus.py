"""Corpus: files to ids, the split, and the chunks that training reads."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import charrnn_fast.corpus
from charrnn_fast import Corpus, Vocabulary
from charrnn_fast.corpus import _Chunks


@pytest.fixture(params=[1, 2, 3, 5, 1 << 22])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes read at a time, so that blocks end within characters."""
    size: int = request.param
    monkeypatch.setattr(charrnn_fast.corpus, "_BLOCK", size)
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
    assert np.shares_memory(corpus.train, corpus._ids)
    assert not corpus.train.flags.writeable


@pytest.mark.usefixtures("block")
def test_files_are_read_one_after_another(tmp_path: Path) -> None:
    texts = ["Größe\r\n", "", "漢字 and 😀\n"]
    paths = [write(tmp_path / f"{i}.txt", text) for i, text in enumerate(texts)]
    corpus = Corpus.from_files(*paths)
    whole = "".join(texts)
    assert corpus.vocabulary == Vocabulary.from_text(whole)
    assert corpus.vocabulary.decode(corpus._ids) == whole
    assert len(corpus) == len(whole)
    again = Corpus.from_files(*map(str, paths), vocabulary=corpus.vocabulary)
    np.testing.assert_array_equal(again._ids, corpus._ids)
    assert again._fingerprint == corpus._fingerprint == Corpus.from_text(whole)._fingerprint


@pytest.mark.parametrize("size", [200, 300, 70_000])
def test_ids_widen_and_are_sorted_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Characters turn up in no order, new ones in every block."""
    monkeypatch.setattr(charrnn_fast.corpus, "_BLOCK", 501)
    characters = [chr(i) for i in range(0x20000) if not 0xD800 <= i < 0xE000][:size]
    rng = np.random.default_rng(size)
    text = "".join(rng.permutation(characters)) + "".join(rng.choice(characters, 3 * size))
    corpus = Corpus.from_files(write(tmp_path / "text", text))
    expected = Corpus.from_text(text)
    assert corpus.vocabulary == expected.vocabulary
    assert corpus._ids.dtype == expected._ids.dtype
    np.testing.assert_array_equal(corpus._ids, expected._ids)


@pytest.mark.usefixtures("block")
def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path / str(i), "some text") for i in range(2)]
    opened = []

    def record(path: Any, *arguments: Any) -> Any:
        opened.append(path)
        return open(path, *arguments)

    monkeypatch.setattr(charrnn_fast.corpus, "open", record, raising=False)
    Corpus.from_files(*paths)
    assert opened == [str(path) for path in paths]


@pytest.mark.parametrize(("size", "dtype"), [(2, "u1"), (256, "u1"), (257, "u2"), (65537, "u4")])
def test_ids_are_of_the_smallest_type(tmp_path: Path, size: int, dtype: str) -> None:
    characters = (chr(i) for i in range(0x20000) if not 0xD800 <= i < 0xE000)
    text = "".join(islice(characters, size))
    corpus = Corpus.from_files(write(tmp_path / "text", text))
    assert len(corpus.vocabulary) == size
    assert corpus._ids.dtype == dtype
    assert Corpus.from_text(text)._ids.dtype == dtype
    np.testing.assert_array_equal(corpus._ids, np.arange(size))


def test_the_temporary_file_goes_with_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "text", "some text")
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spool))
    corpus = Corpus.from_files(path)
    assert corpus.vocabulary.decode(corpus._ids) == "some text"
    del corpus
    assert list(spool.iterdir()) == []


def test_one_file_of_bytes_is_mapped_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 3  # no UTF-8
    path = write(tmp_path / "data", data)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    corpus = Corpus.from_files(path, vocabulary=Vocabulary.from_bytes())
    assert corpus._ids.tobytes() == data
    assert corpus._ids.dtype == np.uint8


def test_several_files_of_bytes(tmp_path: Path) -> None:
    paths = [write(tmp_path / str(i), bytes([255, i])) for i in range(3)]
    corpus = Corpus.from_files(*paths, vocabulary=Vocabulary.from_bytes())
    assert corpus._ids.tolist() == [255, 0, 255, 1, 255, 2]


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"abc\xff", 3),
        (b"\x80", 0),
        ("äöü".encode() + b"\xc3(", 6),
        ("äöü€".encode() + b"\xe2\x82", 9),  # cut off at the end
        (b"ok\xed\xa0\x80", 2),  # an encoded surrogate
    ],
)
def test_invalid_utf8_is_named_with_its_byte(tmp_path: Path, data: bytes, offset: int) -> None:
    good, bad = write(tmp_path / "good", "äöü"), write(tmp_path / "bad", data)
    with pytest.raises(ValueError, match=f"bad: invalid UTF-8 at byte {offset} "):
        Corpus.from_files(good, bad)


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
        with pytest.raises(ValueError, match="text is empty"):
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
    with pytest.raises(IsADirectoryError, match="a text file is needed"):
        Corpus.from_files(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="pipe is no regular file"):
            Corpus.from_files(tmp_path / "pipe")


def test_fingerprints_differ_where_texts_do() -> None:
    vocabulary = Vocabulary.from_text("ab")
    ids = np.zeros(300_000, np.uint8)
    prints = {Corpus(ids, vocabulary)._fingerprint, Corpus(ids[:-1], vocabulary)._fingerprint}
    for at in (0, 65_535, 65_536, 299_999):
        other = ids.copy()
        other[at] = 1
        prints.add(Corpus(other, vocabulary)._fingerprint)
    assert len(prints) == 6


@given(st.integers(2, 300), st.integers(1, 9), st.integers(1, 9))
def test_chunks_walk_each_stream_without_a_gap(n: int, batch_size: int, seq_len: int) -> None:
    ids = np.arange(n, dtype=np.uint16)
    if n - 1 < batch_size * seq_len:
        with pytest.raises(ValueError, match="too short"):
            _Chunks(ids, batch_size, seq_len, "character")
        return
    chunks = _Chunks(ids, batch_size, seq_len, "character")
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
    chunks = _Chunks(ids, 7, 5, "character")
    for offset in (1, 5, 137, 860, 998, 999):
        turned = _Chunks(np.roll(ids, -offset), 7, 5, "character")
        for index in range(len(chunks)):
            for ours, theirs in zip(chunks.read(index, offset), turned.read(index), strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_chunks_are_read_where_they_are() -> None:
    chunks = _Chunks(np.arange(1000, dtype=np.uint16), 7, 5, "character")
    x, y = chunks.read(0)
    assert x.flags.c_contiguous
    assert y.flags.c_contiguous
    for wrong in (-1, len(chunks)):
        with pytest.raises(IndexError):
            chunks.read(wrong)


def test_a_short_text_is_told_what_it_takes() -> None:
    with pytest.raises(ValueError, match=r"has 45 bytes, .*batch_size=9 .*seq_len=5 takes 46; use"):
        _Chunks(np.zeros(45, np.uint8), 9, 5, "byte")
    assert len(_Chunks(np.zeros(46, np.uint8), 9, 5, "byte")) == 1

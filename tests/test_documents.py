"""Documents: each starts from the zero state, in training and in evaluation; micro-batches."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import charrnn_fast as cf
from charrnn_fast import CharLM, Corpus, Trainer
from charrnn_fast.text.chunks import Chunks
from charrnn_fast.text.documents import cut
from tolerances import assert_close, network

WORDS = ["quick", "brown fox", "a", "jumps over the lazy dog", "and", "sleeps until the evening"]
TEXT = "".join(f"{WORDS[n * n % 6]} {WORDS[n % 5]}|" for n in range(80))


def corpus_of(tmp_path: Path, mark: str | None = "|") -> Corpus:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return Corpus.from_files(path, document_mark=mark)


def model_of(corpus: Corpus, cell: str = "lstm", **options: Any) -> CharLM:
    return CharLM(corpus.vocabulary, 8, 2, cell, seed=1, dtype="float64", **options)


def weights(model: CharLM) -> dict[str, NDArray[Any]]:
    return {name: np.array(w) for name, w in model.rnn.parameters().items()}


@given(st.integers(1, 12), st.integers(1, 4), st.lists(st.lists(st.integers(0, 11)), min_size=4))
def test_parts_hold_each_step_once(steps: int, batch: int, begins: list[list[int]]) -> None:
    inputs = np.arange(steps * batch, dtype=np.int32).reshape(steps, batch)
    starts = np.zeros((steps, batch), np.bool_)
    for stream, steps_in in enumerate(begins[:batch]):
        starts[[t for t in steps_in if t < steps], stream] = True
    parts = cut(inputs, inputs + 1000, starts)
    found = []
    for row, length in enumerate(parts.lengths):
        assert 1 <= length <= len(parts.inputs)
        assert (parts.targets[length:, row] == -1).all()
        np.testing.assert_array_equal(
            parts.targets[:length, row], parts.inputs[:length, row] + 1000
        )
        found += parts.inputs[:length, row].tolist()
    assert sorted(found) == list(range(steps * batch))
    assert len(parts.lengths) == batch + starts[1:].sum()
    for stream, last in enumerate(parts.last):
        assert parts.inputs[0, stream] == inputs[0, stream]
        assert (stream in parts.carried) == (not starts[0, stream])
        assert parts.inputs[parts.lengths[last] - 1, last] == inputs[-1, stream]


@pytest.mark.parametrize("offset", [0, 7, 900, 1500])
def test_chunks_know_where_documents_begin(tmp_path: Path, offset: int) -> None:
    corpus = corpus_of(tmp_path)
    train = corpus.vocabulary.decode(np.asarray(corpus.train))
    ring = np.roll(np.arange(len(train)), -offset)
    chunks, documents = Chunks(corpus.train, 5, 17, "character"), corpus.documents
    assert documents is not None
    for index in range(len(chunks)):
        inputs, targets, begins = chunks.read_documents(index, documents, offset)
        for read, plain in zip((inputs, targets), chunks.read(index, offset), strict=True):
            np.testing.assert_array_equal(read, plain)
        for stream in range(5):
            first = stream * ((len(train) - 1) // 5) + index * 17
            places = ring[first : first + 17]
            expected = [place == 0 or train[place - 1] == "|" for place in places]
            assert begins[:, stream].tolist() == expected


@pytest.mark.parametrize("mark", ["|", "a|", "aaa", ""])
@pytest.mark.parametrize("offset", [0, 1, 2, 100, 177])
def test_chunks_know_marks_of_any_length_and_files(tmp_path: Path, mark: str, offset: int) -> None:
    """As the whole text is searched, wherever a stream and the text begin and end."""
    texts = ["aaaa|a|b", "aa", "|aab|" * 20, "baaa" * 22 + "|"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}").write_text(text)
    paths = [tmp_path / f"{number}" for number in range(len(texts))]
    corpus = Corpus.from_files(*paths, document_mark=mark)
    in_memory = Corpus.from_text("".join(texts), document_mark=mark)
    size = len(corpus.train)
    expected = np.zeros(size, np.bool_)
    expected[np.append(corpus.starts_within(0, size), 0)] = True
    assert expected.sum() > 3
    for documents, ids in ((corpus.documents, corpus.train), (corpus.documents, in_memory.train)):
        assert documents is not None
        chunks = Chunks(ids, 8, 3, "character")
        for index in range(len(chunks)):
            inputs, _, begins = chunks.read_documents(index, documents, offset)
            np.testing.assert_array_equal(inputs, chunks.read(index, offset)[0])
            places = np.arange(8) * ((size - 1) // 8) + 3 * index + offset
            places = (places + np.arange(3)[:, None]) % size
            np.testing.assert_array_equal(begins, expected[places])


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_training_starts_each_document_at_zero(tmp_path: Path, cell: str) -> None:
    """As documents by themselves: forward and backward of each part, by hand."""
    corpus = corpus_of(tmp_path)
    model, by_hand = model_of(corpus, cell), model_of(corpus, cell)
    trainer = Trainer(model, corpus, 4, 30, "sgd", 0.5, clip_norm=None)
    optimizer = cf.optim.SGD(by_hand.rnn, lr=0.5)
    ids = np.asarray(corpus.train).astype(np.int32)
    piece = (len(ids) - 1) // 4
    states: list[Any] = [None] * 4
    for update in range(3):
        sums: dict[str, NDArray[Any]] = {}
        for stream in range(4):
            start = stream * piece + update * 30
            steps = ids[start : start + 31]
            begins = corpus.starts_within(start, start + 30) - start
            for first, end in pairwise([0, *(t for t in begins if t > 0), 30]):
                if first in begins:
                    states[stream] = None
                y, states[stream] = by_hand.rnn.forward(steps[first:end, None], states[stream])
                _, dy = cf.cross_entropy(y, steps[first + 1 : end + 1, None], "sum")
                _, _, grads = by_hand.rnn.backward(dy / 120)
                for name, gradient in grads.items():
                    sums[name] = sums.get(name, 0) + gradient
        optimizer.step(sums)
        trainer.fit(steps=1, progress=False)
        for name, w in weights(by_hand).items():
            assert_close(
                name, model.rnn.parameters()[name], w, network("float64", terms=120, steps=90)
            )


def test_an_evaluation_starts_each_document_at_zero(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    model = model_of(corpus)
    trainer = Trainer(model, corpus, 4, 30)
    trainer.fit(steps=3, progress=False)
    text = corpus.vocabulary.decode(np.asarray(corpus.validation))
    split, total = len(corpus.train), 0.0
    cuts = [0, *(int(p) - split for p in corpus.starts_within(split, len(corpus)) if p > split)]
    for first, end in pairwise([*cuts, len(text)]):
        part = text[first : end + 1]
        if len(part) > 1:
            total += model.evaluate(part) * (len(part) - 1)
    assert trainer.history[-1].validation_loss == pytest.approx(total / (len(text) - 1), rel=1e-12)
    assert trainer.history[-1].validation_loss != model.evaluate(text)


def test_without_a_mark_there_are_no_documents(tmp_path: Path) -> None:
    marked, plain = corpus_of(tmp_path), corpus_of(tmp_path, None)
    trained = []
    for corpus in (marked, plain, Corpus.from_text(TEXT)):
        model = model_of(corpus)
        Trainer(model, corpus, 4, 30).fit(steps=3, progress=False)
        trained.append(weights(model)["decoder.weight"])
    assert not np.array_equal(trained[0], trained[1])
    np.testing.assert_array_equal(trained[1], trained[2])


def test_a_training_on_documents_is_resumed_exactly(tmp_path: Path) -> None:
    corpus, path = corpus_of(tmp_path), tmp_path / "model"
    options: dict[str, Any] = {"random_offset": True, "micro_batches": 3}
    straight = model_of(corpus, dropout=0.2)
    Trainer(straight, corpus, 7, 20, **options).fit(steps=21, progress=False)
    Trainer(model_of(corpus, dropout=0.2), corpus, 7, 20, checkpoint_path=path, **options).fit(
        steps=8, progress=False
    )
    resumed = Trainer.resume(path, corpus)
    resumed.fit(steps=13, progress=False)
    for name, w in weights(straight).items():
        np.testing.assert_array_equal(resumed.model.rnn.parameters()[name], w)


@pytest.mark.parametrize("mark", ["|", None])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_batch_in_parts_is_the_batch(tmp_path: Path, cell: str, mark: str | None) -> None:
    corpus = corpus_of(tmp_path, mark)
    whole, parts = model_of(corpus, cell, dropout=0.1), model_of(corpus, cell, dropout=0.1)
    losses = []
    for model, number in ((whole, 1), (parts, 3)):
        trainer = Trainer(model, corpus, 7, 20, "sgd", 0.5, 0.5, micro_batches=number)
        trainer.fit(steps=5, progress=False)
        losses.append(trainer.history[-1].train_loss)
    if mark is None:  # with documents the rows of a part, and with them its masks, are others
        assert losses[1] == pytest.approx(losses[0], rel=1e-12)
        for name, w in weights(whole).items():
            assert_close(
                name, parts.rnn.parameters()[name], w, network("float64", terms=140, steps=100)
            )
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_text_that_begins_again_begins_a_document() -> None:
    """Wherever in a chunk its first character is read behind its last one."""
    corpus = Corpus.from_text("ab|cdefg" * 40, document_mark="|")
    size = len(corpus.train)
    chunks, documents = Chunks(corpus.train, 1, 8, "character"), corpus.documents
    assert documents is not None
    for ahead in range(1, 25):  # characters to the text's end
        read = [chunks.read_documents(i, documents, size - ahead) for i in range(4)]
        found = np.concatenate([begins[:, 0] for _, _, begins in read])
        positions = [(size - ahead + t) % size for t in range(32)]
        assert found.tolist() == [p == 0 or p % 8 == 3 for p in positions]


def test_a_training_knows_its_documents(tmp_path: Path) -> None:
    text, path = "one|two|three|" * 60, tmp_path / "model"
    marked = Corpus.from_text(text, document_mark="|")
    trainer = Trainer(CharLM(marked.vocabulary, 8, 1), marked, 4, 10)
    trainer.fit(steps=2, progress=False)
    trainer.save(path)
    assert Trainer.resume(path, Corpus.from_text(text, document_mark="|")).num_steps == 2
    with pytest.raises(
        ValueError, match=r"document_mark must be .* with which .*model .*, got None"
    ):
        Trainer.resume(path, Corpus.from_text(text))
    halves = [tmp_path / "first", tmp_path / "second"]
    halves[0].write_text(text[:420])
    halves[1].write_text(text[420:])
    assert text[419] == "|"  # where documents are the same, but not by the mark alone
    with pytest.raises(ValueError, match="its files begin at other places"):
        Trainer.resume(path, Corpus.from_files(*halves, document_mark="|"))

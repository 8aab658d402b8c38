"""Dynamic evaluation against the NumPy reference, and its promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from charrnn_fast import CharLM, Corpus, Dynamic, Vocabulary, reference
from charrnn_fast.language.dynamic import Squares
from marks import slow_but
from tolerances import assert_close, assert_same_bits

TEXT = "the quick brown fox jumps over the lazy dog\n" * 3 + "a dog and a fox\n" * 6
OTHER = "over and over the brown dog jumps\n" * 4


def make(cell: str = "lstm", dtype: str = "float64", **options: Any) -> CharLM:
    return CharLM(Vocabulary.from_text(TEXT), 7, 2, cell, seed=3, dtype=dtype, **options)


@pytest.mark.parametrize("statistics", [None, OTHER])
@pytest.mark.parametrize("segment", [1, 7, 1000])
@pytest.mark.parametrize("cell", slow_but(["lstm"], ["rnn", "gru", "lstm"]))
def test_as_the_reference(cell: str, segment: int, statistics: str | None) -> None:
    """In double: after a hundred updates differences of rounding are still small."""
    model = make(cell)
    parameters = {name: np.array(p) for name, p in model.rnn.parameters().items()}
    ids, squares = model.vocabulary.encode(TEXT), None
    # A decay that RMS_norm takes to its bound of 1 for some weights.
    rates = (0.3, 0.02) if statistics is None else (1e-3, 0.4)
    if statistics is not None:
        given = model.vocabulary.encode(statistics)
        squares = reference.mean_squares(parameters, given, segment, cell=cell)
        ours = Squares(model.rnn, given, segment)
        for name, square in squares.items():
            assert_close(name, ours.means[name], square, 1e-12 * square.max())
        roots = np.concatenate([np.sqrt(s).ravel() for s in squares.values()])
        assert (rates[1] * roots / roots.mean()).max() > 1
    dynamic = Dynamic(*rates, segment=segment, statistics=statistics)
    loss, adapted = reference.dynamic_evaluation(
        parameters, ids, *rates, segment, squares, cell=cell
    )
    assert model.evaluate(TEXT, dynamic=dynamic) == pytest.approx(loss, rel=1e-9)
    there = model.adapted(TEXT, dynamic).rnn.parameters()
    for name, p in adapted.items():
        assert_close(name, there[name], p, 1e-8)
        assert_same_bits(name, model.rnn.parameters()[name], parameters[name])
    if segment < 1000:
        assert loss < model.evaluate(TEXT), "a text that repeats is learned"


def test_a_rate_of_nothing_is_evaluation() -> None:
    model = make(dtype="float32")
    for decay in (0.0, 0.5):
        dynamic = Dynamic(0.0, decay)
        assert model.evaluate(TEXT, dynamic=dynamic) == pytest.approx(
            model.evaluate(TEXT), rel=1e-6
        )
        for name, p in model.adapted(TEXT, dynamic).rnn.parameters().items():
            assert_same_bits(name, p, model.rnn.parameters()[name])


def test_a_decay_of_one_forgets_after_each_segment() -> None:
    """The weights behind a segment are those of one step from the trained ones."""
    model = make()
    adapted = model.adapted(TEXT, Dynamic(0.2, 1.0, segment=len(TEXT) // 2))
    second = len(TEXT) // 2 * 2  # where the last whole segment ends
    ids = model.vocabulary.encode(TEXT)
    parameters = {name: np.array(p) for name, p in model.rnn.parameters().items()}
    _, expected = reference.dynamic_evaluation(
        parameters, ids, 0.2, 1.0, len(TEXT) // 2, cell="lstm"
    )
    assert second <= len(TEXT)
    for name, p in adapted.rnn.parameters().items():
        assert_close(name, p, expected[name], 1e-10)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_the_same_bits_again_and_on_any_number_of_threads(compute_dtype: str) -> None:
    model = CharLM(Vocabulary.from_text(TEXT), 96, 2, seed=1, compute_dtype=compute_dtype)
    dynamic = Dynamic(1e-3, 0.05, statistics=OTHER)
    found, weights, threads = set(), [], cf.get_num_threads()
    try:
        for count in (1, 2, 3, 2):
            cf.set_num_threads(count)
            found.add(model.evaluate(TEXT, dynamic=dynamic))
            weights.append(model.adapted(TEXT, dynamic).rnn.parameters())
    finally:
        cf.set_num_threads(threads)
    assert len(found) == 1
    for name, p in weights[0].items():
        for other in weights[1:]:
            assert_same_bits(name, p, other[name])


def test_documents_begin_with_the_zero_state_and_keep_the_weights() -> None:
    model, mark = make(), "\n"
    text = "the fox\na lazy dog jumps over\nand\n\nover the dog\n"
    corpus = Corpus(model.vocabulary.encode(text), model.vocabulary, document_mark=mark)
    dynamic = Dynamic(0.1, 0.01, segment=6)
    _, adapting = model.adapting(dynamic, None)
    parts = list(adapting.losses(corpus.ids, None, corpus.starts_within))
    assert sum(count for count, _ in parts) == len(text) - 1
    # By hand: each document and the character behind it, in segments, from a state of zero.
    parameters = {name: np.array(p) for name, p in model.rnn.parameters().items()}
    expected, start = [], 0
    starts = [i + 1 for i, c in enumerate(text) if c == mark and i + 1 < len(text)] + [
        len(text) - 1
    ]
    for end in starts:
        state: Any = None
        for begin in range(start, end, 6):
            ids = model.vocabulary.encode(text[begin : min(begin + 6, end) + 1])
            y, state, cache = reference.forward(parameters, ids[:-1, None], state, cell="lstm")
            loss, dy = reference.cross_entropy(y, ids[1:, None])
            expected.append((len(ids) - 1, loss * (len(ids) - 1)))
            for name, g in reference.backward(parameters, cache, dy)[2].items():
                trained = np.asarray(model.rnn.parameters()[name])
                parameters[name] += 0.01 * (trained - parameters[name]) - 0.1 * g
        start = end
    assert [count for count, _ in parts] == [count for count, _ in expected]
    np.testing.assert_allclose([n for _, n in parts], [n for _, n in expected], rtol=1e-9)


def test_an_adapted_model_samples() -> None:
    model = make(dtype="float32")
    adapted = model.adapted(TEXT, Dynamic(1.0))
    assert adapted.sample(40, TEXT, seed=1) != model.sample(40, TEXT, seed=1)
    assert adapted.evaluate(TEXT) < model.evaluate(TEXT)


def test_what_diverges_says_so() -> None:
    model = make(dtype="float32")
    with pytest.raises(FloatingPointError, match=r"diverged at position \d+: .* learning rate"):
        model.evaluate(TEXT, dynamic=Dynamic(3e38))


def test_bad_arguments(tmp_path: Any) -> None:
    model = make(dtype="float32")
    for given, message in (
        ({"learning_rate": -1.0}, "learning_rate must be finite, at least 0, got -1"),
        ({"learning_rate": 1.0, "decay": 1.5}, "decay must be finite, at least 0, at most 1"),
        ({"learning_rate": 1.0, "segment": 0}, "segment must be >= 1, got 0"),
        ({"learning_rate": 1.0, "eps": 0.0}, "eps must be finite, above 0, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Dynamic(**given)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="statistics must be a str, got int"):
        Dynamic(1.0, statistics=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"dynamic must be a charrnn_fast\.Dynamic, got"):
        model.evaluate(TEXT, dynamic=(1.0, 0.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give weight_dtype or dynamic, not both"):
        model.evaluate(TEXT, weight_dtype="bfloat16", dynamic=Dynamic(1.0))
    with pytest.raises(ValueError, match="statistics must have 2 symbols or more, got 1"):
        model.evaluate(TEXT, dynamic=Dynamic(1.0, statistics="a"))
    with pytest.raises(ValueError, match="text must have 2 characters or more, got 1"):
        model.evaluate("a", dynamic=Dynamic(1.0))
    model.save(tmp_path / "small.safetensors", weight_dtype="bfloat16")
    small = CharLM.load(tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match="dynamic takes a model with all of its weights"):
        small.evaluate(TEXT, dynamic=Dynamic(1.0))

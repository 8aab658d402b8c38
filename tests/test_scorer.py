"""Scores: the log-probability of a text, whatever else is in the batch."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from charrnn_fast import CharLM, Vocabulary
from tolerances import assert_same_bits, eps, losses

TEXT = "the quick brown fox jumps over the lazy dog\n"
CELLS = ("rnn", "gru", "lstm")
TEXTS = ["the fox", "", "a", "lazy\n", TEXT * 3, "\n", "dog", "the fox", TEXT[:-1]]


def make(cell: str = "lstm", dtype: str = "float32", **options: Any) -> CharLM:
    """A model with weights far from zero, so that its probabilities differ."""
    model = CharLM(Vocabulary.from_text(TEXT), 12, 2, cell, seed=3, dtype=dtype, **options)
    rng = np.random.default_rng(5)
    model.rnn.load_parameters(
        {
            name: rng.normal(size=weights.shape).astype(dtype)
            for name, weights in model.rnn.parameters().items()
        }
    )
    return model


def loss(model: CharLM, text: str) -> float:
    """Nats of a text behind a newline, by the network's forward and the cross-entropy."""
    ids = model.vocabulary.encode("\n" + text)
    logits, _ = model.rnn.forward(ids[:-1, None])
    return cf.cross_entropy(logits[:, 0].copy(), ids[1:], "sum")[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_score_is_minus_the_cross_entropy_behind_a_newline(cell: str, dtype: str) -> None:
    model = make(cell, dtype)
    scores = model.score(TEXTS)
    assert_same_bits("scores", scores, 0 - np.array([loss(model, text) for text in TEXTS]))
    assert scores[1] == 0
    for text, score in zip(TEXTS, scores, strict=True):
        if text:
            tolerance = losses(dtype, classes=28, rows=len(text), largest=30)
            mean = model.evaluate("\n" + text)
            assert mean == pytest.approx(-score / len(text), rel=tolerance)


@pytest.mark.parametrize("cell", CELLS)
def test_a_score_is_the_same_bits_alone_and_in_company(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(cell)
    for steps, streams, elements in ((1024, 256, 2**24), (7, 3, 2**24), (7, 256, 1000)):
        monkeypatch.setattr("charrnn_fast.language.scorer._STEPS", steps)
        monkeypatch.setattr("charrnn_fast.language.scorer._STREAMS", streams)
        monkeypatch.setattr("charrnn_fast.language.scorer._ELEMENTS", elements)
        alone = np.concatenate([model.score([text]) for text in TEXTS])
        assert_same_bits("together", model.score(TEXTS), alone)
        assert_same_bits("reversed", model.score(TEXTS[::-1]), alone[::-1])
        assert_same_bits("of many", model.score(TEXTS * 40), np.tile(alone, 40))


@pytest.mark.parametrize("options", [{}, {"proj_size": 5}, {"layer_norm": True, "zoneout": 0.1}])
def test_the_state_is_carried_through_a_long_text(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(dtype="float64", **options)
    expected = model.score(TEXTS)
    monkeypatch.setattr("charrnn_fast.language.scorer._STEPS", 5)
    np.testing.assert_allclose(model.score(TEXTS), expected, rtol=100 * eps("float64"))


@pytest.mark.parametrize("cell", CELLS)
def test_probabilities_add_up_to_one(cell: str) -> None:
    model = CharLM(Vocabulary.from_text("ab\n"), 9, cell=cell, dtype="float64", seed=1)
    texts = ["".join(text) for text in product("ab\n", repeat=4)]
    assert math.fsum(np.exp(model.score(texts))) == pytest.approx(1, abs=100 * eps("float64"))
    # Lines of up to three characters, and what every longer one begins with.
    lines = ["".join(text) for n in range(4) for text in product("ab", repeat=n)]
    wholes = math.fsum(np.exp(model.score([line + "\n" for line in lines])))
    longer = math.fsum(np.exp(model.score(["".join(text) for text in product("ab", repeat=4)])))
    assert wholes + longer == pytest.approx(1, abs=100 * eps("float64"))


def test_a_score_tells_how_often_a_text_is_drawn() -> None:
    model = CharLM(Vocabulary.from_text("ab\n"), 4, 1, seed=1)
    drawn = model.sample(2, seeds=range(4000))
    texts = sorted(set(drawn))
    assert len(texts) == 9
    shares = [drawn.count(text) / 4000 for text in texts]
    deviation = 0.5 / 4000**0.5  # of a share, at most
    np.testing.assert_allclose(np.exp(model.score(texts)), shares, atol=4 * deviation)


def test_without_a_newline_the_first_symbol_is_read() -> None:
    model = CharLM(Vocabulary.from_text("helo"), 5, seed=1)
    assert model.score(["hello"])[0] == pytest.approx(-5 * model.evaluate("ehello"), rel=1e-6)


def test_bytes_are_scored_as_bytes() -> None:
    model = CharLM(Vocabulary.from_bytes(), 5, seed=1)
    (score,) = model.score(["éa"])
    assert score == pytest.approx(-3 * model.evaluate("\néa"), rel=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_weights_are_read_as_asked(dtype: str) -> None:
    model = make()
    scores = model.score(TEXTS, weight_dtype=dtype)
    assert_same_bits("scores", scores, model.read_as(dtype).score(TEXTS))
    assert scores[0] != model.score(TEXTS)[0]


def test_scores_of_nothing_and_of_what_is_no_text() -> None:
    model = make()
    assert_same_bits("no texts", model.score([]), np.empty(0))
    assert model.score(text for text in ("a", "b")).shape == (2,)
    for texts, got in (("abc", "str"), (b"abc", "bytes"), (3, "int")):
        with pytest.raises(TypeError, match=f"texts must be a sequence of strings, got {got}"):
            model.score(texts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"texts\[1\] has the character 'Q' .* at position 2"):
        model.score(["ab", "abQ"])
    with pytest.raises(TypeError, match=r"texts\[0\] must be a str, got int"):
        model.score([1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"weight_dtype of a float32 model must be .*got 'int4'"):
        model.score(["a"], weight_dtype="int4")

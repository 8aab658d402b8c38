"""Sampling: text depends on the weights, the arguments and its seed alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from charrnn_fast import CharLM, Vocabulary
from charrnn_fast.sampler import rounded_to_bfloat16

TEXT = "the quick brown fox jumps over the lazy dog\n"
CELLS = ("rnn", "gru", "lstm")


@pytest.fixture(params=CELLS)
def model(request: pytest.FixtureRequest) -> CharLM:
    return make(request.param)


def make(cell: str = "lstm", vocabulary: Vocabulary | None = None) -> CharLM:
    """A model with weights far from zero, so that its states and choices differ."""
    model = CharLM(vocabulary or Vocabulary.from_text(TEXT), 12, 2, cell, seed=3)
    rng = np.random.default_rng(5)
    model.rnn.load_parameters(
        {
            name: rng.normal(size=weights.shape).astype(np.float32)
            for name, weights in model.rnn.parameters().items()
        }
    )
    return model


def test_the_text_is_the_prime_and_its_continuation(model: CharLM) -> None:
    text = model.sample(40, prime="the ", seed=1)
    assert text.startswith("the ")
    assert len(text) == 44
    assert set(text) <= set(TEXT)
    assert model.sample(0, prime="the ", seed=1) == "the "
    assert model.sample(0, seed=1) == ""


def test_a_seed_repeats_and_another_differs(model: CharLM) -> None:
    assert model.sample(60, seed=7) == model.sample(60, seed=7)
    assert model.sample(60, seed=7) != model.sample(60, seed=8)
    assert model.sample(60, seed=2**64 - 1) != model.sample(60, seed=0)


def test_a_longer_text_begins_with_the_shorter(model: CharLM) -> None:
    assert model.sample(90, seed=7)[:50] == model.sample(50, seed=7)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0, "top_k": 4},
        {"top_p": 0.7},
        {"temperature": 0.0},
        {"prime": "q"},
        {"prime": TEXT * 30},  # longer than a block of the prime
    ],
)
def test_stream_gives_what_sample_gives(model: CharLM, options: dict[str, Any]) -> None:
    pieces = list(model.stream(70, seed=9, **options))
    assert all(pieces)
    assert len(pieces) > 2
    assert "".join(pieces) == model.sample(70, seed=9, **options)


def test_a_text_depends_on_its_seed_alone(model: CharLM) -> None:
    seeds = [5, 11, 5, 0, 2**63]
    texts = model.sample(50, prime="the ", temperature=0.8, seeds=seeds)
    assert texts == [model.sample(50, "the ", 0.8, seed=seed) for seed in seeds]
    assert texts == model.sample(50, "the ", 0.8, seeds=seeds[::-1])[::-1]
    assert len(set(texts)) == 4
    assert model.sample(10, seeds=[]) == []


def test_blocks_do_not_show(model: CharLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.sample(100, prime=TEXT, seed=4)
    monkeypatch.setattr("charrnn_fast.model._SAMPLE_BLOCK", 7)
    monkeypatch.setattr("charrnn_fast.sampler._PRIME_BLOCK", 5)
    assert model.sample(100, prime=TEXT, seed=4) == expected


def test_greedy_takes_the_most_probable(model: CharLM) -> None:
    vocabulary = model.vocabulary
    greedy = model.sample(30, prime="the ", temperature=0, seed=1)
    assert greedy == model.sample(30, prime="the ", temperature=0, seed=2)
    assert greedy == model.sample(30, prime="the ", top_k=1, seed=3)
    for i, expected in enumerate(greedy[4:], start=4):
        tokens = vocabulary.encode(greedy[:i])[:, None]
        logits, _ = model.rnn.forward(tokens)
        assert vocabulary.decode([int(np.argmax(logits[-1, 0]))]) == expected


def test_more_than_all_characters_are_all(model: CharLM) -> None:
    expected = model.sample(50, seed=2)
    for top_k in (len(model.vocabulary), len(model.vocabulary) + 1, 2**31 - 1):
        assert model.sample(50, seed=2, top_k=top_k) == expected


def test_without_a_prime_a_newline_is_read(model: CharLM) -> None:
    assert model.sample(30, prime="\n", seed=1) == "\n" + model.sample(30, seed=1)
    other = make(vocabulary=Vocabulary.from_text("helo"))
    assert other.sample(30, prime="e", seed=1) == "e" + other.sample(30, seed=1)


def test_a_fresh_seed_is_kept(model: CharLM) -> None:
    assert model.last_seed is None
    text = model.sample(80)
    assert model.last_seed is not None
    assert model.sample(80, seed=model.last_seed) == text
    first = model.last_seed
    streamed = "".join(model.stream(80))
    assert model.last_seed != first
    assert model.sample(80, seed=model.last_seed) == streamed


def test_bytes_are_not_split_into_broken_characters() -> None:
    model = make(vocabulary=Vocabulary.from_bytes())
    for seed in range(5):
        pieces = list(model.stream(200, prime="é", seed=seed))
        text = model.sample(200, prime="é", seed=seed)
        assert "".join(pieces) == text
        assert text.startswith("é")


def test_draws_follow_the_softmax() -> None:
    """With zero recurrent and decoder weights each draw has the decoder bias's distribution."""
    model = CharLM(Vocabulary.from_text("abcd"), 2, 1, "rnn")
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    parameters = {name: np.zeros_like(w) for name, w in model.rnn.parameters().items()}
    parameters["decoder.bias"] = np.log(probabilities).astype(np.float32)
    model.rnn.load_parameters(parameters)

    def shares(**options: Any) -> list[float]:
        counts = Counter(model.sample(20_000, seed=1, **options))
        return [counts[c] / 20_000 for c in "abcd"]

    tolerance = 4 * 0.5 / 20_000**0.5  # four standard deviations of a share, at most
    np.testing.assert_allclose(shares(), probabilities, atol=tolerance)
    cooled = probabilities**2 / (probabilities**2).sum()
    np.testing.assert_allclose(shares(temperature=0.5), cooled, atol=tolerance)
    np.testing.assert_allclose(shares(top_k=2), [0.625, 0.375, 0, 0], atol=tolerance)
    np.testing.assert_allclose(
        shares(top_p=0.9), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], atol=tolerance
    )
    assert shares(top_p=0.9)[3] == shares(top_k=2)[2] == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"length": -1}, ValueError, "length must be >= 0, got -1"),
        ({"length": 2.5}, TypeError, "length must be an integer >= 0, got 2.5"),
        ({"temperature": -0.1}, ValueError, "temperature must be finite, at least 0, got -0.1"),
        ({"temperature": float("nan")}, ValueError, "temperature must be finite"),
        ({"temperature": float("inf")}, ValueError, "temperature must be finite"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number"),
        ({"top_k": 0}, ValueError, "top_k must be >= 1, got 0"),
        ({"top_k": 10**30}, ValueError, "top_k must be in 1 to 2147483647, got 1000000000"),
        ({"length": 10**30}, ValueError, "length must be in 0 to 2147483647, got 1000000000"),
        ({"top_p": 0.0}, ValueError, "top_p must be finite, above 0, at most 1, got 0.0"),
        ({"top_p": 1.01}, ValueError, "top_p must be finite, above 0, at most 1, got 1.01"),
        ({"seed": -1}, ValueError, "seed must be in 0 to 18446744073709551615, got -1"),
        ({"seed": 2**64}, ValueError, "seed must be in 0 to 18446744073709551615"),
        ({"seed": "x"}, TypeError, "seed must be an integer"),
        ({"prime": "Quick"}, ValueError, r"prime has the character 'Q' \(U\+0051\) at position 0"),
        ({"prime": b"quick"}, TypeError, "prime must be a str, got bytes"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = make()
    arguments = {"length": 10, "seed": 1, **options}
    with pytest.raises(error, match=message):
        model.sample(**arguments)
    with pytest.raises(error, match=message):
        model.stream(**arguments)  # before anything is drawn from it


def test_seed_and_seeds_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="seed or seeds"):
        make().sample(10, seed=1, seeds=[1])  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"seeds\[1\] must be in 0 to"):
        make().sample(10, seeds=[1, -1])
    with pytest.raises(TypeError, match="seeds must be a sequence of integers, got 3"):
        make().sample(5, seeds=3)  # type: ignore[call-overload]


@pytest.mark.parametrize("streams", [1, 2, 7, 33])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_bfloat16_weights_draw_what_rounded_weights_draw(cell: str, streams: int) -> None:
    """Storage halves, arithmetic stays: the same bits as a float32 network of rounded weights."""
    vocabulary = Vocabulary.from_text("abcdefghijklmnopqrstuvwxyz")
    for hidden_size in (1, 31, 64, 75):
        model = CharLM(vocabulary, hidden_size, 2, cell, seed=3)
        rounded = model._read_as("bfloat16")
        differ = [
            name
            for name, p in model.rnn.parameters().items()
            if not np.array_equal(p, rounded.rnn.parameters()[name])
        ]
        assert sorted(differ) == [
            "decoder.weight", "weight_hh_l0", "weight_hh_l1", "weight_ih_l1"
        ]  # fmt: skip
        seeds = np.arange(streams, dtype=np.uint64)
        first = np.zeros(streams, np.int32)
        states = [m.rnn.zero_state(streams) for m in (model, rounded)]
        args = (first, seeds, 0, 1.0, 0, 1.0)
        tokens = [
            m.rnn._core.sample(40, args[0], state, *args[1:], half)
            for m, state, half in zip((model, rounded), states, (True, False), strict=True)
        ]
        assert np.array_equal(tokens[0], tokens[1])
        assert np.array_equal(states[0], states[1])


def test_bfloat16_rounding() -> None:
    exact = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf], np.float32)
    assert rounded_to_bfloat16(exact).tobytes() == exact.tobytes()
    one = np.float32(1)
    step = np.float32(2**-7)  # of bfloat16 just above 1
    ties = np.array([one + step / 2, one + 3 * step / 2, one + step * np.float32(0.51)], np.float32)
    assert rounded_to_bfloat16(ties).tolist() == [1, 1 + 2 * step, 1 + step]
    assert np.isnan(rounded_to_bfloat16(np.array([np.nan], np.float32)))
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert np.all(np.abs(rounded_to_bfloat16(x) - x) <= 2**-8 * np.abs(x))


def test_weight_dtype_is_checked_at_the_call() -> None:
    model = CharLM(Vocabulary.from_text("ab"), 3, dtype="float64")
    for call in (model.sample, model.stream):
        with pytest.raises(ValueError, match=r"weight_dtype is 'bfloat16', a float64 model takes"):
            call(3, weight_dtype="bfloat16")
    with pytest.raises(ValueError, match="weight_dtype is 'int8'"):
        model.evaluate("abab", weight_dtype="int8")
    assert model.sample(9, seed=1, weight_dtype="float64") == model.sample(9, seed=1)

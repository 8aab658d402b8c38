"""Sampling: text depends only on the weights, the arguments and its seed."""

from __future__ import annotations

import itertools
import string
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import charrnn_fast as cf
from charrnn_fast import CharLM, Vocabulary, _core, reference
from charrnn_fast.language.sampler import DrawnText, _beginning_of_stop
from charrnn_fast.language.small_weights import rounded_to_bfloat16, rounded_to_int8
from marks import slow_but
from tolerances import assert_same_bits

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
    prime = options.get("prime", "")
    assert [len(piece) for piece in pieces] == [len(prime)] * bool(prime) + [1] * 70
    assert "".join(pieces) == model.sample(70, seed=9, **options)


def test_a_text_depends_on_its_seed_alone(model: CharLM) -> None:
    seeds = [5, 11, 5, 0, 2**63]
    texts = model.sample(50, prime="the ", temperature=0.8, seeds=seeds)
    assert texts == [model.sample(50, "the ", 0.8, seed=seed) for seed in seeds]
    assert texts == model.sample(50, "the ", 0.8, seeds=seeds[::-1])[::-1]
    assert len(set(texts)) == 4
    assert model.sample(10, seeds=[]) == []


def test_how_many_are_drawn_together_does_not_show(
    model: CharLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.sample(50, "the ", seeds=range(8))
    monkeypatch.setattr("charrnn_fast.language.sampler._STREAMS", 3)
    assert model.sample(50, "the ", seeds=range(8)) == expected
    monkeypatch.setattr("charrnn_fast.language.sampler._TOGETHER", 100)  # of texts of 50 characters
    assert model.sample(50, "the ", seeds=range(8)) == expected


def stopped(text: str, prime: str, stops: list[str]) -> str:
    """text, drawn up to the first end of a stop string in it, without the longest that ends so."""
    for end in range(len(prime) + 1, len(text) + 1):
        drawn = text[len(prime) : end]
        if found := [stop for stop in stops if drawn.endswith(stop)]:
            return text[: end - max(map(len, found))]
    return text


STOPS = [
    ["e"],
    [" "],
    ["o", "qo"],
    ["zz", "z", "azz"],
    ["er", "re", "ee"],
    ["aab", "aac", "aad", "ab", "b"],
    ["the quick brown fox jumps over the lazy dog"],
    ["o", "u", "i", "e", "a"],
]


@pytest.mark.parametrize("stops", STOPS, ids="-".join)
@pytest.mark.parametrize("block", slow_but([3], [1, 3, 64]))
def test_a_text_ends_before_the_first_stop_string(
    model: CharLM, stops: list[str], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streamed, alone and in a batch, wherever the blocks of the drawing end."""
    monkeypatch.setattr("charrnn_fast.language.sampler._STOP_BLOCK", block)
    prime, seeds = "the e", range(20)
    expected = [stopped(text, prime, stops) for text in model.sample(90, prime, seeds=seeds)]
    assert model.sample(90, prime, seeds=seeds, stop=stops) == expected
    for seed in seeds:
        assert model.sample(90, prime, seed=seed, stop=stops) == expected[seed]
        pieces = list(model.stream(90, prime, seed=seed, stop=stops))
        assert all(pieces)
        assert "".join(pieces) == expected[seed]


@given(
    pieces=st.lists(st.text("abc", max_size=6), max_size=6),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
)
@example(pieces=["abcb"], stops=["abcb", "b"])
def test_pieces_and_overlapping_stop_strings(pieces: list[str], stops: list[str]) -> None:
    vocabulary = Vocabulary.from_text("abc")
    text = DrawnText(vocabulary, tuple(stops))
    written = ""
    for piece in pieces:
        written += text.extend(vocabulary.encode(piece))
        if text.ended:
            break
    assert written + text.finish() == stopped("".join(pieces), "", stops)


def test_nothing_is_drawn_once_every_text_has_ended(model: CharLM) -> None:
    endless = 2**31 - 1
    first = model.sample(endless, seed=1, stop="e")
    assert "e" not in first
    assert model.sample(endless, seeds=[1, 2, 1], stop=["e"])[::2] == [first] * 2
    assert "".join(model.stream(endless, seed=1, stop="e")) == first


def test_a_stop_string_may_begin_a_text_or_not_come(model: CharLM) -> None:
    text = model.sample(30, "the ", seed=1)
    assert model.sample(30, "the ", seed=1, stop=text[4:7]) == "the "
    assert model.sample(6, "the ", seed=1, stop=text[4:11]) == text[:10]  # all but its last draw
    assert model.sample(7, "the ", seed=1, stop=text[4:11]) == "the "
    assert model.sample(30, "the ", seed=1, stop=text[:7]) == text  # it began in the prime
    assert model.sample(30, "the ", seed=1, stop=[]) == text


def test_what_may_be_a_stop_string_is_held_back_and_nothing_else() -> None:
    vocabulary = Vocabulary.from_text("abcd")
    text = DrawnText(vocabulary, ("abac", "cc"))
    pieces = [text.extend(vocabulary.encode(c)) for c in "dabababcacd"]
    assert pieces == ["d", "", "", "", "ab", "", "ab", "ab", "c", "a", "cd"]
    assert text.finish() == ""
    assert (text.extend(vocabulary.encode("aba")), text.finish()) == ("", "aba")


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_streams_that_go_on_keep_their_states(cell: str) -> None:
    """With a projection the state is flat: h is narrower than c."""
    proj_size = 5 if cell == "lstm" else 0
    model = CharLM(Vocabulary.from_text(TEXT), 12, 3, cell, seed=3, proj_size=proj_size)
    seeds = range(12)
    expected = [stopped(text, "", ["e", "x"]) for text in model.sample(200, seeds=seeds)]
    assert len({len(text) for text in expected}) > 5
    assert model.sample(200, seeds=seeds, stop=["e", "x"]) == expected


def test_a_stop_string_of_bytes_is_one_of_characters() -> None:
    model = make(vocabulary=Vocabulary.from_bytes())
    for seed in range(3):
        text = model.sample(300, seed=seed)
        stop = next(c for c in text[20:] if c.isascii())
        ended = model.sample(300, seed=seed, stop=["é", stop])
        assert ended == text[: text.index(stop)]
        assert "".join(model.stream(300, seed=seed, stop=["é", stop])) == ended


def test_blocks_do_not_show(model: CharLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.sample(100, prime=TEXT, seed=4)
    monkeypatch.setattr("charrnn_fast.language.sampler.BLOCK", 7)
    monkeypatch.setattr("charrnn_fast.language.sampler._PRIME_BLOCK", 5)
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
        ({"stop": ""}, ValueError, "stop must have one character or more, got none"),
        ({"stop": ["a", ""]}, ValueError, r"stop\[1\] must have one character"),
        ({"stop": ["a", b"b"]}, TypeError, r"stop\[1\] must be a str, got bytes"),
        ({"stop": b"a"}, TypeError, "stop must be a str or a sequence of them, got bytes"),
        ({"stop": 3}, TypeError, "stop must be a str or a sequence of them, got int"),
        ({"stop": ["a", "bQ"]}, ValueError, r"stop\[1\] has the character 'Q' .* position 1"),
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
        rounded = model.read_as("bfloat16")
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
        states = [m.rnn.states.zeros(streams) for m in (model, rounded)]
        args = (first, seeds, 0, 1.0, 0, 1.0)
        tokens = [
            m.rnn.core.sample(40, args[0], state, *args[1:], weights)
            for m, state, weights in zip((model, rounded), states, ("bfloat16", ""), strict=True)
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


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_int8_weights_draw_what_rounded_weights_draw(cell: str) -> None:
    """To the bit, for any streams; and almost as the float32 network of rounded weights."""
    vocabulary = Vocabulary.from_text("abcdefghijklmnopqrstuvwxyz")
    for hidden_size in (1, 31, 75, 130):
        model = CharLM(vocabulary, hidden_size, 2, cell, seed=3)
        rounded = model.read_as("int8")
        again = rounded.read_as("int8").rnn.parameters()
        for name, p in rounded.rnn.parameters().items():
            assert_same_bits(name, p, again[name])
        drawn, states = {}, {}
        for streams in (1, 2, 33):
            seeds = np.arange(streams, dtype=np.uint64)
            for kind, m, weights in (
                ("int8", model, "int8"), ("again", rounded, "int8"), ("float32", rounded, "")
            ):  # fmt: skip
                state = m.rnn.states.zeros(streams)
                first = np.zeros(streams, np.int32)
                drawn[kind] = m.rnn.core.sample(9, first, state, seeds, 0, 1.0, 0, 1.0, weights)
                states[kind] = state
            assert np.array_equal(drawn["int8"], drawn["again"])
            assert_same_bits("states", states["int8"], states["again"])
            np.testing.assert_allclose(states["int8"], states["float32"], atol=1e-5)
            if streams == 1:
                alone = drawn["int8"][:, 0]
            assert np.array_equal(drawn["int8"][:, 0], alone)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_prime_is_read_with_the_weights_that_draw(dtype: str) -> None:
    """So a file with these weights alone continues it likewise."""
    model = CharLM(Vocabulary.from_text(TEXT), 40, 2, seed=3)
    prime = TEXT[:30]
    rounded = model.read_as(dtype)
    text = model.sample(300, prime, seed=1, weight_dtype=dtype)
    assert text == rounded.sample(300, prime, seed=1, weight_dtype=dtype)
    assert text == "".join(model.stream(300, prime, seed=1, weight_dtype=dtype))


def test_int8_rounding() -> None:
    weights = np.array(
        [[127, -127, 0.5, 1.5, -2.5], [0, 0, 0, 0, 0], [1e-3, 5e-4, 0, -1e-3, 2e-6]], np.float32
    )
    integers, scales = rounded_to_int8(weights)
    assert integers.tolist() == [[127, -127, 0, 2, -2], [0] * 5, [127, 64, 0, -127, 0]]
    assert scales[:2].tolist() == [1, 0]
    assert scales[2].view(np.uint32) & 0xFF == 0
    x = np.random.default_rng(0).normal(size=(50, 300)).astype(np.float32)
    integers, scales = rounded_to_int8(x)
    assert np.all(np.abs(integers * scales[:, None] - x) <= scales[:, None] * 0.503)
    again = rounded_to_int8(integers * scales[:, None])
    assert np.array_equal(again[0], integers) and np.array_equal(again[1], scales)


def test_weight_dtype_is_checked_at_the_call() -> None:
    model = CharLM(Vocabulary.from_text("ab"), 3, dtype="float64")
    for call in (model.sample, model.stream):
        with pytest.raises(
            ValueError, match=r"weight_dtype of a float64 model must be 'float64', got 'bfloat16'"
        ):
            call(3, weight_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"weight_dtype of a float64 model must be .*got 'int8'"):
        model.evaluate("abab", weight_dtype="int8")
    assert model.sample(9, seed=1, weight_dtype="float64") == model.sample(9, seed=1)
    model = CharLM(Vocabulary.from_text("ab"), 3, compute_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"weight_dtype of a model with compute_dtype 'bfloat16'"):
        model.sample(3, weight_dtype="int8")


def test_int8_has_a_widest_row(tmp_path: Path) -> None:
    """Nothing begins with a wider one, no file gets it, and no text of another type needs it."""
    # A projection keeps the recurrent weights small, and has the wide rows itself.
    model = CharLM(Vocabulary.from_text("ab"), 12_289, num_layers=1, proj_size=1)
    full, small = tmp_path / "full", tmp_path / "small"
    model.save(full)
    ours, options = _core.LanguageModel.load(str(full)), _core.TextOptions(0, weights="int8")
    for call in (
        lambda: model.sample(0, weight_dtype="int8"),
        lambda: model.stream(3, weight_dtype="int8"),
        lambda: model.beam_search(3, weight_dtype="int8", beam=2),
        lambda: model.next_probabilities(weight_dtype="int8"),
        lambda: model.evaluate("abab", weight_dtype="int8"),
        lambda: model.score(["ab"], weight_dtype="int8"),
        lambda: model.save(small, weight_dtype="int8"),
        lambda: ours.sample(options, [1]),
        lambda: ours.stream(options, 1),
        lambda: ours.beam_search(options, 1),
        lambda: ours.next_probabilities(b"", "int8"),
        lambda: ours.evaluate(b"abab", "int8"),
        lambda: ours.score([b"ab"], "int8"),
    ):
        with pytest.raises(ValueError, match="at most 12288 elements, got 12289: take bfloat16"):
            call()
    assert not small.exists()
    assert len(model.sample(3, weight_dtype="bfloat16")) == 3


# ---- the repetition penalty ----


def penalized(cell: str, dtype: str = "float32") -> tuple[CharLM, Any, Any]:
    model = CharLM(Vocabulary.from_text(TEXT), 9, 2, cell, seed=3, dtype=dtype)
    rng = np.random.default_rng(7)
    parameters = model.rnn.parameters().items()
    model.rnn.load_parameters({n: rng.normal(size=p.shape).astype(dtype) for n, p in parameters})
    recent = np.array([[-1, 4, 2], [3, 4, 0], [3, 9, 2], [5, 1, 1]], np.int32)
    return model, np.array([1, 2, 3], np.int32), recent


@pytest.mark.parametrize("chosen", [{}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.8}])
@pytest.mark.parametrize("cell", CELLS)
def test_a_penalty_draws_what_the_reference_draws(cell: str, chosen: dict[str, Any]) -> None:
    """In double, where no draw is near a bound."""
    model, first, recent = penalized(cell, "float64")
    seeds = np.array([5, 6, 2**63], np.uint64)
    for penalty in (1.3, 4.0):
        window, kernel = recent.copy(), model.rnn.core
        drawn = kernel.sample(
            50,
            first,
            model.rnn.states.zeros(3),
            seeds,
            7,
            chosen.get("temperature", 1.0),
            chosen.get("top_k", 0),
            chosen.get("top_p", 1.0),
            "",
            penalty,
            window,
        )
        expected, _ = reference.sample(
            model.rnn.parameters(),
            50,
            first,
            seeds.tolist(),
            cell=cell,
            position=7,
            repetition_penalty=penalty,
            recent=recent,
            **chosen,
        )
        assert drawn.tolist() == expected.tolist()
        assert window.tolist() == drawn[-4:].tolist()


def test_the_formula_of_the_penalty() -> None:
    """Greedy: of the logits 3, 2 and -1 the first is taken until it is below the others."""
    logits = np.array([[3.0, 2.0, -1.0]], np.float32)
    seeds = np.zeros(1, np.uint64)

    def drawn(penalty: float, *recent: int) -> int:
        window = np.array(recent, np.int32)[:, None]
        return int(_core.sample_tokens(logits, seeds, 0, 0.0, 0, 1.0, penalty, window)[0])

    assert drawn(1.49, 0) == 0
    assert drawn(1.51, 0, 0, 0) == 1, "3 / 1.51 < 2, and once for all three"
    assert drawn(1.51, 0, 1) == 0
    assert drawn(1e30, 0, 1) == 0, "divided, they stay above -1"
    logits[0] = [-3.0, -2.0, -2.5]
    assert drawn(1.2, 1) == 1
    assert drawn(1.3, 1) == 2, "a negative logit is multiplied"
    assert drawn(1e38, 0, 1, 2) in (0, 1, 2), "no overflow"


@pytest.mark.parametrize("window", [1, 3, 64, 500])
def test_a_penalized_text_depends_on_its_seed_and_the_last_characters(
    model: CharLM, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"repetition_penalty": 1.4, "repetition_window": window}
    prime, seeds = "the lazy dog ", [5, 11, 5, 2**63]
    texts = model.sample(150, prime, seeds=seeds, **options)
    assert texts == [model.sample(150, prime, seed=seed, **options) for seed in seeds]
    assert texts[0] == "".join(model.stream(150, prime, seed=5, **options))
    assert texts[0] != model.sample(150, prime, seed=5)
    assert texts[0][:60] == model.sample(60 - len(prime), prime, seed=5, **options)
    stops = model.sample(150, prime, seeds=seeds, stop="e", **options)
    assert stops == [stopped(text, prime, ["e"]) for text in texts]
    threads = cf.get_num_threads()
    try:
        for count in (1, 2, 5):
            cf.set_num_threads(count)
            monkeypatch.setattr("charrnn_fast.language.sampler.BLOCK", 7 * count)
            assert model.sample(150, prime, seeds=seeds, **options) == texts
    finally:
        cf.set_num_threads(threads)


def test_a_penalty_of_one_changes_no_bits(model: CharLM) -> None:
    text = model.sample(80, "the ", seed=3)
    assert model.sample(80, "the ", seed=3, repetition_penalty=1.0, repetition_window=5) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition_penalty": 0.9}, "repetition_penalty must be finite, at least 1, got 0.9"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty must be finite, at least 1"),
        ({"repetition_window": 0}, "repetition_window must be in 1 to 1000000, got 0"),
    ],
)
def test_bad_penalties(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().sample(5, seed=1, **options)


def test_a_recent_token_outside_the_vocabulary_is_refused() -> None:
    model, first, recent = penalized("gru")
    recent[2, 1] = len(model.vocabulary)
    with pytest.raises(ValueError, match=r"recent\[2, 1\] must be in -1 to 27, got 28"):
        model.rnn.core.sample(
            5,
            first,
            model.rnn.states.zeros(3),
            first.astype(np.uint64),
            0,
            1.0,
            0,
            1.0,
            "",
            2.0,
            recent,
        )


def test_the_beginning_of_a_stop_string() -> None:
    """All texts of up to 6 characters of two, against the definition."""
    words = ["".join(w) for n in range(7) for w in itertools.product("ab", repeat=n)]
    several = [("a",), ("ab",), ("aab", "ba"), ("abab", "bbbbb"), ("aabaab", "abb"), ()]
    for stops in several:
        begun = {stop[:n] for stop in stops for n in range(1, len(stop))}
        for text in words:
            longest = max((len(b) for b in begun if text.endswith(b)), default=0)
            assert _beginning_of_stop(text, stops) == longest, (text, stops)


def test_long_stop_strings_take_no_time() -> None:
    """Those of which nothing was drawn; a server asks this at every block of every text."""
    stops = tuple(letter * 1000 for letter in string.ascii_lowercase[:16])
    begin = time.perf_counter()
    for _ in range(1000):
        assert _beginning_of_stop("0" * 1000, stops) == 0
    assert time.perf_counter() - begin < 0.5  # some 3 ms; a thousand times 16 slices took seconds

"""Beam search, against every text of a tiny vocabulary; walks, and probabilities of the next."""

from __future__ import annotations

import tracemalloc
from itertools import product
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from charrnn_fast import CharLM, Vocabulary, _checks, _core
from charrnn_fast.language.walk import Walk
from marks import slow_but
from tolerances import eps, losses

CELLS = ("rnn", "gru", "lstm")
VOCABULARY = Vocabulary.from_text("\nabc")


def make(cell: str = "lstm", seed: int = 5, **options: Any) -> CharLM:
    """A model with weights far from zero, so that its probabilities differ."""
    model = CharLM(options.pop("vocabulary", VOCABULARY), 7, 2, cell, seed=3, **options)
    rng = np.random.default_rng(seed)
    parameters = model.rnn.parameters().items()
    model.rnn.load_parameters({n: rng.normal(size=p.shape).astype(p.dtype) for n, p in parameters})
    return model


def written(length: int, stops: list[str]) -> dict[str, str]:
    """Every text of this vocabulary that drawing may end with, stop string included: without it."""
    found: dict[str, str] = {}
    for letters in product("\nabc", repeat=length):
        whole = "".join(letters)
        for end in range(1, length + 1):
            ending = [stop for stop in stops if whole[:end].endswith(stop)]
            if ending:
                found[whole[:end]] = whole[: end - max(map(len, ending))]
                break
        else:
            found[whole] = whole
    return found


@pytest.mark.parametrize("stops", [[], ["b"], ["ab", "b"], ["ca", "abc"], ["a", "b", "c"]])
@pytest.mark.parametrize("cell", slow_but(["lstm"], CELLS))
def test_as_many_beginnings_as_texts_find_the_likeliest_of_all(cell: str, stops: list[str]) -> None:
    for seed in range(3):
        model = make(cell, seed)
        texts = written(4, stops)
        scores = dict(zip(texts, model.score(texts).tolist(), strict=True))
        best = max(scores, key=scores.__getitem__)
        found = model.beam_search(4, beam=4**4, stop=stops)
        assert found == (texts[best], scores[best]), (
            "the log-probability is that of score, bit for bit"
        )


def test_more_beginnings_find_more_and_one_is_greedy() -> None:
    gained = 0.0
    for seed in range(6):
        model = make(seed=seed)
        found = [model.beam_search(30, beam=beam) for beam in (1, 2, 8, 64)]
        assert found[0].text == model.sample(30, temperature=0)
        gained += found[-1].log_probability - found[0].log_probability
        for text, nats in found:
            assert [nats] == model.score([text]).tolist()
    assert gained > 0.1


def test_a_prime_counts_for_nothing_in_the_log_probability() -> None:
    model = make()
    prime = "cab" * 400  # more than a block of the prime
    text, nats = model.beam_search(9, prime, 5)
    assert text.startswith(prime)
    assert len(text) == len(prime) + 9
    whole, before = (model.evaluate(part) * (len(part) - 1) for part in (text, prime))
    tolerance = losses("float32", classes=4, rows=len(text), largest=30)
    assert nats == pytest.approx(before - whole, abs=tolerance * whole)


def test_equals_are_decided_by_the_lower_id_and_the_earlier_end() -> None:
    model = make()
    model.rnn.load_parameters(
        {name: np.zeros_like(p) for name, p in model.rnn.parameters().items()}
    )
    for beam in (2, 64):
        text, nats = model.beam_search(3, beam=beam)
        assert text == "\n\n\n"
        assert nats == pytest.approx(-3 * np.log(4), rel=4 * eps("float32"))
    text, nats = model.beam_search(3, beam=64, stop=["b", "\nc"])
    assert text == ""
    assert nats == pytest.approx(-np.log(4), rel=4 * eps("float32"))


@pytest.mark.parametrize(
    "weight_dtype",
    [None, "bfloat16", pytest.param("int8", marks=pytest.mark.host("int8 runs on the CPU"))],
)
def test_c_plus_plus_finds_the_same(weight_dtype: str | None, tmp_path: Any) -> None:
    model = make()
    model.save(tmp_path / "model")
    there = _core.LanguageModel.load(str(tmp_path / "model"))
    for prime, beam, stops in (
        ("", 1, []),
        ("ab\n", 3, []),
        ("c", 9, ["ab", "b"]),
        ("", 300, ["c"]),
    ):
        options = _core.TextOptions(
            12,
            prime.encode(),
            stop=[stop.encode() for stop in stops],
            weights=weight_dtype or "",
        )
        text, nats = there.beam_search(options, beam)
        ours = model.beam_search(12, prime, beam, stop=stops, weight_dtype=weight_dtype)
        assert (text.decode(), nats) == ours
    shares = there.next_probabilities(b"cab", weight_dtype or "")
    expected = model.next_probabilities("cab", weight_dtype=weight_dtype)
    np.testing.assert_allclose(shares, expected, rtol=8 * eps("float64"))
    with pytest.raises(ValueError, match="of a beam search must have their defaults"):
        there.beam_search(_core.TextOptions(5, temperature=0.5), 2)
    with pytest.raises(ValueError, match="beam must be in 1 to 10000, got 0"):
        there.beam_search(_core.TextOptions(5), 0)


@pytest.mark.parametrize("stops", [[], ["b"]])
def test_memory_is_asked_for_before_it_is_taken(
    stops: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it suffices, without much to spare."""
    letters = "".join(map(chr, range(ord("a"), ord("a") + 5000)))
    model = CharLM(Vocabulary.from_text(letters), 3, 1, seed=1)
    asked: list[int] = []
    enough = _checks.enough_memory

    def noting(needed: int, *others: Any) -> Any:
        asked.append(needed)
        return enough(needed, *others)

    monkeypatch.setattr("charrnn_fast._checks.enough_memory", noting)
    tracemalloc.start()
    try:
        model.beam_search(3, beam=50, stop=stops)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < asked[-1] < 2 * peak
    # No more beginnings than there are texts, 4 of one character.
    make().beam_search(2, beam=10_000, stop=stops)
    assert asked[-1] < 10_000
    monkeypatch.setattr("charrnn_fast._checks.available_memory", lambda: 10**9)
    with pytest.raises(
        MemoryError, match=r"search takes .* GB, and 1 GB are free; try a smaller b"
    ):
        model.beam_search(5, beam=10_000, stop=stops)


def test_c_plus_plus_refuses_too_many_candidates(tmp_path: Any) -> None:
    letters = "".join(map(chr, range(0x10000, 0x10000 + 30_000)))
    CharLM(Vocabulary.from_text(letters), 2, 1).save(tmp_path / "model")
    model = _core.LanguageModel.load(str(tmp_path / "model"))
    message = "268435456 candidates or fewer, got 10000 beginnings of 30000 symbols; take a smaller"
    with pytest.raises(ValueError, match=message):
        model.beam_search(_core.TextOptions(9), 10_000)
    model.beam_search(_core.TextOptions(1), 10_000)  # of a single beginning


def test_bytes_and_empty_texts() -> None:
    model = make(vocabulary=Vocabulary.from_bytes())
    text, nats = model.beam_search(6, "é", 4)
    assert text.startswith("é")
    assert nats < 0
    assert model.beam_search(0, "é") == ("é", 0.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beam": 0}, ValueError, "beam must be in 1 to 10000, got 0"),
        ({"beam": 10_001}, ValueError, "beam must be in 1 to 10000, got 10001"),
        ({"beam": 1.5}, TypeError, "beam must be an integer"),
        ({"length": -1}, ValueError, "length must be >= 0, got -1"),
        ({"prime": "d"}, ValueError, "prime has the character 'd'"),
        ({"stop": [""]}, ValueError, r"stop\[0\] must have one character or more"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make().beam_search(**{"length": 3, **options})


# ---- the next symbol ----


@pytest.mark.parametrize("cell", CELLS)
def test_next_probabilities_are_the_softmax(cell: str) -> None:
    model = make(cell)
    for prime, read in (("", "\n"), ("abca", "abca")):
        logits, _ = model.rnn.forward(model.vocabulary.encode(read)[:, None])
        for temperature in (1.0, 0.5, 3.0):
            weights = np.exp(logits[-1, 0].astype(np.float64) / temperature)
            shares = model.next_probabilities(prime, temperature=temperature)
            np.testing.assert_allclose(shares, weights / weights.sum(), rtol=200 * eps("float32"))
            assert shares.sum() == pytest.approx(1, rel=4 * eps("float64"))
    with pytest.raises(ValueError, match="temperature must be finite, above 0, got 0"):
        model.next_probabilities(temperature=0)


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_a_walk_that_draws_gives_what_sample_gives(penalty: float) -> None:
    model = make()
    options: Any = {"temperature": 0.8, "top_k": 3, "repetition_penalty": penalty}
    request = model.request(40, "ab", 0.8, 3, None, None, None, penalty)
    walk = Walk(model.rnn, request, 11)
    for _ in range(25):
        walk.take(walk.draw())
    first = model.vocabulary.decode(walk.ids)
    assert "ab" + first == model.sample(25, "ab", seed=11, **options)
    for _ in range(10):
        walk.back()
    np.testing.assert_array_equal(
        walk.shares(), model.next_probabilities("ab" + first[:15], temperature=0.8)
    )
    for _ in range(10):
        walk.take(walk.draw())
    assert model.vocabulary.decode(walk.ids) == first


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_probabilities_are_minus_the_losses(dtype: str) -> None:
    """Of every next token, for several streams, bit for bit."""
    rnn = cf.RNN(9, 12, 9, cell="lstm", dtype=dtype, seed=1)
    state = rnn.states.zeros(5)
    tokens = np.array([0, 3, 8, 3, 1], np.int32)
    kernel: Any = rnn.core
    nats = kernel.next(tokens, state, "")
    for target in range(9):
        after = rnn.states.zeros(5)
        targets = np.full((1, 5), target, np.int32)
        assert (-kernel.stream_losses(tokens[None], targets, after)).tolist() == nats[
            :, target
        ].tolist()
        np.testing.assert_array_equal(after, state)

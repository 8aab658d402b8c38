"""Texts drawn together that join and leave: each is that of `CharLM.sample` alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from charrnn_fast import CharLM
from charrnn_fast.language.batch import Batch, Stream, Symbol
from charrnn_fast.language.sampler import DrawnText
from pages import NETWORKS, TEXT, lively

OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 0.6, "top_k": 5},
    {"top_p": 0.8, "prime": "def f("},
    {"temperature": 1.7, "top_k": 1000, "top_p": 0.5, "prime": TEXT * 2},
    {"top_k": 1},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 3.0, "repetition_window": 5, "prime": "def f("},
]


def request(model: CharLM, length: int, **options: Any) -> Any:
    names = ("top_k", "top_p", "stop", "weight_dtype")
    given: dict[str, Any] = {"prime": "", "temperature": 1.0, **dict.fromkeys(names), **options}
    given.pop("seed", None)
    return model.request(length, **given)


def drawn_together(
    model: CharLM, streams: list[Stream], weights: str | None = None
) -> tuple[dict[Stream, str], dict[Stream, list[Symbol]]]:
    """The texts of streams that come at random times to a batch that draws in random blocks."""
    rng = np.random.default_rng(len(streams))
    batch, waiting = Batch(model, weights), list(streams)
    texts = {s: DrawnText(model.vocabulary, ()) for s in streams}
    pieces = {s: texts[s].begin(s.request.prime) for s in streams}
    symbols: dict[Stream, list[Symbol]] = {s: [] for s in streams}
    most = 0
    while waiting or len(batch):
        for _ in range(rng.integers(4)):
            if waiting:
                batch.join(waiting.pop())
        batch.read(int(rng.integers(1, 40)))
        for part in batch.draw(int(rng.integers(1, 12))):
            pieces[part.stream] += texts[part.stream].extend(part.ids)
            symbols[part.stream] += part.symbols
        most = max(most, batch.drawing)
    assert most > 2
    return {s: pieces[s] + texts[s].finish() for s in streams}, symbols


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_together_as_alone(network: dict[str, Any]) -> None:
    model = lively(TEXT, **network)
    lengths = np.random.default_rng(1).integers(1, 60, 18)
    given = [{**OPTIONS[i % len(OPTIONS)], "seed": 2**63 + i // 2} for i in range(18)]
    streams = [
        Stream(request(model, int(n), **options), options["seed"])
        for n, options in zip(lengths, given, strict=True)
    ]
    texts, _ = drawn_together(model, streams)
    for stream, n, options in zip(streams, lengths, given, strict=True):
        assert texts[stream] == model.sample(int(n), **options)


@pytest.mark.parametrize(
    "weights", ["bfloat16", pytest.param("int8", marks=pytest.mark.host("int8 is for the CPU"))]
)
def test_small_weights_too(weights: str) -> None:
    model = lively(TEXT)
    streams = [
        Stream(request(model, 20 + i, prime=TEXT[:i], weight_dtype=weights), i) for i in range(6)
    ]
    texts, _ = drawn_together(model, streams, weights)
    for i, stream in enumerate(streams):
        expected = model.sample(20 + i, TEXT[:i], seed=i, weight_dtype=weights)
        assert texts[stream] == expected


def test_those_that_leave_change_nothing() -> None:
    model = lively(TEXT)
    batch = Batch(model, None)
    streams = [Stream(request(model, 40, prime="return " * i), i) for i in range(5)]
    for stream in streams:
        batch.join(stream)
    ids: dict[Stream, list[int]] = {stream: [] for stream in streams}
    for step in range(40):
        batch.read(3)
        if step == 5:
            batch.leave(streams[1])
        if step == 6:
            batch.leave(streams[4])  # while its prime is read
        for part in batch.draw(1):
            ids[part.stream] += part.ids.tolist()
    assert not ids[streams[4]] and 0 < len(ids[streams[1]]) < 40
    for i in (0, 2, 3):
        while streams[i].remaining:
            for part in batch.draw(100):
                ids[part.stream] += part.ids.tolist()
        expected = model.sample(40, "return " * i, seed=i)
        assert model.vocabulary.decode(ids[streams[i]]) == expected[7 * i :]
    assert not len(batch)


@pytest.mark.parametrize("weights", [None, "bfloat16"])
def test_probabilities_are_the_models(weights: str | None) -> None:
    """Those of a whole forward pass over the text, before temperature, top_k and top_p."""
    model = lively(TEXT)
    given: list[dict[str, Any]] = [
        {"temperature": 0.5},
        {"top_k": 2, "prime": "It's"},
        {"top_p": 0.4},
    ]
    streams = [
        Stream(request(model, 30, weight_dtype=weights, **options), i, alternatives=i)
        for i, options in enumerate(given)
    ]
    texts, symbols = drawn_together(model, streams, weights)
    assert symbols[streams[0]] == []
    for i in (1, 2):
        prime = given[i].get("prime", "")
        ids = model.vocabulary.encode(texts[streams[i]])
        fed = ids if prime else np.concatenate([model.vocabulary.encode("\n"), ids])
        logits, _ = model.read_as(weights).rnn.forward(fed[:, None])
        shares = np.exp(np.float64(logits[-31:-1, 0]))
        shares /= shares.sum(1, keepdims=True)
        told = symbols[streams[i]]
        assert "".join(chr(symbol.symbol) for symbol in told) == texts[streams[i]][len(prime) :]
        points = model.vocabulary.symbols
        for row, (share, symbol) in enumerate(zip(shares, told, strict=True)):
            np.testing.assert_allclose(symbol.probability, share[ids[len(prime) + row]], rtol=1e-5)
            best = np.argsort(-share, kind="stable")[:i]
            assert [s for s, _ in symbol.alternatives] == points[best].tolist()
            np.testing.assert_allclose([p for _, p in symbol.alternatives], share[best], rtol=1e-5)


def test_the_kernels_draw_each_stream_by_its_own_options() -> None:
    """One call with all options, and a call for each: the same tokens and states."""
    model = lively(TEXT)
    rng = np.random.default_rng(0)
    B, V = 7, len(model.vocabulary)
    state = rng.normal(size=model.rnn.states.zeros(B).shape).astype(np.float32)
    first = rng.integers(0, V, B).astype(np.int32)
    seeds = rng.integers(0, 2**63, B).astype(np.uint64)
    positions = rng.integers(0, 2**63, B).astype(np.uint64)
    temperatures = np.array([0, 0.3, 1, 1.5, 1, 1, 1e-300])
    top_k = np.array([0, 0, 3, 0, V, 1, 2])
    top_p = np.array([1, 1, 0.9, 0.4, 1, 0.01, 0.5])
    states = state.copy()
    drawn = model.rnn.core.sample_streams(
        20, first, states, seeds, positions, temperatures, top_k, top_p
    )
    for b in range(B):
        one = np.ascontiguousarray(state[:, :, b : b + 1])
        alone = model.rnn.core.sample(
            20,
            first[b : b + 1],
            one,
            seeds[b : b + 1],
            int(positions[b]),
            float(temperatures[b]),
            int(top_k[b]),
            float(top_p[b]),
        )
        assert drawn[:, b].tolist() == alone[:, 0].tolist()
        assert np.array_equal(states[:, :, b], one[:, :, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperatures": np.array([1.0, -1])}, "temperature must be finite, at least 0, got -1"),
        ({"top_k": np.array([0, -2])}, "top_k must be >= 1, or 0 for all, got -2"),
        ({"top_p": np.array([0.0, 1])}, "top_p must be above 0, at most 1, got 0"),
        ({"positions": np.zeros(3, np.uint64)}, "positions must have shape"),
        ({"tokens": np.zeros((2, 1), np.int32)}, "tokens must have shape"),
        ({"length": -1}, "length must be >= 0, got -1"),
    ],
)
def test_the_kernels_check_each_stream(change: dict[str, Any], message: str) -> None:
    model = lively(TEXT)
    state = model.rnn.states.zeros(2)
    arguments: dict[str, Any] = {
        "length": 1,
        "tokens": np.zeros(2, np.int32),
        "state": state,
        "seeds": np.zeros(2, np.uint64),
        "positions": np.zeros(2, np.uint64),
        "temperatures": np.ones(2),
        "top_k": np.zeros(2, np.int64),
        "top_p": np.ones(2),
    }
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        model.rnn.core.sample_streams(**{**arguments, **change})
    assert not state.any()

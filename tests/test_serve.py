"""The server: texts as alone, streams, limits, refusals, clients that leave, its end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import inspect
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charrnn_fast import CharLM
from charrnn_fast.cli import main
from pages import TEXT, lively

pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("starlette", reason="Starlette is not installed")

from starlette.routing import Route

from charrnn_fast.language.batch import Batch, Stream
from charrnn_fast.serve import app, fields
from charrnn_fast.serve.engine import Engine, Job, Piece
from charrnn_fast.serve.fields import Limits
from serving import PATIENCE, Server, events_of, serving

Capture = pytest.CaptureFixture[str]

TOKEN = "0123456789abcdef"
POST = (
    b"POST /v1/sample HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def model() -> CharLM:
    return lively(TEXT)


@pytest.fixture(scope="module")
def server(model: CharLM) -> Iterator[Server]:
    """With small limits, which the tests of refusals name."""
    with serving(model, Limits(300, 100, 8, 200, 5000, 16, 20_000)) as running:
        yield running


class Gate:
    """Holds the drawing of blocks until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        draw = Batch.draw

        def held(batch: Batch, steps: int) -> Any:
            assert self.opened.wait(PATIENCE)
            return draw(batch, steps)

        monkeypatch.setattr(Batch, "draw", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.opened.set()


@contextlib.contextmanager
def stalling(server: Server) -> Iterator[socket.socket]:
    """A client with little room for what it has not read."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", server.port))
        yield client


def some_request(rng: np.random.Generator) -> dict[str, Any]:
    options: list[dict[str, Any]] = [
        {},
        {"temperature": 0},
        {"temperature": 0.7, "top_k": 4},
        {"top_p": 0.6, "prime": "It's"},
        {"stop": ["1", "it"], "prime": TEXT[:70]},
        {"stop": "x", "weight_dtype": "bfloat16"},
        {"weight_dtype": "int8", "top_k": 1000},
    ]
    given = {**options[rng.integers(len(options))], "length": int(rng.integers(0, 300))}
    if rng.integers(3):
        return {**given, "seed": int(rng.integers(2**63)) * 2}
    return {**given, "seeds": [int(seed) for seed in rng.integers(0, 9, rng.integers(1, 5))]}


def expected(model: CharLM, request: dict[str, Any]) -> list[str]:
    """The texts that each would get alone."""
    options = {name: value for name, value in request.items() if name not in ("seed", "seeds")}
    seeds = request.get("seeds") or [request["seed"]]
    return [model.sample(seed=seed, **options) for seed in seeds]


def joined(events: list[tuple[str, Any]]) -> list[str]:
    """The texts of a stream; its events must be in order."""
    assert events[0][0] == "start" and events[-1] == ("done", {})
    seeds = events[0][1]["seeds"]
    texts, ended = [""] * len(seeds), set()
    for name, data in events[1:-1]:
        assert data["index"] not in ended
        if name == "text":
            texts[data["index"]] += data["text"]
        else:
            assert name == "end" and data["seed"] == seeds[data["index"]]
            ended.add(data["index"])
    assert len(ended) == len(seeds)
    return texts


# ---- texts ----


def test_texts_are_those_of_each_alone(model: CharLM, server: Server) -> None:
    """40 requests of 12 clients that come when they like, half of them streamed."""
    rng = np.random.default_rng(7)
    requests = [some_request(rng) for _ in range(40)]
    pauses = rng.uniform(0, 0.02, 40)

    def ask(i: int) -> list[str]:
        time.sleep(pauses[i])
        if i % 2:
            return joined(server.events(**requests[i]))
        return [text["text"] for text in server.sample(**requests[i])]

    with ThreadPoolExecutor(12) as clients:
        found = list(clients.map(ask, range(40)))
    for texts, request in zip(found, requests, strict=True):
        assert texts == expected(model, request), request
    server.wait_for((0, 0))


def test_clients_share_a_batch(
    model: CharLM, server: Server, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    draw = Batch.draw

    def counted(batch: Batch, steps: int) -> Any:
        drawn = draw(batch, min(steps, 20))
        sizes.append(len(drawn))
        return drawn

    monkeypatch.setattr(Batch, "draw", counted)
    with ThreadPoolExecutor(5) as clients:
        asked = [clients.submit(server.sample, length=100, seed=i) for i in range(5)]
        server.wait_for((5, 0))
        gate.opened.set()
        texts = [answer.result()[0]["text"] for answer in asked]
    assert max(sizes) == 5
    assert texts == model.sample(100, seeds=range(5))


def test_a_seed_is_told(model: CharLM, server: Server) -> None:
    one, two = (server.sample(length=40)[0] for _ in range(2))
    assert one["seed"] != two["seed"] and max(one["seed"], two["seed"]) < 2**53
    assert one["text"] == model.sample(40, seed=one["seed"])
    assert one["reason"] == "length"
    ((_, start), *_) = server.events(length=0)
    assert 0 <= start["seeds"][0] < 2**53


def test_the_reason_of_an_end(model: CharLM, server: Server) -> None:
    full = model.sample(200, seed=3)
    stop = full[50:52]
    (text,) = server.sample(length=200, seed=3, stop=stop)
    assert text["text"] == full[: full.index(stop)] and text["reason"] == "stop"


def test_probabilities_stand_beside_the_text(model: CharLM, server: Server) -> None:
    request = {"length": 60, "seeds": [1, 2], "prime": "def", "alternatives": 3}
    texts = server.sample(**request)
    events = server.events(**request)
    for i, text in enumerate(texts):
        assert text["text"] == model.sample(60, "def", seed=i + 1)
        symbols = text["symbols"]
        assert "".join(chr(symbol["symbol"]) for symbol in symbols) == text["text"][3:]
        assert all(len(symbol["alternatives"]) == 3 for symbol in symbols)
        streamed = [e for name, e in events if name == "text" and e["index"] == i]
        assert [s for e in streamed for s in e.get("symbols", [])] == symbols
    # Also where a stop string may begin, and up to one.
    stop = texts[0]["text"][30:33]
    pieces = server.events(**{**request, "seeds": [1], "stop": stop})[2:-2]
    for _, event in pieces:
        shown = "".join(chr(symbol["symbol"]) for symbol in event["symbols"])
        assert shown == event["text"]
    assert sum(len(event["text"]) for _, event in pieces) == texts[0]["text"].index(stop, 3) - 3
    (text,) = server.sample(length=3, seed=1, alternatives=3)
    told = [symbol["probability"] for symbol in text["symbols"]]
    assert np.log(told).sum() == pytest.approx(model.score([text["text"]])[0], abs=1e-4)


def test_unknown_characters_may_be_left_out(model: CharLM, server: Server) -> None:
    request = {"prime": "%de%f", "seed": 1, "length": 9, "allow_unknown": True}
    status, answer = server.ask("POST", "/v1/sample", request)
    assert status == 200 and answer["left_out"] == 2
    assert answer["texts"][0]["text"] == model.sample(9, "def", seed=1)
    assert server.events(**request)[0] == ("start", {"seeds": [1], "left_out": 2})


def test_a_model_of_bytes() -> None:
    model = lively(None)
    with serving(model) as server:
        prime = "é".encode()
        (text,) = server.sample(length=50, seed=1, prime=list(prime), alternatives=1)
        assert text["text"] == model.sample(50, prime, seed=1)  # type: ignore[call-overload]
        drawn = bytes(symbol["symbol"] for symbol in text["symbols"])
        assert (prime + drawn).decode("utf-8", "replace") == text["text"]
        assert server.sample(length=50, seed=1, prime="é")[0]["text"] == text["text"]
        status, answer = server.ask("POST", "/v1/sample", {"prime": [256]})
        assert status == 400 and answer["error"]["field"] == "prime"
        status, answer = server.ask("POST", "/v1/sample", {"prime": "é" * 9000})
        assert status == 400 and "at most 10000 bytes" in answer["error"]["message"]


def test_scores(model: CharLM, server: Server) -> None:
    texts = ["return", "", "def f(a, b):\n"]
    status, answer = server.ask("POST", "/v1/score", {"texts": texts})
    assert status == 200
    assert [score["nats"] for score in answer["scores"]] == model.score(texts).tolist()
    assert [score["characters"] for score in answer["scores"]] == [6, 0, 13]
    request = {"texts": ["a", "%"], "allow_unknown": True, "weight_dtype": "int8"}
    status, answer = server.ask("POST", "/v1/score", request)
    assert answer["scores"][0]["nats"] == model.score(["a"], weight_dtype="int8")[0]
    assert answer["scores"][1] == {"nats": None, "characters": 1}


def test_scoring_and_drawing_take_turns(
    model: CharLM, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text of many blocks is scored while others are drawn, and given up if its client leaves."""
    turns: list[str] = []
    score, draw = Engine._score, Batch.draw

    def scored(engine: Engine, scoring: Any) -> None:
        turns.append("score")
        score(engine, scoring)

    def slowly(engine: Engine, scoring: Any) -> None:
        time.sleep(0.02)
        scored(engine, scoring)

    def drawn(batch: Batch, steps: int) -> Any:
        turns.append("draw")
        return draw(batch, min(steps, 20))

    monkeypatch.setattr(Engine, "_score", scored)
    monkeypatch.setattr(Batch, "draw", drawn)
    texts = [TEXT * 60] * 20
    with serving(model, Limits(score=200_000)) as server, ThreadPoolExecutor(2) as clients:
        text = clients.submit(server.sample, length=10_000, seed=1)
        server.wait_for((1, 0))
        scores = clients.submit(server.ask, "POST", "/v1/score", {"texts": texts})
        server.wait_for((1, 1))
        gate.opened.set()
        assert text.result()[0]["text"] == model.sample(10_000, seed=1)
        status, answer = scores.result()
        assert status == 200 and answer["scores"][19]["nats"] == model.score(texts[:1])[0]
        together = "".join(turn[0] for turn in turns)
        blocks = turns.count("score")
        assert "dsd" in together and not re.search("ss", together[: together.rfind("d")])
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        kind = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/score", json.dumps({"texts": texts}), kind)
        server.wait_for((0, 1))
        monkeypatch.setattr(Engine, "_score", slowly)
        connection.close()
        server.wait_for((0, 0))
        assert turns.count("score") - blocks < blocks


# ---- refusals ----


@pytest.mark.parametrize(
    ("body", "field", "takes"),
    [
        ({"length": -1}, "length", "an integer in 0 to 300"),
        ({"length": 301}, "length", "an integer in 0 to 300"),
        ({"length": 1.5}, "length", "an integer in 0 to 300"),
        ({"length": True}, "length", "an integer in 0 to 300"),
        ({"length": "9"}, "length", "an integer in 0 to 300"),
        ({"prime": "a" * 101}, "prime", "a string of at most 100 characters"),
        ({"prime": [97]}, "prime", "a string of at most 100 characters"),
        ({"prime": "def%"}, "prime", "characters of the model's vocabulary"),
        ({"prime": "\ud800"}, "prime", "characters of the model's vocabulary"),
        ({"temperature": -0.1}, "temperature", "a finite number, at least 0"),
        ({"temperature": 10**400}, "temperature", "a finite number, at least 0"),
        ({"temperature": None}, "temperature", "a finite number, at least 0"),
        ({"top_k": 0}, "top_k", "an integer in 1 to"),
        ({"top_p": 0}, "top_p", "a finite number, above 0, at most 1"),
        ({"top_p": 1.01}, "top_p", "a finite number, above 0, at most 1"),
        ({"seed": 2**64}, "seed", "an integer in 0 to"),
        ({"seeds": []}, "seeds", "an array of 1 to 8 integers"),
        ({"seeds": [0] * 9}, "seeds", "an array of 1 to 8 integers"),
        ({"seeds": [0, -1]}, "seeds[1]", "an integer in 0 to"),
        ({"seed": 1, "seeds": [1]}, "seeds", "null where seed is given"),
        ({"stop": ""}, "stop", "a string of 1 to 1000 characters"),
        ({"stop": ["a", ""]}, "stop[1]", "a string of 1 to 1000 characters"),
        ({"stop": ["a", "%"]}, "stop[1]", "characters of the model's vocabulary"),
        ({"stop": ["a"] * 17}, "stop", "an array of 0 to 16 strings"),
        ({"stop": [1]}, "stop[0]", "a string"),
        ({"weight_dtype": "float64"}, "weight_dtype", '"float32" or "bfloat16" or "int8"'),
        ({"alternatives": 21}, "alternatives", "an integer in 0 to 20"),
        (
            {"alternatives": 9, "length": 251, "seeds": [1] * 8},
            "alternatives",
            "such that texts x length x (1 + alternatives) is at most 20000",
        ),
        ({"stream": 1}, "stream", "true or false"),
        ({"lenght": 1}, "lenght", "one of the fields length, prime"),
        ([], "body", "an object"),
        (b"{", "body", "JSON in UTF-8"),
        (b'{"temperature": NaN}', "body", "JSON in UTF-8"),
        (b"\xff", "body", "JSON in UTF-8"),
        (b"[" * 4000, "body", "JSON in UTF-8"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(server: Server, body: Any, field: str, takes: str) -> None:
    status, answer = server.ask("POST", "/v1/sample", body)
    assert status == 400
    error = answer["error"]
    assert error["field"] == field
    assert error["takes"].startswith(takes)
    assert error["got"]
    assert field in error["message"]


def test_a_nested_value_is_refused(server: Server) -> None:
    """However deep: some can be read but not shown."""
    for depth in range(800, 1000, 8):
        body = b'{"prime": %s%s}' % (b"[" * depth, b"]" * depth)
        assert server.ask("POST", "/v1/sample", body)[0] == 400, depth


def test_a_long_name_is_cut(server: Server) -> None:
    status, answer = server.ask("POST", "/v1/sample", {"a" * 4000: 1})
    assert status == 400 and len(json.dumps(answer)) < 1000


def test_as_many_symbols_as_may_be_told(server: Server) -> None:
    assert server.sample(length=250, seeds=[1] * 8, alternatives=9)
    assert server.ask("GET", "/v1/model")[1]["limits"]["told"] == 20_000


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "texts"),
        ({"texts": "abc"}, "texts"),
        ({"texts": []}, "texts"),
        ({"texts": [""] * 1001}, "texts"),
        ({"texts": ["a", 1]}, "texts[1]"),
        ({"texts": ["a", "%"]}, "texts[1]"),
        ({"texts": ["a" * 150, "b" * 51]}, "texts"),
        ({"texts": ["a" * 201]}, "texts[0]"),
        ({"texts": ["a"], "weight_dtype": 1}, "weight_dtype"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_field_of_score_is_named(server: Server, body: Any, field: str) -> None:
    status, answer = server.ask("POST", "/v1/score", body)
    assert (status, answer["error"]["field"]) == (400, field)


def test_a_large_body_is_refused(server: Server) -> None:
    """By its length, before it is sent; and without one, once it is too large."""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall(
            b"POST /v1/sample HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 5001\r\n\r\n"
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 413")

    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        headers = POST.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked")
        client.sendall(headers + b"%x\r\n%s\r\n" % (5001, b" " * 5001))  # and no last chunk
        answer = http.client.HTTPResponse(client)
        answer.begin()
        error = json.loads(answer.read())["error"]
        assert (answer.status, error["field"]) == (413, "body")
        assert error["takes"] == "at most 5000 bytes"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": ""}, 415),
        ({"Content_Type": "Application/JSON; charset=utf-8"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:80"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "localhost@evil.example"}, 421),
        ({"Host": "LocalHost:9"}, 200),
        ({"Host": "[::1]:9"}, 200),
        ({"Host": "192.168.0.7"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Origin": "http://]/"}, 403),
        ({"Origin": ""}, 403),
        ({"Host": "localhost:9", "Origin": "http://localhost:10"}, 403),
        ({"Host": "localhost:9", "Origin": "http://localhost:9"}, 200),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-origin"}, 200),
    ],
    ids=str,
)
def test_who_may_ask(server: Server, headers: dict[str, str], status: int) -> None:
    found, answer = server.ask("POST", "/v1/sample", {"length": 1}, **headers)
    assert found == status, answer
    assert "error" in answer or status == 200


def test_other_names_can_be_allowed(model: CharLM) -> None:
    with serving(model, hosts=["Model.example"]) as server:
        assert server.ask("GET", "/health", Host="model.EXAMPLE:80")[0] == 200
        assert server.ask("GET", "/health", Host="other.example")[0] == 421


def test_a_token_is_needed(model: CharLM) -> None:
    with serving(model, token=TOKEN.encode()) as server:
        for given in (None, TOKEN, f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}0", "Bearer \xe9"):
            headers = {} if given is None else {"Authorization": given}
            for method, path in (("POST", "/v1/sample"), ("GET", "/v1/model"), ("GET", "/v1/no")):
                status, answer = server.ask(method, path, **headers)
                assert (status, answer["error"]["field"]) == (401, "Authorization")
                assert TOKEN not in json.dumps(answer)
        status, _ = server.ask("GET", "/v1/model", Authorization=f"bearer  {TOKEN}")
        assert status == 200
        assert server.ask("GET", "/health")[0] == 200
        _, description = server.ask("GET", "/openapi.json")
        assert description["security"] == [{"token": []}]


def test_no_other_routes_or_methods(server: Server) -> None:
    assert server.ask("GET", "/nothing")[0] == 404
    assert server.ask("GET", "/v1/sample")[0] == 405
    assert server.ask("DELETE", "/v1/model")[0] == 405
    assert server.ask("GET", "/../page.html")[0] == 404
    assert server.ask("GET", "/health/")[0] == 404  # no redirection
    assert server.ask("GET", "/health%0d%0a")[0] == 400
    assert server.ask("OPTIONS", "/v1/sample", Origin="http://localhost")[0] in (403, 405)


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/health", "/v1/model", "/no"])
def test_headers_of_every_answer(server: Server, path: str) -> None:
    connection, answer = server.open("GET", path)
    policy = str(answer.getheader("content-security-policy"))
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.getheader("x-content-type-options") == "nosniff"
    assert not [name for name, _ in answer.getheaders() if name.lower().startswith("access-cont")]
    assert answer.read()
    connection.close()


# ---- many requests, and clients that leave ----


def test_too_many_requests_are_refused(model: CharLM, gate: Gate) -> None:
    with serving(model, Limits(texts=2, waiting=1)) as server, ThreadPoolExecutor(3) as clients:
        first = clients.submit(server.sample, length=9, seeds=[1, 2])
        server.wait_for((2, 0))
        second = clients.submit(server.sample, length=9, seed=3)
        server.wait_for((2, 1))
        connection, answer = server.open("POST", "/v1/sample", {"length": 9})
        assert (answer.status, answer.getheader("retry-after")) == (429, "1")
        assert "the queue is full (1 request)" in json.loads(answer.read())["error"]["message"]
        connection.close()
        assert server.ask("GET", "/health")[1] == {"status": "ok", "running": 2, "waiting": 1}
        gate.opened.set()
        texts = [text["text"] for text in [*first.result(), *second.result()]]
        assert texts == model.sample(9, seeds=[1, 2, 3])
        assert server.sample(length=9, seed=4)[0]["text"] == model.sample(9, seed=4)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(
    model: CharLM, gate: Gate, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: set[Stream] = set()
    draw = Batch.draw

    def noted(batch: Batch, steps: int) -> Any:
        left.update(stream for stream in batch.streams if stream.request.length == 10_000)
        return draw(batch, min(steps, 20))

    monkeypatch.setattr(Batch, "draw", noted)
    with serving(model, Limits(texts=1, waiting=1)) as server, ThreadPoolExecutor(1) as clients:

        def leave(load: tuple[int, int]) -> socket.socket:
            body = json.dumps({"length": 10_000, "stream": stream}).encode()
            client = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
            client.sendall(POST % len(body) + body)
            server.wait_for(load)
            return client

        first = leave((1, 0))
        leave((1, 1)).close()  # one that waits
        server.wait_for((1, 0))
        last = clients.submit(server.sample, length=9, seed=1)
        server.wait_for((1, 1))
        first.close()
        time.sleep(0.05)
        gate.opened.set()
        begin = time.monotonic()
        assert last.result()[0]["text"] == model.sample(9, seed=1)
        assert time.monotonic() - begin < PATIENCE / 2
        server.wait_for((0, 0))
        (stream_of_it,) = left  # the one that waited has never begun
        assert stream_of_it.drawn < 10_000


def test_a_reader_that_stalls_is_cut_off(model: CharLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text is not drawn to the end for it."""
    monkeypatch.setattr("charrnn_fast.serve.server._STALLED_SECONDS", 0.1)
    left: set[Stream] = set()
    draw = Batch.draw

    def noted(batch: Batch, steps: int) -> Any:
        left.update(batch.streams)
        time.sleep(0.005)
        return draw(batch, min(steps, 20))

    monkeypatch.setattr(Batch, "draw", noted)
    body = json.dumps({"length": 20_000, "stream": True, "alternatives": 20}).encode()
    with serving(model, Limits(length=20_000), buffer=4096) as server, stalling(server) as client:
        client.sendall(POST % len(body) + body)
        server.wait_for((1, 0))
        server.wait_for((0, 0))
        (stream,) = left
        assert 0 < stream.drawn < 20_000


def test_a_steady_reader_gets_a_large_answer(
    model: CharLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though all of it takes longer than a reader may stall."""
    monkeypatch.setattr("charrnn_fast.serve.server._STALLED_SECONDS", 0.5)
    request = {"length": 1000, "seed": 1, "alternatives": 20}
    body = json.dumps(request).encode()
    with serving(model, buffer=4096) as server, stalling(server) as client:
        client.sendall(POST % len(body) + body)
        answer, begin = b"", time.monotonic()
        while not answer.endswith(b'"left_out":0}'):
            part = client.recv(4000)
            assert part, f"cut off after {len(answer)} bytes"
            answer += part
            time.sleep(0.006)
        assert time.monotonic() - begin > 0.5
        found = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert found["texts"][0]["text"] == model.sample(1000, seed=1)


def test_a_reader_that_leaves_does_not_hold_the_loop(
    model: CharLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that wait for it are not encoded, and the event loop goes on."""
    shown = []
    show = app._shown

    def counted(job: Any, event: Any) -> bytes:
        shown.append(event)
        time.sleep(0.001)
        return show(job, event)

    async def receive() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if len(shown) > 10:
            left.set()  # uvicorn then returns at once

    async def serve() -> None:
        await app._Stream(forgetful, job, inbox)({"type": "http"}, receive, send)

    monkeypatch.setattr(app, "_shown", counted)
    request: Any = None
    job = Job(request, [1])
    forgetful: Any = types.SimpleNamespace(forget=lambda job, ended: None)
    left, inbox = asyncio.Event(), asyncio.Queue[Any]()
    for _ in range(1000):
        inbox.put_nowait([Piece(0, "a", [])])
    asyncio.run(serve())
    assert len(shown) < 20


def test_a_comment_shows_that_a_request_waits(
    model: CharLM, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_COMMENT_SECONDS", 0.05)
    with serving(model) as server:
        connection, answer = server.open("POST", "/v1/sample", {"length": 9, "stream": True})
        assert answer.getheader("x-accel-buffering") == "no"
        while answer.readline() != b": waiting\n":
            pass
        gate.opened.set()
        assert b"event: done\n" in answer.read()
        connection.close()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: local"])
@pytest.mark.parametrize("asks", [False, True], ids=["new", "kept"])
def test_idle_connections_are_closed(
    model: CharLM, monkeypatch: pytest.MonkeyPatch, sent: bytes, asks: bool
) -> None:
    monkeypatch.setattr("charrnn_fast.serve.server._KEEP_ALIVE", 0.1)
    monkeypatch.setattr("charrnn_fast.serve.server._HEADER_SECONDS", 0.1)
    with serving(model) as server, socket.create_connection(("127.0.0.1", server.port), 5) as idle:
        if asks:
            idle.sendall(HEALTH)
            assert idle.recv(10_000).startswith(b"HTTP/1.1 200")
        idle.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            while idle.recv(10_000):
                pass


def test_a_request_may_take_longer_than_its_headers(
    model: CharLM, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn_fast.serve.server._HEADER_SECONDS", 0.1)
    with serving(model) as server, ThreadPoolExecutor(1) as clients:
        text = clients.submit(server.sample, length=9, seed=1)
        time.sleep(0.3)
        gate.opened.set()
        assert text.result()[0]["text"] == model.sample(9, seed=1)


def test_a_failure_is_told_and_passes(
    model: CharLM, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(batch: Batch, steps: int) -> Any:
        raise ValueError("logits must be finite: the weights are damaged")

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "draw", fail)
        status, answer = server.ask("POST", "/v1/sample", {"seeds": [1, 2]})
        assert status == 500 and "the weights are damaged" in answer["error"]["message"]
        (_, (name, error)) = server.events(seeds=[1, 2])
        assert name == "error" and "the weights are damaged" in error["error"]["message"]
    assert "ValueError: logits must be finite" in capsys.readouterr().err
    assert server.sample(length=9, seed=4)[0]["text"] == model.sample(9, seed=4)
    server.wait_for((0, 0))


@pytest.mark.parametrize("method", ["_begin", "read"])
def test_no_memory_fails_its_own_texts_alone(
    model: CharLM, server: Server, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        if method == "read":
            patch.setattr(Batch, "_begin", fail)  # in which streams are in no list
        else:
            patch.setattr(Engine, "_begin", fail)
        status, answer = server.ask("POST", "/v1/sample", {"seeds": [1, 2]})
        assert status == 500 and "no room" in answer["error"]["message"]
    assert server.sample(length=9, seed=4)[0]["text"] == model.sample(9, seed=4)
    server.wait_for((0, 0))


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_nobody_waits_if_stderr_is_closed(
    model: CharLM, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise error("closed")

    def fail(*arguments: Any) -> None:
        raise KeyError("a mistake")

    with serving(model) as server, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Closed())
        with monkeypatch.context() as failing:
            failing.setattr(Batch, "draw", fail)
            assert server.ask("POST", "/v1/sample", {"length": 9})[0] == 500
        assert server.sample(length=9, seed=4)[0]["text"] == model.sample(9, seed=4)
        patch.setattr(Engine, "_extend", fail)
        assert server.ask("POST", "/v1/sample", {"length": 9})[0] == 500


def test_the_command_ends_if_the_thread_fails(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(engine: Engine, *arguments: Any) -> None:
        raise KeyError("a mistake")

    def ask() -> int:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with closing(post(port, {"length": 9})) as connection:
                    return connection.getresponse().status
            except ConnectionRefusedError:
                assert time.monotonic() < end
                time.sleep(0.01)

    monkeypatch.setattr(Engine, "_extend", fail)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ThreadPoolExecutor(1) as clients:
        status = clients.submit(ask)
        assert main(["serve", str(saved), "--port", str(port)]) == 1
        assert status.result() == 500
    assert "the drawing has failed" in capsys.readouterr().err


def test_nobody_waits_if_the_thread_fails(
    model: CharLM, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """By a mistake of ours, outside the drawing itself."""

    def fail(engine: Engine, *arguments: Any) -> None:
        raise KeyError("a mistake")

    with serving(model) as server:
        monkeypatch.setattr(Engine, "_extend", fail)
        status, answer = server.ask("POST", "/v1/sample", {"length": 9})
        assert status == 500 and "the server's drawing has failed" in answer["error"]["message"]
        assert server.ask("GET", "/health")[0] == 503
        assert server.ask("POST", "/v1/sample", {})[0] == 503
    assert "KeyError: 'a mistake'" in capsys.readouterr().err


def test_the_end_lets_texts_end(model: CharLM, gate: Gate) -> None:
    with serving(model, Limits(texts=1)) as server, ThreadPoolExecutor(2) as clients:
        first = clients.submit(server.sample, length=9, seed=1)
        server.wait_for((1, 0))
        second = clients.submit(server.sample, length=9, seed=2)
        server.wait_for((1, 1))
        server.app.end()
        status, answer = server.ask("POST", "/v1/sample", {})
        assert (status, answer["error"]["message"]) == (503, "the server is shutting down")
        assert server.ask("GET", "/health")[0] == 503
        gate.opened.set()
        texts = [first.result()[0]["text"], second.result()[0]["text"]]
        assert texts == model.sample(9, seeds=[1, 2])


def test_an_abort_tells_every_client(model: CharLM, gate: Gate) -> None:
    with serving(model, Limits(texts=1)) as server, ThreadPoolExecutor(2) as clients:
        first = clients.submit(server.events, length=300)
        server.wait_for((1, 0))
        second = clients.submit(server.ask, "POST", "/v1/sample", {})
        server.wait_for((1, 1))
        server.app.abort()
        gate.opened.set()
        message = "the server is shutting down"
        assert first.result()[-1] == ("error", {"error": {"message": message}})
        assert second.result()[0] == 503


def test_lines_of_the_log(model: CharLM) -> None:
    lines: list[str] = []
    with serving(model, log=lines.append) as server:
        server.sample(length=1)
        server.ask("GET", "/no%0Aline")
        server.ask("GET", "/health", Host="evil.example")
    shapes = [re.sub(r"\d+ bytes \d\.\d{3} s", "B S", line) for line in lines]
    assert shapes == [
        "127.0.0.1 POST /v1/sample 200 B S",
        "127.0.0.1 GET /no%0Aline 400 B S",
        "127.0.0.1 GET /health 421 B S",
    ]


# ---- what describes it ----


def test_the_description_is_that_of_the_routes(server: Server) -> None:
    _, description = server.ask("GET", "/openapi.json")
    assert description["openapi"].startswith("3.1")
    routes = {
        route.path: {method.lower() for method in route.methods or () if method != "HEAD"}
        for route in server.app._starlette.routes
        if isinstance(route, Route)
    }
    own = {"/", "/page.css", "/page.js", "/openapi.json"}
    paths = {path: set(operations) for path, operations in description["paths"].items()}
    assert paths == {path: methods for path, methods in routes.items() if path not in own}
    references = re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(description))
    assert references
    for reference in references:
        found = description
        for name in reference.split("/"):
            found = found[name]
    operations = [o for path in description["paths"].values() for o in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    schema = description["components"]["schemas"]["SampleRequest"]
    defaults = {name: value["default"] for name, value in schema["properties"].items()}
    assert {**defaults, "seed": 1} | {"seeds": None} == {**defaults, "seed": 1}
    (text,) = server.sample(**{**defaults, "length": 5, "seed": 1})
    assert len(text["text"]) == 5


def test_the_description_is_valid(server: Server) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    _, description = server.ask("GET", "/openapi.json")
    validator.validate(description)


def test_the_description_takes_what_the_server_takes(model: CharLM) -> None:
    """The fields of `CharLM.sample` are all there."""
    names = {field.name for field in fields.sample_fields(model, Limits())}
    keywords = set(inspect.signature(CharLM.sample).parameters) - {"self"}
    assert keywords <= names


def test_the_model_is_described(model: CharLM, server: Server) -> None:
    status, answer = server.ask("GET", "/v1/model")
    assert status == 200
    assert answer["parameters"] == model.num_parameters
    assert answer["vocabulary"]["symbols"] == model.vocabulary.symbols.tolist()
    assert answer["limits"]["length"] == 300
    assert answer["weight_dtypes"] == ["float32", "bfloat16", "int8"]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"dtype": "float64"}, ["float64"]),
        ({"compute_dtype": "bfloat16"}, ["float32", "bfloat16"]),
        ({}, ["float32", "bfloat16", "int8"]),
        ({"hidden_size": 12_289, "num_layers": 1, "proj_size": 1}, ["float32", "bfloat16"]),
    ],
)
def test_weights_that_a_model_may_draw_with(options: dict[str, Any], found: list[str]) -> None:
    model = lively(TEXT, **options)
    assert fields.weight_dtypes(model) == found
    for name in ("float32", "float64", "bfloat16", "int8"):
        if name in found:
            model.sample(1, seed=1, weight_dtype=name)
        else:
            with pytest.raises(ValueError, match=f"weight_dtype|rows of {name} weights"):
                model.sample(1, seed=1, weight_dtype=name)


def test_a_model_that_nothing_draws_with_is_refused() -> None:
    wide = lively("ab", hidden_size=12_289, num_layers=1, proj_size=1)
    wide._weight_dtype = "int8"  # as of a file that another program wrote
    with pytest.raises(ValueError, match="rows of int8 weights must have at most 12288 elements"):
        app.App(wide, "wide", Limits(300, 100, 8, 200, 5000, 16, 20_000))


# ---- the command ----


@pytest.fixture(scope="module")
def saved(model: CharLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "model.safetensors"
    model.save(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines: give --token"),
        (["--host", "::"], "--host :: can be reached from other machines: give --token-file"),
        (["--host", "nowhere.invalid", "--token-file", "TOKEN"], "--host must be an address of"),
        (["--token-file", "SHORT"], "must hold a token of 16 or more visible ASCII characters"),
        (["--port", "65536"], "--port"),
        (["--max-texts", "0"], "--max-texts"),
        (["--grace", "-1"], "--grace"),
    ],
    ids=str,
)
def test_wrong_arguments(
    saved: Path, arguments: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "TOKEN").write_text(TOKEN)
    (tmp_path / "SHORT").write_text("secret")
    given = [str(tmp_path / a) if a in ("TOKEN", "SHORT") else a for a in arguments]
    try:
        status: object = main(["serve", str(saved), *given])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert "secret" not in error


def test_a_port_that_is_taken(saved: Path, capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(saved), "--port", str(port)]) == 2
    assert f"127.0.0.1, port {port}: Address already in use" in capsys.readouterr().err


def test_without_the_extra(saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    for name in [name for name in sys.modules if name.startswith("charrnn_fast.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sys.modules["charrnn_fast"], "serve", raising=False)
    monkeypatch.setitem(sys.modules, "starlette", None)
    for name in [name for name in sys.modules if name.startswith("starlette.")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["serve", str(saved)]) == 2
    error = capsys.readouterr().err
    assert "serve needs uvicorn and Starlette" in error
    assert "pip install 'charrnn_fast[serve]'" in error


def started(saved: Path, *arguments: str) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "charrnn_fast", "serve", str(saved), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    found = re.search(r"serving at +http://127\.0\.0\.1:(\d+)/", lines[1])
    assert found, (lines, process.stderr and process.stderr.read())
    return process, int(found[1])


@pytest.mark.slow
def test_signals_end_it(model: CharLM, saved: Path) -> None:
    """SIGTERM lets a text end; SIGKILL harms nothing: the same port serves again at once."""
    long = {"length": 100_000, "seed": 1, "stream": True}
    process, port = started(saved, "--port", "0", "--max-length", "100000", "--log")
    with closing(post(port, long)) as connection:
        answer = connection.getresponse()
        assert answer.read(12) == b"event: start"
        process.send_signal(signal.SIGTERM)
        events = events_of(b"event: start" + answer.read())
    text = "".join(data["text"] for name, data in events if name == "text")
    assert text == model.sample(100_000, seed=1)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "ended\n"), err
    assert err.startswith("127.0.0.1 POST /v1/sample 200")

    process, port = started(saved, "--port", str(port), "--max-length", "100000")
    with closing(post(port, long)) as connection:
        connection.getresponse().read(12)
        process.kill()
        process.communicate(timeout=PATIENCE)
    process, port = started(saved, "--port", str(port))
    with closing(post(port, {"length": 9, "seed": 1})) as connection:
        found = json.loads(connection.getresponse().read())
    assert found["texts"][0]["text"] == model.sample(9, seed=1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(saved: Path) -> None:
    long = {"length": 900_000, "stream": True}
    process, port = started(saved, "--port", "0", "--max-length", "900000", "--grace", "60")
    with closing(post(port, long)) as connection:
        answer = connection.getresponse()
        assert answer.read(12) == b"event: start"
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "ended\n", "")


def post(port: int, body: Any) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    kind = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/sample", json.dumps(body), kind)
    return connection

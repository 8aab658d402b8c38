"""A server in a thread of this process, and a client for it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from charrnn_fast import CharLM
from charrnn_fast.serve.app import App
from charrnn_fast.serve.fields import Limits
from charrnn_fast.serve.server import configured

PATIENCE = 60  # seconds


class Server:
    """A server that runs; `app` is what it serves."""

    def __init__(self, app: App, port: int) -> None:
        self.app, self.port = app, port

    def open(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Sends a request; the answer's body is still to be read. body: JSON, or bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None:
            headers = {"Content-Type": "application/json", **headers}
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, given)
        return connection, connection.getresponse()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        connection, answer = self.open(method, path, body, **headers)
        try:
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def sample(self, **fields: Any) -> Any:
        """The texts of an answer, which must be one."""
        status, answer = self.ask("POST", "/v1/sample", fields)
        assert status == 200, answer
        return answer["texts"]

    def events(self, **fields: Any) -> list[tuple[str, Any]]:
        """The events of an answer, which must be one."""
        connection, answer = self.open("POST", "/v1/sample", {**fields, "stream": True})
        try:
            assert answer.status == 200, answer.read()
            kind = str(answer.getheader("content-type"))
            assert kind.startswith("text/event-stream")
            return events_of(answer.read())
        finally:
            connection.close()

    def wait_for(self, load: tuple[int, int]) -> None:
        """Until so many texts are drawn, and so many requests wait."""
        until(lambda: self.app.load == load, lambda: f"{self.app.load}, not {load}")


def until(true: Callable[[], bool], told: Callable[[], str]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, told()
        time.sleep(0.002)


def events_of(data: bytes) -> list[tuple[str, Any]]:
    """Server-sent events with JSON: their names and data."""
    found = []
    *blocks, rest = data.decode("ascii").split("\n\n")
    assert not rest
    for block in blocks:
        if block == ": waiting":
            continue
        name, value = block.split("\n")
        assert name.startswith("event: ") and value.startswith("data: ")
        found.append((name.removeprefix("event: "), json.loads(value.removeprefix("data: "))))
    return found


@contextmanager
def serving(
    model: CharLM, limits: Limits | None = None, *, buffer: int = 0, **options: Any
) -> Iterator[Server]:
    """buffer: bytes that the system holds for a client that does not read; 0: its default."""
    app = App(model, "a model", limits or Limits(), **options)
    server = uvicorn.Server(configured(app, 1000, 0))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        if buffer:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until(lambda: server.started or not thread.is_alive(), lambda: "it has not started")
        assert server.started
        try:
            yield Server(app, listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()

"""uvicorn with this package's signals: an end lets the texts that are drawn end, for a while."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from .app import App

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KEEP_ALIVE = 60  # seconds that an idle connection stays open
_MARGIN = 2  # seconds after the grace for the last answers


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # `run` does


def configured(app: App, most_connections: int, grace: float) -> uvicorn.Config:
    """uvicorn's settings for `run`."""
    return uvicorn.Config(
        app.asgi,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="on",
        loop="asyncio",
        http="h11",
        ws="none",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=most_connections,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=round(grace) + _MARGIN,
    )


def run(
    app: App,
    listening: socket.socket,
    most_connections: int,
    grace: float,
    started: Callable[[], None],
) -> None:
    """Serves until SIGINT or SIGTERM.

    The server then takes no new requests, and those that there are have `grace` seconds; a second
    signal ends them at once. started: called once requests are answered.
    """
    server = _Server(configured(app, most_connections, grace))
    asyncio.run(_serve(app, server, listening, grace, started))


async def _serve(
    app: App,
    server: uvicorn.Server,
    listening: socket.socket,
    grace: float,
    started: Callable[[], None],
) -> None:
    loop = asyncio.get_running_loop()

    def end() -> None:
        if server.should_exit:
            app.abort()
            server.force_exit = True
            return
        server.should_exit = True
        app.end()
        loop.call_later(grace, app.abort)

    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        for number in _SIGNALS:
            loop.add_signal_handler(number, end)
        started()
    await serving

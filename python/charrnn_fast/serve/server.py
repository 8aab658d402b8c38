"""uvicorn with this package's signals: an end lets the texts that are drawn end, for a while."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .app import App

_STALLED_SECONDS = 60  # without a byte read by a client that has more to read
_HEADER_SECONDS = 30  # for a client to send the headers of a request

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KEEP_ALIVE = 60  # seconds that an idle connection stays open
_MARGIN = 2  # seconds after the grace for the last answers


class Protocol(H11Protocol):
    """uvicorn's, but closes connections of clients that neither ask nor read for long.

    Each would hold one of the connections that there may be, and a text that is drawn for it.
    """

    _stalled: asyncio.TimerHandle | None = None
    _silent: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._silent = self.loop.call_later(_HEADER_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._silent, self._stalled)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            _cancel(self._silent)
            self._silent = None
        elif self._silent is None and not self.transport.is_closing():  # the next one's headers
            self._silent = self.loop.call_later(_HEADER_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(_STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._stalled)


def _cancel(*timers: asyncio.TimerHandle | None) -> None:
    for timer in timers:
        if timer is not None:
            timer.cancel()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # `run` does

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves the application running then, to be cancelled
            await self.lifespan.shutdown()


def configured(app: App, most_connections: int, grace: float) -> uvicorn.Config:
    """uvicorn's settings for `run`."""
    return uvicorn.Config(
        app.asgi,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="on",
        loop="asyncio",
        http=Protocol,
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
) -> bool:
    """Serves until SIGINT or SIGTERM: True. False if the drawing has failed for good.

    The server then takes no new requests, and those that there are have `grace` seconds; a second
    signal ends them at once. started: called once requests are answered.
    """
    server = _Server(configured(app, most_connections, grace))
    asyncio.run(_serve(app, server, listening, grace, started))
    return not app.failed


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

    def fail() -> None:
        server.should_exit = True

    app.on_failure = fail
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        for number in _SIGNALS:
            loop.add_signal_handler(number, end)
        started()
    await serving

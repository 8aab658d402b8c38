"""The routes of the server."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..language.model import CharLM
from ..language.sampler import check_weight_dtype
from ..runtime import build_info
from . import fields
from .engine import (
    Ended,
    EndedError,
    Engine,
    Event,
    Failed,
    FullError,
    Job,
    Piece,
    Scores,
    Scoring,
)
from .fields import Limits, RequestError, wrong
from .guard import Guard, encoded

_BODY_SECONDS = 30  # for a client to send its body
_RETRY_SECONDS = 1
_COMMENT_SECONDS = 15  # without an event, after which a proxy may take the stream for dead
_PART = 65536  # bytes of an answer that are written at once
_SYMBOLS_AT_ONCE = 200  # whose encoding, some milliseconds, the event loop can wait for
_SCORED_AT_ONCE = 8  # texts: drawing waits for a block of them
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


class App:
    """The server's application for one model; `asgi` is what uvicorn runs.

    token: what /v1 takes, None: nothing. hosts: see `Guard`. log: called with a line for each
    answer, None: no lines. Raises ValueError for a model whose own weights nothing can draw with.
    """

    def __init__(
        self,
        model: CharLM,
        name: str,
        limits: Limits,
        token: bytes | None = None,
        hosts: Iterable[str] = (),
        log: Callable[[str], None] | None = None,
    ) -> None:
        check_weight_dtype(model.weight_dtype, model.rnn)
        self._model, self._name, self._limits = model, name, limits
        self._sample_fields = fields.sample_fields(model, limits)
        self._score_fields = fields.score_fields(model, limits)
        self._description = encoded(fields.openapi(model, limits, token is not None))
        self._rounded: dict[str | None, CharLM] = {}
        self._inboxes: dict[Job | Scoring, _Inbox] = {}
        self._engine: Engine | None = None
        self.failed = False
        """Whether the drawing has ended by a mistake of ours; nothing can be drawn any more."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called in the event loop once it has."""
        self._starlette = Starlette(
            routes=[
                Route("/v1/sample", self._sample, methods=["POST"]),
                Route("/v1/score", self._score, methods=["POST"]),
                Route("/v1/model", self._show_model, methods=["GET"]),
                Route("/health", self._show_health, methods=["GET"]),
                Route("/openapi.json", self._show_description, methods=["GET"]),
                Route("/", _file("page.html"), methods=["GET"]),
                Route("/page.css", _file("page.css"), methods=["GET"]),
                Route("/page.js", _file("page.js"), methods=["GET"]),
            ],
            exception_handlers={
                RequestError: _refused,
                HTTPException: _refused,
                ClientDisconnect: _left,
                Exception: _refused,
            },
            lifespan=self._lifespan,
        )
        self._starlette.router.redirect_slashes = False
        self.asgi = Guard(self._starlette, hosts, token, log)

    def end(self) -> None:
        """Takes no more requests; those that there are go on."""
        self._drawer.close()

    def abort(self) -> None:
        """Ends the requests that there are with errors."""
        self._drawer.abort()

    @property
    def load(self) -> tuple[int, int]:
        """Texts that are drawn now, and requests that wait."""
        return self._drawer.load()

    @property
    def _drawer(self) -> Engine:
        assert self._engine is not None, "the application has not started"
        return self._engine

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        self._engine = Engine(
            self._model,
            self._limits.texts,
            self._limits.waiting,
            lambda events: _call_soon(loop, self._dispatch, events),
            lambda: _call_soon(loop, self._fail),
        )
        try:
            yield
        finally:
            self._engine.abort()
            await asyncio.to_thread(self._engine.join)

    def _fail(self) -> None:
        self.failed = True
        self.on_failure()

    def _dispatch(self, events: list[tuple[Job | Scoring, list[Event]]]) -> None:
        for job, happened in events:
            if job in self._inboxes:
                self._inboxes[job].put_nowait(happened)

    # ---- routes ----

    async def _sample(self, request: Request) -> Response:
        values = fields.checked(self._sample_fields, await self._body(request))
        job = self._job(values)
        inbox = self._submit(job, lambda: self._drawer.submit(job))
        if job.streamed:
            return _Stream(self, job, inbox)
        events = None
        try:
            events = await _next(inbox, request.receive)
        finally:
            self.forget(job, events is not None)
        for event in events:
            if isinstance(event, Failed):
                raise _failure(event)

        def answer() -> Response:
            return _Parts(encoded({"texts": _texts_of(job, events), "left_out": job.left_out}))

        # Megabytes of probabilities take a while, in which the event loop goes on.
        return await asyncio.to_thread(answer) if job.alternatives else answer()

    def _job(self, values: dict[str, Any]) -> Job:
        if values["seed"] is not None and values["seeds"] is not None:
            raise wrong("seeds", "null where seed is given", values["seeds"])
        seed = values["seed"]
        if seed is None:
            seed = secrets.randbelow(fields.JSON_SEED)
        left_out = 0
        if values["allow_unknown"]:
            values["prime"], left_out = self._model.vocabulary.without_unknown(values["prime"])
        names = ("length", "prime", "temperature", "top_k", "top_p", "stop", "weight_dtype")
        penalty = ("repetition_penalty", "repetition_window")
        try:
            drawing = self._model.request(*(values[name] for name in (*names, *penalty)))
        except ValueError as error:  # a character that is not in the vocabulary
            raise _unknown(error, values, ("prime", "stop")) from None
        if len(drawing.prime) > self._limits.prime:  # of several bytes a character
            takes = f"at most {self._limits.prime} {self._model.vocabulary.unit}s"
            raise wrong("prime", takes, f"{len(drawing.prime)} of them")
        seeds, streamed = values["seeds"] or [seed], values["stream"]
        self._check_told(len(seeds), values["length"], values["alternatives"])
        return Job(drawing, seeds, streamed, values["alternatives"], left_out)

    def _check_told(self, texts: int, length: int, alternatives: int) -> None:
        told = texts * length * (1 + alternatives)
        if told > self._limits.told:
            field = "alternatives" if alternatives else "length"
            limit = f"at most {self._limits.told}"
            raise wrong(field, f"such that texts x length x (1 + alternatives) is {limit}", told)

    async def _score(self, request: Request) -> Response:
        values = fields.checked(self._score_fields, await self._body(request))
        ids: list[NDArray[np.int32] | None] = []
        for i, text in enumerate(values["texts"]):
            try:
                ids.append(self._model.vocabulary.encode_part(text, f"texts[{i}]", 0))
            except ValueError as error:
                if not values["allow_unknown"]:
                    raise _unknown(error, values, ("texts",)) from None
                ids.append(None)
        known = [text for text in ids if text is not None]
        total = sum(map(len, known))
        if total > self._limits.score:
            takes = f"at most {self._limits.score} {self._model.vocabulary.unit}s together"
            raise wrong("texts", takes, f"{total} of them")

        scoring = Scoring(self._scored(known, values["weight_dtype"]))
        inbox = self._submit(scoring, lambda: self._drawer.score(scoring))
        try:
            (event,) = await _next(inbox, request.receive)
        finally:
            del self._inboxes[scoring]
            self._drawer.cancel_scoring(scoring)
        if isinstance(event, Failed):
            raise _failure(event)
        assert isinstance(event, Scores)
        nats = iter(event.nats)
        scores = [
            {
                "nats": None if text is None else _finite(next(nats)),
                "characters": len(given) if text is None else len(text),
            }
            for text, given in zip(ids, values["texts"], strict=True)
        ]
        return _json({"scores": scores})

    def _scored(
        self, texts: list[NDArray[np.int32]], weights: str | None
    ) -> Generator[None, None, NDArray[np.float64]]:
        if weights not in self._rounded:
            self._rounded[weights] = self._model.read_as(weights)
        return (yield from self._rounded[weights].score_ids_by_blocks(texts, _SCORED_AT_ONCE))

    async def _show_model(self, _: Request) -> Response:
        model, limits = self._model, self._limits
        settings = model.settings()
        return _json(
            {
                "name": self._name,
                "cell": settings["cell"],
                "num_layers": settings["num_layers"],
                "hidden_size": settings["hidden_size"],
                "dtype": settings["dtype"],
                "compute_dtype": settings["compute_dtype"],
                "parameters": model.num_parameters,
                "device": model.device,
                "vocabulary": {
                    "kind": model.vocabulary.kind,
                    "size": len(model.vocabulary),
                    "symbols": [int(symbol) for symbol in model.vocabulary.symbols],
                },
                "weight_dtypes": fields.weight_dtypes(model),
                "limits": {
                    "length": limits.length,
                    "prime": limits.prime,
                    "texts": limits.texts,
                    "score": limits.score,
                    "body": limits.body,
                    "waiting": limits.waiting,
                    "alternatives": fields.MOST_ALTERNATIVES,
                    "told": limits.told,
                },
                "version": build_info()["version"],
            }
        )

    async def _show_health(self, _: Request) -> Response:
        running, waiting = self.load
        is_open = self._drawer.is_open
        status = "ok" if is_open else "ending"
        body = {"status": status, "running": running, "waiting": waiting}
        return _json(body, 200 if is_open else 503)

    async def _show_description(self, _: Request) -> Response:
        return Response(self._description, media_type="application/json")

    # ---- requests ----

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "")
        # Other types a browser sends for a page of any site, without asking this server first.
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise RequestError(
                415,
                f"Content-Type must be application/json, got {kind!r}",
                field="Content-Type",
                got=kind,
                takes="application/json",
            )
        size = request.headers.get("content-length", "")
        if size.isdecimal() and int(size) > self._limits.body:
            raise self._too_large(f"{size} bytes")
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for part in request.stream():
                    body += part
                    if len(body) > self._limits.body:
                        raise self._too_large(f"more than {self._limits.body} bytes")
        except TimeoutError:
            raise RequestError(
                408,
                f"the body must come within {_BODY_SECONDS} seconds, got {len(body)} bytes of it",
                {"connection": "close"},
            ) from None
        return bytes(body)

    def _too_large(self, got: str) -> RequestError:
        takes = f"at most {self._limits.body} bytes"
        return RequestError(
            413,
            f"the body must have {takes}, got {got}",
            {"connection": "close"},
            field="body",
            got=got,
            takes=takes,
        )

    def _submit(self, job: Job | Scoring, begin: Callable[[], None]) -> _Inbox:
        inbox: _Inbox = asyncio.Queue()
        self._inboxes[job] = inbox
        try:
            begin()
        except FullError:
            del self._inboxes[job]
            waiting = f"{self._limits.waiting} request{'s' * (self._limits.waiting != 1)}"
            raise RequestError(
                429,
                f"the queue is full ({waiting}); try again later",
                {"retry-after": str(_RETRY_SECONDS)},
            ) from None
        except EndedError:
            del self._inboxes[job]
            raise _failure(Failed(EndedError())) from None
        return inbox

    def forget(self, job: Job, ended: bool) -> None:
        """Called once a job has ended, or its client has left."""
        del self._inboxes[job]
        if not ended:
            self._drawer.cancel(job)


class _Parts(Response):
    """An answer of JSON in parts, so that a slow reader of all of it does not seem to be gone.

    `server.Protocol` closes connections whose readers take no part for a while.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__(body, media_type="application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        body = memoryview(self.body)
        for begin in range(0, len(body), _PART):
            part = bytes(body[begin : begin + _PART])
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class _Stream(Response):
    """The events of a job as they come; cancels it when the client leaves."""

    def __init__(self, app: App, job: Job, inbox: _Inbox) -> None:
        super().__init__(media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._app, self._job, self._inbox = app, job, inbox

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"seeds": list(self._job.seeds), "left_out": self._job.left_out}
        left = len(self._job.seeds)  # texts that have not ended
        watch = asyncio.ensure_future(_watch(self._inbox, receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send(send, _event("start", start))
            while left:
                try:
                    async with asyncio.timeout(_COMMENT_SECONDS):
                        events = await self._inbox.get()
                except TimeoutError:
                    await self._send(send, b": waiting\n\n")
                    continue
                # To one who has left nothing is sent, so that nothing below would pause.
                await asyncio.sleep(0)
                if events is None or watch.done():
                    break  # there is nobody to tell
                symbols = sum(len(event.symbols) for event in events if isinstance(event, Piece))
                is_large = symbols * (1 + self._job.alternatives) > _SYMBOLS_AT_ONCE
                parts = (
                    await asyncio.to_thread(_all_shown, self._job, events)
                    if is_large
                    else _all_shown(self._job, events)
                )
                left -= sum(isinstance(event, Ended) for event in events)
                if isinstance(events[-1], Failed):
                    left = 0
                elif not left:
                    parts.append(_event("done", {}))
                await self._send(send, b"".join(parts))
            await send({"type": "http.response.body", "body": b""})
        except OSError:
            pass  # likewise
        finally:
            watch.cancel()
            self._app.forget(self._job, not left)

    @staticmethod
    async def _send(send: Send, body: bytes) -> None:
        for begin in range(0, len(body), _PART):
            part = body[begin : begin + _PART]
            await send({"type": "http.response.body", "body": part, "more_body": True})


def _all_shown(job: Job, events: list[Event]) -> list[bytes]:
    return [_shown(job, event) for event in events]


def _shown(job: Job, event: Event) -> bytes:
    if isinstance(event, Piece):
        symbols = {"symbols": [_symbol(s) for s in event.symbols]} if event.symbols else {}
        return _event("text", {"index": event.index, "text": event.text, **symbols})
    if isinstance(event, Ended):
        seed = job.seeds[event.index]
        return _event(
            "end",
            {
                "index": event.index,
                "seed": seed,
                "reason": event.reason,
            },
        )
    assert isinstance(event, Failed)
    return _event("error", _failure(event).body)


def _event(name: str, value: Any) -> bytes:
    return f"event: {name}\ndata: ".encode() + encoded(value) + b"\n\n"


def _symbol(symbol: Any) -> dict[str, Any]:
    return {
        "symbol": symbol.symbol,
        "probability": _rounded(symbol.probability),
        "alternatives": [[s, _rounded(p)] for s, p in symbol.alternatives],
    }


def _rounded(probability: float) -> float:
    return float(f"{probability:.6g}")  # six digits of the least, too


def _texts_of(job: Job, events: list[Event]) -> list[dict[str, Any]]:
    texts: list[dict[str, Any]] = [{"seed": seed, "text": ""} for seed in job.seeds]
    pieces: list[list[str]] = [[] for _ in texts]
    for event in events:
        if isinstance(event, Piece):
            pieces[event.index].append(event.text)
            if event.symbols:
                told = texts[event.index].setdefault("symbols", [])
                told += [_symbol(symbol) for symbol in event.symbols]
        elif isinstance(event, Ended):
            texts[event.index]["reason"] = event.reason
    for text, parts in zip(texts, pieces, strict=True):
        text["text"] = "".join(parts)
    return texts


_Inbox = asyncio.Queue[list[Event] | None]
"""What happens to a job, block by block; None: its client has left."""


async def _next(inbox: _Inbox, receive: Receive) -> list[Event]:
    """What happens next; ClientDisconnect if the client leaves before."""
    watch = asyncio.ensure_future(_watch(inbox, receive))
    try:
        events = await inbox.get()
    finally:
        watch.cancel()
    if events is None:
        raise ClientDisconnect
    return events


async def _watch(inbox: _Inbox, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    inbox.put_nowait(None)


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:  # the loop has ended, and with it whoever waited
        if not loop.is_closed():
            raise


def _unknown(error: ValueError, values: dict[str, Any], names: Iterable[str]) -> RequestError:
    """400 for a character that is not in the vocabulary; the message begins with the field."""
    message = str(error)
    field = message.split(" ", 1)[0]
    if field.partition("[")[0] not in names:
        raise error
    takes = "characters of the model's vocabulary, see /v1/model"
    got = message.removeprefix(f"{field} has ").partition(", which is not among")[0]
    return RequestError(400, message, field=field, got=got, takes=takes)


def _failure(failed: Failed) -> RequestError:
    if isinstance(failed.error, EndedError):
        return RequestError(
            503, "the server is shutting down", {"retry-after": str(_RETRY_SECONDS)}
        )
    return RequestError(500, f"the texts could not be drawn: {failed.error}")


def _finite(nats: float) -> float | None:
    return nats if math.isfinite(nats) else None


def _json(value: Any, status: int = 200) -> Response:
    return Response(encoded(value), status, media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):  # no such route, or not by this method
        error = RequestError(error.status_code, error.detail, error.headers)
    if not isinstance(error, RequestError):  # a mistake of ours, which uvicorn logs
        error = RequestError(500, "an error of the server; its log has more")
    response = _json(error.body, error.status)
    response.headers.update(error.headers)
    return response


async def _left(_: Request, error: Exception) -> Response:
    return Response(status_code=499)  # to nobody


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    content = files(__package__).joinpath(name).read_bytes()
    kind = _TYPES[name.partition(".")[2]]

    async def show(_: Request) -> Response:
        return Response(content, media_type=kind)

    return show

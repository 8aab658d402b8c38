"""Who may ask, and what every answer carries.

Against pages of other sites, which a browser lets send requests to this machine: the Host header
must name this server (a rebound DNS name does not), and so must Origin where there is one. No
answer allows another site to read it (no CORS).
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .fields import RequestError

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
_GUARDED = "/v1/"  # what takes a token; the page, its description and /health hold no secret


def is_loopback(host: str) -> bool:
    """Whether a server at this address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Guard:
    """Middleware: refuses requests that may not come in, adds headers, writes log lines.

    hosts: names by which clients may call the server, besides localhost and IP addresses. token:
    what `Authorization: Bearer` must bring for the routes of /v1; None: nothing. log: called with a
    line for each answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Iterable[str],
        token: bytes | None,
        log: Callable[[str], None] | None,
    ) -> None:
        self._app = app
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._token = token
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status, size = time.monotonic(), 0, 0

        async def answer(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            await send(message)

        try:
            try:
                self._check(scope)
            except RequestError as error:
                await refuse(error, answer)
                return
            await self._app(scope, receive, answer)
        finally:
            if self._log is not None:
                client = (scope.get("client") or ("-",))[0]
                path = scope.get("raw_path", b"").decode("ascii", "replace")
                seconds = time.monotonic() - begin
                self._log(
                    f"{client} {scope['method']} {path} {status or 'gone'} {size} bytes "
                    f"{seconds:.3f} s"
                )

    def _check(self, scope: Scope) -> None:
        if any(ord(c) < 0x20 or c == "\x7f" for c in scope["path"]):
            raise RequestError(400, "the path must have no control characters")
        host = _only(scope, b"host")
        if host is None or not self._is_ours(host):
            raise RequestError(
                421,
                f"the Host header must be an IP address, or {', '.join(sorted(self._hosts))}, got "
                f"{host!r}: --allow-host names others",
                field="Host",
                got=host,
                takes=f"an IP address, or {', '.join(sorted(self._hosts))}",
            )
        origin = _only(scope, b"origin")
        if origin is not None and _netloc(origin).lower() != host.lower():
            raise RequestError(
                403,
                f"the Origin header must be of this server, {host!r}, got {origin!r}",
                field="Origin",
                got=origin,
                takes=host,
            )
        guarded = scope["path"].startswith(_GUARDED)
        if guarded and _only(scope, b"sec-fetch-site") in ("cross-site", "same-site"):
            raise RequestError(403, "the request comes from a page of another site")
        if guarded and self._token is not None:
            kind, _, given = (_only(scope, b"authorization") or "").partition(" ")
            fits = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
            if kind.lower() != "bearer" or not fits:
                raise RequestError(
                    401,
                    "the Authorization header must be 'Bearer' and the server's token",
                    {"www-authenticate": "Bearer"},
                    field="Authorization",
                    takes="Bearer and the server's token",
                )

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # such as http://[
        return ""


def _only(scope: Scope, name: bytes) -> str | None:
    """A header's value; several count as one that no check takes."""
    values = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return ", ".join(values) if values else None


async def refuse(error: RequestError, send: Send) -> None:
    """Sends an error as the whole answer."""
    body = encoded(error.body)
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": [
                (name.encode(), value.encode())
                for name, value in {**headers, **error.headers}.items()
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


def encoded(value: Any) -> bytes:
    """JSON in ASCII, so that lone surrogates of a request can be shown, too."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()

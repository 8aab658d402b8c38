"""``charrnn-fast serve``: draws texts for many clients over HTTP, with a page to try a model."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys

from ..language.model import CharLM
from ..storage.input_files import read_whole, shown
from . import show
from .parsing import (
    Commands,
    Parser,
    add_device,
    add_threads,
    file_option,
    integer_option,
    number_option,
)

_LONGEST_TOKEN = 4096  # bytes
_SHORTEST_TOKEN = 16  # characters: what can be guessed is no token
_BACKLOG = 2048


def add(commands: Commands) -> None:
    serve = commands.add(
        "serve", run, "Draw texts for many clients over HTTP, with a page to try the model."
    )
    serve.add_argument("model", type=file_option, metavar="MODEL", help="saved by train")
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; other machines reach it with 0.0.0.0 or ::, which "
        "requires --token-file (default: 127.0.0.1)",
    )
    serve.add_argument(
        "--port",
        type=integer_option(0, 65535),
        default=8000,
        metavar="N",
        help="0: any that is free, which is shown (default: 8000)",
    )
    serve.add_argument(
        "--token-file",
        type=file_option,
        metavar="FILE",
        help=f"file with a token of {_SHORTEST_TOKEN} characters or more, which requests must "
        "bring",
    )
    serve.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name by which clients call the server; may be repeated (IP addresses and localhost "
        "need none)",
    )
    _add_limits(serve)
    serve.add_argument(
        "--grace",
        type=number_option(least=0),
        default=10.0,
        metavar="SECONDS",
        help="time for running requests after SIGTERM or Ctrl-C (default: 10)",
    )
    serve.add_argument("--log", action="store_true", help="write a line for each answer on stderr")
    add_device(serve)
    add_threads(serve)


def _add_limits(parser: Parser) -> None:
    limits = {
        "--max-texts": (1, 64, "texts drawn at once, and of one request"),
        "--max-waiting": (0, 128, "requests that wait for others to end"),
        "--max-length": (1, 10_000, "characters to draw of a text"),
        "--max-prime": (0, 10_000, "characters of a prime"),
        "--max-score": (1, 100_000, "characters to score of a request"),
        "--max-body": (1000, 1_000_000, "bytes of a request"),
        "--max-told": (
            1,
            1_000_000,
            "of texts x length x (1 + alternatives) of a request, which bounds its answer's size",
        ),
    }
    for flag, (least, default, about) in limits.items():
        parser.add_argument(
            flag,
            type=integer_option(least),
            default=default,
            metavar="N",
            help=f"most {about} (default: {default})",
        )


def run(arguments: argparse.Namespace) -> int:
    try:
        from ..serve import app, fields, guard, server  # the extra's, and slow to import
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("uvicorn", "starlette"):
            raise
        raise ImportError(
            f"serve needs uvicorn and Starlette, and {error.name} is not installed: "
            "pip install 'charrnn_fast[serve]'"
        ) from error
    token = None if arguments.token_file is None else _token(arguments.token_file)
    if token is None and not guard.is_loopback(arguments.host):
        raise ValueError(
            f"--host {arguments.host} can be reached from other machines: give --token-file, with "
            f"a token that requests must bring"
        )
    limits = fields.Limits(
        length=arguments.max_length,
        prime=arguments.max_prime,
        texts=arguments.max_texts,
        score=arguments.max_score,
        body=arguments.max_body,
        waiting=arguments.max_waiting,
        told=arguments.max_told,
    )
    listening = _listen(arguments.host, arguments.port)
    with listening:
        model = CharLM.load(
            arguments.model, device=arguments.device, compute_dtype=arguments.compute_dtype
        )
        name = os.path.basename(shown(arguments.model))
        served = app.App(
            model,
            name,
            limits,
            token,
            [*arguments.allow_host, arguments.host],
            _log if arguments.log else None,
        )
        print(f"model       {name}, {show.model_line(model)}")
        address = _address(listening)
        # Each text that is drawn has a connection, and as many samples and scores wait as may; more
        # are for pages and health checks.
        connections = arguments.max_texts + 2 * arguments.max_waiting + 128

        def started() -> None:
            print(f"serving at  {address}", flush=True)

        if not server.run(served, listening, connections, arguments.grace, started):
            _log("charrnn-fast: the drawing has failed; nothing can be drawn any more")
            return 1
    print("ended")
    return 0


def _token(path: str) -> bytes:
    name = shown(path)
    token = read_whole(path, _LONGEST_TOKEN, "a token").strip()
    if len(token) < _SHORTEST_TOKEN or not all(0x21 <= byte <= 0x7E for byte in token):
        raise ValueError(
            f"{name} must hold a token of {_SHORTEST_TOKEN} or more visible ASCII characters "
            f"without blanks, got {len(token)} bytes: make one by openssl rand -hex 32"
        )
    return token


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ValueError(
            f"--host must be an address of this machine, got {host!r}: {error}"
        ) from None
    listening = socket.socket(family, kind, number)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, error.strerror, f"{host}, port {port}") from None
    return listening


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _log(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads stderr any more
        print(line, file=sys.stderr, flush=True)

"""The process in which the peers run, unless they run in that of the kernels.

It starts with its number of threads in the environment, where NumPy's BLAS and XLA read it once.
And no peer's threads, memory or crash affect the kernels.
"""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.connection import Connection
from typing import Any

from .errors import BenchError, UnavailableError
from .host import LocalHost, Timing, environment
from .problem import Outputs, Problem


class Worker:
    """A `Host` in a process with this many threads. Close it, or use it as a context manager."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        with environment(threads):
            self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def open(self, peer: str) -> str:
        version: str = self._ask("open", peer)
        return version

    def prepare(self, peer: str, problem: Problem) -> dict[str, int]:
        units: dict[str, int] = self._ask("prepare", peer, problem)
        return units

    def check(self, side: str) -> Outputs:
        outputs: Outputs = self._ask("check", side)
        return outputs

    def time(self, side: str, count: int) -> Timing:
        timing: Timing = self._ask("time", side, count)
        return timing

    def evaluate(self, side: str) -> float:
        loss: float = self._ask("evaluate", side)
        return loss

    def clear(self) -> None:
        self._ask("clear")

    def _ask(self, *request: Any) -> Any:
        try:
            self._connection.send(request)
            kind, answer = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(1)
            raise BenchError(
                f"the peers' process ended (exit code {self._process.exitcode}) at "
                f"{' '.join(str(part) for part in request[:2])}"
            ) from None
        if kind == "unavailable":
            raise UnavailableError(answer)
        if kind == "error":
            raise BenchError(answer)
        return answer


def _serve(connection: Connection, threads: int) -> None:
    """Answers requests, each the name of a method of `Host` and its arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command's own process answers Ctrl-C
    host = LocalHost(threads)
    while True:
        try:
            method, *arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("ok", getattr(host, method)(*arguments)))
        except UnavailableError as error:
            connection.send(("unavailable", str(error)))
        except BenchError as error:
            connection.send(("error", str(error)))

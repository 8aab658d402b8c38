"""The process in which the peers run.

It starts with its number of threads in the environment, where NumPy's BLAS and XLA read it once.
And no peer's threads, memory or crash affect the kernels.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from .cases import Case
from .errors import BenchError, UnavailableError
from .peers import Peer, Task, load
from .problem import Outputs, Problem

# Seconds; longer than the system's tick, at which threads' time is accounted. At most 0.2 s of
# waiting for pools that never sleep.
_NAP, _MOST_NAPS = 0.01, 20


class Timing(NamedTuple):
    seconds: float  # of all runs together
    cores: float  # processor time over seconds: how many cores the side kept busy


def time_runs(task: Task, count: int, threads: int) -> Timing:
    """Times `count` runs of a task in this process, and returns when its threads are idle.

    Thread pools spin while waiting for work (OpenBLAS's for some 100 ms), on the core that the next
    side needs.
    """
    cpu, start = time.process_time(), time.perf_counter()
    for _ in range(count):
        task.run()
    seconds = time.perf_counter() - start
    if seconds <= 0:
        raise BenchError("the clock stands still: nothing can be timed")
    timing = Timing(seconds, (time.process_time() - cpu) / seconds)
    for _ in range(_MOST_NAPS if threads > 1 else 0):
        cpu = time.process_time()
        time.sleep(_NAP)
        if time.process_time() - cpu < 0.2 * _NAP:
            break
    return timing


class Worker:
    """Peers in a process with this many threads. Close it, or use it as a context manager."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        with _environment(_thread_variables(threads)):
            self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def open(self, peer: str) -> str:
        """Starts a peer and returns its version; UnavailableError if it cannot start."""
        version: str = self._ask("open", peer)
        return version

    def prepare(self, peer: str, problem: Problem) -> dict[str, int]:
        """Makes the peer's tasks for a problem: the units of a run by name. Drops earlier ones."""
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
        """Drops all tasks and their memory."""
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command's own process answers Ctrl-C
    peers: dict[str, Peer] = {}
    tasks: dict[str, Task] = {}

    def answer(command: str, *arguments: Any) -> Any:
        if command == "open":
            peers[arguments[0]] = load(arguments[0], threads)
            return peers[arguments[0]].version
        if command == "prepare":
            peer, problem = peers[arguments[0]], arguments[1]
            if isinstance(problem.case, Case) and problem.case.cell not in peer.cells:
                raise UnavailableError(f"{arguments[0]} has no cell {problem.case.cell!r}")
            made = peer.tasks(problem)
            tasks.update(made)
            return {name: task.units for name, task in made.items()}
        if command == "check":
            return tasks[arguments[0]].check()
        if command == "time":
            return time_runs(tasks[arguments[0]], arguments[1], threads)
        if command == "evaluate":
            evaluate = tasks[arguments[0]].evaluate
            return evaluate() if evaluate else None
        tasks.clear()
        return None

    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("ok", answer(*request)))
        except UnavailableError as error:
            connection.send(("unavailable", str(error)))
        except Exception as error:
            message = " ".join(str(error).split())
            what = request[1] if len(request) > 1 else request[0]
            connection.send(("error", f"{what}: {type(error).__name__}: {message}"))


def _thread_variables(threads: int) -> dict[str, str]:
    n = str(threads)
    return {
        **dict.fromkeys(
            (
                "OMP_NUM_THREADS",
                "OPENBLAS_NUM_THREADS",
                "MKL_NUM_THREADS",
                "BLIS_NUM_THREADS",
                "VECLIB_MAXIMUM_THREADS",
                "NPROC",  # XLA's pool
            ),
            n,
        ),
        "JAX_PLATFORMS": "cpu",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # leaves no idle processes behind
    }


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

"""Where the peers run: a `Host` opens them, makes their tasks, checks and times them.

`LocalHost` has them in the process that calls it. `in_this_process` gives one beside the kernels,
as an application has it that imports both; a `Worker` asks one in a process of its own.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from ..training import interrupts
from .cases import Case
from .errors import BenchError, UnavailableError
from .peers import Peer, Task, load
from .problem import Outputs, Problem

# Seconds; longer than the system's tick, at which threads' time is accounted. At most 0.2 s of
# waiting for pools that never sleep.
_NAP, _MOST_NAPS = 0.01, 20

_LOADED_BEFORE = "numpy"  # which this package imports, before anybody asks for threads


class Timing(NamedTuple):
    seconds: float  # of all runs together
    cores: float  # processor time over seconds: how many cores the process kept busy


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


class Host(Protocol):
    """Peers with a number of threads. A peer's error is a BenchError that names it."""

    def open(self, peer: str) -> str:
        """Starts a peer and returns its version; UnavailableError if it cannot start."""

    def prepare(self, peer: str, problem: Problem) -> dict[str, int]:
        """Makes the peer's tasks for a problem: the units of a run by name."""

    def check(self, side: str) -> Outputs:
        """The outputs of a task; UnavailableError if it does not work on this machine."""

    def time(self, side: str, count: int) -> Timing:
        """Times `count` runs of a task, and returns when its process is idle."""

    def evaluate(self, side: str) -> float:
        """The validation loss of a training, in nats per character."""

    def clear(self) -> None:
        """Drops all tasks and their memory."""


class LocalHost:
    """A `Host` in this process, whose environment must have the number of threads already.

    interrupted: whether Ctrl-C has been deferred; a call then ends with KeyboardInterrupt.
    """

    def __init__(self, threads: int, interrupted: Callable[[], bool] = lambda: False) -> None:
        self._threads, self._interrupted = threads, interrupted
        self._peers: dict[str, Peer] = {}
        self._tasks: dict[str, Task] = {}

    def open(self, peer: str) -> str:
        with self._asked(peer):
            self._peers[peer] = load(peer, self._threads)
            return self._peers[peer].version

    def prepare(self, peer: str, problem: Problem) -> dict[str, int]:
        with self._asked(peer):
            opened = self._peers[peer]
            if isinstance(problem.case, Case) and problem.case.cell not in opened.cells:
                raise UnavailableError(f"{peer} has no cell {problem.case.cell!r}")
            made = opened.tasks(copy.deepcopy(problem))  # which a training may change in place
            self._tasks.update(made)
            return {name: task.units for name, task in made.items()}

    def check(self, side: str) -> Outputs:
        with self._asked(side):
            return self._tasks[side].check()

    def time(self, side: str, count: int) -> Timing:
        with self._asked(side):
            return time_runs(self._tasks[side], count, self._threads)

    def evaluate(self, side: str) -> float:
        with self._asked(side):
            evaluate = self._tasks[side].evaluate
            if evaluate is None:
                raise BenchError(f"{side} does not evaluate this suite")
            return evaluate()

    def clear(self) -> None:
        with self._asked("clear"):
            self._tasks.clear()

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        """Turns a peer's exceptions into a BenchError of one line that names it."""
        try:
            yield
        except (BenchError, UnavailableError):
            self._stop_if_interrupted()
            raise
        except Exception as error:
            self._stop_if_interrupted()
            message = " ".join(str(error).split())
            raise BenchError(f"{what}: {type(error).__name__}: {message}") from error
        self._stop_if_interrupted()

    def _stop_if_interrupted(self) -> None:
        if self._interrupted():
            raise KeyboardInterrupt


@contextmanager
def in_this_process(threads: int) -> Iterator[LocalHost]:
    """The peers beside the kernels. The environment is restored; loaded libraries stay as they are.

    `check_one_process` says whether that can be. Ctrl-C waits for the end of a peer's call: within
    it, the peer's code might catch the exception (JAX's callback of the garbage collector does), or
    turn it into an ImportError. A second Ctrl-C acts at once.
    """
    with environment(threads), interrupts.deferred() as interrupted:
        yield LocalHost(threads, interrupted)
        if interrupted():  # after the last call
            raise KeyboardInterrupt


def one_process_peers(names: Sequence[str]) -> tuple[str, ...]:
    """Those of the peers that can be given their threads in the kernels' process."""
    return tuple(name for name in names if name != _LOADED_BEFORE)


def check_one_process(peers: Sequence[str], threads: Sequence[int]) -> None:
    """BenchError if peers in the kernels' process cannot be given these numbers of threads."""
    if len(threads) != 1:
        raise BenchError(
            f"--threads must be one number with --one-process, got {' '.join(map(str, threads))}: "
            f"XLA's pool keeps its first size; run the command once for each number"
        )
    if _LOADED_BEFORE in peers:
        raise BenchError(
            f"--peers must be without numpy with --one-process, got {' '.join(peers)}: its BLAS is "
            f"loaded before its threads can be set; leave it out, or leave out --one-process"
        )
    if "jax" in peers and "jax" in sys.modules:
        raise BenchError(
            "jax must not be loaded before --one-process sets XLA's threads; leave it out by "
            "--peers, or begin a new Python process"
        )


@contextmanager
def environment(threads: int) -> Iterator[None]:
    """Sets the variables that peers' libraries read when they are loaded, and restores them."""
    variables = _variables(threads)
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


def _variables(threads: int) -> dict[str, str]:
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

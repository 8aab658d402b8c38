"""A training by several processes that torchrun has started, which share out the streams.

Every exchange between them begins with a short sum, in which a process that has failed says so. All
others then raise `EndedError` there, so that none waits for one that has gone.

Only `joined` imports PyTorch, for its gloo, and only where torchrun has started several processes.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import _devices
from .._checks import called
from ..runtime import get_num_threads, set_num_threads

_T = TypeVar("_T")

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # that torchrun sets
# By the kind of device of the model; of others arrays come as copies, for gloo. NCCL adds up the
# gradients on the GPUs. All else is small, and goes by gloo there too.
_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
_MOST_VALUES = 7  # that one sum can have
# torchrun ends processes whose peers hang or vanish. The time that one may work while the others
# wait, as for an evaluation, has no bound.
_TIMEOUT = timedelta(days=7)
_PAUSE = 0.01  # seconds between looks into torchrun's store


class EndedError(RuntimeError):
    """Another process of the training has failed, which tells its error itself."""


class LostError(RuntimeError):
    """Another process of the training has gone without a word, as after a kill."""


class Group:
    """The processes of a training; here this one alone.

    All methods but `share` are collective: every process calls them, in the same order. They raise
    `EndedError` if another process has failed before, `LostError` if one has gone.
    """

    rank = 0
    """This process's number, 0 to size - 1. Process 0 logs, prints and saves."""
    size = 1
    device = "cpu"
    """The device for this process's model: of `joined`'s, "cuda" is the GPU of its number on its
    host."""
    is_over = False
    """Whether a process has failed, after which nothing can be exchanged."""

    def __repr__(self) -> str:
        return f"<Group: process {self.rank} of {self.size}>"

    def share(self, count: int) -> slice:
        """The part of count streams that this process has: a range, as long as others or by one
        longer.
        """
        each, more = divmod(count, self.size)
        begin = self.rank * each + min(self.rank, more)
        return slice(begin, begin + each + (self.rank < more))

    def sum(self, *values: float) -> list[float]:
        """The sums of up to 7 values over the processes, in float64."""
        return [float(value) for value in values]

    def add_up(self, array: NDArray[Any]) -> None:
        """Sums arrays of one shape and dtype element by element, in place: the same bits in all."""

    def on_first(self, work: Callable[[], _T]) -> _T:
        """What work returns in process 0, which alone calls it."""
        return work()

    def gather(self, value: _T) -> list[_T]:
        """The values of all processes by rank, in every process."""
        return [value]

    def fail(self, error: Exception) -> NoReturn:
        """Tells the others, at their next exchange, and raises the error.

        Of equal errors in several processes only the first process's is raised, else `EndedError`.
        """
        raise error

    def check_equal(self, facts: Mapping[str, object]) -> None:
        """ValueError unless the processes have the same facts, by their names in messages."""
        first, *others = self.gather({name: str(value) for name, value in facts.items()})
        for rank, other in enumerate(others, 1):
            for name, fact in first.items():
                if other[name] != fact:
                    raise ValueError(
                        f"{called(name)} must be the same in all processes, got {fact} in process "
                        f"0 and {other[name]} in process {rank}"
                    )


class HeldError(Exception):
    """A process of the training holds an error; all save before it is raised."""


class Agreement:
    """What the processes of a training agree on at each exchange: to stop, to end by an error.

    So all of them do it after the same update.
    """

    def __init__(self, group: Group, received: Callable[[], bool]) -> None:
        """received: whether this process got a signal to end."""
        self._group, self._received = group, received
        self._interrupted = False
        self.asked_to_stop = False
        """Whether this process asks for an early end."""
        self.stopping = False
        """Whether one has asked."""
        self.failure: Exception | None = None
        """The error that this process holds."""

    def interrupted(self) -> bool:
        """Whether a process had got a signal at the last exchange."""
        return self._interrupted

    def sum(self, *values: float) -> list[float]:
        """As `Group.sum`, of up to 4 values; raises `HeldError` if a process holds an error."""
        failing, interrupted, stopping, *sums = self._group.sum(
            self.failure is not None, self._received(), self.asked_to_stop, *values
        )
        self._interrupted = self._interrupted or interrupted > 0
        self.stopping = self.stopping or stopping > 0
        if failing:
            raise HeldError
        return sums


class _TorchGroup(Group):
    """Processes that torchrun has started, on PyTorch's distributed engine."""

    def __init__(self, torch: Any, group: Any, device: str) -> None:
        """torch: the module; group: its process group, None for the default one."""
        self._torch, self._group, self.device = torch, group, device
        self.rank = torch.distributed.get_rank(group)
        self.size = torch.distributed.get_world_size(group)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Group belongs to its process, and cannot be copied or pickled")

    def sum(self, *values: float) -> list[float]:
        if self.is_over:
            raise EndedError("the training has ended by an error; begin again with a new group")
        failed, *sums = self._sum([0.0, *values])
        if failed:
            self._end(None)
        return sums[: len(values)]

    def add_up(self, array: NDArray[Any]) -> None:
        if _devices.kind(self.device) != "cuda":
            self._add_up(array)
            return
        ours = self._torch.from_numpy(array)
        there = ours.to(self.device)
        with self._losing():
            self._torch.distributed.all_reduce(there, group=self._group)
            ours.copy_(there)  # waits for it

    def _add_up(self, array: NDArray[Any]) -> None:
        with self._losing():
            self._torch.distributed.all_reduce(self._torch.from_numpy(array), group=self._group)

    def on_first(self, work: Callable[[], _T]) -> _T:
        held: list[Any] = [None]
        if self.rank == 0:
            try:
                held = [work()]
            except Exception as error:
                self.fail(error)
        self.sum()
        with self._losing():
            self._torch.distributed.broadcast_object_list(held, 0, group=self._group)
        value: _T = held[0]
        return value

    def gather(self, value: _T) -> list[_T]:
        self.sum()
        return self._gathered(value)

    def fail(self, error: Exception) -> NoReturn:
        if not self.is_over:
            with suppress(LostError):
                self._sum([1.0])
                self._end(error)
        raise error

    def _end(self, error: Exception | None) -> NoReturn:
        """Exchanges the errors after a sum in which a process has failed; raises one."""
        self.is_over = True
        text = None if error is None else f"{type(error).__name__}: {error}"
        texts = self._gathered(text)
        rank = next(rank for rank, other in enumerate(texts) if other is not None)
        if error is not None and text not in texts[: self.rank]:
            raise error
        raise EndedError(f"process {rank} has failed: {texts[rank]}") from error

    def _sum(self, values: list[float]) -> list[float]:
        array = np.zeros(1 + _MOST_VALUES)
        array[: len(values)] = values
        self._add_up(array)
        return array.tolist()

    def _gathered(self, value: _T) -> list[_T]:
        values: list[Any] = [None] * self.size
        with self._losing():
            self._torch.distributed.all_gather_object(values, value, group=self._group)
        return values

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """Turns PyTorch's error about a closed connection into `LostError`."""
        try:
            yield
        except RuntimeError as error:
            self.is_over = True
            raise LostError(
                f"process {self.rank} of {self.size} has lost another one, which was killed or "
                f"ended by an error of its own; the last checkpoint is kept"
            ) from error


@contextmanager
def joined(device: str = "cpu", threads: int | None = None) -> Iterator[Group]:
    """Joins the processes that torchrun has started; the group is of this one alone if there are
    none.

    An error within it ends the training in all processes: there `EndedError` is raised.

    device: of the model, which is made on ``group.device``. With "cuda", process n of a host has
    GPU n, and NCCL adds up the gradients. threads: the number of threads of this process; None:
    what CHARRNN_NUM_THREADS says, else an equal share of the host's cores (torchrun's
    LOCAL_WORLD_SIZE).

    Raises ModuleNotFoundError, which names the extra, if PyTorch is not installed.
    """
    size = _variable("WORLD_SIZE") if all(name in os.environ for name in _VARIABLES) else 1
    if size == 1:
        group = Group()
        group.device = _devices.find(device).name
        yield group
        return
    if device == "cuda":
        device = f"cuda:{_variable('LOCAL_RANK', 0)}"
    _devices.find(device)
    on_host = _variable("LOCAL_WORLD_SIZE")
    if threads is not None:
        set_num_threads(threads)
    elif "CHARRNN_NUM_THREADS" not in os.environ:
        set_num_threads(max(1, get_num_threads() // on_host))
    try:
        import torch
        import torch.distributed
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            "training by several processes needs PyTorch, which is not installed: "
            "pip install 'charrnn_fast[torch]'",
            name="torch",
        ) from None
    engine: Any = torch.distributed
    backend, ours = _BACKENDS.get(_devices.kind(device), "gloo"), None
    if engine.is_initialized():  # by the program
        ours = engine.new_group(backend=backend, timeout=_TIMEOUT)
    else:
        rank = int(os.environ["RANK"])
        try:
            store = _own_store(engine, rank, size)
            engine.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT
            )
        except RuntimeError as error:
            first = str(error).partition("\n")[0]
            raise LostError(f"process {rank} of {size} cannot reach the others: {first}") from error
    group = _TorchGroup(torch, ours, device)
    try:
        yield group
        group.sum()  # all leave together, or hear of an error of another
    except (EndedError, LostError):
        raise
    except Exception as error:
        group.fail(error)
    finally:
        with suppress(RuntimeError):  # of others that have gone
            engine.destroy_process_group(ours)


def _own_store(engine: Any, rank: int, size: int) -> Any:
    """torchrun's store, through which processes find each other, with names of this start's own.

    After a restart torchrun gives the same store again (PyTorch 2.5 and later), with the addresses
    of processes that have gone. So each draws a token. Process 0 draws the prefix of all names and
    publishes it with the tokens that it sees, until each of the others has found its own there.
    """
    store, *_ = next(engine.rendezvous("env://", rank, size))
    token = secrets.token_hex(8)

    def seen(kind: str) -> list[str]:
        keys = [f"charrnn_fast/{kind}/{other}" for other in range(1, size)]
        return [store.get(key).decode() if store.check([key]) else "" for key in keys]

    key = "charrnn_fast/start"
    if rank == 0:
        while seen("found") != [token] * (size - 1):
            store.set(key, " ".join([token, *(one or "none" for one in seen("token"))]))
            time.sleep(_PAUSE)
        return engine.PrefixStore(token, store)
    store.set(f"charrnn_fast/token/{rank}", token)
    while True:
        prefix, *tokens = store.get(key).decode().split() if store.check([key]) else [""]
        if tokens[rank - 1 : rank] == [token]:
            store.set(f"charrnn_fast/found/{rank}", prefix)
            return engine.PrefixStore(prefix, store)
        time.sleep(_PAUSE)


def _variable(name: str, least: int = 1) -> int:
    """One of torchrun's numbers; the least that it can be if it is not set."""
    text = os.environ.get(name, str(least))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {text!r}")
    return int(text)

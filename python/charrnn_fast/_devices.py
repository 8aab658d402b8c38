"""Devices by name: the CPU, the GPUs of `charrnn_fast.cuda`, and those that tests register."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from . import _checks, cuda
from ._checks import called

_CARD = re.compile(r"cuda(?::(\d{1,4}))?")


class UnavailableError(RuntimeError):
    """A device that this machine, or this build, does not have."""


@dataclass(frozen=True)
class Device:
    """Where a network is and computes."""

    name: str
    capsule: Any = None
    """What the compiled networks take (cpp/include/charrnn_fast/device.hpp); None: the CPU."""
    measure: Callable[[], int | None] = lambda: None

    @property
    def is_host(self) -> bool:
        return self.capsule is None

    def free_memory(self) -> int | None:
        """Bytes that are free; None: unknown."""
        # Looked up at each call, for tests that replace it.
        return _checks.available_memory() if self.is_host else self.measure()

    @property
    def where(self) -> str:
        """ " on cuda", for messages; nothing for the CPU."""
        return "" if self.is_host else f" on {self.name}"

    def enough_memory(self, needed: int, what: str, advice: str) -> AbstractContextManager[None]:
        """As `_checks.enough_memory`, of the device's memory."""
        return _checks.enough_memory(needed, what, advice, self.free_memory, self.where)


CPU = Device("cpu")

_lock = threading.Lock()
_registered: dict[str, Device] = {}


@dataclass(frozen=True)
class _Card:
    """The GPU that this process uses."""

    ordinal: int
    capsule: Any
    process: int


_card: _Card | None = None


def find(name: object) -> Device:
    """The device of this name.

    ValueError for a name that means none, TypeError for anything else. `UnavailableError` for a GPU
    that cannot be used.
    """
    if not isinstance(name, str):
        raise TypeError(f"{called('device')} must be a str, got {type(name).__name__}")
    if name == CPU.name:
        return CPU
    if (device := _registered.get(name)) is not None:
        return device
    found = _CARD.fullmatch(name)
    if found is None:
        others = "".join(f", {other!r}" for other in _registered)
        raise ValueError(
            f"{called('device')} must be 'cpu', 'cuda', 'cuda:N' for GPU N{others}, got {name!r}"
        )
    return _card_named(name, None if found[1] is None else int(found[1]))


def register(name: str, capsule: Any) -> None:
    """Makes a device of another module known by a name, for tests."""
    _registered[name] = Device(name, capsule)


def are_one(name: str, other: str) -> bool:
    """Whether two names mean the same device, as "cuda" and "cuda:0" do."""
    return find(name).capsule is find(other).capsule


def kind(name: str) -> str:
    """ "cuda" for "cuda:1"."""
    return name.partition(":")[0]


def _card_named(name: str, ordinal: int | None) -> Device:
    """ordinal None: the GPU in use, else GPU 0."""
    global _card
    with _lock:
        if _card is not None and _card.process != os.getpid():
            raise UnavailableError(
                f"{called('device')} {name!r} cannot be used in a forked process whose parent uses "
                f"it, which CUDA does not allow; start processes by multiprocessing's 'spawn'"
            )
        if _card is None:
            wanted = ordinal or 0
            reason = cuda.why_not(wanted)
            if reason is not None:
                raise UnavailableError(
                    f"{called('device')} {name!r} cannot be used: {reason}; or use 'cpu'"
                )
            _card = _Card(wanted, _capsule(name, wanted), os.getpid())
        elif ordinal not in (None, _card.ordinal):
            raise UnavailableError(
                f"{called('device')} must be 'cuda:{_card.ordinal}', which this process uses: a "
                f"process can use one GPU, got {name!r}"
            )
        card = _card
    return Device(name, card.capsule, lambda: cuda.memory(card.ordinal)[0])


def _capsule(name: str, ordinal: int) -> Any:
    module, _ = cuda.compiled()
    try:
        return module.device(ordinal)
    except RuntimeError as error:
        raise UnavailableError(
            f"{called('device')} {name!r} cannot be used: {error}; or use 'cpu'"
        ) from None

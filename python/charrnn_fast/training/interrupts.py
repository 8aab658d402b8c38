"""Ctrl-C and similar signals, deferred until a training can stop without losing anything."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Defers Ctrl-C, SIGTERM and SIGHUP (a closed terminal): the function that it yields then
    returns True. A second signal acts as usual.

    Handlers that the program has set are kept. Outside the main thread, which alone gets signals,
    nothing changes.
    """
    received = False
    usual: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    if hasattr(signal, "SIGHUP"):  # not on Windows
        usual[signal.SIGHUP] = signal.SIG_DFL
    in_main_thread = threading.current_thread() is threading.main_thread()
    ours = [n for n, handler in usual.items() if in_main_thread and signal.getsignal(n) is handler]

    def restore() -> None:
        for number in ours:
            signal.signal(number, usual[number])

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        restore()

    for number in ours:
        signal.signal(number, receive)
    try:
        yield lambda: received
    finally:
        restore()

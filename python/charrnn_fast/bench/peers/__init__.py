"""The sides of a benchmark. Each is one module with one class; this is what they have in common.

A new peer is one more such module, and one more line in `MODULES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from ..errors import UnavailableError
from ..problem import Outputs, Problem

# In the order of the columns. The name on the command line is that of the report.
MODULES = {
    "numpy": "numpy_reference",
    "torch": "torch_eager",
    "torch.compile": "torch_compiled",
    "jax": "jax_scan",
    "onnxruntime": "onnx_runtime",
}


@dataclass(frozen=True)
class Task:
    """One side of one problem, ready to run.

    check: what it computes of the problem, by name, to be compared; called once, before `run`.
    run: the work that is timed, `units` units of the suite at once.
    evaluate: time-to-loss only, the validation loss now, in nats per character.
    """

    check: Callable[[], Outputs]
    run: Callable[[], object]
    units: int = 1
    evaluate: Callable[[], float] | None = None


class Peer(Protocol):
    """A side. Made once in a process that has a number of threads; raises UnavailableError."""

    version: str
    cells: tuple[str, ...]
    """The cells that it has; problems of others are not given to it."""

    def __init__(self, threads: int) -> None: ...

    def tasks(self, problem: Problem) -> dict[str, Task]:
        """The ways in which this side solves the problem, by name; {} where it has none.

        Raises UnavailableError where it should have one, and has not on this machine.
        """


def load(name: str, threads: int) -> Peer:
    """The peer of that name; UnavailableError where it is not installed or does not start."""
    peer: Any = import_module(f".{MODULES[name]}", __name__)
    made: Peer = peer.PEER(threads)
    return made


def require(module: str) -> Any:
    """An optional module; UnavailableError, with the way to get it, where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        reason = f"{module} is not installed (pip install 'charrnn_fast[bench]')"
        if getattr(error, "name", None) not in (module, module.split(".")[0]):
            reason = f"{module} cannot be imported: {' '.join(str(error).split())}"
        raise UnavailableError(reason) from None

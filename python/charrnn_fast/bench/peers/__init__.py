"""The sides of a benchmark: each is one module with one class; here is their common base.

To add a peer, add such a module and a line in `MODULES`.
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
    "torch.bfloat16": "torch_autocast",
    "jax": "jax_scan",
    "onnxruntime": "onnx_runtime",
}

ROUNDED_PEER = "torch.bfloat16"
"""The peer whose products round their operands; asked for by name, or with --compute-dtype."""


@dataclass(frozen=True)
class Task:
    """One side of one problem, ready to run.

    check: its outputs for the problem, by name, to be compared; called once, before `run`.
    run: the timed work, `units` units of the suite at once.
    evaluate: for time-to-loss only, the current validation loss in nats per character.
    """

    check: Callable[[], Outputs]
    run: Callable[[], object]
    units: int = 1
    evaluate: Callable[[], float] | None = None


class Peer(Protocol):
    """A side. Made once per process, which has a number of threads; raises UnavailableError."""

    version: str
    cells: tuple[str, ...]
    """The cells that it supports; it gets no problems with others."""

    def __init__(self, threads: int) -> None: ...

    def tasks(self, problem: Problem) -> dict[str, Task]:
        """The ways in which this side solves the problem, by name; {} if there are none.

        Raises UnavailableError if one should exist but does not on this machine.
        """


def load(name: str, threads: int) -> Peer:
    """The peer of this name; UnavailableError if it is not installed or does not start."""
    peer: Any = import_module(f".{MODULES[name]}", __name__)
    made: Peer = peer.PEER(threads)
    return made


def require(module: str) -> Any:
    """An optional module; UnavailableError, with how to install it, if it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        reason = f"{module} is not installed (pip install 'charrnn_fast[bench]')"
        if getattr(error, "name", None) not in (module, module.split(".")[0]):
            reason = f"{module} cannot be imported: {' '.join(str(error).split())}"
        raise UnavailableError(reason) from None

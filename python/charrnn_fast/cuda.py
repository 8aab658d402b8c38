"""The GPU: whether one can be used, and if not, why; how a network's layers run on it.

``RNN(..., device="cuda")``, `CharLM`, ``CharLM.load(path, device="cuda")`` and the commands'
``--device cuda`` compute there. docs/gpu.md says what has been run on a card.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np

from ._checks import instance, integer

__all__ = [
    "Card",
    "Plan",
    "devices",
    "is_available",
    "memory",
    "plan",
    "set_tier",
    "tier",
    "why_not",
]

_LARGEST_ORDINAL = 1023


class Card(NamedTuple):
    """A GPU of this machine."""

    ordinal: int
    """N of the device "cuda:N"."""
    name: str
    capability: tuple[int, int]
    """The compute capability, such as (9, 0)."""
    memory: int
    """Bytes."""
    multiprocessors: int


def is_available(ordinal: int = 0) -> bool:
    """Whether ``device="cuda:N"``, with N = ordinal, can be used."""
    return why_not(ordinal) is None


def why_not(ordinal: int = 0) -> str | None:
    """Why ``device="cuda:N"``, with N = ordinal, cannot be used, and what to do; None: it can."""
    ordinal = integer("ordinal", ordinal, 0, _LARGEST_ORDINAL)
    module, reason = compiled()
    if module is None:
        return reason
    facts: dict[str, Any] = module.probe()
    if facts["reason"] is not None:
        return str(facts["reason"])
    driver, runtime = facts["driver"], facts["runtime"]
    # From CUDA 11 on, a driver runs all programs of its major version.
    if driver is not None and runtime is not None and driver[0] < runtime[0]:
        return (
            f"the NVIDIA driver is too old: it has CUDA {_version(driver)}, and this build needs "
            f"{_version(runtime)}; update the driver"
        )
    cards = _cards(facts)
    if not cards:
        return "there is no GPU, or CUDA_VISIBLE_DEVICES hides it"
    card = next((card for card in cards if card.ordinal == ordinal), None)
    if card is None:
        known = ", ".join(f"{card.ordinal} ({card.name})" for card in cards)
        return f"there is no GPU {ordinal}, only {known}"
    built: list[str] = facts["architectures"]
    if not any(_runs_on(architecture, card.capability) for architecture in built):
        return (
            f"GPU {ordinal}, {card.name}, has compute capability {_version(card.capability)}, and "
            f"this build is for {', '.join(built)}: build it again for this GPU"
        )
    return None


def devices() -> list[Card]:
    """The GPUs of this machine; none where there is no driver, or no CUDA in this build."""
    module, _ = compiled()
    return [] if module is None else _cards(module.probe())


def memory(ordinal: int = 0) -> tuple[int, int]:
    """Bytes of free and of all memory of a GPU. Raises RuntimeError if it cannot be used."""
    reason = why_not(ordinal)
    if reason is not None:
        raise RuntimeError(f"device 'cuda:{ordinal}' cannot be used: {reason}")
    free, total = compiled()[0].memory(ordinal)
    return int(free), int(total)


class Plan:
    """How the layers of a network run on a GPU: see `plan`."""

    def __init__(self, text: str) -> None:
        self._text = text

    def describe(self) -> str:
        """A line for each layer and pass: its tier, and why; launches, blocks, memory.

        ::

            layer 0, forward: T1 (a block holds the weights), 1 launch of 50 x 512 threads, ...
        """
        return self._text

    __str__ = describe

    def __repr__(self) -> str:
        return f"<Plan of {len(self._text.splitlines()) // 2} layers>"


class _Network(Protocol):
    """What `plan` asks of an `RNN`."""

    cell: str
    hidden_size: int
    num_layers: int
    nonlinearity: str
    proj_size: int
    layer_norm: bool
    dtype: np.dtype[Any]

    @property
    def device(self) -> str: ...


def plan(network: Any, batch: int, seq_len: int) -> Plan:
    """The plan by which a network (`RNN` or `CharLM`) on a GPU runs `batch` sequences of `seq_len`.

    There are four ways, the tiers, with the same bits. T1: a block holds a layer's weights for all
    steps; T2: a cluster of blocks; T3: all blocks of a grid; T4: a kernel for each step. A layer
    takes T1 where its weights fit, else T4; see `set_tier`.

    Nothing runs. Raises ValueError for a network on the CPU, and where a tier is forced that
    cannot run a layer.
    """
    of: _Network = getattr(network, "rnn", network)
    if not isinstance(getattr(of, "device", None), str):
        raise TypeError(f"network must be an RNN or a CharLM, got {type(network).__name__}")
    if of.device == "cpu":
        raise ValueError("network must be on a GPU, got one on the CPU, which has no tiers")
    batch, seq_len = integer("batch", batch, 1), integer("seq_len", seq_len, 1)
    return Plan(
        _kernels()
        .describe(
            of.cell,
            of.hidden_size,
            of.num_layers,
            batch,
            seq_len,
            nonlinearity=of.nonlinearity,
            proj_size=of.proj_size,
            layer_norm=of.layer_norm,
            float64=of.dtype == np.float64,
        )
        .rstrip("\n")
    )


def set_tier(name: str | None) -> None:
    """Makes all layers of this process run by one tier, "T1" to "T4"; None: as they would.

    A call that cannot take it raises ValueError, with the reason. The environment variable
    CHARRNN_CUDA_TIER says what it is at first. Raises ValueError for another name, RuntimeError in
    a build without CUDA.
    """
    if name is not None:
        instance("name", name, str, "a str or None")
    _kernels().set_tier(name)


def tier() -> str | None:
    """The tier that `set_tier` or CHARRNN_CUDA_TIER has set; None: none."""
    name: str | None = _kernels().tier()
    return name


def _kernels() -> Any:
    module, reason = compiled()
    if module is None:
        raise RuntimeError(reason)
    return module


def compiled() -> tuple[Any, str]:
    """The compiled module for the modules of this package, or None and the reason."""
    name = f"{__package__}._cuda"
    try:
        return import_module(name), ""
    except ImportError as error:  # there is none, or a library that it needs is missing
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return None, (
                "this build of charrnn_fast has no CUDA kernels: install it from its sources by "
                "CHARRNN_CUDA=PIP pip install ."
            )
        return None, f"its module cannot be loaded: {error}"


def _cards(facts: dict[str, Any]) -> list[Card]:
    return [Card(**{**card, "capability": tuple(card["capability"])}) for card in facts["devices"]]


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture, as nvcc names it, runs on a GPU of this capability."""
    kind, _, number = architecture.partition("_")
    if kind not in ("sm", "compute"):  # the emulator's
        return True
    digits = number.rstrip("af")
    major, minor = int(digits[:-1]), int(digits[-1])
    if number.endswith("a"):
        return capability == (major, minor)
    if kind == "compute":  # PTX, which the driver compiles
        return capability >= (major, minor)
    return capability[0] == major and capability[1] >= minor


def _version(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))

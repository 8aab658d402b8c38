"""The CUDA kernels: cuda/module.cpp. Only builds with CUDA have it."""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

Buffer = Any  # collections.abc has it from Python 3.12 on

class Card(TypedDict):
    ordinal: int
    name: str
    capability: tuple[int, int]
    memory: int
    multiprocessors: int

class Probe(TypedDict):
    reason: str | None
    driver: tuple[int, int] | None
    runtime: tuple[int, int] | None
    architectures: list[str]
    devices: list[Card]

def probe() -> Probe: ...
def device(ordinal: int, /) -> object: ...
def memory(ordinal: int, /) -> tuple[int, int]: ...

# Arrays of the card; the comment of cuda/module.cpp says what they do.
def ordinal() -> int: ...
def allocate(nbytes: int, /) -> tuple[object, int]: ...
def share(owner: object, /) -> None: ...
def upload(buffer: Buffer, address: int, /) -> None: ...
def download(address: int, buffer: Buffer, /) -> None: ...
def copy(from_: int, nbytes: int, to: int, /) -> None: ...
def zero(address: int, nbytes: int, /) -> None: ...
def stream() -> int: ...
def set_stream(stream: int | None, /) -> int | None: ...
def wait_in_stream(waiting: int, ahead: int, /) -> None: ...
def synchronize() -> None: ...
def mark() -> object: ...
def reached(mark: object, /) -> bool: ...
def to_dlpack(
    owner: object,
    address: int,
    shape: Sequence[int],
    strides: Sequence[int],
    element: tuple[int, int],
    ordinal: int,
    versioned: bool,
    /,
) -> object: ...
def from_dlpack(
    capsule: object, /
) -> tuple[
    object, int, list[int], list[int] | None, tuple[int, int, int], tuple[int, int], bool
]: ...

# How recurrent layers run: see charrnn_fast/cuda.hpp.
def set_tier(name: Literal["T1", "T2", "T3", "T4"] | None, /) -> None: ...
def tier() -> Literal["T1", "T2", "T3", "T4"] | None: ...
def describe(
    cell: str,
    hidden_size: int,
    num_layers: int,
    batch: int,
    seq_len: int,
    *,
    nonlinearity: str = "tanh",
    proj_size: int = 0,
    layer_norm: bool = False,
    float64: bool = False,
) -> str: ...

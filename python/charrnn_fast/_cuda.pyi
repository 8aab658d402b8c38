"""The CUDA kernels: cuda/module.cpp. Only builds with CUDA have it."""

from typing import TypedDict

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

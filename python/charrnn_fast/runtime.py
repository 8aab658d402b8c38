"""The compiled module at run time: version, instruction set, threads."""

from __future__ import annotations

TYPE_CHECKING = False  # of typing, which takes a while to import
if TYPE_CHECKING:
    from typing import Any


def build_info() -> dict[str, Any]:
    """Version, compiler, instruction sets (in use and available), threads, CUDA."""
    from ._core import build_info

    return build_info()


def get_num_threads() -> int:
    """The number of threads of the kernels; by default one per core available to the process."""
    from ._core import get_num_threads

    return get_num_threads()


def set_num_threads(n: int) -> None:
    """Sets the number of threads of the kernels, 1 to 4096; results do not depend on it.

    The environment variable CHARRNN_NUM_THREADS sets it at the start.
    """
    from ._checks import integer
    from ._core import set_num_threads

    set_num_threads(integer("n", n, 1, 4096))

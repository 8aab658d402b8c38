"""The compiled module: version, instruction set, threads, the C++ library beside it."""

from __future__ import annotations

TYPE_CHECKING = False  # of typing, which takes a while to import
if TYPE_CHECKING:
    from typing import Any


def build_info() -> dict[str, Any]:
    """Version, compiler, instruction sets (in use and available), threads, CUDA.

    `executor` says whose threads a call of the calling thread can use now: "openmp" or only "own".
    """
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


def get_executor() -> str:
    """What `set_executor` or CHARRNN_EXECUTOR has set; "host" if a C++ program has set its own.

    ``build_info()["executor"]`` says which threads are in use.
    """
    from ._core import get_executor

    return get_executor()


def set_executor(name: str) -> None:
    """Sets whose threads the kernels run on; results do not depend on it.

    - "own": threads of this package.
    - "openmp": those of GCC's OpenMP runtime (libgomp), once a library in the process has loaded
      it. Each Python thread that calls gets a team of its own there.
    - "auto", the default: those of PyTorch's libgomp while they are awake, for calls from the
      process's main thread; else threads of this package.

    PyTorch's threads spin for milliseconds after their work, and would compete with others for the
    processors. With OpenMP, `torch.set_num_threads` bounds the number of threads too. A caller in a
    parallel region of OpenMP computes alone. Threads of this package are used where OpenMP has one
    thread, in forked children, and where PyTorch has another OpenMP runtime (LLVM's or Intel's).

    The environment variable CHARRNN_EXECUTOR sets it at the start. Raises `ValueError` for other
    names and while another thread computes.
    """
    from ._core import set_executor

    if name not in ("auto", "own", "openmp"):
        raise ValueError(f"name must be 'auto', 'own' or 'openmp', got {name!r}")
    set_executor(name)


def get_include() -> str:
    """The folder of the C++ headers, for ``-I`` of a compiler."""
    return _installed("include", "charrnn_fast/version.hpp")


def get_cmake_dir() -> str:
    """The folder of the CMake package, for ``CMAKE_PREFIX_PATH`` or ``charrnn_fast_DIR``.

    With it ``find_package(charrnn_fast CONFIG)`` has the target ``charrnn_fast::core``.
    """
    return _installed("lib/cmake/charrnn_fast", "charrnn_fast-config.cmake")


def _installed(folder: str, file: str) -> str:
    """A folder beside the compiled module, where also an editable installation has it."""
    import errno
    import os

    from . import _core

    found = os.path.join(os.path.dirname(_core.__file__), *folder.split("/"))
    if not os.path.exists(os.path.join(found, file)):
        message = "the C++ library is not there; install charrnn_fast with pip"
        raise FileNotFoundError(errno.ENOENT, message, found)
    return found

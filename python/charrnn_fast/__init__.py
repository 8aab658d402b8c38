"""Fast recurrent networks (RNN, GRU, LSTM) and character-level language models.

`RNN` is the network, `CharLM` and `Trainer` the language model on top of it; `reference` is the
same math in NumPy. Command line: ``charrnn-fast --help``.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # of typing, which takes a while to import
if TYPE_CHECKING:
    from typing import Any

    from . import optim, reference
    from .checkpoint import CheckpointError
    from .corpus import Corpus
    from .losses import (
        binary_cross_entropy,
        clip_grad_norm,
        clip_grad_value,
        cross_entropy,
        mean_square,
    )
    from .model import CharLM
    from .rnn import RNN
    from .trainer import Trainer
    from .vocabulary import Vocabulary

    __version__: str

__all__ = [
    "RNN",
    "CharLM",
    "CheckpointError",
    "Corpus",
    "Trainer",
    "Vocabulary",
    "binary_cross_entropy",
    "build_info",
    "clip_grad_norm",
    "clip_grad_value",
    "cross_entropy",
    "get_num_threads",
    "mean_square",
    "optim",
    "reference",
    "set_num_threads",
]

_MODULES = {
    "RNN": "rnn",
    "CharLM": "model",
    "CheckpointError": "checkpoint",
    "Corpus": "corpus",
    "Trainer": "trainer",
    "Vocabulary": "vocabulary",
    "binary_cross_entropy": "losses",
    "clip_grad_norm": "losses",
    "clip_grad_value": "losses",
    "cross_entropy": "losses",
    "mean_square": "losses",
}


def __getattr__(name: str) -> Any:
    # Imported when first used: `reference` then needs nothing compiled, and the command line can
    # say in one line what keeps the kernels from loading.
    value: Any
    if name == "__version__":
        value = build_info()["version"]
    elif name in ("optim", "reference"):
        value = import_module(f".{name}", __name__)
    elif name in _MODULES:
        value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def build_info() -> dict[str, Any]:
    """Version, compiler, instruction set in use and those this machine runs, threads, CUDA."""
    from ._core import build_info

    return build_info()


def get_num_threads() -> int:
    """The number of threads that the kernels use: at first one for each core it may run on."""
    from ._core import get_num_threads

    return get_num_threads()


def set_num_threads(n: int) -> None:
    """Sets the number of threads that the kernels use, 1 to 4096; results do not depend on it.

    The environment variable CHARRNN_NUM_THREADS sets it from outside.
    """
    from ._checks import integer
    from ._core import set_num_threads

    set_num_threads(integer("n", n, 1, 4096))

"""Fast recurrent networks (RNN, GRU, LSTM) and character-level language models.

`RNN` is the network. `CharLM` is the language model on top of it, `Trainer` trains it. `reference`
is the same math in NumPy. Command line: ``charrnn-fast --help``.
"""

from __future__ import annotations

from importlib import import_module

from .runtime import (
    build_info,
    get_cmake_dir,
    get_executor,
    get_include,
    get_num_threads,
    set_executor,
    set_num_threads,
)

TYPE_CHECKING = False  # of typing, which takes a while to import
if TYPE_CHECKING:
    from typing import Any

    from . import callbacks, cuda, distributed, log, optim, reference, schedules
    from .device_array import DeviceArray
    from .language.dynamic import Dynamic
    from .language.model import CharLM
    from .losses import (
        binary_cross_entropy,
        clip_grad_norm,
        clip_grad_value,
        cross_entropy,
        mean_square,
    )
    from .rnn import RNN
    from .storage.checkpoint import CheckpointError
    from .text.corpus import Corpus
    from .text.vocabulary import Vocabulary
    from .training.trainer import Trainer

    __version__: str

__all__ = [
    "RNN",
    "CharLM",
    "CheckpointError",
    "Corpus",
    "DeviceArray",
    "Dynamic",
    "Trainer",
    "Vocabulary",
    "binary_cross_entropy",
    "build_info",
    "callbacks",
    "clip_grad_norm",
    "clip_grad_value",
    "cross_entropy",
    "cuda",
    "distributed",
    "get_cmake_dir",
    "get_executor",
    "get_include",
    "get_num_threads",
    "log",
    "mean_square",
    "optim",
    "reference",
    "schedules",
    "set_executor",
    "set_num_threads",
]

_SUBMODULES = ("callbacks", "cuda", "distributed", "log", "optim", "reference", "schedules")

_MODULES = {
    "RNN": "rnn",
    "CharLM": "language.model",
    "CheckpointError": "storage.checkpoint",
    "Corpus": "text.corpus",
    "DeviceArray": "device_array",
    "Dynamic": "language.dynamic",
    "Trainer": "training.trainer",
    "Vocabulary": "text.vocabulary",
    "binary_cross_entropy": "losses",
    "clip_grad_norm": "losses",
    "clip_grad_value": "losses",
    "cross_entropy": "losses",
    "mean_square": "losses",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: `reference` then needs nothing compiled, and the command line can say
    # in one line why the kernels do not load.
    value: Any
    if name == "__version__":
        value = build_info()["version"]
    elif name in _SUBMODULES:
        value = import_module(f".{name}", __name__)
    elif name in _MODULES:
        value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})

"""Fast recurrent networks (RNN, GRU, LSTM) and character-level language models.

`RNN` is the network, `CharLM` and `Trainer` the language model on top of it; `reference` is the
same math in NumPy. Command line: ``charrnn-fast --help``.
"""

from __future__ import annotations

from typing import Any

from . import optim, reference
from ._core import get_num_threads, set_num_threads
from .checkpoint import CheckpointError
from .corpus import Corpus
from .losses import clip_grad_norm, clip_grad_value, cross_entropy
from .model import CharLM
from .rnn import RNN
from .trainer import Trainer
from .vocabulary import Vocabulary

__all__ = [
    "RNN",
    "CharLM",
    "CheckpointError",
    "Corpus",
    "Trainer",
    "Vocabulary",
    "build_info",
    "clip_grad_norm",
    "clip_grad_value",
    "cross_entropy",
    "get_num_threads",
    "optim",
    "reference",
    "set_num_threads",
]


def build_info() -> dict[str, Any]:
    """Version, compiler, instruction set in use and those this machine runs, threads, CUDA."""
    from ._core import build_info

    return build_info()


__version__: str = build_info()["version"]

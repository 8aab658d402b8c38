"""The layers as modules of PyTorch: `RNN`, `LSTM` and `GRU`, which take the place of torch.nn's.

Only importing this module imports PyTorch. `modules` has the modules, `operators` the operators of
PyTorch that they call.
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "charrnn_fast.torch needs PyTorch, which is not installed: "
        "pip install 'charrnn_fast[torch]'",
        name="torch",
    ) from None

from .modules import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN"]

"""Networks and language models as ONNX graphs, and recurrent nodes of ONNX files as networks.

`export` writes a file for ONNX Runtime and others, `to_model` makes the same in memory. `load`
reads the LSTM, GRU and RNN nodes of a file that PyTorch, Keras or another program has written.

Only importing this module imports onnx. `exporter` makes graphs with `graph`, and `importer` reads
them with `reading`. `nodes` has ONNX's orders of gates, for both. `steps` has cells in primitive
operators, for networks that ONNX's recurrent operators do not cover.
"""

from __future__ import annotations

try:
    import onnx as _onnx  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "onnx":
        raise
    raise ModuleNotFoundError(
        "charrnn_fast.onnx needs onnx, which is not installed: pip install 'charrnn_fast[onnx]'",
        name="onnx",
    ) from None

from .exporter import export, to_model
from .importer import load

__all__ = ["export", "load", "to_model"]

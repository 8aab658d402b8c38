"""Networks and language models as ONNX graphs, and recurrent nodes of ONNX files as networks.

`export` writes a file for ONNX Runtime and others, `to_model` makes the same in memory. `load`
reads the LSTM, GRU and RNN nodes of a file that PyTorch, Keras or another program has written.

Only importing this module imports onnx. `exporter` makes graphs and `importer` reads them; `nodes`
has ONNX's orders of gates, for both; `steps` has cells in primitive operators, for networks that
ONNX's recurrent operators do not cover; `graph` builds graphs.
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

__all__ = ["export", "to_model"]

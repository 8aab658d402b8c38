"""The layers for JAX: `RNN`, `LSTM` and `GRU` as functions of parameters and inputs.

Only importing this module imports JAX. `layers` has the layers, `operators` the primitives of JAX
that they call. The module needs handlers in `_core`, which are built with CHARRNN_JAX=ON.
"""

from __future__ import annotations

from .. import _core

try:
    import jax as _jax  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    raise ModuleNotFoundError(
        "charrnn_fast.jax needs JAX, which is not installed: pip install 'charrnn_fast[jax]'",
        name="jax",
    ) from None

if not hasattr(_core, "jax_handlers"):
    raise ImportError(
        "charrnn_fast.jax needs handlers for JAX, which this build of charrnn_fast does not have: "
        "build it with them by CHARRNN_JAX=ON pip install --no-binary charrnn_fast "
        "'charrnn_fast[jax]', or of its sources CHARRNN_JAX=ON pip install '.[jax]'"
    )

from .layers import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN"]

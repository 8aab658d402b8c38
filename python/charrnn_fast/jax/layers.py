"""`RNN`, `LSTM` and `GRU`: options in a hashable object, which is a function of parameters."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from .. import _devices, registry
from .._checks import FLOATS, LARGEST, instance, integer, real, warn
from ..rnn import check_compute_dtype, zoneout_rates
from . import operators

Array = Any
State = Any
"""h [L*D, B, R]; of LSTMs the pair (h, c), c [L*D, B, H]."""

_LSTMS = tuple(name for name, _ in registry.CELLS if name.endswith("lstm"))
_FLAGS = ("bias", "bidirectional", "layer_norm", "variational")


@dataclass(frozen=True)
class _Layers:
    """What the three share: the options, `init` and the call."""

    input_size: int
    hidden_size: int
    num_layers: int = 1
    _: dataclasses.KW_ONLY
    bias: bool = True
    bidirectional: bool = False
    layer_norm: bool = False
    dropout: float = 0.0
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    weight_drop: float = 0.0
    zoneout: float | tuple[float, float] = 0.0
    variational: bool = False
    compute_dtype: str = "float32"

    _has_c: ClassVar[bool] = False

    def __post_init__(self) -> None:
        set_to = object.__setattr__
        set_to(self, "input_size", integer("input_size", self.input_size, 1))
        set_to(self, "hidden_size", integer("hidden_size", self.hidden_size, 1))
        set_to(self, "num_layers", integer("num_layers", self.num_layers, 1, LARGEST))
        for name in _FLAGS:
            instance(name, getattr(self, name), bool, "True or False")
        for name in registry.DROPOUT_RATES:
            set_to(self, name, real(name, getattr(self, name), least=0, below=1))
        if isinstance(self.zoneout, list):
            set_to(self, "zoneout", tuple(self.zoneout))
        check_compute_dtype(self.compute_dtype, np.dtype(np.float32), _devices.CPU)
        self._check()
        operators.network(self._network)
        if self.dropout and self.num_layers == 1:
            warn(
                f"dropout={self.dropout:g} does nothing in a network of one layer: it is the rate "
                f"between layers"
            )

    def _check(self) -> None:
        """Of the options that not all have."""

    def _kind(self) -> dict[str, Any]:
        """cell, nonlinearity and proj_size, as `_core.NetworkFloat32` takes them."""
        raise NotImplementedError

    @cached_property
    def _zoneout(self) -> tuple[float, float]:
        kind = self._kind()
        cell = registry.CELLS[kind["cell"], kind["nonlinearity"]]
        return zoneout_rates(self.zoneout, cell, kind["proj_size"])

    @cached_property
    def _network(self) -> str:
        zoneout_h, zoneout_c = self._zoneout
        return operators.network_name(
            **self._kind(),
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            bias="double" if self.bias else "none",
            bidirectional=self.bidirectional,
            layer_norm=self.layer_norm,
            regularization={
                **{name: getattr(self, name) for name in registry.DROPOUT_RATES},
                "variational": self.variational,
                "zoneout_h": zoneout_h,
                "zoneout_c": zoneout_c,
            },
            # programs that were exported before have none
            **({} if self.compute_dtype == "float32" else {"compute_dtype": self.compute_dtype}),
        )

    @cached_property
    def _has_masks(self) -> bool:
        others = [getattr(self, name) for name in registry.DROPOUT_RATES if name != "dropout"]
        return any((*others, *self._zoneout, self.dropout and self.num_layers > 1))

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters by name: those of torch.nn's module of that name."""
        return dict(operators.network(self._network).shapes)

    def init(self, key: Array, dtype: Any = jnp.float32) -> dict[str, Array]:
        """New parameters by name: from U(-1/sqrt(H), 1/sqrt(H)), gains 1.

        key: of jax.random. dtype: float32, or with jax_enable_x64 float64.
        """
        wanted = np.dtype(dtype)
        if wanted not in FLOATS or jax.dtypes.canonicalize_dtype(wanted) != wanted:
            takes = "float32 or float64" if jax.config.jax_enable_x64 else "float32"
            hint = "" if wanted not in FLOATS else ": float64 takes jax_enable_x64"
            raise TypeError(f"dtype must be {takes}, got {wanted}{hint}")
        shapes = self.parameter_shapes()
        bound = 1 / math.sqrt(self.hidden_size)
        keys = jax.random.split(key, len(shapes))
        return {
            name: jnp.ones(shape, wanted)
            if name.startswith("gain_")
            else jax.random.uniform(key, shape, wanted, -bound, bound)
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def __call__(
        self,
        parameters: dict[str, Array],
        x: Array,
        state: State | None = None,
        *,
        lengths: Array | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Array, State]:
        """y and the last state of a sequence.

        parameters: arrays by name, as `init` makes them, of float32 or float64. x: [T, B, I], or
        [T, I] without a batch. state: the initial one, h_0 [L*D, B, R], of LSTM the pair
        (h_0, c_0), c_0 [L*D, B, H], without B as x; None: zeros. lengths: [B] integers, 0 to T, of
        rows that end earlier: y is 0 behind the end, and the last state is that at the end.
        dropout_key: of jax.random, for the masks; None: none are drawn, as in inference.

        y: [T, B, D*R] as x; the last state as the initial one. All arrays have one dtype.
        """
        weights, dtype = self._weights(parameters)
        x = _array("x", x, dtype)
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            raise ValueError(
                f"x must have shape [T, B, {self.input_size}] or [T, {self.input_size}], got "
                f"{list(x.shape)}"
            )
        is_batched = x.ndim == 3
        batch = (x.shape[1],) if is_batched else ()
        states = self._first(state, dtype, batch)
        if lengths is not None:
            lengths = _lengths(lengths, x.shape[0], batch)
        if not is_batched:
            x, states = x[:, None], [s[:, None] for s in states]
            lengths = None if lengths is None else lengths[None]
        seed = None
        if self._has_masks and dropout_key is not None:
            seed = jax.random.bits(dropout_key, (2,), jnp.uint32)
        y, *last = operators.sequence(self._network, x, states, weights, lengths, seed)
        if not is_batched:
            y, last = y[:, 0], [s[:, 0] for s in last]
        return y, tuple(last) if self._has_c else last[0]

    def _weights(self, parameters: Any) -> tuple[list[Array], np.dtype[Any]]:
        """The checked parameters in the network's order, and their dtype."""
        shapes = operators.network(self._network).shapes
        instance("parameters", parameters, dict, "a dict of arrays")
        if missing := [name for name in shapes if name not in parameters]:
            raise ValueError(f"parameters must have {missing[0]!r}, got {list(parameters)}")
        if unknown := [name for name in parameters if name not in shapes]:
            raise ValueError(f"parameters must be {list(shapes)}, got {unknown[0]!r} too")
        dtype = np.dtype(jnp.result_type(parameters[next(iter(shapes))]))
        if dtype not in FLOATS:
            raise TypeError(f"parameters must be float32 or float64, got {dtype}")
        if dtype != np.float32 and self.compute_dtype != "float32":
            raise TypeError(
                f"parameters must be float32 with compute_dtype={self.compute_dtype!r}, got {dtype}"
            )
        weights = []
        for name, shape in shapes.items():
            weights.append(_array(name, parameters[name], dtype))
            _check_shape(name, weights[-1], shape)
        return weights, dtype

    def _first(self, state: Any, dtype: np.dtype[Any], batch: tuple[Any, ...]) -> list[Array]:
        """The checked initial states."""
        shapes = [
            (layers, *batch, width)
            for layers, _, width in operators.network(self._network).state_shapes
        ]
        if state is None:
            return [jnp.zeros(shape, dtype) for shape in shapes]
        given, names = [state], ["state"]
        if self._has_c:
            if not isinstance(state, (tuple, list)) or len(state) != 2:
                got = type(state).__name__
                if isinstance(state, (tuple, list)):
                    got = f"{len(state)} of them"
                raise TypeError(f"state must be a pair of arrays (h_0, c_0), got {got}")
            given, names = list(state), ["state[0]", "state[1]"]
        states = []
        for name, value, shape in zip(names, given, shapes, strict=True):
            states.append(_array(name, value, dtype))
            _check_shape(name, states[-1], shape)
        return states


def _array(name: str, value: Any, dtype: np.dtype[Any]) -> Array:
    """An array of this dtype; TypeError if it is none."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(f"{name} must be an array, got {type(value).__name__}")
    if np.dtype(value.dtype) != dtype:
        raise TypeError(
            f"{name} must have the parameters' dtype {dtype}, got {value.dtype}: convert it by "
            f"{name.split('[')[0]}.astype({dtype.name!r})"
        )
    return jnp.asarray(value)


def _check_shape(name: str, array: Array, shape: tuple[Any, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(array.shape)}")


def _lengths(lengths: Any, seq_len: int, batch: tuple[int, ...]) -> Array:
    given = lengths if hasattr(lengths, "dtype") else np.asarray(lengths)
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(f"lengths must be integers, got {given.dtype}")
    _check_shape("lengths", given, batch)
    if not isinstance(given, jax.core.Tracer):  # of a tracer the kernels check the values
        for b, length in enumerate(np.asarray(given).ravel().tolist()):
            if not 0 <= length <= seq_len:
                raise ValueError(f"lengths[{b}] must be in 0 to {seq_len}, got {length}")
    return jnp.asarray(given).astype(jnp.int32)


@jax.tree_util.register_static
@dataclass(frozen=True)
class RNN(_Layers):
    """Vanilla layers on the kernels of this package; the options are those of `charrnn_fast.RNN`.

    An object holds options alone: it is hashable, equal to one with equal options, and a pytree
    without leaves. `init` makes parameters, and calling it with them computes. nonlinearity: "tanh"
    or "relu". Rates are of [0, 1).
    """

    _: dataclasses.KW_ONLY
    nonlinearity: str = "tanh"

    def _check(self) -> None:
        _one_of("nonlinearity", self.nonlinearity, registry.nonlinearities("rnn"))

    def _kind(self) -> dict[str, Any]:
        return {"cell": "rnn", "nonlinearity": self.nonlinearity, "proj_size": 0}


@jax.tree_util.register_static
@dataclass(frozen=True)
class LSTM(_Layers):
    """LSTM layers; see `RNN`.

    proj_size: P of a projection, 0: none. cell: "lstm", "peephole_lstm" or "coupled_lstm". zoneout:
    one rate, or a pair for h and c.
    """

    _: dataclasses.KW_ONLY
    proj_size: int = 0
    cell: str = "lstm"

    _has_c: ClassVar[bool] = True

    def _check(self) -> None:
        _one_of("cell", self.cell, _LSTMS)
        proj_size = integer("proj_size", self.proj_size, 0)
        if proj_size >= self.hidden_size:
            raise ValueError(
                f"proj_size must be less than hidden_size={self.hidden_size}, got {proj_size}"
            )
        object.__setattr__(self, "proj_size", proj_size)

    def _kind(self) -> dict[str, Any]:
        return {"cell": self.cell, "nonlinearity": "tanh", "proj_size": self.proj_size}


@jax.tree_util.register_static
@dataclass(frozen=True)
class GRU(_Layers):
    """GRU layers; see `RNN`."""

    def _kind(self) -> dict[str, Any]:
        return {"cell": "gru", "nonlinearity": "tanh", "proj_size": 0}


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")

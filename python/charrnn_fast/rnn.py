"""Recurrent networks: a stack of RNN, GRU or LSTM layers with an optional linear decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._checks import LARGEST_SEED, instance, integer, real, shown

Array = NDArray[Any]
State = Any
"""An array [L, B, H] (rnn, gru), or a tuple (h, c) of two (lstm)."""

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_MOST_LAYERS = 10_000
_DRAWN_AT_ONCE = 2**16  # weights
_MOST_PARAMETERS = 2**40  # more is a slip; less may still exceed the memory
_BIASES = {True: "double", "double": "double", "single": "single", False: "none", "none": "none"}


class RNN:
    """num_layers recurrent layers on each other and, with output_size, a linear decoder.

    Dimension letters: T seq_len, B batch, I input_size, H hidden_size, L num_layers, G gates
    (1 for "rnn", 3 for "gru", 4 for "lstm"), O output_size, or H without a decoder.

    The step of the vanilla network (Elman, 1990)::

        h = tanh(W_hh h + W_xh x + b_h);   y = W_hy h + b_y

    with h zero at first; ``bias=False`` leaves b_h and b_y out. "lstm" and "gru" are those of
    PyTorch, gate order i, f, g, o and r, z, n. Inputs are vectors of the network's dtype, or
    integer tokens 0 to I - 1, which stand for one-hot vectors and give the same bits.

    Results are the same bits for any number of threads, for any company in the batch, and for
    stepping as for whole sequences.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = None,
        *,
        cell: str = "rnn",
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool | str = True,
        dtype: Any = "float32",
        seed: int = 0,
        forget_bias: float | None = None,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: str = "cpu",
    ) -> None:
        """Weights and biases are drawn from U(-1/sqrt(H), 1/sqrt(H)) by `seed`, as in PyTorch.

        cell: "rnn", "gru" or "lstm"; nonlinearity ("tanh", "relu") is that of "rnn".
        bias: True (PyTorch's two vectors per layer), "single" (one) or False (none).
        dtype: "float32" or "float64". forget_bias: the sum of an LSTM's two biases of the forget
        gate at the start (Gers et al., 2000); None leaves them as drawn.
        dropout, bidirectional, proj_size, device: kept for later versions; they take their
        defaults only.
        """
        input_size = integer("input_size", input_size, 1)
        hidden_size = integer("hidden_size", hidden_size, 1)
        num_layers = integer("num_layers", num_layers, 1, _MOST_LAYERS)
        seed = integer("seed", seed, 0, LARGEST_SEED)
        if output_size is not None:
            output_size = integer("output_size", output_size, 1)
        if cell not in ("rnn", "gru", "lstm"):
            raise ValueError(f"cell must be 'rnn', 'gru' or 'lstm', got {cell!r}")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        if cell != "rnn" and nonlinearity != "tanh":
            raise ValueError(f"nonlinearity={nonlinearity!r} is for cell='rnn', got cell={cell!r}")
        if isinstance(bias, (bool, str)) is False or bias not in _BIASES:
            raise ValueError(f"bias must be True, 'single' or False, got {bias!r}")
        for name, value, only in (
            ("dropout", dropout, 0.0),
            ("bidirectional", bidirectional, False),
            ("proj_size", proj_size, 0),
            ("device", device, "cpu"),
        ):
            if value != only:
                raise ValueError(f"{name} must be {only!r} in this version, got {value!r}")
        try:
            self.dtype: np.dtype[Any] = np.dtype(dtype)
        except TypeError:
            raise TypeError(f"dtype must be 'float32' or 'float64', got {dtype!r}") from None
        if dtype is None or self.dtype not in _FLOATS:  # NumPy takes None for float64
            got = None if dtype is None else self.dtype
            raise TypeError(f"dtype must be 'float32' or 'float64', got {got}")

        self.input_size = input_size
        self.hidden_size = hidden_size
        self.output_size = output_size
        self.num_layers = num_layers
        self.cell = cell
        self.nonlinearity = nonlinearity
        self.bias = bias
        make: Any = _core.NetworkFloat32 if self.dtype == np.float32 else _core.NetworkFloat64
        self._carried: Array | None = None  # the state of `step`, in the kernels' layout
        weights = self._count_weights()
        if weights > _MOST_PARAMETERS:
            raise ValueError(f"{self!r} would have {weights:.3g} weights, at most 2**40 are taken")
        try:
            self._core: Any = make(
                f"rnn_{nonlinearity}" if cell == "rnn" else cell,
                input_size,
                hidden_size,
                output_size or 0,
                num_layers,
                _BIASES[bias],
            )
            self._initialise(seed, forget_bias)
        except MemoryError:
            raise MemoryError(
                f"{self!r} has {weights:,} weights, which exceed the memory"
            ) from None

    def _count_weights(self) -> int:
        """The elements of all weight matrices, known before any is made."""
        I, H, L = self.input_size, self.hidden_size, self.num_layers  # noqa: E741
        G = {"rnn": 1, "gru": 3, "lstm": 4}[self.cell]
        return G * H * (I + H + (L - 1) * 2 * H) + (self.output_size or 0) * H

    def _initialise(self, seed: int, forget_bias: float | None) -> None:
        # Philox's raw words are the same in every version of NumPy; its distributions need not be.
        words = np.random.Philox(seed)
        bound = 1 / math.sqrt(self.hidden_size)
        H = self.hidden_size
        if forget_bias is not None:
            forget_bias = real("forget_bias", forget_bias)
        for name, shape in self._core.parameter_shapes().items():
            value = np.empty(shape, self.dtype)
            flat = value.reshape(-1)
            # In pieces: the words, and what is computed from them, take eight bytes each.
            for start in range(0, flat.size, _DRAWN_AT_ONCE):
                piece = flat[start : start + _DRAWN_AT_ONCE]
                raw = words.random_raw(piece.size)
                piece[:] = ((raw >> np.uint64(11)) * (2.0**-52) - 1.0) * bound
            if self.cell == "lstm" and forget_bias is not None and name.startswith("bias_"):
                value[H : 2 * H] = forget_bias if name.startswith("bias_ih") else 0.0
            self._core.set_parameter(name, value)

    def __repr__(self) -> str:
        output = "" if self.output_size is None else f", {self.output_size}"
        return (
            f"RNN({self.input_size}, {self.hidden_size}{output}, cell={self.cell!r}, "
            f"num_layers={self.num_layers}, dtype={self.dtype.name!r})"
        )

    # ---- parameters -----------------------------------------------------------------------

    def parameters(self) -> dict[str, Array]:
        """Read-only views of the parameters, by PyTorch's names and in its shapes.

        weight_ih_l0 [G*H, I], weight_hh_l0 [G*H, H], bias_ih_l0 and bias_hh_l0 [G*H], and so on
        for each layer; decoder.weight [O, H], decoder.bias [O].
        """
        return {name: self._core.parameter(name) for name in self._core.parameter_shapes()}

    def load_parameters(self, parameters: Mapping[str, Array]) -> None:
        """Copies parameters from a mapping like that of `parameters`, all of them or nothing.

        Raises ValueError for a missing, unknown or misshapen array, TypeError for another dtype.
        """
        instance("parameters", parameters, Mapping, "a mapping of arrays by name")
        shapes: dict[str, tuple[int, ...]] = self._core.parameter_shapes()
        missing = [name for name in shapes if name not in parameters]
        unknown = [name for name in parameters if name not in shapes]
        if missing or unknown:
            raise ValueError(
                f"parameters lacks {missing} and has unknown {unknown}; it takes {list(shapes)}"
            )
        for name, shape in shapes.items():
            self._check_parameter(f"parameters[{name!r}]", parameters[name], shape)
        for name in shapes:
            self._core.set_parameter(name, parameters[name])

    def _check_parameter(self, name: str, value: object, shape: tuple[int, ...]) -> None:
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{name} must be an array, got {type(value).__name__}")
        if value.dtype != self.dtype:
            raise TypeError(f"{name} must have dtype {self.dtype}, got {value.dtype}")
        if value.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {value.shape}")

    def _article_view(self, article: str, name: str) -> Array:
        if self.num_layers != 1:
            raise AttributeError(
                f"{article} names a weight of a one-layer network, this one has "
                f"{self.num_layers} layers: see parameters()"
            )
        if name not in self._core.parameter_shapes():
            raise AttributeError(f"this network has no {article} ({name})")
        view: Array = self._core.parameter(name)
        return view

    def _assign(self, article: str, name: str, value: Array) -> None:
        self._check_parameter(article, value, self._article_view(article, name).shape)
        self._core.set_parameter(name, value)

    @property
    def W_xh(self) -> Array:  # noqa: N802
        """Input to hidden, [G*H, I]: a read-only view of weight_ih_l0. Assigning copies."""
        return self._article_view("W_xh", "weight_ih_l0")

    @W_xh.setter
    def W_xh(self, value: Array) -> None:  # noqa: N802
        self._assign("W_xh", "weight_ih_l0", value)

    @property
    def W_hh(self) -> Array:  # noqa: N802
        """Hidden to hidden, [G*H, H]: a read-only view of weight_hh_l0. Assigning copies."""
        return self._article_view("W_hh", "weight_hh_l0")

    @W_hh.setter
    def W_hh(self, value: Array) -> None:  # noqa: N802
        self._assign("W_hh", "weight_hh_l0", value)

    @property
    def W_hy(self) -> Array:  # noqa: N802
        """Hidden to output, [O, H]: a read-only view of decoder.weight. Assigning copies."""
        return self._article_view("W_hy", "decoder.weight")

    @W_hy.setter
    def W_hy(self, value: Array) -> None:  # noqa: N802
        self._assign("W_hy", "decoder.weight", value)

    @property
    def b_h(self) -> Array:
        """Bias of the hidden units, [G*H]: a read-only view of bias_ih_l0. Assigning copies."""
        return self._article_view("b_h", "bias_ih_l0")

    @b_h.setter
    def b_h(self, value: Array) -> None:
        self._assign("b_h", "bias_ih_l0", value)

    @property
    def b_y(self) -> Array:
        """Bias of the outputs, [O]: a read-only view of decoder.bias. Assigning copies."""
        return self._article_view("b_y", "decoder.bias")

    @b_y.setter
    def b_y(self, value: Array) -> None:
        self._assign("b_y", "decoder.bias", value)

    # ---- state ----------------------------------------------------------------------------

    def zero_state(self, batch: int) -> Array:
        """A zero state of `batch` rows in the kernels' layout, [S, L, B, H]; S is 2 for lstm."""
        shape = (self._core.num_states, self.num_layers, batch, self.hidden_size)
        return np.zeros(shape, self.dtype)

    def reset(self) -> None:
        """Sets the state that `step` carries back to zero."""
        self._carried = None

    @property
    def state(self) -> State:
        """A copy of the state that `step` carries; None where it is still zero."""
        return None if self._carried is None else self._public_state(self._carried.copy())

    def _public_state(self, state: Array) -> State:
        return state[0] if len(state) == 1 else (state[0], state[1])

    def _kernel_state(self, name: str, state: State, batch: int) -> Array | None:
        if state is None:
            return None
        shape = (self.num_layers, batch, self.hidden_size)
        if self.cell == "lstm":
            if not (isinstance(state, (tuple, list)) and len(state) == 2):
                raise TypeError(f"{name} must be a tuple (h, c), got {type(state).__name__}")
            parts = {f"{name}[0] (h)": state[0], f"{name}[1] (c)": state[1]}
        else:
            parts = {name: state}
        for part, value in parts.items():
            self._check_floats(part, value)
            if value.shape != shape:
                raise ValueError(f"{part} must have shape [L, B, H] = {shape}, got {value.shape}")
        return np.stack(list(parts.values()))

    # ---- arrays in ------------------------------------------------------------------------

    def _check_floats(self, name: str, value: object) -> None:
        if not isinstance(value, np.ndarray):
            raise TypeError(
                f"{name} must be a NumPy array of {self.dtype}, got {type(value).__name__}"
            )
        code = name.split()[0]  # of "state[0] (h)"
        if value.dtype != self.dtype:
            message = (
                f"{name} must have the network's dtype {self.dtype}, got {value.dtype}: convert it "
                f"by {code}.astype({self.dtype.name!r})"
            )
            if not value.dtype.isnative:
                message += "; its byte order is not this machine's"
            elif value.dtype in _FLOATS:
                message += f", or build the network with dtype={value.dtype.name!r}"
            raise TypeError(message)
        if not value.flags.c_contiguous:
            raise ValueError(f"{name} must be C-contiguous: pass numpy.ascontiguousarray({code})")

    def _input(self, x: object, dims: str) -> Array:
        """x [*dims, I] of the network's dtype, or tokens [*dims] as int32; both contiguous."""
        if not isinstance(x, np.ndarray):
            raise TypeError(f"x must be a NumPy array, got {type(x).__name__}")
        ndim = len(dims)
        shown = ", ".join(dims)
        if x.dtype.kind in "iu":
            if x.ndim != ndim:
                raise ValueError(f"x of tokens must have shape [{shown}], got {x.shape}")
            if not x.flags.c_contiguous:
                raise ValueError("x must be C-contiguous: pass numpy.ascontiguousarray(x)")
            return _tokens("x", x, 0, self.input_size)
        self._check_floats("x", x)
        if x.ndim != ndim + 1 or x.shape[-1] != self.input_size:
            shown = f"{shown}, {self.input_size}" if dims else f"{self.input_size}"
            raise ValueError(f"x must have shape [{shown}], got {x.shape}")
        return x

    # ---- one step -------------------------------------------------------------------------

    def step(self, x: Array | int) -> Array:
        """One step of the carried state: y [O] for x [I], or y [B, O] for x [B, I].

        x: of the network's dtype, or integer tokens: one (y [O]) or [B]. The state starts at
        zero and is carried from call to call, until `reset`; B cannot change before that.
        """
        if self._carried is not None:
            y: Array | None = self._core.step_plain(x, self._carried)
            if y is not None:
                return y
        if isinstance(x, (int, np.integer)) and not isinstance(x, bool):
            if not 0 <= x < self.input_size:  # NumPy has no integers for some
                raise ValueError(f"x is {shown(int(x))}, it takes 0 to {self.input_size - 1}")
            x = np.asarray(x)
        single = isinstance(x, np.ndarray) and x.ndim == (x.dtype.kind == "f")
        if single:
            x = self._input(x, "")[np.newaxis]
        else:
            x = self._input(x, "B")
            if len(x) == 0:
                raise ValueError("x must have a batch of 1 or more, got 0")
        state = self._carried
        if state is None:
            state = self.zero_state(len(x))
        elif state.shape[2] != len(x):
            raise ValueError(
                f"x has a batch of {len(x)}, the carried state one of {state.shape[2]}: call "
                "reset() first to start anew"
            )
        y = self._core.step(x, state)
        self._carried = state
        return y[0] if single else y

    # ---- sequences ------------------------------------------------------------------------

    def forward(
        self, x: Array, state: State = None, *, lengths: None = None, keep: bool = True
    ) -> tuple[Array, State]:
        """Runs a whole sequence: y [T, B, O] and the last state.

        x [T, B, I] of the network's dtype, or integer tokens [T, B]. state: the initial state
        (None: zero), an array [L, B, H], for an LSTM a tuple (h, c). keep=False leaves out what
        `backward` needs, which takes far less memory. lengths: for later versions, None only.
        Neither reads nor changes the state that `step` carries.
        """
        if lengths is not None:
            raise ValueError(f"lengths must be None in this version, got {lengths!r}")
        x = self._input(x, "TB")
        if x.shape[1] == 0:
            raise ValueError("x must have a batch of 1 or more, got 0")
        y, last = self._core.forward(x, self._kernel_state("state", state, x.shape[1]), keep)
        self._kept_shape = y.shape if keep else None
        return y, self._public_state(last)

    _kept_shape: tuple[int, ...] | None = None

    def backward(
        self, dy: Array, dstate: State = None
    ) -> tuple[Array | None, State, dict[str, Array]]:
        """Backpropagation through time of the last `forward`.

        dy [T, B, O]: gradient of a loss by y. dstate: gradient by the last state, in the form of
        a state (None: zero). Returns the gradients by x ([T, B, I]; None for tokens), by the
        initial state and, by name, by the parameters, all in fresh arrays. Raises RuntimeError
        where no forward has kept what this needs, and where a parameter has changed since.
        """
        if self._kept_shape is None or not self._core.has_tape:
            raise RuntimeError(
                "backward belongs to the last forward(..., keep=True), and there is none, or "
                "training, evaluation or a change of the parameters has come after it"
            )
        self._check_floats("dy", dy)
        if dy.shape != self._kept_shape:
            raise ValueError(
                f"dy must have the shape of y, [T, B, O] = {self._kept_shape}, got {dy.shape}"
            )
        dx, dstate_0, gradients = self._core.backward(
            dy, self._kernel_state("dstate", dstate, dy.shape[1])
        )
        return dx, self._public_state(dstate_0), gradients


def _tokens(name: str, tokens: Array, lowest: int, end: int) -> NDArray[np.int32]:
    """Integers of any type as int32, each in [lowest, end); ValueError names the first bad one."""
    if tokens.size:
        smallest, largest = int(tokens.min()), int(tokens.max())
        if smallest < lowest or largest >= end:
            bad = (tokens < lowest) | (tokens >= end)
            where = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(bad)))
            value = int(np.atleast_1d(tokens)[where])
            index = f"[{', '.join(map(str, where))}]" if tokens.ndim else ""
            raise ValueError(f"{name}{index} is {value}, it takes {lowest} to {end - 1}")
    return np.require(tokens, np.int32, "C")  # keeps a single token's empty shape

"""Recurrent networks: a stack of RNN, GRU or LSTM layers with an optional linear decoder."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any, overload
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from . import _core, _devices, registry
from ._checks import (
    FLOATS,
    LARGEST_SEED,
    array,
    array_like,
    called,
    floats,
    in_range,
    instance,
    integer,
    real,
    shown,
    token_array,
    warn,
)
from ._names import suggesting
from ._objects import Settled
from .device_array import DeviceArray, is_of_a_gpu
from .device_calls import DeviceCalls
from .initial import INITS, draw
from .states import State, StateLayout

Array = NDArray[Any]

_MOST_LAYERS = 10_000
_MOST_PARAMETERS = 2**40  # more is a slip; less may still exceed the memory
_MODIFIERS = (
    "nonlinearity",
    "bias",
    "bidirectional",
    "proj_size",
    "layer_norm",
    *registry.DROPOUT_RATES,
    "variational",
    "zoneout",
    "compute_dtype",
    "device",
)
_BIASES = {True: "double", "double": "double", "single": "single", False: "none", "none": "none"}


class _Forward:
    """A thread's forward: its number (0 without keep), and whether backward may follow."""

    def __init__(self, number: int) -> None:
        self.number, self.is_open = number, number > 0


class RNN(Settled):
    """A stack of RNN, GRU or LSTM layers and, with output_size, a linear decoder.

    The third argument is output_size, not num_layers as in `torch.nn.RNN`: PyTorch's
    ``RNN(10, 20, 2)`` is ``RNN(10, 20, num_layers=2)`` here.

    Letters in shapes: T seq_len, B batch, I input_size, H hidden_size, L num_layers, D directions
    (2 if bidirectional), G gates (1 for "rnn", 3 for "gru" and "coupled_lstm", else 4), R width of
    h (proj_size, or H), O output_size, or D*R without a decoder.

    One step of the vanilla network (Elman, 1990), from h = 0::

        h = tanh(W_hh h + W_xh x + b_h);   y = W_hy h + b_y

    ``bias=False`` drops b_h and b_y. "lstm" and "gru" are PyTorch's, with gate order i, f, g, o and
    r, z, n. Inputs are vectors of the network's dtype, or integer tokens 0 to I - 1. A token stands
    for its one-hot vector and gives the same bits.

    Two variants of the LSTM (Greff et al., 2017): in "peephole_lstm" the gates see the cell state
    (i = sigmoid(a_i + p_i c), f likewise; o = sigmoid(a_o + p_o c')); in "coupled_lstm" the input
    gate is 1 - f (c' = f c + (1 - f) g; gate order f, g, o).

    Results are bitwise the same for any number of threads, for any other rows in the batch, and for
    single steps as for whole sequences.

    Options are read-only attributes. `copy.deepcopy`, `copy.copy` and `pickle` make an independent
    network with the same weights and the same carried state, on the same device; attributes of
    subclasses are copied too. What `backward` needs of the last `forward` is not copied.

    On a GPU, too, arrays of NumPy go in and come out: calls copy them. The parameters stay there.
    `forward`, `backward` and `step` also take arrays of the GPU, a `DeviceArray` or another
    library's with DLPack or ``__cuda_array_interface__``, and then return `DeviceArray` without a
    copy to the host. All arrays of a call are of one kind; tokens come to the host, which checks
    them.
    ``other.load_parameters(rnn.parameters())`` moves them to a network on another device.

    Threads may share a network: their calls wait for each other. But it has one last forward and
    one carried state. `backward` raises RuntimeError if another thread has called `forward` since,
    and `step` continues from the state that any thread left. Give each thread that trains or steps
    its own copy.
    """

    input_size: int
    hidden_size: int
    output_size: int | None
    cell: str
    num_layers: int
    nonlinearity: str
    bias: bool | str
    dtype: np.dtype[Any]
    bidirectional: bool
    proj_size: int
    layer_norm: bool
    dropout: float
    input_dropout: float
    output_dropout: float
    recurrent_dropout: float
    variational: bool
    weight_drop: float
    zoneout: tuple[float, float]
    """Zoneout rates of h and of c."""
    compute_dtype: str
    """How the operands of matrix products are rounded."""
    device: str
    """Where the parameters are and calls compute: "cpu", "cuda" or "cuda:N"."""

    _advice = {  # noqa: RUF012
        "": "the options of a network are fixed when it is built; build another one, whose "
        "load_parameters takes the parameters() of this one",
    }
    _covered = frozenset(("_core", "_states", "_on_device", "_carried", "_by_thread", "_forwards"))

    @suggesting
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
        init: str = "uniform",
        forget_bias: float | None = None,
        bidirectional: bool = False,
        proj_size: int = 0,
        layer_norm: bool = False,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        variational: bool = False,
        weight_drop: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        compute_dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        """Builds the network and draws its weights and biases from `seed`.

        cell: "rnn", "gru", "lstm", "peephole_lstm" or "coupled_lstm". nonlinearity: "tanh" or
        "relu", of cell "rnn". bias: True (PyTorch's two vectors per layer), "single" (one) or False
        (none). dtype: "float32" or "float64".

        compute_dtype: "bfloat16" rounds the operands of all matrix products, forward and backward,
        to bfloat16 (8 significant bits). Sums, states, gate math, gradients and the parameters
        stay float32. It takes less time where the processor has instructions for it, and more
        elsewhere, with the same bits. "float32": nothing is rounded. "tf32" (11 significant bits)
        is for GPUs.

        device: "cpu", "cuda" or, for GPU N, "cuda:N". Initial weights are the same on all. Raises
        RuntimeError, with the reason of `charrnn_fast.cuda.why_not`, if it cannot be used.

        init: "uniform" draws from U(-1/sqrt(H), 1/sqrt(H)), as PyTorch does. "lecun" draws a weight
        matrix with n inputs from U(-sqrt(3/n), sqrt(3/n)), which preserves variance (LeCun et al.,
        1998, section 4.6), and the rest as "uniform". "lecun_tokens" is "lecun" for tokens and
        other one-hot inputs, with n = 1 for layer 0. forget_bias: initial forget-gate bias of the
        LSTMs, the sum of the two bias vectors (Gers et al., 2000); None: as drawn.

        bidirectional: each layer reads its input in both directions (Schuster and Paliwal, 1997).
        proj_size: width of the LSTMs' projection h = W_hr (o tanh(c)) (Sak et al., 2014); 0: none.
        layer_norm: pre-activations become gain_ih N(W_ih x) + b_ih + gain_hh N(W_hh h) + b_hh (Ba
        et al., 2016). N normalizes over all gates; for "gru" over r and z together, and over n
        alone. c is not normalized.

        Regularization is active only in calls that get a mask_seed, as `Trainer` gives them. All
        rates lie in [0, 1). Dropout and weight_drop divide kept elements by 1 - rate.

        input_dropout: dropout rate of x (of a token: of its one-hot vector)
        dropout: dropout rate between layers
        output_dropout: dropout rate of the top layer's h
        recurrent_dropout: dropout rate of h where it enters W_hh
        variational: one mask for all steps of a call (Gal and Ghahramani, 2016), else one per step
        weight_drop: dropout rate of the elements of W_hh, one mask per call (Merity et al., 2018)
        zoneout: one rate, or a pair for h and c, at which a unit keeps its previous value (Krueger
            et al., 2017); without mask_seed its expectation, h' = rate h + (1 - rate) h''
        """
        seed = integer("seed", seed, 0, LARGEST_SEED)
        if init not in INITS:
            raise ValueError(
                f"{called('init')} must be one of {', '.join(map(repr, INITS))}, got {init!r}"
            )
        if forget_bias is not None:
            forget_bias = real("forget_bias", forget_bias)
        self._build(
            input_size,
            hidden_size,
            output_size,
            cell=cell,
            num_layers=num_layers,
            nonlinearity=nonlinearity,
            bias=bias,
            dtype=dtype,
            bidirectional=bidirectional,
            proj_size=proj_size,
            layer_norm=layer_norm,
            dropout=dropout,
            input_dropout=input_dropout,
            output_dropout=output_dropout,
            recurrent_dropout=recurrent_dropout,
            variational=variational,
            weight_drop=weight_drop,
            zoneout=zoneout,
            compute_dtype=compute_dtype,
            device=device,
        )
        with self._enough_memory():
            draw(
                self._core,
                self.dtype,
                cell=self.kind,
                hidden_size=self.hidden_size,
                seed=seed,
                init=init,
                forget_bias=forget_bias,
            )
        if self.dropout and self.num_layers == 1:
            warn(
                f"{called('dropout')}={self.dropout:g} does nothing in a network of one layer: it "
                f"leaves out between layers; there are {called('input_dropout')}, "
                f"{called('output_dropout')} and {called('recurrent_dropout')}"
            )

    def _build(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None,
        *,
        cell: str,
        num_layers: int,
        nonlinearity: str,
        bias: bool | str,
        dtype: Any,
        bidirectional: bool,
        proj_size: int,
        layer_norm: bool,
        variational: bool,
        zoneout: float | tuple[float, float],
        compute_dtype: str = "float32",  # pickles have it where it is another, and so is the device
        device: str = "cpu",
        **rates: float,
    ) -> None:
        """Checks the options and builds the network with zero parameters."""
        input_size = integer("input_size", input_size, 1)
        hidden_size = integer("hidden_size", hidden_size, 1)
        num_layers = integer("num_layers", num_layers, 1, _MOST_LAYERS)
        if output_size is not None:
            output_size = integer("output_size", output_size, 1)
        kind = _kind(cell, nonlinearity)
        if isinstance(bias, (bool, str)) is False or bias not in _BIASES:
            raise ValueError(f"bias must be True, 'single' or False, got {bias!r}")
        for name, flag in (
            ("bidirectional", bidirectional),
            ("layer_norm", layer_norm),
            ("variational", variational),
        ):
            if not isinstance(flag, (bool, np.bool_)):
                raise TypeError(f"{name} must be True or False, got {flag!r}")
        proj_size = integer("proj_size", proj_size, 0)
        if proj_size and not kind.takes_projection:
            raise ValueError(
                f"{called('proj_size')} must be 0 with {called('cell')}={cell!r}, got {proj_size}: "
                f"projections are for LSTMs"
            )
        if proj_size >= hidden_size:
            raise ValueError(
                f"{called('proj_size')} must be less than {called('hidden_size')}={hidden_size}, "
                f"got {proj_size}"
            )
        if rates.keys() != set(registry.DROPOUT_RATES):
            raise TypeError(f"rates must be {list(registry.DROPOUT_RATES)}, got {list(rates)}")
        rates = {name: _rate(name, rate) for name, rate in rates.items()}
        zoneout_h, zoneout_c = zoneout_rates(zoneout, kind, proj_size)
        try:
            numbers = np.dtype(dtype)
        except TypeError:
            raise TypeError(f"dtype must be 'float32' or 'float64', got {dtype!r}") from None
        if dtype is None or numbers not in FLOATS:  # NumPy takes None for float64
            got = None if dtype is None else numbers
            raise TypeError(f"dtype must be 'float32' or 'float64', got {got}")
        on = _devices.find(device)
        check_compute_dtype(compute_dtype, numbers, on)

        self.input_size = input_size
        self.hidden_size = hidden_size
        self.output_size = output_size
        self.num_layers = num_layers
        self.cell = cell
        self.nonlinearity = nonlinearity
        self.bias = bias
        self.dtype = numbers
        self.bidirectional = bool(bidirectional)
        self.proj_size = proj_size
        self.layer_norm = bool(layer_norm)
        for name, rate in rates.items():
            setattr(self, name, rate)
        self.variational = bool(variational)
        self.zoneout = (zoneout_h, zoneout_c)
        self.compute_dtype = compute_dtype
        self.device = on.name
        make: Any = _core.ModelFloat32 if self.dtype == np.float32 else _core.ModelFloat64
        # The state of `step`, in the kernels' layout: NumPy's array, or the device's.
        self._carried: Any = None
        # Each thread's last forward, and all of them by number: a thread gets the gradient of its
        # own forward, but one thread may hand a forward on to another.
        self._by_thread = threading.local()
        self._forwards: WeakValueDictionary[int, _Forward] = WeakValueDictionary()
        weights = self._count_weights()
        if weights > _MOST_PARAMETERS:
            raise ValueError(
                f"a network must have at most 2**40 weights, got {weights:.3g} for {self!r}; try "
                f"a smaller {called('hidden_size')}"
            )
        with self._enough_memory():
            self._core: Any = make(
                cell,
                input_size,
                hidden_size,
                output_size or 0,
                num_layers,
                _BIASES[bias],
                self.bidirectional,
                proj_size,
                self.layer_norm,
                rates
                | {
                    "variational": self.variational,
                    "zoneout_h": zoneout_h,
                    "zoneout_c": zoneout_c,
                },
                device=on.capsule,
                nonlinearity=nonlinearity,
                compute_dtype=compute_dtype,
            )
        self._states = StateLayout(
            self._core,
            num_layers * self._directions,
            self._width,
            hidden_size,
            self.dtype,
        )
        self._on_device = DeviceCalls(
            self._core,
            self._states,
            input_size=input_size,
            output_size=self._outputs,
            dtype=self.dtype,
            device=self.device,
        )

    def _enough_memory(self) -> AbstractContextManager[None]:
        """Told with what the parameters take, of which weights are nearly all."""
        weights = self._count_weights()
        what = f"{self!r} has {weights:,} weights and"
        needed, advice = weights * self.dtype.itemsize, f"a smaller {called('hidden_size')}"
        return _devices.find(self.device).enough_memory(needed, what, advice)

    def _count_weights(self) -> int:
        """The elements of all weight matrices, known before any is made."""
        H, R, D = self.hidden_size, self._width, self._directions
        G = len(self.kind.gates)
        inputs = self.input_size + (self.num_layers - 1) * D * R
        layers = D * (G * H * (inputs + self.num_layers * R) + self.num_layers * self.proj_size * H)
        return layers + (self.output_size or 0) * D * R

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _width(self) -> int:
        """R, the features of h."""
        return self.proj_size or self.hidden_size

    @property
    def _outputs(self) -> int:
        """Features of y."""
        return self.output_size or self._directions * self._width

    @property
    def kind(self) -> registry.Cell:
        """What there is to know of its cell, for the modules of this package."""
        return registry.CELLS[self.cell, self.nonlinearity]

    @property
    def core(self) -> Any:
        """The compiled network of `_core`, for the modules of this package."""
        return self._core

    @property
    def on_device(self) -> DeviceCalls:
        """The calls on arrays of its GPU, for the modules of this package."""
        return self._on_device

    @property
    def states(self) -> StateLayout:
        """How the kernels have this network's states, for the modules of this package."""
        return self._states

    @property
    def has_masks(self) -> bool:
        """Whether a mask_seed changes anything."""
        rates = (getattr(self, name) for name in registry.DROPOUT_RATES)
        return any((*rates, *self.zoneout))

    def __repr__(self) -> str:
        """The call that builds the network, with the options that differ from their defaults.

        output_size is named: the third argument of PyTorch's networks is num_layers.
        """
        output = "" if self.output_size is None else f", output_size={self.output_size}"
        defaults = signature(RNN).parameters
        others = [
            f", {name}={value!r}"
            for name in _MODIFIERS
            if (value := getattr(self, name)) not in (defaults[name].default, (0.0, 0.0))
        ]
        return (
            f"RNN({self.input_size}, {self.hidden_size}{output}, cell={self.cell!r}, "
            f"num_layers={self.num_layers}, dtype={self.dtype.name!r}{''.join(others)})"
        )

    # ---- copies and pickles ---------------------------------------------------------------

    def _pickled(self) -> dict[str, Any]:
        names = ("input_size", "hidden_size", "output_size", "cell", "num_layers", *_MODIFIERS)
        options = {name: getattr(self, name) for name in names}
        for name in ("compute_dtype", "device"):  # older versions have none
            if options[name] == signature(RNN).parameters[name].default:
                del options[name]
        return {
            "options": {**options, "dtype": self.dtype.name},
            "parameters": self.parameters(),
            "state": self.state,
        }

    def _unpickle(self, saved: dict[str, Any]) -> None:
        self._build(**saved["options"])
        self.load_parameters(saved["parameters"])
        self.state = saved["state"]

    # ---- parameters -----------------------------------------------------------------------

    def parameters(self, *, copy: bool = False) -> dict[str, Array]:
        """Read-only views of the parameters, with PyTorch's names and shapes.

        On a device other than the CPU they are read-only copies.

        weight_ih_l0 [G*H, I] (upper layers: weight_ih_l1 [G*H, D*R] and so on), weight_hh_l0
            [G*H, R], bias_ih_l0 and bias_hh_l0 [G*H]
        weight_ih_l0_reverse and so on: the reverse direction
        where the network has them: weight_peephole_l0 [3, H] (of i, f, o), gain_ih_l0 and
            gain_hh_l0 [G*H], weight_hr_l0 [R, H]
        decoder.weight [O, D*R], decoder.bias [O]

        Views show later changes, copies do not. Those of weight_ih_l0 and weight_ih_l0_reverse are
        in Fortran order (stored as [I, G*H]), the others in C order. copy=True returns writable
        copies in C order. To change a parameter, use `load_parameters`; changing the dict changes
        nothing.
        """
        views = {name: self._core.parameter(name) for name in self._core.parameter_shapes()}
        if not copy:
            return views
        return {name: np.array(view, order="C") for name, view in views.items()}

    def load_parameters(self, parameters: Mapping[str, Array]) -> None:
        """Copies all parameters from a mapping like that of `parameters`.

        Raises ValueError for a missing, unknown or misshapen array and TypeError for another dtype;
        then nothing has changed.
        """
        instance("parameters", parameters, Mapping, "a mapping of arrays by name")
        shapes: dict[str, tuple[int, ...]] = self._core.parameter_shapes()
        missing = [name for name in shapes if name not in parameters]
        unknown = [name for name in parameters if name not in shapes]
        if missing or unknown:
            raise ValueError(
                f"parameters must have {list(shapes)}; missing: {missing}, unknown: {unknown}"
            )
        for name, shape in shapes.items():
            self.check_parameter(f"parameters[{name!r}]", parameters[name], shape)
        for name in shapes:
            self._core.set_parameter(name, parameters[name])

    def check_parameter(self, name: str, value: object, shape: tuple[int, ...]) -> None:
        """TypeError or ValueError unless value can be the parameter; name is for the message."""
        value = array(name, value, "an array")
        if value.dtype != self.dtype:
            raise TypeError(f"{name} must have dtype {self.dtype}, got {value.dtype}")
        if value.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {value.shape}")

    def _article_view(self, article: str, name: str) -> Array:
        if self.num_layers != 1 or self.bidirectional:
            kind = "is bidirectional" if self.bidirectional else f"has {self.num_layers} layers"
            raise AttributeError(
                f"{article} names a weight of a one-layer network, this one {kind}: see "
                f"parameters()"
            )
        if name not in self._core.parameter_shapes():
            raise AttributeError(f"this network has no {article} ({name})")
        view: Array = self._core.parameter(name)
        return view

    def _assign(self, article: str, name: str, value: Array) -> None:
        self.check_parameter(article, value, self._article_view(article, name).shape)
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

    def zero_state(self, batch: int) -> State:
        """A state of zeros, in the form of `forward` and `state`: h [L*D, B, R], or (h, c)."""
        return self._states.public(self._kernel_zeros(integer("batch", batch, 1)))

    def _kernel_zeros(self, batch: int) -> Array:
        return self._states.zeros(batch)

    def reset(self) -> None:
        """Sets the state that `step` carries to zero."""
        self._carried = None

    @property
    def state(self) -> State:
        """The state that `step` carries, as a copy in the form of `forward`; None: zero.

        Assign to change it: an array h [L*D, B, R], for the LSTMs a tuple (h, c), c [L*D, B, H],
        of any batch B >= 1, is copied; None is `reset`. A decoder can thus start from an encoder's
        last state, and an interrupted stream resumes with the same bits. Raises TypeError and
        ValueError as `forward` does, and ValueError for a bidirectional network, which has no
        step.
        """
        self._bring_carried_home()
        return None if self._carried is None else self._states.public(self._carried.copy())

    @state.setter
    def state(self, state: State) -> None:
        if state is None:
            self.reset()
            return
        if self.bidirectional:
            raise ValueError("a bidirectional network reads whole sequences: it carries no state")
        h = state[0] if isinstance(state, (tuple, list)) and state else state
        batch = h.shape[1] if isinstance(h, np.ndarray) and h.ndim == 3 else 1
        if batch == 0:
            raise ValueError("state must have a batch of 1 or more, got 0")
        self._carried = self._kernel_state("state", state, batch)

    def _kernel_state(self, name: str, state: State, batch: int) -> Array | None:
        letters = "[L*D, B, H]" if self.bidirectional else "[L, B, H]"
        return self._states.checked(name, state, batch, letters)

    # ---- arrays in ------------------------------------------------------------------------

    def _input(self, x: object, dims: str) -> Array:
        """x [*dims, I] of the network's dtype, or tokens [*dims] as int32; both contiguous."""
        x = array("x", x)
        ndim = len(dims)
        shown = ", ".join(dims)
        if x.dtype.kind in "iu":
            return token_array("x", x, dims, self.input_size)
        x = floats("x", x, self.dtype)
        if x.ndim != ndim + 1 or x.shape[-1] != self.input_size:
            shown = f"{shown}, {self.input_size}" if dims else f"{self.input_size}"
            raise ValueError(f"x must have shape [{shown}], got {x.shape}")
        return x

    # ---- one step -------------------------------------------------------------------------

    @overload
    def step(self, x: Array | int) -> Array: ...
    @overload
    def step(self, x: Any) -> DeviceArray: ...
    def step(self, x: Any) -> Array | DeviceArray:
        """One time step: y [O] for x [I], or y [B, O] for x [B, I].

        x has the network's dtype, or is an integer token (y [O]) or tokens [B]. The state starts
        at zero and is carried from call to call. B is fixed until `reset`. Raises ValueError for a
        bidirectional network, whose reverse direction would need the later steps.
        """
        if self._carried is not None:
            plain: Array | None = self._core.step_plain(x, self._carried)
            if plain is not None:
                return plain
        if is_of_a_gpu(x):
            if self.bidirectional:
                raise ValueError(
                    "bidirectional must be False for step, got True: such a network reads whole "
                    "sequences"
                )
            y_there, self._carried = self._on_device.step(x, self._carried)
            return y_there
        self._bring_carried_home()
        if isinstance(x, np.ndarray) and x.ndim == 0 and x.dtype.kind in "iu":
            x = array("x", x)[()]
        if isinstance(x, (int, np.integer)) and not isinstance(x, bool):
            if not 0 <= x < self.input_size:  # NumPy has no integers for some
                raise ValueError(f"x must be in 0 to {self.input_size - 1}, got {shown(int(x))}")
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
            state = self._kernel_zeros(len(x))
        elif (carried := self._states.batch(state)) != len(x):
            raise ValueError(
                f"x must have the carried state's batch of {carried}, got {len(x)}; call reset() "
                f"first to start anew"
            )
        y: Array = self._core.step(x, state)
        self._carried = state
        return y[0] if single else y

    # ---- sequences ------------------------------------------------------------------------

    @overload
    def forward(
        self,
        x: Array,
        state: State = None,
        *,
        lengths: Sequence[int] | Array | None = None,
        keep: bool = True,
        mask_seed: int | None = None,
    ) -> tuple[Array, State]: ...
    @overload
    def forward(
        self,
        x: Any,
        state: State = None,
        *,
        lengths: Sequence[int] | Array | None = None,
        keep: bool = True,
        mask_seed: int | None = None,
    ) -> tuple[DeviceArray, State]: ...
    def forward(
        self,
        x: Any,
        state: State = None,
        *,
        lengths: Sequence[int] | Array | None = None,
        keep: bool = True,
        mask_seed: int | None = None,
    ) -> tuple[Any, State]:
        """Runs a whole sequence; returns y [T, B, O] and the last state.

        x: [T, B, I] of the network's dtype, or integer tokens [T, B]. state: the initial state
        (None: zero), an array h [L*D, B, R], for the LSTMs a tuple (h, c), c [L*D, B, H].

        lengths [B], 0 to T, in any order: row b has lengths[b] steps, the rest is padding. Padding
        is never computed and takes no time, though padded tokens must be valid ids; its y is 0.
        The last state is each row's own, and the reverse direction begins at each row's end.

        keep=False does not save what `backward` needs, which takes far less memory. mask_seed, 0
        to 2**64 - 1: seed of the masks of dropout, weight_drop and zoneout; None: no masks. The
        state that `step` carries is neither read nor changed.
        """
        on_device = is_of_a_gpu(x)
        x = self._on_device.input(x, "TB") if on_device else self._input(x, "TB")
        if x.shape[1] == 0:
            raise ValueError("x must have a batch of 1 or more, got 0")
        if lengths is not None:
            lengths = _lengths(lengths, *x.shape[:2])
        if mask_seed is not None:
            mask_seed = integer("mask_seed", mask_seed, 0, LARGEST_SEED)
        make: Any = self._on_device.forward if on_device else self._forward_on_host
        try:
            y, last, number = make(x, state, keep, lengths, mask_seed)
        except MemoryError as error:
            raise MemoryError(
                f"{error}; try a smaller batch or shorter sequences, or, where no backward "
                f"follows, keep=False"
            ) from None
        self._by_thread.forward = forward = _Forward(number)
        self._forwards[number] = forward
        return y, self._states.public(last)

    def _forward_on_host(
        self, x: Array, state: State, keep: bool, lengths: Array | None, mask_seed: int | None
    ) -> Any:
        first = self._kernel_state("state", state, x.shape[1])
        return self._core.forward_kept(x, first, keep, lengths, mask_seed)

    @overload
    def backward(
        self, dy: Array | None, dstate: State = None
    ) -> tuple[Array | None, State, dict[str, Array]]: ...
    @overload
    def backward(
        self, dy: Any, dstate: State = None
    ) -> tuple[DeviceArray | None, State, dict[str, DeviceArray]]: ...
    def backward(self, dy: Any, dstate: State = None) -> tuple[Any, State, dict[str, Any]]:
        """Backpropagation through time of the last ``forward(keep=True)``.

        dy [T, B, O]: gradient of a loss with respect to y (None: zero; padding is not read).
        dstate: gradient with respect to the last state, in the form of a state (None: zero).
        Returns new arrays: the gradients with respect to x ([T, B, I]; None for tokens), the
        initial state, and the parameters by name. Raises RuntimeError without such a forward, if a
        parameter has changed since, and if another thread has called `forward` since.
        """
        number, steps, batch = self._core.kept
        if not number:
            raise RuntimeError(
                "backward must follow the last forward(..., keep=True), and there is none, or "
                "training, evaluation, another forward or a change of the parameters has come "
                "after it"
            )
        mine: _Forward | None = getattr(self._by_thread, "forward", None)
        if mine is not None and mine.is_open and mine.number != number:
            raise RuntimeError(
                "backward must follow its own forward, and another thread has called a later "
                "one: let each thread have a network of its own, by copy.deepcopy"
            )
        shape = (steps, batch, self._outputs)
        h = dstate[0] if isinstance(dstate, (tuple, list)) and dstate else dstate
        if is_of_a_gpu(h if dy is None else dy):
            there = self._on_device
            given = None if dy is None else there.floats("dy", dy, shape, "of y, [T, B, O]")
            dlast = there.state("dstate", dstate, batch)
            found = there.backward(number, steps, batch, given, dlast)
            if (forward := self._forwards.get(number)) is not None:
                forward.is_open = False
            return found
        if dy is not None:
            dy = floats("dy", dy, self.dtype)
            if dy.shape != shape:
                raise ValueError(
                    f"dy must have the shape of y, [T, B, O] = {shape}, got {dy.shape}"
                )
        last = self._kernel_state("dstate", dstate, batch)
        try:
            dx, dstate_0, gradients = self._core.backward(dy, last, number)
        except MemoryError as error:
            raise MemoryError(f"{error}; try a smaller batch or shorter sequences") from None
        if (forward := self._forwards.get(number)) is not None:
            forward.is_open = False
        return dx, self._states.public(dstate_0), gradients

    def _bring_carried_home(self) -> None:
        if isinstance(self._carried, DeviceArray):
            self._carried = self._carried.numpy()


def _kind(cell: str, nonlinearity: str) -> registry.Cell:
    """The cell of RNN(cell=..., nonlinearity=...); ValueError if there is none."""
    if cell not in registry.CELL_NAMES:
        takes = ", ".join(map(repr, registry.CELL_NAMES))
        raise ValueError(f"{called('cell')} must be one of {takes}, got {cell!r}")
    if nonlinearity not in registry.NONLINEARITIES:
        takes = " or ".join(map(repr, registry.NONLINEARITIES))
        raise ValueError(f"nonlinearity must be {takes}, got {nonlinearity!r}")
    if nonlinearity not in registry.nonlinearities(cell):
        takes = " or ".join(map(repr, registry.nonlinearities(cell)))
        raise ValueError(
            f"nonlinearity must be {takes} with {called('cell')}={cell!r}, got {nonlinearity!r}"
        )
    return registry.CELLS[cell, nonlinearity]


def check_compute_dtype(compute_dtype: object, dtype: np.dtype[Any], on: _devices.Device) -> None:
    """ValueError unless networks of dtype on the device can compute so."""
    name = called("compute_dtype")
    if compute_dtype not in registry.COMPUTE_DTYPES:
        takes = ", ".join(map(repr, registry.COMPUTE_DTYPES))
        raise ValueError(f"{name} must be one of {takes}, got {compute_dtype!r}")
    if dtype != np.float32 and compute_dtype != "float32":
        raise ValueError(
            f"{name} must be 'float32', without rounding, with {called('dtype')}={dtype.name!r}, "
            f"got {compute_dtype!r}"
        )
    if compute_dtype == "float32":
        return
    known = _core.compute_dtypes_on(on.capsule)
    if compute_dtype not in known:
        takes = " or ".join(map(repr, known))
        raise ValueError(f"{name} must be {takes} on {on.name}, got {compute_dtype!r}")


def _rate(name: str, rate: float) -> float:
    return real(name, rate, least=0, below=1)


def zoneout_rates(
    zoneout: float | tuple[float, float], kind: registry.Cell, proj_size: int
) -> tuple[float, float]:
    """The rates of h and of c of RNN(zoneout=...); ValueError if the cell cannot have them."""
    if isinstance(zoneout, (tuple, list)):
        if len(zoneout) != 2:
            raise ValueError(
                f"{called('zoneout')} must be a rate or a pair (h, c), got {zoneout!r}"
            )
        h, c = (_rate(f"zoneout[{i}]", rate) for i, rate in enumerate(zoneout))
        if c and kind.num_states == 1:
            raise ValueError(
                f"the second rate of {called('zoneout')} must be 0 with "
                f"{called('cell')}={kind.name!r}, got {c}: it is for the c of LSTMs"
            )
    else:
        h = _rate("zoneout", zoneout)
        c = h if kind.num_states > 1 else 0.0
    if h and proj_size:
        raise ValueError(
            f"h cannot be zoned out behind a projection: the first rate of {called('zoneout')} "
            f"must be 0, got {zoneout!r}"
        )
    return h, c


def _lengths(lengths: Sequence[int] | Array, seq_len: int, batch: int) -> NDArray[np.int64]:
    given = np.array(array_like("lengths", lengths))  # a copy that no other thread changes
    if given.dtype.kind not in "iu":
        raise TypeError(f"lengths must be integers, got {given.dtype}")
    if given.shape != (batch,):
        raise ValueError(f"lengths must have shape [B] = ({batch},), got {given.shape}")
    if not np.can_cast(given.dtype, np.int64):
        in_range("lengths", given, 0, seq_len + 1)  # of int64 the kernels do
    return np.ascontiguousarray(given, np.int64)

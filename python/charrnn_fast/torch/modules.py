"""`RNN`, `LSTM` and `GRU` with torch.nn's arguments, parameters, initialization and results."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from .. import _devices, registry
from .._checks import LARGEST, instance, integer, real, warn
from ..rnn import check_compute_dtype, zoneout_rates
from . import operators

Tensor = torch.Tensor

_DTYPES = (torch.float32, torch.float64)
_LSTMS = tuple(name for name, _ in registry.CELLS if name.endswith("lstm"))
_SHAPE = frozenset(
    ("input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size", "cell",
     "nonlinearity", "layer_norm", "compute_dtype")
)  # fmt: skip
_RATES = (*registry.DROPOUT_RATES, "zoneout", "variational")


class _Layers(torch.nn.Module):  # type: ignore[misc]
    """What the three modules share. `mode` is torch.nn's name of the cell."""

    _network: str
    _rounded: str

    def __init__(
        self,
        mode: str,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: Any,
        dtype: Any,
        *,
        nonlinearity: str = "tanh",
        layer_norm: bool,
        zoneout: float | tuple[float, float],
        variational: bool,
        compute_dtype: str,
        **rates: float,
    ) -> None:
        super().__init__()
        flags = {
            "bias": bias,
            "batch_first": batch_first,
            "bidirectional": bidirectional,
            "layer_norm": layer_norm,
            "variational": variational,
        }
        for name, flag in flags.items():
            instance(name, flag, bool, "True or False")
        hidden_size = integer("hidden_size", hidden_size, 1)
        proj_size = integer("proj_size", proj_size, 0)
        if proj_size >= hidden_size:
            raise ValueError(
                f"proj_size must be less than hidden_size={hidden_size}, got {proj_size}"
            )
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in _DTYPES:
            raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        if device is not None and torch.device(device).type not in ("cpu", "cuda", "meta"):
            raise ValueError(f"device must be 'cpu', 'cuda' or 'meta', got {str(device)!r}")
        place = _devices.CPU
        if device is not None and torch.device(device).type == "cuda":
            # which says why there is none
            place = _devices.Device("cuda", operators.card_of(torch.device(device)).capsule)
        numbers = np.dtype("float32" if dtype is torch.float32 else "float64")
        check_compute_dtype(compute_dtype, numbers, place)
        self.mode = mode
        self.cell = cell
        self.input_size = integer("input_size", input_size, 1)
        self.hidden_size = hidden_size
        self.num_layers = integer("num_layers", num_layers, 1, LARGEST)
        self.bias = bias
        self.batch_first = batch_first
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.nonlinearity = nonlinearity
        self.layer_norm = layer_norm
        self.variational = variational
        self.zoneout = zoneout
        self.compute_dtype = compute_dtype
        for name, rate in {"dropout": dropout, **rates}.items():
            setattr(self, name, rate)
        self._packed: list[Any] = []
        self._set_networks()
        if self.dropout and num_layers == 1:
            warn(
                f"dropout={self.dropout:g} does nothing in a module of one layer: it is the rate "
                f"between layers"
            )
        self._names = tuple(operators.network(self._network).shapes)
        for name, shape in operators.network(self._network).shapes.items():
            empty = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, torch.nn.Parameter(empty))
        self.reset_parameters()

    def _set_networks(self) -> None:
        """The network of the present options, and the one that computes in bfloat16."""
        network, rounded = self._name(self.compute_dtype), self._name("bfloat16")
        self.__dict__.update(_network=network, _rounded=rounded)

    def _name(self, compute_dtype: str) -> str:
        """A network of the present options, as the operators take it; checks the rates."""
        kind = registry.CELLS[self.cell, self.nonlinearity]
        zoneout_h, zoneout_c = zoneout_rates(self.zoneout, kind, self.proj_size)
        rates = {
            name: real(name, getattr(self, name), least=0, below=1)
            for name in registry.DROPOUT_RATES
        }
        between = rates["dropout"] if self.num_layers > 1 else 0.0
        others = (rate for name, rate in rates.items() if name != "dropout")
        self._has_masks = any((between, *others, zoneout_h, zoneout_c))
        return operators.network_name(
            cell=self.cell,
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            bias="double" if self.bias else "none",
            bidirectional=self.bidirectional,
            proj_size=self.proj_size,
            layer_norm=self.layer_norm,
            regularization={
                **rates,
                "variational": self.variational,
                "zoneout_h": zoneout_h,
                "zoneout_c": zoneout_c,
            },
            nonlinearity=self.nonlinearity,
            # graphs that were exported before have none
            **({} if compute_dtype == "float32" else {"compute_dtype": compute_dtype}),
        )

    def __setattr__(self, name: str, value: Any) -> None:
        built = "_network" in self.__dict__
        if built and name in _SHAPE:
            raise AttributeError(
                f"{type(self).__name__}.{name} cannot be changed: build another module"
            )
        before = self.__dict__.get(name)
        super().__setattr__(name, value)
        if built and name in _RATES:
            try:
                self._set_networks()
            except (TypeError, ValueError):
                self.__dict__[name] = before
                raise

    def reset_parameters(self) -> None:
        """Draws weights and biases from U(-1/sqrt(H), 1/sqrt(H)); sets gains to 1."""
        bound = 1 / math.sqrt(self.hidden_size)
        self._packed = []
        for name, parameter in self.named_parameters():
            if name.startswith("gain_"):
                torch.nn.init.ones_(parameter)
            else:
                torch.nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        """The options that differ from their defaults."""
        shown = f"{self.input_size}, {self.hidden_size}"
        default: Any
        for name, default in (
            ("cell", self.mode.lower() if self.mode == "LSTM" else self.cell),
            ("nonlinearity", "tanh"),
            ("proj_size", 0),
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("bidirectional", False),
            ("layer_norm", False),
            *((name, 0) for name in registry.DROPOUT_RATES),
            ("zoneout", 0),
            ("variational", False),
            ("compute_dtype", "float32"),
        ):
            value = getattr(self, name)
            if value != default:
                shown += f", {name}={value!r}"
        return shown

    @property
    def all_weights(self) -> list[list[Any]]:
        """The parameters of each layer and direction, as torch.nn has them."""
        suffixes = [
            f"_l{layer}{direction}"
            for layer in range(self.num_layers)
            for direction in (("", "_reverse") if self.bidirectional else ("",))
        ]
        return [
            [getattr(self, name) for name in self._names if name.endswith(suffix)]
            for suffix in suffixes
        ]

    def flatten_parameters(self) -> None:
        """Does nothing: for programs that call it on torch.nn's modules."""

    # ---- packed weights -----------------------------------------------------------------------

    def freeze(self) -> _Layers:
        """Turns to inference (`eval()`) and keeps the weights as the kernels read them; -> self.

        Each call copies the weights into the kernels' layout; of short sequences that is much of
        the time. Calls without gradients then do without. Weights that are changed in place
        afterwards are not seen: call `freeze` again. `train`, `load_state_dict` and what converts
        the parameters (`to`, `double`) end it.
        """
        weights = self._weights()
        self._check_weights(weights[0])
        self.eval()
        self._packed = operators.pack(self._network, weights)
        return self

    def train(self, mode: bool = True) -> _Layers:
        """As of every module; training ends `freeze`."""
        if mode:
            self._packed = []
        super().train(mode)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._packed = []
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._packed = []
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # Another processor may have another layout.
        return {**self.__dict__, "_packed": bool(self._packed)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        frozen = state["_packed"]
        super().__setstate__({"compute_dtype": "float32", **state, "_packed": []})
        self._set_networks()  # a state of an older version has one
        if frozen:
            self.freeze()

    # ---- the call -----------------------------------------------------------------------------

    def _weights(self) -> list[Any]:
        own = self._parameters  # without those that are computed, as parametrizations do
        return [own[name] if name in own else getattr(self, name) for name in self._names]

    def _check_weights(self, weight: Any) -> None:
        if weight.dtype not in _DTYPES:
            raise TypeError(
                f"{type(self).__name__}'s parameters must be torch.float32 or torch.float64, got "
                f"{weight.dtype}: convert the module by float()"
            )
        if weight.dtype is not torch.float32 and self.compute_dtype != "float32":
            raise TypeError(
                f"{type(self).__name__}'s parameters must be torch.float32 with "
                f"compute_dtype={self.compute_dtype!r}, got {weight.dtype}: convert the module by "
                f"float()"
            )
        if not (weight.is_cpu or weight.is_cuda or weight.is_meta):
            raise ValueError(
                f"{type(self).__name__}'s parameters must be on the CPU or a GPU of CUDA, got "
                f"{weight.device}"
            )

    def _checked(self, name: str, tensor: Any, like: Any, shape: tuple[Any, ...]) -> Any:
        """A tensor of this shape (None: any size), of the dtype and on the device of `like`."""
        instance(name, tensor, Tensor, "a tensor")
        if tensor.dim() != len(shape) or any(
            size is not None and size != found
            for size, found in zip(shape, tensor.shape, strict=True)
        ):
            takes = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{name} must have shape [{takes}], got {list(tensor.shape)}")
        if tensor.device != like.device:
            raise ValueError(
                f"{name} must be on the module's device {like.device}, got {tensor.device}"
            )
        if tensor.dtype != like.dtype:
            if not (tensor.is_floating_point() and torch.is_autocast_enabled(tensor.device.type)):
                raise TypeError(
                    f"{name} must have the module's dtype {like.dtype}, got {tensor.dtype}: "
                    f"convert it by {name}.to({like.dtype}), or the module"
                )
            tensor = tensor.to(like.dtype)
        return tensor

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """y and the last state of a sequence.

        input: [T, B, I], with batch_first [B, T, I], unbatched [T, I], or a PackedSequence. hx: the
        initial state h_0 [L*D, B, R] (LSTM: the pair (h_0, c_0), c_0 [L*D, B, H]), unbatched
        without B; None: zeros. y: as the input, with D*R features. States as hx.

        All are of the module's dtype; under autocast the input is converted to it. Under autocast
        to bfloat16, the operands of matrix products are rounded as with compute_dtype="bfloat16".
        """
        weights, masked = self._weights(), self._has_masks and self.training
        network = self._network_now(weights[0])
        kept = self._packed if network == self._network else []
        if operators.is_plain() and type(input) is Tensor and input.dim() == 3:
            found = self._plain(network, input, hx, weights, kept, masked)
            if found is not None:
                return found
        weight = weights[0]
        self._check_weights(weight)
        is_packed = isinstance(input, PackedSequence)
        offsets = streams = None
        if is_packed:
            x, batch_sizes, order, inverse = input
            x = self._checked("input.data", x, weight, (None, self.input_size))
            batch = len(order) if order is not None else int(batch_sizes[0])
            offsets = torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0))
            streams, is_batched = order, True
        else:
            instance("input", input, Tensor, "a tensor or a PackedSequence")
            is_batched = input.dim() != 2
            shape = (None, None, self.input_size) if is_batched else (None, self.input_size)
            x = self._checked("input", input, weight, shape)
            if not is_batched:
                x = x.unsqueeze(1)
            elif self.batch_first:
                x = x.transpose(0, 1)
            batch = x.shape[1]
        states = self._first(hx, weight, batch if is_batched else None)
        if is_packed and streams is not None:
            states = [state.index_select(1, streams) for state in states]
        h_0, c_0 = (*states, None, None)[:2]
        keeps = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *states))
        y, h_n, c_n, _ = operators.sequence(
            x.contiguous(),
            h_0,
            c_0,
            weights,
            offsets,
            streams,
            operators.new_seed() if masked else None,
            [] if keeps else kept,
            batch,
            network,
            keeps,
        )
        last = [h_n, c_n] if self._has_c else [h_n]
        if is_packed:
            y = PackedSequence(y, batch_sizes, order, inverse)
            if inverse is not None:
                last = [state.index_select(1, inverse) for state in last]
        elif not is_batched:
            y, last = y.squeeze(1), [state.squeeze(1) for state in last]
        elif self.batch_first:
            y = y.transpose(0, 1)
        return y, tuple(last) if self._has_c else last[0]

    def _network_now(self, weight: Any) -> str:
        """The network that this call runs."""
        place = weight.device.type
        if (
            place in ("cpu", "cuda")
            and torch.is_autocast_enabled(place)
            and torch.get_autocast_dtype(place) is torch.bfloat16
            and weight.dtype is torch.float32
        ):
            return self._rounded
        return self._network

    def _plain(
        self,
        network: str,
        input: Any,
        hx: Any,
        weights: list[Any],
        packed: list[Any],
        masked: bool,
    ) -> tuple[Any, Any] | None:
        """`forward` by `operators.plain`; None where that leaves it to others, as all errors."""
        states = () if hx is None else hx if self._has_c else (hx,)
        if hx is not None and (type(states) is not tuple or len(states) != 1 + self._has_c):
            return None
        x = input.transpose(0, 1) if self.batch_first else input
        x = x if x.is_contiguous() else x.contiguous()
        found = operators.plain(network, x, states, weights, packed, masked)
        if found is None:
            return None
        y = found[0].transpose(0, 1) if self.batch_first else found[0]
        return y, found[1:] if self._has_c else found[1]

    @property
    def _has_c(self) -> bool:
        return self.mode == "LSTM"

    def _first(self, hx: Any, weight: Any, batch: Any) -> list[Any]:
        """The checked initial states [L*D, B, ...], none where there are none; batch None: []."""
        if hx is None:
            return []
        layers = self.num_layers * (2 if self.bidirectional else 1)
        middle = () if batch is None else (batch,)
        widths = [self.proj_size or self.hidden_size]
        given, names = [hx], ["hx"]
        if self._has_c:
            if not isinstance(hx, (tuple, list)) or len(hx) != 2:
                got = f"{len(hx)} of them" if isinstance(hx, (tuple, list)) else type(hx).__name__
                raise TypeError(f"hx must be a pair of tensors (h_0, c_0), got {got}")
            given, names = list(hx), ["hx[0]", "hx[1]"]
            widths.append(self.hidden_size)
        states = [
            self._checked(name, state, weight, (layers, *middle, width))
            for name, state, width in zip(names, given, widths, strict=True)
        ]
        return [state.unsqueeze(1) for state in states] if batch is None else states


class RNN(_Layers):
    """torch.nn.RNN on the kernels of this package.

    The arguments up to dtype are those of torch.nn.RNN, so are the parameters' names, shapes and
    initial values: a state_dict of one loads into the other. dtype: torch.float32 or torch.float64.
    device: "cpu", "cuda", or "meta". dropout: below 1.

    The others are those of `charrnn_fast.RNN`. Masks are drawn in training mode alone, from a seed
    that follows torch.manual_seed; rates may be changed afterwards, other options may not.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        layer_norm: bool = False,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_drop: float = 0.0,
        zoneout: float = 0.0,
        variational: bool = False,
        compute_dtype: str = "float32",
    ) -> None:
        if nonlinearity not in registry.nonlinearities("rnn"):
            takes = " or ".join(map(repr, registry.nonlinearities("rnn")))
            raise ValueError(f"nonlinearity must be {takes}, got {nonlinearity!r}")
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            "rnn",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
            nonlinearity=nonlinearity,
            layer_norm=layer_norm,
            input_dropout=input_dropout,
            output_dropout=output_dropout,
            recurrent_dropout=recurrent_dropout,
            weight_drop=weight_drop,
            zoneout=zoneout,
            variational=variational,
            compute_dtype=compute_dtype,
        )


class LSTM(_Layers):
    """torch.nn.LSTM on the kernels of this package; see `RNN`.

    cell: "lstm", "peephole_lstm" or "coupled_lstm". zoneout: one rate, or a pair for h and c.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        cell: str = "lstm",
        layer_norm: bool = False,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_drop: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        variational: bool = False,
        compute_dtype: str = "float32",
    ) -> None:
        if cell not in _LSTMS:
            raise ValueError(f"cell must be one of {', '.join(map(repr, _LSTMS))}, got {cell!r}")
        super().__init__(
            "LSTM",
            cell,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
            layer_norm=layer_norm,
            input_dropout=input_dropout,
            output_dropout=output_dropout,
            recurrent_dropout=recurrent_dropout,
            weight_drop=weight_drop,
            zoneout=zoneout,
            variational=variational,
            compute_dtype=compute_dtype,
        )


class GRU(_Layers):
    """torch.nn.GRU on the kernels of this package; see `RNN`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        layer_norm: bool = False,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_drop: float = 0.0,
        zoneout: float = 0.0,
        variational: bool = False,
        compute_dtype: str = "float32",
    ) -> None:
        super().__init__(
            "GRU",
            "gru",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
            layer_norm=layer_norm,
            input_dropout=input_dropout,
            output_dropout=output_dropout,
            recurrent_dropout=recurrent_dropout,
            weight_drop=weight_drop,
            zoneout=zoneout,
            variational=variational,
            compute_dtype=compute_dtype,
        )

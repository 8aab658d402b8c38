"""The operators of PyTorch that run the kernels: torch.ops.charrnn_fast.sequence and its backward.

A sequence is one operator, for eager code, torch.compile and torch.export alike. Letters in shapes:
T seq_len, B batch, I input_size, H hidden_size, L num_layers, D directions, R width of h, N rows:
T * B, or in a packed sequence the sum of all lengths.

A network is named by the string that `network_name` makes: operators take no objects, and a graph
that was exported says by it all that there is to know. Calls read the tensors where they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from .. import _core

Tensor = torch.Tensor
Tensors = Sequence[Any]

_library = torch.library.Library("charrnn_fast", "DEF")

# offsets [T + 1] and streams [B] of a packed sequence, else None. seed: of the masks; None: none.
# packed: what `pack` made for these parameters, or empty. tape: empty without `keep`.
_library.define(
    "sequence(Tensor x, Tensor? h_0, Tensor? c_0, Tensor[] parameters, Tensor? offsets, "
    "Tensor? streams, Tensor? seed, Tensor[] packed, SymInt batch, str network, bool keep) "
    "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor tape)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# dx is empty unless wanted.
_library.define(
    "sequence_backward(Tensor x, Tensor[] parameters, Tensor? offsets, Tensor? streams, "
    "Tensor? seed, Tensor tape, Tensor? dy, Tensor? dh_n, Tensor? dc_n, SymInt batch, "
    "str network, bool wants_dx) -> (Tensor dx, Tensor dh_0, Tensor dc_0, Tensor[] dparameters)",
    tags=(torch.Tag.pt2_compliant_tag,),
)

sequence: Any = torch.ops.charrnn_fast.sequence.default
sequence_backward: Any = torch.ops.charrnn_fast.sequence_backward.default


def network_name(**options: Any) -> str:
    """The name of a network: the arguments of `_core.NetworkFloat32`, as JSON."""
    return json.dumps(options, separators=(",", ":"))


class _Network:
    """The compiled networks of one name, and what calls ask of them most."""

    def __init__(self, name: str) -> None:
        options = json.loads(name)
        self.cores: dict[Any, Any] = {
            torch.float32: _core.NetworkFloat32(**options, output_size=0),
            torch.float64: _core.NetworkFloat64(**options, output_size=0),
        }
        core = self.cores[torch.float32]
        self.input_size: int = options["input_size"]
        self.hidden_width: int = core.hidden_width
        self.has_c = core.num_states == 2
        self.shapes = core.parameter_shapes()
        self.state_shapes = core.state_shapes(1)
        # by ragged and masked
        self.tape_sizes = {
            (ragged, masked): core.tape_size(ragged=ragged, masked=masked)
            for ragged in (False, True)
            for masked in (False, True)
        }

    def tape_elements(self, rows: Any, batch: Any, ragged: bool, masked: bool) -> Any:
        per_row, per_stream, constant = self.tape_sizes[ragged, masked]
        return per_row * rows + per_stream * batch + constant


@lru_cache(maxsize=1024)
def network(name: str) -> _Network:
    """The network of a name."""
    return _Network(name)


def _contiguous(name: str, tensor: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    """A tensor as the kernels read it; TypeError or ValueError if it cannot be."""
    if tensor.dtype is not dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, got a tensor on {tensor.device}")
    return tensor.contiguous()


class _Call:
    """The checked arguments that forward and backward of a sequence share.

    It holds the tensors whose addresses it gives.
    """

    def __init__(
        self,
        x: Any,
        batch: int,
        parameters: Tensors,
        offsets: Any,
        streams: Any,
        seed: Any,
        name: str,
    ) -> None:
        self.network = of = network(name)
        self.dtype = dtype = x.dtype
        if dtype not in of.cores:
            raise TypeError(f"x must have dtype torch.float32 or torch.float64, got {dtype}")
        self.core = of.cores[dtype]
        self.batch = batch
        shape: tuple[int, ...]
        if offsets is None:
            if x.dim() != 3:
                raise ValueError(f"x must have shape [T, B, I], got {list(x.shape)}")
            self.seq_len = x.shape[0]
            self.rows, shape = self.seq_len * batch, (self.seq_len, batch, of.input_size)
        else:
            if offsets.dim() != 1 or not len(offsets):
                raise ValueError(f"offsets must have shape [T + 1], got {list(offsets.shape)}")
            self.seq_len, self.rows = len(offsets) - 1, x.shape[0]
            shape = (self.rows, of.input_size)
            offsets = _contiguous("offsets", offsets, torch.int64, offsets.shape)
            if int(offsets[-1]) != self.rows:
                raise ValueError(
                    f"x must have offsets[T] = {int(offsets[-1])} rows, got {x.shape[0]}"
                )
        if streams is not None:
            streams = _contiguous("streams", streams, torch.int64, (batch,))
        if len(parameters) != len(of.shapes):
            raise ValueError(f"parameters must be {list(of.shapes)}, got {len(parameters)} tensors")
        self.kept = kept = [_contiguous("x", x, dtype, shape)]
        self.x: int = kept[0].data_ptr()
        self.parameters: list[int] = []
        for (parameter, wanted), given in zip(of.shapes.items(), parameters, strict=True):
            kept.append(_contiguous(parameter, given, dtype, wanted))
            self.parameters.append(kept[-1].data_ptr())
        self.options: dict[str, Any] = {}
        if offsets is not None:
            kept.append(offsets)
            self.options["offsets"] = offsets.data_ptr()
        if seed is not None:
            self.options["mask_seed"] = int(seed)
            if streams is not None:
                kept.append(streams)
                self.options["streams"] = streams.data_ptr()
        self.tape_elements: int = of.tape_elements(
            self.rows, batch, offsets is not None, seed is not None
        )

    def address(self, name: str, tensor: Any, shape: tuple[int, ...]) -> int:
        """Of a checked tensor, or 0 for None."""
        if tensor is None:
            return 0
        self.kept.append(_contiguous(name, tensor, self.dtype, shape))
        return int(self.kept[-1].data_ptr())

    def state_shapes(self) -> list[tuple[int, ...]]:
        return [(layers, self.batch, width) for layers, _, width in self.network.state_shapes]

    def states(self, name: str, h: Any, c: Any) -> list[int]:
        """The addresses of h and, where the cell has it, c."""
        pairs = zip(("h", "c"), (h, c), self.state_shapes(), strict=False)
        return [self.address(name.format(s), tensor, shape) for s, tensor, shape in pairs]

    def new_states(self) -> tuple[Any, Any, list[int]]:
        """h, c and their addresses; c is empty where the cell has none."""
        h, *rest = [torch.empty(shape, dtype=self.dtype) for shape in self.state_shapes()]
        if rest:
            return h, rest[0], [h.data_ptr(), rest[0].data_ptr()]
        return h, torch.empty(0, dtype=self.dtype), [h.data_ptr()]


def _sequence(
    x: Any,
    h_0: Any,
    c_0: Any,
    parameters: Tensors,
    offsets: Any,
    streams: Any,
    seed: Any,
    packed: Tensors,
    batch: int,
    name: str,
    keep: bool,
) -> tuple[Any, ...]:
    call = _Call(x, batch, parameters, offsets, streams, seed, name)
    state_0 = call.states("{}_0", h_0, c_0)
    y = torch.empty((*x.shape[:-1], call.network.hidden_width), dtype=x.dtype)
    h_n, c_n, state_n = call.new_states()
    if keep:
        tape = torch.from_numpy(call.core.new_tape(call.tape_elements))
        call.options["tape"] = tape.data_ptr()
    else:
        tape = torch.empty(0, dtype=x.dtype)
    if packed:
        call.options["packed"] = _packed(call.core, x.dtype, packed)
    if not batch:  # the kernels take at least one row
        return y, h_n, c_n, tape.zero_()
    call.core.forward(
        call.parameters,
        call.x,
        call.seq_len,
        call.batch,
        state_0,
        y.data_ptr(),
        state_n,
        **call.options,
    )
    return y, h_n, c_n, tape


_PACKINGS = ("forward", "forward_dense")


def _packed(core: Any, dtype: Any, packed: Tensors) -> tuple[int, ...]:
    if len(packed) != len(_PACKINGS):
        raise ValueError(f"packed must be {len(_PACKINGS)} tensors, got {len(packed)}")
    for name, given in zip(_PACKINGS, packed, strict=True):
        if not given.is_contiguous():
            raise ValueError(f"packed ({name}) must be contiguous")
        _contiguous(f"packed ({name})", given, dtype, (core.packed_elements(name),))
    return tuple(given.data_ptr() for given in packed)


def pack(name: str, parameters: Tensors) -> list[Any]:
    """Copies of the parameters in the kernels' layout, for many forwards with the same ones.

    The layout is that of this processor's instruction set.
    """
    core = network(name).cores[parameters[0].dtype]
    kept = [p.detach().contiguous() for p in parameters]
    packings = []
    for packing in _PACKINGS:
        given = torch.empty(core.packed_elements(packing), dtype=parameters[0].dtype)
        core.pack(packing, [p.data_ptr() for p in kept], given.data_ptr())
        packings.append(given)
    return packings


def _sequence_backward(
    x: Any,
    parameters: Tensors,
    offsets: Any,
    streams: Any,
    seed: Any,
    tape: Any,
    dy: Any,
    dh_n: Any,
    dc_n: Any,
    batch: int,
    name: str,
    wants_dx: bool,
) -> tuple[Any, ...]:
    call = _Call(x, batch, parameters, offsets, streams, seed, name)
    if tape.shape != (call.tape_elements,):
        raise ValueError(
            f"tape must be that of a forward with keep=True, {call.tape_elements} elements, got "
            f"{tape.numel()}"
        )
    tape_at = call.address("tape", tape, tape.shape)
    dy_at = call.address("dy", dy, (*x.shape[:-1], call.network.hidden_width))
    dstate_n = call.states("d{}_n", dh_n, dc_n)
    dx = torch.empty(x.shape if wants_dx else (0,), dtype=x.dtype)
    dh_0, dc_0, dstate_0 = call.new_states()
    gradients = [torch.empty(shape, dtype=x.dtype) for shape in call.network.shapes.values()]
    if not batch:
        return dx, dh_0, dc_0, [g.zero_() for g in gradients]
    call.core.backward(
        call.parameters,
        call.x,
        call.seq_len,
        call.batch,
        tape_at,
        dy_at,
        dstate_n,
        dx.data_ptr() if wants_dx else 0,
        dstate_0,
        [g.data_ptr() for g in gradients],
        **call.options,
    )
    return dx, dh_0, dc_0, gradients


# ---- shapes, for compilers and exporters --------------------------------------------------------


def _empty_states(x: Any, batch: Any, of: _Network) -> tuple[Any, Any]:
    h, *rest = [x.new_empty((layers, batch, width)) for layers, _, width in of.state_shapes]
    return h, rest[0] if rest else x.new_empty(0)


def _fake_sequence(
    x: Any,
    h_0: Any,
    c_0: Any,
    parameters: Tensors,
    offsets: Any,
    streams: Any,
    seed: Any,
    packed: Tensors,
    batch: Any,
    name: str,
    keep: bool,
) -> tuple[Any, ...]:
    of = network(name)
    rows = x.shape[0] if offsets is not None else x.shape[0] * batch
    elements = of.tape_elements(rows, batch, offsets is not None, seed is not None)
    y = x.new_empty((*x.shape[:-1], of.hidden_width))
    return (y, *_empty_states(x, batch, of), x.new_empty(elements if keep else 0))


def _fake_sequence_backward(
    x: Any,
    parameters: Tensors,
    offsets: Any,
    streams: Any,
    seed: Any,
    tape: Any,
    dy: Any,
    dh_n: Any,
    dc_n: Any,
    batch: Any,
    name: str,
    wants_dx: bool,
) -> tuple[Any, ...]:
    of = network(name)
    dx = x.new_empty(x.shape if wants_dx else (0,))
    gradients = [x.new_empty(shape) for shape in of.shapes.values()]
    return (dx, *_empty_states(x, batch, of), gradients)


# ---- gradients ----------------------------------------------------------------------------------


# What register_autograd itself calls; there is no public way to the kernels below the gradients.
_BelowAutograd: Any = torch._C._AutoDispatchBelowAutograd  # noqa: SLF001
_below_autograd: Any = torch._C._after_autograd_keyset  # noqa: SLF001
_any_requires_grad: Any = torch._C._any_requires_grad  # noqa: SLF001
_redispatch: Any = sequence.redispatch


class _Differentiable(torch.autograd.Function):  # type: ignore[misc]
    """A sequence whose gradients are wanted.

    `torch.library.register_autograd` makes the same of an operator, but takes several times as long
    as a short sequence to bring lists of tensors into the form of its arguments.
    """

    @staticmethod
    def forward(
        ctx: Any,
        keyset: Any,
        offsets: Any,
        streams: Any,
        seed: Any,
        packed: Tensors,
        batch: int,
        name: str,
        keep: bool,
        x: Any,
        h_0: Any,
        c_0: Any,
        *parameters: Any,
    ) -> Any:
        with _BelowAutograd():
            result = _redispatch(
                keyset & _below_autograd,
                x, h_0, c_0, parameters, offsets, streams, seed, packed, batch, name, keep,
            )  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, result[3], offsets, streams, seed, *parameters)
        ctx.batch, ctx.name, ctx.keep, ctx.has_c = batch, name, keep, network(name).has_c
        return result

    @staticmethod
    def backward(ctx: Any, *incoming: Any) -> Any:
        return _differentiate(ctx, *incoming)


def _autograd_sequence(
    keyset: Any,
    x: Any,
    h_0: Any,
    c_0: Any,
    parameters: Tensors,
    offsets: Any,
    streams: Any,
    seed: Any,
    packed: Tensors,
    *rest: Any,
) -> Any:
    if torch.is_grad_enabled() and _any_requires_grad(x, h_0, c_0, parameters):
        return _Differentiable.apply(
            keyset, offsets, streams, seed, packed, *rest, x, h_0, c_0, *parameters
        )
    with _BelowAutograd():
        return _redispatch(
            keyset & _below_autograd,
            x, h_0, c_0, parameters, offsets, streams, seed, packed, *rest,
        )  # fmt: skip


def _differentiate(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, _: Any) -> tuple[Any, ...]:
    x, tape, offsets, streams, seed, *parameters = ctx.saved_tensors
    if not ctx.keep:
        raise RuntimeError(
            "charrnn_fast.sequence must be called with keep=True to be differentiated"
        )
    wants_dx, *wants_states = ctx.needs_input_grad[8:11]
    dx, dh_0, dc_0, gradients = sequence_backward(
        x,
        parameters,
        offsets,
        streams,
        seed,
        tape,
        dy,
        dh_n,
        dc_n if ctx.has_c else None,
        ctx.batch,
        ctx.name,
        wants_dx,
    )
    return (
        *(None,) * 8,
        dx if wants_dx else None,
        dh_0 if wants_states[0] else None,
        dc_0 if wants_states[1] else None,
        *gradients,
    )


def _refuse_double_backward(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "charrnn_fast has no double backward: the gradients of RNN, LSTM and GRU cannot be "
        "differentiated again; torch.nn's can, with the same state_dict"
    )


_library.impl("sequence", _sequence, "CPU")
_library.impl("sequence_backward", _sequence_backward, "CPU")
torch.library.register_fake("charrnn_fast::sequence", _fake_sequence, lib=_library)
torch.library.register_fake(
    "charrnn_fast::sequence_backward", _fake_sequence_backward, lib=_library
)
_library.impl("sequence", _autograd_sequence, "Autograd", with_keyset=True)
torch.library.register_autograd(
    "charrnn_fast::sequence_backward", _refuse_double_backward, lib=_library
)


def _refuse_vmap(*_: Any, **__: Any) -> None:
    raise RuntimeError(
        "charrnn_fast has no vmap: give RNN, LSTM and GRU all sequences as one batch [T, B, I]"
    )


for _name in ("sequence", "sequence_backward"):
    torch.library.register_vmap(f"charrnn_fast::{_name}", _refuse_vmap, lib=_library)

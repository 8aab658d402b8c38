"""The operators of PyTorch that run the kernels: torch.ops.charrnn_fast.sequence and its backward.

A sequence is one operator, for eager code, torch.compile and torch.export alike. Letters in shapes:
T seq_len, B batch, I input_size, H hidden_size, L num_layers, D directions, R width of h, N rows:
T * B, or in a packed sequence the sum of all lengths.

A network is named by the string that `network_name` makes: operators take no objects, and a graph
that was exported says by it all that there is to know. Calls read the tensors where they are.

On a GPU a call queues its work to PyTorch's current stream and computes in memory of PyTorch's
allocator, so that neither the host nor another stream waits (`Card`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch.autograd import forward_ad

from .. import _core, _devices

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


_PACKINGS = ("forward", "forward_dense")


def network_name(**options: Any) -> str:
    """The name of a network: the arguments of `_core.NetworkFloat32`, as JSON."""
    return json.dumps(options, separators=(",", ":"))


class Card:
    """The GPU that a call runs on, or a device of the tests in its place."""

    def __init__(self, capsule: Any, module: Any, device: Any) -> None:
        """module: charrnn_fast._cuda, or another one that has its functions."""
        self.capsule, self._module, self._device = capsule, module, device

    def stream(self) -> int:
        """PyTorch's current stream."""
        return int(torch.cuda.current_stream(self._device).cuda_stream)

    def empty(self, elements: int, dtype: Any) -> Any:
        """Memory of PyTorch's allocator, which knows by the stream when it may serve again."""
        return torch.empty(elements, dtype=dtype, device=self._device)

    def run(self, call: Any, dtype: Any) -> None:
        """call(workspace) on PyTorch's stream, in memory of its allocator."""
        with self.on_its_stream():
            elements = call(None)
            workspace = self.empty(max(1, elements), dtype)
            call((workspace.data_ptr(), elements))

    @contextmanager
    def on_its_stream(self) -> Iterator[None]:
        """Calls of this thread queue to PyTorch's current stream."""
        before = self._module.set_stream(self.stream())
        try:
            yield
        finally:
            self._module.set_stream(before)


@lru_cache(maxsize=16)
def card_of(device: Any) -> Card:
    """The GPU of a torch.device; RuntimeError with the reason if it cannot be used."""
    found = _devices.find(f"cuda:{device.index or 0}")
    from .. import _cuda  # find has said whether there is one

    return Card(found.capsule, _cuda, device)


def card_for(tensor: Any) -> Card | None:
    """The GPU that a tensor is on; None: the CPU."""
    return None if tensor.is_cpu else card_of(tensor.device)


class _Network:
    """The compiled networks of one name, and what calls ask of them most."""

    def __init__(self, name: str) -> None:
        self._options = options = json.loads(name)
        self._on_cards: dict[Any, Any] = {}
        self.cores: dict[Any, Any] = {
            torch.float32: _core.NetworkFloat32(**options, output_size=0),
        }
        if "compute_dtype" not in options:
            self.cores[torch.float64] = _core.NetworkFloat64(**options, output_size=0)
        core = self.cores[torch.float32]
        self.input_size: int = options["input_size"]
        self.hidden_width: int = core.hidden_width
        self.has_c = core.num_states == 2
        self.shapes: dict[str, tuple[int, ...]] = core.parameter_shapes()
        self.parameter_shapes: Sequence[Any] = tuple(self.shapes.values())
        self.state_shapes = core.state_shapes(1)
        # by ragged and masked
        self.tape_sizes = {
            (ragged, masked): core.tape_size(ragged=ragged, masked=masked)
            for ragged in (False, True)
            for masked in (False, True)
        }

    def on(self, card: Card, dtype: Any) -> Any:
        """The compiled network of a dtype on a GPU."""
        key = card, dtype
        if key not in self._on_cards:
            make = _core.NetworkFloat32 if dtype is torch.float32 else _core.NetworkFloat64
            self._on_cards[key] = make(**self._options, output_size=0, device=card.capsule)
        return self._on_cards[key]

    def tape_elements(self, rows: Any, batch: Any, ragged: bool, masked: bool) -> Any:
        per_row, per_stream, constant = self.tape_sizes[ragged, masked]
        return per_row * rows + per_stream * batch + constant


@lru_cache(maxsize=1024)
def network(name: str) -> _Network:
    """The network of a name."""
    return _Network(name)


def new_seed() -> Any:
    """A seed of masks, by torch.manual_seed."""
    return torch.randint(2**63 - 1, (), dtype=torch.int64)


def _contiguous(
    name: str, tensor: Any, dtype: Any, shape: tuple[int, ...], device: Any = None
) -> Any:
    """A tensor as the kernels read it; TypeError or ValueError if it cannot be. None: the CPU's."""
    if tensor.dtype is not dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.device != device if device else not tensor.is_cpu:
        on = device or "the CPU"
        raise ValueError(f"{name} must be on {on}, got a tensor on {tensor.device}")
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _empty(shape: tuple[int, ...], like: Any) -> Any:
    """A contiguous tensor; `like` is contiguous too. Of its shape is the fastest."""
    return torch.empty_like(like) if like.shape == shape else like.new_empty(shape)


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
            raise TypeError(f"x must have dtype {' or '.join(map(str, of.cores))}, got {dtype}")
        self.card = card_for(x)
        self.device = None if self.card is None else x.device
        self.core = of.cores[dtype] if self.card is None else of.on(self.card, dtype)
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
            offsets = _contiguous("offsets", offsets.cpu(), torch.int64, offsets.shape)
            if int(offsets[-1]) != self.rows:
                raise ValueError(
                    f"x must have offsets[T] = {int(offsets[-1])} rows, got {x.shape[0]}"
                )
        if streams is not None:
            streams = _contiguous("streams", streams.cpu(), torch.int64, (batch,))
        if len(parameters) != len(of.shapes):
            raise ValueError(f"parameters must be {list(of.shapes)}, got {len(parameters)} tensors")
        self.x = _contiguous("x", x, dtype, shape, self.device)
        self.parameters = [
            _contiguous(parameter, given, dtype, wanted, self.device)
            for (parameter, wanted), given in zip(of.shapes.items(), parameters, strict=True)
        ]
        self.kept: list[Any] = []
        self.options: dict[str, Any] = {}
        if offsets is not None:
            self.kept.append(offsets)
            self.options["offsets"] = offsets.data_ptr()
        if seed is not None:
            self.options["mask_seed"] = int(seed)
            if streams is not None:
                self.kept.append(streams)
                self.options["streams"] = streams.data_ptr()

    def tape_elements(self) -> int:
        options = self.options
        return int(
            self.network.tape_elements(
                self.rows, self.batch, "offsets" in options, "mask_seed" in options
            )
        )

    def address(self, name: str, tensor: Any, shape: tuple[int, ...]) -> int:
        """Of a checked tensor, or 0 for None."""
        if tensor is None:
            return 0
        tensor = _contiguous(name, tensor, self.dtype, shape, self.device)
        self.kept.append(tensor)
        return int(tensor.data_ptr())

    def new_tape(self) -> Any:
        elements = self.tape_elements()
        if self.card is not None:
            return self.card.empty(elements, self.dtype)
        return torch.from_numpy(self.core.new_tape(elements))

    def run(self, function: Any, *arguments: Any) -> None:
        """function: the core's forward or backward."""
        if self.card is None:
            function(*arguments, **self.options)
            return
        self.card.run(
            lambda workspace: function(*arguments, **self.options, workspace=workspace), self.dtype
        )

    def states(self, name: str, h: Any, c: Any) -> list[int] | None:
        """The addresses of h and, where the cell has it, c; None where both are None."""
        if h is None and c is None:
            return None
        pairs = zip(("h", "c"), (h, c), self.network.state_shapes, strict=False)
        return [
            self.address(name.format(s), tensor, (layers, self.batch, width))
            for s, tensor, (layers, _, width) in pairs
        ]

    def new_states(self, like: Any) -> list[Any]:
        """h and, where the cell has it, c."""
        states = []
        for layers, _, width in self.network.state_shapes:
            like = _empty((layers, self.batch, width), like)
            states.append(like)
        return states


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
    x = call.x
    state_0 = call.states("{}_0", h_0, c_0)
    y = _empty((*x.shape[:-1], call.network.hidden_width), x)
    state_n = call.new_states(y)
    tape = x.new_empty(0)
    if keep:
        tape = call.new_tape()
        call.options["tape"] = tape.data_ptr()
    if packed:
        call.options["packed"] = _packed(call.core, call.dtype, packed, call.device)
    if batch:
        call.run(
            call.core.forward,
            [p.data_ptr() for p in call.parameters],
            x.data_ptr(),
            call.seq_len,
            batch,
            state_0,
            y.data_ptr(),
            [state.data_ptr() for state in state_n],
        )
    else:  # the kernels take at least one row
        tape.zero_()
    h_n, c_n = (*state_n, x.new_empty(0))[:2]
    return y, h_n, c_n, tape


def _packed(core: Any, dtype: Any, packed: Tensors, device: Any) -> tuple[int, ...]:
    if len(packed) != len(_PACKINGS):
        raise ValueError(f"packed must be {len(_PACKINGS)} tensors, got {len(packed)}")
    for name, given in zip(_PACKINGS, packed, strict=True):
        if not given.is_contiguous():
            raise ValueError(f"packed ({name}) must be contiguous")
        _contiguous(f"packed ({name})", given, dtype, (core.packed_elements(name),), device)
    return tuple(given.data_ptr() for given in packed)


def pack(name: str, parameters: Tensors) -> list[Any]:
    """Copies of the parameters in the kernels' layout, for many forwards with the same ones.

    The layout is that of this processor's instruction set.
    """
    of, dtype, device = network(name), parameters[0].dtype, parameters[0].device
    card = card_for(parameters[0])
    core = of.cores[dtype] if card is None else of.on(card, dtype)
    kept = [p.detach().contiguous() for p in parameters]
    packings = []
    for packing in _PACKINGS:
        elements = core.packed_elements(packing)
        given = torch.empty(elements, dtype=dtype, device=device)
        with nullcontext() if card is None else card.on_its_stream():
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
    elements = call.tape_elements()
    if tape.shape != (elements,):
        raise ValueError(
            f"tape must be that of a forward with keep=True, {elements} elements, got "
            f"{tape.numel()}"
        )
    tape_at = call.address("tape", tape, tape.shape)
    dy_at = call.address("dy", dy, (*x.shape[:-1], call.network.hidden_width))
    dstate_n = call.states("d{}_n", dh_n, dc_n)
    x = call.x
    dx = _empty(x.shape if wants_dx else (0,), x)
    dstate_0 = call.new_states(x)
    dh_0, dc_0 = (*dstate_0, x.new_empty(0))[:2]
    gradients = [torch.empty_like(p) for p in call.parameters]
    if not batch:
        return dx, dh_0, dc_0, [g.zero_() for g in gradients]
    call.run(
        call.core.backward,
        [p.data_ptr() for p in call.parameters],
        x.data_ptr(),
        call.seq_len,
        batch,
        tape_at,
        dy_at,
        dstate_n,
        dx.data_ptr() if wants_dx else 0,
        [state.data_ptr() for state in dstate_0],
        [g.data_ptr() for g in gradients],
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
    _refuse_tangents(x, h_0, c_0, *parameters)
    if torch.is_grad_enabled() and _any_requires_grad(x, h_0, c_0, parameters):
        if _transforms is not None and _transforms():
            raise RuntimeError(
                "charrnn_fast has no torch.func.grad, vjp or jacrev: call backward() or "
                "torch.autograd.grad"
            )
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


def _refuse_tangents(*tensors: Any) -> None:
    if forward_ad._current_level < 0:  # noqa: SLF001
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(
                "charrnn_fast has no forward-mode gradients (jvp): call backward() or "
                "torch.autograd.grad, or use torch.nn's modules, with the same state_dict"
            )


def _refuse_double_backward(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "charrnn_fast has no double backward: the gradients of RNN, LSTM and GRU cannot be "
        "differentiated again; torch.nn's can, with the same state_dict"
    )


for _key in ("CPU", "CUDA"):
    _library.impl("sequence", _sequence, _key)
    _library.impl("sequence_backward", _sequence_backward, _key)
torch.library.register_fake("charrnn_fast::sequence", _fake_sequence, lib=_library)
torch.library.register_fake(
    "charrnn_fast::sequence_backward", _fake_sequence_backward, lib=_library
)
_library.impl("sequence", _autograd_sequence, "Autograd", with_keyset=True)
torch.library.register_autograd(
    "charrnn_fast::sequence_backward", _refuse_double_backward, lib=_library
)


# ---- plain calls --------------------------------------------------------------------------------


# Who else may see or change a call than eager code. There is no public way to ask for these; where
# one is missing (another version of PyTorch), every call is an operator's.
_QUESTIONS = (
    "_are_functorch_transforms_active",
    "_len_torch_dispatch_stack",
    "_is_torch_function_mode_enabled",
    "_get_tracing_state",
    "_dispatch_tls_is_dispatch_key_excluded",
)
_questions: list[Any] = [getattr(torch._C, name, None) for name in _QUESTIONS]  # noqa: SLF001
_can_ask = all(_questions)
_transforms, _modes, _function_modes, _tracing, _is_excluded = _questions
_AUTOGRAD: Any = torch._C.DispatchKey.AutogradCPU  # noqa: SLF001
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def is_plain() -> bool:
    """Whether calls are eager code that nothing compiles, transforms, traces or records."""
    return not (
        torch.compiler.is_compiling()
        or not _can_ask
        or _transforms()
        or _modes()
        or _function_modes()
        or _tracing() is not None
        or torch.autograd._profiler_enabled()  # noqa: SLF001
        or forward_ad._current_level >= 0  # noqa: SLF001
    )


def _addresses(dtype: Any, tensors: Tensors, shapes: Sequence[Any]) -> list[int] | None:
    """Of tensors that the kernels can read as they are; None if one of them is not so."""
    found = []
    for tensor, shape in zip(tensors, shapes, strict=True):
        if (
            type(tensor) not in _PLAIN_TYPES
            or tensor.dtype is not dtype
            or tensor.shape != shape
            or not tensor.is_cpu
            or not tensor.is_contiguous()
            or tensor.is_neg()
        ):
            return None
        found.append(tensor.data_ptr())
    return found


def plain(
    name: str, x: Any, states: Tensors, parameters: Tensors, packed: Tensors, masked: bool
) -> tuple[Any, ...] | None:
    """y and the last states of x [T, B, I], without PyTorch's dispatcher.

    The dispatcher takes longer than a short sequence. Only where `is_plain`. states: none, or one
    for each that the cell has. None if anything is not as the kernels read it: then `sequence` is
    to be called.
    """
    of, dtype = network(name), x.dtype
    seq_len, batch, _ = x.shape
    x_at = _addresses(dtype, (x,), ((seq_len, batch, of.input_size),))
    if x_at is None or not batch or dtype not in of.cores:
        return None
    parameters_at = _addresses(dtype, parameters, of.parameter_shapes)
    if parameters_at is None:
        return None
    first_at = None
    if states:
        shapes = [(layers, batch, width) for layers, _, width in of.state_shapes]
        first_at = _addresses(dtype, states, shapes)
        if first_at is None:
            return None
    keep = torch.is_grad_enabled() and _any_requires_grad(x, states, parameters)
    if keep and _is_excluded(_AUTOGRAD):
        return None
    options: dict[str, Any] = {}
    seed = None
    if masked:
        seed = new_seed()
        options["mask_seed"] = int(seed)
    call = (of, of.cores[dtype], parameters_at, x_at[0], seq_len, batch, first_at, options)
    if keep:
        result: tuple[Any, ...] = _apply(call, name, seed, x, *states, *parameters)
        return result
    if packed and packed[0].dtype is dtype:
        options["packed"] = tuple([p.data_ptr() for p in packed])
    return _run(call, x, 0)


def _run(call: Any, x: Any, tape_at: int) -> tuple[Any, ...]:
    """y and the last states."""
    of, core, parameters_at, x_at, seq_len, batch, first_at, options = call
    last = y = _empty((seq_len, batch, of.hidden_width), x)
    results, last_at = [y], []
    for layers, _, width in of.state_shapes:
        last = _empty((layers, batch, width), last)
        results.append(last)
        last_at.append(last.data_ptr())
    core.forward(
        parameters_at, x_at, seq_len, batch, first_at, y.data_ptr(), last_at, tape=tape_at,
        **options,
    )  # fmt: skip
    return tuple(results)


class _Plain(torch.autograd.Function):  # type: ignore[misc]
    """A plain call whose gradients are wanted."""

    @staticmethod
    def forward(ctx: Any, call: Any, name: str, seed: Any, x: Any, *rest: Any) -> Any:
        of, core, _, _, seq_len, batch, _, _ = call
        elements = of.tape_elements(seq_len * batch, batch, False, seed is not None)
        tape = torch.from_numpy(core.new_tape(elements))
        results = _run(call, x, tape.data_ptr())
        parameters = rest[-len(of.shapes) :]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, tape, seed, *parameters)
        ctx.name = name
        return results

    @staticmethod
    def backward(ctx: Any, dy: Any, *dlast: Any) -> Any:
        x, tape, seed, *parameters = ctx.saved_tensors
        wants_dx, *wants_first = ctx.needs_input_grad[3 : -len(parameters)]
        found = None
        # With create_graph the operator is called, which refuses to be differentiated.
        if not torch.is_grad_enabled() and is_plain():
            found = _plain_backward(
                ctx.name, x, parameters, seed, tape, (dy, *dlast), wants_dx, any(wants_first)
            )
        if found is None:
            dh_n, dc_n = (*dlast, None)[:2]
            dx, *dfirst, gradients = sequence_backward(
                x, parameters, None, None, seed, tape, dy, dh_n, dc_n, x.shape[1], ctx.name,
                wants_dx,
            )  # fmt: skip
            found = dx if wants_dx else None, dfirst, gradients
        dx, dfirst, gradients = found
        wanted = [d if wants else None for d, wants in zip(dfirst, wants_first, strict=False)]
        wanted += [None] * (len(wants_first) - len(wanted))
        return (None, None, None, dx, *wanted, *gradients)


# Function.apply without its care for transforms of functions, which no plain call is part of.
_apply: Any = super(torch.autograd.Function, _Plain).apply


def _plain_backward(
    name: str,
    x: Any,
    parameters: Tensors,
    seed: Any,
    tape: Any,
    incoming: Tensors,
    wants_dx: bool,
    wants_dfirst: bool,
) -> tuple[Any, list[Any], list[Any]] | None:
    """The gradients of x, of the initial states (where wanted) and of the parameters.

    None as for `plain`: then `sequence_backward` is to be called.
    """
    of, dtype = network(name), x.dtype
    core = of.cores[dtype]
    seq_len, batch, _ = x.shape
    states = [(layers, batch, width) for layers, _, width in of.state_shapes]
    elements = of.tape_elements(seq_len * batch, batch, False, seed is not None)
    kept_at = _addresses(dtype, (x, tape), (x.shape, (elements,)))
    parameters_at = _addresses(dtype, parameters, of.parameter_shapes)
    incoming_at: list[int] = []
    copies = []  # to outlive the call
    for given, shape in zip(incoming, ((seq_len, batch, of.hidden_width), *states), strict=True):
        if given is None:
            incoming_at.append(0)
            continue
        given = given if given.is_contiguous() else given.contiguous()
        copies.append(given)
        incoming_at += _addresses(dtype, (given,), (shape,)) or ()
    if kept_at is None or parameters_at is None or len(incoming_at) != len(incoming):
        return None
    dx = torch.empty_like(x) if wants_dx else None
    dfirst = [_empty(shape, x) for shape in states] if wants_dfirst else []
    gradients = [torch.empty_like(p) for p in parameters]
    core.backward(
        parameters_at,
        kept_at[0],
        seq_len,
        batch,
        kept_at[1],
        incoming_at[0],
        incoming_at[1:],
        0 if dx is None else dx.data_ptr(),
        [d.data_ptr() for d in dfirst] or None,
        [g.data_ptr() for g in gradients],
        **({} if seed is None else {"mask_seed": int(seed)}),
    )
    return dx, dfirst, gradients


def _refuse_vmap(*_: Any, **__: Any) -> None:
    raise RuntimeError(
        "charrnn_fast has no vmap: give RNN, LSTM and GRU all sequences as one batch [T, B, I]"
    )


for _name in ("sequence", "sequence_backward"):
    torch.library.register_vmap(f"charrnn_fast::{_name}", _refuse_vmap, lib=_library)

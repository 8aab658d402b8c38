"""The modules for PyTorch: results and gradients of torch.nn's and the bits of `RNN`; what programs
do with modules: compile, export, copy, convert, share, train on several processes; what they
refuse."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cases import Array, parts
from charrnn_fast import RNN, _core
from features import (
    LSTMS,
    FeatureCase,
    assert_bits_of_kernels,
    combinations,
    label,
    single_features,
)
from marks import slow_but
from tolerances import assert_close, assert_same_bits, elementwise, network

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
import charrnn_fast.torch as modules  # noqa: E402

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
)
KINDS = ("rnn_tanh", "rnn_relu", "gru", "lstm", "projected")
CELLS = ("RNN", "GRU", "LSTM")


@dataclass(frozen=True)
class Kind:
    """A module of ours and torch.nn's, with equal arguments and equal weights."""

    unit: str
    dtype: Any = torch.float64
    input_size: int = 5
    hidden_size: int = 7

    @property
    def name(self) -> str:
        return "RNN" if self.unit.startswith("rnn") else "GRU" if self.unit == "gru" else "LSTM"

    @property
    def options(self) -> dict[str, Any]:
        if self.unit.startswith("rnn"):
            return {"nonlinearity": self.unit[4:]}
        return {"proj_size": 3} if self.unit == "projected" else {}

    def both(self, seed: int = 1, **more: Any) -> tuple[Any, Any]:
        made = []
        for library in (modules, torch.nn):
            torch.manual_seed(seed)
            cls = getattr(library, self.name)
            options = {"dtype": self.dtype, **self.options, **more}
            made.append(cls(self.input_size, self.hidden_size, **options))
        return made[0], made[1]

    def x(self, *shape: int) -> Any:
        torch.manual_seed(7)
        return torch.rand(*shape, self.input_size, dtype=self.dtype) * 2 - 1

    def tolerance(self, steps: int, rows: int) -> float:
        dtype = str(self.dtype).removeprefix("torch.")
        terms = max(2 * self.hidden_size + self.input_size, rows)
        return 2 * network(dtype, terms=terms, steps=(1 + (self.unit == "projected")) * steps)


def flat(result: Any) -> list[Any]:
    """The tensors of what a module returns."""
    if isinstance(result, torch.nn.utils.rnn.PackedSequence):
        return [result.data]
    if isinstance(result, (tuple, list)):
        return [t for r in result for t in flat(r)]
    return [result]


def gradients(module: Any, result: Any, *inputs: Any) -> list[Any]:
    """Of inputs and parameters, for incoming gradients that differ from element to element."""
    outputs = flat(result)
    incoming = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).reshape(t.shape) for t in outputs]
    leaves = [*inputs, *module.parameters()]
    found = torch.autograd.grad(outputs, leaves, incoming, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]


def by_operators() -> Any:
    """Calls within go by PyTorch's operators, as under a compiler; else they go past them."""
    return torch.overrides.BaseTorchFunctionMode()


def assert_alike(found: Any, expected: Any, tolerance: float) -> None:
    found, expected = flat(found), flat(expected)
    assert len(found) == len(expected)
    for n, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.dtype == b.dtype
        assert_close(f"tensor {n}", a.detach().numpy(), b.detach().numpy(), tolerance)


def assert_equal(found: Any, expected: Any) -> None:
    found, expected = flat(found), flat(expected)
    assert len(found) == len(expected)
    for n, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert_same_bits(f"tensor {n}", a.detach().numpy(), b.detach().numpy())


# ---- torch.nn's results -------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("unit", KINDS)
def test_outputs_and_gradients(unit: str, num_layers: int, bidirectional: bool, bias: bool) -> None:
    """From equal seeds: names, shapes and initial weights are torch.nn's to the bit."""
    for dtype in (torch.float32, torch.float64):
        kind = Kind(unit, dtype)
        options = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias}
        ours, theirs = kind.both(**options)
        assert [(n, p.shape) for n, p in ours.named_parameters()] == [
            (n, p.shape) for n, p in theirs.named_parameters()
        ]
        assert_equal(list(ours.parameters()), list(theirs.parameters()))
        assert [[id(w) for w in layer] for layer in ours.all_weights] == [
            [id(dict(ours.named_parameters())[n]) for n in names] for names in theirs._all_weights
        ]
        tolerance = kind.tolerance(steps=6 + num_layers, rows=6 * 4)
        x = kind.x(6, 4).requires_grad_()
        states = [s.detach().requires_grad_() for s in flat(theirs(x)[1])]
        given = tuple(states) if kind.name == "LSTM" else states[0]
        for hx, inputs in ((None, [x]), (given, [x, *states])):
            found, expected = ours(x, hx), theirs(x, hx)
            assert_alike(found, expected, tolerance)
            assert_alike(
                gradients(ours, found, *inputs), gradients(theirs, expected, *inputs), tolerance
            )
        with torch.no_grad():
            assert_equal(ours(x, given), found)


@pytest.mark.parametrize("unit", KINDS)
def test_batch_first_and_unbatched(unit: str) -> None:
    kind = Kind(unit)
    ours, theirs = kind.both(batch_first=True, num_layers=2)
    tolerance = kind.tolerance(steps=8, rows=24)
    for x in (kind.x(4, 6).requires_grad_(), kind.x(6).requires_grad_()):
        states = flat(theirs(x)[1])
        given = tuple(s.detach() for s in states) if kind.name == "LSTM" else states[0].detach()
        for hx in (None, given):
            found, expected = ours(x, hx), theirs(x, hx)
            assert [t.shape for t in flat(found)] == [t.shape for t in flat(expected)]
            assert_alike(found, expected, tolerance)
            assert_alike(gradients(ours, found, x), gradients(theirs, expected, x), tolerance)


@pytest.mark.parametrize("is_sorted", [False, True], ids=["any_order", "sorted"])
@pytest.mark.parametrize("unit", KINDS)
def test_packed_sequences(unit: str, is_sorted: bool) -> None:
    kind = Kind(unit)
    ours, theirs = kind.both(bidirectional=True, num_layers=2)
    lengths = [6, 4, 4, 1] if is_sorted else [4, 1, 6, 4]
    tolerance = kind.tolerance(steps=8, rows=24)
    states = [torch.rand_like(s) for s in flat(theirs(kind.x(6, 4))[1])]
    for hx in (None, tuple(states) if kind.name == "LSTM" else states[0]):
        x = kind.x(6, 4).requires_grad_()
        packed, again = (
            torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=is_sorted)
            for _ in range(2)
        )
        found, expected = ours(packed, hx), theirs(again, hx)
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            assert getattr(found[0], name) is getattr(packed, name)
        assert_alike(found, expected, tolerance)
        assert_alike(gradients(ours, found, x), gradients(theirs, expected, x), tolerance)


def test_state_dicts_load_both_ways(tmp_path: Path) -> None:
    for unit in KINDS:
        kind = Kind(unit)
        ours, theirs = kind.both(num_layers=2, bidirectional=True)
        other, _ = kind.both(seed=2, num_layers=2, bidirectional=True)
        x, tolerance = kind.x(6, 4), kind.tolerance(steps=8, rows=24)
        torch.save(other.state_dict(), tmp_path / "ours.pt")
        theirs.load_state_dict(torch.load(tmp_path / "ours.pt"))
        assert_alike(other(x), theirs(x), tolerance)
        ours.load_state_dict(theirs.state_dict())
        assert_equal(ours(x), other(x))
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_hr_l0"):
        modules.LSTM(5, 7, proj_size=3).load_state_dict(torch.nn.LSTM(5, 7).state_dict())


def test_arguments_and_attributes_are_torch_nns() -> None:
    """By place, too; what extra_repr shows builds an equal module."""
    for name, arguments in (
        ("RNN", (3, 4, 2, "relu", False, True, 0.5, True)),
        ("GRU", (3, 4, 2, False, True, 0.5, True)),
        ("LSTM", (3, 4, 2, False, True, 0.5, True, 2, "cpu", torch.float64)),
    ):
        ours, theirs = getattr(modules, name)(*arguments), getattr(torch.nn, name)(*arguments)
        for attribute in ("mode", *theirs.__constants__[1:]):
            assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
        assert {p.dtype for p in ours.parameters()} == {p.dtype for p in theirs.parameters()}
        again = eval(repr(ours), {name: getattr(modules, name)})
        assert repr(again) == repr(ours)
        ours.flatten_parameters()
    peephole = modules.LSTM(3, 4, cell="peephole_lstm", zoneout=0.1, layer_norm=True)
    assert repr(peephole) == "LSTM(3, 4, cell='peephole_lstm', layer_norm=True, zoneout=0.1)"
    assert modules.LSTM(3, 4, dtype=torch.float64, device="meta").weight_ih_l0.is_meta


def test_default_dtype_and_device() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert modules.GRU(3, 4).weight_ih_l0.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        module = modules.GRU(3, 4)
    y, h_n = module(torch.empty(6, 2, 3, device="meta"))
    assert (y.shape, h_n.shape) == ((6, 2, 4), (1, 2, 4)) and y.is_meta
    module.to_empty(device="cpu").reset_parameters()
    assert torch.isfinite(module(torch.zeros(6, 2, 3))[0]).all()


@pytest.mark.parametrize("name", CELLS)
def test_sequences_and_batches_of_nothing(name: str) -> None:
    """Without steps the last state is the first; without rows all is empty, gradients are 0."""
    module = getattr(modules, name)(3, 4)
    first = torch.rand(1, 2, 4)
    hx = (first, 2 * first) if name == "LSTM" else first
    y, last = module(torch.empty(0, 2, 3), hx)
    assert y.shape == (0, 2, 4)
    assert_equal(last, hx)
    x = torch.empty(5, 0, 3, requires_grad=True)
    y, last = module(x)
    assert y.shape == (5, 0, 4) and flat(last)[0].shape == (1, 0, 4)
    assert all((g == 0).all() for g in gradients(module, (y, last), x))


# ---- the bits of RNN, with every option ---------------------------------------------------------


class ByModule:
    """A case's network as a module, in training mode: its seed is the next that is drawn."""

    def __init__(self, case: FeatureCase, parameters: dict[str, Array]) -> None:
        self.case = case
        r = case.regularization
        options = {
            **{name: getattr(r, name) for name in r._fields if name != "zoneout"},
            "zoneout": r.zoneout if case.unit in LSTMS else r.zoneout[0],
            "layer_norm": case.layer_norm,
            "num_layers": case.num_layers,
            "bias": case.bias,
            "bidirectional": case.bidirectional,
            "dtype": getattr(torch, case.dtype),
        }
        if case.unit in LSTMS:
            options |= {"proj_size": case.proj_size, "cell": case.unit}
        name = "LSTM" if case.unit in LSTMS else case.kind["cell"].upper()
        if name == "RNN":
            options["nonlinearity"] = case.kind["nonlinearity"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"dropout=\S+ does nothing")
            self.module = getattr(modules, name)(case.input_size, case.hidden_size, **options)
        self.module.train(case.mask_seed is not None)
        with torch.no_grad():
            assert list(parameters) == [n for n, _ in self.module.named_parameters()]
            for name, p in self.module.named_parameters():
                p.copy_(torch.from_numpy(parameters[name]))

    def forward(self, x: Array, state: Any) -> tuple[Array, Any]:
        self.x = torch.from_numpy(x.copy()).requires_grad_()
        self.first = [torch.from_numpy(s.copy()).requires_grad_() for s in parts(state)]
        torch.manual_seed(SEED)
        hx = tuple(self.first) if len(self.first) == 2 else self.first[0]
        lengths = self.case.lengths()
        given = self.x
        if lengths is not None:
            given = torch.nn.utils.rnn.pack_padded_sequence(
                self.x, torch.from_numpy(lengths), enforce_sorted=False
            )
        y, last = self.module(given, hx)
        if lengths is not None:
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=len(x))
        self.results = [y, *flat(last)]
        arrays = [t.detach().numpy() for t in self.results]
        return arrays[0], tuple(arrays[1:]) if len(arrays) == 3 else arrays[1]

    def backward(self, dy: Array, dstate: Any) -> Any:
        torch.autograd.backward(
            self.results, [torch.from_numpy(g.copy()) for g in (dy, *parts(dstate))]
        )
        first = tuple(s.grad.numpy() for s in self.first)
        grads = {n: p.grad.numpy() for n, p in self.module.named_parameters()}
        return self.x.grad.numpy(), first if len(first) == 2 else first[0], grads


SEED = 3


class Lengths(FeatureCase):
    """PyTorch packs no row of length 0."""

    def lengths(self) -> Array | None:
        given = super().lengths()
        return None if given is None else np.maximum(given, 1)


def _module_cases() -> list[FeatureCase]:
    cases = [
        Lengths(**(vars(case) | {"output_size": None, "dtype": "float32", "mask_seed": seed}))
        for case in [*single_features(), *combinations()]
        if not case.tokens and case.bias != "single"
        for seed in ([None] if case.mask_seed is None else [_next_seed()])
    ]
    return list(dict.fromkeys(cases))


def _next_seed() -> int:
    torch.manual_seed(SEED)
    return int(torch.randint(2**63 - 1, ()))


@pytest.mark.parametrize("case", _module_cases(), ids=lambda c: label(c.but(mask_seed=11)))
def test_the_bits_of_rnn(case: FeatureCase) -> None:
    """Of every cell and option, with masks from torch.manual_seed."""
    assert_bits_of_kernels(case, ByModule)


# ---- the operators ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
def test_gradcheck(name: str) -> None:
    options = {"proj_size": 2} if name == "LSTM" else {}
    module = getattr(modules, name)(
        3, 4, num_layers=2, bidirectional=True, dtype=torch.float64, **options
    )
    names = [n for n, _ in module.named_parameters()]
    x = torch.rand(3, 2, 3, dtype=torch.float64, requires_grad=True)
    first = [torch.rand_like(s).requires_grad_() for s in flat(module(x)[1])]

    def call(x: Any, *rest: Any) -> Any:
        hx = tuple(rest[:2]) if name == "LSTM" else rest[0]
        given = dict(zip(names, rest[len(first) :], strict=True))
        return tuple(flat(torch.func.functional_call(module, given, (x, hx))))

    inputs = (x, *first, *module.parameters())
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    with pytest.raises(RuntimeError, match="charrnn_fast has no double backward"):
        torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def _opcheck_arguments(name: str, **options: Any) -> tuple[Any, tuple[Any, ...]]:
    """The arguments that a module's call gives to its operator."""
    module = getattr(modules, name)(3, 4, num_layers=2, **options)
    caught: list[tuple[Any, ...]] = []
    original = modules.operators.sequence

    def leaf(argument: Any, keep: bool) -> Any:
        if isinstance(argument, (list, tuple)):
            return [leaf(a, keep) for a in argument]
        if not isinstance(argument, torch.Tensor):
            return argument
        return argument.detach().clone().requires_grad_(keep and argument.requires_grad)

    def catch(*args: Any) -> Any:
        caught.append(tuple(leaf(a, keep=args[-1]) for a in args))
        return original(*args)

    modules.operators.sequence = catch
    try:
        x = torch.rand(5, 3, 3, requires_grad=True)
        state = torch.rand(2, 3, 4, requires_grad=True)
        hx = (state, state.detach().clone().requires_grad_()) if name == "LSTM" else state
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, [3, 5, 1], enforce_sorted=False)
        with by_operators():
            module(x, hx)
            module(packed)
            with torch.no_grad():
                module(x, hx)
                module.freeze()(x)
    finally:
        modules.operators.sequence = original
    return original, tuple(caught)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("LSTM", {}), ("GRU", {"dropout": 0.5, "weight_drop": 0.2})],
)
def test_opcheck(name: str, options: dict[str, Any]) -> None:
    """With and without a tape, of packed sequences and with packed weights."""
    operator, calls = _opcheck_arguments(name, **options)
    assert [c[-1] for c in calls] == [True, True, False, False]
    assert [len(c[7]) for c in calls] == [0, 0, 0, 2]
    for arguments in calls:
        results = torch.library.opcheck(operator, arguments)
        assert set(results.values()) == {"SUCCESS"}


def test_what_operators_refuse() -> None:
    """Of any caller, before memory is read."""
    operator, calls = _opcheck_arguments("LSTM")
    good = list(calls[0])
    parameters = list(good[3])

    def spoiled(position: int, value: Any) -> list[Any]:
        return [*good[:position], value, *good[position + 1 :]]

    long = torch.zeros(2, dtype=torch.int64)
    for arguments, error, message in (
        (spoiled(0, good[0].double()), TypeError, "weight_ih_l0 must have dtype torch.float64"),
        (spoiled(0, good[0].bfloat16()), TypeError, "x must have dtype torch.float32 or torch.fl"),
        (spoiled(0, good[0][0]), ValueError, r"x must have shape \[T, B, I\], got \[3, 3\]"),
        (spoiled(0, good[0][:, :, :2]), ValueError, r"x must have shape \[5, 3, 3\], got \[5, 3, "),
        (spoiled(1, good[1].bfloat16()), TypeError, "h_0 must have dtype torch.float32, got"),
        (spoiled(2, good[2][:1]), ValueError, r"c_0 must have shape \[2, 3, 4\], got \[1, 3, 4\]"),
        (spoiled(3, parameters[:-1]), ValueError, "parameters must be .* got 7 tensors"),
        (
            spoiled(3, [*parameters[:-1], parameters[-1].bfloat16()]),
            TypeError,
            "bias_hh_l1 must have dtype torch.float32, got torch.bfloat16",
        ),
        (spoiled(3, [*parameters[:-1], parameters[0]]), ValueError, "bias_hh_l1 must have shape"),
        (spoiled(4, long), ValueError, r"x must have offsets\[T\] = 0 rows, got 5"),
        (spoiled(8, 4), ValueError, r"x must have shape \[5, 4, 3\], got \[5, 3, 3\]"),
        (spoiled(7, [good[0]]), ValueError, "packed must be 2 tensors, got 1"),
        (spoiled(7, [good[0], good[0]]), ValueError, r"packed \(forward\) must have shape"),
    ):
        with torch.no_grad(), pytest.raises(error, match=message):
            operator(*arguments)
    y = operator(*good[:-1], False)[0]
    with pytest.raises(RuntimeError, match="must be called with keep=True to be differentiated"):
        y.sum().backward()
    y, _, _, tape = operator(*good)
    backward = modules.operators.sequence_backward
    given = (good[0], parameters, None, None, None, tape[1:], y, None, None, 3, good[9], True)
    with torch.no_grad(), pytest.raises(ValueError, match="tape must be that of a forward with"):
        backward(*given)


def test_tensors_that_are_not_contiguous() -> None:
    """Of input, state, weights and incoming gradients: the same bits."""
    module = modules.LSTM(3, 4, num_layers=2)
    x, states = torch.rand(5, 2, 3), (torch.rand(2, 2, 4), torch.rand(2, 2, 4))
    expected = module(x, states)
    wanted = torch.autograd.grad(flat(expected)[0].sum(), list(module.parameters()))
    strided = {
        n: p.detach().t().contiguous().t() if p.dim() == 2 else p.detach().clone()
        for n, p in module.named_parameters()
    }
    given = {n: p.requires_grad_() for n, p in strided.items()}
    assert not given["weight_hh_l0"].is_contiguous()
    other = torch.empty(2, 3, 5).permute(2, 0, 1).copy_(x)
    assert not other.is_contiguous()
    hx = tuple(torch.empty(4, 2, 2).permute(2, 1, 0).copy_(s) for s in states)
    found = torch.func.functional_call(module, given, (other, hx))
    assert_equal(found, expected)
    # the gradient of a sum is one number, expanded
    assert_equal(torch.autograd.grad(found[0].sum(), list(given.values())), wanted)


@pytest.mark.parametrize("way", [by_operators, contextlib.nullcontext], ids=["operators", "plain"])
def test_nothing_is_copied_and_inference_has_no_tape(way: Callable[[], Any]) -> None:
    module = modules.LSTM(3, 4)
    tapes: list[int] = []

    class Watched:
        """The compiled network of the module."""

        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

        def forward(self, parameters: list[int], at: int, *rest: Any, **options: Any) -> None:
            assert parameters == [p.data_ptr() for p in module.parameters()]
            assert at == x.data_ptr()
            tapes.append(options.get("tape", 0))
            core.forward(parameters, at, *rest, **options)

    cores = modules.operators.network(module._network).cores
    core = cores[torch.float32]
    cores[torch.float32] = Watched()
    try:
        x = torch.rand(5, 2, 3)
        with way():
            module(x)
            with torch.no_grad():
                module(x)
            with torch.inference_mode():
                module(x)
            module.requires_grad_(False)
            module(x)
            module(x.requires_grad_())
    finally:
        cores[torch.float32] = core
    assert [tape > 0 for tape in tapes] == [True, False, False, False, True]


def _agree(module: Any, x: Any, hx: Any, seed: int = 3) -> None:
    """Plain calls have the operators' bits, of results and gradients."""
    inputs = [x, *(flat(hx) if hx is not None else [])]
    found = []
    for way in (contextlib.nullcontext, by_operators):
        with way():
            torch.manual_seed(seed)
            result = module(x, hx)
            grads = gradients(module, result, *inputs)
            with torch.no_grad():
                torch.manual_seed(seed)
                again = module(x, hx)
        assert_equal(again, result)
        found.append((result, grads))
    names = [type(flat(result)[-1].grad_fn).__name__ for result, _ in found]
    assert names == ["_PlainBackward", "_DifferentiableBackward"]
    assert_equal(found[0][0], found[1][0])
    assert_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("unit", KINDS)
def test_plain_calls_have_the_bits_of_operators(unit: str, batch_first: bool) -> None:
    """With and without states, masks and directions; of inputs that are not contiguous, too."""
    for dtype in (torch.float32, torch.float64):
        kind = Kind(unit, dtype)
        for options in (
            {},
            {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
            {"recurrent_dropout": 0.3, "weight_drop": 0.2, "bias": False},
        ):
            module = getattr(modules, kind.name)(
                5, 7, dtype=dtype, batch_first=batch_first, **kind.options, **options
            )
            x = kind.x(4, 6).requires_grad_()
            states = [torch.rand_like(s).requires_grad_() for s in flat(module(x)[1])]
            _agree(module, x, None)
            _agree(module, x, tuple(states) if kind.name == "LSTM" else states[0])
            strided = torch.rand(5, 4, 6, dtype=dtype).permute(1, 2, 0).requires_grad_()
            assert not strided.is_contiguous()
            _agree(module, strided, None)


class _Seen(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(f))
        return f(*args, **(kwargs or {}))


class _Subclass(torch.Tensor):  # type: ignore[misc]
    pass


@pytest.mark.filterwarnings("ignore")
def test_who_watches_calls_sees_operators() -> None:
    """Dispatch modes, profilers, tracers; and subclasses of tensors stay what they are."""
    from torch.fx.experimental.proxy_tensor import make_fx

    module, x = modules.LSTM(3, 4), torch.rand(5, 2, 3)
    expected = module(x)
    wanted = gradients(module, expected)
    with _Seen() as seen:
        result = module(x)
        assert_equal(gradients(module, result), wanted)
    operators = ["charrnn_fast.sequence.default", "charrnn_fast.sequence_backward.default"]
    assert [name for name in seen.names if name.startswith("charrnn_fast")] == operators
    assert_equal(result, expected)
    with _Seen() as seen:  # backward alone
        gradients(module, expected := module(x))
    with torch.profiler.profile() as profile:
        gradients(module, module(x))
    keys = {event.key for event in profile.key_averages()}
    assert {"charrnn_fast::sequence", "charrnn_fast::sequence_backward"} <= keys
    traced = make_fx(lambda x: module(x)[0])(x)
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert modules.operators.sequence in targets
    assert_equal(traced(2 * x), module(2 * x)[0])
    assert type(module(x.as_subclass(_Subclass))[0]) is _Subclass
    one, half = modules.RNN(1, 1), torch.full((1, 1, 1), 0.5)
    negated = torch.complex(half, -half).conj().imag  # 0.5 behind a bit that negates -0.5
    assert negated.is_neg() and negated.is_contiguous()
    assert_equal(one(negated), one(half))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_plain_gradients_in_the_midst_of_others() -> None:
    """Saved tensors that hooks replace, hooks of tensors and accumulation in .grad."""
    module, x = modules.LSTM(3, 4, num_layers=2), torch.rand(5, 2, 3, requires_grad=True)
    wanted = gradients(module, module(x), x)
    packed: list[Any] = []

    def pack(tensor: Any) -> Any:
        packed.append(tensor.numpy(force=True).copy())
        return packed[-1]

    with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
        result = module(x)
    assert len(packed) == 2 + len(list(module.parameters()))
    assert_equal(gradients(module, result, x), wanted)
    for context in (torch.autograd.detect_anomaly, torch.autograd.graph.save_on_cpu):
        with context():
            result = module(x)
            assert_equal(gradients(module, result, x), wanted)
    with torch.device("cpu"):
        assert_equal(module(x), result)
    handle = module.weight_hh_l0.register_hook(lambda gradient: 2 * gradient)
    doubled = gradients(module, module(x), x)
    handle.remove()
    assert_equal(doubled[2], 2 * wanted[2])
    for _ in range(2):
        flat(module(x))[0].sum().backward()
    twice = x.grad.clone()
    x.grad = None
    flat(module(x))[0].sum().backward()
    assert_equal(twice, 2 * x.grad)


def test_tapes_are_used_again() -> None:
    """Training in a loop takes the memory of its first tapes."""
    module, x = modules.GRU(64, 64), torch.rand(50, 16, 64)

    def step() -> None:
        module(x)[0].square().mean().backward()

    step()
    gc.collect()
    held = _core.free_list_bytes()
    assert held > 0
    for _ in range(3):
        step()
        assert _core.free_list_bytes() == held


def test_retain_graph_and_changed_weights() -> None:
    module, x = modules.LSTM(3, 4, num_layers=2), torch.rand(5, 2, 3, requires_grad=True)
    loss = module(x)[0].square().sum()
    leaves = [x, *module.parameters()]
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert_equal(torch.autograd.grad(loss, leaves, retain_graph=True), first)
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, leaves)
    loss = module(x)[0].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_only_what_is_asked_for_is_differentiated() -> None:
    module, x = modules.LSTM(3, 4), torch.rand(5, 2, 3)
    module.weight_hh_l0.requires_grad_(False)
    y, (_, c_n) = module(x)
    (y.sum() + c_n.sum()).backward()
    assert module.weight_hh_l0.grad is None and module.weight_ih_l0.grad is not None
    wanted = module.weight_ih_l0.grad.clone()
    module.zero_grad()
    module(x.requires_grad_())
    y, (_, c_n) = module(x)
    (y.sum() + c_n.sum()).backward()
    assert_equal(module.weight_ih_l0.grad, wanted)
    assert x.grad.shape == x.shape


# ---- masks --------------------------------------------------------------------------------------


def test_dropout_follows_the_seed() -> None:
    module, x = modules.LSTM(3, 8, num_layers=2, dropout=0.5), torch.rand(5, 2, 3)
    torch.manual_seed(4)
    first, second = module(x), module(x)
    assert not torch.equal(first[0], second[0])
    torch.manual_seed(4)
    assert_equal(module(x), first)
    assert_equal(module(x), second)
    module.eval()
    before = torch.get_rng_state()
    plain = module(x)
    assert torch.equal(torch.get_rng_state(), before), "no seed is drawn for inference"
    other = modules.LSTM(3, 8, num_layers=2)
    other.load_state_dict(module.state_dict())
    before = torch.get_rng_state()
    assert_equal(other(x), plain)
    assert torch.equal(torch.get_rng_state(), before), "nor without rates"


def test_rates_may_be_changed() -> None:
    module, x = modules.GRU(3, 64, num_layers=2), torch.rand(5, 4, 3)
    plain = module(x)
    module.dropout = 0.5
    torch.manual_seed(4)
    dropped = module(x)
    assert not torch.equal(dropped[0], plain[0])
    other = modules.GRU(3, 64, num_layers=2, dropout=0.5)
    other.load_state_dict(module.state_dict())
    torch.manual_seed(4)
    assert_equal(other(x), dropped)
    with pytest.raises(ValueError, match=r"dropout must be finite, at least 0, below 1, got 1"):
        module.dropout = 1
    assert module.dropout == 0.5
    module.dropout = 0.0
    assert_equal(module(x), plain)
    with pytest.raises(AttributeError, match=r"GRU.hidden_size cannot be changed: build another"):
        module.hidden_size = 5


def test_checkpointing_draws_the_same_masks() -> None:
    module, x = modules.LSTM(3, 8, num_layers=2, dropout=0.5), torch.rand(5, 2, 3)
    torch.manual_seed(4)
    wanted = torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))
    torch.manual_seed(4)
    from torch.utils.checkpoint import checkpoint

    y, _ = checkpoint(module, x, use_reentrant=False)
    assert_equal(torch.autograd.grad(y.sum(), list(module.parameters())), wanted)


# ---- what programs do with modules --------------------------------------------------------------


class Model(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, name: str = "LSTM", **options: Any) -> None:
        super().__init__()
        self.rnn = getattr(modules, name)(3, 4, num_layers=2, **options)
        self.out = torch.nn.Linear(4, 2)

    def forward(self, x: Any, hx: Any = None) -> Any:
        y, last = self.rnn(torch.tanh(x), hx)
        return self.out(y), last


@pytest.mark.parametrize(
    ("name", "backend", "options"),
    slow_but(
        [("LSTM", "aot_eager", {})],
        [
            ("LSTM", "aot_eager", {}),
            ("GRU", "aot_eager", {"batch_first": True, "dropout": 0.5}),
            ("RNN", "inductor", {}),
        ],
    ),
)
@pytest.mark.filterwarnings("ignore")  # PyTorch's own
def test_compile(name: str, backend: str, options: dict[str, Any]) -> None:
    """Fullgraph, with any T, with and without gradients; no graph is made for a second length."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    model, frames = Model(name, **options), CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=frames)
    tolerance = elementwise("float32", operations=64)
    for T in (5, 8, 13):
        x = torch.rand(T, T + 1, 3)
        torch.manual_seed(2)
        found = compiled(x)
        torch.manual_seed(2)
        expected = model(x)
        assert [t.shape for t in flat(found)] == [t.shape for t in flat(expected)]
        if not options or backend == "aot_eager":  # inductor draws other numbers
            assert_alike(found, expected, tolerance)
            assert_alike(gradients(model, found), gradients(model, expected), T * tolerance)
    assert frames.frame_count == 1
    model.eval()
    with torch.no_grad():
        for T in (5, 8):
            x = torch.rand(T, 2, 3)
            assert_alike(compiled(x), model(x), tolerance)


@pytest.mark.filterwarnings("ignore")
def test_export(tmp_path: Path) -> None:
    """Of any T; the program runs after it was saved and loaded."""
    model = Model().eval()
    x = torch.rand(5, 2, 3)
    with torch.no_grad():
        program = torch.export.export(
            model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("T", min=2)}}
        )
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    names = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert names.count(modules.operators.sequence) == 1
    for T in (5, 9):
        x = torch.rand(T, 2, 3)
        with torch.no_grad():
            assert_equal(loaded(x), model(x))


@pytest.mark.parametrize("frozen", [False, True])
def test_autocast(frozen: bool) -> None:
    """Tensors stay in the dtype of the weights; what reaches a layer in another is converted."""
    model, x = Model(), torch.rand(5, 2, 3)
    if frozen:
        model.rnn.freeze()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.rnn.forward(x.bfloat16())
        y, _ = model(x)
        hidden, last = model.rnn(torch.nn.Linear(3, 3)(x))
        wide = modules.LSTM(3, 4, dtype=torch.float64)
        assert wide(x)[0].dtype == torch.float64
    assert hidden.dtype == last[0].dtype == torch.float32
    assert y.dtype == torch.bfloat16
    rounded = copy.deepcopy(model.rnn)
    rounded.__dict__.update(compute_dtype="bfloat16", _packed=[])
    rounded._set_networks()
    assert_equal(low, rounded(x.bfloat16().float()))
    y.float().sum().backward()
    assert model.rnn.weight_ih_l0.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.float16):
        half = model.rnn(x.half())
    assert_equal(half, model.rnn(x.half().float()))


def test_compute_dtype() -> None:
    """As of `charrnn_fast.RNN`."""
    module = modules.GRU(3, 4, compute_dtype="bfloat16")
    assert repr(module) == "GRU(3, 4, compute_dtype='bfloat16')"
    x = torch.rand(5, 2, 3)
    same = RNN(3, 4, cell="gru", compute_dtype="bfloat16")
    same.load_parameters({n: p.detach().numpy() for n, p in module.named_parameters()})
    y, h = module(x)
    wanted, last = same.forward(x.numpy())
    assert_equal((y, h), (torch.from_numpy(wanted), torch.from_numpy(last)))
    y.square().sum().backward()
    _, _, gradients = same.backward(2 * wanted)
    for name, parameter in module.named_parameters():
        np.testing.assert_array_equal(parameter.grad.numpy(), gradients[name])
    with torch.no_grad():
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), module.freeze()):
            assert other.compute_dtype == "bfloat16"
            assert_equal(other(x), (y, h))
            assert_equal(torch.compile(other, backend="eager")(x), (y, h))
    with pytest.raises(AttributeError, match=r"GRU\.compute_dtype cannot be changed"):
        module.compute_dtype = "float32"
    with pytest.raises(TypeError, match="with compute_dtype='bfloat16', got"):
        module.double()(x.double())
    for options, message in (
        ({"compute_dtype": "float16"}, "compute_dtype must be one of 'float32', 'tf32'"),
        ({"compute_dtype": "tf32"}, "compute_dtype must be 'float32' or 'bfloat16' on cpu"),
        ({"compute_dtype": "bfloat16", "dtype": torch.float64}, "with dtype='float64'"),
    ):
        with pytest.raises(ValueError, match=message):
            modules.LSTM(3, 4, **options)
    # Of an older version, before it was an option.
    state = modules.GRU(3, 4).__getstate__()
    del state["compute_dtype"], state["_rounded"]
    old = modules.GRU.__new__(modules.GRU)
    old.__setstate__(state)
    assert old.compute_dtype == "float32" and old(x)[0].dtype == torch.float32


def test_copies_and_pickles() -> None:
    module = modules.LSTM(3, 4, num_layers=2, cell="peephole_lstm", recurrent_dropout=0.5)
    x = torch.rand(5, 2, 3)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    ):
        torch.manual_seed(1)
        expected = module(x)
        torch.manual_seed(1)
        assert_equal(other(x), expected)
        assert repr(other) == repr(module)
        with torch.no_grad():
            other.weight_hh_l0.zero_()
        other.recurrent_dropout = 0.1
        torch.manual_seed(1)
        assert_equal(module(x), expected)


def test_conversion_of_the_dtype() -> None:
    module, x = modules.GRU(3, 4), torch.rand(5, 2, 3)
    expected = module(x)
    y, _ = module.double()(x.double())
    assert y.dtype == torch.float64
    assert_close("y", y.detach(), expected[0].detach(), network("float32", terms=7, steps=6))
    assert_equal(module.float()(x), expected)
    for half in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match=rf"GRU's parameters must be .* got {half}: convert"):
            module.to(half)(x.to(half))


def test_parametrizations() -> None:
    module, x = modules.LSTM(3, 4), torch.rand(5, 2, 3)
    expected = module(x)
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    y, last = module(x)
    assert_alike((y, last), expected, elementwise("float32", operations=64))
    y.sum().backward()
    grads = {n: p.grad for n, p in module.named_parameters()}
    assert grads["parametrizations.weight_hh_l0.original1"].abs().max() > 0
    assert "weight_hh_l0" not in grads


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated")  # by forward-mode gradients
def test_function_transforms() -> None:
    """What is missing says so."""
    module, x = modules.LSTM(3, 4), torch.rand(5, 2, 3)
    with pytest.raises(RuntimeError, match="charrnn_fast has no vmap: give RNN, LSTM and GRU"):
        torch.func.vmap(module)(torch.rand(3, 5, 2, 3))
    for transform in (torch.func.grad, torch.func.jacrev):
        with pytest.raises(RuntimeError, match=r"no torch.func.grad, vjp or jacrev: call backw"):
            transform(lambda x: module(x)[0].sum())(x)
    for needs_grad in (True, False):
        module.requires_grad_(needs_grad)
        with pytest.raises(RuntimeError, match=r"no forward-mode gradients \(jvp\): call backward"):
            torch.func.jvp(lambda x: module(x)[0], (x,), (x,))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, x)
            for mode in (torch.enable_grad, torch.no_grad):
                with mode(), pytest.raises(RuntimeError, match="no forward-mode gradients"):
                    module(dual)
            module(x)  # without a tangent
    given = {n: 2 * p for n, p in module.named_parameters()}
    found = torch.func.functional_call(module, given, (x,))
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(2)
    assert_equal(found, module(x))
    assert_equal(torch.func.functionalize(module)(x), found)


def test_frozen_weights() -> None:
    """The same bits; not after training, loading or a conversion, and not for gradients."""
    module, x = modules.LSTM(3, 4, num_layers=2, dropout=0.5), torch.rand(5, 2, 3)
    module.eval()
    with torch.no_grad():
        expected = module(x)
        assert module.freeze() is module and not module.training
        assert_equal(module(x), expected)
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert_equal(other(x), expected)
            assert len(other._packed) == 2 and other._packed[0] is not module._packed[0]
        module.weight_hh_l1.mul_(2)
        assert_equal(module(x), expected)
        assert not torch.equal(module.freeze()(x)[0], expected[0])
        module.weight_hh_l1.div_(2)
        ends: tuple[Callable[[], Any], ...] = (
            lambda: module.train().eval(),
            lambda: module.load_state_dict(module.state_dict()),
            lambda: module.float(),
        )
        for end in ends:
            end()
            assert_equal(module(x), expected)
            module.weight_hh_l1.mul_(2)
            module.freeze()
            module.weight_hh_l1.div_(2)
        module.freeze()
        module.weight_hh_l1.mul_(2)
    found = module(x)
    loss = found[0].sum()
    loss.backward()  # and not of a call that keeps a tape
    assert not torch.equal(found[0], expected[0])


# ---- the cases of PyTorch's own tests, written anew ---------------------------------------------


@pytest.mark.parametrize("unit", KINDS)
def test_states_of_zeros_are_no_states(unit: str) -> None:
    for options in ({}, {"num_layers": 2, "bidirectional": True}):
        kind = Kind(unit)
        module, x = kind.both(**options)[0], kind.x(4, 3)
        expected = module(x)
        zeros = [torch.zeros_like(s) for s in flat(expected[1])]
        assert_equal(module(x, tuple(zeros) if kind.name == "LSTM" else zeros[0]), expected)
        assert_equal(zeros, [torch.zeros_like(z) for z in zeros])


@pytest.mark.parametrize("unit", [unit for unit in KINDS if unit != "projected"])
def test_a_loop_of_cells(unit: str) -> None:
    """A layer, and one step at a time with the state carried on, are torch.nn's cells in a loop."""
    kind = Kind(unit)
    module, x = kind.both()[0], kind.x(6, 4)
    cell = getattr(torch.nn, f"{kind.name}Cell")(5, 7, dtype=kind.dtype, **kind.options)
    cell.load_state_dict({n.removesuffix("_l0"): p for n, p in module.state_dict().items()})
    tolerance = kind.tolerance(steps=6, rows=24)
    result, state, carried = module(x), None, None
    for t in range(6):
        state = cell(x[t], state)
        h = state[0] if kind.name == "LSTM" else state
        assert_alike(result[0][t], h, tolerance)
        y, carried = module(x[t : t + 1], carried)
        assert_equal(y[0], result[0][t])
    assert_equal(carried, result[1])
    assert_alike(result[1], [s[None] for s in flat(state)], tolerance)


@pytest.mark.parametrize("is_sorted", [True, False], ids=["sorted", "any_order"])
@pytest.mark.parametrize("unit", KINDS)
def test_sequences_of_a_pack_are_calls_of_their_own(unit: str, is_sorted: bool) -> None:
    """To the bit: outputs, last states and gradients of x, from initial states."""
    kind = Kind(unit)
    module = kind.both(num_layers=2, bidirectional=True)[0]
    lengths = [6, 5, 2, 1] if is_sorted else [2, 6, 1, 5]
    rows = [kind.x(n).mul(n + 1).requires_grad_() for n in lengths]
    states = [torch.rand_like(s) for s in flat(module(kind.x(6, 4))[1])]

    def hx(of: Callable[[Any], Any]) -> Any:
        given = [of(s).contiguous() for s in states]
        return tuple(given) if kind.name == "LSTM" else given[0]

    packed = torch.nn.utils.rnn.pack_sequence(rows, enforce_sorted=is_sorted)
    y, last = module(packed, hx(lambda s: s))
    padded, found = torch.nn.utils.rnn.pad_packed_sequence(y)
    assert found.tolist() == lengths
    incoming = torch.linspace(-1, 1, padded.shape[-1], dtype=kind.dtype)
    dx = torch.autograd.grad((padded * incoming).sum(), rows)
    for b, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        alone, last_alone = module(row, hx(lambda s, b=b: s[:, b]))  # type: ignore[misc]
        assert_equal(padded[:n, b], alone)
        assert (padded[n:, b] == 0).all()
        assert_equal([s[:, b] for s in flat(last)], last_alone)
        assert_equal(torch.autograd.grad((alone * incoming).sum(), row), dx[b])


@pytest.mark.parametrize("name", CELLS)
def test_wrong_sizes(name: str) -> None:
    """Each size of input and states, one at a time, by layers and directions; and a missing c."""
    for options in ({}, {"num_layers": 2, "bidirectional": True, "batch_first": True}):
        module = getattr(modules, name)(3, 4, **options)
        x = torch.rand(2, 2, 3)
        layers = module.num_layers * (1 + module.bidirectional)
        good = [torch.rand(layers, 2, 4) for _ in range(1 + (name == "LSTM"))]

        def call(x: Any, given: list[Any], module: Any = module) -> Any:
            return module(x, tuple(given) if name == "LSTM" else given[0])

        call(x, good)
        for wrong in (x[..., :2], x[None], x[0, 0]):
            with pytest.raises(ValueError, match="input must have shape"):
                call(wrong, good)
        for n, state in enumerate(good):
            for size in ((layers + 1, 2, 4), (layers, 3, 4), (layers, 2, 5), (layers, 2)):
                given = [*good[:n], torch.rand(size), *good[n + 1 :]]
                with pytest.raises(ValueError, match=r"hx\S* must have shape"):
                    call(x, given)
            with pytest.raises(TypeError, match=r"hx\S* must have the module's dtype"):
                call(x, [*good[:n], state.double(), *good[n + 1 :]])
            with pytest.raises(ValueError, match=r"hx\S* must be on the module's device"):
                call(x, [*good[:n], state.to("meta"), *good[n + 1 :]])


def test_tied_weights() -> None:
    """One parameter in two places: its gradient is the sum of both."""
    made = []
    for library in (modules, torch.nn):
        torch.manual_seed(1)
        module = library.GRU(3, 4, bidirectional=True, dtype=torch.float64)
        module.weight_hh_l0_reverse = module.weight_hh_l0
        made.append(module)
    ours, theirs = made
    assert len(list(ours.parameters())) == 7
    x = torch.rand(5, 2, 3, dtype=torch.float64, requires_grad=True)
    tolerance = 2 * network("float64", terms=20, steps=6)
    found, expected = ours(x), theirs(x)
    assert_alike(found, expected, tolerance)
    assert_alike(gradients(ours, found, x), gradients(theirs, expected, x), tolerance)


def test_what_dropout_between_layers_does() -> None:
    """What reaches the second layer is 0 as often as the rate says, else divided by 1 - rate."""
    for rate in (0.0, 0.1234, 0.5):
        module = modules.RNN(1, 256, 2, "relu", bias=False, dropout=rate)
        with torch.no_grad():
            for p in module.parameters():
                p.zero_()
            module.weight_ih_l0.fill_(3.0)
            module.weight_ih_l1.copy_(torch.eye(256))
        x = torch.ones(4, 8, 1)
        y, h_n = module(x)
        values = y.detach().unique()
        wanted = np.array([0, 3 / (1 - rate)])[-len(values) :]
        assert_close("values", values, wanted, elementwise("float32", operations=3))
        spread = 6 * (rate * (1 - rate) / y.numel()) ** 0.5
        assert abs(float((y == 0).float().mean()) - rate) <= spread
        assert_equal(h_n[0], torch.full((8, 256), 3.0))
        assert (module.eval()(x)[0] == 3).all()


@pytest.mark.parametrize("unit", KINDS)
def test_any_number_of_backwards(unit: str) -> None:
    kind = Kind(unit)
    module, x = kind.both(num_layers=2)[0], kind.x(5, 6).requires_grad_()
    result = module(x)
    loss = sum(t.square().sum() for t in flat(result))
    leaves = [x, *module.parameters()]
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for _ in range(3):
        assert_equal(torch.autograd.grad(loss, leaves, retain_graph=True), first)


@pytest.mark.parametrize("unit", KINDS)
def test_large_and_missing_numbers(unit: str) -> None:
    """Saturated gates are torch.nn's; a row that is not a number leaves the others alone."""
    kind = Kind(unit)
    ours, theirs = kind.both()
    x = 1e4 * kind.x(6, 4)
    if unit != "rnn_relu":
        # Sums of terms of that size err by as much more.
        assert_alike(ours(x), theirs(x), 1e4 * kind.tolerance(steps=7, rows=24))
    expected = flat(ours(x))
    x[:, 1] = torch.nan
    for found, before in zip(flat(ours(x)), expected, strict=True):
        assert found[:, 1].isnan().any()
        assert_equal(found[:, [0, 2, 3]], before[:, [0, 2, 3]])


def test_parameters_that_are_put_in_place() -> None:
    """Assigned by load_state_dict, as new Parameters and by .data; weights that train alone."""
    module, other = modules.LSTM(3, 4), modules.LSTM(3, 4)
    x = torch.rand(5, 2, 3)
    expected = other(x)
    module.load_state_dict(other.state_dict(), assign=True)
    assert module.weight_hh_l0.data_ptr() == other.weight_hh_l0.data_ptr()
    assert_equal(module(x), expected)
    module = modules.LSTM(3, 4)
    for name, p in other.named_parameters():
        setattr(module, name, torch.nn.Parameter(p.detach().clone()))
    assert_equal(module(x), expected)
    module = modules.LSTM(3, 4)
    for name, p in other.named_parameters():
        getattr(module, name).data = p.data
    assert_equal(module(x), expected)
    module.weight_hh_l0.data = torch.rand(4, 16).t()
    assert_equal(module(x), torch.func.functional_call(other, dict(module.named_parameters()), x))
    module.weight_hh_l0.data = torch.rand(4, 16)
    with pytest.raises(ValueError, match=r"weight_hh_l0 must have shape \[16, 4\], got \[4, 16\]"):
        module(x)


@pytest.mark.filterwarnings("ignore")
def test_packed_sequences_under_compile() -> None:
    """A PackedSequence that is made outside: fullgraph."""
    torch._dynamo.reset()
    module, x = modules.GRU(3, 4), torch.rand(5, 3, 3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for lengths, is_sorted in (([5, 4, 2], True), ([2, 5, 4], False)):
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=is_sorted)
        found, expected = compiled(packed), module(packed)
        assert_equal(found, expected)
        assert_equal(gradients(module, found), gradients(module, expected))


# ---- refusals -----------------------------------------------------------------------------------


def test_what_constructors_refuse() -> None:
    for name, options, error, message in (
        ("LSTM", {"hidden_size": 0}, ValueError, "hidden_size must be >= 1, got 0"),
        ("LSTM", {"hidden_size": 2.0}, TypeError, "hidden_size must be an integer >= 1, got 2.0"),
        ("LSTM", {"input_size": 0}, ValueError, "input_size must be >= 1, got 0"),
        ("LSTM", {"num_layers": 0}, ValueError, "num_layers must be >= 1, got 0|in 1 to"),
        ("LSTM", {"proj_size": 4}, ValueError, "proj_size must be less than hidden_size=4, got 4"),
        ("LSTM", {"proj_size": -1}, ValueError, "proj_size must be >= 0, got -1"),
        ("LSTM", {"bias": 1}, TypeError, "bias must be True or False, got int"),
        ("LSTM", {"batch_first": None}, TypeError, "batch_first must be True or False, got None"),
        ("LSTM", {"dropout": 1.0}, ValueError, "dropout must be .*below 1, got 1.0"),
        ("LSTM", {"dropout": "x"}, TypeError, "dropout must be a number .* got 'x'"),
        ("LSTM", {"cell": "gru"}, ValueError, "cell must be one of 'lstm', .* got 'gru'"),
        ("LSTM", {"dtype": torch.float16}, TypeError, "dtype must be .* got torch.float16"),
        ("LSTM", {"device": "xpu"}, ValueError, r"device must be 'cpu', 'cuda' or .* got 'xpu'"),
        ("LSTM", {"proj_size": 2, "zoneout": 0.1}, ValueError, "h cannot be zoned out behind"),
        ("RNN", {"nonlinearity": "sin"}, ValueError, "nonlinearity must be 'tanh' or 'relu', got"),
        ("RNN", {"proj_size": 2}, TypeError, "proj_size"),
        ("GRU", {"proj_size": 2}, TypeError, "proj_size"),
        ("GRU", {"zoneout": (0.1, 0.1)}, ValueError, "second rate of zoneout must be 0"),
    ):
        given = {"input_size": 3, "hidden_size": 4, **options}
        with pytest.raises(error, match=message):
            getattr(modules, name)(**given)
    with pytest.warns(UserWarning, match="dropout=0.5 does nothing in a module of one layer"):
        modules.LSTM(3, 4, dropout=0.5)


def test_what_calls_refuse() -> None:
    lstm, gru = modules.LSTM(3, 4, proj_size=2), modules.GRU(3, 4, bidirectional=True)
    x, h, c = torch.rand(5, 2, 3), torch.rand(1, 2, 2), torch.rand(1, 2, 4)
    packed = torch.nn.utils.rnn.pack_sequence([torch.rand(5, 2)])
    calls: tuple[tuple[Callable[[], Any], Any, str], ...] = (
        (lambda: lstm(x.numpy()), TypeError, "input must be a tensor or a PackedSequence, got nda"),
        (lambda: lstm(x[..., :2]), ValueError, r"input must have shape \[any, any, 3\], got"),
        (lambda: lstm(x[0, :, :2]), ValueError, r"input must have shape \[any, 3\], got \[2, 2\]"),
        (lambda: lstm(x[None]), ValueError, r"input must have shape \[any, any, 3\], got \[1, 5,"),
        (lambda: lstm(x.double()), TypeError, "input must have the module's dtype torch.float32"),
        (lambda: lstm(x.long()), TypeError, "got torch.int64"),
        (lambda: lstm(x.to("meta")), ValueError, "input must be on the module's device cpu, got m"),
        (lambda: lstm(packed), ValueError, r"input.data must have shape \[any, 3\], got \[5, 2\]"),
        (lambda: lstm(x, h), TypeError, r"hx must be a pair of tensors \(h_0, c_0\), got Tensor"),
        (lambda: lstm(x, (h,)), TypeError, "hx must be a pair .* got 1 of them"),
        (
            lambda: lstm(x, (c, c)),
            ValueError,
            r"hx\[0\] must have shape \[1, 2, 2\], got",
        ),
        (
            lambda: lstm(x, (h, h)),
            ValueError,
            r"hx\[1\] must have shape \[1, 2, 4\], got",
        ),
        (lambda: lstm(x, (h, c.double())), TypeError, r"hx\[1\] must have the module's dtype"),
        (
            lambda: lstm(x[0], (h, c)),
            ValueError,
            r"hx\[0\] must have shape \[1, 2\], got",
        ),
        (lambda: gru(x, c), ValueError, r"hx must have shape \[2, 2, 4\], got \[1, 2, 4\]"),
        (lambda: gru(x, (c, c)), TypeError, "hx must be a tensor, got tuple"),
    )
    for call, error, message in calls:
        with pytest.raises(error, match=message):
            call()


def _python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_document() -> None:
    """Its blocks of Python are one program."""
    document = (Path(__file__).parents[1] / "docs" / "torch.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    exec("\n".join(blocks), {})


def test_the_package_does_not_import_torch() -> None:
    _python(
        "import sys, charrnn_fast as cf\n"
        "for name in cf.__all__: getattr(cf, name)\n"
        "assert 'torch' not in sys.modules\n"
        "sys.modules['torch'] = None\n"
        "try: import charrnn_fast.torch\n"
        "except ModuleNotFoundError as error: assert 'charrnn_fast[torch]' in str(error), error\n"
        "else: raise SystemExit('imported')\n"
    )


# ---- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
def test_training(name: str) -> None:
    """Thirty updates beside torch.nn's module: the losses stay together and fall."""
    curves = []
    for library in (modules, torch.nn):
        torch.manual_seed(0)
        rnn, out = getattr(library, name)(3, 16, num_layers=2), torch.nn.Linear(16, 3)
        leaves = [*rnn.parameters(), *out.parameters()]
        optimizer = torch.optim.Adam(leaves, lr=1e-2)
        x = torch.rand(9, 8, 3)
        curve = []
        for _ in range(30):
            loss = (out(rnn(x)[0])[:-1] - x[1:]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(leaves, 1.0)
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0][-1] < curves[0][0] / 2
    tolerance = 2 * 30 * network("float32", terms=72, steps=11)
    assert_close("losses", curves[0], curves[1], tolerance)


_DDP = """
import sys
import torch
import torch.distributed as dist
import charrnn_fast.torch as modules

rank, file, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
torch.manual_seed(0)
module = torch.nn.parallel.DistributedDataParallel(modules.LSTM(3, 8, num_layers=2))
optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
torch.manual_seed(1)
x = torch.rand(5, 4, 3)
for _ in range(3):
    optimizer.zero_grad()
    module(x[:, 2 * rank : 2 * rank + 2])[0].square().mean().backward()
    optimizer.step()
torch.save(module.module.state_dict(), out)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_data_parallel(tmp_path: Path) -> None:
    """Two processes with half of the batch each end with equal weights: those of one with all."""
    script = tmp_path / "train.py"
    script.write_text(_DDP)
    arguments = [
        [str(rank), str(tmp_path / "store"), str(tmp_path / f"{rank}.pt")] for rank in (0, 1)
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *given],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for given in arguments
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    torch.manual_seed(0)
    module = modules.LSTM(3, 8, num_layers=2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    torch.manual_seed(1)
    x = torch.rand(5, 4, 3)
    for _ in range(3):
        optimizer.zero_grad()
        module(x)[0].square().mean().backward()
        optimizer.step()
    first, second = (torch.load(arguments[rank][2]) for rank in (0, 1))
    assert_equal(list(first.values()), list(second.values()))
    tolerance = 3 * network("float32", terms=20, steps=7)
    assert_alike(list(first.values()), list(module.state_dict().values()), tolerance)

"""The kernels against PyTorch, from the same weights, in the same dtype.

PyTorch rounds too, so two errors are allowed where the float64 reference allows one.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import charrnn_fast as cf
from cases import (
    BIASES,
    UNITS,
    Array,
    Case,
    cases,
    moved_off_kinks,
    named,
    off_kinks,
    parts,
    run,
)
from charrnn_fast import reference
from tolerances import assert_close, elementwise, losses, network

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
torch.set_num_threads(1)


class _Peer(torch.nn.Module):  # type: ignore[misc]
    """torch.nn.RNN, LSTM or GRU with a Linear on top, holding a case's weights."""

    def __init__(self, case: Case, parameters: dict[str, Array]) -> None:
        super().__init__()
        sizes, dtype = (case.input_size, case.hidden_size), getattr(torch, case.dtype)
        options: dict[str, Any] = {"num_layers": case.num_layers, "bias": bool(case.bias)}
        if case.kind["cell"] == "rnn":
            options["nonlinearity"] = case.kind["nonlinearity"]
        self.rnn = getattr(torch.nn, case.kind["cell"].upper())(*sizes, **options, dtype=dtype)
        self.decoder = None
        if case.output_size:
            self.decoder = torch.nn.Linear(
                case.hidden_size, case.output_size, bias=bool(case.bias), dtype=dtype
            )
        self.one_hot = torch.eye(case.input_size, dtype=dtype) if case.tokens else None
        with torch.no_grad():
            for name, parameter in self.rnn.named_parameters():
                # "single": PyTorch's second bias stays zero
                parameter.copy_(torch.from_numpy(parameters.get(name, np.zeros(parameter.shape))))
            for name, parameter in self.named_parameters():
                if name.startswith("decoder"):
                    parameter.copy_(torch.from_numpy(parameters[name]))

    def forward(self, x: Any, state: Any = None) -> tuple[Any, Any]:
        h, last = self.rnn(x if self.one_hot is None else self.one_hot[x], state)
        return h if self.decoder is None else self.decoder(h), last

    def gradients(self, names: Any) -> dict[str, Array]:
        found = {name.removeprefix("rnn."): p.grad for name, p in self.named_parameters()}
        return {name: found[name].numpy() for name in names}


def _tensor(array: Array, *, leaf: bool = False) -> Any:
    return torch.from_numpy(array.copy()).requires_grad_(leaf)


def _run_torch(parameters: dict[str, Array], case: Case) -> dict[str, Array]:
    peer = _Peer(case, parameters)
    x = _tensor(case.x(), leaf=not case.tokens)
    first = tuple(_tensor(s, leaf=True) for s in parts(case.state()))
    y, last = peer(x, first if len(first) == 2 else first[0])
    results = y, *parts(last)
    torch.autograd.backward(
        results, [_tensor(g) for g in (case.dy(), *parts(case.dstate()))], inputs=None
    )
    state, dstate = (
        [a.detach().numpy() for a in s] for s in (results[1:], [s.grad for s in first])
    )
    dx = None if case.tokens else x.grad.numpy()
    grads = peer.gradients(parameters)
    return dict(named(y.detach().numpy(), tuple(state), dx, tuple(dstate), grads))


def _compare(case: Case) -> None:
    net = case.network()
    parameters = {name: np.array(value) for name, value in net.parameters().items()}
    tolerance = 2 * network(case.dtype, terms=case.terms, steps=case.steps)
    found, expected = run(net, case), _run_torch(parameters, case)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert_close(name, found[name], value, tolerance)


# PyTorch refuses empty sequences; these are compared with the reference
@given(case=cases(min_seq_len=1))
def test_forward_and_backward(case: Case) -> None:
    assume(off_kinks(case))
    _compare(case)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("unit", UNITS)
def test_every_kind(unit: str, num_layers: int, bias: bool | str, dtype: str) -> None:
    case = Case(unit, num_layers, bias, dtype, seq_len=9, input_size=7, hidden_size=17)
    for tokens, output_size in itertools.product((False, True), (None, 7)):
        _compare(moved_off_kinks(case.but(tokens=tokens, output_size=output_size)))


@given(
    size=st.integers(1, 300),
    dtype=st.sampled_from(("float32", "float64")),
    reduction=st.sampled_from(("mean", "sum")),
    spread=st.sampled_from((1.0, 30.0)),
    seed=st.integers(0, 2**16),
)
def test_cross_entropy(size: int, dtype: str, reduction: str, spread: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.uniform(-spread, spread, (5, 4, size)).astype(dtype)
    targets = rng.integers(-1, size, (5, 4))
    assume((targets != -1).any())  # PyTorch's mean of nothing is NaN
    loss, dlogits = cf.cross_entropy(logits, targets, reduction)
    leaf = _tensor(logits, leaf=True)
    expected = torch.nn.functional.cross_entropy(
        leaf.flatten(0, 1), _tensor(targets).flatten(), ignore_index=-1, reduction=reduction
    )
    expected.backward()
    tolerance = 2 * losses(dtype, classes=size, rows=targets.size, largest=spread)
    assert_close("loss", loss, expected.item(), tolerance)
    assert_close("dlogits", dlogits, leaf.grad, tolerance)


@given(
    size=st.integers(1, 100),
    dtype=st.sampled_from(("float32", "float64")),
    reduction=st.sampled_from(("mean", "sum")),
    spread=st.sampled_from((1.0, 30.0)),
    seed=st.integers(0, 2**16),
)
def test_cross_entropy_with_weights_of_classes(
    size: int, dtype: str, reduction: str, spread: float, seed: int
) -> None:
    """PyTorch's weights are those of the classes: each row has its target's."""
    rng = np.random.default_rng(seed)
    logits = rng.uniform(-spread, spread, (5, 4, size)).astype(dtype)
    targets = rng.integers(-1, size, (5, 4))
    classes = np.maximum(rng.uniform(-0.5, 1, size), 0).astype(dtype)
    weights = np.where(targets == -1, dtype == "float32", classes[targets]).astype(dtype)
    counts = weights[targets != -1].sum(dtype="float64")
    assume(counts > 0)  # PyTorch's mean of nothing is NaN
    loss, dlogits = cf.cross_entropy(logits, targets, reduction, weights=weights)
    leaf = _tensor(logits, leaf=True)
    expected = torch.nn.functional.cross_entropy(
        leaf.flatten(0, 1),
        _tensor(targets).flatten(),
        weight=_tensor(classes),
        ignore_index=-1,
        reduction=reduction,
    )
    expected.backward()
    tolerance = 2 * losses(dtype, classes=size, rows=targets.size, largest=spread)
    assert_close("loss", loss, expected.item(), tolerance)
    assert_close("dlogits", dlogits, leaf.grad, tolerance)


@given(
    shape=st.lists(st.sampled_from((1, 2, 7, 16, 33)), min_size=0, max_size=2),
    dtype=st.sampled_from(("float32", "float64")),
    reduction=st.sampled_from(("mean", "sum")),
    weighted=st.booleans(),
    spread=st.sampled_from((1.0, 30.0)),
    seed=st.integers(0, 2**16),
)
def test_losses_of_elements(
    shape: list[int], dtype: str, reduction: str, weighted: bool, spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = np.asarray(rng.uniform(-spread, spread, shape)).astype(dtype)
    z = np.asarray(np.clip(rng.uniform(-0.5, 1.5, shape), 0, 1)).astype(dtype)
    weights = np.asarray(np.maximum(rng.uniform(-0.5, 1, shape), 0)).astype(dtype)
    assume(not weighted or weights.any())
    functional = torch.nn.functional
    # PyTorch sums in the dtype of the elements
    sums = elementwise(dtype, operations=4 + x.size)
    for ours, theirs, tolerance in (
        (
            cf.binary_cross_entropy,
            functional.binary_cross_entropy_with_logits,
            losses(dtype, classes=2, rows=x.size, largest=spread) + sums,
        ),
        (cf.mean_square, functional.mse_loss, sums),
    ):
        loss, gradient = ours(x, z, reduction, weights=weights if weighted else None)
        leaf = _tensor(x, leaf=True)
        if weighted:  # its means differ in what they divide by
            expected = (_tensor(weights) * theirs(leaf, _tensor(z), reduction="none")).sum()
            expected = expected / (_tensor(weights).sum() if reduction == "mean" else 1)
        else:
            expected = theirs(leaf, _tensor(z), reduction=reduction)
        expected.backward()
        assert_close(ours.__name__, loss, expected.item(), 2 * tolerance)
        assert_close(f"d {ours.__name__}", gradient, leaf.grad, 2 * tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("limit", [0.1, 1.0, 1000.0])
def test_clipping(limit: float, dtype: str) -> None:
    case = Case("gru", 2, dtype=dtype, output_size=5)
    net = case.network()
    net.forward(case.x())
    _, _, grads = net.backward(case.dy())
    tensors = [_tensor(np.ascontiguousarray(grad), leaf=True) for grad in grads.values()]
    for tensor, grad in zip(tensors, grads.values(), strict=True):
        tensor.grad = _tensor(np.ascontiguousarray(grad))
    tolerance = 2 * elementwise(dtype, operations=sum(grad.size for grad in grads.values()))
    expected = torch.nn.utils.clip_grad_norm_(tensors, limit).item()
    assert_close("norm", cf.clip_grad_norm(grads, limit), expected, tolerance)
    for tensor, (name, grad) in zip(tensors, grads.items(), strict=True):
        assert_close(name, grad, tensor.grad, tolerance)
    torch.nn.utils.clip_grad_value_(tensors, limit / 10)
    cf.clip_grad_value(grads, limit / 10)
    for tensor, (name, grad) in zip(tensors, grads.items(), strict=True):
        assert_close(name, grad, tensor.grad, tolerance)


RULES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("RMSprop", {}),
    ("RMSprop", {"alpha": 0.9, "momentum": 0.8, "weight_decay": 0.1}),
    ("RMSprop", {"alpha": 0.9, "centered": True, "eps": 1e-3}),
    ("RMSprop", {"alpha": 0.95, "centered": True, "momentum": 0.5, "eps": 1e-2}),
    ("Adagrad", {}),
    ("Adagrad", {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5}),
    ("Adagrad", {"eps": 1e-2}),
    ("Adam", {}),
    ("Adam", {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    ("AdamW", {}),
    ("AdamW", {"betas": (0.8, 0.95), "weight_decay": 0.3}),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rule", "options"), RULES, ids=str)
def test_optimizers(rule: str, options: dict[str, Any], dtype: str) -> None:
    """Eight updates by the same gradients: the kernels, the NumPy reference and torch.optim."""
    case = Case("lstm", 2, dtype=dtype, input_size=3, hidden_size=5, output_size=3)
    net, steps = case.network(), 8
    by_numpy = {name: np.array(value) for name, value in net.parameters().items()}
    tensors = {name: _tensor(np.array(value), leaf=True) for name, value in by_numpy.items()}
    optimizers = (
        getattr(cf.optim, rule)(net, lr=0.5, **options),
        getattr(reference, rule)(by_numpy, lr=0.5, **options),
    )
    peer = getattr(torch.optim, rule)(tensors.values(), lr=0.5, **options)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        grads = {n: rng.standard_normal(v.shape).astype(dtype) for n, v in by_numpy.items()}
        for name, tensor in tensors.items():
            tensor.grad = _tensor(grads[name])
        for optimizer in optimizers:
            optimizer.step({name: grad.copy() for name, grad in grads.items()})
        peer.step()
    # some ten operations a step; centered RMSprop takes a root of a difference besides
    tolerance = 2 * elementwise(dtype, operations=10 * steps)
    for name, tensor in tensors.items():
        expected = tensor.detach().numpy()
        assert_close(name, net.parameters()[name], expected, tolerance)
        assert_close(f"{name} by NumPy", by_numpy[name], expected, tolerance)


@pytest.mark.parametrize("unit", UNITS)
def test_default_hyperparameters_are_pytorchs(unit: str) -> None:
    for rule in ("SGD", "RMSprop", "Adagrad", "Adam", "AdamW"):
        net = Case(unit).network()
        before = {name: np.array(value) for name, value in net.parameters().items()}
        tensors = {name: _tensor(value, leaf=True) for name, value in before.items()}
        grads = {name: np.full_like(value, 0.5) for name, value in before.items()}
        for name, tensor in tensors.items():
            tensor.grad = _tensor(grads[name])
        optimizer, peer = getattr(cf.optim, rule)(net), getattr(torch.optim, rule)(tensors.values())
        for _ in range(3):
            optimizer.step(grads)
            peer.step()
        tolerance = 2 * elementwise("float32", operations=30)
        for name, tensor in tensors.items():
            found, expected = net.parameters()[name], tensor.detach().numpy()
            # against the update itself: a wrong learning rate must not hide behind the weight
            scale = np.abs(expected - before[name]).max()
            difference = (found - expected) / scale
            assert_close(name, difference, np.zeros_like(difference), tolerance / scale)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("unit", UNITS)
def test_training(unit: str, dtype: str) -> None:
    """Thirty updates of a language model with carried state, clipping and Adam."""
    case = Case(
        unit, 2, dtype=dtype, tokens=True, seq_len=9, input_size=11, hidden_size=16, output_size=11
    )
    net = case.network()
    peer = _Peer(case, {name: np.array(value) for name, value in net.parameters().items()})
    ours, theirs = cf.optim.Adam(net, lr=1e-2), torch.optim.Adam(peer.parameters(), lr=1e-2)
    state, carried, curves = None, None, []
    for update in range(30):
        tokens = case.but(seed=update % 3, seq_len=10).x()
        y, state = net.forward(tokens[:-1], state)
        loss, dy = cf.cross_entropy(y, tokens[1:])
        _, _, grads = net.backward(dy)
        cf.clip_grad_norm(grads, 1.0)
        ours.step(grads)

        theirs.zero_grad()
        z, carried = peer(torch.from_numpy(tokens[:-1]), carried)
        carried = tuple(s.detach() for s in carried) if unit == "lstm" else carried.detach()
        expected = torch.nn.functional.cross_entropy(
            z.flatten(0, 1), torch.from_numpy(tokens[1:]).flatten()
        )
        expected.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        theirs.step()
        curves.append((loss, expected.item()))
    tolerance = 2 * 30 * network(dtype, terms=case.terms, steps=case.steps)
    assert curves[-1][1] < curves[0][1] - 0.1
    ours_curve, theirs_curve = np.transpose(curves)
    assert_close("losses", ours_curve, theirs_curve, tolerance)
    for name, value in peer.named_parameters():
        found = net.parameters()[name.removeprefix("rnn.")]
        assert_close(name, found, value.detach(), tolerance)


# ---- rounding errors --------------------------------------------------------------------------


def _relative_rms(found: Any, exact: Any) -> float:
    error = np.asarray(found, "float64") - np.asarray(exact)
    return float(np.sqrt(np.square(error).mean() / np.square(exact).mean()))


@pytest.mark.parametrize("unit", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize(("seq_len", "batch", "hidden"), [(2000, 8, 128), (20, 8, 1024)])
def test_errors_are_pytorchs(unit: str, seq_len: int, batch: int, hidden: int) -> None:
    """Of outputs and of every gradient in float32, against PyTorch in float64."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((seq_len, batch, 65), "float32")
    dy = rng.standard_normal((seq_len, batch, hidden), "float32")
    net = cf.RNN(65, hidden, cell=unit, seed=1)

    def by_torch(dtype: Any) -> dict[str, Array]:
        peer = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[unit](65, hidden)
        peer.load_state_dict({k: torch.tensor(v) for k, v in net.parameters().items()})
        peer = peer.to(dtype)
        inputs = torch.tensor(x, dtype=dtype, requires_grad=True)
        y, _ = peer(inputs)
        y.backward(torch.tensor(dy, dtype=dtype))
        grads = {name: p.grad.numpy() for name, p in peer.named_parameters()}
        return {"y": y.detach().numpy(), "dx": inputs.grad.numpy(), **grads}

    exact, torchs = by_torch(torch.float64), by_torch(torch.float32)
    y, _ = net.forward(x)
    dx, _, grads = net.backward(dy)
    for name, found in {"y": y, "dx": dx, **grads}.items():
        error, allowed = _relative_rms(found, exact[name]), _relative_rms(torchs[name], exact[name])
        assert error <= 2 * allowed, f"{name}: {error:.3g}, PyTorch's is {allowed:.3g}"

"""The layers for JAX: the bits of `RNN`, gradients, jit, vmap, scan and what else JAX does with
functions; what they refuse."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from cases import Array
from charrnn_fast import _core
from features import (
    LSTMS,
    FeatureCase,
    assert_bits_of_kernels,
    combinations,
    label,
    single_features,
)
from tolerances import assert_same_bits

jax: Any = pytest.importorskip("jax", reason="JAX is not installed")
if not hasattr(_core, "jax_handlers"):
    pytest.skip(
        "this build has no handlers for JAX: CHARRNN_JAX=ON pip install -e .",
        allow_module_level=True,
    )
import jax.numpy as jnp  # noqa: E402

import charrnn_fast.jax as layers  # noqa: E402
from charrnn_fast.jax import operators  # noqa: E402

NETS = (
    layers.RNN(3, 4, 2, nonlinearity="relu", bidirectional=True),
    layers.GRU(3, 4, 2, bias=False),
    layers.LSTM(3, 4, 2, bidirectional=True, proj_size=2),
)
KINDS = pytest.mark.parametrize("net", NETS, ids=["rnn", "gru", "lstm"])


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """float64; and what is around the kernels is compiled fast, as it runs once."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.enable_x64(True):
        yield
    jax.config.update("jax_disable_most_optimizations", before)


def normal(seed: int, *shape: int, dtype: str = "float64") -> Any:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def made(net: Any, dtype: str = "float64") -> Any:
    return net.init(jax.random.key(0), dtype)


def loss(net: Any, parameters: Any, x: Any, *args: Any, **options: Any) -> Any:
    """Of y and the last states, with gradients that differ from element to element."""
    results = jax.tree.leaves(net(parameters, x, *args, **options))
    # of NumPy: compiled, linspace rounds otherwise
    return sum((r * np.linspace(-1, 1, r.size).reshape(r.shape)).sum() for r in results)


def assert_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, a), b in pairs:
        assert_same_bits(jax.tree_util.keystr(path), np.asarray(a), np.asarray(b))


def stacked(values: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *values)


def calls(function: Callable[..., Any], *args: Any) -> list[str]:
    """The primitives of the package that a function binds, those in loops included."""
    return re.findall(r"charrnn_fast_(\w+)\[", str(jax.make_jaxpr(function)(*args)))


# ---- the bits of RNN, with every option ---------------------------------------------------------

KEY = 3


class ByLayers:
    """A case's network as a function of JAX."""

    def __init__(self, case: FeatureCase, parameters: dict[str, Array]) -> None:
        self.case, self.parameters = case, {n: jnp.asarray(p) for n, p in parameters.items()}
        r = case.regularization
        options = {
            **{name: getattr(r, name) for name in r._fields if name != "zoneout"},
            "zoneout": r.zoneout if case.unit in LSTMS else r.zoneout[0],
            "layer_norm": case.layer_norm,
            "num_layers": case.num_layers,
            "bias": case.bias,
            "bidirectional": case.bidirectional,
            "compute_dtype": case.compute_dtype,
        }
        if case.unit in LSTMS:
            options |= {"proj_size": case.proj_size, "cell": case.unit}
        name = "LSTM" if case.unit in LSTMS else case.kind["cell"].upper()
        if name == "RNN":
            options["nonlinearity"] = case.kind["nonlinearity"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"dropout=\S+ does nothing")
            self.net = getattr(layers, name)(case.input_size, case.hidden_size, **options)
        shapes = {n: p.shape for n, p in parameters.items()}
        assert list(self.net.parameter_shapes().items()) == list(shapes.items())

    def forward(self, x: Array, state: Any) -> tuple[Array, Any]:
        key = None if self.case.mask_seed is None else jax.random.key(KEY)
        call = partial(self.net, lengths=self.case.lengths(), dropout_key=key)
        given = (self.parameters, jnp.asarray(x), jax.tree.map(jnp.asarray, state))
        results, self.vjp = jax.vjp(call, *given)
        assert_equal(call(*given), results)  # without a tape
        y, *last = map(np.asarray, jax.tree.leaves(results))
        return y, tuple(last) if len(last) == 2 else last[0]

    def backward(self, dy: Array, dstate: Any) -> Any:
        dparameters, dx, dfirst = self.vjp((jnp.asarray(dy), jax.tree.map(jnp.asarray, dstate)))
        grads = {n: np.asarray(dparameters[n]) for n in self.parameters}
        return np.asarray(dx), jax.tree.map(np.asarray, dfirst), grads


def _mask_seed() -> int:
    high, low = np.asarray(jax.random.bits(jax.random.key(KEY), (2,), "uint32"))
    return int(high) << 32 | int(low)


def _cases() -> list[FeatureCase]:
    cases = [
        case.but(output_size=None, dtype=dtype, mask_seed=seed)
        for case in [*single_features(), *combinations()]
        if not case.tokens and case.bias != "single"
        for dtype in ("float32", "float64")[: 1 + (case.unit == "lstm")]
        for seed in ([None] if case.mask_seed is None else [_mask_seed()])
    ]
    return list(dict.fromkeys(cases))


@pytest.mark.parametrize("unit", ["gru", "lstm"])
def test_rounded_operands(unit: str) -> None:
    case = FeatureCase(unit, mask_seed=None, num_layers=2, compute_dtype="bfloat16")
    assert_bits_of_kernels(case, ByLayers)
    net = layers.GRU(3, 4, compute_dtype="bfloat16")
    assert net != layers.GRU(3, 4) and net == pickle.loads(pickle.dumps(net))
    message = "parameters must be float32 with compute_dtype='bfloat16', got float64"
    with pytest.raises(TypeError, match=message):
        net(made(net), normal(1, 5, 2, 3))


@pytest.mark.parametrize("case", _cases(), ids=lambda c: label(c.but(mask_seed=11)))
def test_the_bits_of_rnn(case: FeatureCase) -> None:
    """Of every cell and option, with masks from a key, lengths of 0 included."""
    assert_bits_of_kernels(case, ByLayers)


@KINDS
def test_derivatives_are_those_of_the_function(net: Any) -> None:
    from jax.test_util import check_grads

    x = normal(1, 4, 2, 3)
    state = jax.tree.map(lambda s: s + 0.5, net(made(net), x)[1])
    check_grads(net, (made(net), x, state), order=1, modes=["rev"])


@KINDS
def test_inputs_without_a_batch_and_with_lengths(net: Any) -> None:
    """A row gives what it gives in a batch; padding is not read."""
    parameters, x = made(net), normal(1, 6, 4, 3)
    lengths = jnp.array([6, 0, 3, 6])
    y, last = net(parameters, x, lengths=lengths)
    for b, length in enumerate(lengths.tolist()):
        alone, state = net(parameters, x[:length, b])
        assert_equal(y[:length, b], alone)
        assert not y[length:, b].any()
        assert_equal(jax.tree.map(lambda s, b=b: s[:, b], last), state)
        found = net(parameters, x[:, b], jax.tree.map(jnp.zeros_like, state), lengths=length)
        assert_equal(found, (y[:, b], state))


@KINDS
def test_sequences_and_batches_of_nothing(net: Any) -> None:
    """Without steps the last state is the first; without rows all is empty, gradients are 0."""
    parameters = made(net)
    state = jax.tree.map(lambda s: s + 0.5, net(parameters, normal(1, 2, 4, 3))[1])
    y, last = net(parameters, jnp.zeros((0, 4, 3)), state)
    assert y.shape[:2] == (0, 4)
    assert_equal(last, state)
    y, last = net(parameters, jnp.zeros((5, 0, 3)))
    assert y.shape[:2] == (5, 0)
    grads = jax.grad(partial(loss, net))(parameters, jnp.zeros((5, 0, 3)))
    assert not any(g.any() for g in grads.values())


# ---- what JAX makes of functions ----------------------------------------------------------------


@KINDS
def test_jit_and_gradients(net: Any) -> None:
    """Compiled or not, of parts of the arguments or all, computed again or kept: the same bits."""
    parameters, x, f = made(net), normal(1, 6, 4, 3), partial(loss, net)
    grads = jax.grad(f, (0, 1))(parameters, x)
    for g in (
        jax.jit(jax.grad(f, (0, 1))),
        jax.grad(jax.jit(f), (0, 1)),
        jax.grad(jax.checkpoint(f), (0, 1)),
        jax.jit(jax.grad(jax.checkpoint(f), (0, 1))),
    ):
        assert_equal(g(parameters, x), grads)
    assert_equal(jax.grad(f, 1)(parameters, x), grads[1])
    assert_equal(jax.jit(jax.grad(f))(parameters, x), grads[0])
    one = jax.grad(lambda w: f(parameters | {"weight_hh_l1": w}, x))(parameters["weight_hh_l1"])
    assert_equal(one, grads[0]["weight_hh_l1"])
    _, vjp = jax.vjp(f, parameters, x)
    for _ in range(2):  # any number of times
        assert_equal(vjp(jnp.ones(())), grads)


def test_only_gradients_keep_a_tape() -> None:
    """And no copy of it is made between forward and backward."""
    net = layers.LSTM(16, 32)
    parameters, x = made(net, "float32"), normal(1, 20, 8, 16, dtype="float32")
    f = partial(loss, net)
    assert "keep=False" in str(jax.make_jaxpr(f)(parameters, x))
    jax.config.update("jax_disable_most_optimizations", False)
    compiled = jax.jit(jax.grad(f)).lower(parameters, x).compile().as_text()
    words = operators.network(net._network).tape_elements(20, 8, 1, False, False)
    assert f"u32[{words}]" in compiled
    assert not re.search(rf"u32\[{words}\]\S* copy", compiled)


@KINDS
def test_vmap_is_one_larger_batch(net: Any) -> None:
    """Over any axes, of batches or rows, nested; also with gradients outside of it."""
    parameters, x = made(net), normal(1, 7, 6, 3)
    expected = stacked([net(parameters, row) for row in x])
    mapped = jax.vmap(net, (None, 0))
    assert_equal(mapped(parameters, x), expected)
    assert_equal(jax.jit(mapped)(parameters, x), expected)
    assert calls(mapped, parameters, x) == ["forward"]
    back = jax.vmap(net, (None, 2))(parameters, jnp.moveaxis(x, 0, 2))
    assert_equal(back, expected)
    batches = normal(2, 2, 5, 6, 4, 3)
    nested = jax.vmap(jax.vmap(net, (None, 0)), (None, 0))
    wanted = stacked([stacked([net(parameters, b) for b in row]) for row in batches])
    assert_equal(nested(parameters, batches), wanted)
    assert calls(nested, parameters, batches) == ["forward"]

    def of_batch(p: Any) -> Any:
        return (net(p, jnp.moveaxis(x, 0, 1))[0] ** 2).sum()

    def of_rows(p: Any) -> Any:
        return (mapped(p, x)[0] ** 2).sum()

    assert calls(jax.grad(of_rows), parameters) == ["forward", "backward"]
    assert_equal(jax.grad(of_rows)(parameters), jax.grad(of_batch)(parameters))


@KINDS
def test_vmap_of_states_and_lengths(net: Any) -> None:
    parameters, x = made(net), normal(1, 6, 4, 3)
    lengths = jnp.array([[6, 2, 0, 5], [1, 2, 3, 4], [6, 6, 6, 6]])
    first = stacked([jax.tree.map(lambda s, n=n: s + n, net(parameters, x)[1]) for n in range(3)])

    def call(s: Any, n: Any) -> Any:
        return net(parameters, x, s, lengths=n)

    def gradients(s: Any, n: Any) -> Any:
        return jax.grad(lambda x, s: loss(net, parameters, x, s, lengths=n), (0, 1))(x, s)

    rows = [(jax.tree.map(lambda s, n=n: s[n], first), lengths[n]) for n in range(3)]
    for function in (call, gradients):
        found = jax.jit(jax.vmap(function))(first, lengths)
        assert_equal(found, stacked([function(*row) for row in rows]))
        assert len(calls(jax.vmap(function), first, lengths)) == (1 if function is call else 2)


@KINDS
def test_vmap_of_weights_and_gradients_of_rows(net: Any) -> None:
    """What differs from row to row in its weights is one call after another."""
    x = normal(1, 6, 4, 3)
    ensemble = [net.init(jax.random.key(n), "float64") for n in range(3)]
    found = jax.vmap(net, (0, None))(stacked(ensemble), x)
    assert_equal(found, stacked([net(p, x) for p in ensemble]))
    gradient = jax.grad(partial(loss, net))
    found = jax.jit(jax.vmap(gradient, (0, None)))(stacked(ensemble), x)
    assert_equal(found, stacked([gradient(p, x) for p in ensemble]))
    rows = normal(1, 3, 6, 3)
    found = jax.vmap(gradient, (None, 0))(ensemble[0], rows)
    assert_equal(found, stacked([gradient(ensemble[0], row) for row in rows]))


@KINDS
def test_jacobians(net: Any) -> None:
    parameters, x = made(net), normal(1, 3, 3)

    def f(x: Any) -> Any:
        return net(parameters, x)[0][-1]

    jacobian = jax.jacrev(f)(x)
    y, vjp = jax.vjp(f, x)
    assert_equal(jacobian, jnp.stack([vjp(row)[0] for row in jnp.eye(y.size)]))


def test_tapes_that_vmap_mixes_or_takes_apart() -> None:
    """A tape of several calls is of use only whole; what is not is computed again."""
    net = NETS[2]
    parameters, x = made(net), normal(1, 3, 4, 3)
    where = jnp.array([True, False, True])

    def branch(x: Any, scale: float) -> Any:
        return loss(net, parameters, scale * x)

    def either(x: Any, first: Any) -> Any:
        return jax.lax.cond(first, partial(branch, scale=1), partial(branch, scale=2), x)

    found = jax.vmap(jax.grad(either))(x, where)
    assert_equal(found, stacked([jax.grad(either)(*row) for row in zip(x, where, strict=True)]))

    def pulled(x: Any) -> Any:
        return jax.vjp(lambda x: net(parameters, x)[0], x)

    y, vjps = jax.vmap(pulled)(x)
    order = np.array([2, 0])
    some = jax.tree.map(lambda leaf: leaf[order], vjps)
    found = jax.vmap(lambda vjp, dy: vjp(dy))(some, y[order])
    assert_equal(found, stacked([pulled(x[n])[1](y[n]) for n in order]))
    alone = jax.tree.map(lambda leaf: leaf[1], vjps)
    assert_equal(alone(y[1]), pulled(x[1])[1](y[1]))


@KINDS
def test_scan_of_calls(net: Any) -> None:
    """Truncated backpropagation's shape: chunks, the state carried; of vmap and under it."""
    parameters, chunks = made(net), normal(1, 4, 5, 2, 3)
    first = net(parameters, chunks[0])[1]

    def scanned(parameters: Any, chunks: Any, state: Any) -> Any:
        def step(state: Any, x: Any) -> Any:
            y, state = net(parameters, x, state)
            return state, (y**2).sum()

        return jax.lax.scan(step, state, chunks)[1].sum()

    def unrolled(parameters: Any, chunks: Any, state: Any) -> Any:
        total = jnp.zeros(())
        for x in chunks:
            y, state = net(parameters, x, state)
            total += (y**2).sum()
        return total

    (found, grads), (expected, wanted) = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2)))(parameters, chunks, first)
        for f in (scanned, unrolled)
    )
    np.testing.assert_allclose(found, expected, rtol=64 * np.finfo("float64").eps)
    assert_equal(grads[1:], wanted[1:])
    several = stacked([chunks, chunks + 1])
    gradient = jax.grad(scanned, 1)
    rows = [gradient(parameters, c, first) for c in several]
    assert_equal(jax.vmap(gradient, (None, 0, None))(parameters, several, first), stacked(rows))


def test_masks() -> None:
    """By the key alone; in a vmap by a key each, or one for all; none without."""
    net = layers.LSTM(3, 8, 2, dropout=0.5, weight_drop=0.3)
    parameters, x = made(net), normal(1, 6, 4, 3)
    plain, keys = net(parameters, x), jax.random.split(jax.random.key(1), 3)

    def call(k: Any, x: Any) -> Any:
        return net(parameters, x, dropout_key=k)

    masked = [call(k, x) for k in keys]
    assert len({np.asarray(y).tobytes() for y, _ in [plain, *masked]}) == 4
    assert_equal(call(keys[0], x), masked[0])
    assert_equal(call(jax.random.key_data(keys[0]), x), masked[0])  # of the older kind
    assert_equal(jax.vmap(call, (0, None))(keys, x), stacked(masked))
    several = stacked([x, 2 * x])
    of_all = jax.vmap(call, (None, 0))
    assert_equal(of_all(keys[0], several), stacked([masked[0], call(keys[0], 2 * x)]))
    assert calls(of_all, keys[0], several).count("forward") == 1
    without = layers.LSTM(3, 8, 2)
    assert_equal(without(parameters, x, dropout_key=keys[0]), plain)
    grads = jax.grad(lambda p: loss(net, p, x, dropout_key=keys[0]))(parameters)
    assert_equal(
        jax.jit(jax.grad(lambda p: loss(net, p, x, dropout_key=keys[0])))(parameters), grads
    )


def test_a_network_is_a_static_value() -> None:
    net: Any = layers.LSTM(3, 4, 2, proj_size=2, zoneout=(0.0, 0.1))
    same: Any = layers.LSTM(3, 4, 2, proj_size=2, zoneout=[0.0, 0.1])  # type: ignore[arg-type]
    assert net == same and hash(net) == hash(same)
    assert net != layers.LSTM(3, 4, 2, proj_size=2) and net != layers.GRU(3, 4, 2)
    assert jax.tree.leaves(net) == []
    parameters, x = made(net), normal(1, 6, 4, 3)
    expected = net(parameters, x)

    def call(net: Any, p: Any, x: Any) -> Any:
        return net(p, x)

    assert_equal(jax.jit(call)(net, parameters, x), expected)
    assert_equal(jax.jit(call, static_argnums=0)(net, parameters, x), expected)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other == net
        assert_equal(other(parameters, x), expected)
    assert eval(repr(net), vars(layers)) == net
    with pytest.raises(AttributeError, match="cannot assign to field 'hidden_size'"):
        net.hidden_size = 5


def test_initial_parameters() -> None:
    net = layers.GRU(30, 64, layer_norm=True)
    parameters = made(net, "float32")
    assert_equal(jax.jit(net.init, static_argnums=1)(jax.random.key(0), "float32"), parameters)
    bound = 1 / 8
    for name, p in parameters.items():
        assert p.dtype == "float32" and p.shape == net.parameter_shapes()[name]
        if name.startswith("gain_"):
            assert (p == 1).all()
        else:
            assert bound / 2 < abs(p).max() <= bound
    assert len({np.asarray(p).tobytes() for p in parameters.values() if p.min() != 1}) == 4


def test_training() -> None:
    """Thirty updates by a compiled step that vmap makes of a row: those of a batch, to the bit."""
    net = layers.LSTM(3, 16, 2)
    x = normal(5, 9, 8, 3, dtype="float32")

    def of_batch(p: Any) -> Any:
        return ((net(p["rnn"], x)[0] @ p["out"])[:-1] - x[1:]) ** 2

    def of_rows(p: Any) -> Any:
        y, _ = jax.vmap(lambda row: net(p["rnn"], row), 1, 1)(x)
        return ((y @ p["out"])[:-1] - x[1:]) ** 2

    curves = []
    for f in (of_batch, of_rows):
        p = {"rnn": made(net, "float32"), "out": normal(6, 16, 3, dtype="float32") / 4}

        def step(p: Any, f: Any = f) -> Any:
            value, grads = jax.value_and_grad(lambda p: f(p).mean())(p)
            return value, jax.tree.map(lambda p, g: p - 2 * g, p, grads)

        curve, step = [], jax.jit(step)
        for _ in range(30):
            value, p = step(p)
            curve.append(value)
        curves.append(np.array(curve))
    assert curves[0][-1] < 0.95 * curves[0][0]
    assert_same_bits("losses", curves[0], curves[1])


def test_threads() -> None:
    """Calls of several threads at once, on any number of the package's own."""
    net = layers.GRU(8, 32)
    parameters, x = made(net, "float32"), normal(1, 20, 16, 8, dtype="float32")
    step = jax.jit(jax.grad(partial(loss, net)))
    before = cf.get_num_threads()
    try:
        cf.set_num_threads(1)
        expected = step(parameters, x)
        cf.set_num_threads(2)
        assert_equal(step(parameters, x), expected)
        found: list[Any] = []

        def work() -> None:
            with jax.enable_x64(True):
                for _ in range(10):
                    found.append(step(parameters, x))

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        cf.set_num_threads(before)
    assert len(found) == 30
    for grads in found:
        assert_equal(grads, expected)


_LOADED = """
import sys
import jax
import numpy as np
import charrnn_fast.jax
with open(sys.argv[1], "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
print(np.asarray(program.call(np.ones((int(sys.argv[2]), 2, 3), "float32"))).tobytes().hex())
"""


def test_export(tmp_path: Path) -> None:
    """A program of any T, of a gradient too, runs in a process that knows nothing of it."""
    net = layers.LSTM(3, 4)
    parameters = made(net, "float32")
    check = jax.export.DisabledSafetyCheck.custom_call
    names = ("charrnn_fast_forward", "charrnn_fast_backward")
    (T,) = jax.export.symbolic_shape("T")

    def gradient(x: Any) -> Any:
        return jax.grad(lambda x: (net(parameters, x)[0] ** 2).sum())(x)

    program = jax.export.export(jax.jit(gradient), disabled_checks=[*map(check, names)])(
        jax.ShapeDtypeStruct((T, 2, 3), "float32")
    )
    file = tmp_path / "program"
    file.write_bytes(program.serialize())
    for steps in (4, 7):
        printed = _python(_LOADED, str(file), str(steps))
        expected = np.asarray(gradient(jnp.ones((steps, 2, 3), "float32")))
        assert printed.strip() == expected.tobytes().hex()


# ---- refusals -----------------------------------------------------------------------------------


def test_derivatives_that_are_not_there() -> None:
    net = NETS[2]
    parameters, x = made(net), normal(1, 5, 2, 3)
    f = partial(loss, net, parameters)
    forward: tuple[Callable[[], Any], ...] = (
        lambda: jax.jvp(f, (x,), (x,)),
        lambda: jax.jit(lambda x: jax.jvp(f, (x,), (x,)))(x),
        lambda: jax.jacfwd(f)(x),
        lambda: jax.linearize(f, x)[1](x),
    )
    for call in forward:
        with pytest.raises(NotImplementedError, match=r"charrnn_fast\.jax has no forward-mode"):
            call()
    second: tuple[Callable[[], Any], ...] = (
        lambda: jax.hessian(f)(x),
        lambda: jax.grad(lambda x: jax.grad(f)(x).sum())(x),
        lambda: jax.jvp(jax.grad(f), (x,), (x,)),
    )
    for call in second:
        with pytest.raises(
            NotImplementedError, match=r"charrnn_fast\.jax has no second derivatives"
        ):
            call()


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("LSTM", {"hidden_size": 0}, ValueError, "hidden_size must be >= 1, got 0"),
        ("LSTM", {"hidden_size": 2.0}, TypeError, "hidden_size must be an integer >= 1, got 2.0"),
        ("LSTM", {"input_size": 0}, ValueError, "input_size must be >= 1, got 0"),
        ("LSTM", {"num_layers": 0}, ValueError, "num_layers must be >= 1, got 0"),
        ("LSTM", {"proj_size": 4}, ValueError, "proj_size must be less than hidden_size=4, got 4"),
        ("LSTM", {"bias": 1}, TypeError, "bias must be True or False, got int"),
        ("LSTM", {"dropout": 1.0}, ValueError, "dropout must be .*below 1, got 1.0"),
        ("LSTM", {"weight_drop": "x"}, TypeError, "weight_drop must be a number .* got 'x'"),
        ("LSTM", {"cell": "gru"}, ValueError, "cell must be one of 'lstm', .* got 'gru'"),
        ("LSTM", {"proj_size": 2, "zoneout": 0.1}, ValueError, "h cannot be zoned out behind"),
        ("RNN", {"nonlinearity": "sin"}, ValueError, "nonlinearity must be one of 'tanh', 'relu'"),
        ("RNN", {"proj_size": 2}, TypeError, "proj_size"),
        ("GRU", {"zoneout": (0.1, 0.1)}, ValueError, "second rate of zoneout must be 0"),
        ("GRU", {"compute_dtype": "half"}, ValueError, "compute_dtype must be one of 'float32'"),
        ("GRU", {"compute_dtype": "tf32"}, ValueError, "compute_dtype must be .* on cpu, got 'tf"),
    ],
)
def test_what_constructors_refuse(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(layers, name)(**{"input_size": 3, "hidden_size": 4, **options})


def test_dropout_of_one_layer_warns() -> None:
    with pytest.warns(UserWarning, match="dropout=0.5 does nothing in a network of one layer"):
        layers.LSTM(3, 4, dropout=0.5)


def test_what_calls_refuse() -> None:
    lstm: Any = layers.LSTM(3, 4, proj_size=2)
    gru: Any = layers.GRU(3, 4, bidirectional=True)
    p, q = made(lstm), made(gru)
    x, h, c = normal(1, 5, 2, 3), normal(1, 1, 2, 2), normal(1, 1, 2, 4)
    single = {n: w.astype("float32") for n, w in p.items()}
    half = {n: w.astype("bfloat16") for n, w in p.items()}
    cases: tuple[tuple[Callable[[], Any], Any, str], ...] = (
        (lambda: lstm(p, 1.0), TypeError, "x must be an array, got float"),
        (
            lambda: lstm(p, x[..., :2]),
            ValueError,
            r"x must have shape \[T, B, 3\] or \[T, 3\], got",
        ),
        (lambda: lstm(p, x[None]), ValueError, r"got \[1, 5, 2, 3\]"),
        (
            lambda: lstm(single, x),
            TypeError,
            "x must have the parameters' dtype float32, got float",
        ),
        (lambda: lstm(half, x), TypeError, "parameters must be float32 or float64, got bfloat16"),
        (lambda: lstm([p], x), TypeError, "parameters must be a dict of arrays, got list"),
        (lambda: lstm(q, x), ValueError, "parameters must have 'weight_hr_l0', got"),
        (lambda: lstm(p | {"w": x}, x), ValueError, "parameters must be .* got 'w' too"),
        (
            lambda: lstm(p | {"weight_hh_l0": c}, x),
            ValueError,
            r"weight_hh_l0 must have shape \[16, 2\], got \[1, 2, 4\]",
        ),
        (
            lambda: lstm(p | {"bias_hh_l0": single["bias_hh_l0"]}, x),
            TypeError,
            "bias_hh_l0 must have the parameters' dtype float64, got float32",
        ),
        (lambda: lstm(p, x, h), TypeError, r"state must be a pair of arrays \(h_0, c_0\), got Arr"),
        (lambda: lstm(p, x, (h,)), TypeError, "state must be a pair .* got 1 of them"),
        (lambda: lstm(p, x, (c, c)), ValueError, r"state\[0\] must have shape \[1, 2, 2\], got"),
        (lambda: lstm(p, x, (h, h)), ValueError, r"state\[1\] must have shape \[1, 2, 4\], got"),
        (lambda: gru(q, x, c), ValueError, r"state must have shape \[2, 2, 4\], got \[1, 2, 4\]"),
        (lambda: gru(q, x, (c, c)), TypeError, "state must be an array, got tuple"),
        (lambda: gru(q, x, lengths=[6, 1]), ValueError, r"lengths\[0\] must be in 0 to 5, got 6"),
        (lambda: gru(q, x, lengths=[1]), ValueError, r"lengths must have shape \[2\], got \[1\]"),
        (lambda: gru(q, x, lengths=[1.0, 2.0]), TypeError, "lengths must be integers, got float64"),
        (lambda: lstm.init(jax.random.key(0), "bfloat16"), TypeError, "dtype must be float32 or"),
    )
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"lengths\[1\] must be in 0 to 5, got 6"):
        jax.jit(lambda n: gru(q, x, lengths=n))(jnp.array([1, 6]))[0].block_until_ready()
    with jax.enable_x64(False), pytest.raises(TypeError, match="float64 takes jax_enable_x64"):
        lstm.init(jax.random.key(0), "float64")


def test_what_handlers_refuse() -> None:
    """Of any program, before memory is read."""
    net = layers.LSTM(3, 4)
    p, x, h = list(made(net).values()), normal(1, 5, 2, 3), normal(1, 1, 2, 4)
    like = partial(jax.ShapeDtypeStruct, dtype="float64")
    results = [like((5, 2, 4)), like((1, 2, 4)), like((1, 2, 4))]
    good = {
        "network": net._network,
        "folds": np.int64(1),
        "ragged": False,
        "masked": False,
        "keep": False,
    }

    def call(operands: Any, results: Any = results, **changes: Any) -> Any:
        run = jax.ffi.ffi_call("charrnn_fast_forward", results)
        return jax.block_until_ready(run(*operands, **(good | changes)))

    operands = [x, h, h, *p]
    y, state = net(dict(zip(net.parameter_shapes(), p, strict=True)), x, (h, h))
    assert_equal(call(operands), [y, *state])
    other = net._network.replace
    cases: tuple[tuple[Callable[[], Any], str], ...] = (
        (lambda: call([x.astype("bfloat16"), *operands[1:]]), "x must have dtype float32 or float"),
        (lambda: call([x[0], *operands[1:]]), r"x must have shape \[T, B, I\], got \[2, 3\]"),
        (
            lambda: call([x[..., :2], *operands[1:]]),
            r"x must have shape \[5, 2, 3\], got \[5, 2, 2",
        ),
        (lambda: call([x, h, h[:, :1], *p]), r"c_0 must have shape \[1, 2, 4\], got \[1, 1, 4\]"),
        (lambda: call([x, h.astype("float32"), h, *p]), "h_0 must have XLA's type 12, got 11"),
        (lambda: call(operands[:-1]), "bias_hh_l0 must be operand 6, got 6"),
        (lambda: call([*operands, x]), "the call must have 7 operands, got 8"),
        (lambda: call([]), "x must have dtype"),
        (lambda: call(operands, results[:2]), "last c must be result 2, got 2"),
        (lambda: call(operands, [*results, like((3,))]), "the call must have 3 results, got 4"),
        (lambda: call(operands, [like((5, 2, 3)), *results[1:]]), r"y must have shape \[5, 2, 4\]"),
        (lambda: call(operands, folds=np.int64(3)), "folds must divide the batch 2, got 3"),
        (lambda: call(operands, folds=np.int64(0)), "folds must divide the batch 2, got 0"),
        (lambda: call(operands, keep=True), "tape must be result 3, got 3"),
        (lambda: call(operands, masked=True), "seed must be operand 7, got 7"),
        (lambda: call(operands, network="[]"), "network must be an object of JSON"),
        (lambda: call(operands, network="{"), "INVALID_ARGUMENT"),
        (lambda: call(operands, network=other('"cell"', '"kind"')), "must have no key 'kind'"),
        (lambda: call(operands, network=other("lstm", "mlp")), "cell must be"),
        (
            lambda: call(operands, network=other(":4", ":4.5")),
            "hidden_size must be an integer >= 0",
        ),
        (lambda: call(operands, network=other("false", "0")), "must be true or false, got .0"),
    )
    for make, message in cases:
        with pytest.raises(jax.errors.JaxRuntimeError, match=message):
            make()


def _python(code: str, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks of Python are one program."""
    document = (Path(__file__).parents[1] / "docs" / "jax.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    with jax.enable_x64(False):
        exec("\n".join(blocks), {})


def test_the_package_does_not_import_jax() -> None:
    """What is missing is said: JAX, or the handlers."""
    _python(
        "import sys, charrnn_fast as cf\n"
        "for name in cf.__all__: getattr(cf, name)\n"
        "assert 'jax' not in sys.modules\n"
        "sys.modules['jax'] = None\n"
        "try: import charrnn_fast.jax\n"
        "except ModuleNotFoundError as error: assert 'charrnn_fast[jax]' in str(error), error\n"
        "else: raise SystemExit('imported')\n"
    )
    _python(
        "from charrnn_fast import _core\n"
        "del _core.jax_handlers\n"
        "try: import charrnn_fast.jax\n"
        "except ImportError as error: assert 'CHARRNN_JAX=ON' in str(error), error\n"
        "else: raise SystemExit('imported')\n"
    )

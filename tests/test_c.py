"""The C interface, by ctypes from the header's declarations alone, beside the Python package."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from c_header import HEADER, FailedError, Library, path_of_library
from charrnn_fast import _core, optim, registry
from installed import ROOT, run

pytestmark = pytest.mark.unsanitized("loads a library that is installed without sanitizers")

KEPT = Path(__file__).parent / "kept" / "0.1.0.safetensors"
WEIGHTS = (None, "bfloat16", "int8")  # CHARRNN_WEIGHTS_...
T, B, H, V = 5, 3, 7, 6  # V: features of x as well
INVALID, NO_FILE, BAD_CHECKPOINT, NO_DEVICE = 1, 3, 4, 6
# Of the models of this file; tests/test_cuda.py runs them on the emulated card, too.
DEVICE = os.environ.get("CHARRNN_TEST_C_DEVICE", "cpu").encode()


@pytest.fixture(scope="module")
def c() -> Any:
    return Library(path_of_library())


def address(array: Any) -> Any:
    return None if array is None else array.ctypes.data_as(ctypes.c_void_p)


def integers(array: Any, kind: Any = ctypes.c_int32) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


class Model:
    """A model of C with the shape and the parameters of an RNN."""

    def __init__(self, c: Any, rnn: cf.RNN) -> None:
        self.c, self.rnn, self.handle = c, rnn, ctypes.c_void_p()
        rates = {name: getattr(rnn, name) for name in registry.DROPOUT_RATES}
        shape = c.struct(
            "shape",
            cell=rnn.cell.encode(),
            nonlinearity=rnn.nonlinearity.encode(),
            input_size=rnn.input_size,
            hidden_size=rnn.hidden_size,
            output_size=rnn.output_size or 0,
            num_layers=rnn.num_layers,
            proj_size=rnn.proj_size,
            dtype=int(rnn.dtype == np.float64),
            bias={True: 0, "double": 0, "single": 1, False: 2, "none": 2}[rnn.bias],
            bidirectional=rnn.bidirectional,
            layer_norm=rnn.layer_norm,
            variational=rnn.variational,
            compute_dtype=registry.COMPUTE_DTYPES.index(rnn.compute_dtype),
            zoneout_h=rnn.zoneout[0],
            zoneout_c=rnn.zoneout[1],
            **rates,
        )
        c.model_create_on(ctypes.byref(shape), DEVICE, ctypes.byref(self.handle))
        for name, parameter in rnn.parameters().items():
            values = np.ascontiguousarray(parameter)
            c.model_set_parameter(self.handle, name.encode(), address(values), values.size)

    def close(self) -> None:
        self.c.model_destroy(self.handle)

    def zeros(self, *shape: int) -> Any:
        return np.zeros(shape, self.rnn.dtype)

    def state(self, batch: int = B) -> Any:
        return self.zeros(self.c.model_state_elements(self.handle, batch))

    def batch(self, x: Any, lengths: Any = None, mask_seed: Any = None) -> Any:
        tokens = x.dtype == np.int32
        kept = self.c.struct(
            "batch",
            seq_len=x.shape[0],
            batch=x.shape[1],
            tokens=integers(x) if tokens else None,
            x=None if tokens else address(x),
            lengths=None if lengths is None else integers(lengths, ctypes.c_int64),
            mask_seed=None if mask_seed is None else ctypes.pointer(ctypes.c_uint64(mask_seed)),
        )
        return ctypes.byref(kept)

    def parameters(self) -> dict[str, Any]:
        found = {}
        for i in range(self.c.model_num_parameters(self.handle)):
            entry = self.c.struct("parameter")
            self.c.model_parameter(self.handle, i, ctypes.byref(entry))
            values = self.zeros(entry.rows, entry.cols) if entry.cols else self.zeros(entry.rows)
            self.c.model_get_parameter(self.handle, entry.name, address(values), values.size)
            found[entry.name.decode()] = values
        return found

    def gradients(self, flat: Any) -> dict[str, Any]:
        found = {name: np.empty_like(values) for name, values in self.parameters().items()}
        for name, values in found.items():
            given = (self.handle, address(flat), name.encode(), address(values), values.size)
            self.c.model_get_gradient(*given)
        return found


def equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].tobytes() == np.ascontiguousarray(values).tobytes(), name


def flat_state(state: Any) -> Any:
    parts = state if isinstance(state, tuple) else (state,)
    return np.concatenate([part.reshape(-1) for part in parts])


NETWORKS: dict[str, dict[str, Any]] = {
    "rnn": {"cell": "rnn", "nonlinearity": "relu"},
    "gru": {"cell": "gru", "num_layers": 2, "dropout": 0.3, "bias": "single"},
    "lstm": {"cell": "lstm", "bidirectional": True, "output_size": None},
    "float64": {"cell": "peephole_lstm", "dtype": "float64", "proj_size": 3, "weight_drop": 0.2},
    "normalized": {"cell": "coupled_lstm", "layer_norm": True, "zoneout": (0.1, 0.2)},
    "bfloat16": {"cell": "gru", "compute_dtype": "bfloat16"},
}


@pytest.fixture(params=NETWORKS)
def model(c: Any, request: pytest.FixtureRequest) -> Iterator[Model]:
    options = {"output_size": V, "seed": 3, **NETWORKS[request.param]}
    made = Model(c, cf.RNN(V, H, **options))
    yield made
    made.close()


# ---- the library ----


def test_the_symbols_are_the_headers(c: Any) -> None:
    """No C++ name, no name of a library within."""
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(path_of_library())], capture_output=True, text=True
    ).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    assert names == {f"{name}@@CHARRNN_1" for name in c.names} | {"CHARRNN_1"}
    assert len(c.names) > 50


@pytest.mark.parametrize(("language", "standard"), [("c", "c11"), ("c++", "c++17")])
def test_the_header_compiles(language: str, standard: str) -> None:
    flags = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-x", language)
    use = f'#include "{HEADER}"\ncharrnn_text_options options = CHARRNN_TEXT_OPTIONS(5);\n'
    compiler = os.environ.get("CC", "cc") if language == "c" else os.environ.get("CXX", "c++")
    subprocess.run([compiler, f"-std={standard}", *flags, "-"], input=use, text=True, check=True)


def test_what_it_says_of_itself(c: Any) -> None:
    info = cf.build_info()
    assert c.version().decode() == info["version"]
    assert c.instruction_set().decode() == info["isa"]
    assert c.compiler().decode() == info["compiler"]
    assert c.abi_version() == int(path_of_library().suffix[1:]) == 1
    names = (*registry.CELL_NAMES, None)
    assert [c.cell_name(i) for i in range(len(names))] == [n and n.encode() for n in names]
    for i, (name, optimizer) in enumerate(registry.OPTIMIZERS.items()):
        assert c.optimizer_name(i) == name.encode()
        option = c.structs["charrnn_option"]()
        for j, (its_name, initial) in enumerate(optimizer.options.items()):
            c.optimizer_option(name.encode(), j, ctypes.byref(option))
            assert (option.name.decode(), option.value) == (its_name, float(initial))
        c.optimizer_option(name.encode(), len(optimizer.options), ctypes.byref(option))
        assert option.name is None


def test_threads(c: Any) -> None:
    before = c.get_num_threads()
    c.set_num_threads(3)
    assert c.get_num_threads() == 3
    c.set_num_threads(before)
    with pytest.raises(FailedError, match="num_threads must be in 1 to 4096, got 0"):
        c.set_num_threads(0)


def test_threads_of_the_program(c: Any) -> None:
    """A pool that runs tasks on threads of its own; the results are the same."""
    before, threads, teams = c.get_num_threads(), c.get_executor(), []
    model = Model(c, cf.RNN(V, 64, V, cell="gru"))
    x = np.random.default_rng(0).standard_normal((20, 64, V)).astype(np.float32)
    results = [model.zeros(20, 64, V) for _ in range(2)]

    def forward(y: Any) -> None:
        state = model.state(64)
        c.model_forward(model.handle, model.batch(x), None, 0, address(y), address(state))

    def run(pool: object, n: int, task: Any, argument: Any) -> None:
        teams.append(n)
        started = [threading.Thread(target=task, args=(argument, i)) for i in range(n)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()

    functions = (
        c.functions["charrnn_pool_threads"](lambda pool: 2),
        c.functions["charrnn_run"](run),
    )
    executor = c.struct("executor", num_threads=functions[0], run=functions[1], at_once=1)
    try:
        forward(results[0])
        c.set_num_threads(2)
        c.set_host_executor(ctypes.byref(executor))
        assert c.get_executor() == b"host"
        forward(results[1])
    finally:
        c.set_executor(threads)
        c.set_num_threads(before)
        model.close()
    assert set(teams) == {2}
    assert c.get_executor() == threads
    assert results[0].tobytes() == results[1].tobytes()
    executor.run = c.functions["charrnn_run"]()
    with pytest.raises(FailedError, match="run"):
        c.set_host_executor(ctypes.byref(executor))
    with pytest.raises(FailedError, match="'pthreads'"):
        c.set_executor(b"pthreads")


# ---- networks ----


def test_shape(model: Model) -> None:
    shape = model.c.struct("shape")
    model.c.model_shape(model.handle, ctypes.byref(shape))
    rnn = model.rnn
    assert (shape.cell.decode(), shape.nonlinearity.decode()) == (rnn.cell, rnn.nonlinearity)
    assert (shape.input_size, shape.hidden_size, shape.num_layers) == (V, H, rnn.num_layers)
    assert (shape.output_size, shape.proj_size) == (rnn.output_size or 0, rnn.proj_size)
    assert (shape.bidirectional, shape.layer_norm) == (rnn.bidirectional, rnn.layer_norm)
    assert (shape.zoneout_h, shape.zoneout_c, shape.dropout) == (*rnn.zoneout, rnn.dropout)
    assert registry.COMPUTE_DTYPES[shape.compute_dtype] == rnn.compute_dtype
    equal(model.parameters(), rnn.parameters())


@pytest.mark.parametrize("kind", ["vectors", "tokens", "ragged"])
def test_forward_and_backward(model: Model, kind: str) -> None:
    rng, c, rnn = np.random.default_rng(0), model.c, model.rnn
    x: Any = rng.standard_normal((T, B, V)).astype(rnn.dtype)
    if kind == "tokens":
        x = rng.integers(0, V, (T, B), np.int32)
    lengths = np.array([2, 5, 0]) if kind == "ragged" else None
    outputs = c.model_output_size(model.handle)
    state_0 = rng.standard_normal(model.state().size).astype(rnn.dtype)
    y, state, y_0 = model.zeros(T, B, outputs), model.state(), model.zeros(T, B, outputs)
    batch = model.batch(x, lengths, 7)
    c.model_forward(model.handle, batch, address(state_0), 1, address(y), address(state))
    given = rnn.states.public(state_0.reshape(rnn.core.state_shape(B)))
    wanted_y, wanted_state = rnn.forward(x, given, lengths=lengths, mask_seed=7)
    assert y.tobytes() == wanted_y.tobytes()
    assert state.tobytes() == flat_state(wanted_state).tobytes()

    dy = rng.standard_normal(y.shape).astype(rnn.dtype)
    dstate, flat = model.state(), model.zeros(c.model_gradient_elements(model.handle))
    dx = None if kind == "tokens" else np.empty_like(x)
    c.model_backward(model.handle, address(dy), address(dstate), address(dx), address(flat))
    wanted_dx, wanted_dstate, wanted = rnn.backward(dy)
    equal(model.gradients(flat), wanted)
    assert dstate.tobytes() == flat_state(wanted_dstate).tobytes()
    if dx is not None:
        assert wanted_dx is not None and dx.tobytes() == wanted_dx.tobytes()

    norm = ctypes.c_double()
    c.model_clip_norm(model.handle, address(flat), 0.5, ctypes.byref(norm))
    assert norm.value == cf.clip_grad_norm(wanted, 0.5)
    equal(model.gradients(flat), wanted)
    c.model_clip_value(model.handle, address(flat), 0.01)
    cf.clip_grad_value(wanted, 0.01)
    equal(model.gradients(flat), wanted)

    # without a state, and nothing kept: zeros
    c.model_forward(model.handle, model.batch(x, lengths), None, 0, address(y_0), address(state))
    assert y_0.tobytes() == rnn.forward(x, lengths=lengths)[0].tobytes()
    with pytest.raises(FailedError, match="backward must follow a forward with keep"):
        c.model_backward(model.handle, None, address(dstate), None, address(flat))


def test_step(model: Model) -> None:
    c, rnn = model.c, model.rnn
    x = np.random.default_rng(0).standard_normal((2, B, V)).astype(rnn.dtype)
    tokens = np.array([0, 5, 2], np.int32)
    state, y = model.state(), model.zeros(B, c.model_output_size(model.handle))
    if rnn.bidirectional:
        with pytest.raises(FailedError, match="must not be bidirectional"):
            c.model_step(model.handle, B, None, address(x[0]), address(state), address(y))
        return
    for here in (*x, tokens):
        is_tokens = here is tokens
        given = (integers(tokens), None) if is_tokens else (None, address(here))
        c.model_step(model.handle, B, *given, address(state), address(y))
        assert y.tobytes() == rnn.step(here).tobytes()


def _option(c: Any, **values: float) -> Any:
    kind = c.structs["charrnn_option"]
    return (kind * len(values))(*[kind(name.encode(), v) for name, v in values.items()])


UPDATES: dict[str, dict[str, float]] = {
    "sgd": {"momentum": 0.9, "nesterov": 1},
    "rmsprop": {"centered": 1, "alpha": 0.4},
    "adagrad": {"lr_decay": 0.1},
    "adam": {"beta1": 0.8},
    "adamw": {"weight_decay": 0.1},
}


@pytest.mark.parametrize("name", registry.OPTIMIZERS)
def test_updates(c: Any, name: str) -> None:
    """By every optimizer; and its state goes into another one."""
    values, rng = UPDATES[name], np.random.default_rng(0)
    model = Model(c, cf.RNN(V, H, V, cell="gru", seed=1))
    rnn, optimizer, other = model.rnn, ctypes.c_void_p(), ctypes.c_void_p()
    options = _option(c, **values)
    for handle in (optimizer, other):
        given = (model.handle, name.encode(), options, len(values))
        c.optimizer_create(*given, ctypes.byref(handle))
    keywords: dict[str, Any] = dict(values)
    for flag in ("nesterov", "centered"):
        if flag in keywords:
            keywords[flag] = bool(keywords[flag])
    if "beta1" in keywords:
        keywords = {"betas": (keywords["beta1"], 0.999)}
    updates = optim.KINDS[name](rnn, lr=0.01, **keywords)
    for step in range(3):
        x = rng.standard_normal((T, B, V)).astype(np.float32)
        y, state = model.zeros(T, B, V), model.state()
        c.model_forward(model.handle, model.batch(x), None, 1, address(y), address(state))
        rnn.forward(x)
        state[:] = 0
        flat = model.zeros(c.model_gradient_elements(model.handle))
        c.model_backward(model.handle, address(y), address(state), None, address(flat))
        c.model_update(model.handle, optimizer, address(flat), 0.01)
        updates.step(rnn.backward(y)[2])
        equal(model.parameters(), rnn.parameters())
        assert c.optimizer_num_steps(optimizer) == step + 1
        # The other one continues.
        slot = 0
        while c.optimizer_slot_name(optimizer, slot) is not None:
            for parameter, kept in model.parameters().items():
                here = (slot, parameter.encode(), address(kept), kept.size)
                c.optimizer_get_slot(optimizer, *here)
                c.optimizer_set_slot(other, *here)
            slot += 1
        c.optimizer_set_num_steps(other, step + 1)
        optimizer, other = other, optimizer
    for handle in (optimizer, other):
        c.optimizer_destroy(handle)
    model.close()


def test_train_step_and_evaluate(c: Any) -> None:
    vocabulary = cf.Vocabulary.from_text("abcdef")
    ours = cf.CharLM(vocabulary, H, 2, "lstm", dropout=0.2)
    trainer = cf.Trainer(ours, None, B, T, optimizer="adam", clip_norm=0.1, learning_rate=0.01)
    model = Model(c, ours.rnn)
    optimizer, state = ctypes.c_void_p(), model.state()
    c.optimizer_create(model.handle, b"adam", None, 0, ctypes.byref(optimizer))
    rng, loss, norm = np.random.default_rng(0), ctypes.c_double(), ctypes.c_double()
    count = ctypes.c_int64()
    training = c.struct("training", learning_rate=0.01, clip_norm=0.1)
    for step in range(3):
        tokens = rng.integers(0, V, (T + 1, B), np.int32)
        inputs, targets = tokens[:-1].copy(), tokens[1:].copy()
        low, high, *_ = _core.philox(0, step, 0)
        c.model_train_step(
            model.handle,
            model.batch(inputs, mask_seed=high << 32 | low),
            integers(targets),
            address(state),
            optimizer,
            ctypes.byref(training),
            ctypes.byref(loss),
            ctypes.byref(norm),
        )
        assert loss.value == trainer.step(inputs, targets)
        assert norm.value > 0.1
        equal(model.parameters(), ours.rnn.parameters())
    state = model.state(1)
    ids = rng.integers(0, V, 50, np.int32)
    batch = model.batch(ids[:-1, None])
    given = (integers(ids[1:].copy()), address(state), ctypes.byref(loss), ctypes.byref(count))
    c.model_evaluate(model.handle, batch, *given)
    assert count.value == 49
    assert loss.value / 49 == ours.evaluate(vocabulary.decode(ids))
    c.optimizer_destroy(optimizer)
    model.close()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses(c: Any, dtype: Any, reduction: str, weighted: bool) -> None:
    rng, mean, number = np.random.default_rng(0), int(reduction == "mean"), ctypes.c_double()
    kind = int(dtype == np.float64)
    y, z = rng.standard_normal((2, 8, V)).astype(dtype)
    targets = rng.integers(-1, V, 8, np.int32)
    rows, each = rng.random(8).astype(dtype), rng.random((8, V)).astype(dtype)
    d = np.empty_like(y)
    weights: Any = rows if weighted else None
    end = (mean, address(weights), address(d), ctypes.byref(number))
    c.cross_entropy(kind, address(y), integers(targets), 8, V, *end)
    loss, wanted = cf.cross_entropy(y, targets, reduction, weights=weights)
    assert (number.value, d.tobytes()) == (loss, wanted.tobytes())
    weights = each if weighted else None
    end = (mean, address(weights), address(d), ctypes.byref(number))
    c.mean_square(kind, address(y), address(z), y.size, *end)
    loss, wanted = cf.mean_square(y, z, reduction, weights=weights)
    assert (number.value, d.tobytes()) == (loss, wanted.tobytes())
    z = (z > 0).astype(dtype)
    c.binary_cross_entropy(kind, address(y), address(z), y.size, *end)
    loss, wanted = cf.binary_cross_entropy(y, z, reduction, weights=weights)
    assert (number.value, d.tobytes()) == (loss, wanted.tobytes())


# ---- real time ----


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", registry.CELL_NAMES)
def test_a_stream(c: Any, cell: str, dtype: str) -> None:
    """Blocks, copies and states, bit for bit those of a whole sequence."""
    rnn = cf.RNN(2, H, 3, cell=cell, num_layers=2, dtype=dtype, seed=1)
    model = Model(c, rnn)
    stream, copy = ctypes.c_void_p(), ctypes.c_void_p()
    c.stream_create(model.handle, ctypes.byref(stream))
    model.close()  # the parameters are copied
    assert c.stream_input_size(stream) == 2 and c.stream_output_size(stream) == 3
    n = 20
    x = np.random.default_rng(2).standard_normal((n, 2)).astype(dtype)
    wanted, state = rnn.forward(x[:, None])
    y, state_n = np.empty_like(wanted[:, 0]), np.empty(c.stream_state_elements(stream), dtype)
    for first, last in ((0, 1), (1, 1), (1, 8), (8, 20)):
        c.stream_run(stream, address(x[first:last]), last - first, address(y[first:last]))
        if last == 8:
            c.stream_copy(stream, ctypes.byref(copy))
    assert y.tobytes() == wanted.tobytes()
    c.stream_get_state(stream, address(state_n))
    assert state_n.tobytes() == flat_state(state).tobytes()

    again = np.empty_like(y)
    c.stream_run(copy, address(x[8:]), n - 8, address(again[8:]))
    assert again[8:].tobytes() == y[8:].tobytes()
    c.stream_reset(copy)
    c.stream_run(copy, address(x), n, address(again))
    assert again.tobytes() == y.tobytes()
    c.stream_set_state(copy, address(state_n))
    c.stream_run(copy, address(x), n, address(again))
    longer, _ = rnn.forward(x[:, None], state)
    assert again.tobytes() == longer.tobytes()
    c.stream_destroy(stream)
    c.stream_destroy(copy)
    c.stream_destroy(None)


def test_a_stream_refuses(c: Any) -> None:
    stream = ctypes.c_void_p()
    both_ways = Model(c, cf.RNN(2, H, bidirectional=True))
    with pytest.raises(FailedError, match="bidirectional of a stream must be false") as error:
        c.stream_create(both_ways.handle, ctypes.byref(stream))
    assert error.value.args[0] == INVALID and stream.value is None
    both_ways.close()
    with pytest.raises(FailedError, match="model must not be NULL"):
        c.stream_create(None, ctypes.byref(stream))
    model = Model(c, cf.RNN(2, H))
    with pytest.raises(FailedError, match="stream must not be NULL"):
        c.stream_create(model.handle, None)
    c.stream_create(model.handle, ctypes.byref(stream))
    model.close()
    x, y = np.zeros((4, 2), "float32"), np.zeros((4, H), "float32")
    for arguments, message in (
        ((None, address(x), 4, address(y)), "stream must not be NULL"),
        ((stream, None, 4, address(y)), "x must not be NULL"),
        ((stream, address(x), 4, None), "y must not be NULL"),
        ((stream, address(x), -1, address(y)), "n must be >= 0, got -1"),
    ):
        with pytest.raises(FailedError, match=message):
            c.stream_run(*arguments)
    c.stream_run(stream, None, 0, None)
    with pytest.raises(FailedError, match="state must not be NULL"):
        c.stream_set_state(stream, None)
    assert c.stream_state_elements(None) == -1
    c.stream_destroy(stream)


# ---- language models ----


class Text:
    """A language model of C."""

    def __init__(self, c: Any, path: Path) -> None:
        self.c, self.handle = c, ctypes.c_void_p()
        as_saved = c.constants["CHARRNN_COMPUTE_AS_SAVED"]
        given = (str(path).encode(), DEVICE, as_saved, ctypes.byref(self.handle))
        if DEVICE == b"cpu":
            c.language_model_load(given[0], given[-1])
        else:
            c.language_model_load_on(*given)

    def options(
        self, length: int, prime: bytes = b"", stop: tuple[bytes, ...] = (), **more: Any
    ) -> Any:
        self.stop = (ctypes.c_char_p * max(1, len(stop)))(*stop)
        return self.c.struct(
            "text_options",
            length=length,
            prime=prime,
            prime_bytes=len(prime),
            stop=self.stop,
            num_stop=len(stop),
            **{"temperature": 1.0, **more},
        )

    def sample(self, seeds: list[int], options: Any) -> list[str]:
        capacity = ctypes.c_size_t()
        c, given = self.c, ctypes.byref(options)
        c.language_model_text_capacity(self.handle, given, ctypes.byref(capacity))
        texts = ctypes.create_string_buffer(len(seeds) * capacity.value)
        sizes = (ctypes.c_size_t * len(seeds))()
        numbers = (ctypes.c_uint64 * len(seeds))(*seeds)
        c.language_model_sample(
            self.handle,
            given,
            numbers,
            len(seeds),
            ctypes.cast(texts, ctypes.c_char_p),
            capacity,
            sizes,
        )
        starts = [i * capacity.value for i in range(len(seeds))]
        found = [texts.raw[at : at + n] for at, n in zip(starts, sizes, strict=True)]
        assert all(texts.raw[at + n] == 0 for at, n in zip(starts, sizes, strict=True))
        return [text.decode() for text in found]

    def stream(self, seed: int, options: Any) -> list[str]:
        c, stream, piece = self.c, ctypes.c_void_p(), ctypes.c_char_p()
        size, pieces = ctypes.c_size_t(), []
        c.text_stream_create(self.handle, ctypes.byref(options), seed, ctypes.byref(stream))
        while True:
            c.text_stream_next(stream, ctypes.byref(piece), ctypes.byref(size))
            if piece.value is None:
                break
            pieces.append(ctypes.string_at(piece, size.value).decode())
        c.text_stream_destroy(stream)
        return pieces


@pytest.fixture(scope="module")
def text(c: Any) -> Iterator[Text]:
    made = Text(c, KEPT)
    yield made
    c.language_model_destroy(made.handle)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5, "top_k": 5},
        {"top_p": 0.5},
        {"temperature": 0.0},
        {"stop": ["e", "th"]},
        {"weight_dtype": "bfloat16"},
        {"weight_dtype": "int8"},
        {"repetition_penalty": 1.6},
        {"repetition_penalty": 1.6, "repetition_window": 5},
    ],
    ids=str,
)
def test_texts(text: Text, options: dict[str, Any]) -> None:
    if options.get("weight_dtype") == "int8" and DEVICE != b"cpu":
        given = text.options(20, weights=WEIGHTS.index("int8"))
        with pytest.raises(FailedError, match=r"weights on .* must be full or bfloat16, got int8"):
            text.sample([1], given)
        return
    ours, stop = cf.CharLM.load(KEPT), options.get("stop", [])
    prime = ours.vocabulary.decode([1, 2])
    known = set(ours.vocabulary.decode(range(len(ours.vocabulary))))
    stop = [s for s in stop if set(s) <= known]
    given = text.options(
        200,
        prime.encode(),
        tuple(s.encode() for s in stop),
        temperature=options.get("temperature", 1.0),
        top_k=options.get("top_k", 0),
        top_p=options.get("top_p", 0.0),
        weights=WEIGHTS.index(options.get("weight_dtype")),
        repetition_penalty=options.get("repetition_penalty", 0.0),
        repetition_window=options.get("repetition_window", 0),
    )
    wanted = ours.sample(200, prime, seeds=[1, 2], **{**options, "stop": stop})
    assert text.sample([1, 2], given) == wanted
    assert text.stream(2, given) == list(
        ours.stream(200, prime, seed=2, **{**options, "stop": stop})
    )


def test_the_likeliest_text_and_the_next_symbol(text: Text) -> None:
    c, ours = text.c, cf.CharLM.load(KEPT, device=DEVICE.decode())
    prime, stop = ours.vocabulary.decode([1, 2]), ours.vocabulary.decode([0])
    size, nats = ctypes.c_size_t(), ctypes.c_double()
    room = ctypes.create_string_buffer(1000)
    for beam, stops in ((1, ()), (7, ()), (7, (stop,))):
        options = text.options(30, prime.encode(), tuple(s.encode() for s in stops))
        c.language_model_beam_search(
            text.handle,
            ctypes.byref(options),
            beam,
            ctypes.cast(room, ctypes.c_char_p),
            len(room),
            ctypes.byref(size),
            ctypes.byref(nats),
        )
        found = (room.raw[: size.value].decode(), nats.value)
        assert found == ours.beam_search(30, prime, beam, stop=list(stops))
        assert room.raw[size.value] == 0
    shares = (ctypes.c_double * len(ours.vocabulary))()
    data = prime.encode()
    c.language_model_next_probabilities(text.handle, data, len(data), 0, shares, len(shares))
    np.testing.assert_allclose(np.array(shares), ours.next_probabilities(prime), rtol=1e-14)
    given = (text.handle, data, len(data), 0, shares)
    with pytest.raises(FailedError, match=r"vocab_size must be \d+, got 2"):
        c.language_model_next_probabilities(*given, 2)


def test_draws_with_a_penalty_continue(c: Any) -> None:
    rnn = cf.RNN(6, 8, 6, cell="gru", seed=2)
    model, first = Model(c, rnn), np.array([1, 2], np.int32)
    seeds, recent = np.array([5, 6], np.uint64), np.full((3, 2), -1, np.int32)
    recent[2] = first

    def drawn(lengths: list[int]) -> list[list[int]]:
        state, last, window = model.state(2), first, recent.copy()
        position, rows = 0, []
        for length in lengths:
            there = np.zeros((length, 2), np.int32)
            sampling = c.struct(
                "sampling",
                temperature=1.0,
                repetition_penalty=2.5,
                repetition_window=3,
                recent=integers(window),
            )
            given = (integers(last), address(state), integers(seeds, ctypes.c_uint64), position)
            c.model_sample(model.handle, length, 2, *given, ctypes.byref(sampling), integers(there))
            last, position = np.ascontiguousarray(there[-1]), position + length
            rows += there.tolist()
        return rows

    core: Any = rnn.core
    wanted = core.sample(
        20, first, rnn.states.zeros(2), seeds, 0, 1.0, 0, 1.0, "", 2.5, recent.copy()
    ).tolist()
    assert drawn([20]) == drawn([7, 1, 12]) == wanted
    model.close()


def test_vocabulary_and_losses(text: Text) -> None:
    c, ours = text.c, cf.CharLM.load(KEPT)
    size, count = len(ours.vocabulary), ctypes.c_int64()
    assert c.language_model_vocab_size(text.handle) == size
    assert c.language_model_has_bytes(text.handle) == 0
    symbols = np.zeros(size, np.int32)
    c.language_model_symbols(text.handle, integers(symbols), size)
    assert np.array_equal(symbols, ours.vocabulary.symbols)
    words = ours.vocabulary.decode(range(size)) * 3
    data = words.encode()
    ids = np.full(len(words), -1, np.int32)
    given = (text.handle, data, len(data))
    c.language_model_encode(*given, None, 0, ctypes.byref(count))
    assert count.value == len(words)
    c.language_model_encode(*given, integers(ids), len(ids), ctypes.byref(count))
    assert np.array_equal(ids, ours.vocabulary.encode(words))
    there, room = ctypes.c_size_t(), ctypes.create_string_buffer(len(data))
    letters = ctypes.cast(room, ctypes.c_char_p)
    c.language_model_decode(
        text.handle, integers(ids), len(ids), letters, len(data), ctypes.byref(there)
    )
    assert room.raw == data and there.value == len(data)

    loss, texts = ctypes.c_double(), [words, "", words[:7]]
    for weights, dtype in enumerate(WEIGHTS if DEVICE == b"cpu" else WEIGHTS[:2]):
        c.language_model_evaluate(*given, weights, ctypes.byref(loss))
        assert loss.value == ours.evaluate(words, weight_dtype=dtype)
        scores = (ctypes.c_double * 3)()
        pointers = (ctypes.c_char_p * 3)(*(t.encode() for t in texts))
        c.language_model_score(text.handle, pointers, None, 3, weights, scores)
        assert list(scores) == ours.score(texts, weight_dtype=dtype).tolist()


def test_the_network_of_a_language_model(c: Any) -> None:
    """From memory; the network lives on without its model."""
    data, ours = KEPT.read_bytes(), cf.CharLM.load(KEPT)
    handle, network = ctypes.c_void_p(), ctypes.c_void_p()
    c.language_model_load_memory(data, len(data), ctypes.byref(handle))
    c.language_model_network(handle, ctypes.byref(network))
    c.language_model_destroy(handle)
    model = Model.__new__(Model)
    model.c, model.rnn, model.handle = c, ours.rnn, network
    equal(model.parameters(), ours.rnn.parameters())
    state, first = model.state(2), np.array([1, 2], np.int32)
    drawn, seeds = np.zeros((9, 2), np.int32), np.array([5, 6], np.uint64)
    sampling = c.struct("sampling", temperature=0.7)
    given = (integers(first), address(state), integers(seeds, ctypes.c_uint64), 0)
    c.model_sample(network, 9, 2, *given, ctypes.byref(sampling), integers(drawn))
    core: Any = ours.rnn.core
    wanted = core.sample(9, first, ours.rnn.states.zeros(2), seeds, 0, 0.7, 0, 1.0, "")
    assert np.array_equal(drawn, wanted)
    model.close()


def test_a_language_model_computes_as_it_is_told(c: Any, tmp_path: Path) -> None:
    path, data = str(KEPT).encode(), KEPT.read_bytes()
    for number, name in enumerate(registry.COMPUTE_DTYPES):
        if name == "tf32":
            continue
        ours = cf.CharLM.load(KEPT, compute_dtype=name)
        made = [Text.__new__(Text), Text.__new__(Text)]
        for text in made:
            text.c, text.handle = c, ctypes.c_void_p()
        c.language_model_load_on(path, DEVICE, number, ctypes.byref(made[0].handle))
        given = (data, len(data), DEVICE, number)
        c.language_model_load_memory_on(*given, ctypes.byref(made[1].handle))
        for text in made:
            assert text.sample([4], text.options(60)) == [ours.sample(60, seed=4)]
            c.language_model_destroy(text.handle)
            # A file that says so is read likewise.
            ours.save(tmp_path / "model")
            again = Text(c, tmp_path / "model")
            assert again.sample([4], again.options(60)) == [ours.sample(60, seed=4)]
            c.language_model_destroy(again.handle)


def test_a_training_with_an_average_is_read_as_that(c: Any, tmp_path: Path) -> None:
    corpus = cf.Corpus.from_text("the quick brown fox\n" * 20)
    model = cf.CharLM(corpus.vocabulary, 5, 1, seed=1)
    trainer = cf.Trainer(model, corpus, 4, 8, average="ema:0.9", checkpoint_path=tmp_path / "model")
    trainer.fit(steps=4, progress=False)
    text = Text(c, tmp_path / "model")
    drawn = text.sample([4], text.options(60))
    assert drawn == [trainer.averaged().sample(60, seed=4)]
    c.language_model_destroy(text.handle)


# ---- errors ----


def test_options_of_other_versions(c: Any, text: Text) -> None:
    kind = c.structs["charrnn_text_options"]
    options = text.options(5)
    wanted = text.sample([1], options)
    longer = type(
        "longer", (ctypes.Structure,), {"_fields_": [("known", kind), ("new", ctypes.c_int64)]}
    )()
    longer.known = options
    longer.known.size = ctypes.sizeof(longer)
    assert text.sample([1], longer.known.__class__.from_buffer(longer)) == wanted
    longer.new = 1 << 40
    with pytest.raises(
        FailedError, match=r"options must have no options unknown to this version, of \d+ bytes"
    ):
        text.sample([1], kind.from_buffer(longer))
    # One that ends before the stop strings.
    shorter = kind.from_buffer_copy(options)
    shorter.size = kind.stop.offset
    shorter.num_stop = 1 << 40
    assert text.sample([1], shorter) == wanted
    shorter.size = 0
    with pytest.raises(FailedError, match=r"options->size must be sizeof\(\*options\), \d+, got 0"):
        text.sample([1], shorter)


def test_wrong_arguments(c: Any, text: Text, tmp_path: Path) -> None:
    handle = ctypes.c_void_p()

    def refused(status: int, words: str, call: Any, *arguments: Any) -> None:
        with pytest.raises(FailedError, match=words) as found:
            call(*arguments)
        assert found.value.args[0] == status

    out = ctypes.byref(handle)
    refused(NO_FILE, "No such file", c.language_model_load, str(tmp_path / "none").encode(), out)
    damaged = bytearray(KEPT.read_bytes())
    damaged[-1] ^= 1
    refused(
        BAD_CHECKPOINT, "checksum", c.language_model_load_memory, bytes(damaged), len(damaged), out
    )
    refused(BAD_CHECKPOINT, "no charrnn_fast checkpoint", c.language_model_load_memory, b"", 0, out)
    refused(INVALID, "path must not be NULL", c.language_model_load, None, out)
    kept = KEPT.read_bytes()
    for number, words in (
        (c.constants["CHARRNN_COMPUTE_TF32"], "compute_dtype on cpu must be 'float32' or 'bfloat"),
        (3, "compute_dtype must be CHARRNN_COMPUTE_FLOAT32, _TF32 or _BFLOAT16, got 3"),
        (-2, "compute_dtype must be CHARRNN_COMPUTE_FLOAT32, _TF32 or _BFLOAT16, got -2"),
    ):
        path = str(KEPT).encode()
        refused(INVALID, words, c.language_model_load_on, path, b"cpu", number, out)
        refused(
            INVALID, words, c.language_model_load_memory_on, kept, len(kept), b"cpu", number, out
        )
    words = "device must be 'cpu', 'cuda' or 'cuda:N', got 'gpu'"
    refused(INVALID, words, c.language_model_load_on, str(KEPT).encode(), b"gpu", 0, out)
    refused(INVALID, "device must not be NULL", c.language_model_load_on, b"x", None, 0, out)
    refused(INVALID, "model must not be NULL", c.language_model_load, b"x", None)
    shape = c.struct("shape", cell=b"gru", input_size=3, hidden_size=4)
    for field, value, words in (
        ("cell", b"elman", "cell must be one of"),
        ("hidden_size", 0, "hidden_size must be >= 1, got 0"),
        ("dtype", 2, "dtype must be CHARRNN_FLOAT32 or CHARRNN_FLOAT64, got 2"),
        ("bias", -1, "bias must be CHARRNN_BIAS_BOTH, _SINGLE or _NONE, got -1"),
        ("layer_norm", 2, "layer_norm must be 0 or 1, got 2"),
        ("dropout", 1.0, "dropout must be at least 0, below 1, got 1"),
        ("compute_dtype", 1, "compute_dtype on cpu must be 'float32' or 'bfloat16', got 'tf32'"),
        ("compute_dtype", 3, "compute_dtype must be CHARRNN_COMPUTE_FLOAT32, _TF32 or _BFLOAT16"),
    ):
        wrong = type(shape).from_buffer_copy(shape)
        setattr(wrong, field, value)
        refused(INVALID, words, c.model_create, ctypes.byref(wrong), out)
    c.model_create(ctypes.byref(shape), out)
    x = np.zeros((2, 1, 3), np.float32)
    tokens = np.array([[0], [3]], np.int32)
    y, state = np.zeros((2, 1, 4), np.float32), np.zeros(4, np.float32)
    end = (None, 0, address(y), address(state))

    def batch(**fields: Any) -> Any:
        return ctypes.byref(c.struct("batch", **{"seq_len": 2, "batch": 1, **fields}))

    refused(
        INVALID,
        "either tokens or x must be given, got none",
        c.model_forward,
        handle,
        batch(),
        *end,
    )
    both = batch(x=address(x), tokens=integers(tokens))
    refused(INVALID, "got both", c.model_forward, handle, both, *end)
    refused(
        INVALID,
        r"x\[1, 0\] must be in 0 to 2, got 3",
        c.model_forward,
        handle,
        batch(tokens=integers(tokens)),
        *end,
    )
    for field, value in (("seq_len", -1), ("batch", 0), ("batch", 2**60)):
        wrong = batch(x=address(x), **{field: value})
        refused(INVALID, field, c.model_forward, handle, wrong, *end)
    refused(
        INVALID,
        "name must be one of weight_ih_l0, ",
        c.model_get_parameter,
        handle,
        b"w",
        address(x),
        1,
    )
    refused(
        INVALID,
        "elements of weight_hh_l0 must be 48, got 5",
        c.model_get_parameter,
        handle,
        b"weight_hh_l0",
        address(x),
        5,
    )
    assert c.model_state_elements(handle, 0) == -1
    assert b"batch must be >= 1, got 0" in c.last_error()
    assert c.model_output_size(None) == -1
    optimizer = ctypes.c_void_p()
    create = (c.optimizer_create, handle)
    refused(
        INVALID, "name must be one of 'sgd'", *create, b"adamax", None, 0, ctypes.byref(optimizer)
    )
    wrong = _option(c, beta3=1)
    refused(INVALID, "beta3", *create, b"adam", wrong, 1, ctypes.byref(optimizer))
    c.model_destroy(handle)
    for none in (
        c.model_destroy,
        c.optimizer_destroy,
        c.language_model_destroy,
        c.text_stream_destroy,
    ):
        none(None)
    for field, value, words in (
        ("length", -1, "length must be in 0 to"),
        ("temperature", -1.0, "temperature must be finite, at least 0"),
        ("top_p", 2.0, "top_p must be above 0, at most 1"),
        ("top_k", -1, "top_k must be >= 1"),
        ("weights", 3, "weights must be 0, 1 or 2, got 3"),
    ):
        options = text.options(5)
        setattr(options, field, value)
        with pytest.raises(FailedError, match=words):
            text.sample([1], options)
    options = text.options(5)
    room = ctypes.create_string_buffer(9)
    given = (text.handle, ctypes.byref(options), (ctypes.c_uint64 * 1)(1), 1)
    refused(
        INVALID,
        "capacity must be >= 21, got 9",
        c.language_model_sample,
        *given,
        ctypes.cast(room, ctypes.c_char_p),
        9,
        None,
    )


def test_devices(c: Any) -> None:
    c.device_status(b"cpu")
    for name in (b"gpu", b"cuda:", b"cuda:x", b"cuda:-1", b"cuda0", b"cuda:99999999999"):
        with pytest.raises(FailedError) as caught:
            c.device_status(name)
        message = f"device must be 'cpu', 'cuda' or 'cuda:N', got {name.decode()!r}"
        assert caught.value.args == (INVALID, message)
    shape = c.struct("shape", cell=b"gru", input_size=V, hidden_size=H)
    handle = ctypes.c_void_p()
    with pytest.raises(FailedError) as caught:
        c.model_create_on(ctypes.byref(shape), None, ctypes.byref(handle))
    assert caught.value.args == (INVALID, "device must not be NULL")
    with pytest.raises(FailedError) as caught:  # or the machine has so many cards
        c.model_create_on(ctypes.byref(shape), b"cuda:99", ctypes.byref(handle))
    status, message = caught.value.args
    assert status == NO_DEVICE and not handle.value
    assert re.match(
        r"this build has no CUDA kernels \(libcharrnn_fast_cuda\.so\.\d+\.\d+\): build with "
        "CHARRNN_CUDA=ON or PIP$|there is no NVIDIA driver|there is no cuda:99|the driver |"
        "a process uses one card: must be cuda:0",
        message,
    ), message


def test_messages_are_each_threads_own(c: Any) -> None:
    with pytest.raises(FailedError):
        c.set_num_threads(-5)
    found: list[bytes] = []

    def other() -> None:
        found.append(c.last_error())
        assert c.model_output_size(None) == -1
        found.append(c.last_error())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [b"", b"model must not be NULL"]
    assert b"got -5" in c.last_error()


# ---- the example ----


@pytest.mark.slow
def test_the_example(tmp_path: Path) -> None:
    """Built by a project outside, with CMake's package; by a strict compiler."""
    strict = "-DCMAKE_C_FLAGS=-Wall -Wextra -Wpedantic -Werror"
    prefix = f"-DCMAKE_PREFIX_PATH={cf.get_cmake_dir()}"
    run("cmake", "-S", ROOT / "examples" / "embed_c", "-B", tmp_path, prefix, strict)
    run("cmake", "--build", tmp_path)
    ours = cf.CharLM.load(KEPT)
    prime = ours.vocabulary.decode([1, 2])
    assert run(tmp_path / "write", KEPT, prime, "7") == ours.sample(500, prime, seed=7) + "\n"
    printed = run(tmp_path / "train").splitlines()
    first, last = (float(line.rpartition(" ")[2]) for line in (printed[0], printed[-1]))
    assert len(printed) == 5 and last < first / 20
    with pytest.raises(AssertionError, match="error: none: No such file or directory"):
        run(tmp_path / "write", "none")

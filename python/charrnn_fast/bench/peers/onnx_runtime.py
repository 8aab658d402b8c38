"""ONNX Runtime on a model of its own RNN, LSTM and GRU operators. Inference only.

A call per step is timed in both ways there are: `run` with arrays, as programs for it are mostly
written, and `run_with_iobinding` on memory bound once, the faster one. Sampling takes the latter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...registry import gates
from ..problem import Array, Outputs, Problem
from . import Peer, Task, require

NAME = "onnxruntime"
BOUND = "onnxruntime, memory bound"
IN_ONE_CALL = "onnxruntime, all steps in a call"

# Where PyTorch's gates stand in ONNX's order: i, o, f, c of an LSTM, z, r, h of a GRU.
_ORDER = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
_OPSET, _IR = 17, 8  # read by every ONNX Runtime since 1.12


class OnnxRuntime:
    cells = tuple(_ORDER)

    def __init__(self, threads: int) -> None:
        self.onnx = require("onnx")
        self.runtime = require("onnxruntime")
        self.threads = threads
        self.version: str = self.runtime.__version__

    def tasks(self, problem: Problem) -> dict[str, Task]:
        make: dict[str, Callable[[Problem], dict[str, Task]]] = {
            "forward": self._forward,
            "sample": self._sample,
            "step": self._step,
        }
        suite = problem.case.suite
        return make[suite](problem) if suite in make else {}

    def _session(self, problem: Problem, *, tokens: bool) -> Any:
        """Inputs x (int64 [T, B] or float [T, B, I]) and the states; outputs y and the states."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        case, p = problem.network, problem.parameters
        H = case.hidden_size
        nodes, constants, states, lasts = [], [], [], []

        def constant(name: str, value: Array) -> str:
            constants.append(self.onnx.numpy_helper.from_array(value, name))
            return name

        x = "x"
        if tokens:
            eye = constant("one_hot", np.eye(case.input_size, dtype=np.float32))
            nodes.append(helper.make_node("Gather", [eye, x], ["embedded"]))
            x = "embedded"
        axis = constant("axis", np.array([1], np.int64))
        parts = ("h", "c") if case.cell == "lstm" else ("h",)
        for k in range(case.num_layers):

            def reordered(name: str, k: int = k) -> Array:
                blocks = np.split(p[f"{name}_l{k}"], gates(case.cell))
                return np.concatenate([blocks[gate] for gate in _ORDER[case.cell]])

            W = constant(f"W{k}", reordered("weight_ih")[None])
            R = constant(f"R{k}", reordered("weight_hh")[None])
            bias = np.concatenate((reordered("bias_ih"), reordered("bias_hh")))
            B = constant(f"B{k}", bias[None])
            first = [f"{part}_0_{k}" for part in parts]
            last = [f"{part}_n_{k}" for part in parts]
            options = {"linear_before_reset": 1} if case.cell == "gru" else {}
            nodes.append(
                helper.make_node(
                    case.cell.upper(),
                    [x, W, R, B, "", *first],
                    [f"Y{k}", *last],
                    hidden_size=H,
                    **options,
                )
            )
            x = f"y{k}"
            nodes.append(helper.make_node("Squeeze", [f"Y{k}", axis], [x]))
            states += first
            lasts += last
        if "decoder.weight" in p:
            weight = constant("decoder.weight", np.ascontiguousarray(p["decoder.weight"].T))
            nodes.append(helper.make_node("MatMul", [x, weight], ["product"]))
            shift = constant("decoder.bias", p["decoder.bias"])
            nodes.append(helper.make_node("Add", ["product", shift], ["logits"]))
            x = "logits"

        def value(name: str, kind: int, shape: list[Any]) -> Any:
            return helper.make_tensor_value_info(name, kind, shape)

        dense = [] if tokens else [case.input_size]
        state_shape = [1, "B", H]
        graph = helper.make_graph(
            nodes,
            case.label,
            [
                value("x", types.INT64 if tokens else types.FLOAT, ["T", "B", *dense]),
                *(value(name, types.FLOAT, state_shape) for name in states),
            ],
            [
                value(x, types.FLOAT, ["T", "B", "F"]),
                *(value(name, types.FLOAT, state_shape) for name in lasts),
            ],
            constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
        model.ir_version = _IR
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        return self.runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def _forward(self, problem: Problem) -> dict[str, Task]:
        session, feed = self._session(problem, tokens=True), _zero_states(problem)
        feed["x"] = problem.arrays["tokens"].astype(np.int64)

        def run() -> Array:
            y: Array = session.run(None, feed)[0]
            return y

        return {NAME: Task(lambda: {"y": run()}, run)}

    def _sample(self, problem: Problem) -> dict[str, Task]:
        case, tokens = problem.network, problem.arrays["tokens"].astype(np.int64)
        session = self._session(problem, tokens=True)
        bound = _Bound(self.runtime, session, problem, tokens[:1])
        rng = np.random.default_rng(0)

        def check() -> Outputs:
            return {"logits": np.concatenate([bound.step(x[None]).copy() for x in tokens])}

        last = tokens[0]

        def run() -> None:
            nonlocal last
            for _ in range(case.seq_len):
                logits = bound.step(last[None])[0]
                weights = np.exp(logits - logits.max(-1, keepdims=True)).cumsum(-1)
                u = rng.random((len(last), 1), np.float32) * weights[:, -1:]
                last = (weights <= u).sum(-1)

        return {NAME: Task(check, run, case.seq_len * case.batch)}

    def _step(self, problem: Problem) -> dict[str, Task]:
        x = problem.arrays["x"]
        session, feed = self._session(problem, tokens=False), _zero_states(problem)
        names, whole = list(feed), {**feed, "x": x}
        rows = [np.ascontiguousarray(row[None]) for row in x]

        def steps() -> list[Array]:
            outputs = []
            for row in rows:
                feed["x"] = row
                y, *states = session.run(None, feed)
                feed.update(zip(names, states, strict=True))
                outputs.append(y)
            return outputs

        bound = _Bound(self.runtime, session, problem, rows[0])

        def bound_steps() -> None:
            for row in rows:
                bound.step(row)

        def at_once() -> Array:
            y: Array = session.run(None, whole)[0]
            return y

        return {
            NAME: Task(lambda: {"y": np.concatenate(steps())}, steps, len(x)),
            BOUND: Task(
                lambda: {"y": np.concatenate([bound.step(row).copy() for row in rows])},
                bound_steps,
                len(x),
            ),
            IN_ONE_CALL: Task(lambda: {"y": at_once()}, at_once, len(x)),
        }


class _Bound:
    """A session with the memory of one step: states are read from one place, written to another,
    and the two change roles at every step."""

    def __init__(self, runtime: Any, session: Any, problem: Problem, x: Array) -> None:
        self._session = session
        width = problem.parameters.get("decoder.bias", problem.parameters["weight_hh_l0"][0])
        self._x = np.empty_like(x)  # [1, B] or [1, B, I]
        self._y = np.empty((1, problem.network.batch, len(width)), np.float32)
        place = runtime.OrtValue.ortvalue_from_numpy
        self._values = [place(self._x), place(self._y)]  # of the arrays' own memory
        states = [[place(s) for s in _zero_states(problem).values()] for _ in range(2)]
        inputs = [value.name for value in session.get_inputs()]
        outputs = [value.name for value in session.get_outputs()]
        self._bindings = []
        for read, write in ((0, 1), (1, 0)):
            binding = session.io_binding()
            for name, value in zip(inputs, [self._values[0], *states[read]], strict=True):
                binding.bind_ortvalue_input(name, value)
            for name, value in zip(outputs, [self._values[1], *states[write]], strict=True):
                binding.bind_ortvalue_output(name, value)
            self._bindings.append(binding)

    def step(self, x: Array) -> Array:
        """y [1, B, O], in memory that the next step overwrites."""
        self._x[...] = x
        self._session.run_with_iobinding(self._bindings[0])
        self._bindings.reverse()
        return self._y


def _zero_states(problem: Problem) -> dict[str, Array]:
    case = problem.network
    parts = ("h", "c") if case.cell == "lstm" else ("h",)
    shape = (1, case.batch, case.hidden_size)
    return {
        f"{part}_0_{k}": np.zeros(shape, np.float32)
        for k in range(case.num_layers)
        for part in parts
    }


PEER: type[Peer] = OnnxRuntime

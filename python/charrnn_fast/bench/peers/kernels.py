"""The kernels of this package: the side that all others are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ... import _core, optim
from ...language.small_weights import SMALL_DTYPES, read_as
from ..errors import BenchError
from ..problem import (
    CHECKED_STEPS,
    CLIP_NORM,
    LEARNING_RATE,
    Array,
    Outputs,
    Problem,
    batches,
    network_of,
    validation_batch,
)
from . import Task

NAME = "kernels"
FROM_PYTHON = "RNN.step from Python"
IN_A_CALL = "kernels, all steps in a call"
SMALL = {dtype: f"kernels, {dtype} weights" for dtype in SMALL_DTYPES}
HALF = SMALL["bfloat16"]


def tasks(problem: Problem, device: str = "cpu", compute_dtype: str = "float32") -> dict[str, Task]:
    """The kernels' own task first; then, for `step`, those that a call from Python and a call for
    all steps take, and for `sample` those with weights stored as bfloat16 and as int8.

    With a device other than the CPU, the first task is also made there, whose calls copy arrays to
    and fro. With another compute_dtype it is also made so. Products are not: only networks have a
    device and a compute_dtype.
    """
    make: dict[str, Callable[..., Task]] = {
        "train": _train,
        "time-to-loss": _train,
        "forward": _forward,
        "backward": _backward,
        "sample": _sample,
        "step": _step,
        "gemm": _gemm,
    }
    made = {NAME: make[problem.case.suite](problem)}
    if problem.case.suite == "step":
        made[FROM_PYTHON] = _python_step(problem)
        made[IN_A_CALL] = _steps_in_a_call(problem)
    if problem.case.suite == "sample":
        for dtype, name in SMALL.items():
            made[name] = _sample(problem, dtype)
    if compute_dtype != "float32" and problem.case.suite != "gemm":
        how = {"compute_dtype": compute_dtype}
        made[computing(compute_dtype)] = make[problem.case.suite](problem, **how)
    if device != "cpu" and problem.case.suite != "gemm":
        made[f"{NAME} on {device}"] = make[problem.case.suite](problem, device=device)
    return made


def computing(compute_dtype: str) -> str:
    """The name of the side whose products have operands of this format."""
    return f"{NAME}, {compute_dtype} products"


def _network(problem: Problem, device: str = "cpu", compute_dtype: str = "float32") -> Any:
    rnn = network_of(problem.network, device, compute_dtype)
    rnn.load_parameters(problem.parameters)
    return rnn


def _rounded(problem: Problem, dtype: str, **place: str) -> Any:
    """The network whose weights are those that sampling with this type of weights reads."""
    rnn = network_of(problem.network, **place)
    rnn.load_parameters({name: read_as(dtype, name, p) for name, p in problem.parameters.items()})
    return rnn


def _train(problem: Problem, **place: str) -> Task:
    case = problem.network
    rnn = _network(problem, **place)
    optimizer = optim.Adam(rnn, lr=LEARNING_RATE)
    data = batches(problem.arrays["ids"], case.batch, case.seq_len)
    state = rnn.states.zeros(case.batch)

    def run() -> float:
        x, y = next(data)
        loss: float = rnn.core.train_step(
            x, y, state, optimizer.core, LEARNING_RATE, CLIP_NORM, math.inf, "mean"
        )[0]
        return loss

    def evaluate() -> float:
        x, y = validation_batch(problem.arrays["validation"])
        total, count = rnn.core.evaluate(x, y, rnn.states.zeros(x.shape[1]))
        return float(total / count)

    return Task(
        lambda: {"losses": np.array([run() for _ in range(CHECKED_STEPS)])}, run, 1, evaluate
    )


def _forward(problem: Problem, **place: str) -> Task:
    rnn, tokens = _network(problem, **place), problem.arrays["tokens"]

    def run() -> Array:
        y: Array = rnn.forward(tokens, keep=False)[0]
        return y

    return Task(lambda: {"y": run()}, run)


def _backward(problem: Problem, **place: str) -> Task:
    rnn = _network(problem, **place)
    tokens, dy = problem.arrays["tokens"], problem.arrays["dy"]
    rnn.forward(tokens)

    def run() -> Outputs:
        gradients: Outputs = rnn.backward(dy)[2]
        return gradients

    return Task(run, run)


def _sample(problem: Problem, weights: str = "", **place: str) -> Task:
    case = problem.network
    rnn, tokens = _network(problem, **place), problem.arrays["tokens"]
    # Arithmetic is that of float32: with small weights the draws are those of the rounded ones.
    same = _rounded(problem, weights, **place) if weights else rnn
    first = np.ascontiguousarray(tokens[0])
    seeds = np.arange(case.batch, dtype=np.uint64)
    state = rnn.states.zeros(case.batch)

    def check() -> Outputs:
        # What is timed draws the characters too. Greedy draws must be what the logits say, which
        # themselves are compared with the other sides'.
        drawn = rnn.core.sample(
            8, first, rnn.states.zeros(case.batch), seeds, 0, 0.0, 0, 1.0, weights
        )
        fed = np.concatenate((first[None], drawn[:-1]))
        if not np.array_equal(same.forward(fed)[0].argmax(-1), drawn):
            raise BenchError(f"{case.label}: sampling and forward of the kernels disagree")
        return {"logits": rnn.forward(tokens)[0]}

    def run() -> Array:
        drawn: Array = rnn.core.sample(case.seq_len, first, state, seeds, 0, 1.0, 0, 1.0, weights)
        return drawn

    return Task(check, run, case.seq_len * case.batch)


def _step(problem: Problem, **place: str) -> Task:
    case = problem.network
    rnn, x = _network(problem, **place), problem.arrays["x"]
    state = rnn.states.zeros(case.batch)

    def check() -> Outputs:
        # The steps that are timed must be those that Python sees: the same states from one input.
        stepped = rnn.states.zeros(case.batch)
        _core.time_steps(rnn.core, x[0], stepped, CHECKED_STEPS)
        for _ in range(CHECKED_STEPS):
            rnn.step(x[0])
        carried = rnn.state
        seen = rnn.states.joined(carried if isinstance(carried, tuple) else [carried])
        rnn.reset()
        if not np.array_equal(stepped, seen):
            raise BenchError(f"{case.label}: steps from C++ and from Python disagree")
        return {"y": rnn.forward(x, keep=False)[0]}

    return Task(check, lambda: _core.time_steps(rnn.core, x[0], state, case.seq_len), case.seq_len)


def _python_step(problem: Problem) -> Task:
    rnn, x = _network(problem), problem.arrays["x"]

    def check() -> Outputs:
        return {"y": np.stack([rnn.step(row) for row in x])}

    def run() -> None:
        for row in x:
            rnn.step(row)

    return Task(check, run, len(x))


def _steps_in_a_call(problem: Problem) -> Task:
    rnn, x = _network(problem), problem.arrays["x"]

    def run() -> Array:
        y: Array = rnn.forward(x, keep=False)[0]
        return y

    return Task(lambda: {"y": run()}, run, len(x))


def _gemm(problem: Problem) -> Task:
    a, b = problem.arrays["a"], problem.arrays["b"]
    return Task(lambda: {"c": _core.gemm(a, b)}, lambda: _core.gemm(a, b))

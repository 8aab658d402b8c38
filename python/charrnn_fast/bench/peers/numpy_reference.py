"""The package's own NumPy reference, and NumPy's matmul. BLAS has the threads of its process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ... import reference
from ...registry import CELL_NAMES
from ..problem import CHECKED_STEPS, CLIP_NORM, LEARNING_RATE, Array, Outputs, Problem, batches
from . import Peer, Task

NAME = "numpy"


class NumPy:
    cells = CELL_NAMES

    def __init__(self, threads: int) -> None:
        self.version = np.__version__

    def tasks(self, problem: Problem) -> dict[str, Task]:
        make: dict[str, Callable[[Problem], Task]] = {
            "train": _train,
            "forward": _forward,
            "backward": _backward,
            "sample": _sample,
            "step": _step,
            "gemm": _gemm,
        }
        suite = problem.case.suite
        return {NAME: make[suite](problem)} if suite in make else {}


def _train(problem: Problem) -> Task:
    case, parameters = problem.network, problem.parameters
    optimizer = reference.Adam(parameters, LEARNING_RATE)
    data = batches(problem.arrays["ids"], case.batch, case.seq_len)
    state: Any = None

    def run() -> float:
        nonlocal state
        x, y = next(data)
        logits, state, cache = reference.forward(parameters, x, state, cell=case.cell)
        loss, dlogits = reference.cross_entropy(logits, y)
        grads = reference.backward(parameters, cache, dlogits)[2]
        reference.clip_grad_norm(grads, CLIP_NORM)
        optimizer.step(grads)
        return loss

    return Task(lambda: {"losses": np.array([run() for _ in range(CHECKED_STEPS)])}, run)


def _forward(problem: Problem) -> Task:
    case, tokens = problem.network, problem.arrays["tokens"]

    def run() -> Array:
        return reference.forward(problem.parameters, tokens, cell=case.cell)[0]

    return Task(lambda: {"y": run()}, run)


def _backward(problem: Problem) -> Task:
    case, dy = problem.network, problem.arrays["dy"]
    tokens = problem.arrays["tokens"]
    _, _, cache = reference.forward(problem.parameters, tokens, cell=case.cell)

    def run() -> Outputs:
        return reference.backward(problem.parameters, cache, dy)[2]

    return Task(run, run)


def _sample(problem: Problem) -> Task:
    case, tokens = problem.network, problem.arrays["tokens"]
    last, state = tokens[0], None

    def check() -> Outputs:
        return {"logits": reference.forward(problem.parameters, tokens, cell=case.cell)[0]}

    def run() -> None:
        nonlocal last, state
        seeds = range(case.batch)
        drawn, state = reference.sample(
            problem.parameters, case.seq_len, last, seeds, state, cell=case.cell
        )
        last = drawn[-1]

    return Task(check, run, case.seq_len * case.batch)


def _step(problem: Problem) -> Task:
    case, x = problem.network, problem.arrays["x"]
    state: Any = None

    def step(row: Array) -> Array:
        nonlocal state
        y, state, _ = reference.forward(problem.parameters, row[None], state, cell=case.cell)
        first: Array = y[0]
        return first

    def run() -> None:
        for row in x:
            step(row)

    return Task(lambda: {"y": np.stack([step(row) for row in x])}, run, len(x))


def _gemm(problem: Problem) -> Task:
    a, b = problem.arrays["a"], problem.arrays["b"]
    return Task(lambda: {"c": a @ b}, lambda: a @ b)


PEER: type[Peer] = NumPy

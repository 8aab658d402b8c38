"""PyTorch, eager: torch.nn.RNN, LSTM or GRU and Linear, as a program for PyTorch is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..problem import (
    CHECKED_STEPS,
    CLIP_NORM,
    LEARNING_RATE,
    Array,
    Outputs,
    Problem,
    batches,
    validation_batch,
)
from . import Peer, Task, require

NAME = "torch"


class Torch:
    cells: tuple[str, ...] = ("rnn", "gru", "lstm")

    def __init__(self, threads: int) -> None:
        self.torch = require("torch")
        self.torch.set_num_threads(threads)
        self.version: str = self.torch.__version__

    def tasks(self, problem: Problem) -> dict[str, Task]:
        make: dict[str, Callable[[Problem], Task]] = {
            "train": self.train,
            "time-to-loss": self.train,
            "forward": self.forward,
            "backward": self.backward,
            "sample": self._sample,
            "step": self._step,
            "gemm": self._gemm,
        }
        return {NAME: make[problem.case.suite](problem)}

    def module(self, problem: Problem) -> Any:
        """A ModuleDict of `rnn` and, where the problem has one, `decoder`, with its weights."""
        torch, case = self.torch, problem.network
        cell = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[case.cell]
        parts = {"rnn": cell(case.input_size, case.hidden_size, case.num_layers)}
        if "decoder.weight" in problem.parameters:
            parts["decoder"] = torch.nn.Linear(case.hidden_size, case.input_size)
        module = torch.nn.ModuleDict(parts)
        module.load_state_dict(
            {
                name if name.startswith("decoder") else f"rnn.{name}": torch.tensor(value)
                for name, value in problem.parameters.items()
            }
        )
        return module

    def train(self, problem: Problem, transform: Callable[[Any], Any] | None = None) -> Task:
        """transform: what is applied to the function that gives the loss, torch.compile say."""
        torch, case = self.torch, problem.network
        functional = torch.nn.functional
        module = self.module(problem)
        weights = list(module.parameters())
        optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE)
        one_hot = torch.eye(case.input_size)
        data = batches(problem.arrays["ids"], case.batch, case.seq_len)
        state = self._zero_state(problem)

        def loss_of(x: Any, y: Any, state: Any) -> tuple[Any, Any]:
            h, state = module["rnn"](functional.embedding(x, one_hot), state)
            logits = module["decoder"](h).flatten(0, 1)
            return functional.cross_entropy(logits, y.flatten()), state

        compute = loss_of if transform is None else transform(loss_of)

        def run() -> float:
            nonlocal state
            x, y = (torch.from_numpy(a).long() for a in next(data))
            optimizer.zero_grad(set_to_none=True)
            loss, state = compute(x, y, state)
            state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, CLIP_NORM)
            optimizer.step()
            return float(loss.detach())

        def evaluate() -> float:
            x, y = validation_batch(problem.arrays["validation"])
            with torch.inference_mode():
                x, y = (torch.from_numpy(a).long() for a in (x, y))
                zeros = self._zero_state(problem, x.shape[1])
                return float(loss_of(x, y, zeros)[0])

        return Task(
            lambda: {"losses": np.array([run() for _ in range(CHECKED_STEPS)])}, run, 1, evaluate
        )

    def forward(self, problem: Problem, transform: Callable[[Any], Any] | None = None) -> Task:
        torch, case = self.torch, problem.network
        layers = self.module(problem)["rnn"]
        one_hot = torch.eye(case.input_size)
        tokens = torch.from_numpy(problem.arrays["tokens"]).long()

        def output(x: Any) -> Any:
            return layers(torch.nn.functional.embedding(x, one_hot))[0]

        compute = output if transform is None else transform(output)

        def run() -> Any:
            with torch.inference_mode():
                return compute(tokens)

        return Task(lambda: {"y": run().numpy()}, run)

    def backward(self, problem: Problem, transform: Callable[[Any], Any] | None = None) -> Task:
        torch, case = self.torch, problem.network
        layers = self.module(problem)["rnn"]
        one_hot = torch.eye(case.input_size)
        tokens = torch.from_numpy(problem.arrays["tokens"]).long()
        dy = torch.from_numpy(problem.arrays["dy"])
        weights = dict(layers.named_parameters())
        y = layers(torch.nn.functional.embedding(tokens, one_hot))[0]

        def run() -> Any:
            return torch.autograd.grad(y, list(weights.values()), dy, retain_graph=True)

        def check() -> Outputs:
            return {name: g.numpy() for name, g in zip(weights, run(), strict=True)}

        return Task(check, run)

    def _sample(self, problem: Problem) -> Task:
        torch, case = self.torch, problem.network
        module = self.module(problem)
        layers, decoder = module["rnn"], module["decoder"]
        one_hot = torch.eye(case.input_size)
        tokens = torch.from_numpy(problem.arrays["tokens"]).long()
        last, state = tokens[0], self._zero_state(problem)

        def step(x: Any, state: Any) -> tuple[Any, Any]:
            h, state = layers(torch.nn.functional.embedding(x, one_hot)[None], state)
            return decoder(h[0]), state

        def check() -> Outputs:
            logits, h = [], self._zero_state(problem)
            with torch.inference_mode():
                for x in tokens:
                    y, h = step(x, h)
                    logits.append(y.numpy())
            return {"logits": np.stack(logits)}

        def run() -> None:
            nonlocal last, state
            with torch.inference_mode():
                for _ in range(case.seq_len):
                    y, state = step(last, state)
                    last = torch.multinomial(torch.softmax(y, -1), 1)[:, 0]

        return Task(check, run, case.seq_len * case.batch)

    def _step(self, problem: Problem) -> Task:
        torch = self.torch
        layers = self.module(problem)["rnn"]
        x = torch.from_numpy(problem.arrays["x"])
        state = self._zero_state(problem)

        def steps() -> list[Any]:
            nonlocal state
            outputs = []
            with torch.inference_mode():
                for row in x:
                    y, state = layers(row[None], state)
                    outputs.append(y[0])
            return outputs

        def check() -> Outputs:
            y: Array = torch.stack(steps()).numpy()
            return {"y": y}

        return Task(check, steps, len(x))

    def _gemm(self, problem: Problem) -> Task:
        torch = self.torch
        a, b = (torch.from_numpy(problem.arrays[name]) for name in "ab")
        return Task(lambda: {"c": torch.mm(a, b).numpy()}, lambda: torch.mm(a, b))

    def _zero_state(self, problem: Problem, batch: int | None = None) -> Any:
        case = problem.network
        shape = (case.num_layers, batch or case.batch, case.hidden_size)
        zeros = self.torch.zeros(shape)
        return (zeros, self.torch.zeros(shape)) if case.cell == "lstm" else zeros


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


PEER: type[Peer] = Torch

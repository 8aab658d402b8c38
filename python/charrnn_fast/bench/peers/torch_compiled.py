"""The same PyTorch program under torch.compile.

torch.compile does not look into torch.nn.RNN, LSTM and GRU unless told to, and runs them as eager
does; it compiles what is around them. Told to (torch._dynamo.config.allow_rnn), it writes out every
step: over a minute for 25 of them in PyTorch 2.13, and an error for an LSTM.
"""

from __future__ import annotations

from typing import Any

from ..errors import UnavailableError
from ..problem import Outputs, Problem
from . import Peer, Task
from .torch_eager import Torch

NAME = "torch.compile"


class TorchCompile(Torch):
    def tasks(self, problem: Problem) -> dict[str, Task]:
        suite = problem.case.suite
        if suite not in ("train", "forward"):
            return {}
        self.torch.compiler.reset()
        make = self.train if suite == "train" else self.forward
        task = make(problem, self.torch.compile)

        def check() -> Outputs:
            try:
                return task.check()  # compiles
            except Exception as error:  # of many kinds: no compiler, no Python headers, ...
                raise UnavailableError(_first_line(error)) from None

        return {NAME: Task(check, task.run, task.units)}


def _first_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"torch.compile failed: {type(error).__name__}: {lines[0] if lines else 'no message'}"


PEER: type[Peer] = TorchCompile

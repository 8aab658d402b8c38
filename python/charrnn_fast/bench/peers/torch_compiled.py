"""The same PyTorch program under torch.compile.

torch.compile does not look into torch.nn.RNN, LSTM and GRU unless told to, and runs them as eager
does; it compiles what is around them. Told to (torch._dynamo.config.allow_rnn), it writes out every
step: over a minute for 25 of them in PyTorch 2.13, and an error for an LSTM.
"""

from __future__ import annotations

from ..errors import UnavailableError
from ..problem import Outputs, Problem
from . import Peer, Task
from .torch_eager import Torch, first_line

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
                reason = first_line(error)
                raise UnavailableError(f"torch.compile failed: {reason}") from None

        return {NAME: Task(check, task.run, task.units)}


PEER: type[Peer] = TorchCompile

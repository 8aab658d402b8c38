"""The same PyTorch program, eager, under autocast to bfloat16: its mixed precision.

The gradients are computed outside of autocast, as PyTorch advises. Autocast decides by operator:
PyTorch 2.13 on the CPU rounds the products of RNN, LSTM and Linear, and leaves GRU in float32. Its
LSTM needs an instruction set that oneDNN has bfloat16 for; elsewhere it raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import UnavailableError
from ..problem import Outputs, Problem
from . import ROUNDED_PEER, Peer, Task
from .torch_eager import Torch, first_line


class TorchAutocast(Torch):
    def tasks(self, problem: Problem) -> dict[str, Task]:
        if problem.case.suite != "train":
            return {}
        task = self.train(problem, self._autocast)

        def check() -> Outputs:
            try:
                return task.check()
            except RuntimeError as error:
                reason = first_line(error)
                raise UnavailableError(f"autocast to bfloat16 failed: {reason}") from None

        return {ROUNDED_PEER: Task(check, task.run, task.units)}

    def _autocast(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        def in_bfloat16(*arguments: Any) -> Any:
            with self.torch.autocast("cpu", self.torch.bfloat16):
                return compute(*arguments)

        return in_bfloat16


PEER: type[Peer] = TorchAutocast

"""Optimizers: fused updates of a network's parameters, by PyTorch's formulas.

``opt = Adam(rnn, lr=2e-3)``, then ``opt.step(grads)`` after each ``rnn.backward``. The formulas and
their sources stand in ``cpp/include/charrnn_fast/optimizers.hpp``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._checks import instance, real
from ._names import suggesting
from .rnn import RNN

Array = NDArray[Any]


class Optimizer:
    """What all optimizers share. lr, the learning rate, may be changed between steps."""

    def __init__(self, rnn: Any, rule: str, lr: float, hyper: dict[str, float]) -> None:
        """rnn: an `RNN`, or what has one as its `rnn`, like a `CharLM`."""
        network = rnn if isinstance(rnn, RNN) else getattr(rnn, "rnn", None)
        if not isinstance(network, RNN):
            raise TypeError(f"rnn must be an RNN or have one as .rnn, got {type(rnn).__name__}")
        self.lr = real("lr", lr, least=0)
        self._rnn = network
        make: Any = (
            _core.OptimizerFloat32 if network.dtype == np.float32 else _core.OptimizerFloat64
        )
        numbers = {
            name: real(name, float(v) if v is True or v is False else v)
            for name, v in hyper.items()
        }
        self._core: Any = make(rule, network._core, numbers)

    def step(self, grads: Mapping[str, Array]) -> None:
        """One update from the gradients by name that `RNN.backward` returns.

        Raises ValueError for missing, unknown or misshapen arrays, TypeError for another dtype;
        then nothing has changed.
        """
        instance("grads", grads, Mapping, "a mapping of arrays by name")
        shapes: dict[str, tuple[int, ...]] = self._rnn._core.parameter_shapes()
        if grads.keys() != shapes.keys():
            raise ValueError(
                f"grads must have the network's parameters {list(shapes)}, got {list(grads)}"
            )
        for name, shape in shapes.items():
            self._rnn._check_parameter(f"grads[{name!r}]", grads[name], shape)
        self._core.step(dict(grads), real("lr", self.lr, least=0))


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: b = momentum b + (1 - dampening) g; p -= lr b."""

    @suggesting
    def __init__(
        self,
        rnn: Any,
        lr: float = 1e-3,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        hyper = {
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
        }
        super().__init__(rnn, "sgd", lr, hyper)


class RMSprop(Optimizer):
    """s = alpha s + (1 - alpha) g^2; p -= lr g / (sqrt(s) + eps) (Tieleman and Hinton, 2012)."""

    @suggesting
    def __init__(
        self,
        rnn: Any,
        lr: float = 1e-2,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        if not real("alpha", alpha) < 1:  # s would never change
            raise ValueError(f"alpha must be finite, below 1, got {alpha}")
        hyper = {
            "alpha": alpha,
            "eps": eps,
            "momentum": momentum,
            "centered": centered,
            "weight_decay": weight_decay,
        }
        super().__init__(rnn, "rmsprop", lr, hyper)


class Adagrad(Optimizer):
    """s += g^2; p -= lr g / (sqrt(s) + eps) (Duchi et al., 2011)."""

    @suggesting
    def __init__(
        self,
        rnn: Any,
        lr: float = 1e-2,
        *,
        lr_decay: float = 0.0,
        eps: float = 1e-10,
        initial_accumulator_value: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        hyper = {
            "lr_decay": lr_decay,
            "eps": eps,
            "initial_accumulator_value": initial_accumulator_value,
            "weight_decay": weight_decay,
        }
        super().__init__(rnn, "adagrad", lr, hyper)


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015); weight decay is added to the gradient."""

    _rule = "adam"

    @suggesting
    def __init__(
        self,
        rnn: Any,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not isinstance(betas, (tuple, list)):
            raise TypeError(f"betas must be two numbers (beta1, beta2), got {betas!r}")
        if len(betas) != 2:
            raise ValueError(f"betas must be two numbers (beta1, beta2), got {betas!r}")
        beta1, beta2 = betas
        hyper = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        super().__init__(rnn, self._rule, lr, hyper)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    _rule = "adamw"

    @suggesting
    def __init__(
        self,
        rnn: Any,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(rnn, lr, betas=betas, eps=eps, weight_decay=weight_decay)


def memory(rule: str, rnn: RNN) -> int:
    """The bytes that an optimizer ("sgd", "adam", ...) with its default settings holds for rnn."""
    kind: Any = _core.OptimizerFloat32 if rnn.dtype == np.float32 else _core.OptimizerFloat64
    return int(kind.memory(rule, rnn._core, {}))

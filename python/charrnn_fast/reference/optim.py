"""Optimizers by torch.optim's formulas; they change the arrays of `parameters` in place."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from .arrays import Array, Parameters


class Optimizer(ABC):
    def __init__(self, parameters: Parameters, lr: float, weight_decay: float) -> None:
        self.parameters, self.lr, self.weight_decay = parameters, lr, weight_decay
        self.num_steps = 0
        self.slots: dict[str, Parameters] = {name: {} for name in parameters}

    def step(self, grads: Parameters) -> None:
        """One update from the gradients by name, each of its parameter's shape."""
        self.num_steps += 1
        for name, p in self.parameters.items():
            g = grads[name] + self.weight_decay * p if self.weight_decay else grads[name]
            self._update(p, g, self.slots[name])

    @abstractmethod
    def _update(self, p: Array, g: Array, slot: Parameters) -> None:
        """Update p from g, which includes the weight decay; `slot` holds p's running averages."""


class SGD(Optimizer):
    """buf = momentum buf + (1 - dampening) g, at first g; p -= lr buf."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov

    def _update(self, p: Array, g: Array, slot: Parameters) -> None:
        if self.momentum:
            buf = slot.get("momentum_buffer")
            buf = g if buf is None else self.momentum * buf + (1 - self.dampening) * g
            slot["momentum_buffer"] = buf
            g = g + self.momentum * buf if self.nesterov else buf
        p -= self.lr * g


class RMSprop(Optimizer):
    """v = alpha v + (1 - alpha) g^2; p -= lr g / (sqrt(v) + eps). Tieleman and Hinton (2012).

    `centered` subtracts the square of g's running mean from v; `momentum` is as in SGD.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-2,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.alpha, self.eps, self.momentum, self.centered = alpha, eps, momentum, centered

    def _update(self, p: Array, g: Array, slot: Parameters) -> None:
        v = slot["square_avg"] = self.alpha * slot.get("square_avg", 0) + (1 - self.alpha) * g * g
        if self.centered:
            mean = slot["grad_avg"] = self.alpha * slot.get("grad_avg", 0) + (1 - self.alpha) * g
            v = v - mean * mean
        update = g / (np.sqrt(v) + self.eps)
        if self.momentum:
            update = slot["momentum_buffer"] = (
                self.momentum * slot.get("momentum_buffer", 0) + update
            )
        p -= self.lr * update


class Adagrad(Optimizer):
    """v += g^2; p -= lr / (1 + (steps - 1) lr_decay) g / (sqrt(v) + eps). Duchi et al. (2011)."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-2,
        *,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.lr_decay, self.initial, self.eps = lr_decay, initial_accumulator_value, eps

    def _update(self, p: Array, g: Array, slot: Parameters) -> None:
        v = slot["sum"] = slot.get("sum", self.initial) + g * g
        p -= self.lr / (1 + (self.num_steps - 1) * self.lr_decay) * g / (np.sqrt(v) + self.eps)


class Adam(Optimizer):
    """Kingma and Ba (2015), algorithm 1: moments m and v of g, both with bias correction."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.betas, self.eps = betas, eps

    def _update(self, p: Array, g: Array, slot: Parameters) -> None:
        beta1, beta2 = self.betas
        m = slot["exp_avg"] = beta1 * slot.get("exp_avg", 0) + (1 - beta1) * g
        v = slot["exp_avg_sq"] = beta2 * slot.get("exp_avg_sq", 0) + (1 - beta2) * g * g
        correction1, correction2 = 1 - beta1**self.num_steps, 1 - beta2**self.num_steps
        p -= self.lr / correction1 * m / (np.sqrt(v) / correction2**0.5 + self.eps)


class AdamW(Adam):
    """Adam with decoupled weight decay: p *= 1 - lr weight_decay. Loshchilov and Hutter (2019)."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(parameters, lr, betas=betas, eps=eps)
        self.decay = weight_decay

    def _update(self, p: Array, g: Array, slot: Parameters) -> None:
        p *= 1 - self.lr * self.decay
        super()._update(p, g, slot)

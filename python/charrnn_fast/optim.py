"""Optimizers: fused updates of a network's parameters, by PyTorch's formulas.

``opt = Adam(rnn, lr=2e-3)``, then ``opt.step(grads)`` after each ``rnn.backward``. The formulas and
their sources are in ``cpp/include/charrnn_fast/optimizers.hpp``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from . import _core, _devices
from ._checks import MOST_STEPS, instance, integer, real
from ._names import suggesting
from ._objects import Settled
from .device_array import DeviceArray, is_of_a_gpu
from .registry import OPTIMIZERS
from .rnn import RNN

Array = NDArray[Any]


_STATE_KEYS = ("optimizer", "step", "options", "state")


class Optimizer(Settled):
    """The base of all optimizers. lr, the learning rate, may be changed between steps.

    `rnn` is the network to update, whose device holds the state too. The other options are
    attributes that only `load_state_dict` changes. A deep copy (by `copy` or `pickle`) continues
    with the same bits and copies the network too, as its `rnn`. To copy both, use
    ``rnn, optimizer = copy.deepcopy((rnn, optimizer))``.
    """

    rnn: RNN
    lr: float

    _settable = frozenset(("lr",))
    _advice = {  # noqa: RUF012
        "": "of an optimizer's options only lr may be changed between steps; load_state_dict "
        "takes others, with a state that fits them",
        "rnn": "an optimizer is of one network; make another one",
    }
    _covered = frozenset(("_core", "_rule", "_options"))

    def __init__(self, rnn: Any, rule: str, lr: float, options: dict[str, Any]) -> None:
        """rnn: an `RNN`, or an object with one as its `rnn`, like a `CharLM`."""
        network = rnn if isinstance(rnn, RNN) else getattr(rnn, "rnn", None)
        if not isinstance(network, RNN):
            raise TypeError(f"rnn must be an RNN or have one as .rnn, got {type(rnn).__name__}")
        self.lr = real("lr", lr, least=0)
        self.rnn = network
        make: Any = (
            _core.OptimizerFloat32 if network.dtype == np.float32 else _core.OptimizerFloat64
        )
        numbers: dict[str, float] = {}
        for name, value in options.items():
            if name == "betas":
                beta1, beta2 = value
                numbers |= {"beta1": real("beta1", beta1), "beta2": real("beta2", beta2)}
            else:
                flag = value is True or value is False
                numbers[name] = real(name, float(value) if flag else value)
        needed = make.memory(rule, network.core, numbers)
        device = _devices.find(network.device)
        with device.enough_memory(needed, f"the state of {rule}", "a smaller network, or sgd"):
            self._core: Any = make(rule, network.core, numbers)
        self._rule, known = rule, OPTIMIZERS[rule].options
        self._options: dict[str, Any] = {
            name: bool(number) if isinstance(known[name], bool) else number
            for name, number in numbers.items()
            if name not in ("beta1", "beta2")
        }
        if "betas" in options:
            self._options = {"betas": (numbers["beta1"], numbers["beta2"]), **self._options}
        for name, value in self._options.items():
            setattr(self, name, value)

    @property
    def core(self) -> Any:
        """The compiled optimizer of `_core`, for the modules of this package."""
        return self._core

    def __repr__(self) -> str:
        options = {"lr": self.lr, **self._options}
        shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
        return f"<{type(self).__name__}({shown}) of {self.rnn!r}, {self._core.num_steps:,} steps>"

    def step(self, grads: Mapping[str, Array | DeviceArray]) -> None:
        """One update from the gradients by name, as `RNN.backward` returns them.

        Arrays of the network's GPU must be stored as those that backward returned, which other
        libraries may have changed in place. The host waits for nothing then. Raises ValueError for
        missing, unknown or misshapen arrays and TypeError for another dtype; then nothing has
        changed.
        """
        instance("grads", grads, Mapping, "a mapping of arrays by name")
        shapes: dict[str, tuple[int, ...]] = self.rnn.core.parameter_shapes()
        if grads.keys() != shapes.keys():
            raise ValueError(
                f"grads must have the network's parameters {list(shapes)}, got {list(grads)}"
            )
        lr = real("lr", self.lr, least=0)
        if any(map(is_of_a_gpu, grads.values())):
            self._core.step_on_device(self.rnn.on_device.gradients(grads).address, lr)
            return
        for name, shape in shapes.items():
            self.rnn.check_parameter(f"grads[{name!r}]", grads[name], shape)
        self._core.step(dict(grads), lr)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next updates depend on besides the parameters: a dict.

        "optimizer": "sgd", "rmsprop", "adagrad", "adam" or "adamw"
        "step": the updates done
        "options": lr and the other keywords of the constructor
        "state": for each parameter a dict of arrays of its shape and dtype, in C order, with
            PyTorch's names: "momentum_buffer" (sgd with momentum); "square_avg" and, if enabled,
            "grad_avg" and "momentum_buffer" (rmsprop); "sum" (adagrad); "exp_avg" and "exp_avg_sq"
            (adam, adamw)
        """
        core = self._core
        return {
            "optimizer": self._rule,
            "step": core.num_steps,
            "options": {"lr": self.lr, **self._options},
            "state": {
                name: {slot: np.array(core.slot(slot, name), order="C") for slot in core.slot_names}
                for name in self.rnn.core.parameter_shapes()
            },
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores the `state_dict` of an optimizer of the same kind, options included.

        With the parameters of that time, the next updates have the same bits. Raises TypeError or
        ValueError for missing or unknown names, another kind of optimizer, wrong options and arrays
        of another shape or dtype; then nothing has changed.
        """
        instance("state_dict", state_dict, Mapping, "a mapping as state_dict() gives it")
        _check_names("state_dict", state_dict, _STATE_KEYS)
        rule, options, state = (state_dict[key] for key in ("optimizer", "options", "state"))
        if rule != self._rule:
            raise ValueError(
                f"state_dict['optimizer'] must be {self._rule!r}, as this one is, got {rule!r}"
            )
        step = integer("state_dict['step']", state_dict["step"], 0, MOST_STEPS)
        _check_names("state_dict['options']", options, ("lr", *self._options))
        made = KINDS[rule](self.rnn, **options)
        slots = made.core.slot_names
        shapes: dict[str, tuple[int, ...]] = self.rnn.core.parameter_shapes()
        _check_names("state_dict['state']", state, shapes)
        for name, shape in shapes.items():
            where = f"state_dict['state'][{name!r}]"
            _check_names(where, state[name], slots)
            for slot in slots:
                self.rnn.check_parameter(f"{where}[{slot!r}]", state[name][slot], shape)
        for name in shapes:
            for slot in slots:
                made.core.set_slot(slot, name, state[name][slot])
        made.core.num_steps = step
        self.__dict__.update(vars(made))

    def _pickled(self) -> dict[str, Any]:
        return {"rnn": self.rnn, "state_dict": self.state_dict()}

    def _unpickle(self, saved: dict[str, Any]) -> None:
        rnn, state_dict = saved["rnn"], saved["state_dict"]
        instance("rnn", rnn, RNN, "an RNN")
        made = KINDS[state_dict["optimizer"]](rnn, **state_dict["options"])
        made.load_state_dict(state_dict)
        self.__dict__.update(vars(made))


def _check_names(what: str, given: object, names: Iterable[str]) -> None:
    instance(what, given, Mapping, "a mapping")
    expected = list(names)
    if set(cast("Mapping[str, Any]", given)) != set(expected):
        raise ValueError(f"{what} must have {expected}, got {list(cast('Iterable[str]', given))}")


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: b = momentum b + (1 - dampening) g; p -= lr b."""

    momentum: float
    dampening: float
    nesterov: bool
    weight_decay: float

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
        options = {
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
        }
        super().__init__(rnn, "sgd", lr, options)


class RMSprop(Optimizer):
    """s = alpha s + (1 - alpha) g^2; p -= lr g / (sqrt(s) + eps) (Tieleman and Hinton, 2012)."""

    alpha: float
    eps: float
    momentum: float
    centered: bool
    weight_decay: float

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
        options = {
            "alpha": alpha,
            "eps": eps,
            "momentum": momentum,
            "centered": centered,
            "weight_decay": weight_decay,
        }
        super().__init__(rnn, "rmsprop", lr, options)


class Adagrad(Optimizer):
    """s += g^2; p -= lr g / (sqrt(s) + eps) (Duchi et al., 2011)."""

    lr_decay: float
    eps: float
    initial_accumulator_value: float
    weight_decay: float

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
        options = {
            "lr_decay": lr_decay,
            "eps": eps,
            "initial_accumulator_value": initial_accumulator_value,
            "weight_decay": weight_decay,
        }
        super().__init__(rnn, "adagrad", lr, options)


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015); weight decay is added to the gradient."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float

    _name = "adam"

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
        options = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(rnn, self._name, lr, options)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    _name = "adamw"

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


KINDS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
    "adam": Adam,
    "adamw": AdamW,
}


def memory(rule: str, rnn: RNN) -> int:
    """The bytes of an optimizer ("sgd", "adam", ...) with default settings for rnn."""
    kind: Any = _core.OptimizerFloat32 if rnn.dtype == np.float32 else _core.OptimizerFloat64
    return int(kind.memory(rule, rnn.core, {}))

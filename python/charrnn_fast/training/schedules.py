"""Learning-rate schedules: the factor on the learning rate over a training.

``Trainer(model, corpus, schedule=Cosine(epochs=20, warmup=1))``. A schedule has no state: its
factor follows from the epochs done and the evaluations so far, so a resumed training continues
exactly. To add a schedule, write one class here, enter it in `_SCHEDULES`, and see CONTRIBUTING.md
for the rest.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from .._checks import called, integer, real


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The base of all schedules, with `warmup`: epochs of linear warmup from 0.

    Warmup (Goyal et al., 2017, section 2.2) keeps Adam's first updates small: they would be large
    while its averages are young.
    """

    warmup: float = 0.0  # epochs

    name: ClassVar[str]

    def __post_init__(self) -> None:
        real("warmup", self.warmup, least=0)

    def factor(self, epoch: float, drops: int = 0) -> float:
        """The factor on the learning rate of the update in whose middle `epoch` epochs are done.

        drops: what `drops` returns for the evaluations so far.
        """
        rise = epoch / self.warmup if epoch < self.warmup else 1.0
        return rise * self._fall(epoch, drops)

    def drops(self, losses: Sequence[float]) -> int:
        """How often the schedule has lowered the rate, given all validation losses so far."""
        return 0

    def describe(self) -> str:
        """In words, for the line that says how a model is trained."""
        rise = f"rising over {self.warmup:.4g} epochs" if self.warmup else ""
        return ", ".join(filter(None, (rise, self._describe_fall())))

    def _fall(self, epoch: float, drops: int) -> float:
        return 1.0

    def _describe_fall(self) -> str:
        return ""


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """A constant learning rate, after the warmup."""

    name: ClassVar[str] = "constant"


@dataclass(frozen=True, kw_only=True)
class Decay(Schedule):
    """Multiplies the rate by `decay` after `after` epochs and after each further one."""

    decay: float = 0.97
    after: int = 10  # epochs

    name: ClassVar[str] = "decay"

    def __post_init__(self) -> None:
        super().__post_init__()
        real("decay", self.decay, above=0)
        integer("after", self.after, 1)

    def _fall(self, epoch: float, drops: int) -> float:
        try:
            return float(self.decay ** max(0, int(epoch) - self.after + 1))
        except OverflowError:  # decay is above 1
            return sys.float_info.max

    def _describe_fall(self) -> str:
        return f"x{self.decay:.6g} per epoch from epoch {self.after}" if self.decay != 1 else ""


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Cosine annealing to `final` at the end of `epochs` (Loshchilov and Hutter, 2017).

    It begins where the warmup ends. Afterwards the factor stays at `final`.
    """

    epochs: float = 20.0
    final: float = 0.0

    name: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        real("epochs", self.epochs, above=0)
        real("final", self.final, least=0, most=1)
        if self.warmup >= self.epochs:
            raise ValueError(
                f"{called('warmup')} must be below {called('epochs')}={self.epochs:.4g}, got "
                f"{self.warmup:.4g}"
            )

    def _fall(self, epoch: float, drops: int) -> float:
        done = (epoch - self.warmup) / (self.epochs - self.warmup)
        return self.final + (1 - self.final) * self._shape(min(max(done, 0.0), 1.0))

    def _shape(self, done: float) -> float:
        """Falls from 1 at done = 0 to 0 at done = 1."""
        return 0.5 + 0.5 * math.cos(math.pi * done)

    def _describe_fall(self) -> str:
        end = f"x{self.final:.4g}" if self.final else "0"
        return f"{self.name} to {end} at epoch {self.epochs:.4g}"


@dataclass(frozen=True, kw_only=True)
class Linear(Cosine):
    """Linear decay to `final` at the end of `epochs`."""

    name: ClassVar[str] = "linear"

    def _shape(self, done: float) -> float:
        return 1.0 - done


@dataclass(frozen=True, kw_only=True)
class Plateau(Schedule):
    """Multiplies the rate by `decay` after `patience` evaluations in a row without a new best.

    The count restarts after each drop. Only with this schedule do the weights depend on how often
    the model is evaluated.
    """

    decay: float = 0.5
    patience: int = 3  # evaluations

    name: ClassVar[str] = "plateau"

    def __post_init__(self) -> None:
        super().__post_init__()
        real("decay", self.decay, above=0, most=1)
        integer("patience", self.patience, 1)

    def drops(self, losses: Sequence[float]) -> int:
        best, waited, drops = math.inf, 0, 0
        for loss in losses:
            waited = 0 if loss < best else waited + 1
            best = min(best, loss)
            if waited == self.patience:
                waited, drops = 0, drops + 1
        return drops

    def _fall(self, epoch: float, drops: int) -> float:
        return float(self.decay**drops)

    def _describe_fall(self) -> str:
        return f"x{self.decay:.4g} after {self.patience} evaluations without a new best"


_SCHEDULES: dict[str, type[Schedule]] = {
    kind.name: kind for kind in (Constant, Decay, Cosine, Linear, Plateau)
}


def to_config(schedule: Schedule) -> dict[str, Any]:
    """As JSON values, for a checkpoint: numbers of NumPy become Python's."""
    values: dict[str, Any] = {"name": schedule.name}
    for field in fields(schedule):
        kind: Any = type(field.default)
        values[field.name] = kind(getattr(schedule, field.name))
    return values


def from_config(config: dict[str, Any]) -> Schedule:
    """The inverse of `to_config`. Raises ValueError for an unknown name or setting."""
    settings = dict(config)
    name = settings.pop("name", None)
    if name not in _SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(_SCHEDULES)}, got {name!r}")
    try:
        return _SCHEDULES[name](**settings)
    except TypeError as error:
        raise ValueError(f"the schedule {name} does not take {settings}: {error}") from None

"""Which settings of a training are tried, and the bounds that the budget sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from .. import registry
from ..training import advice

Settings = dict[str, Any]

EVALUATIONS = 8
"""Of a trial, at equal shares of its updates."""
PATIENCE = 3
"""Evaluations without a new best that end a trial."""

_TRIALS = 10  # the budget has time for so many of the dearest trials
_LEAST_TRIALS = 3  # of those whose length and width are held
_UNIT = 32  # hidden sizes are multiples of it
_MOST_UNITS, _MOST_LAYERS = 32, 3
_LEAST_EPOCHS, _LEAST_UPDATES = 2, 64  # of the widest model
_EPOCHS, _UPDATES = 60, 3000  # the longest trial: so many epochs, or as many as have the updates
_RANGE = 4  # the longest trial of a model has so many times the epochs of the shortest
_WARMUP = 0.05  # of all epochs: Adam's averages are young (Goyal et al., 2017)
_MOST_DROPOUT, _DROPOUT_STEP = 0.7, 0.05
# Learning rates by optimizer. Those of plain SGD and Adagrad are larger than Adam's.
_RATES = {"sgd": (2e-2, 2e1), "adagrad": (2e-3, 2e-1)}
_USUAL_RATES = (5e-4, 4e-2)
_PLAIN = {"hidden_size": 128, "num_layers": 2, "epochs": 20, "learning_rate": 2e-3}
_SUGGESTED_RATE = 3e-3
_WORTH = 320  # updates, and half of the epochs of train: with fewer a wide model learns little

TUNED = ("num_layers", "hidden_size", "epochs", "learning_rate", "dropout")
"""What is searched, unless it is held. dropout stands for output_dropout too."""


class Draw(Protocol):
    """What chooses values, as a trial of Optuna does."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...


class Text(NamedTuple):
    """What of a text sets bounds: its symbols to train on and to evaluate, and its vocabulary."""

    trained: int
    evaluated: int
    symbols: int


class Speed(NamedTuple):
    """The time of a symbol: the parameters over a speed, and what every model takes."""

    training: float
    """Parameters times symbols per second."""
    evaluation: float
    training_rest: float = 0.0
    """Seconds per symbol."""
    evaluation_rest: float = 0.0


@dataclass(frozen=True)
class Space:
    """The settings that trials may have.

    held: those that all trials share. limit: seconds that a trial may take, as estimated.
    """

    text: Text
    held: Mapping[str, Any]
    speed: Speed
    limit: float
    steps_per_epoch: int

    @classmethod
    def within(
        cls, budget: float, text: Text, held: Mapping[str, Any], speed: Speed, steps_per_epoch: int
    ) -> Space:
        """A space whose trials fit into budget seconds several times.

        Raises ValueError if not even one epoch of the smallest model does, some times.
        """
        space = cls(text, held, speed, budget / _TRIALS, steps_per_epoch)
        layers, width = held.get("num_layers", 1), held.get("hidden_size", _UNIT)
        least = space.seconds(layers, width, space.held_epochs or space._shortest)
        if least * _LEAST_TRIALS > budget:
            minutes = math.ceil(least * _LEAST_TRIALS / 6) / 10
            raise ValueError(
                f"--budget must be {minutes:g}m or more, got {budget / 60:,.3g}m: the smallest "
                f"trial takes about {least:,.3g} s on this machine, and a search is "
                f"{_LEAST_TRIALS} of them or more; {space.cheaper} takes less"
            )
        return replace(space, limit=max(space.limit, least))

    @property
    def held_epochs(self) -> float | None:
        """The epochs of all trials; None: each has its own."""
        if self.held.get("steps"):
            return float(self.held["steps"] / self.steps_per_epoch)
        return self.held.get("epochs")

    def parameters(self, layers: int, width: int) -> int:
        """About the parameters of a model."""
        cell = self.held.get("cell", "lstm")
        rows = registry.gates(cell) * width
        return rows * (self.text.symbols + width + (layers - 1) * 2 * width) + (
            width * self.text.symbols
        )

    def seconds(self, layers: int, width: int, epochs: float) -> float:
        """About the time of a trial."""
        parameters, speed = self.parameters(layers, width), self.speed
        trained = parameters / speed.training + speed.training_rest
        evaluated = parameters / speed.evaluation + speed.evaluation_rest
        return epochs * self.text.trained * trained + EVALUATIONS * self.text.evaluated * evaluated

    def describe(self) -> str:
        """What is searched, for a line."""
        layers, held = self._most_layers(), self.held
        ranges = []
        if "num_layers" not in held:
            ranges.append(f"1 to {layers} layers" if layers > 1 else "1 layer")
        if "hidden_size" not in held:
            most = max(self._most_units(n) for n in range(1, layers + 1)) * _UNIT
            ranges.append(f"{_UNIT} to {most} units" if most > _UNIT else f"{_UNIT} units")
        if self.held_epochs is None:
            width = held.get("hidden_size", _UNIT)
            most = self._most_epochs(held.get("num_layers", 1), width)
            ranges.append(f"1 to {most} epochs" if most > 1 else "1 epoch")
        if "learning_rate" not in held:
            low, high = self._rates()
            ranges.append(f"learning rate {low:g} to {high:g}")
        if "dropout" not in held:
            ranges.append(f"dropout 0 to {_MOST_DROPOUT:g}")
        return f"{', '.join(ranges) or 'nothing'}; a trial takes {self.limit:,.3g} s or less"

    @property
    def cheaper(self) -> str:
        """What makes trials shorter, for a message."""
        ways = ["a shorter text"]
        if self.held_epochs is None:
            ways.append("--steps with --evaluate-length")
        else:
            ways.append(f"fewer --{'steps' if self.held.get('steps') else 'epochs'}")
        if "hidden_size" in self.held:
            ways.append("a smaller --hidden-size")
        return f"{', '.join(ways[:-1])} or {ways[-1]}"

    @property
    def is_narrow(self) -> bool:
        """Whether the width is searched, but a layer as wide as by default takes too long."""
        return "hidden_size" not in self.held and not self._fits(1, int(_PLAIN["hidden_size"]))

    def settings(self, draw: Draw) -> Settings:
        """A trial's settings, without those that are held."""
        layers = self.held.get("num_layers")
        if layers is None:
            layers = draw.suggest_int("num_layers", 1, self._most_layers())
        width = self.held.get("hidden_size")
        if width is None:
            width = _UNIT * draw.suggest_int("width", 1, self._most_units(layers), log=True)
        epochs = None
        if self.held_epochs is None:
            most = self._most_epochs(layers, width)
            epochs = draw.suggest_int("epochs", self._least_epochs(most), most, log=True)
        rate = self.held.get("learning_rate")
        if rate is None:
            rate = float(f"{draw.suggest_float('learning_rate', *self._rates(), log=True):.2g}")
        dropout = self.held.get("dropout")
        if dropout is None:
            dropout = round(
                draw.suggest_float("dropout", 0.0, _MOST_DROPOUT, step=_DROPOUT_STEP), 2
            )
        return self._completed(layers, width, epochs, rate, dropout)

    def _completed(
        self, layers: int, width: int, epochs: int | None, rate: float, dropout: float
    ) -> Settings:
        found: Settings = {"num_layers": layers, "hidden_size": width, "learning_rate": rate}
        found["dropout"] = dropout
        if "dropout" not in self.held:  # Zaremba et al. (2014): between layers and of the output
            found["output_dropout"] = dropout
            found["dropout"] = dropout if layers > 1 else 0.0  # nothing is between one
        if epochs is not None:
            found["epochs"] = epochs
        if "schedule" not in self.held:
            found["schedule"] = "cosine"
            found["warmup"] = round(_WARMUP * (epochs or self.held_epochs or 0), 2)
        return {name: value for name, value in found.items() if name not in self.held}

    def first(self) -> list[Settings]:
        """What is tried before anything is known, as values for `Draw`: the defaults of train, and
        the widest model that is worth its time, with the dropout that `advice` has for it.
        """
        plain = self._drawn(_PLAIN["num_layers"], _PLAIN["hidden_size"], _PLAIN["epochs"])
        layers = self.held.get("num_layers") or min(2, self._most_layers())
        units = self._most_units(layers)
        worth = max(_PLAIN["epochs"] // 2, -(-_WORTH // self.steps_per_epoch))
        while units > 1 and self.held_epochs is None:
            if self._most_epochs(layers, units * _UNIT) >= worth:
                break
            units -= 1
        wide = self._drawn(layers, units * _UNIT, max(_PLAIN["epochs"], worth))
        case = advice.Case(
            self.text.trained,
            self.parameters(layers, self.held.get("hidden_size") or wide["width"] * _UNIT),
            self.held_epochs or wide["epochs"],
            layers=layers,
            annealed=True,
        )
        dropout = advice.dropout_for(case)
        return [
            {**plain, "learning_rate": self._in_rates(_PLAIN["learning_rate"]), "dropout": 0.0},
            {**wide, "learning_rate": self._in_rates(_SUGGESTED_RATE), "dropout": dropout},
        ]

    def _drawn(self, layers: float, width: float, epochs: float) -> Settings:
        layers = self.held.get("num_layers") or min(int(layers), self._most_layers())
        width = self.held.get("hidden_size") or min(int(width), self._most_units(layers) * _UNIT)
        most = self._most_epochs(layers, width)
        epochs = max(self._least_epochs(most), min(int(epochs), most))
        return {"num_layers": layers, "width": width // _UNIT, "epochs": epochs}

    def _rates(self) -> tuple[float, float]:
        return _RATES.get(self.held.get("optimizer", "adam"), _USUAL_RATES)

    def _in_rates(self, rate: float) -> float:
        low, high = self._rates()
        return min(max(rate, low), high)

    def _most_layers(self) -> int:
        width = self.held.get("hidden_size", _UNIT)
        return max((n for n in range(2, _MOST_LAYERS + 1) if self._fits(n, width)), default=1)

    def _most_units(self, layers: int) -> int:
        fitting = (n for n in range(2, _MOST_UNITS + 1) if self._fits(layers, n * _UNIT))
        return max(fitting, default=1)

    def _fits(self, layers: int, width: int) -> bool:
        least = max(_LEAST_EPOCHS, -(-_LEAST_UPDATES // self.steps_per_epoch), self._shortest)
        epochs = self.held_epochs or least
        return self.seconds(layers, width, epochs) <= self.limit

    def _most_epochs(self, layers: int, width: int) -> int:
        none, one = (self.seconds(layers, width, epochs) for epochs in (0, 1))
        affordable = (self.limit - none) / (one - none)
        longest = max(_EPOCHS, -(-_UPDATES // self.steps_per_epoch))
        return int(max(self._shortest, min(affordable, longest)))

    def _least_epochs(self, most: int) -> int:
        return max(self._shortest, most // _RANGE)

    @property
    def _shortest(self) -> int:
        """Epochs, more than the warm-up."""
        return int(self.held.get("warmup", 0)) + 1

"""What there is to choose from: cells, optimizers, and rates of dropout.

Each is declared once, in C++, next to what it does (``cells.hpp``, ``optimizers.hpp`` and
``network.hpp`` in ``cpp/include/charrnn_fast``); everything in Python that lists them, checks them
or has to know what they have reads it here.
"""

from __future__ import annotations

from typing import NamedTuple

from . import _core


class Cell(NamedTuple):
    """What there is to know of a cell but its math."""

    name: str
    nonlinearity: str
    """Which one it is of those of its name: "tanh" but for the vanilla cell, which has "relu" too.
    """
    gates: str
    """A letter for each, in the order of the rows of weight_ih and weight_hh."""
    unit_weights: str
    """What follows "weight_" in the name of the weights that a unit has of its own, as peepholes;
    empty where it has none."""
    num_states: int
    """1 (h) or 2 (h and c)."""
    num_split: int
    """The last so many gates have two gradients: of the input's part and of the recurrent one."""
    num_saved: int
    """Numbers that a unit's step keeps for backward, beside the states."""
    forget_gate: int | None
    """The place of the gate that forgets, whose bias may begin higher than the others."""
    takes_projection: bool
    """Whether its h may be projected (proj_size)."""
    bounded: bool
    """Whether h lies in [-1, 1]."""


class Optimizer(NamedTuple):
    """An optimizer's options, by name, with what they are unless they are given."""

    name: str
    options: dict[str, float | bool]


CELLS = {(cell["name"], cell["nonlinearity"]): Cell(**cell) for cell in _core.cells}
"""By name and nonlinearity."""

CELL_NAMES = tuple(dict.fromkeys(name for name, _ in CELLS))
NONLINEARITIES = tuple(dict.fromkeys(nonlinearity for _, nonlinearity in CELLS))

OPTIMIZERS = {optimizer["name"]: Optimizer(**optimizer) for optimizer in _core.optimizers}

DROPOUT_RATES = _core.dropout_rates
"""Their names, as options of `RNN`; zoneout, which has a rate for each state, is not among them."""


def nonlinearities(cell: str) -> tuple[str, ...]:
    """Those that a cell comes with."""
    return tuple(nonlinearity for name, nonlinearity in CELLS if name == cell)


def gates(cell: str) -> int:
    """How many a cell has: G."""
    return len(CELLS[cell, nonlinearities(cell)[0]].gates)

"""The choices that users have: cells, optimizers, dropout rates and number formats of products.

Each is declared once, in C++, next to its code (``cells.hpp``, ``optimizers.hpp``, ``network.hpp``
and ``registry.hpp`` in ``cpp/include/charrnn_fast``). All Python code that lists or checks them, or
needs their properties, reads them here.
"""

from __future__ import annotations

from typing import NamedTuple

from . import _core


class Cell(NamedTuple):
    """The properties of a cell, without its math."""

    name: str
    nonlinearity: str
    """For the vanilla cell "tanh" or "relu", else "tanh"."""
    gates: str
    """One letter per gate, in the order of the rows of weight_ih and weight_hh."""
    unit_weights: str
    """Name of the per-unit weights, such as peepholes, without "weight_"; empty: none."""
    num_states: int
    """1 (h) or 2 (h and c)."""
    num_split: int
    """How many of the last gates have two gradients: of the input and of the recurrent part."""
    num_saved: int
    """Numbers that a unit saves per step for backward, besides the states."""
    forget_gate: int | None
    """Index of the forget gate, for forget_bias; None: no such gate."""
    takes_projection: bool
    """Whether it supports a projection (proj_size)."""
    bounded: bool
    """Whether h lies in [-1, 1]."""


class Optimizer(NamedTuple):
    """An optimizer's options by name, with their defaults."""

    name: str
    options: dict[str, float | bool]


CELLS = {(cell["name"], cell["nonlinearity"]): Cell(**cell) for cell in _core.cells}
"""By name and nonlinearity."""

CELL_NAMES = tuple(dict.fromkeys(name for name, _ in CELLS))
NONLINEARITIES = tuple(dict.fromkeys(nonlinearity for _, nonlinearity in CELLS))

OPTIMIZERS = {optimizer["name"]: Optimizer(**optimizer) for optimizer in _core.optimizers}

DROPOUT_RATES = _core.dropout_rates
"""Names of `RNN`'s options that are one dropout rate; zoneout, with one per state, is not here."""

COMPUTE_DTYPES = _core.compute_dtypes
"""The values of compute_dtype; `_core.compute_dtypes_on` has those of a device."""


def nonlinearities(cell: str) -> tuple[str, ...]:
    """The nonlinearities that a cell supports."""
    return tuple(nonlinearity for name, nonlinearity in CELLS if name == cell)


def gates(cell: str) -> int:
    """G, the number of gates of a cell."""
    return len(CELLS[cell, nonlinearities(cell)[0]].gates)

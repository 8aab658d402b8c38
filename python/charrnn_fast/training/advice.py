"""Whether a training will overfit or underfit its text, by the sizes of the text and of the model.

The rule, in this one place. A training overfits if it has more epochs than ::

    E = 10 (260,000 / P)^0.6 ((1 + N / 2,000,000) / (1 - p) + (200,000 / N)^0.75)

with P parameters, N symbols to train on and the dropout p between layers. The last term is the time
to learn anything, since a small text has few updates in an epoch; the one before it is the time
until the model begins to learn the text by heart. Longer texts and dropout put that off (Zaremba et
al., 2014), more parameters bring it nearer. That P and N are to be compared, and should be of one
order, is in the readme of char-rnn (Karpathy, 2015).

The form is ours. Its numbers are fitted to Python's own source, from 30,000 to 1,000,000
characters, with LSTMs of 78,000 to 3,400,000 parameters at the default learning rate and batch, and
to two known results with the schedule `cosine`: 2x512 at 9 epochs fits a text of a million
characters with a dropout of 0.5, and one of 2.6 million with 0.2. docs/training.md has the
measurements, and those of texts that the rule was not fitted to.

Where a training does not overfit, a wider model or more epochs nearly always help: it underfits,
unless it is within a fifth of E.
"""

from __future__ import annotations

from typing import NamedTuple

OVERFIT, UNDERFIT, FIT = "overfit", "underfit", "fit"

_NEAR = 0.8  # of E: from here on neither is expected
_MIDDLE = (1 + _NEAR) / 2
_ANNEALED = 2 / 3  # an epoch of a learning rate that falls to about zero counts so much
_LEAST, _MOST = 0.1, 0.7  # dropout rates worth naming
_USUAL = 0.5  # where more would be needed, and fewer epochs as well
_STEPS = 20  # of the rates that are named, from 0 to 1
_LONGEST = 1e9  # symbols of a training whose epochs are named: some hours of a small model


class Case(NamedTuple):
    """What the rule takes of a training."""

    symbols: int
    """N, characters (or bytes) to train on."""
    parameters: int
    epochs: float
    dropout: float = 0.0
    """The rate between layers; of one layer, of its output."""
    layers: int = 2
    annealed: bool = False
    """Whether the learning rate falls to nearly zero at the end, as with cosine and linear."""


def epochs_to_overfit(case: Case) -> float:
    """E of the rule; of an annealed training by as much larger as its epochs count less."""
    by_heart = (1 + case.symbols / 2e6) / (1 - case.dropout)
    return _scale(case) * (by_heart + _learning(case))


def dropout_for(case: Case) -> float:
    """The dropout with which a training of these epochs fits, from 0 to 0.7 in steps of 0.05."""
    by_heart = case.epochs / _MIDDLE / _scale(case) - _learning(case)
    rate = 1 - (1 + case.symbols / 2e6) / by_heart if by_heart > 0 else 0.0
    return round(min(max(rate, 0.0), _MOST) * _STEPS) / _STEPS


def expected(case: Case) -> str:
    """OVERFIT, UNDERFIT or FIT."""
    share = case.epochs / epochs_to_overfit(case)
    return OVERFIT if share >= 1 else UNDERFIT if share < _NEAR else FIT


def advice(case: Case) -> str:
    """What to expect, and what to change: flags of train. Empty where there is nothing to say."""
    verdict = expected(case)
    if verdict == FIT:
        return ""
    if verdict == UNDERFIT and epochs_to_overfit(case) * case.symbols > _LONGEST:
        return f"expected to {verdict}; try a larger --hidden-size or more --epochs"
    epochs = max(1, round(_MIDDLE * epochs_to_overfit(case)))
    dropout, flag = dropout_for(case), "--dropout" if case.layers > 1 else "--output-dropout"
    if verdict == OVERFIT:
        ways = [f"--epochs {epochs}", "a smaller --hidden-size"]
        if max(_LEAST, case.dropout) <= dropout < _MOST:
            ways.insert(0, f"{flag} {dropout:g}")
        elif case.dropout < _USUAL < dropout:
            fewer = round(_MIDDLE * epochs_to_overfit(case._replace(dropout=_USUAL)))
            ways.insert(0, f"{flag} {_USUAL:g} with --epochs {max(1, fewer)}")
        if epochs >= case.epochs:  # which no whole number of epochs changes
            ways.remove(f"--epochs {epochs}")
    else:
        ways = [f"--epochs {epochs}", "a larger --hidden-size"]
        if case.dropout - dropout >= _LEAST:
            ways.insert(0, f"{flag} {dropout:g}")
        if epochs <= case.epochs:
            ways.remove(f"--epochs {epochs}")
    return f"expected to {verdict}; try {', '.join(ways[:-1])}{' or ' * (len(ways) > 1)}{ways[-1]}"


def _scale(case: Case) -> float:
    """The epochs that the terms of the rule are multiples of."""
    return float(10 * (2.6e5 / case.parameters) ** 0.6 / (_ANNEALED if case.annealed else 1))


def _learning(case: Case) -> float:
    return float((2e5 / case.symbols) ** 0.75)

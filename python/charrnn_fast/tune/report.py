"""What a search tried: a table in Markdown and a picture, which takes matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .._checks import StrPath, brief
from ..training import plot
from .search import FINISHED, UNFINISHED, Tried, dropout_of, duration, winner

_COLUMNS = (
    "trial",
    "layers x units",
    "parameters",
    "dropout",
    "learning rate",
    "epochs",
    "validation loss",
    "at epoch",
    "time",
    "",
)
_LABELS = ((1.2, (1, 2, 5)), (1.8, (1, 3)), (math.inf, (1,)))  # in a decade, by the decades shown
_HIGHEST = 1.5  # times the lowest loss: what is above it is drawn at the edge


def table(tried: Sequence[Tried], held: dict[str, Any], about: str, unit: str) -> str:
    """Markdown: a line for each trial, the best first, and unfinished ones last.

    held: the settings that all trials share. about: the first paragraph.
    """
    ordered = sorted(tried, key=lambda one: (one.ended == UNFINISHED, one.best[0], one.number))
    best = winner(tried)
    lines = [about, "", f"Losses in nats per {unit}."]
    lines += ["", f"| {' | '.join(_COLUMNS)} |", "|" + " --- |" * len(_COLUMNS)]
    for one in ordered:
        settings, (loss, epoch) = {**held, **one.settings}, one.best
        remark = "the best" if one is best else one.ended
        if one.ended not in (FINISHED, UNFINISHED) and one.curve:
            remark += f", at epoch {one.curve[-1][0]:.3g}"
        cells = (
            f"{one.number}",
            f"{settings['num_layers']}x{settings['hidden_size']}",
            f"{one.parameters:,}",
            f"{dropout_of(held, one.settings):g}",
            f"{settings['learning_rate']:g}",
            f"{one.epochs:.4g}",
            brief(loss, 4) if one.curve else "",
            f"{epoch:.3g}" if one.curve else "",
            duration(one.seconds),
            remark,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(tried: Sequence[Tried], held: dict[str, Any], path: StrPath, unit: str) -> None:
    """Draws the curves of all trials, and their lowest losses over each setting.

    path: the file to write or replace; its extension is the format. Raises ImportError if
    matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    shown = [one for one in tried if one.curve]
    figure = Figure(figsize=(9, 8), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=[3, 2])
    curves = figure.add_subplot(grid[0, :])
    first = figure.add_subplot(grid[1, 0])
    settings = [first, *(figure.add_subplot(grid[1, n], sharey=first) for n in (1, 2, 3))]
    best = winner(shown)
    for one in shown:
        color = "C3" if one is best else "C0" if one.ended == FINISHED else "0.7"
        label = f"trial {one.number}, the best: {one.best[0]:.4f}" if one is best else None
        epochs, losses = zip(*one.curve, strict=True)
        curves.plot(
            epochs, losses, color=color, marker=".", label=label, zorder=3 if one is best else 2
        )
    columns: tuple[tuple[str, Callable[[Tried], float], bool], ...] = (
        ("parameters", lambda one: one.parameters, True),
        ("dropout", lambda one: dropout_of(held, one.settings), False),
        ("learning rate", lambda one: {**held, **one.settings}["learning_rate"], True),
        ("epochs", lambda one: one.epochs, True),
    )
    for axes, (name, value, logarithmic) in zip(settings, columns, strict=True):
        for one in shown:
            color = "C3" if one is best else "C0" if one.ended == FINISHED else "0.7"
            axes.plot(value(one), one.best[0], "o", color=color)
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
        if logarithmic and shown:
            _logarithmic(axes, [value(one) for one in shown])
    lowest = min((one.best[0] for one in shown), default=1.0)
    highest = max((one.curve[0][1] for one in shown), default=2.0)
    top_of_all = max(min(highest, _HIGHEST * lowest), lowest + 1e-3)
    margin = 0.05 * (top_of_all - lowest)
    for axes in (curves, settings[0]):
        axes.set_ylim(lowest - margin, top_of_all + margin)
        axes.set_ylabel(f"validation, nats per {unit}")
    curves.set_xlabel("epochs (gray: ended early)")
    curves.grid(alpha=0.3)
    if best is not None:
        curves.legend()
    plot.save(figure, path, dpi=120)


def _logarithmic(axes: Any, values: Sequence[float]) -> None:
    """Makes the x axis logarithmic, with few enough labels for a narrow one, and at least one."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    first, last = (math.floor(math.log10(end)) for end in (low, high))
    steps = next(steps for most, steps in _LABELS if math.log10(high / low) < most)
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high] or [values[0]]
    axes.set_xticks(ticks, [_short(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


def _short(number: float) -> str:
    """Like 0.003, 20, 30k, 1M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def is_drawable(tried: Sequence[Tried]) -> bool:
    """Whether there is a curve to draw."""
    return any(math.isfinite(one.best[0]) for one in tried)

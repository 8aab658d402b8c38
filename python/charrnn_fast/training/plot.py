"""Plots of trainings from their logs; needs the extra ``charrnn-fast[plot]``."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .._checks import StrPath
from ..storage import atomic_file
from . import log

_LARGEST = 1e100  # drawn: around larger numbers, axes with margins overflow


@dataclass
class _Run:
    """The series of a log."""

    name: str
    unit: str = "character"
    updates: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)


def curves(paths: Sequence[StrPath], picture: StrPath) -> None:
    """Plots losses, learning rate and gradient norm of trainings over their epochs.

    paths: logs of `charrnn_fast.log.JsonLog`. picture: the file to write or replace; its extension,
    as .png, .svg or .pdf, is the format. Raises ValueError for a file that is not a log, a log
    without updates and an unknown extension, ImportError if matplotlib is not installed, and
    OSError, before any work, if the picture cannot be written or is not a regular file.
    """
    atomic_file.check(picture)
    runs = [_read(path) for path in paths]
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures take matplotlib: pip install 'charrnn-fast[plot]'") from error
    if not os.path.splitext(picture)[1]:  # matplotlib would add one
        raise ValueError(
            f"picture must end in its format, as in .png or .svg, got {os.fspath(picture)}"
        )
    figure = Figure(figsize=(7, 8), layout="constrained")
    losses, rates, norms = figure.subplots(
        3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1, 1]}
    )
    for number, run in enumerate(runs):
        color = f"C{number}"
        label = f"{run.name}: " if len(runs) > 1 else ""
        x = _series(run.updates, "epoch")
        losses.plot(
            x, _series(run.updates, "loss"), color=color, alpha=0.4, label=f"{label}training"
        )
        if run.evaluations:
            best = min(_series(run.evaluations, "validation_loss"))
            losses.plot(
                _series(run.evaluations, "epoch"),
                _series(run.evaluations, "validation_loss"),
                color=color,
                marker="o",
                markersize=3,
                label=f"{label}validation, best {best:.4f}",
            )
        rates.plot(x, _series(run.updates, "learning_rate"), color=color)
        norms.plot(x, _series(run.updates, "gradient_norm"), color=color)
    losses.set_ylabel(f"nats per {runs[0].unit}")
    losses.set_ylim(*_limits(runs))
    losses.legend()
    rates.set_ylabel("learning rate")
    norms.set_ylabel("gradient norm")
    norms.set_yscale("log")
    norms.set_xlabel("epochs")
    for axes in (losses, rates, norms):
        axes.grid(alpha=0.3)
    save(figure, picture, dpi=120)


def save(figure: Any, picture: StrPath, **options: Any) -> None:
    """Writes a matplotlib figure atomically; options are those of its savefig.

    Raises ValueError for an extension that matplotlib does not know.
    """
    data = io.BytesIO()
    try:
        figure.savefig(data, format=os.path.splitext(picture)[1][1:], **options)
    except ValueError as error:  # matplotlib lists the extensions that it knows
        raise ValueError(f"{os.fspath(picture)}: {error}") from None
    atomic_file.replace(picture, [data.getvalue()])


def _read(path: StrPath) -> _Run:
    name = os.path.basename(os.fspath(path))
    run = _Run(name.replace("$", r"\$"))  # two of them would be math
    for entry in log.read(path):
        if entry["type"] == "start":
            run.unit = entry.get("unit", run.unit)
        elif entry["type"] == "updates":
            run.updates.append(entry)
        elif entry["type"] == "evaluation":
            run.evaluations.append(entry)
    if not run.updates:
        raise ValueError(f"{os.fspath(path)} holds no updates: there is nothing to draw yet")
    return run


def _series(entries: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [min(entry[name], _LARGEST) for entry in entries]


def _limits(runs: Sequence[_Run]) -> tuple[float, float]:
    """Limits of the losses, without the fall at the beginning, which would flatten the rest."""
    lows, highs = [], []
    for run in runs:
        training = _series(run.updates, "loss")
        later = training[len(training) // 20 :] + _series(run.evaluations, "validation_loss")
        lows.append(min(later))
        highs.append(max(later))
    margin = 0.05 * (max(highs) - min(lows)) or 0.1
    return min(lows) - margin, max(highs) + margin

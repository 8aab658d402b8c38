"""Plots of a run: a roofline, and for each suite bars of the peers' times over the kernels'.

Needs matplotlib (the extra `plot`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..training import plot
from .cases import SUITES, footprint
from .results import Row, Run

_STYLES = ("-", "--", "-.", ":")


def paths(suites: Iterable[str], folder: Path) -> list[Path]:
    """Where the plots of suites are drawn."""
    return [folder / f"{name}.svg" for name in ("roofline", *suites)]


def write(run: Run, folder: Path) -> list[Path]:
    """Draws SVG files into the folder, which is made if it is missing; returns their paths."""
    import matplotlib

    matplotlib.use("agg")
    folder.mkdir(exist_ok=True)
    figures = {"roofline": _roofline(run)}
    for suite in SUITES:
        rows = [row for row in run.rows if row.suite == suite and row.peers]
        if rows:
            figures[suite] = _bars(suite, rows)
    drawn = paths(list(figures)[1:], folder)
    for figure, path in zip(figures.values(), drawn, strict=True):
        plot.save(figure, path, bbox_inches="tight")
    return drawn


def _roofline(run: Run) -> Any:
    """FLOP/s over FLOP per byte of weights, under the roofs measured at the start."""
    from matplotlib.figure import Figure

    threads = sorted(run.peaks, key=int)
    figure = Figure(figsize=(6.5 * len(threads), 5))
    suites = [suite for suite in SUITES if any(row.suite == suite for row in run.rows)]
    roofs = ("16384", "524288", "8388608", "33554432")  # bytes; the others lie between
    both = figure.subplots(1, len(threads), gridspec_kw={"wspace": 0.4})  # room for the labels
    for axes, n in zip(np.atleast_1d(both), threads, strict=True):
        rows = [row for row in run.rows if row.threads == int(n)]
        x = np.geomspace(0.1, max([100.0, *(2 * row.intensity for row in rows)]), 200)
        peak = run.peaks[n]["fma"] / 1e9
        measured = {size: run.peaks[n]["read"][size] / 1e9 for size in roofs}
        for (size, bandwidth), style in zip(measured.items(), _STYLES, strict=True):
            label = f"reading {footprint(int(size))}: {bandwidth:.0f} GB/s"
            roof = np.minimum(x * bandwidth, peak)
            axes.plot(x, roof, style, color="0.5", linewidth=0.9, label=label)
        for k, suite in enumerate(suites):
            points = [row for row in rows if row.suite == suite]
            if points:
                axes.scatter(
                    [row.intensity for row in points],
                    [row.flops / 1e9 for row in points],
                    color=f"C{k}",
                    label=suite,
                    s=18,
                    zorder=3,
                )
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="FLOP per byte of weights",
            ylabel="GFLOP/s",
            title=f"threads: {n}; {peak:.0f} GFLOP/s of FMAs",
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        axes.legend(fontsize=7, loc="lower right")
    return figure


def _bars(suite: str, rows: list[Row]) -> Any:
    """Each peer's time over the kernels' (1: as fast), the quartiles as whiskers."""
    from matplotlib.figure import Figure

    threads = sorted({row.threads for row in rows})
    names = list(dict.fromkeys(name for row in rows for name in row.peers))
    most = max(sum(row.threads == n for row in rows) for n in threads)
    figure = Figure(figsize=(7 * len(threads), 1.2 + most * (0.2 + 0.16 * len(names))))
    both = figure.subplots(1, len(threads), gridspec_kw={"wspace": 0.4})  # room for the labels
    for axes, n in zip(np.atleast_1d(both), threads, strict=True):
        own = [row for row in rows if row.threads == n]
        height = 0.8 / len(names)
        for k, name in enumerate(names):
            taking = [(i, row.peers[name].ratio) for i, row in enumerate(own) if name in row.peers]
            if not taking:
                continue
            median = np.array([ratio.median for _, ratio in taking])
            whiskers = [
                median - [ratio.q1 for _, ratio in taking],
                [ratio.q3 for _, ratio in taking] - median,
            ]
            places = [i + (k - (len(names) - 1) / 2) * height for i, _ in taking]
            axes.barh(
                places,
                median,
                height,
                xerr=whiskers,
                color=f"C{k}",
                label=name,
                error_kw={"lw": 0.8},
            )
            for place, value, whisker in zip(places, median, whiskers[1], strict=True):
                at = (value + whisker, place)
                axes.annotate(f" {value:.3g}", at, fontsize=7, va="center", annotation_clip=False)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_yticks(range(len(own)), [row.case for row in own])
        axes.invert_yaxis()
        axes.set(
            xscale="log",
            xlabel="time over the kernels' time",
            title=f"{suite}, threads: {n}",
        )
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure

"""A run as Markdown: the machine, then one table per suite."""

from __future__ import annotations

import statistics
from typing import Any

from .cases import SUITES, Suite, footprint
from .peers.kernels import NAME
from .results import Row, Run, Spread


def markdown(run: Run) -> str:
    sections = [_machine(run), *(_suite(run, suite) for suite in SUITES.values())]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Three digits or more, never an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 10 else f"{value:.3f}" if value >= 1 else f"{value:.3g}"


def process(run: Run) -> str:
    """Where the peers ran."""
    if not run.one_process:
        return "in a process of their own"
    return f"in one process with the kernels, whose executor was {run.settings.get('executor')}"


def is_busy(run: Run) -> bool:
    """Whether other programs took a notable part of the cores' time during the run."""
    return _free(run) < 0.95


def _free(run: Run) -> float:
    return statistics.fmean(row.free for row in run.rows) if run.rows else 1.0


def _machine(run: Run) -> str:
    facts = {name: value for name, value in run.machine.items() if value is not None}
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    lines += [f"- {name}: {version}" for name, version in run.peers.items() if name != "numpy"]
    lines += [f"- {name}: left out, {reason}" for name, reason in run.unavailable.items()]
    if run.peers:
        lines.append(f"- peers: {process(run)}")
    text: Any = run.settings.get("text")
    if text:
        lines.append(
            f"- text: {text['name']}, {text['characters']:,} characters, "
            f"{run.settings['vocabulary']} different ones"
        )
    for threads, peaks in run.peaks.items():
        read = ", ".join(
            f"{bandwidth / 1e9:.0f} at {footprint(int(size))}"
            for size, bandwidth in peaks["read"].items()
        )
        lines.append(
            f"- at the start, threads {threads}: {peaks['fma'] / 1e9:.0f} GFLOP/s of FMAs; "
            f"reading, GB/s: {read}"
        )
    if is_busy(run):
        lines.append(
            f"- the machine was busy: other programs took {1 - _free(run):.0%} of the cores' time; "
            f"take times, shares and ratios as rough, those on several threads above all"
        )
    return "\n".join(lines)


def _suite(run: Run, suite: Suite) -> str:
    rows = [row for row in run.rows if row.suite == suite.name]
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row.peers))
    case = "M, K, N" if suite.name == "gemm" else "cell, B, T, H, L"
    own = [f"{suite.time_unit}, median [quartiles]", "characters/s", "share of peak"]
    lines = [
        [
            row.case.replace(",", ", "),
            str(row.threads),
            _spread(row.seconds, suite.scale),
            "-" if row.characters_per_second is None else f"{row.characters_per_second:,.0f}",
            f"{row.share.median:.0%} of {_peak(row)}",
            *(_side(row, name, suite.scale) for name in names),
        ]
        for row in rows
    ]
    parts = [
        f"### {suite.name}: {suite.about}",
        f"Times are of one {suite.unit}, in {suite.time_unit}; of the others, the ratio to the "
        f"kernels' time with its quartiles, and their time.",
        table([case, "threads", *own, *names], lines),
        *_preparation(rows),
        *_to_loss(rows),
    ]
    notes = [f"- {row.case}, threads {row.threads}: {note}" for row in rows for note in row.notes]
    return "\n\n".join([*parts, "\n".join(notes)] if notes else parts)


def _preparation(rows: list[Row]) -> list[str]:
    longest: dict[str, float] = {}
    for row in rows:
        for name, side in row.peers.items():
            longest[name] = max(longest.get(name, 0), side.preparation)
    named = [f"{name} {seconds:.1f} s" for name, seconds in longest.items() if seconds >= 0.5]
    if not named:
        return []
    return [f"Made ready before (compiling included), at most: {', '.join(named)}."]


def _to_loss(rows: list[Row]) -> list[str]:
    timed = [row for row in rows if row.reached]
    lines = [
        [
            row.case.replace(",", ", "),
            str(row.threads),
            name,
            f"{row.target:g}",
            f"{entry.seconds:.2f}" if entry.reached else "not reached",
            str(entry.steps),
            f"{entry.loss:.4f}",
            f"{entry.seconds / row.reached[NAME].seconds:.2f}" if entry.reached else "-",
        ]
        for row in timed
        for name, entry in row.reached.items()
    ]
    header = [
        *("cell, B, T, H, L", "threads", "side", "target, nats per character"),
        *("seconds of training", "steps", "validation loss then", "ratio"),
    ]
    return [table(header, lines)] if timed else []


def _side(row: Row, name: str, scale: float) -> str:
    side = row.peers.get(name)
    if side is None:
        return "-"
    ratio = side.ratio
    return (
        f"{ratio.median:.2f} [{ratio.q1:.2f}, {ratio.q3:.2f}] "
        f"({number(side.seconds.median * scale)})"
    )


def _spread(value: Spread, scale: float) -> str:
    median, q1, q3 = (number(x * scale) for x in (value.median, value.q1, value.q3))
    return f"{median} [{q1}, {q3}]"


def _peak(row: Row) -> str:
    return f"{row.peak / 1e9:.0f} {'GFLOP/s' if row.limit == 'fma' else 'GB/s'}"

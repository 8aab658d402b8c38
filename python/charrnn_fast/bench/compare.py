"""Head against base: two runs, row by row.

Absolute times drift with the machine. The comparison thus uses the share of the peak measured
beside each row (on one thread: while the kernels had the processor), which is the time in units of
the least possible one.
"""

from __future__ import annotations

from dataclasses import dataclass

from .report import is_busy, process, table
from .results import Row, Run


@dataclass(frozen=True)
class Change:
    """ratio: normalized time of the head over that of the base; below 1: the head is faster."""

    row: Row
    ratio: float
    outside: bool  # the two quartile ranges do not overlap

    @property
    def verdict(self) -> str:
        if not self.outside:
            return ""
        return "faster" if self.ratio < 1 else "SLOWER"


def changes(head: Run, base: Run) -> list[Change]:
    """Of the rows in both, in the head's order."""
    old = {row.key: row.efficiency for row in base.rows}
    return [
        Change(row, before.median / row.efficiency.median, not row.efficiency.overlaps(before))
        for row in head.rows
        if (before := old.get(row.key)) is not None
    ]


def markdown(head: Run, base: Run, name: str) -> str:
    """name: of the base."""
    found = changes(head, base)
    lines = [
        [
            change.row.suite,
            change.row.case.replace(",", ", "),
            str(change.row.threads),
            f"{change.ratio:.3f}",
            change.verdict,
        ]
        for change in found
    ]
    version, commit = base.machine.get("charrnn_fast"), base.machine.get("commit")
    parts = [
        f"### compared with {name} ({commit or f'version {version}'})",
        "Ratios of normalized times, base = 1; a verdict only where the quartiles do not meet.",
    ]
    different = [
        f"{fact} is {head.machine.get(fact)}, of the base {base.machine.get(fact)}"
        for fact in ("processor", "isa", "compiler")
        if head.machine.get(fact) != base.machine.get(fact)
    ]
    for what, run in (("This run", head), ("The base", base)):
        if is_busy(run):
            parts.append(f"{what} was made on a busy machine.")
    if head.peers and base.peers and process(head) != process(base):
        parts.append(f"Peers of this run: {process(head)}; of the base: {process(base)}.")
    if different:
        parts.append(f"Not the same machine or build: {'; '.join(different)}.")
    parts.append(table(["suite", "case", "threads", "ratio", ""], lines))
    alone = [row for row in head.rows if row.key not in {change.row.key for change in found}]
    if alone:
        parts.append(
            "Not in the base: "
            + "; ".join(f"{row.suite} {row.case}, threads {row.threads}" for row in alone)
            + "."
        )
    return "\n\n".join(parts) + "\n"

"""The modules of charrnn_fast.torch beside those of torch.nn, as a program calls them.

    python benchmarks/torch_modules.py --json benchmarks/results/torch_modules.json \\
        --markdown benchmarks/results/torch_modules.md

A call is timed as a whole: what PyTorch does around the kernels, and the copy of the weights into
their layout, count. Forward is without gradients; training is forward and backward to the weights
and to x. Inputs are as wide as the layers. Outputs are compared first. The two take turns, and a
ratio is the median over pairs of adjacent turns: torch.nn's time over ours.

Shares are those of the machine's FMA peak, measured before each row on as many threads.
Multiply-adds of matrix products count as two FLOP, backward as twice forward.

--json reads the rows that are in the file already, of the same processor and commit, and measures
those that are missing; the table is of all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from turns import measure

import charrnn_fast as cf
import charrnn_fast.torch
from charrnn_fast.bench.machine import facts, fma_peak
from charrnn_fast.registry import gates
from charrnn_fast.storage import atomic_file

CELLS = ("RNN", "GRU", "LSTM")
SIZES = (
    (1, 1, 128),
    (1, 25, 128),
    (32, 50, 128),
    (50, 50, 128),
    (50, 50, 256),
    (64, 50, 512),
    (64, 50, 1024),
)
TASKS = ("forward", "training")
PEAK_SECONDS = 0.1
AGREES = 1e-4  # more is a mistake, not rounding


def calls(
    cell: str, layers: int, size: tuple[int, int, int], task: str
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What a turn of torch.nn's module does, and of ours."""
    B, T, H = size
    torch.manual_seed(0)
    theirs = getattr(torch.nn, cell)(H, H, num_layers=layers)
    ours = getattr(charrnn_fast.torch, cell)(H, H, num_layers=layers)
    ours.load_state_dict(theirs.state_dict())
    x, dy = torch.randn(T, B, H), torch.randn(T, B, H)
    with torch.no_grad():
        difference = float((ours(x)[0] - theirs(x)[0]).abs().max())
    if not difference < AGREES:
        raise SystemExit(f"{cell} {size}: outputs differ by {difference:.3g}")

    def forward(module: Any) -> Callable[[], Any]:
        def call() -> None:
            with torch.no_grad():
                module(x)

        return call

    def training(module: Any) -> Callable[[], Any]:
        leaf = x.clone().requires_grad_()
        leaves = [leaf, *module.parameters()]

        def call() -> None:
            torch.autograd.grad(module(leaf)[0], leaves, dy)

        return call

    make = forward if task == "forward" else training
    return make(theirs), make(ours)


def flop(cell: str, layers: int, size: tuple[int, int, int], task: str) -> float:
    """Of the matrix products of one call."""
    B, T, H = size
    forward = 2.0 * B * T * layers * gates(cell.lower()) * H * 2 * H
    return forward if task == "forward" else 3 * forward


def table(machine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Modules for PyTorch",
        "",
        f"{machine['processor']}, {machine['isa']}, PyTorch {machine['torch']}, commit "
        f"{machine['commit']}. Written by `python benchmarks/torch_modules.py`; "
        "[torch_modules.json](torch_modules.json) has all times.",
        "",
        "Speed relative to torch.nn's modules, call overhead included; in parentheses milliseconds "
        "of ours, and the shares of the machine's peak: ours, torch.nn's.",
    ]
    columns = [(task, threads) for task in TASKS for threads in (1, 2)]
    for cell in CELLS:
        found = {
            (r["layers"], *r["size"], r["task"], r["threads"]): r for r in rows if r["cell"] == cell
        }
        if not found:
            continue
        lines += [
            "",
            f"## {cell}",
            "",
            "| layers; B, T, H | " + " | ".join(f"{task}, {n}" for task, n in columns) + " |",
            "| --- |" + " --- |" * len(columns),
        ]
        for layers, *size in dict.fromkeys(key[:4] for key in sorted(found)):
            cells = []
            for column in columns:
                row = found.get((layers, *size, *column))
                cells.append(shown(row) if row else "")
            lines.append(f"| {layers}; {', '.join(map(str, size))} | " + " | ".join(cells) + " |")
        ratios = [row["ratio"] for row in found.values()]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines += [
            "",
            f"Of {len(ratios)} rows: lowest {min(ratios):.2f}, geometric mean {mean:.2f}.",
        ]
    return "\n".join(lines) + "\n"


def shown(row: dict[str, Any]) -> str:
    ours, theirs = (
        100 * row["flop"] / (1e-3 * row[f"{side}_ms"] * row["peak"]) for side in ("ours", "torch")
    )
    return f"{row['ratio']:.2f} ({row['ours_ms']:.3g}; {ours:.0f} %, {theirs:.0f} %)"


def wanted(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for threads in arguments.threads:
        for size in SIZES:
            for layers in arguments.layers:
                for cell in arguments.cells:
                    for task in TASKS:
                        yield {
                            "cell": cell,
                            "layers": layers,
                            "size": list(size),
                            "task": task,
                            "threads": threads,
                        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row (default: 1)")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds in all, then stop")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--json", metavar="FILE", help="continue and write the rows there")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there too")
    arguments = parser.parse_args()
    for path in filter(None, (arguments.json, arguments.markdown)):
        atomic_file.check(path)
    machine: dict[str, Any] = {**facts(), "torch": torch.__version__}
    rows: list[dict[str, Any]] = []
    if arguments.json and os.path.exists(arguments.json):
        with open(arguments.json, encoding="utf-8") as file:
            before = json.load(file)
        if before["machine"] != machine:
            raise SystemExit(
                f"{arguments.json} is of another machine or commit: {before['machine']}"
            )
        rows = before["rows"]
    keys = ("cell", "layers", "size", "task", "threads")
    end = time.perf_counter() + arguments.limit
    for row in wanted(arguments):
        if any(all(old[key] == row[key] for key in keys) for old in rows):
            continue
        if time.perf_counter() > end:
            break
        torch.set_num_threads(row["threads"])
        cf.set_num_threads(row["threads"])
        size = (row["size"][0], row["size"][1], row["size"][2])
        sides = calls(row["cell"], row["layers"], size, row["task"])
        peak = fma_peak(row["threads"], PEAK_SECONDS).rate
        found = measure(sides, arguments.seconds)
        row |= {
            "torch_ms": found.theirs,
            "ours_ms": found.ours,
            "ratio": found.ratio,
            "turns": found.turns,
            "peak": peak,
            "flop": flop(row["cell"], row["layers"], size, row["task"]),
        }
        rows.append(row)
        print(*(row[key] for key in keys), shown(row), flush=True)
    if arguments.json:
        text = json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n"
        atomic_file.replace(arguments.json, [text.encode()])
    if arguments.markdown:
        atomic_file.replace(arguments.markdown, [table(machine, rows).encode()])


if __name__ == "__main__":
    main()

"""Real time: nanoseconds per sample of `Stream`, and of RTNeural beside it.

    python benchmarks/realtime.py --rtneural FOLDER
        [--repeats 15] [--seconds 0.02] [--json FILE] [--markdown FILE]

FOLDER is a checkout of https://github.com/jatinchowdhury18/RTNeural with its submodules. Sizes are
fixed when compiling it, with `-O3 -march=native`; of its backends, the fastest counts in each case.
Without FOLDER, only `Stream` is timed.

A network is one layer with one input and a decoder of one unit, in float32. All programs get the
same weights and the same signal, and their outputs are compared before anything is timed. They run
on one processor, in turns. A time is the median over the turns; a ratio the median over the turns'
ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import charrnn_fast as cf
from charrnn_fast.bench import machine
from charrnn_fast.bench.report import table
from charrnn_fast.storage import atomic_file

CASES = [(cell, size) for cell in ("lstm", "gru") for size in (16, 32, 64)]
GATES = {"lstm": 4, "gru": 3}
WAYS = ("block of 64", "single steps")
GOALS = {"block of 64": 1.0, "single steps": 1.5}
SAMPLES = 1000
OURS = "stream"
# RTNeural's functions are approximations: of a float32's digits, about five agree.
TOLERANCE = 1e-3


@dataclass
class Row:
    """What one way to run one network takes: nanoseconds per sample, in every turn."""

    cell: str
    hidden_size: int
    way: str
    times: dict[str, list[float]]

    def median(self, program: str) -> float:
        return statistics.median(self.times[program])

    @property
    def best_peer(self) -> str | None:
        return min((p for p in self.times if p != OURS), key=self.median, default=None)

    @property
    def ratio(self) -> float | None:
        if (peer := self.best_peer) is None:
            return None
        pairs = zip(self.times[OURS], self.times[peer], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


def build(folder: Path, rtneural: Path | None) -> list[Path]:
    """Compiles the programs; ours, which comes first, with the library of this installation."""
    here = Path(__file__).resolve().parent
    steps = (
        ("cmake", "-S", here / "realtime", "-B", folder, "-DCMAKE_BUILD_TYPE=Release",
         f"-Dcharrnn_fast_DIR={cf.get_cmake_dir()}",
         f"-DRTNEURAL={rtneural.resolve() if rtneural else ''}"),
        ("cmake", "--build", folder, "--parallel"),
    )  # fmt: skip
    for step in steps:
        command = [str(part) for part in step]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return [folder / OURS, *sorted(folder.glob("rtneural_*[!.]"))]


def write_case(path: Path, cell: str, size: int) -> None:
    """The signal and the arrays, in the order of timing.hpp."""
    rng = np.random.default_rng(size)
    bound = size**-0.5  # as PyTorch begins
    gates = GATES[cell] * size
    shapes = [gates, gates * size, gates, gates, size, 1]
    arrays = [rng.uniform(-1, 1, SAMPLES), *(rng.uniform(-bound, bound, n) for n in shapes)]
    path.write_bytes(np.concatenate(arrays).astype(np.float32).tobytes())


def run(program: Path, cell: str, size: int, path: Path, seconds: float) -> list[float]:
    """Nanoseconds per sample, in the order of WAYS."""
    command = [str(program), cell, str(size), str(path), str(SAMPLES), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{program.name} failed: {done.stderr}")
    return [float(word) for word in done.stdout.split()]


def compare(programs: list[Path], cell: str, size: int, path: Path) -> None:
    """Ends the run where a program gives other outputs than ours."""
    outputs = []
    for program in programs:
        run(program, cell, size, path, 0)
        outputs.append(np.fromfile(f"{path}.out", np.float32))
    for program, output in zip(programs, outputs, strict=True):
        if not np.allclose(output, outputs[0], rtol=0, atol=TOLERANCE):
            far = np.abs(output - outputs[0]).max()
            raise SystemExit(f"{program.name}, {cell} {size}: outputs differ by {far:.2g}")


def measure(programs: list[Path], repeats: int, seconds: float, folder: Path) -> list[Row]:
    rows = []
    for cell, size in CASES:
        path = folder / f"{cell}{size}"
        write_case(path, cell, size)
        compare(programs, cell, size, path)
        case = [Row(cell, size, way, {p.name: [] for p in programs}) for way in WAYS]
        for repeat in range(repeats):
            for program in programs if repeat % 2 else reversed(programs):
                times = run(program, cell, size, path, seconds)
                for row, time in zip(case, times, strict=True):
                    row.times[program.name].append(time)
        rows += case
        print(f"{cell} {size}", file=sys.stderr, flush=True)
    return rows


def markdown(rows: list[Row], facts: dict[str, object], rtneural: str | None) -> str:
    header = ["network", "way", "Stream, ns", "RTNeural, ns", "backend", "ratio", "goal"]
    lines = []
    for row in rows:
        peer, ratio = row.best_peer, row.ratio
        line = [f"{row.cell} {row.hidden_size}", row.way, f"{row.median(OURS):.1f}"]
        if peer is None or ratio is None:
            line += ["", "", "", ""]
        else:
            backend = peer.removeprefix("rtneural_")
            goal = f"{GOALS[row.way]:.2f}"
            line += [f"{row.median(peer):.1f}", backend, f"{ratio:.2f}", goal]
        lines.append(line)
    of = f", RTNeural {rtneural}" if rtneural else ""
    return (
        f"{facts['processor']}, {facts['isa']}, commit {facts['commit']}{of}. Nanoseconds per "
        f"sample on one processor, medians of {len(rows[0].times[OURS])} turns.\n\n"
        f"{table(header, lines)}\n"
    )


def commit_of(folder: Path) -> str | None:
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rtneural", type=Path, metavar="FOLDER", help="a checkout of RTNeural")
    parser.add_argument("--rtneural-commit", help="its commit, where git does not know it")
    parser.add_argument("--repeats", type=int, default=15, help="turns (default: 15)")
    parser.add_argument("--seconds", type=float, default=0.02, help="of a timing")
    parser.add_argument("--build", type=Path, help="keep the programs in this folder")
    parser.add_argument("--json", type=Path, help="write the times and the machine's facts there")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f"--repeats must be >= 1, got {args.repeats}")
    if args.rtneural and not (args.rtneural / "RTNeural" / "RTNeural.h").exists():
        parser.error(f"--rtneural must hold RTNeural/RTNeural.h, got {args.rtneural}")
    for path in (args.json, args.markdown):
        if path:
            atomic_file.check(path)
    facts = machine.facts()
    rtneural = args.rtneural_commit or (commit_of(args.rtneural) if args.rtneural else None)
    with tempfile.TemporaryDirectory() as temporary:
        programs = build(args.build or Path(temporary) / "build", args.rtneural)
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        rows = measure(programs, args.repeats, args.seconds, Path(temporary))
    text = markdown(rows, facts, rtneural)
    print(text, end="")
    if args.markdown:
        atomic_file.replace(args.markdown, [text.encode()])
    if args.json:
        data = {"machine": facts, "rtneural": rtneural, "rows": [asdict(row) for row in rows]}
        atomic_file.replace(args.json, [json.dumps(data, indent=1).encode() + b"\n"])


if __name__ == "__main__":
    main()

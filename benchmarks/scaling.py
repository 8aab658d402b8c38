"""How time and memory grow with the work: training steps along T, B, H, L and V, one at a time.

    python benchmarks/scaling.py --quick
    python benchmarks/scaling.py --json scaling.json --markdown scaling.md --plot scaling.svg

Every point of an axis runs in a process of its own, so that its peak of memory is its own. The
points of an axis are timed in turns. An exponent is the slope of a least-squares line through the
logarithms.

The time of a step is compared with two times that the machine needs at least. One is that of its
multiply-adds at the FMA peak. The other is that of moving the bytes of the step, once for each use,
at the read bandwidth of a buffer of their size. What is neither is the rest. On one thread, times
are processor time, which other programs do not lengthen.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from charrnn_fast import RNN, optim, set_num_threads
from charrnn_fast.bench import machine
from charrnn_fast.bench.cases import FLOAT
from charrnn_fast.bench.errors import BenchError
from charrnn_fast.bench.progress import Progress
from charrnn_fast.bench.report import number, table
from charrnn_fast.bench.results import Spread
from charrnn_fast.registry import CELL_NAMES, CELLS, gates
from charrnn_fast.storage import atomic_file
from charrnn_fast.training.plot import save

FORMAT = 1
AXES = {"T": "seq_len", "B": "batch", "H": "hidden_size", "L": "num_layers", "V": "vocab_size"}
VALUES: dict[str, tuple[int, ...]] = {
    "T": (25, 50, 100, 200, 400, 800, 1600),
    "B": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    "H": (64, 128, 256, 512, 1024, 2048),
    "L": (1, 2, 3, 4),
    "V": (64, 256, 1000, 4000, 16_000, 50_000, 100_000),
}
QUICK: dict[str, tuple[int, ...]] = {
    "T": (25, 100, 400),
    "B": (1, 8, 64),
    "H": (64, 128, 256),
    "L": (1, 2),
    "V": (64, 1000, 10_000),
}
# Arrays of the parameters' size: they themselves, their gradients and Adam's two; and how often a
# step reads or writes one: zeroing 1, norm 1, Adam 4 read and 3 written.
ARRAYS, PASSES = 4, 9
_MOST_LOGITS = 1 << 22
_LARGEST_BUFFER = 1 << 27  # bytes: past the caches
_DEPARTURE = 0.1  # of an exponent, that is explained


@dataclass(frozen=True)
class Point:
    """A network, and the size of its training step."""

    cell: str = "lstm"
    seq_len: int = 50
    batch: int = 50
    hidden_size: int = 128
    num_layers: int = 1
    vocab_size: int = 64

    @property
    def label(self) -> str:
        sizes = (f"{axis} {getattr(self, name)}" for axis, name in AXES.items())
        return f"{self.cell}, {', '.join(sizes)}"

    @property
    def characters(self) -> int:
        return self.seq_len * self.batch

    @property
    def recurrent_weights(self) -> int:
        """The weights of weight_hh in all layers, which are used once for each time step."""
        return self.num_layers * gates(self.cell) * self.hidden_size**2

    @property
    def flop(self) -> float:
        """Multiply-adds of matrix products as two, backward as twice forward; gathers as none."""
        upper = (self.num_layers - 1) * gates(self.cell) * self.hidden_size**2
        weights = self.recurrent_weights + upper + self.hidden_size * self.vocab_size
        return 6.0 * self.characters * weights

    @property
    def block_rows(self) -> int:
        """Rows of the head's block: as many as make 2^22 logits, at most 512."""
        return min(self.characters, max(1, min(_MOST_LOGITS // self.vocab_size, 512)))

    def working(self) -> dict[str, int]:
        """Bytes that a step needs beside the model, by their contents."""
        unit = self.characters * self.hidden_size
        cell = CELLS[self.cell, "tanh"]
        kept = self.num_layers * (cell.num_states + cell.num_saved)
        upper = (self.num_layers - 1) * gates(self.cell) * self.hidden_size**2
        return {
            # with the gradients of the gates and of h
            "tape": FLOAT * unit * (kept + len(cell.gates) + cell.num_split + 1),
            "packed weights": FLOAT * 2 * (self.recurrent_weights + upper),  # of both directions
            "logits": FLOAT * self.block_rows * self.vocab_size,
        }

    def moved(self, parameters: int) -> dict[str, tuple[int, float]]:
        """By their contents: the bytes of a buffer that is reused, and how many of them a step
        reads or writes.

        The recurrent weights are read at each time step, in both directions; the decoder by each
        block of rows, forward and backward, its gradient read and written; logits are written, made
        a gradient of (read and written), and read for two products.
        """
        work, decoder = self.working(), FLOAT * self.hidden_size * self.vocab_size
        recurrent = FLOAT * self.recurrent_weights
        blocks = math.ceil(self.characters / self.block_rows)
        return {
            "recurrent weights": (recurrent, 2.0 * self.seq_len * recurrent),
            "decoder": (2 * decoder, 4.0 * blocks * decoder),
            "logits": (work["logits"], 5.0 * FLOAT * self.characters * self.vocab_size),
            "tape": (work["tape"], 2.0 * work["tape"]),
            "model": (FLOAT * ARRAYS * parameters, float(PASSES * FLOAT * parameters)),
        }


@dataclass(frozen=True)
class Settings:
    threads: int = 1
    rounds: int = 7
    block_seconds: float = 0.2  # of a point's turn, about
    peak_seconds: float = 0.02


@dataclass(frozen=True)
class Measured:
    """A point. Memory in bytes, peaks of a process beyond what it held when the package was loaded.

    fma and traffic: shares of the time that the multiply-adds take at the peak, and that the bytes
    take (by what they hold) at the read bandwidth of a buffer of their size.
    """

    point: Point
    value: int  # on the axis
    seconds: Spread
    flop: float
    fma: Spread
    traffic: dict[str, float]
    free: float  # part of the cores' time that other programs left
    parameters: int
    build_memory: int
    memory: int

    @property
    def model_memory(self) -> int:
        """Parameters, gradients and optimizer."""
        return FLOAT * ARRAYS * self.parameters

    @property
    def work_memory(self) -> int:
        """All but the model's."""
        return self.memory - self.model_memory

    @property
    def other_memory(self) -> int:
        """What no formula here accounts for."""
        return self.work_memory - sum(self.point.working().values())

    @property
    def rest(self) -> float:
        return 1 - self.fma.median - sum(self.traffic.values())


@dataclass(frozen=True)
class Fit:
    """Exponents by the axis' value: least squares over all points, and over their upper half.

    The first is None where a quantity is not positive everywhere.
    """

    what: str
    all: float | None
    upper: float | None


@dataclass
class Axis:
    name: str
    base: Point
    measured: list[Measured]

    @property
    def values(self) -> list[int]:
        return [m.value for m in self.measured]

    def quantities(self) -> dict[str, list[float]]:
        return {
            "operations": [m.flop for m in self.measured],
            "time": [m.seconds.median for m in self.measured],
            "time per operation": [m.seconds.median / m.flop for m in self.measured],
            "memory": [float(m.memory) for m in self.measured],
            "memory beside the model": [float(m.work_memory) for m in self.measured],
        }

    def fits(self) -> list[Fit]:
        x = self.values
        half = len(x) // 2 if len(x) > 3 else 0
        return [
            Fit(what, exponent(x, y), exponent(x[half:], y[half:]))
            for what, y in self.quantities().items()
        ]


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The slope of log y by log x, by least squares; None where there is none."""
    if len(x) < 2 or min(y) <= 0:
        return None
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# ---- one point, in a process of its own ---------------------------------------------------


def memory_of_process() -> tuple[int, int]:
    """Bytes that this process holds now, and held at most."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource  # there is no present size here: the peak stands for it

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak *= 1 if sys.platform == "darwin" else 1024
        return peak, peak
    fields = dict(line.split(":", 1) for line in lines)
    now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


class Step:
    """The training step of a point, on random tokens."""

    def __init__(self, point: Point) -> None:
        rng = np.random.default_rng(0)
        shape = (point.seq_len, point.batch)
        self._inputs, self._targets = (
            rng.integers(0, point.vocab_size, shape, np.int32) for _ in range(2)
        )
        self._rnn = RNN(
            point.vocab_size,
            point.hidden_size,
            point.vocab_size,
            cell=point.cell,
            num_layers=point.num_layers,
        )
        self.parameters = int(self._rnn._core.num_parameters)
        self._optimizer = optim.Adam(self._rnn, lr=1e-3)
        self._state = self._rnn._kernel_zeros(point.batch)

    def run(self) -> None:
        self._rnn._core.train_step(
            *(self._inputs, self._targets, self._state, self._optimizer._core),
            *(1e-3, 5.0, math.inf, "mean"),
        )

    def seconds(self, count: int, threads: int) -> float:
        """Seconds of one run, the mean of `count`."""
        clock = time.process_time if threads == 1 else time.perf_counter
        start = clock()
        for _ in range(count):
            self.run()
        return (clock() - start) / count


def prepare(point: Point, settings: Settings) -> tuple[Step, dict[str, Any]]:
    """The step, and its facts from before it is timed."""
    set_num_threads(settings.threads)
    Step(Point(point.cell, 2, 2, 8, point.num_layers, 3)).run()  # loads what is loaded at first use
    before, _ = memory_of_process()
    step = Step(point)
    built = memory_of_process()[1] - before
    step.run()
    seconds = step.seconds(1, 0)  # the second one: memory is there
    return step, {
        "count": max(1, round(settings.block_seconds / seconds)),
        "parameters": step.parameters,
        "build_memory": built,
        "memory": memory_of_process()[1] - before,
    }


@dataclass(frozen=True)
class Turn:
    """Seconds of a step, and what the machine could do just before: FLOP/s, bytes/s by what is
    read; free: the part of the cores' time that other programs left."""

    seconds: float
    peak: float
    bandwidths: dict[str, float]
    free: float


def turn(step: Step, count: int, footprints: dict[str, int], settings: Settings) -> Turn:
    threads, most = settings.threads, settings.peak_seconds
    fma = machine.fma_peak(threads, most)
    bandwidths = {
        what: machine.read_bandwidth(min(size, _LARGEST_BUFFER), threads, most).rate
        for what, size in footprints.items()
    }
    return Turn(step.seconds(count, threads), fma.rate, bandwidths, fma.free)


def serve(connection: Connection, point: Point, settings: Settings) -> None:
    """Sends the facts of a point, then a `Turn` for each request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command's own process answers Ctrl-C
    try:
        step, facts = prepare(point, settings)
    except (MemoryError, ValueError) as error:
        connection.send(" ".join(str(error).split()))
        return
    connection.send(facts)
    footprints = {what: size for what, (size, _) in point.moved(step.parameters).items()}
    try:
        while connection.recv():
            connection.send(turn(step, facts["count"], footprints, settings))
    except (EOFError, BrokenPipeError):  # nobody asks any more
        return


class Child:
    def __init__(self, point: Point, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, point, settings)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self.point = point
        self.facts: dict[str, Any] = self._answer()
        self.turns: list[Turn] = []

    def take_turn(self) -> None:
        self._connection.send(True)
        self.turns.append(self._answer())

    def close(self) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(1)
            code = self._process.exitcode
            why = " (killed, as where memory ends)" if code == -9 else ""
            raise BenchError(f"{self.point.label}: its process ended with {code}{why}") from None
        if isinstance(answer, str):
            raise BenchError(f"{self.point.label}: {answer}")
        return answer

    def measured(self, value: int) -> Measured:
        facts, point = self.facts, self.point
        parameters = facts["parameters"]
        seconds = Spread.of([own.seconds for own in self.turns])
        return Measured(
            point=point,
            value=value,
            seconds=seconds,
            flop=point.flop,
            fma=Spread.of([point.flop / own.peak / own.seconds for own in self.turns]),
            traffic={
                what: size / max(own.bandwidths[what] for own in self.turns) / seconds.median
                for what, (_, size) in point.moved(parameters).items()
            },
            free=statistics.fmean(own.free for own in self.turns),
            parameters=parameters,
            build_memory=facts["build_memory"],
            memory=facts["memory"],
        )


def measure(
    name: str, values: Sequence[int], base: Point, settings: Settings, progress: Progress
) -> Axis:
    """All points of an axis: each made, then timed in turns, as many for all."""
    children: list[Child] = []
    try:
        for value in values:
            progress.begin(f"{name} {value}")
            change: dict[str, Any] = {AXES[name]: value}
            children.append(Child(replace(base, **change), settings))
            facts = children[-1].facts
            progress.end(f"{name} {value}: {facts['memory'] / 1e6:,.0f} MB")
        for _ in range(settings.rounds):
            for child in children:
                child.take_turn()
        measured = [child.measured(v) for child, v in zip(children, values, strict=True)]
        return Axis(name, base, measured)
    finally:
        for child in children:
            child.close()


# ---- what the numbers say -----------------------------------------------------------------


def slope(a: Measured, b: Measured, ya: float, yb: float) -> float:
    return math.log(yb / ya) / math.log(b.value / a.value)


def causes(axis: Axis) -> list[str]:
    """What part of the operations and of the memory has which exponent."""
    first, last = axis.measured[0], axis.measured[-1]

    def share(part: Callable[[Measured], float]) -> str:
        return " and ".join(f"{part(m):.0%} at {axis.name} {m.value:,}" for m in (first, last))

    decoder = share(
        lambda m: 6 * m.point.characters * m.point.hidden_size * m.point.vocab_size / m.flop
    )
    model = share(lambda m: m.model_memory / m.memory)
    tape = share(lambda m: m.point.working()["tape"] / m.memory)
    return [
        f"- operations are T B (H^2 (2 L - 1) G + H V): the decoder, H V, makes {decoder};",
        f"- of the memory, the model (parameters, gradients, optimizer) makes {model}, the tape "
        f"(T B H L) {tape}.",
    ]


def departures(axis: Axis) -> list[str]:
    """Where time grows unlike operations, and which part of the time per operation causes it."""
    found = []
    for a, b in zip(axis.measured, axis.measured[1:], strict=False):
        time_slope = slope(a, b, a.seconds.median, b.seconds.median)
        work_slope = slope(a, b, a.flop, b.flop)
        if abs(time_slope - work_slope) < _DEPARTURE:
            continue
        # Of each part, the time per operation, in units of one at the FMA peak.
        parts_a, parts_b = parts(a), parts(b)
        change = {what: parts_b[what] - parts_a[what] for what in parts_a}
        sign = 1 if time_slope > work_slope else -1
        cause = max(change, key=lambda what: sign * change[what])
        found.append(
            f"- {axis.name} {a.value:,} to {b.value:,}: time {time_slope:.2f}, operations "
            f"{work_slope:.2f}; share of the peak {a.fma.median:.0%} to {b.fma.median:.0%}. "
            f"{'More' if sign > 0 else 'Less'} of {about(cause, a, b)}: "
            f"{parts_a[cause]:.2f} to {parts_b[cause]:.2f} times what the multiply-adds take."
        )
    return found


def parts(m: Measured) -> dict[str, float]:
    fma = m.fma.median
    return {what: share / fma for what, share in m.traffic.items()} | {"rest": m.rest / fma}


def about(cause: str, a: Measured, b: Measured) -> str:
    """A part of the time, with the number that makes it grow or shrink."""
    if cause == "rest":
        rows = (a.point.batch, b.point.batch)
        if rows[0] != rows[1]:
            return f"the rest (tiles of few rows, calls: B {rows[0]} and {rows[1]})"
        return "the rest (calls, packing, the cells' math, tiles off the peak)"
    moved = [m.point.moved(m.parameters)[cause] for m in (a, b)]
    flop = [m.flop / total for m, (_, total) in zip((a, b), moved, strict=True)]
    size = [footprint / 1e6 for footprint, _ in moved]
    return (
        f"moving the {cause} (of {number(size[0])} MB and {number(size[1])} MB; "
        f"{number(flop[0])} and {number(flop[1])} FLOP per byte)"
    )


def markdown(axes: list[Axis], facts: dict[str, Any], settings: Settings) -> str:
    lines = [f"- {name}: {value}" for name, value in facts.items() if value is not None]
    free = statistics.fmean(m.free for axis in axes for m in axis.measured)
    lines.append(f"- threads: {settings.threads}; turns: {settings.rounds}")
    if free < 0.95:
        lines.append(
            f"- the machine was busy: other programs took {1 - free:.0%} of the cores' time; take "
            f"the exponents of time as rough"
        )
    return "\n\n".join(["\n".join(lines), *map(section, axes)]) + "\n"


def section(axis: Axis) -> str:
    header = [
        axis.name,
        *("ms, median [quartiles]", "GFLOP", "share of FMA peak", "moving bytes", "rest"),
        *("memory, MB", "model", *axis.base.working(), "other"),
    ]
    rows = [
        [
            f"{m.value:,}",
            f"{number(m.seconds.median * 1e3)} [{number(m.seconds.q1 * 1e3)}, "
            f"{number(m.seconds.q3 * 1e3)}]",
            number(m.flop / 1e9),
            f"{m.fma.median:.0%}",
            f"{sum(m.traffic.values()):.0%}",
            f"{m.rest:.0%}",
            f"{m.memory / 1e6:,.1f}",
            f"{m.model_memory / 1e6:,.1f}",
            *(f"{size / 1e6:,.1f}" for size in m.point.working().values()),
            f"{m.other_memory / 1e6:,.1f}",
        ]
        for m in axis.measured
    ]
    fits = [[fit.what, shown(fit.all), shown(fit.upper)] for fit in axis.fits()]
    base = axis.base
    rest = (f"{name} {getattr(base, field)}" for name, field in AXES.items() if name != axis.name)
    parts = [
        f"### {axis.name}, at {base.cell}, {', '.join(rest)}",
        table(header, rows),
        table(["exponent of", "all points", "upper half"], fits),
    ]
    found = departures(axis)
    parts.append("\n".join([*causes(axis), *found]))
    return "\n\n".join(parts)


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def plot(axes: list[Axis], path: Path) -> None:
    """For each axis time over operations' share, and memory, with the lines of the fits."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(axes), 6))
    panels = figure.subplots(2, len(axes), squeeze=False)
    for k, axis in enumerate(axes):
        x = axis.values
        curves: list[tuple[str, list[float]]] = [
            ("a step, ms", [m.seconds.median * 1e3 for m in axis.measured]),
            (
                "multiply-adds at the peak",
                [m.seconds.median * 1e3 * m.fma.median for m in axis.measured],
            ),
        ]
        for label, y in curves:
            panels[0, k].plot(x, y, "o-", markersize=3, label=label)
        memory: list[tuple[str, list[float]]] = [
            ("peak, MB", [m.memory / 1e6 for m in axis.measured]),
            ("parameters, gradients, optimizer", [m.model_memory / 1e6 for m in axis.measured]),
        ]
        for label, y in memory:
            panels[1, k].plot(x, y, "o-", markersize=3, label=label)
        for row in panels[:, k]:
            row.set(xscale="log", yscale="log", xlabel=axis.name)
            for scale in (row.xaxis, row.yaxis):
                scale.set_major_formatter("{x:g}")
                scale.set_minor_formatter("")
        fits = {fit.what: fit for fit in axis.fits()}
        panels[0, k].set_title(f"time {axis.name}^{shown(fits['time'].upper)}", fontsize=9)
        panels[1, k].set_title(f"memory {axis.name}^{shown(fits['memory'].upper)}", fontsize=9)
    for row in panels[:, 0]:
        row.legend(fontsize=7)
    figure.tight_layout()
    save(figure, path, bbox_inches="tight")


def as_json(axes: list[Axis], facts: dict[str, Any], settings: Settings) -> str:
    data = {
        "format": FORMAT,
        "machine": facts,
        "settings": asdict(settings),
        "axes": {
            axis.name: {
                "base": asdict(axis.base),
                "points": [asdict(m) for m in axis.measured],
                "fits": [asdict(fit) for fit in axis.fits()],
                "departures": departures(axis),
            }
            for axis in axes
        },
    }
    return json.dumps(data, indent=1) + "\n"


# ---- the command line ---------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="scaling.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "axes", nargs="*", metavar="AXIS", help=f"of {', '.join(AXES)}; all if none is named"
    )
    parser.add_argument("--quick", action="store_true", help="few points and turns, half a minute")
    parser.add_argument(
        "--base",
        default="lstm,50,50,128,1,64",
        metavar="CELL,T,B,H,L,V",
        help="what is not on the axis (default %(default)s)",
    )
    parser.add_argument(
        "--values", metavar="N,N,...", help="the points, of one axis only, ascending"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each point")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE", help="SVG, PNG or PDF; takes matplotlib")
    return parser.parse_args(arguments)


def base_of(text: str) -> Point:
    cell, *sizes = text.split(",")
    if cell not in CELL_NAMES or len(sizes) != len(AXES) or not all(map(is_size, sizes)):
        raise BenchError(
            f"--base must be a cell of {', '.join(CELL_NAMES)} with T, B, "
            f"H, L and V, as lstm,50,50,128,1,64, got {text!r}"
        )
    return Point(cell, *map(int, sizes))


def is_size(text: str) -> bool:
    return text.isdecimal() and int(text) > 0


def values_of(options: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    for name in options.axes:
        if name not in AXES:
            raise BenchError(f"axis must be one of {', '.join(AXES)}, got {name!r}")
    chosen = [name for name in AXES if not options.axes or name in options.axes]
    if options.values is None:
        return {name: (QUICK if options.quick else VALUES)[name] for name in chosen}
    if len(chosen) != 1:
        raise BenchError(f"--values must come with one axis, got {', '.join(chosen)}")
    parts = options.values.split(",")
    numbers = [int(part) for part in parts if is_size(part)]
    if len(numbers) != len(parts) or len(parts) < 2 or sorted(set(numbers)) != numbers:
        raise BenchError(
            f"--values must be two or more numbers, ascending, as 25,50,100, got {options.values!r}"
        )
    return {chosen[0]: tuple(numbers)}


def check_output(option: str, path: Path) -> None:
    try:
        atomic_file.check(path)
    except OSError as error:
        raise BenchError(f"{option}: {path}: {error.strerror}") from None


def run(options: argparse.Namespace) -> None:
    base, values = base_of(options.base), values_of(options)
    for option in ("threads", "rounds"):
        value = getattr(options, option)
        if value is not None and value < 1:
            raise BenchError(f"--{option}: must be >= 1, got {value}")
    if options.threads > machine.cores():
        raise BenchError(f"--threads: {options.threads}, this process has {machine.cores()} cores")
    for option in ("json", "markdown", "plot"):
        if getattr(options, option) is not None:
            check_output(f"--{option}", Path(getattr(options, option)))
    if options.plot is not None:
        if Path(options.plot).suffix not in (".svg", ".png", ".pdf"):
            raise BenchError(f"--plot must be a name in .svg, .png or .pdf, got {options.plot}")
        if find_spec("matplotlib") is None:
            raise BenchError(
                "--plot needs matplotlib, which is not installed: pip install 'charrnn_fast[plot]'"
            )
    settings = Settings(options.threads)
    if options.quick:
        settings = replace(settings, rounds=5, block_seconds=0.05, peak_seconds=0.005)
    if options.rounds is not None:
        settings = replace(settings, rounds=options.rounds)

    facts, axes = machine.facts(), list[Axis]()
    progress = Progress(sum(map(len, values.values())))
    try:
        for name, points in values.items():
            axes.append(measure(name, points, base, settings, progress))
            fits = {fit.what: shown(fit.all) for fit in axes[-1].fits()}
            progress.say(f"{name}: exponents: time {fits['time']}, memory {fits['memory']}")
    finally:  # what an interrupted run has measured is kept
        progress.close()
        if axes:
            write(axes, facts, settings, options)


def write(
    axes: list[Axis], facts: dict[str, Any], settings: Settings, options: argparse.Namespace
) -> None:
    document = markdown(axes, facts, settings)
    if options.markdown is not None:
        atomic_file.replace(options.markdown, [document.encode()])
    if options.json is not None:
        atomic_file.replace(options.json, [as_json(axes, facts, settings).encode()])
    print(document, end="", flush=True)
    if options.plot is not None:
        plot(axes, Path(options.plot))


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        run(parse(arguments))
    except BenchError as error:
        print(f"scaling.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

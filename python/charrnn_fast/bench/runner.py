"""Runs the cases: outputs are compared first, then the sides take turns, A B A B.

A shared machine drifts. Compared times are thus taken next to each other, and the peak of a share
is measured again beside every block of the kernels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import cuda, registry
from .._devices import Device, kind
from ..runtime import get_executor, get_num_threads, set_num_threads
from . import machine
from .cases import SUITES, AnyCase
from .errors import BenchError, UnavailableError
from .host import Host, Timing, in_this_process, time_runs
from .peers import MODULES, ROUNDED_PEER, kernels
from .problem import Outputs, Problem, Text, make
from .progress import Progress
from .results import Reached, Row, Run, Side, Spread
from .worker import Worker

# Of the largest element. float32 in another order; operands of products rounded to 8 bits, each by
# at most 2^-9 of it, which a gradient through all steps has many of. A wrong weight is far off.
TOLERANCE, ROUNDED_TOLERANCE = 1e-4, 2**-4
_FOOTPRINTS = tuple(2**n for n in (14, 17, 19, 21, 23, 25))  # bytes: in and beyond caches
_MOST_PASSES = 20  # of time-to-loss, per block: when to give up
_STEPS_BETWEEN_EVALUATIONS = 25


@dataclass(frozen=True)
class Settings:
    """blocks: turns of each side; block_seconds: approximate duration of one."""

    threads: tuple[int, ...] = (1, 2)
    blocks: int = 11
    block_seconds: float = 0.15
    peak_seconds: float = 0.02  # beside a block
    start_seconds: float = 0.2  # of a peak at the start
    side_seconds: float = 10.0  # a slow side gets fewer blocks than fit into this, at least 3
    target: float = 2.0  # of time-to-loss, nats per character


QUICK = Settings((1, 2), 5, 0.03, 0.005, 0.05, 0.8, 2.9)


@dataclass
class _Timed:
    """A side of the current case."""

    name: str
    time: Callable[[int], Timing]
    units: int
    preparation: float = 0.0  # seconds
    evaluate: Callable[[], float] | None = None
    count: int = 1  # runs of a block
    blocks: int = 1
    seconds: list[float] = field(default_factory=list)  # per unit, of each block
    cores: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def calibrate(self, block_seconds: float, side_seconds: float, blocks: int) -> None:
        """Finds the number of runs per block, and how many blocks fit into the time."""
        self.time(1)  # the first run sets things up
        count, seconds = 1, self.time(1).seconds
        while seconds < block_seconds / 4 and count < 1_000_000:
            count *= 2
            seconds = self.time(count).seconds
        self.count = max(1, round(block_seconds * count / seconds))
        per_block = self.count * seconds / count
        self.blocks = min(blocks, max(3, int(side_seconds / per_block)))

    def block(self) -> float:
        """Times a block: seconds per unit."""
        timing = self.time(self.count)
        self.seconds.append(timing.seconds / (self.count * self.units))
        self.cores.append(timing.cores)
        return self.seconds[-1]


class Runner:
    """Cases on some peers. `run` fills `result`, which thus survives an interrupt."""

    def __init__(
        self,
        cases: list[AnyCase],
        peers: list[str],
        settings: Settings,
        text: Text | None,
        device: Device | None = None,
        compute_dtype: str = "float32",
        *,
        one_process: bool = False,
    ) -> None:
        """device: other than the CPU, on which the kernels are timed beside those of the CPU.
        compute_dtype: other than float32, in which they are timed beside that. one_process: whether
        the peers run in this process, which `check_one_process` must allow.
        """
        self._cases, self._peers, self._settings, self._text = cases, peers, settings, text
        self._device = "cpu" if device is None else device.name
        self._compute_dtype, self._one_process = compute_dtype, one_process
        self.result = Run(
            machine.facts() if device is None else {**machine.facts(), "device": card(device)},
            {
                "threads": list(settings.threads),
                "blocks": settings.blocks,
                "block_seconds": settings.block_seconds,
                "text": text and {"name": text.name, "characters": len(text.ids)},
                "vocabulary": text and text.vocab_size,
                "one_process": one_process,
                "executor": get_executor(),
                **({} if compute_dtype == "float32" else {"compute_dtype": compute_dtype}),
            },
            {},
            {},
            {},
        )

    def run(self) -> Run:
        before = get_num_threads()
        progress = Progress(len(self._cases) * len(self._settings.threads))
        try:
            for threads in self._settings.threads:
                set_num_threads(threads)
                self._measure_peaks(threads)
                with self._host(threads) as host:
                    started = self._open(host, progress)
                    for case in self._cases:
                        name = f"{case.suite} {case.label}, {_threads(threads)}"
                        progress.begin(name)
                        row = self._measure(case, threads, host, started)
                        self.result.rows.append(row)
                        progress.end(f"{name}: {_summary(row)}")
        finally:
            progress.close()
            set_num_threads(before)
        suites = list(SUITES)
        self.result.rows.sort(key=lambda row: suites.index(row.suite))  # threads within a suite
        return self.result

    def _host(self, threads: int) -> AbstractContextManager[Host]:
        return in_this_process(threads) if self._one_process else Worker(threads)

    def _measure_peaks(self, threads: int) -> None:
        seconds = self._settings.start_seconds
        self.result.peaks[str(threads)] = {
            "fma": machine.fma_peak(threads, seconds).rate,
            "read": {
                str(size): machine.read_bandwidth(size, threads, seconds / 4).rate
                for size in _FOOTPRINTS
            },
        }

    def _open(self, host: Host, progress: Progress) -> list[str]:
        started = []
        for name in self._peers:
            try:
                self.result.peers[name] = host.open(name)
                started.append(name)
            except UnavailableError as error:
                if name not in self.result.unavailable:
                    self.result.unavailable[name] = str(error)
                    progress.say(f"{name} is left out: {error}")
        return started

    # ---- one case -------------------------------------------------------------------------

    def _measure(self, case: AnyCase, threads: int, host: Host, peers: list[str]) -> Row:
        problem = make(case, self._text)
        case, notes = problem.case, list[str]()
        if case.suite == "time-to-loss":
            peers = [name for name in peers if name == "torch"]
        sides = self._own_sides(problem)
        expected = sides[0][1]
        timed = [sides[0][0]]
        for side, outputs in sides[1:]:
            compare(case, side.name, outputs, expected)
            timed.append(side)
        for name in peers:
            try:
                timed += self._peer_sides(problem, name, host, expected)
            except UnavailableError as error:
                notes.append(f"{name}: {error}")
        meter = _Meter(case, threads, self._settings)
        reached: dict[str, Reached] = {}
        if case.suite == "time-to-loss":
            reached = self._train_to_loss(timed, meter)
        else:
            self._take_turns(timed, meter)
        host.clear()
        return _row(case, threads, timed, meter, notes, reached, self._settings)

    def _own_sides(self, problem: Problem) -> list[tuple[_Timed, Outputs]]:
        sides = []
        for name, task in kernels.tasks(problem, self._device, self._compute_dtype).items():
            start = time.perf_counter()
            outputs = task.check()

            def run(count: int, task: Any = task) -> Timing:
                return time_runs(task, count, get_num_threads())

            side = _Timed(name, run, task.units, time.perf_counter() - start, task.evaluate)
            sides.append((side, outputs))
        return sides

    def _peer_sides(
        self, problem: Problem, peer: str, host: Host, expected: Outputs
    ) -> list[_Timed]:
        sides = []
        start = time.perf_counter()
        for name, units in host.prepare(peer, problem).items():
            outputs = host.check(name)
            compare(problem.case, name, outputs, expected)

            def run(count: int, name: str = name) -> Timing:
                return host.time(name, count)

            def evaluate(name: str = name) -> float:
                return host.evaluate(name)

            sides.append(_Timed(name, run, units, time.perf_counter() - start, evaluate))
            start = time.perf_counter()
        return sides

    def _take_turns(self, sides: list[_Timed], meter: _Meter) -> None:
        settings = self._settings
        for side in sides:
            side.calibrate(settings.block_seconds, settings.side_seconds, settings.blocks)
        ours, *others = sides
        for block in range(settings.blocks):
            taking: list[_Timed | None] = [side for side in others if block < side.blocks]
            for other in taking or [None]:
                meter.measure()
                own = ours.block()
                meter.note(own, ours.cores[-1])
                if other is not None:
                    other.ratios.append(other.block() / own)

    def _train_to_loss(self, sides: list[_Timed], meter: _Meter) -> dict[str, Reached]:
        """Trains all sides in turns until each reaches the target or it takes too long."""
        settings, reached = self._settings, dict[str, Reached]()
        spent = {side.name: 0.0 for side in sides}
        ours, *others = sides
        for side in sides:
            side.count = _STEPS_BETWEEN_EVALUATIONS
        for block in range(1, settings.blocks * _MOST_PASSES + 1):
            meter.measure()
            for side in sides:
                spent[side.name] += side.block() * side.count
                if side.name not in reached or not reached[side.name].reached:
                    assert side.evaluate is not None
                    loss = side.evaluate()
                    reached[side.name] = Reached(
                        block * side.count, spent[side.name], loss, loss <= settings.target
                    )
            meter.note(ours.seconds[-1], ours.cores[-1])
            for other in others:
                other.ratios.append(other.seconds[-1] / ours.seconds[-1])
            if all(entry.reached for entry in reached.values()):
                break
        return reached


class _Meter:
    """The machine's peak beside a case, and the least time of a unit that follows from it."""

    def __init__(self, case: AnyCase, threads: int, settings: Settings) -> None:
        self._case, self._threads, self._seconds = case, threads, settings.peak_seconds
        self.limit = "fma"
        self.least_seconds = 0.0  # of a unit
        self.peaks: list[float] = []
        self.free: list[float] = []
        self.shares: list[float] = []
        self.efficiencies: list[float] = []
        self.measure()
        if case.bytes_read is not None:
            by_fma = self.least_seconds
            self.limit = "read"
            self.measure()
            if by_fma > self.least_seconds:
                self.limit = "fma"
        self.peaks.clear()
        self.free.clear()

    def measure(self) -> None:
        case = self._case
        if self.limit == "fma":
            peak, work = machine.fma_peak(self._threads, self._seconds), case.flop
        else:
            peak = machine.read_bandwidth(case.weight_bytes, self._threads, self._seconds)
            work = case.bytes_read or 0.0
        self.peaks.append(peak.rate)
        self.free.append(peak.free)
        self.least_seconds = work / peak.rate

    def note(self, seconds: float, cores: float) -> None:
        """Adds a block of the kernels: seconds per unit, processor time over time."""
        self.shares.append(self.least_seconds / seconds)
        alone = self._threads == 1 and cores > 0  # 0: processor time is counted in coarse steps
        self.efficiencies.append(self.shares[-1] / (min(cores, 1) if alone else 1))


def compare(case: AnyCase, side: str, outputs: Outputs, expected: Outputs) -> None:
    """BenchError, with the place and both numbers, if a side computes something else."""
    what = f"{case.suite} {case.label}"
    is_rounded = side == ROUNDED_PEER or side in map(kernels.computing, registry.COMPUTE_DTYPES)
    tolerance = ROUNDED_TOLERANCE if is_rounded else TOLERANCE
    if set(outputs) != set(expected):
        raise BenchError(f"{what}: {side} gives {sorted(outputs)}, not {sorted(expected)}")
    for name, ours in expected.items():
        theirs = np.asarray(outputs[name])
        if theirs.shape != ours.shape:
            raise BenchError(f"{what}: {name} of {side} has shape {theirs.shape}, not {ours.shape}")
        difference = np.abs(np.asarray(theirs, np.float64) - ours)
        difference[np.isnan(difference)] = np.inf
        largest = float(np.abs(ours).max())
        if not difference.max() <= tolerance * largest:  # nor where ours has a NaN
            at = np.unravel_index(int(difference.argmax()), ours.shape)
            index = ", ".join(str(int(i)) for i in at)
            raise BenchError(
                f"{what}: {name}[{index}] is {theirs[at]:.7g} by {side} and {ours[at]:.7g} by the "
                f"kernels; nothing was timed"
            )


def _row(
    case: AnyCase,
    threads: int,
    sides: list[_Timed],
    meter: _Meter,
    notes: list[str],
    reached: dict[str, Reached],
    settings: Settings,
) -> Row:
    ours, *others = sides
    seconds = Spread.of(ours.seconds)
    for side in sides:
        cores = statistics.median(side.cores)
        if cores > threads + 0.1:
            notes.append(f"{side.name} kept {cores:.1f} cores busy")
    return Row(
        suite=case.suite,
        case=case.label,
        threads=threads,
        unit=SUITES[case.suite].unit,
        seconds=seconds,
        cores=statistics.median(ours.cores),
        characters_per_second=case.characters and case.characters / seconds.median,
        flops=case.flop / seconds.median,
        intensity=case.intensity,
        weight_bytes=case.weight_bytes,
        limit=meter.limit,
        peak=statistics.median(meter.peaks),
        share=Spread.of(meter.shares),
        efficiency=Spread.of(meter.efficiencies),
        free=statistics.fmean(meter.free),
        peers={
            side.name: Side(
                Spread.of(side.seconds),
                Spread.of(side.ratios),
                statistics.median(side.cores),
                side.preparation,
            )
            for side in others
        },
        notes=notes,
        target=settings.target if reached else None,
        reached=reached,
    )


def _summary(row: Row) -> str:
    suite = SUITES[row.suite]
    own = f"{row.seconds.median * suite.scale:.4g} {suite.time_unit}, {row.share.median:.0%}"
    ratios = [f"{name} {side.ratio.median:.2f}x" for name, side in row.peers.items()]
    return ", ".join([own, *ratios])


def card(device: Device) -> str:
    """The device's name, with that of its GPU."""
    cards = cuda.devices() if kind(device.name) == "cuda" else []
    ordinal = int(device.name.partition(":")[2] or 0)
    return next((f"{device.name} ({c.name})" for c in cards if c.ordinal == ordinal), device.name)


def _threads(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


PEERS = tuple(MODULES)
DEFAULT_PEERS = tuple(name for name in PEERS if name != ROUNDED_PEER)

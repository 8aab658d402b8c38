"""Training speed while other work is on the machine, after rests, and in float64.

    python benchmarks/robustness.py [busy] [pairs] [rests] [float64] [pools]
        [--repeats 9] [--seconds 0.6] [--cases CASE ...] [--json FILE]

Each figure is a ratio within one run. The blocks of both sides take turns, so that a machine whose
speed drifts treats them alike. The median over the repeats and their range are given:

- all processors' threads against one thread, on an idle machine, and while another program takes
  one processor: pinned to the first, to the last, or left to the scheduler;
- four times as many threads as processors against one thread (oversubscription);
- two independent models with one thread each, on two Python threads, against one of them alone;
- a step after a rest: the median time of 30 steps with a rest of 2, 30 or 200 ms before each, and
  of steps 3 to 22 of a fresh process. Both are over the best median of 30 steps back to back, with
  the same number of threads. The same with one thread shows what rests cost by themselves (caches,
  clock rates), without threads that wake up. For a tenth of a second after NumPy is imported, the
  other threads of its OpenBLAS take processors, waiting for work: fresh processes are measured with
  them and without;
- training in float64: FLOP/s as a share of what fused multiply-adds that touch no memory reach;
- a step right after other libraries' thread pools have worked: the median time of 12 steps, each
  after a product of 500 x 500 matrices by PyTorch, by PyTorch in another thread, and by NumPy,
  whose time does not count, and each after a rest of 30 ms. With the executors "own", "openmp" and
  "auto", over the median of 12 steps back to back on threads of the package's own.
  One thread shows when two are of no use. Needs PyTorch.

A step is embedding to optimizer (Adam). Every block begins with `set_num_threads`, after which the
package knows nothing of what else runs: finding it out is part of the time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import charrnn_fast as cf
from charrnn_fast import _core
from charrnn_fast.bench import machine
from charrnn_fast.storage import atomic_file

Case = tuple[str, int, int, int, int]  # cell, batch, seq_len, hidden_size, num_layers
# by streams and, where these are few, by units, with a barrier per step
BUSY: list[Case] = [
    ("rnn", 32, 50, 128, 1),
    ("lstm", 4, 50, 256, 1),
    ("lstm", 1, 50, 512, 1),
    ("lstm", 50, 50, 128, 2),
    ("lstm", 50, 50, 256, 1),
    ("lstm", 64, 50, 512, 1),
]
PAIRS: list[Case] = [("rnn", 1, 25, 100, 1), ("gru", 16, 50, 128, 1), ("lstm", 50, 50, 128, 2)]
RESTED: list[Case] = [("rnn", 32, 50, 128, 1), ("lstm", 50, 50, 128, 2)]
RESTS = [0.002, 0.03, 0.2]
FRESH: dict[str, dict[str, str]] = {  # processes, and their environments
    "fresh process": {},
    "fresh process, OPENBLAS_NUM_THREADS=1": {"OPENBLAS_NUM_THREADS": "1"},
}
STEPS = 30  # in a block
FLOAT64: list[Case] = [("lstm", 50, 50, 256, 1), ("lstm", 64, 50, 512, 1)]
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
POOLS: list[Case] = [("lstm", 50, 50, 128, 2), ("lstm", 64, 50, 512, 1)]
POOL_STEPS = 12  # in a block
EXECUTORS = ("own", "openmp", "auto")
MATRIX = 500
VOCABULARY = 96
PARTS = ["busy", "pairs", "rests", "float64", "pools"]


def training(case: Case, dtype: str = "float32") -> Callable[[], object]:
    """One update of a fresh model per call."""
    cell, batch, seq_len, hidden, layers = case
    rnn = cf.RNN(VOCABULARY, hidden, VOCABULARY, cell=cell, num_layers=layers, dtype=dtype)
    optimizer = cf.optim.Adam(rnn, lr=2e-3)
    state = rnn._kernel_zeros(batch)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (seq_len + 1, batch), "int32")

    def step() -> object:
        x, y = tokens[:-1], tokens[1:]
        return rnn._core.train_step(x, y, state, optimizer._core, 2e-3, 5.0, math.inf, "mean")

    return step


def flop(case: Case) -> int:
    """Multiply-adds of a step's matrix products count as two, backward as twice forward."""
    cell, batch, seq_len, hidden, layers = case
    hh = GATES[cell] * hidden * hidden
    return 6 * batch * seq_len * ((2 * layers - 1) * hh + hidden * VOCABULARY)


def speed(step: Callable[[], object], seconds: float) -> float:
    """Steps per second."""
    step()
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        step()
        count += 1
    return count / elapsed


def speed_of_all(steps: list[Callable[[], object]], seconds: float) -> float:
    """Steps per second of all together, each on a Python thread of its own."""
    speeds = [0.0] * len(steps)
    begin = threading.Barrier(len(steps))

    def run(i: int) -> None:
        begin.wait()
        speeds[i] = speed(steps[i], seconds)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(speeds)


@contextmanager
def hog(processor: int | None) -> Iterator[None]:
    """Another program that takes all the time it gets on a processor, or on any."""
    pin = "" if processor is None else f"import os; os.sched_setaffinity(0, {{{processor}}})\n"
    burning = subprocess.Popen([sys.executable, "-S", "-c", pin + "while True: pass"])
    try:
        time.sleep(0.2)
        yield
    finally:
        burning.kill()
        burning.wait()


def threads_against_one(case: Case, threads: int, repeats: int, seconds: float) -> list[float]:
    step = training(case)
    ratios = []
    for _ in range(repeats):
        speeds = []
        for n in (1, threads):
            cf.set_num_threads(n)
            speeds.append(speed(step, seconds))
        ratios.append(speeds[1] / speeds[0])
    return ratios


def pair_against_one(case: Case, repeats: int, seconds: float) -> list[float]:
    cf.set_num_threads(1)
    a, b = training(case), training(case)
    return [speed_of_all([a, b], seconds) / speed_of_all([a], seconds) for _ in range(repeats)]


def median_time(
    step: Callable[[], object], before: Callable[[], object] | None = None, steps: int = STEPS
) -> float:
    """Seconds that a step takes, what is called before each not counted."""
    times = []
    for _ in range(steps):
        if before:
            before()
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def time_in_a_fresh_process(case: Case, threads: int, environment: dict[str, str]) -> float:
    """The median of steps 3 to 22, in seconds."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import robustness as r; "
        f"r.cf.set_num_threads({threads}); step = r.training({case}); "
        "r.median_time(step, steps=2); print(r.median_time(step, steps=20))"
    )
    here = str(Path(__file__).resolve().parent)
    command = [sys.executable, "-c", program, here]
    return float(subprocess.check_output(command, env={**os.environ, **environment}))


def after_rests(case: Case, threads: int, repeats: int) -> dict[str, list[float]]:
    """Times of steps over the best median of steps back to back, by what came before them."""
    step = training(case)
    steady: list[float] = []
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        cf.set_num_threads(threads)
        for rest in RESTS:
            steady.append(median_time(step))
            found.setdefault(f"after {rest * 1e3:.0f} ms", []).append(
                median_time(step, partial(time.sleep, rest))
            )
        steady.append(median_time(step))
        for name, environment in FRESH.items():
            fresh = time_in_a_fresh_process(case, threads, environment)
            found.setdefault(name, []).append(fresh)
    found["back to back"] = steady
    return {name: [t / min(steady) for t in times] for name, times in found.items()}


def other_pools() -> dict[str, Callable[[], object] | None]:
    """What precedes each step."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    a = np.random.default_rng(0).standard_normal((MATRIX, MATRIX), "float32")
    b = torch.from_numpy(a)
    thread = ThreadPoolExecutor(1)
    return {
        "back to back": None,
        "after torch.mm": lambda: torch.mm(b, b),
        "after torch.mm in another thread": lambda: thread.submit(torch.mm, b, b).result(),
        "after NumPy's matmul": lambda: a @ a,
        "after a rest of 30 ms": partial(time.sleep, 0.03),
    }


def beside_other_pools(case: Case, threads: int, repeats: int) -> dict[str, list[float]]:
    """Times of steps over those back to back on own threads in the same round."""
    step = training(case)
    pools = other_pools()
    sides = [(executor, threads, what) for executor in EXECUTORS for what in pools]
    sides.append(("own", 1, "back to back"))
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for executor, n, what in sides:
            time.sleep(0.2)  # until the other pools' threads sleep
            cf.set_executor(executor)
            cf.set_num_threads(n)
            name = f"{what}, {n} thread{'s'[: n > 1]}, {executor}"
            step()
            times.setdefault(name, []).append(median_time(step, pools[what], POOL_STEPS))
    first = next(iter(times.values()))
    return {
        name: [t / steady for t, steady in zip(found, first, strict=True)]
        for name, found in times.items()
    }


def share_of_peak(case: Case, repeats: int, seconds: float) -> list[float]:
    cf.set_num_threads(1)
    step = training(case, "float64")
    return [
        speed(step, seconds) * flop(case) / _core.fma_peak("float64", seconds / 2)
        for _ in range(repeats)
    ]


def _case(text: str) -> Case:
    cell, *sizes = text.split(",")
    if cell not in GATES or len(sizes) != 4 or not all(size.isdecimal() for size in sizes):
        raise argparse.ArgumentTypeError(f"CASE must be cell,B,T,H,L, got {text!r}")
    batch, seq_len, hidden, layers = map(int, sizes)
    return cell, batch, seq_len, hidden, layers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.6, help="of a block")
    parser.add_argument(
        "--cases", nargs="+", type=_case, metavar="CASE", help="instead, such as lstm,50,50,128,2"
    )
    parser.add_argument("--json", type=Path, help="write the rows and the machine's facts there")
    args = parser.parse_args()
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"PART must be one of {', '.join(PARTS)}, got {unknown[0]}")
    parts = args.parts or PARTS
    if args.json:
        atomic_file.check(args.json)
    processors = sorted(os.sched_getaffinity(0))
    every = len(processors)
    facts = machine.facts()
    rows: list[dict[str, Any]] = []

    def report(what: str, case: Case, goal: float | None, ratios: list[float]) -> None:
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        rows.append({"what": what, "case": case, "goal": goal, "median": middle, "ratios": ratios})
        wanted = "" if goal is None else f"{goal:.2f}"
        name = ", ".join(map(str, case))
        print(
            f"| {what} | {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {wanted} |", flush=True
        )

    print(f"# {facts}")
    print("| speed | cell, B, T, H, L | median | range | goal |")
    print("| --- | --- | --- | --- | --- |", flush=True)

    def chosen(part: str, cases: list[Case]) -> list[Case]:
        return (args.cases or cases) if part in parts else []

    places = {"on the first": processors[0], "on the last": processors[-1], "on any": None}
    for case in chosen("busy", BUSY):
        report(
            f"{every} threads / 1, idle machine",
            case,
            None,
            threads_against_one(case, every, args.repeats, args.seconds),
        )
        for place, processor in places.items():
            with hog(processor):
                ratios = threads_against_one(case, every, args.repeats, args.seconds)
            report(f"{every} threads / 1, another program {place}", case, 0.9, ratios)
        ratios = threads_against_one(case, 4 * every, args.repeats, args.seconds)
        report(f"{4 * every} threads / 1", case, None, ratios)
    for case in chosen("pairs", PAIRS):
        ratios = pair_against_one(case, args.repeats, args.seconds)
        report("two models / one, a thread each", case, 1.7, ratios)
    for case in chosen("rests", RESTED):
        for threads in (1, every):
            for name, ratios in after_rests(case, threads, args.repeats).items():
                goal = None
                if threads > 1 and name != "back to back":
                    goal = 1.3 if name == "after 200 ms" else 1.2
                report(f"{name}, {threads} thread{'s'[: threads > 1]}", case, goal, ratios)
    for case in chosen("float64", FLOAT64):
        ratios = share_of_peak(case, args.repeats, args.seconds)
        report("float64, share of its peak", case, 0.7, ratios)
    for case in chosen("pools", POOLS):
        for name, ratios in beside_other_pools(case, every, args.repeats).items():
            report(name, case, 1.15 if name.startswith("after torch.mm,") else None, ratios)
    if args.json:
        data = json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n"
        atomic_file.replace(args.json, [data.encode()])


if __name__ == "__main__":
    main()

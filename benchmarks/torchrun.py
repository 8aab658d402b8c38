"""What training by several processes costs: bytes and time of the gradients' sum, beside a step's.

    python benchmarks/torchrun.py
    python benchmarks/torchrun.py --json torchrun.json --markdown torchrun.md

Measured: a step of one process; of two at once, with half of its streams each, that exchange
nothing; and of two that share out its streams, over the machine's loopback and, as root, between
two network namespaces of `--rate` (tests/two_hosts.py). Each process is on one core.

Computed: the batch from which hosts keep 80 % of their speed. A step of N hosts takes C / N + A: C
is that of one, A = 2 (N - 1) / N * bytes / rate + 4 (N - 1) * latency. That is a ring, which sums
pieces and spreads them, for the gradient and for the short sum before it.

With overlap the gradients of the decoder and of layer 1 go out while layer 0's are computed: a
third of backward's two thirds of the arithmetic.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import charrnn_fast as cf
from charrnn_fast.bench import machine
from charrnn_fast.bench.report import number, table
from charrnn_fast.distributed import Group, joined
from charrnn_fast.storage import atomic_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import two_hosts

FORMAT = 1
LAYERS, SEQ_LEN, SYMBOLS = 2, 50, 64
SIZES = ((128, 64), (256, 64), (512, 32))  # H, B
LINKS = (1, 10, 25, 100)  # Gbit/s
LATENCY = 50e-6  # seconds from host to host, in a data centre
HOSTS, CORES, EFFICIENCY = (2, 8), (1, 16), 0.8
_REPEATS = 5


class Sizes(NamedTuple):
    """One case, as a worker has timed it; seconds are medians."""

    hidden_size: int
    batch: int
    elements: int  # of the gradient
    step: float
    gradient_sum: float
    short_sum: float


def timed(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def measure(group: Group, share: int) -> list[Sizes]:
    """Of each case, by the processes of a group, with one share of the batch."""
    found = []
    rng = np.random.default_rng(1)
    vocabulary = cf.Vocabulary.from_text("".join(chr(48 + i) for i in range(SYMBOLS)))
    for hidden_size, whole in SIZES:
        batch = whole // share
        model = cf.CharLM(vocabulary, hidden_size=hidden_size, num_layers=LAYERS, cell="lstm")
        trainer = cf.Trainer(model, batch_size=batch, seq_len=SEQ_LEN, group=group)
        tokens = rng.integers(SYMBOLS, size=(SEQ_LEN + 1, batch))
        gradient = np.zeros(model.num_parameters, np.float32)

        def step(trainer: cf.Trainer = trainer, tokens: Any = tokens) -> None:
            trainer.step(tokens[:-1], tokens[1:])

        def add_up(gradient: Any = gradient) -> None:
            group.add_up(gradient)

        found.append(
            Sizes(
                hidden_size,
                batch,
                len(gradient),
                timed(step),
                timed(add_up),
                timed(group.sum),
            )
        )
    return found


def run_processes(
    prefixes: Sequence[Sequence[str]], address: str, interface: str, apart: bool = False
) -> list[Sizes]:
    """The measurements of processes that commands of these prefixes start, each on one core.

    apart: each has its share of the batch, and they exchange nothing.
    """
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    environment = {
        **os.environ,
        "WORLD_SIZE": "1" if apart else str(len(prefixes)),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "CHARRNN_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": interface,
    }
    running = [
        subprocess.Popen(
            [*prefix, sys.executable, __file__, "--worker", str(len(prefixes) if apart else 1)],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, prefix in enumerate(prefixes)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a process has failed")
    return [Sizes(*sizes) for sizes in json.loads(outputs[0])]


def sent(elements: int, hosts: int) -> float:
    """Bytes that each of the hosts sends in a sum of gradients."""
    return 2 * (hosts - 1) / hosts * elements * 4


def sum_seconds(elements: int, hosts: int, rate: float, latency: float) -> float:
    """A of the module's docstring; rate in bit/s."""
    return sent(elements, hosts) * 8 / rate + 4 * (hosts - 1) * latency


def least_batch(sizes: Sizes, hosts: int, cores: int, gigabits: float, overlap: bool) -> int:
    """B of all hosts from which they keep EFFICIENCY of their speed."""
    character = sizes.step / (SEQ_LEN * sizes.batch) / cores
    total = sum_seconds(sizes.elements, hosts, gigabits * 1e9, LATENCY)
    # The share of layer 0, whose gradient is the last.
    lower = 4 * sizes.hidden_size * (sizes.hidden_size + SYMBOLS) / sizes.elements

    def kept(batch: int) -> bool:
        compute = character * SEQ_LEN * batch / hosts
        shown = total
        if overlap:
            hidden = compute * 2 / 3 / 3  # layer 0's part of backward's two thirds
            shown = total * lower + max(0.0, total * (1 - lower) - hidden)
        return compute >= EFFICIENCY * (compute + shown)

    most = 1
    while not kept(most):
        most *= 2
    least = most // 2
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if kept(middle) else (middle, most)
    return most


def milliseconds(seconds: float) -> str:
    return number(seconds * 1e3)


def measured_table(sides: dict[str, list[Sizes]], rates: dict[str, float]) -> str:
    rows = []
    for index, (one, apart) in enumerate(
        zip(sides["one process"], sides["two apart"], strict=True)
    ):
        for name, found in sides.items():
            two = found[index]
            if name in ("one process", "two apart"):
                continue
            computed = (
                ""
                if name not in rates
                else milliseconds(sent(one.elements, 2) * 8 / rates[name] + two.short_sum)
            )
            rows.append(
                [
                    f"{one.hidden_size}, {one.batch}",
                    name,
                    number(sent(one.elements, 2) / 1e6),
                    milliseconds(one.step),
                    milliseconds(apart.step),
                    milliseconds(two.step),
                    milliseconds(two.gradient_sum),
                    computed,
                    milliseconds(two.short_sum),
                ]
            )
    names = ["H, B", "link", "MB sent", "ms, one", "ms, two apart", "ms, two"]
    return table([*names, "ms, sum", "ms, computed", "ms, short sum"], rows)


def computed_table(alone: list[Sizes]) -> str:
    rows = [
        [str(sizes.hidden_size), str(hosts), str(cores)]
        + [
            f"{least_batch(sizes, hosts, cores, link, False):,} / "
            f"{least_batch(sizes, hosts, cores, link, True):,}"
            for link in LINKS
        ]
        for sizes in alone
        for hosts in HOSTS
        for cores in CORES
    ]
    return table(["H", "hosts", "cores each", *(f"{link} Gbit/s" for link in LINKS)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="What training by several processes costs.")
    parser.add_argument("--rate", default="1", help="of the link between namespaces, Gbit/s")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--worker", type=int, metavar="SHARES", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        with joined() as group:
            found = measure(group, arguments.worker)
            if group.rank == 0:
                print(json.dumps(found))
        return
    rate = float(arguments.rate)
    if not 0 < rate < math.inf:
        parser.error(f"--rate must be above 0, got {arguments.rate}")
    sides = {"one process": run_processes([[]], "127.0.0.1", "lo")}
    sides["two apart"] = run_processes([[], []], "127.0.0.1", "lo", apart=True)
    sides["loopback"] = run_processes([[], []], "127.0.0.1", "lo")
    name = f"{rate:g} Gbit/s"
    reason = two_hosts.why_not()
    if reason:
        print(f"left out: {reason}", file=sys.stderr)
    else:
        with two_hosts.two_hosts(f"{rate * 1000:g}mbit") as hosts:
            prefixes = [hosts.command(host) for host in (0, 1)]
            sides[name] = run_processes(prefixes, hosts.addresses[0], hosts.interface)
    text = (
        f"{LAYERS} layers, T {SEQ_LEN}, float32, one core a process:\n\n"
        f"{measured_table(sides, {name: rate * 1e9})}\n\n"
        f"The least batch at which hosts keep {EFFICIENCY:.0%} of their speed, without / with "
        f"overlap:\n\n{computed_table(sides['one process'])}\n"
    )
    print(text)
    if arguments.markdown:
        atomic_file.replace(arguments.markdown, [text.encode()])
    if arguments.json:
        result = {
            "format": FORMAT,
            "machine": machine.facts(),
            "layers": LAYERS,
            "seq_len": SEQ_LEN,
            "symbols": SYMBOLS,
            "latency": LATENCY,
            "sides": {name: [one._asdict() for one in found] for name, found in sides.items()},
        }
        atomic_file.replace(arguments.json, [json.dumps(result, indent=1).encode() + b"\n"])


if __name__ == "__main__":
    main()

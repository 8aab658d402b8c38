"""What the options of the layers cost: training steps with each, beside the same step without it.

    python benchmarks/options.py --markdown benchmarks/results/options.md

The steps of all options are interleaved, so that a slow machine slows them alike. A figure is the
median over the rounds of (time with the option / time without it in the same round). For lengths it
is forward and backward of a batch that is half padding, over the same batch without lengths.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import charrnn_fast as cf
from charrnn_fast.bench.machine import facts
from charrnn_fast.storage import atomic_file

VOCABULARY = 65
RATES: dict[str, dict[str, Any]] = {
    "input_dropout": {"input_dropout": 0.3},
    "dropout": {"dropout": 0.3},
    "output_dropout": {"output_dropout": 0.3},
    "recurrent_dropout": {"recurrent_dropout": 0.3},
    "all four, variational": {
        "input_dropout": 0.3,
        "dropout": 0.3,
        "output_dropout": 0.3,
        "recurrent_dropout": 0.3,
        "variational": True,
    },
    "weight_drop": {"weight_drop": 0.3},
    "zoneout": {"zoneout": 0.1},
    "layer_norm": {"layer_norm": True},
}
CASES = (  # cell, B, T, H, L
    ("lstm", 50, 50, 128, 2),
    ("gru", 50, 50, 128, 2),
    ("rnn", 32, 50, 128, 1),
    ("lstm", 64, 50, 512, 1),
    ("rnn", 1, 25, 100, 1),
    ("lstm", 1, 25, 128, 1),
)
PADDED = (  # cell, H, bidirectional
    ("rnn", 128, False),
    ("lstm", 128, False),
    ("gru", 256, True),
    ("lstm", 512, False),
)


def ratios(sides: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The median over rounds of each side's time over that of the first, with at least 5 rounds."""
    for run in sides.values():
        run(), run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 5:
        for name, run in sides.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    first = np.array(next(iter(times.values())))
    return {name: float(np.median(np.array(t) / first)) for name, t in times.items()}


def training_step(
    cell: str, batch: int, seq_len: int, hidden: int, layers: int, options: dict[str, Any]
) -> Callable[[], object]:
    vocabulary = cf.Vocabulary.from_text("".join(map(chr, range(32, 32 + VOCABULARY))))
    trainer = cf.Trainer(cf.CharLM(vocabulary, hidden, layers, cell, **options))
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (seq_len + 1, batch))
    return lambda: trainer.step(tokens[:-1], tokens[1:])


def padded(cell: str, hidden: int, bidirectional: bool) -> dict[str, Callable[[], object]]:
    T, B, inputs = 100, 64, 64
    network = cf.RNN(inputs, hidden, cell=cell, num_layers=2, bidirectional=bidirectional)
    x = np.random.default_rng(0).standard_normal((T, B, inputs)).astype("float32")
    dy = np.ones((T, B, hidden * (1 + bidirectional)), np.float32)
    mixed = np.random.default_rng(1).permutation(np.linspace(0, T, B).round().astype(int))

    def run(lengths: Any) -> Callable[[], object]:
        def both() -> None:
            network.forward(x, lengths=lengths)
            network.backward(dy)

        return both

    return {"whole": run(None), "lengths 0 to T": run(mixed), "all T/2": run(np.full(B, T // 2))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each case (default: 10)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there too")
    arguments = parser.parse_args()
    if arguments.markdown:
        atomic_file.check(arguments.markdown)
    machine = facts()
    lines = [
        f"{machine['processor']}, {machine['isa']}, commit {machine['commit']}. Written by",
        "`python benchmarks/options.py --markdown benchmarks/results/options.md`.",
        "",
        "Training steps with an option, over those without (`dropout` is between layers: of one",
        "layer it does nothing):",
        "",
        "| cell, B, T, H, L; threads | " + " | ".join(RATES) + " |",
        "| --- |" + " --- |" * len(RATES),
    ]
    for threads in arguments.threads:
        cf.set_num_threads(threads)
        for case in CASES:
            sides = {"plain": training_step(*case, {})}
            sides |= {name: training_step(*case, options) for name, options in RATES.items()}
            found = ratios(sides, arguments.seconds)
            row = " | ".join(f"{found[name]:.2f}" for name in RATES)
            lines.append(f"| {', '.join(map(str, case))}; {threads} | {row} |")
            print(lines[-1], flush=True)
    lines += [
        "",
        "Forward and backward of 64 sequences, two layers, over those of 100 steps each:",
        "",
        "| cell, H; threads | lengths 0 to 100, in any order | all of 50 |",
        "| --- | --- | --- |",
    ]
    for threads in arguments.threads:
        cf.set_num_threads(threads)
        for cell, hidden, bidirectional in PADDED:
            found = ratios(padded(cell, hidden, bidirectional), arguments.seconds)
            both = ", bidirectional" if bidirectional else ""
            lines.append(
                f"| {cell}, {hidden}{both}; {threads} | {found['lengths 0 to T']:.2f} | "
                f"{found['all T/2']:.2f} |"
            )
            print(lines[-1], flush=True)
    if arguments.markdown:
        text = "# What the layers' options cost\n\n" + "\n".join(lines) + "\n"
        atomic_file.replace(arguments.markdown, [text.encode()])


if __name__ == "__main__":
    main()

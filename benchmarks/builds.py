"""Two builds in turns: what another installation of the package takes, beside this one.

    python benchmarks/builds.py /path/to/other/venv/bin/python --repeats 9

Each installation runs in a process of its own, on one thread; every case is run by one, then by the
other, in changing order. A figure is the least processor time over the repeats, so that other
programs count little. Results of both are compared bit by bit.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import charrnn_fast as cf

Run = Callable[[], object]

FIRST_SYMBOL = 0x4E00  # of a block of 20,992 characters


def model_of(symbols: int, layers: int, hidden: int, cell: str = "lstm") -> cf.CharLM:
    text = "".join(map(chr, range(FIRST_SYMBOL, FIRST_SYMBOL + symbols - 1))) + "\n"
    return cf.CharLM(cf.Vocabulary.from_text(text), hidden, layers, cell, seed=1)


def text_of(model: cf.CharLM, length: int) -> str:
    """Characters drawn evenly from all but the newline."""
    ids = np.random.default_rng(0).integers(1, len(model.vocabulary), length)
    return model.vocabulary.decode(ids)


def prime(symbols: int, layers: int, hidden: int) -> Run:
    """A sample of one character behind 1,000."""
    model = model_of(symbols, layers, hidden)
    text = text_of(model, 1000)
    return lambda: model.sample(1, text, seed=1)


def score(symbols: int, layers: int, hidden: int) -> Run:
    """100,000 characters in lines of 20 to 109."""
    model = model_of(symbols, layers, hidden)
    text, lines, rng = text_of(model, 100_000), [], np.random.default_rng(3)
    while text:
        end = int(rng.integers(20, 110))
        lines.append(text[:end] + "\n")
        text = text[end:]
    return lambda: model.score(lines)


def evaluate(symbols: int, layers: int, hidden: int) -> Run:
    model = model_of(symbols, layers, hidden)
    text = text_of(model, 20_000)
    return lambda: model.evaluate(text)


def documents(symbols: int, layers: int, hidden: int) -> Run:
    """An evaluation of 20,000 characters in documents of 40."""
    model = model_of(symbols, layers, hidden)
    text = "".join(text_of(model, 40)[:-1] + "\n" for _ in range(500))
    corpus = cf.Corpus.from_text(text, model.vocabulary, document_mark="\n")
    return lambda: model.evaluate_ids(corpus.ids, corpus.starts_within)


def step(cell: str, batch: int, seq_len: int, hidden: int, layers: int) -> Run:
    """`Trainer.step`."""
    trainer = cf.Trainer(model_of(65, layers, hidden, cell))
    tokens = np.random.default_rng(0).integers(0, 65, (seq_len + 1, batch)).astype(np.int32)
    return lambda: trainer.step(tokens[:-1], tokens[1:])


def fit(
    cell: str, batch: int, seq_len: int, hidden: int, layers: int, mark: str | None = None
) -> Run:
    """Updates of `Trainer.fit`, on a text in a file; mark: with documents."""
    model = model_of(65, layers, hidden, cell)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text"
        path.write_text(text_of(model, 200_000), encoding="utf-8")
        corpus = cf.Corpus.from_files(path, vocabulary=model.vocabulary, document_mark=mark)
    trainer = cf.Trainer(
        model, corpus, batch, seq_len, sample_length=0, evaluate_length=2, random_offset=True
    )
    steps = 400 if batch == 1 else 8

    def run() -> float:
        trainer.fit(steps=steps, progress=False)
        return trainer.history[-1].train_loss

    run.updates = steps  # type: ignore[attr-defined]
    return run


SMALL = ("rnn", 1, 25, 100, 1), ("lstm", 1, 25, 128, 1), ("lstm", 50, 50, 128, 2)
MARK = chr(FIRST_SYMBOL)
KINDS: dict[str, tuple[Callable[..., Run], tuple[tuple[Any, ...], ...]]] = {
    "prime (V, L, H)": (
        prime,
        tuple((V, *size) for size in ((2, 128), (1, 512)) for V in (100, 5_000, 20_000)),
    ),
    "score (V, L, H)": (score, ((100, 2, 128), (5_000, 2, 128), (20_000, 2, 128))),
    "evaluate (V, L, H)": (evaluate, ((100, 2, 128),)),
    "documents (V, L, H)": (documents, ((100, 1, 128),)),
    "step (cell, B, T, H, L)": (step, SMALL),
    "fit (cell, B, T, H, L)": (fit, SMALL),
    "fit, documents (cell, B, T, H, L)": (fit, ((*SMALL[2], MARK),)),
}


def cases() -> dict[str, tuple[Callable[..., Run], tuple[Any, ...]]]:
    return {
        f"{kind}: {', '.join(map(str, arguments[:5]))}": (make, arguments)
        for kind, (make, all_arguments) in KINDS.items()
        for arguments in all_arguments
    }


def work() -> None:
    """Runs the case of each line of the standard input once; writes its time and its result."""
    cf.set_num_threads(1)
    made: tuple[str, Run] = ("", lambda: None)
    for line in sys.stdin:
        name = line.rstrip("\n")
        if name != made[0]:
            make, arguments = cases()[name]
            made = (name, make(*arguments))
            made[1]()
        run = made[1]
        calls = 200 if name.startswith("step") and ", 1, " in name else 1
        begin = time.process_time()
        for _ in range(calls):
            result = run()
        seconds = time.process_time() - begin
        each = calls * getattr(run, "updates", 1)
        print(seconds / each, hashlib.sha256(np.asarray(result).tobytes()).hexdigest(), flush=True)


def ask(worker: subprocess.Popen[str], name: str) -> tuple[float, str]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    with suppress(BrokenPipeError):  # told below
        print(name, file=worker.stdin, flush=True)
    answer = worker.stdout.readline().split()
    if len(answer) != 2:
        raise SystemExit(f"{worker.args!r} ended at {name}")
    return float(answer[0]), answer[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", nargs="?", help="of the other installation")
    parser.add_argument("--repeats", type=int, default=9, help="of each case (default: 9)")
    parser.add_argument("--only", metavar="PATTERN", default="", help="cases that it is found in")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work()
    if arguments.python is None or arguments.repeats < 1:
        parser.error("give the Python of the other installation, and 1 or more repeats")
    # From a folder without the package's sources.
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            subprocess.Popen(
                [python, os.path.abspath(__file__), "--worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=folder,
            )
            for python in (os.path.abspath(arguments.python), sys.executable)
        ]
        print("| case | other, ms | this, ms | ratio | ratio of medians | results |")
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        for name in filter(lambda name: re.search(arguments.only, name), cases()):
            times: tuple[list[float], list[float]] = [], []
            results: tuple[list[str], list[str]] = [], []
            for repeat in range(arguments.repeats):
                for side in (0, 1) if repeat % 2 else (1, 0):
                    seconds, result = ask(workers[side], name)
                    times[side].append(seconds)
                    results[side].append(result)
            other, this = (min(side) for side in times)
            medians = [statistics.median(side) for side in times]
            same = "the same" if results[0] == results[1] else "others"
            print(
                f"| {name} | {other * 1e3:.3f} | {this * 1e3:.3f} | {this / other:.2f} | "
                f"{medians[1] / medians[0]:.2f} | {same} |",
                flush=True,
            )
        for worker in workers:
            worker.communicate()


if __name__ == "__main__":
    main()

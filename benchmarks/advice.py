"""Does what ``charrnn-fast train`` expects of a text and a model come true?

    python benchmarks/advice.py --texts tinyshakespeare.txt warpeace.txt --markdown advice.md

Trains the pairs of texts and models in `FITTED`, to which the rule of
`charrnn_fast.training.advice` was fitted, and in `HELD_OUT`, which were trained afterwards. Beside
each pair that does not overfit, a model of twice the width is trained and, if that is no better,
the pair's own for twice the epochs. Prints what was expected and what was measured, as Markdown.

A run is ``charrnn-fast train TEXT`` with its defaults but for what the pair names, in a process of
its own. An interrupted run is resumed, and a finished one is not done again: models and logs stay
in --folder. The texts are the last characters of the demonstration's text ("python"), of the manual
that comes with Python ("manual"), and of the files of --texts by their names; pairs of texts that
are not given are left out. The first two differ between versions of Python.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from charrnn_fast.registry import COMPUTE_DTYPES
from charrnn_fast.storage import atomic_file
from charrnn_fast.text import demo
from charrnn_fast.training import advice, log

RISE = 0.02  # nats per character above the minimum, at the end: it overfits
GAIN = 0.02  # nats per character that twice the width or the epochs gain: it underfits

NO_OVERFIT = "no overfit"
OWN_TEXTS = ("python", "manual")


@dataclass(frozen=True)
class Run:
    """A training: the last `length` characters of a text, a model, dropout, epochs."""

    text: str
    length: int
    layers: int
    width: int
    dropout: float = 0.0
    epochs: int = 20

    @property
    def name(self) -> str:
        size = f"{self.layers}x{self.width}"
        return f"{self.text}-{self.length}-{size}-{self.dropout:g}"


FITTED = (
    *(Run("python", n, 2, width) for n in (30_000, 100_000) for width in (64, 128, 256)),
    *(Run("python", 300_000, 2, width) for width in (64, 128)),
    Run("python", 300_000, 2, 256, epochs=10),
    *(Run("python", 1_000_000, layers, width) for layers, width in ((1, 32), (2, 64), (2, 128))),
)
HELD_OUT = (
    *(Run("manual", 100_000, 2, width) for width in (64, 128, 256)),
    Run("manual", 100_000, 2, 128, dropout=0.5),
    Run("tinyshakespeare", 100_000, 2, 64),
    Run("warpeace", 300_000, 2, 128, epochs=30),
    Run("warpeace", 3_196_211, 2, 64, epochs=3),
)


def whole(text: str, files: dict[str, Path]) -> str:
    """A text by its name, with line ends as \\n."""
    if text == "python":
        return demo.text()
    if text == "manual":
        topics = pydoc_data.topics.topics
        return "\n".join(topics[name] for name in sorted(topics)) + "\n"
    return files[text].read_text(encoding="utf-8")


def curve(path: Path) -> list[tuple[float, float]]:
    """The epochs and validation losses of a log."""
    if not path.exists():
        return []
    entries = [entry for entry in log.read(path) if entry["type"] == "evaluation"]
    return [(round(entry["epoch"], 3), entry["validation_loss"]) for entry in entries]


class Trainings:
    """Runs in a folder, each done once."""

    def __init__(self, folder: Path, files: dict[str, Path], more: list[str]) -> None:
        self.folder, self.files, self.more = folder, files, more

    def log_of(self, run: Run) -> Path:
        return self.folder / f"{run.name}.jsonl"

    def losses(self, run: Run) -> list[float]:
        """The validation losses after each epoch of a run, which is trained if it has to be."""
        logged = self.log_of(run)
        if not curve(logged) or curve(logged)[-1][0] < run.epochs:
            self._train(run)
        return [loss for epoch, loss in curve(logged) if epoch <= run.epochs]

    def _train(self, run: Run) -> None:
        text = self.folder / f"{run.text}-{run.length}.txt"
        if not text.exists():
            characters = whole(run.text, self.files)[-run.length :]
            atomic_file.replace(text, [characters.encode()])
        model = self.folder / f"{run.name}.safetensors"
        command = [sys.executable, "-m", "charrnn_fast", "train", str(text), "-o", str(model)]
        command += ["--num-layers", str(run.layers), "--hidden-size", str(run.width)]
        command += ["--dropout", str(run.dropout), "--epochs", str(run.epochs)]
        command += ["--sample-length", "0", "--resume", "auto", *self.more]
        print(f"$ {shlex.join(command)}", flush=True)
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"{time.perf_counter() - start:.0f} s", flush=True)


class Measured(NamedTuple):
    """A pair with what was expected of it and what came."""

    run: Run
    symbols: int
    parameters: int
    expected: str
    verdict: str
    why: str

    @property
    def is_right(self) -> bool:
        return self.expected == self.verdict


def measured(run: Run, trainings: Trainings) -> Measured:
    """Trains a pair, and what it is compared with."""
    losses = trainings.losses(run)
    start = next(iter(log.read(trainings.log_of(run))))
    symbols = start["text"] * 9 // 10  # the default split
    parameters = start["model"]["num_parameters"]
    case = advice.Case(symbols, parameters, run.epochs, run.dropout, run.layers)
    expected = advice.expected(case)
    best, last = min(losses), losses[-1]
    why = f"{best:.3f} after {losses.index(best) + 1}, {last:.3f} at the end"
    if last - best > RISE:
        verdict = advice.OVERFIT
    elif expected == advice.OVERFIT:  # it is wrong, whatever other models would do
        verdict = NO_OVERFIT
    else:
        verdict, why = compared(run, best, trainings)
    return Measured(run, symbols, parameters, expected, verdict, why)


def compared(run: Run, best: float, trainings: Trainings) -> tuple[str, str]:
    """The verdict on a pair that does not overfit, by a wider model and more epochs, and why."""
    wider = min(trainings.losses(replace(run, width=2 * run.width)))
    why = f"{best:.3f}; twice as wide {wider:.3f}"
    if best - wider > GAIN:
        return advice.UNDERFIT, why
    longer = min(trainings.losses(replace(run, epochs=2 * run.epochs)))
    verdict = advice.UNDERFIT if best - longer > GAIN else advice.FIT
    return verdict, f"{why}, twice the epochs {longer:.3f}"


def table(title: str, pairs: Sequence[Measured]) -> Iterator[str]:
    """The lines of a table in Markdown, and how many of its pairs are right."""
    yield f"| {title} | model | parameters | epochs | expected | measured | validation loss |"
    yield "|" + " --- |" * 7
    for one in pairs:
        run = one.run
        dropout = f", dropout {run.dropout:g}" if run.dropout else ""
        verdict = one.verdict if one.is_right else f"**{one.verdict}**"
        yield (
            f"| {run.text}, {run.length:,} | {run.layers}x{run.width}{dropout} "
            f"| {one.parameters:,} | {run.epochs} | {one.expected} | {verdict} | {one.why} |"
        )
    yield ""
    yield f"Right: {sum(one.is_right for one in pairs)} of {len(pairs)}."


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether the advice of train comes true.")
    parser.add_argument("--texts", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--folder", type=Path, default=Path("build/advice"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compute-dtype", choices=COMPUTE_DTYPES, default="float32")
    parser.add_argument("--markdown", type=Path)
    options: Any = parser.parse_args()
    if options.markdown:
        atomic_file.check(options.markdown)
    files = {path.stem: path for path in options.texts}
    options.folder.mkdir(parents=True, exist_ok=True)
    more = ["--threads", str(options.threads), "--compute-dtype", options.compute_dtype]
    trainings = Trainings(options.folder, files, more)
    lines: list[str] = []
    for title, runs in (("fitted", FITTED), ("held out", HELD_OUT)):
        there = [run for run in runs if run.text in (*OWN_TEXTS, *files)]
        lines += [*table(title, [measured(run, trainings) for run in there]), ""]
    text = "\n".join(lines)
    print(f"\n{text}")
    if options.markdown:
        atomic_file.replace(options.markdown, [text.encode()])


if __name__ == "__main__":
    main()

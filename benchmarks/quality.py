"""How well a model learns a text: the training of benchmarks/quality.toml, with several seeds.

    python benchmarks/quality.py tinyshakespeare.txt --seeds 0 1 2

Each run is ``charrnn-fast train TEXT --config benchmarks/quality.toml --seed S --mask-seed S`` in a
process of its own. An interrupted run is resumed. The logs stay in --folder; curves and settings of
all runs go to --json, the table to --markdown, the picture to --plot. The losses do not depend on
the number of threads; the times do. A time is that of a run without interruption, from start to
end, reading and evaluations included. ``--keep`` keeps the runs of other seeds that --json holds,
of the same text, so that seeds can be trained on different days and machines. ``--compute-dtype``
trains in it; give it a folder of its own.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from trained import CURVE, curve, identity

from charrnn_fast import get_num_threads
from charrnn_fast.bench.machine import facts
from charrnn_fast.registry import COMPUTE_DTYPES
from charrnn_fast.storage import atomic_file
from charrnn_fast.training import log, plot

HERE = Path(__file__).parent
CONFIG = HERE / "quality.toml"


def train(text: str, seed: int, threads: int, folder: Path, compute_dtype: str) -> Path:
    """Trains with a seed, or resumes its run; returns the log."""
    model = folder / f"seed{seed}.safetensors"
    command = [sys.executable, "-m", "charrnn_fast", "train", text, "-o", str(model)]
    command += ["--config", str(CONFIG), "--seed", str(seed), "--mask-seed", str(seed)]
    command += ["--threads", str(threads), "--compute-dtype", compute_dtype]
    begins = not model.exists()
    command += [] if begins else ["--resume"]
    print(f"$ {shlex.join(command)}", flush=True)
    start = time.perf_counter()
    subprocess.run(command, check=True)
    if begins:
        times = {"threads": threads, "minutes": (time.perf_counter() - start) / 60}
        path = _times(model.with_suffix(".jsonl"))
        atomic_file.replace(path, [json.dumps(times).encode()])
    return model.with_suffix(".jsonl")


def _times(path: Path) -> Path:
    """The file with the times of the run with this log; missing if that was interrupted."""
    return path.with_suffix(".times.json")


def summary(path: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """The settings, the machine and the curve of a run."""
    entries = list(log.read(path))
    losses = [entry["validation_loss"] for entry in entries if entry["type"] == "evaluation"]
    times = _times(path)
    return {
        # without the configuration, which has the names of files; CONFIG has the rest of it
        "start": {name: value for name, value in entries[0].items() if name != "configuration"},
        "machine": machine,
        "curve_columns": CURVE,
        "curve": curve(entries),
        "best": min(losses),
        "last": losses[-1],
        "times": json.loads(times.read_text()) if times.exists() else None,
    }


def kept(path: Path, text: dict[str, Any], compute_dtype: str) -> dict[int, dict[str, Any]]:
    """The runs in the JSON file of an earlier call, by seed; ValueError if of another text or
    compute_dtype.
    """
    content = json.loads(path.read_bytes())
    if content["text"] != text:
        raise ValueError(f"{path} must be of the text given, got one of {content['text']}")
    for run in content["runs"].values():
        theirs = run["start"]["model"].get("compute_dtype", "float32")
        if theirs != compute_dtype:
            raise ValueError(f"{path} must have runs of {compute_dtype}, got one of {theirs}")
    return {int(seed): run for seed, run in content["runs"].items()}


def draw(runs: dict[int, dict[str, Any]], picture: Path) -> None:
    """Training and validation losses of each seed over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (seed, run) in enumerate(runs.items()):
        columns = dict(zip(run["curve_columns"], zip(*run["curve"], strict=True), strict=True))
        for name, style in (("train_loss", "--"), ("validation_loss", "o-")):
            label = f"seed {seed}, {name.removesuffix('_loss').replace('train', 'training')}"
            axes.plot(columns["epoch"], columns[name], style, color=f"C{number}", label=label)
    axes.set_xlabel("epochs")
    axes.set_ylabel("nats per character")
    axes.legend()
    axes.grid(alpha=0.3)
    plot.save(figure, picture, dpi=120)


def table(runs: dict[int, dict[str, Any]]) -> str:
    """Markdown: a line for each seed, then the losses over the epochs."""
    lines = [
        "Losses in nats per character.",
        "",
        "| seed | best | at the end | in bits | minutes | machine |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for seed, run in runs.items():
        times = run["times"]
        minutes = "" if times is None else f"{times['minutes']:.1f} on {times['threads']} threads"
        lines.append(
            f"| {seed} | {run['best']:.4f} | {run['last']:.4f} | {run['last'] / np.log(2):.4f} "
            f"| {minutes} | {run['machine']['processor']}, {run['machine']['isa']} |"
        )
    last = [run["last"] for run in runs.values()]
    lines += ["", f"Mean at the end {np.mean(last):.4f}, from {min(last):.4f} to {max(last):.4f}."]
    heads = " | ".join(f"training, seed {seed} | validation, seed {seed}" for seed in runs)
    lines += ["", f"| epoch | {heads} |", "| --- |" + " --- | --- |" * len(runs)]
    for row in zip(*(run["curve"] for run in runs.values()), strict=False):
        losses = " | ".join(f"{entry[2]:.4f} | {entry[3]:.4f}" for entry in row)
        lines.append(f"| {row[0][1]:g} | {losses} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="How well a model learns a text.")
    parser.add_argument("text")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=get_num_threads())
    parser.add_argument("--folder", type=Path, default=Path("build/quality"))
    parser.add_argument("--compute-dtype", choices=COMPUTE_DTYPES, default="float32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", action="store_true", help="keep --json's runs of other seeds")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.keep and options.json is None:
        parser.error("--keep must come with --json, got none")
    for path in filter(None, (options.json, options.markdown, options.plot)):
        atomic_file.check(path)
    options.folder.mkdir(parents=True, exist_ok=True)
    about = identity(Path(options.text).read_bytes())
    runs = kept(options.json, about, options.compute_dtype) if options.keep else {}
    machine = facts()
    for seed in options.seeds:
        log_file = train(options.text, seed, options.threads, options.folder, options.compute_dtype)
        runs[seed] = summary(log_file, machine)
    runs = dict(sorted(runs.items()))
    text = table(runs)
    print(f"\n{text}")
    if options.markdown:
        atomic_file.replace(options.markdown, [text.encode()])
    if options.plot:
        draw(runs, options.plot)
    if options.json:
        content = {"text": about, "runs": {str(seed): run for seed, run in runs.items()}}
        lines = json.dumps(content, indent=1) + "\n"
        atomic_file.replace(options.json, [lines.encode()])


if __name__ == "__main__":
    main()

"""A program that prints the peak memory of a piece of work, beyond the package itself, as one line
of JSON. Run it by `run`, in a process of its own: a peak includes all earlier work."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import charrnn_fast as cf

ARRAYS = 4  # parameters, gradients, and Adam's two


def run(*arguments: object) -> dict[str, int]:
    """Bytes by name: "model" (all ARRAYS), and peaks, by what had been done then."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, int] = json.loads(done.stdout)
    return result


def train_step(T: int, B: int, H: int, L: int, V: int) -> dict[str, int]:
    """The network's own training step; "told": what it was said to take, with the optimizer."""
    set_up(L)
    begin = held("VmRSS")
    rnn = cf.RNN(V, H, V, cell="lstm", num_layers=L)
    peaks = {"build": held("VmHWM") - begin}
    optimizer = cf.optim.Adam(rnn, lr=1e-3)
    told = rnn._core.memory(T, B) + optimizer._core.held_memory
    state = rnn.states.zeros(B)
    for inputs, targets in batches(T, B, V):
        rnn._core.train_step(inputs, targets, state, optimizer._core, 1e-3, 5.0, math.inf, "mean")
    peaks["train"] = held("VmHWM") - begin
    return {"model": ARRAYS * 4 * rnn._core.num_parameters, "told": told, **peaks}


def language_model(T: int, B: int, H: int, L: int, V: int) -> dict[str, int]:
    """The same through `CharLM` and `Trainer`, with a vocabulary of V characters."""
    set_up(L)
    vocabulary = cf.Vocabulary(np.arange(0x10000, 0x10000 + V))
    text = vocabulary.decode(np.random.default_rng(0).integers(0, V, 2000))
    begin = held("VmRSS")
    model = cf.CharLM(vocabulary, hidden_size=H, num_layers=L)
    peaks = {"build": held("VmHWM") - begin}
    model.evaluate(text)
    peaks["evaluate"] = held("VmHWM") - begin
    model.sample(5, prime=text, seed=1)
    peaks["sample"] = held("VmHWM") - begin
    # A new one: its training owes nothing to what sampling has kept.
    del model
    trainer = cf.Trainer(cf.CharLM(vocabulary, hidden_size=H, num_layers=L))
    for inputs, targets in batches(T, B, V):
        trainer.step(inputs, targets)
    peaks["train"] = held("VmHWM") - begin
    return {"model": ARRAYS * 4 * trainer.model.num_parameters, **peaks}


def byte_corpus(path: str) -> dict[str, int]:
    """All that training does with a large file, but for computing with all of it."""
    corpus = cf.Corpus.from_files(path, vocabulary=cf.Vocabulary.from_bytes())
    options: dict[str, Any] = {"evaluate_length": 1000, "checkpoint_path": f"{path}.model"}
    trainer = cf.Trainer(cf.CharLM(corpus.vocabulary), corpus, random_offset=True, **options)
    trainer.fit(steps=2, progress=False)
    for start in range(0, len(corpus.validation), 1 << 20):
        corpus.validation[start : start + (1 << 20)].any()
    return {"size": len(corpus), "peak": held("VmHWM")}


def refusal(path: str) -> dict[str, int]:
    """Reads a file that is no checkpoint."""
    set_up(1)
    begin = held("VmRSS")
    try:
        cf.CharLM.load(path)
    except cf.CheckpointError:
        return {"size": Path(path).stat().st_size, "peak": held("VmHWM") - begin}
    raise AssertionError(f"{path} is a checkpoint")


def batches(T: int, B: int, V: int) -> list[tuple[cf.rnn.Array, cf.rnn.Array]]:
    tokens = np.random.default_rng(0).integers(0, V, (2, 2, T, B), np.int32)
    return [(inputs, targets) for inputs, targets in tokens]


def set_up(L: int) -> None:
    """Loads what is loaded at first use."""
    cf.set_num_threads(2)  # more of them take more scratch
    model = cf.CharLM(cf.Vocabulary.from_text("ab"), hidden_size=8, num_layers=L)
    cf.Trainer(model).step([[0]], [[1]])
    model.sample(2, seed=1)


def held(field: str) -> int:
    """Bytes that this process holds: now (VmRSS), at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (size,) = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(size) * 1024


if __name__ == "__main__":
    name, *values = sys.argv[1:]
    if name in ("byte_corpus", "refusal"):
        print(json.dumps({"byte_corpus": byte_corpus, "refusal": refusal}[name](*values)))
    else:
        work = {"train_step": train_step, "language_model": language_model}[name]
        print(json.dumps(work(*map(int, values))))

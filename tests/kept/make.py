"""Checkpoints that versions have written, and what comes next of each: a program that makes them.

    python tests/kept/make.py

writes ``VERSION.safetensors``, a training in its middle, and ``VERSION.json``, its continuation on
each instruction set that this machine has, with the bits of all numbers. What earlier versions have
written stays: `test_kept` holds every later one to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import charrnn_fast as cf
from charrnn_fast.callbacks import Callback, Update
from charrnn_fast.schedules import Cosine

HERE = Path(__file__).parent
_WRITER = "x86-64-v3"  # the instruction set of the training itself
_STEPS, _MORE_STEPS = 67, 40


def corpus() -> cf.Corpus:
    return cf.Corpus.from_files(HERE / "text.txt", document_mark="\n")


def train(path: Path) -> None:
    """A training with a little of everything, left between two evaluations."""
    text = corpus()
    model = cf.CharLM(
        text.vocabulary,
        hidden_size=10,
        num_layers=2,
        cell="lstm",
        seed=1,
        layer_norm=True,
        dropout=0.1,
        recurrent_dropout=0.1,
        zoneout=0.05,
    )
    trainer = cf.Trainer(
        model,
        text,
        batch_size=6,
        seq_len=20,
        optimizer="adam",
        learning_rate=1e-2,
        clip_value=0.5,
        schedule=Cosine(epochs=8, warmup=0.5, final=0.1),
        random_offset=True,
        micro_batches=2,
        evaluate_every=15,
        patience=9,
        mask_seed=7,
        callbacks=[_Keep(path)],
    )
    trainer.configuration = {"kept": ["a", 1, None, {"b": True}]}
    trainer.fit(steps=_STEPS, progress=False)


class _Keep(Callback):
    """Saves in the middle, between two evaluations."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def updated(self, trainer: cf.Trainer, update: Update) -> None:
        if update.step == _STEPS:
            trainer.save(self._path)
            trainer.stop()


def continued(path: Path) -> dict[str, Any]:
    """What is drawn from a kept model, and what its training comes to."""
    drawn = cf.CharLM.load(path).sample(80, prime="one and ", temperature=0.8, seed=3)
    trainer = cf.Trainer.resume(path, corpus())
    trainer.fit(steps=_MORE_STEPS, progress=False)
    return {
        "sample": drawn,
        "steps": trainer.num_steps,
        "validation_loss": trainer.history[-1].validation_loss,
        "history": digest(json.dumps([list(entry) for entry in trainer.history]).encode()),
        "tensors": _of_tensors(trainer),
    }


def _of_tensors(trainer: cf.Trainer) -> str:
    """Of the parameters and of what the optimizer keeps."""
    optimizer: Any = trainer.optimizer._core
    parameters = trainer.model.rnn.parameters()
    parts = [parameter.tobytes() for parameter in parameters.values()]
    parts += [
        optimizer.slot(slot, name).tobytes() for slot in optimizer.slot_names for name in parameters
    ]
    return digest(b"".join(parts))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _in_a_process(instruction_set: str, *arguments: str) -> str:
    """What this program prints with other arguments, on an instruction set."""
    command = [sys.executable, __file__, *arguments]
    environment = {**os.environ, "CHARRNN_ISA": instruction_set}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def main() -> None:
    build = cf.build_info()
    version, instruction_sets = str(build["version"]), sorted(build["runnable_isas"])
    path = HERE / f"{version}.safetensors"
    _in_a_process(_WRITER, "train", str(path))
    continuations = {
        name: json.loads(_in_a_process(name, "continue", str(path))) for name in instruction_sets
    }
    (HERE / f"{version}.json").write_text(json.dumps(continuations, indent=1) + "\n")
    print(f"wrote {path} ({path.stat().st_size:,} bytes) and its continuations")


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        train(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["continue"]:
        print(json.dumps(continued(Path(sys.argv[2]))))
    else:
        main()

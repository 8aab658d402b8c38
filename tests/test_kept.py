"""Checkpoints of all earlier versions: every later version loads them, samples from them and
resumes their trainings, with the same bits on each instruction set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import charrnn_fast as cf
from charrnn_fast import Trainer
from charrnn_fast.storage import checkpoint

KEPT = Path(__file__).parent / "kept"
CHECKPOINTS = sorted(KEPT.glob("*.safetensors"))
RUNNABLE = sorted(cf.build_info()["runnable_isas"])


def test_there_are_kept_checkpoints() -> None:
    assert (KEPT / "0.1.0.safetensors") in CHECKPOINTS
    for path in CHECKPOINTS:
        assert path.stat().st_size < 80_000


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_a_kept_checkpoint_is_gone_on_with(path: Path, isa: str) -> None:
    command = [sys.executable, str(KEPT / "make.py"), "continue", str(path)]
    environment = {**os.environ, "CHARRNN_ISA": isa}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    continued = json.loads(done.stdout)
    of_each = json.loads(path.with_suffix(".json").read_text())
    if isa in of_each:
        assert continued == of_each[isa]
    else:  # one on which no kept checkpoint was resumed: within rounding
        (first, *_) = of_each.values()
        assert continued["validation_loss"] == pytest.approx(first["validation_loss"], rel=1e-2)


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_a_kept_checkpoint_is_saved_as_it_is(path: Path, tmp_path: Path) -> None:
    """But for keys that came later, which are left out where they are what they were before."""
    text = cf.Corpus.from_files(KEPT / "text.txt", document_mark="\n")
    Trainer.resume(path, text).save(tmp_path / "again")
    tensors, config = checkpoint.read(path)
    again, same = checkpoint.read(tmp_path / "again")
    assert same == config
    assert {n: t.tobytes() for n, t in again.items()} == {
        n: t.tobytes() for n, t in tensors.items()
    }


def test_what_is_kept_has_a_little_of_everything() -> None:
    _, config = checkpoint.read(KEPT / "0.1.0.safetensors")
    training = config["training"]
    assert training["has_state"] and training["num_steps"] == 67
    assert training["losses"][0] == 7  # since the last evaluation
    steps = [step for step, *_ in training["history"]]
    losses = [entry[3] for entry in training["history"]]
    assert steps == [15, 30, 45, 60]
    assert min(losses) < losses[0]
    assert config["model"]["dropout"] > 0 and training["settings"]["schedule"]["name"] == "cosine"

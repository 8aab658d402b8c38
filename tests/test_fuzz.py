"""The target of the checkpoint fuzzer, without the fuzzer: its corpus, and mutations of it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from charrnn_fast import Trainer
from charrnn_fast.storage import configuration
from fuzz import target

FILES = sorted(target.CORPUS.iterdir())


def test_there_is_a_corpus() -> None:
    assert len(FILES) >= 20
    assert sum(path.stat().st_size for path in FILES) < 200_000
    assert {name for name, _ in target.seeds()} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_corpus_finds_nothing(path: Path) -> None:
    target.one_input(path.read_bytes())


@pytest.mark.slow
def test_mutations_of_the_corpus_find_nothing() -> None:
    rng = random.Random(0)
    made = 0
    for number in range(400):
        data = target.mutated(rng.choice(FILES).read_bytes(), number)
        if data is not None:
            made += 1
            target.one_input(data)
    assert made > 300


@pytest.mark.parametrize("steps", ["7", None, []])
def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch, steps: Any) -> None:
    """As of a key that the schema does not check."""
    check = configuration.check

    def forgetful(config: dict[str, Any]) -> None:
        check({**config, "training": {**config["training"], "num_steps": 3}})

    data = (target.CORPUS / "lstm-middle").read_bytes()
    parts = target._parts(data)
    assert parts is not None
    outer, header = parts
    header["config"]["training"]["num_steps"] = steps
    target.one_input(target._joined(data, outer, header))
    monkeypatch.setattr(configuration, "check", forgetful)
    with pytest.raises(TypeError):
        target.one_input(target._joined(data, outer, header))


def test_a_file_that_is_whole_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target is not one that refuses all."""
    resumed = []
    resume = Trainer.resume

    def record(*arguments: object) -> Trainer:
        trainer = resume(*arguments)  # type: ignore[arg-type]
        resumed.append(trainer.num_steps)
        return trainer

    monkeypatch.setattr(Trainer, "resume", record)
    target.one_input((target.CORPUS / "lstm-middle").read_bytes())
    assert resumed == [3, 4, 3, 4]

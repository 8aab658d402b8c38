"""Trainings of `test_torchrun.py`, which one process runs, or several that share out the streams.

    python tests/shared_trainings.py FOLDER OTHERS [MODULE TRAINING ...]

in each of several processes, with torchrun's variables. FOLDER gets `results.npz` and a checkpoint
of each training's middle. From OTHERS, such a folder of another number of processes or "", the
trainings go on, too. MODULE: a folder with the emulated device, on which these trainings then run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import charrnn_fast as cf
import devices
from charrnn_fast.callbacks import Callback, Update
from charrnn_fast.distributed import Group, joined

STEPS, BATCH, SEQ_LEN, HIDDEN = 8, 7, 9, 11
MASKS = {"dropout": 0.2, "input_dropout": 0.1, "output_dropout": 0.3, "recurrent_dropout": 0.2}
ADAM_EPS = 1e-8


class Training(NamedTuple):
    """Options of the model and of the trainer."""

    model: dict[str, Any]
    trainer: dict[str, Any] = {}  # noqa: RUF012 - never changed
    documents: bool = False


TRAININGS = {
    "rnn": Training({"cell": "rnn"}, {"reduction": "sum", "learning_rate": 1e-3}),
    "gru with dropout": Training({"cell": "gru", **MASKS}, {"clip_norm": 0.1}),
    "lstm": Training(
        {"cell": "lstm"}, {"micro_batches": 2, "clip_value": 1e-3, "average": "ema:0.9"}
    ),
    "lstm with zoneout": Training(
        {"cell": "lstm", "zoneout": (0.1, 0.2), "weight_drop": 0.3, "variational": True, **MASKS},
        {"random_offset": True},
    ),
    "documents": Training({"cell": "gru", **MASKS}, documents=True),
    "documents in parts": Training(
        {"cell": "lstm", "zoneout": 0.2, **MASKS}, {"micro_batches": 3}, documents=True
    ),
    "projected": Training({"cell": "lstm", "proj_size": 4, "weight_drop": 0.2}),
    # Normalizing rows of almost equal numbers, as at first, enlarges differences; by a small rate
    # the weights do not follow.
    "normalized": Training({"cell": "gru", "layer_norm": True, **MASKS}, {"learning_rate": 1e-4}),
    "adam": Training({"cell": "gru", **MASKS}, {"optimizer": "adam", "learning_rate": 2e-3}),
}


class Watch(Callback):
    """Keeps the losses and the norms of the gradients."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def updated(self, trainer: Any, update: Update) -> None:
        self.seen.append((update.loss, update.gradient_norm))


def text() -> str:
    """3,000 characters in documents of any length, so that chunks have none, one or many."""
    rng = np.random.default_rng(5)
    characters = rng.choice(list("abcdefgh"), 3000)
    characters[rng.choice(3000, 200, replace=False)] = "\n"
    return "".join(characters)


def trainer_of(training: Training, group: Group | None, path: Path | None) -> cf.Trainer:
    mark = "\n" if training.documents else None
    corpus = cf.Corpus.from_text(text(), document_mark=mark)
    model = cf.CharLM(
        corpus.vocabulary, hidden_size=HIDDEN, num_layers=2, dtype="float64", **training.model
    )
    options = {"optimizer": "sgd", "learning_rate": 0.1, **training.trainer}
    return cf.Trainer(
        model,
        corpus,
        batch_size=BATCH,
        seq_len=SEQ_LEN,
        evaluate_every=STEPS // 2,
        checkpoint_path=path,
        callbacks=[Watch()],
        mask_seed=3,
        group=group,
        **options,
    )


def results(trainer: cf.Trainer) -> dict[str, NDArray[Any]]:
    """What a training has come to."""
    watch: Any = trainer._callbacks[0]
    averages = trainer.averaged().rnn.parameters().items()  # the weights, where there are none
    return {
        **{name: np.array(value) for name, value in trainer.model.rnn.parameters().items()},
        **{f"averaged {name}": np.array(value) for name, value in averages},
        "updates": np.array(watch.seen),
        "history": np.array(trainer.history),
    }


def run(
    group: Group | None, folder: Path, others: Path | None, names: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """The results of trainings, by default all: at once, resumed, and resumed from others."""
    found: dict[str, NDArray[Any]] = {}
    for name in names or TRAININGS:
        training = TRAININGS[name]
        path = folder / f"{name}.safetensors"
        trainer = trainer_of(training, group, path)
        trainer.fit(steps=STEPS // 2, progress=False)
        trainer = trainer_of(training, group, None)
        trainer.fit(steps=STEPS, progress=False)
        kinds = {"at once": trainer}
        for kind, origin in (("resumed", folder), ("split anew", others)):
            if origin is not None:
                kinds[kind] = trainer = cf.Trainer.resume(
                    origin / path.name, trainer.corpus, callbacks=[Watch()], group=group
                )
                trainer.fit(steps=STEPS // 2, progress=False)
        for kind, trainer in kinds.items():
            found |= {f"{name}/{kind}/{key}": value for key, value in results(trainer).items()}
    return found


if __name__ == "__main__":
    device = "cpu"
    if sys.argv[3:]:
        devices.register(Path(sys.argv[3]))
        devices.in_place_of_the_cpu(device := devices.NAME)
    with joined(device) as group:
        assert group.device == device
        others = Path(sys.argv[2]) if sys.argv[2] else None
        found: Any = run(group, Path(sys.argv[1]), others, sys.argv[4:])
        assert group.size == int(os.environ["WORLD_SIZE"])
        if group.rank == 0:
            np.savez(Path(sys.argv[1]) / "results.npz", **found)

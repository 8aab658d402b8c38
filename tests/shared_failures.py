"""What several processes hear of each other's errors, for `test_torchrun.py`.

    python tests/shared_failures.py FOLDER

in each of three processes, with torchrun's variables. Each writes to FOLDER/RANK.json what it got
in every case: a value, or an error's type and message. At the end process 1 goes without a word.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed

import charrnn_fast as cf
from charrnn_fast.callbacks import Callback
from charrnn_fast.distributed import Group, joined
from charrnn_fast.training import trainer

RANK, FOLDER = int(os.environ["RANK"]), Path(sys.argv[1])
SAME = "the same in all"


class Acts(Callback):
    """Acts in an event of a step, in one process."""

    def __init__(self, event: str, rank: int, step: int, act: Callable[[Any], object]) -> None:
        if rank == RANK:
            setattr(self, event, lambda trainer, *_: trainer.num_steps == step and act(trainer))


def raises(error: Exception) -> Callable[..., Any]:
    def act(*_: object) -> None:
        raise error

    return act


def checked(group: Group, *callbacks: Callback, path: str = "", **options: Any) -> list[Any]:
    """Trains for six steps and evaluates in their middle; the steps, as they are and as saved."""
    corpus = cf.Corpus.from_text("abcdefgh" * 100)
    model = cf.CharLM(corpus.vocabulary, hidden_size=4, num_layers=1)
    file = FOLDER / f"{path}.safetensors" if path else None
    settings = {"batch_size": 3, "seq_len": 5, "evaluate_every": 3, **options}
    made = cf.Trainer(
        model, corpus, checkpoint_path=file, callbacks=callbacks, group=group, **settings
    )
    made.fit(steps=6, progress=False)
    return [made.num_steps, made.saved_step, len(made.history)]


def values(group: Group) -> list[Any]:
    """Of all exchanges."""
    rng = np.random.default_rng(RANK)
    array = rng.standard_normal(1001).astype(np.float32)
    group.add_up(array)
    bits = group.gather(array.tobytes())
    return [
        group.sum(RANK, 0.1),
        group.gather(f"process {RANK}"),
        group.on_first(lambda: [RANK, "first"]),
        group.share(7).start,
        SAME if len(set(bits)) == 1 else "different",
        repr(group),
    ]


def set_rate(changed: cf.Trainer) -> None:
    changed.optimizer.lr = 0.5


def signalled(_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def evaluated_in_pieces(group: Group) -> list[Any]:
    """Processes exchange at each piece of an evaluation, as they do in a long one."""
    trainer._AGREED_PERIOD = -1.0
    return checked(group, Acts("updated", 2, 3, signalled), path="in an evaluation")


BAD = ValueError("bad")
CASES: dict[str, Callable[[Group], Any]] = {
    "values": values,
    "sum": lambda group: raises(BAD)() if RANK == 2 else group.sum(),
    "gather": lambda group: raises(BAD)() if RANK == 2 else group.gather(1),
    "on_first": lambda group: raises(BAD)() if RANK == 2 else group.on_first(lambda: 1),
    "check_equal": lambda group: raises(BAD)() if RANK == 2 else group.check_equal({"a": 1}),
    "work": lambda group: group.on_first(raises(OSError("no space"))),
    "facts": lambda group: group.check_equal({"text": "same", "seed": RANK // 2}),
    "equal errors": lambda group: raises(ValueError("in all"))(),
    "two errors": lambda group: group.sum() if RANK == 0 else raises(ValueError(f"{RANK}"))(),
    "pickle": pickle.dumps,
    "trained": lambda group: checked(group, path="trained"),
    "batch": lambda group: checked(group, batch_size=2),
    "settings": lambda group: checked(group, learning_rate=0.1 if RANK < 2 else 0.2),
    "files": lambda group: checked(group, path="files" if RANK else ""),
    "stop": lambda group: checked(
        group, Acts("updated", 1, 1, cf.Trainer.stop), path="stop", evaluate_every=100
    ),
    "stop at an evaluation": lambda group: checked(
        group, Acts("evaluated", 1, 3, cf.Trainer.stop), path="stop at an evaluation"
    ),
    "updated": lambda group: checked(group, Acts("updated", 1, 2, raises(BAD)), path="updated"),
    "last updated": lambda group: checked(
        group, Acts("updated", 2, 6, raises(BAD)), path="last updated"
    ),
    "no path": lambda group: checked(group, Acts("updated", 1, 2, raises(BAD))),
    "full disk": lambda group: checked(
        group, Acts("updated", 0, 4, raises(OSError(28, "no space", "log"))), path="full disk"
    ),
    "evaluated": lambda group: checked(
        group, Acts("evaluated", 0, 3, raises(BAD)), path="evaluated"
    ),
    "started": lambda group: checked(group, Acts("started", 1, 0, raises(BAD)), path="started"),
    "ended": lambda group: checked(group, Acts("ended", 0, 6, raises(BAD)), path="ended"),
    "diverged": lambda group: checked(
        group, optimizer="sgd", learning_rate=1e39, clip_norm=None, path="diverged"
    ),
    "apart": lambda group: checked(group, Acts("updated", 2, 1, set_rate), path="apart"),
    "signal": lambda group: checked(group, Acts("updated", 1, 1, signalled), path="signal"),
    "in an evaluation": evaluated_in_pieces,
    "killed": lambda group: os._exit(9) if RANK == 1 else group.sum(),
}


if __name__ == "__main__":
    # joined() then makes groups of its own beside the program's.
    torch.distributed.init_process_group("gloo")
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        try:
            with joined() as group:
                found[name] = case(group)
        except (Exception, KeyboardInterrupt) as error:
            found[name] = [type(error).__name__, str(error)]
        (FOLDER / f"{RANK}.json").write_text(json.dumps(found))
    # Not by the interpreter's exit: PyTorch's threads, whose peer has gone, may abort it.
    os._exit(0)

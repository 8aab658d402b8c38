"""``charrnn-fast info``: what a checkpoint holds."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .._checks import brief
from ..language.model import CharLM
from ..storage import configuration
from ..training.callbacks import Evaluation
from ..training.resume import kept_paths
from . import options, show
from .parsing import Commands, add_threads, file_option

_MOST_KEPT = 10  # steps that are listed


def add(commands: Commands) -> None:
    info = commands.add("info", run, "Tell what a checkpoint holds.")
    info.add_argument("model", type=file_option, metavar="MODEL", help="saved by train")
    info.add_argument(
        "--config",
        action="store_true",
        help="print the training settings as TOML, for train --config",
    )
    add_threads(info)


def _kept(model: str, training: Mapping[str, Any]) -> dict[int, str]:
    """The kept checkpoints of this training: others of the name may be of one before it."""
    if "keep_every" not in training["settings"]:
        return {}
    with suppress(OSError):  # a folder that cannot be listed
        return {n: p for n, p in kept_paths(model).items() if n <= training["num_steps"]}
    return {}


def run(arguments: argparse.Namespace) -> int:
    tensors, config = configuration.read(arguments.model)
    # For any machine: what it is trained in may be for GPUs.
    model = CharLM.from_checkpoint(arguments.model, tensors, config, compute_dtype="float32")
    if arguments.config:
        stored = config.get("training", {}).get("configuration", {})
        values = options.restored(stored, arguments.model)
        if not values:
            raise ValueError(f"{arguments.model} was not trained by charrnn-fast train")
        print(options.to_toml(values), end="")
        return 0
    print(f"file        {arguments.model}, {show.size(os.path.getsize(arguments.model))}")
    print(f"model       {show.model_line(model, config['model'].get('compute_dtype'))}")
    print(f"vocabulary  {show.vocabulary_line(model.vocabulary)}")
    if "training" not in config:
        print("training    none stored: the model alone")
        return 0
    training = config["training"]
    print(f"training    {show.training_line(training['settings'])}")
    print(f"trained     {training['num_steps']:,} steps")
    if training["history"]:
        last = Evaluation(*training["history"][-1])
        print(
            f"losses      at step {last.step:,} (epoch {last.epoch:.2f}): training "
            f"{brief(last.train_loss, 4)}, validation "
            f"{show.losses(last.validation_loss, model.vocabulary)}"
        )
    if kept := _kept(arguments.model, training):
        steps = [f"{step:,}" for step in kept]
        if len(steps) > _MOST_KEPT:
            steps[_MOST_KEPT - 2 : -1] = ["..."]
        name = os.path.basename(next(iter(kept.values())))
        count = show.count(len(kept), "checkpoint")
        print(f"kept        {count}, after steps {', '.join(steps)}; the first is {name}")
    return 0

"""The configuration in a checkpoint, format 1: every key, its values, and their combinations.

docs/format.md says what the keys mean and how the format may change. In short: a new key is
optional here and is written only if it is not its default. Older versions then read all files
except those that they would misunderstand, and refuse those by the key.
"""

from __future__ import annotations

import os
from typing import Any

from .. import registry
from .._checks import LARGEST_SEED, MOST_STEPS, StrPath
from ..initial import INITS
from . import checkpoint
from .schema import (
    anything,
    flag,
    integer,
    list_of,
    mapping,
    number,
    one_of,
    optional,
    row,
    table,
    text,
    variant,
)

_SHA256 = text("[0-9a-f]{64}", "a SHA-256 in hexadecimal digits")
_RATE = number(least=0, below=1)

_UNKNOWN = table({"characters": integer(0, 0x110000), "share": number(least=0, most=1)})

_MODEL = table(
    {
        "hidden_size": integer(1),
        "num_layers": integer(1, 10_000),
        "cell": one_of(*registry.CELL_NAMES),
        "seed": integer(0, LARGEST_SEED),
        "dtype": one_of("float32", "float64"),
        "nonlinearity": one_of(*registry.NONLINEARITIES),
        "bias": one_of(True, "double", "single", False, "none"),
        "init": one_of(*INITS),
        "forget_bias": optional(number()),
        "proj_size": integer(0),
        "layer_norm": flag,
        **dict.fromkeys(registry.DROPOUT_RATES, _RATE),
        "variational": flag,
        "zoneout": row(h=_RATE, c=_RATE),
    },
    {"compute_dtype": one_of(*registry.COMPUTE_DTYPES)},
)

_WARMUP = {"warmup": number(least=0)}
_FALL = table({**_WARMUP, "epochs": number(above=0), "final": number(least=0, most=1)})

_SCHEDULE = variant(
    "name",
    {
        "constant": table(_WARMUP),
        "decay": table({**_WARMUP, "decay": number(above=0), "after": integer(1)}),
        "cosine": _FALL,
        "linear": _FALL,
        "plateau": table({**_WARMUP, "decay": number(above=0, most=1), "patience": integer(1)}),
    },
)

_SETTINGS = table(
    {
        "batch_size": integer(1),
        "seq_len": integer(1),
        "optimizer": optional(one_of(*registry.OPTIMIZERS)),
        "learning_rate": number(least=0),
        "clip_norm": optional(number(above=0)),
        "clip_value": optional(number(above=0)),
        "reduction": one_of("mean", "sum"),
        "schedule": _SCHEDULE,
        "random_offset": flag,
        "micro_batches": integer(1),
        "evaluate_every": optional(integer(1)),
        "evaluate_length": optional(integer(2)),
        "patience": optional(integer(1)),
        "sample_length": integer(0),
        "checkpoint_every": optional(integer(1)),
        "mask_seed": integer(0, LARGEST_SEED),
    },
    {
        "keep_every": integer(1),
        "average": text(r"(ema|tail):[0-9.e+-]+", 'like "ema:0.999" or "tail:0.2"'),
    },
)

_EVALUATION = row(
    step=integer(0, MOST_STEPS),
    epoch=number(least=0),
    train_loss=number(),
    validation_loss=number(),
    learning_rate=number(least=0),
)

_TEXT = {
    "length": integer(1, 2**63 - 1),
    "fingerprint": _SHA256,
    "file_starts": optional(_SHA256),
}

_CORPUS = table(
    {**_TEXT, "document_mark": optional(text())},
    {
        "split": list_of(number(above=0, below=1)),
        "validation": table(_TEXT, {"whole": _SHA256}),
        "test": table(_TEXT, {"whole": _SHA256}),
        "test_part": _SHA256,
    },
)

_OWN = mapping(anything)

_TRAINING = table(
    {
        "settings": _SETTINGS,
        "configuration": _OWN,
        "num_steps": integer(0, MOST_STEPS),
        "has_state": flag,
        "losses": row(count=integer(0, MOST_STEPS), sum=number()),
        "evaluation_due": flag,
        "optimizer_steps": integer(0, MOST_STEPS),
        "history": list_of(_EVALUATION),
        "corpus": optional(_CORPUS),
    },
    {
        "averaged": integer(1, MOST_STEPS),
        "batches_from": table({"step": integer(0, MOST_STEPS), "epoch": number(least=0)}),
    },
)

_CONFIGURATION = table(
    {"vocabulary": one_of("characters", "bytes"), "model": _MODEL},
    {
        "unknown": _UNKNOWN,
        "training": _TRAINING,
        "weight_dtype": one_of("bfloat16", "int8"),
    },
)


def check_own(values: Any) -> None:
    """As `check`, for a trainer's own configuration."""
    _OWN("configuration", values)


def check(config: checkpoint.Config) -> None:
    """Raises ValueError or TypeError, with the key, if config is not a checkpoint's."""
    _CONFIGURATION("", config)
    if "unknown" in config and config["vocabulary"] == "bytes":
        raise ValueError("unknown must be absent where vocabulary is 'bytes'")
    if "training" in config:
        _check_training(config["training"])
    if "weight_dtype" in config:
        _check_weight_dtype(config)


def read(path: StrPath) -> tuple[dict[str, Any], checkpoint.Config]:
    """As `checkpoint.read`, and checks the configuration."""
    tensors, config = checkpoint.read(path)
    _check(path, config)
    return tensors, config


def _check(path: StrPath, config: checkpoint.Config) -> None:
    try:
        check(config)
    except (ValueError, TypeError) as error:
        raise checkpoint.CheckpointError(f"{os.fspath(path)}: {error}") from None


def read_alone(path: StrPath) -> checkpoint.Config:
    """As `checkpoint.read_config`, and checks the configuration."""
    config = checkpoint.read_config(path)
    _check(path, config)
    return config


def write(path: StrPath, tensors: checkpoint.Tensors, config: checkpoint.Config) -> None:
    """As `checkpoint.write`; ValueError or TypeError for a configuration that `read` refuses."""
    check(config)
    checkpoint.write(path, tensors, config)


def _check_weight_dtype(config: checkpoint.Config) -> None:
    if "training" in config:
        raise ValueError("training must be absent from a file of small weights")
    model = config["model"]
    if model["dtype"] != "float32":
        raise ValueError(
            f'model.dtype of a file of small weights must be "float32", got "{model["dtype"]}"'
        )
    if config["weight_dtype"] == "int8" and model.get("compute_dtype", "float32") != "float32":
        raise ValueError(
            f'model.compute_dtype of a file of int8 weights must be "float32", got '
            f'"{model["compute_dtype"]}"'
        )


def _check_training(training: dict[str, Any]) -> None:
    """Checks combinations of keys."""
    settings, steps, history = training["settings"], training["num_steps"], training["history"]
    batch_size, micro_batches = settings["batch_size"], settings["micro_batches"]
    if micro_batches > batch_size:
        raise ValueError(
            f"training.settings.micro_batches must be at most training.settings.batch_size, "
            f"{batch_size}, got {micro_batches}"
        )
    schedule = settings["schedule"]
    if "epochs" in schedule and schedule["warmup"] >= schedule["epochs"]:
        raise ValueError(
            f"training.settings.schedule.warmup must be below epochs, {schedule['epochs']}, got "
            f"{schedule['warmup']}"
        )
    count, total = training["losses"]
    if count > steps:
        raise ValueError(
            f"training.losses.0 (count) must be at most num_steps, {steps}, got {count}"
        )
    if count == 0 and total != 0:
        raise ValueError(f"training.losses.1 (sum) must be 0 for no losses, got {total}")
    if training["evaluation_due"] and count == 0:
        raise ValueError("training.evaluation_due must be false where losses has none, got true")
    begun = training.get("batches_from", {"step": 0})["step"]
    if begun > steps:
        raise ValueError(
            f"training.batches_from.step must be at most num_steps, {steps}, got {begun}"
        )
    averaged = training.get("averaged", 0)
    if averaged > (steps if "average" in settings else 0):
        raise ValueError(
            f"training.averaged must be absent where training.settings.average is, and at most "
            f"num_steps, {steps}, got {averaged}"
        )
    last = 0
    for i, (step, *_) in enumerate(history):
        if not last <= step <= steps:
            raise ValueError(
                f"training.history.{i}.0 (step) must be in {last} to {steps}, got {step}"
            )
        last = step
    if training["corpus"] is not None:
        _check_corpus(training["corpus"])


def _check_corpus(corpus: dict[str, Any]) -> None:
    for name in ("", "validation", "test"):
        part = corpus.get(name) if name else corpus
        if part is not None and (corpus["document_mark"] is None) != (part["file_starts"] is None):
            raise ValueError(
                f"training.corpus.{f'{name}.' if name else ''}file_starts must be null where "
                f"training.corpus.document_mark is, and only there"
            )
    split = corpus.get("split")
    if split is None:
        return
    if "validation" in corpus:
        raise ValueError("training.corpus.split must be absent where training.corpus.validation is")
    most = 2 if "test" in corpus else 3
    if not 2 <= len(split) <= most or abs(sum(split) - 1) > 1e-6:
        raise ValueError(
            f"training.corpus.split must be {'2' if most == 2 else '2 or 3'} shares that add up to "
            f"1, got {split}"
        )

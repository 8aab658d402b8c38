"""What quality.py and papers.py keep of a training: its text, its curve."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

CURVE = ("step", "epoch", "train_loss", "validation_loss", "learning_rate")


def identity(data: bytes) -> dict[str, Any]:
    """The length and the digest of a text, to tell it from another one."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def curve(entries: Iterable[Mapping[str, Any]]) -> list[list[float]]:
    """The values named by CURVE, for each evaluation in a log; losses in nats per symbol."""
    return [[entry[name] for name in CURVE] for entry in entries if entry["type"] == "evaluation"]

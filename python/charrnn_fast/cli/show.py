"""Models, vocabularies and losses in words, one line each."""

from __future__ import annotations

import math
import sys
from typing import Any

from numpy.typing import NDArray

from .._checks import brief
from ..language.model import CharLM
from ..registry import DROPOUT_RATES
from ..text.vocabulary import Vocabulary
from ..training.schedules import from_config


def model_line(model: CharLM, compute_dtype: str | None = None) -> str:
    """compute_dtype None: the model's own."""
    config = model.settings()
    layers = f"{config['num_layers']} layer{'s' * (config['num_layers'] > 1)}"
    shape = f"{config['cell']}, {layers} of {config['hidden_size']}"
    if config["proj_size"]:
        shape += f" projected to {config['proj_size']}"
    if config["layer_norm"]:
        shape += ", normalized"
    left_out = [
        f"{name.replace('_', ' ')} {config[name]:g}" for name in DROPOUT_RATES if config[name]
    ]
    if any(config["zoneout"]):
        left_out.append("zoneout " + ", ".join(f"{rate:g}" for rate in config["zoneout"]))
    if left_out and config["variational"]:
        left_out.append("variational")
    noise = f"; in training {', '.join(left_out)}" if left_out else ""
    numbers: str = config["dtype"]
    compute_dtype = compute_dtype or config["compute_dtype"]
    if compute_dtype != "float32":
        numbers += f", products in {compute_dtype}"
    if model.weight_dtype is not None:
        numbers += f", weights in {model.weight_dtype}"
    return f"{shape}, {numbers}: {model.num_parameters:,} parameters{noise}"


def vocabulary_line(vocabulary: Vocabulary) -> str:
    return vocabulary.describe()


def quoted(points: NDArray[Any], most: int = 100) -> str:
    """Like ": 'abc'"; none: nothing."""
    if not len(points):
        return ""
    rest = f" and {len(points) - most} more" if len(points) > most else ""
    return f": {''.join(map(chr, points[:most]))!r}{rest}"


def training_line(settings: dict[str, Any]) -> str:
    clip_norm, schedule = settings["clip_norm"], from_config(settings["schedule"]).describe()
    return (
        f"{settings['optimizer'] or 'optimizer object'}, "
        f"learning rate {settings['learning_rate']:.3g}{f' ({schedule})' * bool(schedule)}, "
        f"{'no clipping' if clip_norm is None else f'gradient norm clipped to {clip_norm:.6g}'}; "
        f"batch size {settings['batch_size']}, sequence length {settings['seq_len']}"
        f"{', at a random offset' * settings['random_offset']}"
        f"{'; weights averaged by ' + settings['average'] if 'average' in settings else ''}"
    )


def losses(nats: float, vocabulary: Vocabulary) -> str:
    bits = nats / math.log(2)
    return f"{brief(nats, 4)} nats per {vocabulary.unit} ({brief(bits, 4)} bits)"


def json_number(value: float) -> float | None:
    """None for infinity and NaN, which JSON lacks."""
    return value if math.isfinite(value) else None


def count(number: float, name: str) -> str:
    """Like "1 step", "2,000 steps", "0.5 epochs"."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:.4g}"
    return f"{shown} {name}{'s' * (number != 1)}"


def size(count: float) -> str:
    """Bytes."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:  # what rounds to 1000 is 1 of the next unit
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB" if count < 999.5 else f"{count:,.0f} GB"


def warn(message: str) -> None:
    print(f"charrnn-fast: warning: {' '.join(message.split())}", file=sys.stderr)


def complain(message: str, status: int) -> int:
    """Prints an error in one line, whatever a file's name or a message holds; returns status."""
    print(f"charrnn-fast: error: {' '.join(message.split())}", file=sys.stderr)
    return status

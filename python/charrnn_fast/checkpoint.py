"""Checkpoints: one safetensors file of tensors, a configuration and a checksum over both.

The header's metadata has one entry, ``charrnn_fast``: a JSON object of the format's number, the
configuration, and the SHA-256 of the configuration (JSON, keys sorted) followed by each tensor
in the order of their names: name, dtype and shape, then the data as they lie in the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from . import atomic_file
from ._checks import StrPath

_KEY = "charrnn_fast"
_FORMAT = 1
_HEADER_LIMIT = 100_000_000  # bytes; safetensors allows no more

Tensors = Mapping[str, NDArray[Any]]
Config = dict[str, Any]


class CheckpointError(ValueError):
    """A file is no checkpoint of this package, or it is damaged."""


def write(path: StrPath, tensors: Tensors, config: Config) -> None:
    """Replaces the file at path by a checkpoint of tensors and a configuration (JSON values).

    The new file takes the old one's place in one step, after its data have reached the disk:
    whoever reads sees the old checkpoint or the new one, whole, even after a crash. Raises
    OSError where writing fails or the old file is no checkpoint, and FloatingPointError where a
    tensor is not finite, and leaves the old file as it was.
    """
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise FloatingPointError(f"{name} is no longer finite; no checkpoint is written")
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    header = {"format": _FORMAT, "sha256": _digest(arrays, config), "config": config}
    # One entry only: safetensors writes several in an order that changes from run to run.
    data = safetensors.numpy.save(arrays, {_KEY: json.dumps(header, allow_nan=False)})
    atomic_file.replace(path, [data], _CHECKPOINT)


def read(path: StrPath) -> tuple[dict[str, NDArray[Any]], Config]:
    """The tensors (read-only) and the configuration of a checkpoint, its checksum verified.

    Raises CheckpointError where the file is foreign, cut off or changed, and OSError where it
    cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    header = _header(path, data)
    if header.get("format") != _FORMAT:
        raise CheckpointError(
            f"{os.fspath(path)} is of the checkpoint format {header.get('format')!r}, this version "
            f"of charrnn_fast reads {_FORMAT}; a newer version may read it"
        )
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{os.fspath(path)} is damaged: {error}") from error
    config = header.get("config")
    if not isinstance(config, dict) or header.get("sha256") != _digest(tensors, config):
        raise CheckpointError(f"{os.fspath(path)} is damaged: its checksum does not fit its data")
    return tensors, config


def check_writable(path: StrPath) -> None:
    """Raises OSError if a checkpoint cannot, or should not, be written to path.

    A file that is there is only replaced if it is a checkpoint (or empty). Nothing is changed.
    """
    atomic_file.check(path, _CHECKPOINT)


def remove(path: StrPath) -> None:
    """Removes a checkpoint, if it is there; raises OSError where path is anything else."""
    atomic_file.remove(path, _CHECKPOINT)


def _begins_as_checkpoint(path: str) -> bool:
    with open(path, "rb") as file:
        start = file.read(8)
        start += file.read(min(int.from_bytes(start, "little"), _HEADER_LIMIT))
    try:
        _header(path, start)
    except CheckpointError:
        return False
    return True


_CHECKPOINT = atomic_file.Kind("checkpoint", _begins_as_checkpoint)


def _header(path: StrPath, data: bytes) -> Config:
    """Our entry of the metadata in a safetensors file: eight bytes of length, then JSON."""
    size = int.from_bytes(data[:8], "little")
    try:
        outer = json.loads(data[8 : 8 + size], object_pairs_hook=_unique)
        header = json.loads(outer["__metadata__"][_KEY], object_pairs_hook=_unique)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{os.fspath(path)} is no charrnn_fast checkpoint, or its beginning is damaged "
            f"({len(data)} bytes)"
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{os.fspath(path)} is damaged: its header is no JSON object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where a key stands twice, of which readers would take either."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key stands twice")
    return table


def _digest(tensors: Tensors, config: Config) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.data)
    return digest.hexdigest()

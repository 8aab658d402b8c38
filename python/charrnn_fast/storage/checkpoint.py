"""Checkpoints: one safetensors file of tensors, a configuration and a checksum over both.

The header's metadata has one entry, ``charrnn_fast``: a JSON object of the format's number, the
configuration, and a SHA-256. That covers the configuration (JSON, keys sorted) and each tensor in
the order of their names: name, dtype and shape, then the data as in the file. docs/format.md
describes the format and how it may change.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from .._checks import StrPath
from . import atomic_file, input_files, schema

_KEY = "charrnn_fast"
_FORMAT = 1
_HEADER_LIMIT = 25_000_000  # bytes: some 250,000 evaluations; safetensors takes four times as many
_HEADER_DEPTH = 3  # of lists and objects: the header, a tensor, its shape
_BYTES_PER_VALUE = 64  # of the file, for each string, list or object that its header may have
_FREE_VALUES = 100_000  # in any header; a tensor has eight

Tensors = Mapping[str, NDArray[Any]]
Config = dict[str, Any]


class CheckpointError(ValueError):
    """A file is not a checkpoint of this package, or is damaged."""


def write(path: StrPath, tensors: Tensors, config: Config) -> None:
    """Replaces the file at path by a checkpoint of tensors and a configuration (JSON values).

    The replacement is atomic, after the data have reached the disk: readers see the old or the new
    checkpoint, whole, even after a crash. Raises OSError if writing fails or the old file is not a
    checkpoint, and FloatingPointError if a tensor is not finite; the old file then stays unchanged.
    """
    data = _packed(path, tensors, config)
    atomic_file.replace(path, [data], _CHECKPOINT)


def read(path: StrPath) -> tuple[dict[str, NDArray[Any]], Config]:
    """The tensors (read-only) and the configuration of a checkpoint, its checksum verified.

    Raises CheckpointError if the file is not a checkpoint, is truncated, changed or of another
    format, or if a tensor is not finite; OSError if it cannot be read. `configuration.read` checks
    the configuration.
    """
    name = os.fspath(path)
    try:
        file = input_files.open_input(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    with file:
        # The header first: no more is read of other kinds of files.
        start, text, there = _beginning(file)
        outer, header = _header(path, start, text, there)
        _check_format(name, header)
        rest = input_files.read_at_most(file, _data_size(outer) + 1)
    data = b"".join([start, text, rest])
    del text, rest, outer
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, LookupError, ValueError, TypeError) as error:
        raise CheckpointError(f"{name} is damaged: {error}") from error
    config = header.get("config")
    if not isinstance(config, dict) or header.get("sha256") != _digest(tensors, config):
        raise CheckpointError(f"{name} is damaged: its checksum does not fit its data")
    for tensor in tensors:
        if not _is_finite(tensors[tensor]):
            raise CheckpointError(f"{name}: the tensor {tensor!r} is not finite")
    return tensors, config


def read_config(path: StrPath) -> Config:
    """The configuration alone, without the tensors and thus without the checksum verified.

    Raises as `read` does for what is no checkpoint.
    """
    with input_files.open_input(path) as file:
        _, header = _header(path, *_beginning(file))
    name = os.fspath(path)
    _check_format(name, header)
    config = header.get("config")
    if not isinstance(config, dict):
        raise CheckpointError(f"{name} is damaged: it has no configuration")
    return config


def check_writable(path: StrPath) -> None:
    """Raises OSError if a checkpoint cannot, or should not, be written to path.

    An existing file is only replaced if it is a checkpoint (or empty). Changes nothing.
    """
    atomic_file.check(path, _CHECKPOINT)


def remove(path: StrPath) -> None:
    """Removes a checkpoint, if it exists; raises OSError if path is anything else."""
    atomic_file.remove(path, _CHECKPOINT)


def check_beginning(path: StrPath) -> None:
    """Raises CheckpointError if the file at path is not a checkpoint, or its header is truncated
    or damaged; OSError if it cannot be read.
    """
    with input_files.open_input(path) as file:
        _header(path, *_beginning(file))


def _begins_as_checkpoint(path: str) -> bool:
    try:
        check_beginning(path)
    except CheckpointError:
        return False
    return True


_CHECKPOINT = atomic_file.Kind("checkpoint", _begins_as_checkpoint)


def _packed(path: StrPath, tensors: Tensors, config: Config) -> bytes:
    """The bytes that `write` writes to path."""
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise FloatingPointError(f"{name} is no longer finite; no checkpoint is written")
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    header = {"format": _FORMAT, "sha256": _digest(arrays, config), "config": config}
    # One entry only: safetensors writes several in an order that changes from run to run.
    data = safetensors.numpy.save(arrays, {_KEY: json.dumps(header, allow_nan=False)})
    size = int.from_bytes(data[:8], "little")
    try:
        _parsed(data[8 : 8 + size], len(data))
    except ValueError as error:  # the history or the configuration is too long
        raise ValueError(f"{os.fspath(path)} would be no valid checkpoint: {error}") from None
    return data


def _beginning(file: IO[bytes]) -> tuple[bytes, bytes, int]:
    """Eight bytes, the header's length; the header, as far as it exists; the file's size, 0 if it
    has none.
    """
    start = file.read(8)
    size = min(int.from_bytes(start, "little"), _HEADER_LIMIT + 1)
    return start, input_files.read_at_most(file, size), os.fstat(file.fileno()).st_size


def _header(path: StrPath, start: bytes, text: bytes, there: int) -> tuple[Config, Config]:
    """The header of a safetensors file, and our entry of its metadata.

    start, text, there: as from `_beginning`.
    """
    try:
        if len(start) < 8 or len(text) < int.from_bytes(start, "little"):
            raise ValueError("its header is cut off, or longer than one may be")
        return _parsed(text, max(there, 8 + len(text)))
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{os.fspath(path)} is no charrnn_fast checkpoint, or its beginning is damaged "
            f"({max(there, len(start) + len(text))} bytes)"
        ) from error


def _parsed(text: bytes, there: int) -> tuple[Config, Config]:
    """As `_header`, for a complete header; ValueError and the like for a bad one."""
    if len(text) > _HEADER_LIMIT:
        raise ValueError(f"its header has {len(text):,} bytes, at most {_HEADER_LIMIT:,} are taken")
    most = _FREE_VALUES + there // _BYTES_PER_VALUE
    outer = schema.loads(text.decode(), _HEADER_DEPTH, most)
    header = schema.loads(outer["__metadata__"][_KEY])
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return outer, header


def _check_format(name: str, header: Config) -> None:
    number = header.get("format")
    if type(number) is not int or number < 1:
        raise CheckpointError(
            f"{name} is damaged: its format must be an integer >= 1, got {schema.shown(number)}"
        )
    if number > _FORMAT:
        raise CheckpointError(
            f"{name} is of the checkpoint format {schema.shown(number)}, and this version of "
            f"charrnn_fast reads formats up to {_FORMAT}; a newer version reads it"
        )


def _data_size(outer: Config) -> int:
    """The bytes after the header; safetensors finds wrong entries."""
    ends = [0]
    for entry in outer.values():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if isinstance(offsets, list):
            ends += [end for end in offsets if type(end) is int]
    return min(max(ends), 2**62)


def _is_finite(tensor: NDArray[Any]) -> bool:
    """Does not make an array of booleans, which would take memory."""
    return not tensor.size or (math.isfinite(tensor.min()) and math.isfinite(tensor.max()))


def _digest(tensors: Tensors, config: Config) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.data)
    return digest.hexdigest()

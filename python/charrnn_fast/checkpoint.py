"""Checkpoints: one safetensors file of tensors, a configuration and a checksum over both.

The header's metadata has one entry, ``charrnn_fast``: a JSON object of the format's number, the
configuration, and the SHA-256 of the configuration (JSON, keys sorted) followed by each tensor
in the order of their names: name, dtype and shape, then the data as they lie in the file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

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
    target, _ = _replaceable(path)
    try:
        replace(target, [data])
    except OSError as error:
        raise _of_path(error, path) from error


def replace(target: str, parts: Iterable[bytes]) -> None:
    """Puts a new file of these parts in the place of target, in one step and durably."""
    with _unnamed_file(target) as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
        _give_name(file, target)
    _sync_folder(os.path.dirname(target))


def remove_litter(path: StrPath) -> None:
    """Removes what a save to path that was killed at the wrong instant has left beside it."""
    with suppress(FileNotFoundError):
        os.unlink(_temporary(os.path.realpath(path)))


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
    _replaceable(path)
    check_folder(path)


def check_folder(path: StrPath) -> None:
    """Raises OSError if a new file at path cannot be written. Nothing is changed."""
    # The permissions alone do not tell: the file system may be read-only, or the user root.
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
            pass
    except OSError as error:
        raise _of_path(error, path) from error


def _replaceable(path: StrPath) -> tuple[str, str]:
    """The file that path leads to, and its folder; OSError where it is not to be replaced."""
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, "this is a folder, not a file", os.fspath(path))
    if not os.path.exists(folder):
        raise FileNotFoundError(errno.ENOENT, "its folder does not exist", os.fspath(path))
    if not os.path.isdir(folder):
        raise NotADirectoryError(errno.ENOTDIR, "its folder is a file", os.fspath(path))
    if os.path.exists(target) and os.path.getsize(target):
        with open(target, "rb") as file:
            start = file.read(8)
            start += file.read(min(int.from_bytes(start, "little"), _HEADER_LIMIT))
        try:
            _header(path, start)
        except CheckpointError:
            raise FileExistsError(
                errno.EEXIST, "this file is no checkpoint; it is not overwritten", os.fspath(path)
            ) from None
    return target, folder


def _temporary(target: str) -> str:
    """The name of a new checkpoint between its two last steps, or while it is written."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name}.new")


@contextmanager
def _unnamed_file(target: str) -> Iterator[IO[bytes]]:
    """A file to write to in the folder of target, that a kill leaves nothing of.

    Where the system has no files without a name, it has the temporary one.
    """
    # Permissions are those that the umask leaves, as of any file that a program creates.
    try:
        descriptor = os.open(os.path.dirname(target), os.O_TMPFILE | os.O_WRONLY, 0o666)
    except (AttributeError, OSError) as error:
        # EISDIR: a kernel, and EOPNOTSUPP: a file system, that does not know O_TMPFILE.
        if isinstance(error, OSError) and error.errno not in (errno.EISDIR, errno.EOPNOTSUPP):
            raise
        remove_litter(target)
        with open(_temporary(target), "xb") as file:
            try:
                yield file
            finally:
                remove_litter(target)
        return
    with open(descriptor, "wb") as file:
        yield file


def _give_name(file: IO[bytes], target: str) -> None:
    """Puts a file of `_unnamed_file` in the place of target, in one step."""
    temporary = _temporary(target)
    if not isinstance(file.name, str):
        remove_litter(target)
        # No system call replaces a file by one without a name: it is named, then renamed. And
        # os.link follows the link that /proc has for the file only where a folder is given.
        descriptors = os.open("/proc/self/fd", os.O_RDONLY)
        try:
            os.link(str(file.fileno()), temporary, src_dir_fd=descriptors, follow_symlinks=True)
        finally:
            os.close(descriptors)
    try:
        os.replace(temporary, target)
    except BaseException:
        remove_litter(target)
        raise


def _of_path(error: OSError, path: StrPath) -> OSError:
    """The error of a temporary file, as that of the path that was given."""
    return type(error)(error.errno, error.strerror, os.fspath(path))


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


def _sync_folder(folder: str) -> None:
    if os.name == "nt":  # Windows cannot open folders, and needs no fsync for a rename
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

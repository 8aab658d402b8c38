"""Arrays that stay in a file."""

from __future__ import annotations

import io
import os
import tempfile
import weakref
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .. import _core
from .._checks import available_memory


class Ids(Protocol):
    """Ids [N] in memory or in a file; a slice of them is an array in memory."""

    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: slice, /) -> NDArray[Any]: ...
    def __array__(self) -> NDArray[Any]: ...


class FileArray:
    """A read-only array [N] in a file; each slice is read on access.

    It is read, not mapped: if somebody shortens a mapped file, reading kills the process (SIGBUS),
    and pages read from a mapping count as this process's memory.
    """

    dtype: np.dtype[Any]

    def __init__(self, descriptor: int, dtype: DTypeLike, path: str | None = None) -> None:
        """The whole file of an open descriptor, which may be closed afterwards.

        path: of a file that others may change. It must not change from now on: reading raises
        OSError if its size or its modification time has changed. None: our own file.
        """
        self.dtype = np.dtype(dtype)
        self._file = _File(descriptor, path)
        self._first, self._last = 0, self._file.size // self.dtype.itemsize

    def part(self, first: int, last: int) -> FileArray:
        """The elements first to last - 1, 0 <= first <= last <= N; reads nothing."""
        part = object.__new__(FileArray)
        part.dtype, part._file = self.dtype, self._file
        part._first, part._last = self._first + first, self._first + last
        return part

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and modification time of the file when it was opened."""
        return self._file.stamp

    def __len__(self) -> int:
        return self._last - self._first

    def __getitem__(self, index: slice) -> NDArray[Any]:
        """A slice of step 1, as a read-only array in memory."""
        if not isinstance(index, slice) or index.step not in (None, 1):
            raise TypeError(
                f"slices of an array in a file must have step 1, got {index!r}; numpy.asarray "
                f"reads all of it into memory"
            )
        start, stop, _ = index.indices(len(self))
        size = self.dtype.itemsize
        data = self._file.read(
            (self._first + start) * size, (self._first + max(start, stop)) * size
        )
        return np.frombuffer(data, self.dtype)

    def rows(self, starts: NDArray[np.int64], count: int) -> NDArray[Any]:
        """[B, count]: in row b the elements from starts[b] on, wrapping around at the end.

        starts [B], each in 0 to N - 1. One call reads all rows.
        """
        size = self.dtype.itemsize
        rows = np.empty((len(starts), count), self.dtype)
        self._file.read_rows(self._first * size, self._last * size, starts * size, rows)
        return rows

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """All elements, for numpy.asarray."""
        if copy is False:
            raise ValueError("an array in a file cannot be had in memory without a copy")
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def __copy__(self) -> FileArray:
        return self.part(0, len(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> FileArray:
        return self.part(0, len(self))  # the file is only read

    def __reduce__(self) -> tuple[Any, ...]:
        """By path for a file that others may change; else by all elements.

        Raises MemoryError, before allocating, if the machine has too little memory for them.
        """
        file = self._file
        if file.path is not None:
            ends = (self._first, self._last)
            return _opened_again, (file.path, self.dtype.str, self.stamp, ends)
        needed, free = len(self) * self.dtype.itemsize, available_memory()
        if free is not None and needed > free:
            raise MemoryError(
                f"a pickle of this text takes {needed / 1e9:,.3g} GB, and {free / 1e9:,.3g} GB are "
                f"free; let the other process read the files itself"
            )
        return _written_again, (self[:],)

    def __repr__(self) -> str:
        return f"<FileArray of {len(self):,} {self.dtype} in {self._file.name}>"


def columns_of(ids: Ids, places: NDArray[np.int64]) -> NDArray[Any]:
    """The ids at places [T, B], each column of which counts up by one; place N is 0 again."""
    if isinstance(ids, FileArray):
        return ids.rows(places[0] % len(ids), len(places)).T
    return np.asarray(ids).take(places, mode="wrap")


def _opened_again(
    path: str, dtype: str, stamp: tuple[int, int], ends: tuple[int, int]
) -> FileArray:
    """From a pickle: a part of the file at path, which must be unchanged."""
    with open(path, "rb") as file:
        whole = FileArray(file.fileno(), dtype, path)
    if whole.stamp != stamp:
        raise OSError(f"{path} has changed since what reads from it was pickled")
    return whole.part(*ends)


def _written_again(elements: NDArray[Any]) -> FileArray:
    """From a pickle: the elements in a temporary file."""
    with tempfile.TemporaryFile(prefix="charrnn_fast-") as file:
        file.write(np.ascontiguousarray(elements).data)
        file.flush()
        return FileArray(file.fileno(), elements.dtype)


class _File:
    """An open file that must not change."""

    def __init__(self, descriptor: int, path: str | None) -> None:
        self.name = path or "a temporary file"
        self.path = None if path is None else os.path.abspath(path)
        self._file = io.FileIO(os.dup(descriptor))
        weakref.finalize(self, self._file.close)
        self.stamp = self._now()
        self.size = self.stamp[0]

    def read(self, first: int, last: int) -> bytes:
        """The bytes first to last - 1; thread-safe."""
        descriptor = self._file.fileno()
        data = os.pread(descriptor, last - first, first)
        while len(data) < last - first:  # one call reads 2 GB at most
            rest = os.pread(descriptor, last - first - len(data), first + len(data))
            if not rest:
                raise self._changed()
            data += rest
        self._check_unchanged()
        return data

    def read_rows(
        self, first: int, last: int, starts: NDArray[np.int64], rows: NDArray[Any]
    ) -> None:
        """As `_core.read_rows`, for the bytes first to last - 1; thread-safe."""
        if not _core.read_rows(self._file.fileno(), first, last, starts, rows):
            raise self._changed()
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        """To be called after reading: a file's stamp changes before its new content can be read."""
        if self.path is not None and self._now() != self.stamp:
            raise self._changed()

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def _changed(self) -> OSError:
        size = self._now()[0]
        sizes = f" ({self.size:,} bytes then, {size:,} now)" if size != self.size else ""
        return OSError(
            f"{self.name} has changed since it was opened{sizes}; a text must stay as it is while "
            f"it is in use: begin again, with a copy if something goes on writing to it"
        )

"""Arrays that stay in a file: slices, parts, and files that others change."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn_fast import _core
from charrnn_fast.storage.file_array import FileArray, columns_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "numbers"
    np.arange(100, dtype=np.uint16).tofile(path)
    return path


def opened(path: Path) -> FileArray:
    with open(path, "rb") as file:
        return FileArray(file.fileno(), np.uint16, str(path))


bounds = st.none() | st.integers(-120, 120)


@given(bounds, bounds, st.integers(0, 100), st.integers(0, 100))
def test_slices_are_those_of_an_array(
    tmp_path_factory: pytest.TempPathFactory, start: int | None, stop: int | None, a: int, b: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "numbers"
    expected = np.arange(100, dtype=np.uint16)
    if not path.exists():
        expected.tofile(path)
    array = opened(path)
    first, last = min(a, b), max(a, b)
    for ours, theirs in (
        (array, expected),
        (array.part(first, last), expected[first:last]),
        (array.part(first, 100).part(0, last - first), expected[first:last]),
    ):
        assert len(ours) == len(theirs)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
        piece = ours[start:stop]
        assert isinstance(piece, np.ndarray)
        assert piece.dtype == np.uint16
        np.testing.assert_array_equal(piece, theirs[start:stop])


@given(st.integers(0, 99), st.integers(1, 100), st.lists(st.integers(0, 99), max_size=5), st.data())
def test_rows_are_those_of_an_array(
    tmp_path_factory: pytest.TempPathFactory,
    first: int,
    count: int,
    starts: list[int],
    data: st.DataObject,
) -> None:
    """Behind the last element comes the first one, as often as it takes."""
    path = tmp_path_factory.getbasetemp() / "rows"
    expected = np.arange(100, dtype=np.uint16)
    if not path.exists():
        expected.tofile(path)
    last = data.draw(st.integers(first + 1, 100))
    size = last - first
    at = np.array([start % size for start in starts], np.int64)
    part = opened(path).part(first, last)
    rows = part.rows(at, count)
    assert rows.dtype == np.uint16 and rows.shape == (len(at), count)
    turns = [np.resize(np.roll(expected[first:last], -start), count) for start in at]
    np.testing.assert_array_equal(rows, np.reshape(turns, (len(at), count)))
    places = at - 3 * size + np.arange(count)[:, None]
    for ids in (part, expected[first:last]):
        np.testing.assert_array_equal(columns_of(ids, places), rows.T)


def test_rows_that_cannot_be_read(path: Path) -> None:
    array, starts = opened(path), np.array([3, 90])
    for wrong in (-1, 100, 2**60):
        with pytest.raises(ValueError, match=r"starts must be in 0 to 199, got -?\d+"):
            array.rows(np.array([wrong]), 5)
    out = np.empty((2, 5), np.uint16)
    for rows in (out[0], out.T, out[:1], "rows"):
        with pytest.raises(ValueError, match=r"rows must be a writable, C-contiguous array"):
            _core.read_rows(array._file._file.fileno(), 0, 200, starts, rows)  # type: ignore[arg-type]
    with open(os.devnull, "wb") as file, pytest.raises(OSError, match="Bad file descriptor"):
        _core.read_rows(file.fileno(), 0, 200, starts, out)


def test_it_is_an_array_to_numpy(path: Path) -> None:
    array = opened(path)
    assert np.asarray(array).dtype == np.uint16
    assert np.asarray(array, np.float32).dtype == np.float32
    np.testing.assert_array_equal(np.roll(array, 3), np.roll(np.arange(100), 3))
    assert not array[:5].flags.writeable
    with pytest.raises(ValueError, match="without a copy"):
        array.__array__(copy=False)
    assert repr(array) == f"<FileArray of 100 uint16 in {path}>"


@pytest.mark.parametrize("index", [3, slice(0, 9, 2), slice(9, 0, -1), [1, 2], None])
def test_other_indices_are_refused(path: Path, index: object) -> None:
    with pytest.raises(TypeError, match=r"must have step 1, got .*; numpy\.asarray reads all"):
        opened(path)[index]  # type: ignore[index]


def test_a_call_may_read_less_than_was_asked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux does above 2 GB."""
    pread = os.pread
    monkeypatch.setattr("os.pread", lambda file, size, at: pread(file, min(size, 7), at))
    np.testing.assert_array_equal(opened(path)[3:90], np.arange(3, 90))


@pytest.mark.parametrize(
    ("change", "sizes"),
    [
        (lambda path: os.truncate(path, 20), r" \(200 bytes then, 20 now\)"),
        (lambda path: os.truncate(path, 0), r" \(200 bytes then, 0 now\)"),
        (lambda path: os.truncate(path, 201), r" \(200 bytes then, 201 now\)"),
        (lambda path: os.utime(path, ns=(1, 1)), ""),
    ],
    ids=["shortened", "emptied", "longer", "written"],
)
def test_a_changed_file_is_not_read(path: Path, change: Callable[[Path], None], sizes: str) -> None:
    array = opened(path)
    part = array.part(50, 100)
    array[:]
    change(path)
    for reads in (array, part):
        with pytest.raises(OSError, match=f"numbers has changed since it was opened{sizes}; a te"):
            reads[:3]
        with pytest.raises(OSError, match="has changed"):
            np.asarray(reads)
        with pytest.raises(OSError, match="has changed"):
            reads.rows(np.array([30]), 4)


def test_a_file_that_is_replaced_or_removed_is_read_as_it_was(path: Path) -> None:
    array = opened(path)
    other = path.with_name("other")
    other.write_bytes(b"")
    os.replace(other, path)
    np.testing.assert_array_equal(array, np.arange(100))
    path.unlink()
    np.testing.assert_array_equal(array, np.arange(100))


def test_the_file_is_closed_with_the_last_part(path: Path) -> None:
    array = opened(path)
    file, part = array._file._file, array.part(0, 5)
    del array
    assert not file.closed
    del part
    assert file.closed


@pytest.mark.parametrize("named", [True, False], ids=["named", "temporary"])
@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda array: pickle.loads(pickle.dumps(array))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_outlive_the_original(
    path: Path, named: bool, copied: Callable[[FileArray], FileArray]
) -> None:
    """The number of a descriptor would be another file's by then."""
    with open(path, "rb") as file:
        array = FileArray(file.fileno(), np.uint16, str(path) if named else None).part(10, 30)
    other = copied(array)
    del array
    with open(os.devnull, "rb"):
        np.testing.assert_array_equal(other, np.arange(10, 30))
    assert other.dtype == np.uint16 and np.array_equal(other.part(1, 3), [11, 12])


def test_a_pickle_by_path_works_from_another_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    data = pickle.dumps(opened(Path(path.name)))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    np.testing.assert_array_equal(pickle.loads(data), np.arange(100))
    os.truncate(path, 40)
    with pytest.raises(OSError, match="has changed since what reads from it was pickled"):
        pickle.loads(data)

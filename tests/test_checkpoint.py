"""Checkpoint files: written atomically, and read only if intact."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from charrnn_fast.storage import checkpoint
from charrnn_fast.storage.checkpoint import CheckpointError

CONFIG: dict[str, Any] = {"name": "a\u00e9\ud800", "rate": 0.1, "list": [1, None, {"x": True}]}


def tensors() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    return {
        "weight": rng.normal(size=(3, 5)).astype(np.float32).T,  # not contiguous
        "wide": rng.normal(size=4),
        "ids": np.array([0, 0x10FFFF, 0xD800], np.int32),
        "none": np.zeros((2, 0), np.float32),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    checkpoint.write(file, tensors(), CONFIG)
    return file


def test_what_is_written_is_read(path: Path) -> None:
    read, config = checkpoint.read(path)
    assert config == CONFIG
    assert read.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert read[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read[name], tensor)


def test_any_safetensors_reader_opens_it(path: Path) -> None:
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["weight"], tensors()["weight"])


def test_equal_contents_give_equal_files(path: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.path[:0] = sys.argv[2].split('|'); from test_checkpoint import *;"
        "checkpoint.write(sys.argv[1], dict(reversed(tensors().items())), CONFIG)"
    )
    other = tmp_path / "other.safetensors"
    paths = "|".join([os.path.dirname(__file__), *sys.path])
    subprocess.run([sys.executable, "-c", program, other, paths], check=True)
    assert other.read_bytes() == path.read_bytes()


def test_every_truncation_is_found(path: Path) -> None:
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            checkpoint.read(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError):
        checkpoint.read(path)


@pytest.mark.slow
def test_no_flipped_bit_changes_what_is_read(path: Path) -> None:
    data = path.read_bytes()
    found = 0
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            try:
                read, config = checkpoint.read(path)
            except CheckpointError:
                found += 1
            else:  # a few leave the meaning as it was, as "\u00e9" to "\u00E9" does
                assert config == CONFIG
                assert {name: t.tobytes() for name, t in read.items()} == {
                    name: t.tobytes() for name, t in tensors().items()
                }
    assert found >= 8 * len(data) - 8


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"First Citizen:\nBefore we proceed any further, hear me speak.\n",
        b"\x02" + bytes(7) + b"{}",
        b"\x02" + bytes(7) + b"[]",
        b"\x04" + bytes(7) + b"null",
        b"\xff" * 64,
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        safetensors.numpy.save({"a": np.zeros(3)}),
        safetensors.numpy.save({"a": np.zeros(3)}, {"format": "pt"}),
        safetensors.numpy.save({"a": np.zeros(3)}, {"charrnn_fast": "no JSON"}),
        safetensors.numpy.save({"a": np.zeros(3)}, {"charrnn_fast": "[]"}),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="foreign"):
        checkpoint.read(path)


def test_another_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "newer"
    header = json.dumps({"format": 2, "sha256": "", "config": {}})
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(3)}, {"charrnn_fast": header}))
    with pytest.raises(
        CheckpointError, match="format 2, and this version of charrnn_fast reads formats up to 1"
    ):
        checkpoint.read(path)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        checkpoint.read(tmp_path / "missing")


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    for umask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        (tmp_path / "model").unlink(missing_ok=True)
        before = os.umask(umask)
        try:
            checkpoint.write(tmp_path / "model", tensors(), CONFIG)
        finally:
            os.umask(before)
        assert (tmp_path / "model").stat().st_mode & 0o777 == mode


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "latest"
    link.symlink_to(path)
    checkpoint.write(link, {}, {"new": True})
    assert link.is_symlink()
    assert checkpoint.read(path)[1] == {"new": True}


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        with pytest.raises(type(error)):
            checkpoint.write(path, {"weight": np.zeros(9)}, CONFIG)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_killed_process_leaves_a_whole_file(path: Path) -> None:
    program = (
        "import sys; sys.path[:0] = sys.argv[2].split('|'); from test_checkpoint import *;\n"
        "big = {'weight': np.ones(1 << 20)}\n"
        "print('ready', flush=True)\n"
        "while True: checkpoint.write(sys.argv[1], big, CONFIG)"
    )
    paths = "|".join([os.path.dirname(__file__), *sys.path])
    for pause in (0.0, 0.01, 0.03):
        with subprocess.Popen(
            [sys.executable, "-c", program, path, paths], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(pause)
            process.kill()
        read, config = checkpoint.read(path)
        assert config == CONFIG
        assert read.keys() in (tensors().keys(), {"weight"})


def test_errors_name_the_path_that_was_given(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "a temporary file")

    write, check = (
        lambda: checkpoint.write(path, {}, CONFIG),
        lambda: checkpoint.check_writable(path),
    )
    calls: list[tuple[str, Callable[[], None]]] = [
        ("os.replace", write),
        ("os.fsync", write),
        ("os.fsync", check),
        ("os.rmdir", check),
    ]
    for name, call in calls:
        with monkeypatch.context() as patch:
            patch.setattr(name, fail)
            with pytest.raises(OSError, match="No space left on device") as raised:
                call()
        assert raised.value.errno == 28
        assert raised.value.filename == str(path)
    for bad in (tmp_path, tmp_path / "no" / "model", path / "model"):
        with pytest.raises(OSError, match="fold") as raised:
            checkpoint.write(bad, {}, CONFIG)
        assert raised.value.filename == str(bad)


def test_a_file_that_is_no_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("years of work")
    with pytest.raises(FileExistsError, match="no checkpoint; it is not overwritten"):
        checkpoint.write(file, tensors(), CONFIG)
    assert file.read_text() == "years of work"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_replace_a_checkpoint(path: Path, value: float) -> None:
    before = path.read_bytes()
    bad = {**tensors(), "wide": np.array([1, value])}
    with pytest.raises(FloatingPointError, match="wide is no longer finite; no checkpoint is wri"):
        checkpoint.write(path, bad, CONFIG)
    assert path.read_bytes() == before


def test_values_that_json_lacks_are_refused(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.write(path, {}, {"rate": float("nan")})
    assert path.read_bytes() == before


def test_writable_paths_pass_and_stay_untouched(path: Path) -> None:
    before = path.read_bytes()
    checkpoint.check_writable(path)
    checkpoint.check_writable(path.parent / "new")
    (path.parent / "empty").touch()
    checkpoint.check_writable(path.parent / "empty")
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == ["empty", path.name]


def test_unwritable_paths_are_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a text that must not be lost, however long it is")
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        checkpoint.check_writable(tmp_path / "missing" / "model")
    with pytest.raises(NotADirectoryError, match="its folder is a file"):
        checkpoint.check_writable(tmp_path / "file" / "model")
    with pytest.raises(IsADirectoryError, match="this is a folder"):
        checkpoint.check_writable(tmp_path)
    with pytest.raises(FileExistsError, match="no checkpoint; it is not overwritten"):
        checkpoint.check_writable(tmp_path / "file")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
def test_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "model"
    checkpoint.write(path, {"w": np.zeros(3)}, {})
    path.chmod(0o600)
    checkpoint.write(path, {"w": np.ones(3)}, {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

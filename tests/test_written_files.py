"""Output files: errors before any work, and what survives a failure."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import resource
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charrnn_fast import CharLM, Corpus, Trainer
from charrnn_fast.callbacks import Callback, Evaluation, Update
from charrnn_fast.cli import main
from charrnn_fast.log import JsonLog, TensorBoardLog
from charrnn_fast.storage import atomic_file, checkpoint
from charrnn_fast.training import log, plot
from charrnn_fast.training.resume import best_path
from marks import slow_but

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20  # 6 steps an epoch, as below
SMALL = ["--hidden-size", "8", "--num-layers", "1", "--batch-size", "6", "--seq-len", "20"]
NOBODY = 65534
COMMAND = [sys.executable, "-m", "charrnn_fast"]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to be several users")


def make(*callbacks: Callback, **options: Any) -> Trainer:
    corpus = Corpus.from_text(TEXT)
    model = CharLM(corpus.vocabulary, 8, 1, seed=1)
    options = {"callbacks": callbacks, "sample_length": 0, **options}
    return Trainer(model, corpus, 6, 20, **options)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of a training."""
    path = tmp_path_factory.mktemp("run") / "run.jsonl"
    make(JsonLog(path)).fit(steps=3, progress=False)
    return path


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that every user may write to, as /tmp is."""
    path = Path(tempfile.mkdtemp(prefix="charrnn_fast-"))
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path)


@contextmanager
def as_nobody() -> Iterator[None]:
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


# ---- what is no regular file ---------------------------------------------------------------


def node(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server, chdir(path.parent):  # names are short
            server.bind(path.name)
    else:
        mode = stat.S_IFCHR if kind == "character device" else stat.S_IFBLK
        try:
            os.mknod(path, mode | 0o666, os.makedev(1, 3) if mode == stat.S_IFCHR else 0)
        except PermissionError:
            pytest.skip("this user may not make devices")


@contextmanager
def chdir(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def trained_best(path: Path) -> None:
    """A training whose best checkpoint would be at path."""
    make(checkpoint_path=path.with_name(path.name.replace(".best", "")))


IN_PYTHON: dict[str, Callable[[Path], object]] = {
    "CharLM.save": lambda path: make().model.save(path),
    "Trainer.save": lambda path: make().save(path),
    "Trainer": lambda path: make(checkpoint_path=path),
    "the best": trained_best,
    "JsonLog": JsonLog,
}
# What stands for the path that is written to; models and texts that are not there: before any work.
COMMANDS = {
    "train -o": "train TEXT -o PATH",
    "train -o --resume": "train -o PATH --resume",
    "train --overwrite": "train TEXT -o PATH --overwrite",
    "train, the best": "train TEXT -o LAST",
    "train --log": "train TEXT -o FOLDER/other --log PATH",
    "view": "view FOLDER/none FOLDER/none -o PATH",
    "plot": "plot FOLDER/none -o PATH",
    "bench --json": "bench gemm --json PATH",
    "bench --markdown": "bench gemm --markdown PATH",
}
KINDS = ["folder", "character device", "block device", "pipe", "socket"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("linked", [False, True])
def test_nothing_but_regular_files_is_replaced(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], kind: str, linked: bool
) -> None:
    there = path = tmp_path / "x.best.png"
    if linked:
        there = tmp_path / "elsewhere"
        path.symlink_to("elsewhere")
    node(there, kind)
    before, names = there.lstat(), sorted(os.listdir(tmp_path))
    message = f"this is a {kind}, not a file"
    for name, write in IN_PYTHON.items():
        with pytest.raises(OSError, match=message) as raised:
            write(path)
        assert raised.value.filename == str(path), name
    for command in COMMANDS.values():
        words = {"PATH": path, "TEXT": text, "LAST": tmp_path / "x.png"}
        arguments = [str(words.get(word, word)) for word in command.split()]
        arguments = [word.replace("FOLDER", str(tmp_path)) for word in arguments]
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"charrnn-fast: error: {path}: {message}"), command
    assert os.path.samestat(there.lstat(), before)
    assert there.lstat() == before
    assert sorted(os.listdir(tmp_path)) == names


def test_pictures_of_a_benchmark_replace_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "gemm.svg")
    assert main(["bench", "gemm", "--plots", str(tmp_path)]) == 2
    assert "gemm.svg: this is a pipe, not a file" in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe")
    assert main(["bench", "gemm", "--plots", str(tmp_path / "pipe")]) == 2
    assert "pipe is a file, not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["character device", "pipe", "folder"])
@pytest.mark.parametrize("write", ["checkpoint", "picture"])
def test_a_file_that_becomes_something_else_meanwhile_is_not_replaced(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, kind: str, write: str
) -> None:
    path = tmp_path / "x.png"
    if write == "checkpoint":
        checkpoint.write(path, {"w": np.zeros(3)}, {})
    fsync = os.fsync

    def change(descriptor: int) -> None:
        fsync(descriptor)
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode) and kinds:
            path.unlink(missing_ok=True)
            node(path, kinds.pop())

    kinds = [kind]
    save: Callable[[], None] = lambda: checkpoint.write(path, {"w": np.ones(3)}, {})  # noqa: E731
    if write == "picture":
        save = lambda: plot.curves([run], path)  # noqa: E731
        monkeypatch.setattr(atomic_file, "check", lambda path: None)  # it comes before that
    monkeypatch.setattr(os, "fsync", change)
    with pytest.raises(OSError, match=f"this is a {kind}, not a file"):
        save()
    assert not kinds
    assert not path.is_file()
    assert os.listdir(tmp_path) == ["x.png"]


def test_links_count_as_what_they_point_to(tmp_path: Path) -> None:
    def save(path: Path) -> None:
        checkpoint.check_writable(path)
        checkpoint.write(path, {"w": np.ones(3)}, {})

    (tmp_path / "folder").mkdir()
    dangling = tmp_path / "dangling"
    dangling.symlink_to("folder/model")
    save(dangling)
    assert dangling.is_symlink()
    assert os.listdir(tmp_path / "folder") == ["model"]
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    lost = tmp_path / "lost"
    lost.symlink_to("missing/model")
    for path, message in (
        (tmp_path / "a", "Too many levels of symbolic links"),
        (tmp_path / "a" / "model", "Too many levels of symbolic links"),
        (lost, "its folder does not exist"),
    ):
        for call in (save, JsonLog, lambda path: make(checkpoint_path=path)):
            with pytest.raises(OSError, match=message):
                call(path)
    assert (tmp_path / "a").is_symlink()
    with pytest.raises(IsADirectoryError, match="this names a folder, not a file"):
        checkpoint.check_writable(f"{tmp_path}/new/")
    # one file cannot be the last checkpoint and the best one
    model = tmp_path / "m"
    (tmp_path / "m.best").symlink_to("m")
    with pytest.raises(ValueError, match=r"m\.best, for the best checkpoint, is a link to .*m;"):
        make(checkpoint_path=model)


def test_open_files_are_not_replaced(tmp_path: Path) -> None:
    """As /dev/stdout may be: what is printed would be lost with the old file."""
    with (tmp_path / "out").open("w") as file:
        for name in (f"/dev/fd/{file.fileno()}", f"/proc/self/fd/{file.fileno()}"):
            link = tmp_path / "link"
            link.symlink_to(name)
            for path in (Path(name), link):
                for call in (checkpoint.check_writable, JsonLog):
                    with pytest.raises(OSError, match="this names an open file; name the file it"):
                        call(path)
            link.unlink()
    assert (tmp_path / "out").read_bytes() == b""


# ---- what is checked before any work -------------------------------------------------------


def test_names_may_be_as_long_as_the_file_system_takes_them(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    name = "m" * (longest - 5)
    train = ["train", str(text), "--steps", "2", *SMALL, "--log", str(tmp_path / "log"), "-o"]
    assert main([*train, str(tmp_path / name)]) == 0
    assert sorted(os.listdir(tmp_path)) == ["log", name, f"{name}.best"]
    (tmp_path / "log").unlink()
    capsys.readouterr()
    path = f"{tmp_path / name}m"
    assert main([*train, path]) == 2
    assert capsys.readouterr() == ("", f"charrnn-fast: error: {path}.best: File name too long\n")
    assert main(["train", str(text), "-o", str(tmp_path / "o"), "--log", f"{path}mmmmm"]) == 2
    assert "File name too long" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == [name, f"{name}.best"]


@needs_root
def test_other_users_files_are_in_nobodys_way(common: Path) -> None:
    """Their files of any name that could be predicted, and, refused, their checkpoints."""
    path = common / "model"
    before = checkpoint_of(path)
    for name in (".model.new", ".model.tmp", ".model.lock"):
        (common / name).mkdir()
    atomic_file.Lock(path, "").close()
    with as_nobody():
        with pytest.raises(PermissionError, match="read-only"):
            checkpoint.check_writable(path)
        path.with_name("other").touch()
        make(checkpoint_path=common / "mine").fit(steps=2, progress=False)
    path.chmod(0o666)
    with as_nobody():
        # it may be written to, but in a sticky folder only its owner replaces it
        for check in (checkpoint.check_writable, lambda path: make(checkpoint_path=path)):
            with pytest.raises(PermissionError, match="Operation not permitted") as raised:
                check(path)
            assert raised.value.filename == str(path)
    assert path.read_bytes() == before
    # a lock that another user's killed training has left keeps nobody out
    lock = Path(atomic_file.Lock(common / "mine", "")._name)
    lock.chmod(0o644)
    with as_nobody(), pytest.raises(BlockingIOError, match="saves to this file"):
        make(checkpoint_path=common / "mine").fit(steps=2, progress=False)


def checkpoint_of(path: Path) -> bytes:
    checkpoint.write(path, {"w": np.zeros(3)}, {})
    return path.read_bytes()


@needs_root
def test_a_file_that_is_mounted_by_itself_is_refused(tmp_path: Path) -> None:
    """As containers have them: a rename onto it is not possible."""
    path = tmp_path / "a model"
    checkpoint_of(path)
    (tmp_path / "source").touch()
    mount = ["mount", "--bind", str(tmp_path / "source"), str(path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount")
    try:
        with pytest.raises(OSError, match="mounted by itself") as raised:
            checkpoint.check_writable(path)
        assert raised.value.errno == errno.EBUSY
        with pytest.raises(OSError, match="busy"):  # which is what a save would come to
            checkpoint.write(path, {}, {})
    finally:
        subprocess.run(["umount", str(path)], check=True)
    checkpoint.check_writable(path)


def test_a_folder_that_cannot_be_made_is_told(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboardX")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotADirectoryError, match="this is a pipe, not a folder"):
        TensorBoardLog(tmp_path / "pipe" / "deep" / "board")
    with pytest.raises(OSError, match="board"):
        TensorBoardLog("/proc/board")
    TensorBoardLog(tmp_path / "deep" / "board")
    assert os.listdir(tmp_path) == ["pipe"]
    train = ["train", str(text), "-o", str(tmp_path / "m"), "--tensorboard", "/proc/board"]
    assert main(train) == 2
    assert capsys.readouterr().out == ""


def test_a_file_system_that_syncs_no_folders_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    checkpoint.write(tmp_path / "model", {"w": np.zeros(3)}, {})
    assert os.listdir(tmp_path) == ["model"]


# ---- owners and permissions ----------------------------------------------------------------


@needs_root
def test_a_file_keeps_its_owner(common: Path) -> None:
    path = common / "model"
    checkpoint_of(path)
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o640)
    checkpoint.write(path, {"w": np.ones(3)}, {})
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY, NOBODY, 0o640)
    # who may not give it away owns it, and another group gets no more than all others
    common.chmod(0o777)
    os.chown(path, 0, 0)
    path.chmod(0o666 & ~0o002 | 0o070)
    assert stat.S_IMODE(path.stat().st_mode) == 0o674
    path.chmod(0o676)
    with as_nobody():
        checkpoint.write(path, {"w": np.ones(3)}, {})
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY, NOBODY, 0o666)


@pytest.mark.skipif(sys.platform != "linux", reason="access control lists of Linux")
def test_a_file_keeps_its_access_control_list(tmp_path: Path) -> None:
    path = tmp_path / "model"
    checkpoint_of(path)
    name, nobody = "system.posix_acl_access", 0xFFFFFFFF
    # owner rw, the user 1 r, group none, mask r, others none
    rights = [(1, 6, nobody), (2, 4, 1), (4, 0, nobody), (16, 4, nobody), (32, 0, nobody)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in rights)
    try:
        os.setxattr(path, name, acl)
    except OSError:
        pytest.skip("this file system has no access control lists")
    checkpoint.write(path, {"w": np.ones(3)}, {})
    assert os.getxattr(path, name) == acl


# ---- several writers -----------------------------------------------------------------------


@pytest.mark.parametrize("unnamed", [True, False])
def test_saves_of_threads_to_one_path_all_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    """With files without a name, and on systems that have none."""
    if not unnamed:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    path, errors, go = tmp_path / "model", [], threading.Barrier(6)

    def save(number: int) -> None:
        go.wait()
        try:
            for _ in range(25):
                checkpoint.write(path, {"w": np.full(5000, number)}, {"number": number})
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=save, args=[number]) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    tensors, config = checkpoint.read(path)
    assert set(tensors["w"]) == {config["number"]}
    assert os.listdir(tmp_path) == ["model"]


SAVES = """
import sys
import numpy as np
from charrnn_fast.storage import checkpoint
print("ready", flush=True)
sys.stdin.readline()
for _ in range(50):
    checkpoint.write(sys.argv[1], {"w": np.full(5000, 1)}, {})
"""


def test_saves_of_processes_to_one_path_all_succeed(tmp_path: Path) -> None:
    path = tmp_path / "model"
    command = [sys.executable, "-c", SAVES, str(path)]
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen(command, **options) for _ in range(3)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate("\n", timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert checkpoint.read(path)[0]["w"][0] == 1
    assert os.listdir(tmp_path) == ["model"]


def test_litter_goes_and_a_save_that_is_at_work_is_left_alone(tmp_path: Path) -> None:
    path, other = tmp_path / "model", tmp_path / "other"
    with atomic_file._new_file(str(path), [b"at work"]) as working:
        dead = working.replace(working[-20:-4], "0" * 16)
        theirs = atomic_file._hidden(str(other), f".{'0' * 16}.new")
        foreign = atomic_file._hidden(str(path), ".notes.new")
        for name in (dead, theirs, foreign):
            Path(name).write_bytes(b"")
        os.mkfifo(pipe := working.replace(working[-20:-4], "1" * 16))
        tidying: list[Callable[[], None]] = [
            lambda: atomic_file.remove_litter(path),
            lambda: checkpoint.check_writable(path),
            lambda: make().model.save(path),
        ]
        for tidy in tidying:
            Path(dead).write_bytes(b"")
            tidy()
            assert not os.path.exists(dead)
            assert os.path.exists(working)
            assert os.path.exists(theirs) and os.path.exists(foreign) and os.path.exists(pipe)
    assert not os.path.exists(working)


# ---- one training at a time ----------------------------------------------------------------

TRAINS = """
import sys
from charrnn_fast.callbacks import Callback
from charrnn_fast import Corpus, CharLM, Trainer
class Wait(Callback):
    def updated(self, trainer, update):
        if update.step == 7:
            print("ready", flush=True)
            sys.stdin.read()
corpus = Corpus.from_text({text!r})
model = CharLM(corpus.vocabulary, 8, 1)
trainer = Trainer(model, corpus, 6, 20, checkpoint_path=sys.argv[1], callbacks=[Wait()])
trainer.fit(steps=8, progress=False)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
def test_an_output_is_of_one_training_at_a_time(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, best = tmp_path / "m.x", tmp_path / "m.best.x"
    link = tmp_path / "link"
    link.symlink_to("m.x")
    dangling = tmp_path / "new"
    dangling.symlink_to("m.best.x")
    program = TRAINS.format(text=TEXT)
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program, str(path)], **options) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        before = path.read_bytes()
        for output, extra in (
            (path, [str(text), "--overwrite"]),
            (path, ["--resume"]),
            (link, [str(text), "--overwrite"]),
            (best, [str(text), "--overwrite"]),
            (dangling, [str(text), "--overwrite"]),
        ):
            where = ["--log", str(tmp_path / "other.jsonl")]
            assert main(["train", "-o", str(output), *extra, *where, *SMALL]) == 2
            printed, error = capsys.readouterr()
            assert printed == ""
            assert error.endswith(f"{output}: a running training saves to this file\n")
        trainers = [make(checkpoint_path=link), make(checkpoint_path=best)]
        trainers.append(Trainer.resume(path, Corpus.from_text(TEXT), checkpoint_path=path))
        for trainer in trainers:
            with pytest.raises(BlockingIOError, match="a running training saves to this file"):
                trainer.fit(steps=1, progress=False)
        assert path.read_bytes() == before
        process.kill()
    # a killed training keeps nobody out, and what it has left goes with the next one
    assert len(list(tmp_path.glob(".charrnn_fast-*.lock"))) == 2
    trainers[-1].fit(steps=2, progress=False)
    assert Trainer.resume(path).num_steps == 8
    assert list(tmp_path.glob(".*")) == []


def test_the_best_checkpoint_of_one_is_not_the_output_of_another(tmp_path: Path) -> None:
    class Another(Callback):
        def updated(self, trainer: Trainer, update: Update) -> None:
            with pytest.raises(BlockingIOError, match=r"m\.best: a running training|m\.best"):
                another.fit(steps=1, progress=False)
            told.append(update.step)

    told: list[int] = []
    another = make(checkpoint_path=tmp_path / "m")
    make(Another(), checkpoint_path=tmp_path / "m.best").fit(steps=2, progress=False)
    assert told == [1, 2]
    another.fit(steps=1, progress=False)  # it is free again


def test_locks_are_exclusive_and_leave_nothing(tmp_path: Path) -> None:
    """Many threads at once, each of which takes and gives back: never two have it."""
    path, holders, most, taken = tmp_path / "model", [0], [0], [0]
    guard = threading.Lock()

    def work() -> None:
        for _ in range(200):
            with suppress(BlockingIOError), closing(atomic_file.Lock(path, "in use")):
                with guard:
                    holders[0] += 1
                    taken[0] += 1
                    most[0] = max(most[0], holders[0])
                with guard:
                    holders[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert taken[0] >= 200
    assert os.listdir(tmp_path) == []


def test_a_lock_may_be_given_back_while_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened is then no file any more, and its lock would keep nobody out."""
    path, flock = tmp_path / "model", fcntl.flock
    first = [atomic_file.Lock(path, "in use")]

    def wait(descriptor: int, operation: int) -> None:
        if first:
            first.pop().close()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", wait)
    with closing(atomic_file.Lock(path, "in use")):
        with pytest.raises(BlockingIOError, match="in use"):
            atomic_file.Lock(path, "in use")
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == []


FORKS = """
import os, sys
from charrnn_fast.storage import atomic_file
lock = atomic_file.Lock(sys.argv[1], "in use")
if os.fork() == 0:
    lock.close()
    os._exit(0)
os.wait()
try:
    atomic_file.Lock(sys.argv[1], "in use")
except BlockingIOError:
    print("kept")
lock.close()
"""


def test_a_forked_child_does_not_give_a_lock_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKS, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("kept\n", "")
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    path = tmp_path / "model"
    dead = Path(atomic_file._hidden(str(path), f".{'0' * 16}.new"))
    dead.touch()
    make(JsonLog(tmp_path / "log"), checkpoint_path=path).fit(steps=1, progress=False)
    # whether a save is at work cannot be told there, and what one has left stays
    assert sorted(os.listdir(tmp_path)) == sorted(["log", "model", "model.best", dead.name])


# ---- full disks ----------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can grow beyond a size meanwhile, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("ending", slow_but(["png"], ["png", "svg", "pdf"]))
def test_a_picture_on_a_full_disk_leaves_the_old_one(
    tmp_path: Path, run: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"curve.{ending}"
    plot.curves([run], path)
    before = path.read_bytes()
    with largest_file(1000):
        assert main(["plot", str(run), "-o", str(path)]) == 2
    assert capsys.readouterr().err == f"charrnn-fast: error: {path}: File too large\n"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB, which can be filled."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "charrnn_fast", str(path)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(folder: Path) -> None:
    with suppress(OSError), (folder / "filling").open("ab", buffering=0) as file:
        while file.write(bytes(1024)):
            pass


def test_a_full_disk_leaves_all_files_and_says_what_is_saved(
    disk: Path, text: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, page, picture = (disk / name for name in ("m.x", "page.html", "p.svg"))
    train = ["train", "-o", str(model), "--epochs", "1", *SMALL]
    assert main([*train, str(text)]) == 0
    view = ["view", str(model), str(text), "-o", str(page), "--length", "100"]
    draw = ["plot", str(run), "-o", str(picture)]
    assert main(view) == main(draw) == 0
    lines = (disk / "m.x.jsonl").read_bytes()
    before = {path.name: path.read_bytes() for path in (model, page, picture, disk / "m.best.x")}
    fill(disk)
    capsys.readouterr()
    full = "No space left on device"
    for command, path in ((view, page), (draw, picture)):
        assert main(command) == 2
        assert capsys.readouterr().err == f"charrnn-fast: error: {path}: {full}\n"
    again = ["train", "-o", str(model), "--resume", "--epochs", "3"]
    assert main(again) == 2
    assert capsys.readouterr().err.startswith(f"charrnn-fast: error: {disk}/m.")
    assert {name: (disk / name).read_bytes() for name in before} == before
    assert (disk / "m.x.jsonl").read_bytes() == lines
    assert set(os.listdir(disk)) == {*before, "filling", "m.x.jsonl"}
    (disk / "filling").unlink()
    assert main(again) == 0
    assert Trainer.resume(model).num_steps == 18


class Fill(Callback):
    """Lets the disk be full from a step on."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._step = folder, step

    def updated(self, trainer: Trainer, update: Update) -> None:
        if update.step == self._step:
            fill(self._folder)


def test_a_disk_that_fills_at_a_later_save_ends_the_training(disk: Path) -> None:
    path = disk / "model"
    options: dict[str, Any] = {"checkpoint_path": path, "checkpoint_every": 2}
    trainer = make(Fill(disk, 5), **options)
    with pytest.raises(OSError, match=r"No space left on device; .*model holds step 4: .*best'"):
        trainer.fit(steps=8, progress=False)
    assert Trainer.resume(path).num_steps == 4
    # nothing of it is lost: it goes on in the same process, and elsewhere
    assert trainer.num_steps == 6
    trainer.save(disk.parent / "saved")
    (disk / "filling").unlink()
    trainer.fit(steps=2, progress=False)
    straight = make(checkpoint_path=disk.parent / "straight")
    straight.fit(steps=8, progress=False)
    assert weights(Trainer.resume(path)) == weights(straight)


def weights(trainer: Trainer) -> list[bytes]:
    return [w.tobytes() for w in trainer.model.rnn.parameters().values()]


@pytest.mark.parametrize("kind", ["json", "tensorboard"])
def test_a_log_on_a_full_disk_loses_no_update(disk: Path, tmp_path: Path, kind: str) -> None:
    """The log's error ends the training, with a checkpoint of all that was done."""
    path = tmp_path / "model"
    if kind == "json":
        keeper: Callback = JsonLog(disk / "log", 1)
    else:
        pytest.importorskip("tensorboardX")
        keeper = TensorBoardLog(disk / "board")
    trainer = make(Fill(disk, 7), keeper, checkpoint_path=path)
    with pytest.raises(OSError, match=r"No space left on device; .*model holds step") as raised:
        trainer.fit(steps=6000, progress=False)
    # its last page had room for some lines more
    done = trainer.num_steps
    assert 7 <= done < 6000
    assert f"model holds step {done}: " in str(raised.value)
    assert Trainer.resume(path).num_steps == done
    if kind == "json":
        (disk / "filling").unlink()
        entries = list(log.read(disk / "log"))
        assert [e["step"] for e in entries if e["type"] == "updates"] == list(range(1, done))
        corpus = Corpus.from_text(TEXT)
        again = Trainer.resume(path, corpus, callbacks=[JsonLog(disk / "log", 1)])
        again.fit(steps=1, progress=False)
        assert [e["step"] for e in log.read(disk / "log") if e["type"] == "updates"][-1] == done + 1


def test_a_line_that_does_not_fit_leaves_the_lines_before_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    trainer = make(JsonLog(path, 1), checkpoint_path=tmp_path / "model")

    class Limit(Callback):
        def updated(self, trainer: Trainer, update: Update) -> None:
            if update.step == 4:
                size = path.stat().st_size + 50  # there is room for a part of the next line
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer._callbacks = (*trainer._callbacks, Limit())
    try:
        with pytest.raises(OSError, match="File too large"):
            trainer.fit(steps=6, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes().endswith(b"}\n")
    assert [e["step"] for e in log.read(path) if e["type"] == "updates"] == [1, 2, 3, 4]


def test_a_folder_that_vanishes_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()

    class Vanish(Callback):
        def updated(self, trainer: Trainer, update: Update) -> None:
            if update.step == 3:
                shutil.rmtree(folder)

    trainer = make(Vanish(), checkpoint_path=folder / "m", checkpoint_every=2)
    message = r"its folder does not exist; .*models/m held step 2, and is gone"
    with pytest.raises(FileNotFoundError, match=message):
        trainer.fit(steps=6, progress=False)
    folder.mkdir()
    trainer.fit(steps=2, progress=False)
    assert Trainer.resume(folder / "m").num_steps == 6


def test_the_first_error_is_the_one_that_is_raised(tmp_path: Path) -> None:
    class Bad(Callback):
        def ended(self, trainer: Trainer) -> None:
            ended.append(self)
            raise RuntimeError("at the end")

    class Worse(Callback):
        def updated(self, trainer: Trainer, update: Update) -> None:
            raise OSError(errno.EIO, "at a step")

    ended: list[Bad] = []
    with pytest.raises(OSError, match="at a step") as raised:
        make(Bad(), Worse(), Bad()).fit(steps=2, progress=False)
    assert len(ended) == 2
    assert raised.value.__notes__ == ["then Bad.ended raised RuntimeError('at the end')"] * 2
    with pytest.raises(RuntimeError, match="at the end"):
        make(Bad()).fit(steps=2, progress=False)


# ---- starts that failed --------------------------------------------------------------------


def test_a_training_that_diverges_at_once_is_begun_again_as_it_says(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboardX")
    train = ["train", str(text), "-o", str(tmp_path / "m.x"), "--log-every", "1", "--steps", "6"]
    train += ["--tensorboard", str(tmp_path / "board"), *SMALL, "--cell", "rnn"]
    train += ["--optimizer", "sgd", "--clip-norm", "inf", "--learning-rate"]
    for _ in range(2):
        assert main([*train, "1e38"]) == 1
        error = capsys.readouterr().err
        assert "training has diverged: at step " in error
        assert "; no checkpoint has been written yet. Try a smaller --learning-rate\n" in error
        assert sorted(os.listdir(tmp_path)) == ["board", "m.x.jsonl"]
    assert main([*train, "1e-3"]) == 0
    entries = list(log.read(tmp_path / "m.x.jsonl"))
    assert [entry["type"] for entry in entries] == ["start", *["updates"] * 6, "evaluation",
                                                   "checkpoint"]  # fmt: skip
    assert entries[0]["settings"]["learning_rate"] == 1e-3
    assert (tmp_path / "m.x.jsonl").read_bytes().count(b'"start"') == 1


def test_a_later_divergence_names_what_to_go_on_from(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m"
    train = ["train", str(text), "-o", str(path), *SMALL, "--optimizer", "sgd", "--clip-norm"]
    assert main([*train, "inf", "--steps", "6"]) == 0
    resume = ["train", "-o", str(path), "--resume", "--steps", "12", "--learning-rate"]
    assert main([*resume, "1e38"]) == 1
    assert f"{path} holds step 6. Try a smaller --learning-rate\n" in capsys.readouterr().err
    assert main([*resume, "1e-3"]) == 0
    assert Trainer.resume(path).num_steps == 12


@pytest.mark.parametrize("reached", ["updates", "checkpoint", "evaluation", "a torn line"])
def test_a_log_blocks_a_start_only_where_there_was_a_model(
    tmp_path: Path, text: Path, reached: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a training that was killed, and whose checkpoint, if there was one, is gone."""
    path, run = tmp_path / "m", tmp_path / "m.jsonl"
    trainer = make(JsonLog(run, 1), checkpoint_path=path, checkpoint_every=2, evaluate_every=3)
    trainer.fit(steps=3, progress=False)
    for file in (path, Path(best_path(path))):
        file.unlink()
    lines = run.read_bytes().splitlines(keepends=True)
    kinds = [json.loads(line)["type"] for line in lines]
    assert kinds == ["start", "updates", "updates", "checkpoint", "updates", "evaluation"]
    kept = {"updates": lines[:3], "checkpoint": lines[:4], "evaluation": [*lines[:3], lines[5]]}
    run.write_bytes(b"".join(kept.get(reached, [lines[0][:100]])))
    before = run.read_bytes()
    train = ["train", str(text), "-o", str(path), "--steps", "2", *SMALL]
    status = main(train)
    error = capsys.readouterr().err
    if reached in ("checkpoint", "evaluation"):
        assert status == 2
        assert f"{run} exists, of another training; --overwrite replaces it" in error
        assert run.read_bytes() == before
    else:
        assert status == 0, error
        assert [e["type"] for e in log.read(run)][-2:] == ["evaluation", "checkpoint"]


def test_tensorboard_shows_the_last_of_two_starts(tmp_path: Path) -> None:
    """Each has a file of its own, also within one second, that hides the steps behind its start."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")

    def starts(file: Path) -> list[int]:
        data, at, found = file.read_bytes(), 0, []
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            if event.session_log.status == event_pb2.SessionLog.START:
                found.append(event.step)
            at += 16 + size
        return found

    trainer = make(TensorBoardLog(tmp_path))
    for _ in range(3):
        trainer.fit(steps=2, progress=False)
    assert [starts(file) for file in sorted(tmp_path.iterdir())] == [[1], [3], [5]]


def test_tensorboard_takes_half_a_character(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    keeper = TensorBoardLog(tmp_path)
    trainer = make()
    keeper.started(trainer, 1)
    keeper.evaluated(trainer, Evaluation(1, 0.5, 2.0, 2.0, 0.1), "half \ud800 a character")
    keeper.ended(trainer)
    (file,) = tmp_path.iterdir()
    assert b"half ? a character" in file.read_bytes()


# ---- logs to standard error ----------------------------------------------------------------


def lines_of(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines() if line.startswith(b"{")]


@pytest.mark.parametrize("where", slow_but(["terminal"], ["pipe", "file", "terminal", "fifo"]))
@pytest.mark.parametrize("name", ["/dev/stderr"])
def test_a_log_goes_to_standard_error(tmp_path: Path, text: Path, where: str, name: str) -> None:
    command = [*COMMAND, "train", str(text), "-o", "m", "--log", name, "--steps", "2", *SMALL]
    options: dict[str, Any] = {"cwd": tmp_path, "stdout": subprocess.DEVNULL}
    if where == "pipe":
        data = subprocess.run(command, **options, stderr=subprocess.PIPE, check=True).stderr
    elif where == "file":
        errors = tmp_path / "errors"
        errors.write_text("what was there\n")
        with errors.open("ab") as file:
            subprocess.run(command, **options, stderr=file, check=True)
            again = ["train", "-o", "m", "--resume", "--steps", "4"]  # the log stays where it was
            subprocess.run([*COMMAND, *again], **options, stderr=file, check=True)
        data = errors.read_bytes()
        assert data.startswith(b"what was there\n")
        assert [e["type"] for e in lines_of(data)[4:]] == ["start", "resume", "updates",
                                                          "evaluation"]  # fmt: skip
    else:
        if where == "terminal":
            reading, writing = pty.openpty()
        else:
            os.mkfifo(tmp_path / "fifo")
            reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
            writing = os.open(tmp_path / "fifo", os.O_WRONLY)
            os.set_blocking(reading, True)
        parts: list[bytes] = []

        def read() -> None:
            with suppress(OSError):  # a terminal that nobody writes to any more
                while part := os.read(reading, 65536):
                    parts.append(part)

        reader = threading.Thread(target=read)
        reader.start()
        subprocess.run(command, **options, stderr=writing, check=True)
        os.close(writing)
        reader.join()
        os.close(reading)
        data = b"".join(parts)
    if where == "terminal":  # where the bar has no line of its own
        data = data.replace(b'{"type"', b'\n{"type"')
    kinds = [entry["type"] for entry in lines_of(data)]
    assert kinds[:4] == ["start", "updates", "evaluation", "checkpoint"]
    written = {"m", "m.best"} | ({"errors"} if where == "file" else set())
    assert {path.name for path in tmp_path.iterdir()} - {"fifo"} == written


def test_a_link_to_standard_error_will_do_and_a_closed_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "log"
    link.symlink_to("/dev/stderr")
    for path in (link, "/dev/fd/2", "/proc/self/fd/2", f"/proc/{os.getpid()}/fd/2"):
        assert atomic_file.is_standard_error(path)
    assert not atomic_file.is_standard_error("/dev/stdout")
    assert not atomic_file.is_standard_error(tmp_path / "other")
    make(JsonLog(link)).fit(steps=1, progress=False)
    assert lines_of(capfd.readouterr().err.encode())[0]["type"] == "start"
    monkeypatch.setattr(sys, "__stderr__", None)
    with pytest.raises(OSError, match="standard error is closed"):
        JsonLog(link)


def test_a_reader_of_the_log_that_goes_away_loses_no_update(tmp_path: Path, text: Path) -> None:
    command = [*COMMAND, "train", str(text), "-o", "m", "--log", "/dev/stderr", "--log-every", "1"]
    command += ["--epochs", "100000", *SMALL]
    options: dict[str, Any] = {"cwd": tmp_path, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(command, **options, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if b'"step": 7,' in line:
                break
        process.stderr.close()
        assert process.wait(60) == 2
    assert Trainer.resume(tmp_path / "m").num_steps >= 7

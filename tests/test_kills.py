"""Kills and failing disks: a checkpoint is the old or the new one, and training resumes exactly.

The tests of single system calls need strace (Debian's package).
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from charrnn_fast import CharLM, Corpus, Trainer
from charrnn_fast.storage import atomic_file, checkpoint
from marks import slow_but

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals"),
    pytest.mark.unsanitized("counts the system calls of a process"),
]
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

# No caches: a program that writes them makes other system calls than the next one.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(sys.path),
    "PYTHONDONTWRITEBYTECODE": "1",
}
NAME = "model.safetensors"

SAVE = """
import os, sys
import numpy as np
from charrnn_fast.storage import checkpoint
tensors = {"weight": np.full(1000, 2.0)}
os.access("/save-begins", os.F_OK)
try:
    checkpoint.write(sys.argv[1], tensors, {"value": 2})
    result = "saved"
except OSError as error:
    result = f"{error.errno} {error.filename}"
os.access("/save-ends", os.F_OK)
print(result)
"""


def save_under_strace(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    trace = path.parent.parent / "trace"
    command = ["strace", "-o", str(trace), *options, sys.executable, "-c", SAVE, str(path)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)


class Call(NamedTuple):
    """A system call: which of that name in the program, and what it is called with."""

    name: str
    number: int
    arguments: str


def calls_of_a_save(folder: Path) -> list[Call]:
    """The system calls of a save over an old file."""
    path = old_checkpoint(folder)
    assert save_under_strace(path).stdout == "saved\n"
    names = re.findall(r"^(\w+)\((.*)", (folder / "trace").read_text(), re.MULTILINE)
    counts: Counter[str] = Counter()
    calls, inside = [], False
    for name, arguments in names:
        counts[name] += 1
        if name == "access" and "/save-" in arguments:
            inside = "begins" in arguments
        elif inside:
            calls.append(Call(name, counts[name], arguments))
    return calls


def old_checkpoint(folder: Path) -> Path:
    """In a folder of its own, so that all that a save leaves can be seen."""
    path = folder / "models" / NAME
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    checkpoint.write(path, {"weight": np.ones(1000)}, {"value": 1})
    return path


@pytest.mark.slow
@needs_strace
def test_a_save_may_be_killed_at_each_system_call(tmp_path: Path) -> None:
    # Those that only look leave what the call before them did.
    looking = (
        "newfstatat",
        "fstat",
        "getcwd",
        "readlink",
        "access",
        "lseek",
        "ioctl",
        "getdents64",
    )
    calls = [call for call in calls_of_a_save(tmp_path) if call.name not in looking]
    names = [call.name for call in calls]
    assert {"write", "fsync", "linkat"} <= set(names)
    values, litter = [], []
    for name, number, _ in calls:
        path = old_checkpoint(tmp_path)
        killed = save_under_strace(path, f"--inject={name}:signal=SIGKILL:when={number}")
        assert killed.returncode != 0
        assert killed.stdout == ""
        tensors, config = checkpoint.read(path)
        assert set(tensors["weight"]) == {float(config["value"])}
        values.append(config["value"])
        litter.append(set(os.listdir(path.parent)) - {NAME})
        atomic_file.remove_litter(path)
        assert os.listdir(path.parent) == [NAME]
    assert values == sorted(values)  # the old one up to an instant, then the new one
    assert set(values) == {1, 2}
    # Only between the call that names the new file and the one that renames it is there another.
    named = [i for i, names in enumerate(litter) if names]
    pattern = r"\.charrnn_fast-[0-9a-f]{16}\.[0-9a-f]{16}\.new"
    assert all(re.fullmatch(pattern, name) for names in litter for name in names)
    assert {len(litter[i]) for i in named} == {1}
    assert set(named) <= set(range(names.index("linkat"), values.index(2) + 1))


@pytest.mark.slow
@needs_strace
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_a_failing_disk_leaves_the_old_file(tmp_path: Path, error: str) -> None:
    failing = ("openat", "write", "fsync", "linkat", "rename", "renameat", "renameat2")
    calls = [call for call in calls_of_a_save(tmp_path) if call.name in failing]
    told = []
    for name, number, arguments in calls:
        if "O_DIRECTORY" in arguments:  # to look for litter, which may stay
            continue
        path = old_checkpoint(tmp_path)
        done = save_under_strace(path, f"--inject={name}:error={error}:when={number}")
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
        assert done.stdout == f"{getattr(errno, error)} {path}\n", name
        assert os.listdir(path.parent) == [NAME]
        value = checkpoint.read(path)[1]["value"]
        # The folder's come behind the rename.
        assert value == 1 or (name, number, arguments) in calls[-2:]
    assert len(told) >= 6


@needs_strace
def test_a_file_system_without_unnamed_files_will_do(tmp_path: Path) -> None:
    (number,) = (n for _, n, arguments in calls_of_a_save(tmp_path) if "O_TMPFILE" in arguments)
    path = old_checkpoint(tmp_path)
    inject = f"--inject=openat:error=EOPNOTSUPP:when={number}"
    assert save_under_strace(path, inject).stdout == "saved\n"
    assert checkpoint.read(path)[1]["value"] == 2
    assert os.listdir(path.parent) == [NAME]


TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
STEPS = 60

TRAIN = """
import sys
import charrnn_fast as cf
path, cell, optimizer, threads = sys.argv[1:]
cf.set_num_threads(int(threads))
from charrnn_fast import _core
_core.set_sharing_limits(0, 0)  # small cases run on all threads
corpus = cf.Corpus.from_text({text!r})
options = dict(checkpoint_path=path, checkpoint_every=1)
try:
    trainer = cf.Trainer.resume(path, corpus, **options)
except FileNotFoundError:
    trainer = {make}
trainer.fit(steps={steps} - trainer.num_steps, progress=False)
"""
MAKE = """cf.Trainer(
    cf.CharLM(corpus.vocabulary, 12, 2, cell, seed=3, dropout=0.1, weight_drop=0.1), corpus, 7, 15,
    optimizer, learning_rate=0.01, mask_seed=5, random_offset=True,
    schedule=cf.schedules.Cosine(epochs=10, warmup=1), **options)"""


def trained(path: Path, cell: str, optimizer: str) -> bytes:
    """The weights of a training that is never stopped."""
    import charrnn_fast as cf

    corpus = Corpus.from_text(TEXT)
    options: dict[str, object] = {}
    names = {"cf": cf, "corpus": corpus, "cell": cell, "optimizer": optimizer, "options": options}
    trainer: Trainer = eval(MAKE, names)
    trainer.fit(steps=STEPS, progress=False)
    return weights(trainer.model)


def weights(model: CharLM) -> bytes:
    return b"".join(w.tobytes() for w in model.rnn.parameters().values())


PAIRS = itertools.product(
    ("rnn", "gru", "lstm", "peephole_lstm", "coupled_lstm"),
    ("sgd", "rmsprop", "adagrad", "adam", "adamw"),
)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("cell", "optimizer"), slow_but([("lstm", "adam")], PAIRS))
def test_a_killed_training_ends_in_the_same_weights(
    tmp_path: Path, cell: str, optimizer: str
) -> None:
    """Killed at random instants, resumed with another number of threads each time."""
    path = tmp_path / NAME
    rng = random.Random(f"{cell} {optimizer}")
    program = TRAIN.format(text=TEXT, make=MAKE, steps=STEPS)
    kills = threads = 0
    while True:
        threads = threads % 3 + 1
        command = [sys.executable, "-c", program, str(path), cell, optimizer, str(threads)]
        with subprocess.Popen(command, env=ENVIRONMENT) as process:
            # The first save tells that it is under way, whatever the load of the machine.
            began = time.monotonic()
            before = path.stat().st_mtime_ns if path.exists() else 0
            while kills < 2 and process.poll() is None and time.monotonic() - began < 60:
                if path.exists() and path.stat().st_mtime_ns != before:
                    time.sleep(rng.random() * 0.05)
                    process.kill()
                    break
                time.sleep(0.001)
            status = process.wait()
        if status == 0:
            break
        assert status == -9
        kills += 1
    trainer = Trainer.resume(path, Corpus.from_text(TEXT))
    assert trainer.num_steps == STEPS
    assert weights(trainer.model) == trained(tmp_path / "straight", cell, optimizer)
    assert kills > 0
    # a kill between naming and renaming leaves the new file, which the next save takes away
    assert sorted(os.listdir(tmp_path)) == ["model.best.safetensors", NAME]

"""Memory: logits are never in memory all at once, and the rest grows with T as the tape does.

Each peak is that of a process of its own. Bounds are of sizes, never of times.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import peak_memory
from marks import slow_but

pytestmark = [
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="peaks are read from /proc, which Linux has"
    ),
    pytest.mark.unsanitized("measures memory"),
]

MB = 1_000_000
BOUND = 64 * MB  # beside parameters, gradients and optimizer, at B 50, T 50, H 128


@pytest.mark.slow
@pytest.mark.parametrize("work", ["train_step", "language_model"])
def test_logits_are_never_all_in_memory(work: str) -> None:
    T, B, V = 50, 50, 20_000
    assert 4 * T * B * V > 3 * BOUND  # all of them would be far past the bound
    peaks = peak_memory.run(work, T, B, 128, 1, V)
    assert peaks["train"] - peaks["model"] < BOUND
    assert peaks["build"] < peaks["model"]
    if work == "language_model":
        # One stream, 2000 characters: beside the parameters there is no need for more either, but
        # for the copy of the decoder that drawing keeps.
        assert peaks["sample"] - peaks["model"] / peak_memory.ARRAYS < BOUND


@pytest.mark.exhaustive
@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("work", ["train_step", "language_model"])
def test_a_vocabulary_of_100_000(work: str, L: int) -> None:
    peaks = peak_memory.run(work, 50, 50, 128, L, 100_000)
    assert peaks["train"] - peaks["model"] < BOUND
    assert peaks["build"] < peaks["model"]


@pytest.mark.parametrize("L", slow_but([1], [1, 2]))
def test_memory_is_linear_in_time(L: int) -> None:
    """Within 10 % of the tape: h, c and five values more of every unit, one layer's gates, dh."""
    T, B, H = np.array([100, 300, 500]), 20, 128
    peaks = [peak_memory.run("train_step", t, B, H, L, 50)["train"] for t in T]
    slope, start = np.polyfit(T, peaks, 1)
    tape = 4 * B * H * (7 * L + 4 + 1)
    assert slope == pytest.approx(tape, rel=0.1)
    assert np.allclose(start + slope * T, peaks, atol=2 * MB, rtol=0)
    assert 0 <= start < 10 * MB


LONG = r"""
import sys
import charrnn_fast as cf
from charrnn_fast.callbacks import Callback
from charrnn_fast.log import JsonLog

steps, folder = int(sys.argv[1]), sys.argv[2]
cf.set_num_threads(1)

def resident():
    status = open("/proc/self/status").read()
    return int(status.split("VmRSS:")[1].split()[0])

class Watch(Callback):
    def updated(self, trainer, update):
        if update.step in (steps // 10, steps):
            print(resident(), flush=True)

corpus = cf.Corpus.from_text("the quick brown fox jumps over the lazy dog\n" * 200)
model = cf.CharLM(corpus.vocabulary, 4, 1, "rnn", recurrent_dropout=0.1, seed=1)
callbacks = [JsonLog(folder + "/log", 1000), Watch()]
files = dict(checkpoint_path=folder + "/model", evaluate_every=steps // 100, callbacks=callbacks)
cf.Trainer(model, corpus, 2, 4, **files).fit(steps=steps, progress=False)
"""


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(50_000, marks=pytest.mark.slow),
        pytest.param(1_000_000, marks=pytest.mark.exhaustive),
    ],
)
def test_a_long_training_keeps_its_memory(tmp_path: Path, steps: int) -> None:
    """From the end of the first tenth on, resident memory grows by 1 MB at most."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LONG, str(steps), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    warm, last = map(int, done.stdout.split())
    assert last - warm <= 1024


@pytest.mark.slow
def test_a_text_far_larger_than_the_memory_it_takes(tmp_path: Path) -> None:
    """10 GB of bytes, most of them never written; with the interpreter and all libraries."""
    path = tmp_path / "text"
    path.write_bytes(b"the quick brown fox\n" * 500_000)
    os.truncate(path, 10_000 * MB)
    if path.stat().st_blocks * 512 > 1000 * MB:
        pytest.skip("this file system has no sparse files")
    peaks = peak_memory.run("byte_corpus", path)
    path.unlink()
    assert peaks["size"] == 10_000 * MB
    assert peaks["peak"] < 300 * MB


def header(json: str) -> bytes:
    return len(json).to_bytes(8, "little") + json.encode()


def metadata(entry: str) -> bytes:
    quoted = entry.replace("\\", "\\\\").replace('"', '\\"')
    return header('{"__metadata__":{"charrnn_fast":"' + quoted + '"}}')


N = 19 * MB
HOSTILE = {
    "lists in lists": header("[" * N),
    "objects in objects": header('{"a":' * (N // 5)),
    "lists beside lists": header("[" + "[]," * (N // 3) + "[]]"),
    "tensors": header(
        "{"
        + ",".join(
            f'"{i}":{{"dtype":"I8","shape":[0],"data_offsets":[0,0]}}' for i in range(N // 55)
        )
        + "}"
    ),
    "lists in lists of the configuration": metadata("[" * N),
    "lists beside lists of the configuration": metadata("[" + "[]," * (N // 3) + "[]]"),
    "strings of the configuration": metadata("[" + '"a",' * (N // 6) + '"a"]'),
    "a history": metadata(
        '{"format": 1, "config": {"history": [' + "[1,2,3,4,5]," * (N // 12) + "[]]}}"
    ),
    "a header that is not there": (2**62).to_bytes(8, "little") + b" " * N,
    "a header beyond all": header(" " * 30 * MB),
}


@pytest.mark.parametrize("name", slow_but(["lists in lists", "a history"], HOSTILE))
def test_a_file_of_another_kind_takes_no_more_memory_than_its_size(
    tmp_path: Path, name: str
) -> None:
    """Nested headers of 19 MB took 505 MB."""
    path = tmp_path / "model"
    path.write_bytes(HOSTILE[name])
    peaks = peak_memory.run("refusal", path)
    assert peaks["peak"] < 3.5 * peaks["size"] + 2 * MB

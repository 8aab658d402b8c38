"""Out of memory: the error says how much was requested and what helps; everything stays usable."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import charrnn_fast as cf
from charrnn_fast import optim

# In a process with a bound on its address space. Each call asks for gigabytes.
PROGRAM = r"""
import resource
import numpy as np
import charrnn_fast as cf

cf.set_num_threads(1)
net = cf.RNN(4, 256, cell="lstm", num_layers=4)
x, small = np.zeros((20_000, 16), "i1"), np.zeros((5, 2), "i1")
expected = net.forward(small)[0].tobytes()
vocabulary = cf.Vocabulary.from_text("abcd")
trainer = cf.Trainer(cf.CharLM(vocabulary, 256, 4))
other = cf.Trainer(cf.CharLM(vocabulary, 256, 4))
in_parts = cf.Trainer(cf.CharLM(vocabulary, 256, 4), micro_batches=2)
wide = cf.RNN(4, 2000, 1000)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 10**9, -1))

def fails(what, call, *wanted):
    try:
        call()
    except MemoryError as error:
        message = str(error)
        assert all(word in message for word in wanted), f"{what}: {message}"
        return
    raise SystemExit(f"{what}: no error")

cores = ("out of memory: ", " GB more were asked for; try ")
fails("forward", lambda: net.forward(x), *cores, "a smaller batch or shorter", "keep=False")
assert net.forward(small)[0].tobytes() == expected
fails("y", lambda: wide.forward(np.zeros((30_000, 16), "i1"), keep=False), "Unable to allocate",
      "GiB", "try a smaller batch")
net.backward(np.ones((5, 2, 256), "f4"))
for t in (trainer, in_parts):
    fails("step", lambda: t.step(x, x), *cores, "a smaller batch_size or seq_len", "micro_batches")
assert trainer.step(small, small) == other.step(small, small)
fails("one_hot", lambda: vocabulary.one_hot(np.zeros(10**8, "i1")), "Unable to allocate", "ids")
fails("zero_state", lambda: net.zero_state(10**6), "Unable to allocate")
print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS")
def test_what_is_computed_with_too_little_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_what_is_made_with_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is allocated: the system promises more memory than there is."""
    net = cf.RNN(4, 3000)
    monkeypatch.setattr("charrnn_fast._checks.available_memory", lambda: 10**7)
    monkeypatch.setattr("charrnn_fast._core.ModelFloat32", None)
    message = r"RNN\(4, 5000, .* has 25,020,000 weights and takes 0.1 GB, and 0.01 GB are free; try"
    with pytest.raises(MemoryError, match=message):
        cf.RNN(4, 5000)
    message = r"the state of adam takes 0.0721 GB, and 0.01 GB are free; try a smaller network"
    with pytest.raises(MemoryError, match=message):
        optim.Adam(net)
    optim.SGD(net)


def test_sizes_that_overflow() -> None:
    net = cf.RNN(4, 5)
    for wrong in (
        lambda: cf.RNN(4, 2**40),
        lambda: cf.RNN(2**40, 4),
        lambda: cf.RNN(4, 5, 2**63),
        lambda: cf.RNN(2**31 - 1, 2**31 - 1, 2**31 - 1, num_layers=10_000),
        lambda: net.zero_state(2**63),
        lambda: cf.Trainer(cf.CharLM(cf.Vocabulary.from_text("ab"), 4), None, 2**31 - 1, 2**31 - 1),
    ):
        with pytest.raises(
            (ValueError, MemoryError), match=r"must be|must have at most|must fit into memory"
        ):
            wrong()

"""Arrays that another thread changes during a call, like a loader that reuses its buffers.

Each call runs while a thread writes wrong and right values into its arguments, in a process of its
own, which an out-of-bounds access kills. A call may raise an error or return a result; anything
else fails.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import charrnn_fast as cf
from marks import slow_but
from tolerances import assert_same_bits

PROGRAM = """
import re, sys, threading, time
import numpy as np
import charrnn_fast as cf

T, B, V = 20, 64, 40
vocabulary = cf.Vocabulary.from_text("".join(chr(48 + i) for i in range(V)))
model = cf.CharLM(vocabulary, hidden_size=16, num_layers=1)
net = cf.RNN(V, 16, V)
kernels = net._core
trainer = cf.Trainer(model, batch_size=B, seq_len=T)
in_parts = cf.Trainer(model, batch_size=B, seq_len=T, micro_batches=3)
tokens, targets = np.zeros((T, B), np.int32), np.zeros((T, B), np.int32)
wide = np.zeros((T, B), np.int64)
lengths, streams = np.full(B, T), np.arange(B)
long, many = np.zeros((T, 8000), np.int32), np.full(8000, T)
state = net.states.zeros(B)
logits = np.zeros((T, B, V), np.float32)
seeds = np.arange(B, dtype=np.uint64)
ids, far = (2**31 - 1, 0), (2**40, 0)
ends = (2**40, -5, 0, T)
call, arrays, values = {
    "forward": (lambda: net.forward(tokens, keep=False), [tokens], ids),
    "forward of int64": (lambda: net.forward(wide, keep=False), [wide], far),
    "forward and backward": (lambda: (net.forward(tokens), net.backward(None)), [tokens], ids),
    "kernels' lengths": (lambda: kernels.forward(long, None, False, many), [many], ends),
    "step": (lambda: net.step(tokens[0]), [tokens], ids),
    "train": (lambda: trainer.step(tokens, targets), [tokens], ids),
    "train on targets": (lambda: trainer.step(tokens, targets), [targets], ids),
    "loss": (lambda: cf.cross_entropy(logits, targets), [targets], ids),
    "one_hot": (lambda: vocabulary.one_hot(wide), [wide], far),
    "decode": (lambda: vocabulary.decode(wide[0]), [wide], far),
    "kernels' accumulate": (
        lambda: kernels.accumulate(tokens, targets, state, None, lengths),
        [tokens, targets, lengths],
        ids,
    ),
    "kernels' streams": (
        lambda: kernels.accumulate(tokens, targets, state, None, None, streams), [streams], far
    ),
    "kernels' evaluate": (
        lambda: kernels.evaluate(tokens, targets, state, lengths), [tokens, targets, lengths], ids
    ),
    "kernels' losses of streams": (
        lambda: kernels.stream_losses(tokens, targets, state, lengths),
        [tokens, targets, lengths],
        ids,
    ),
    "kernels' read": (lambda: kernels.read(tokens, state), [tokens], ids),
    "lengths": (lambda: net.forward(long, lengths=many, keep=False), [many], ends),
    "train in parts": (lambda: in_parts.step(tokens, targets), [tokens, targets], ids),
    "kernels' sample": (
        lambda: kernels.sample(1, tokens[0], state, seeds, 0, 1.0, 0, 1.0), [tokens], ids
    ),
}[sys.argv[1]]

done = False
def change():
    while not done:
        for array in arrays:
            for value in values:
                array[...] = value
thread = threading.Thread(target=change, daemon=True)
thread.start()
computed = refused = 0
begin = time.monotonic()
while time.monotonic() < begin + 0.6 or not (computed and refused):
    if time.monotonic() > begin + 60:
        sys.exit(f"{computed} computed, {refused} refused")
    try:
        call()
        computed += 1
    except ValueError as error:
        if not re.match(r"(x|inputs|targets|lengths|streams|tokens|ids)\\b(?! has)", str(error)):
            raise
        refused += 1
done = True
thread.join()
print("done")
"""
CALLS = (
    "forward",
    "forward of int64",
    "forward and backward",
    "kernels' lengths",
    "step",
    "train",
    "train on targets",
    "loss",
    "one_hot",
    "decode",
    "kernels' accumulate",
    "kernels' streams",
    "kernels' evaluate",
    "kernels' losses of streams",
    "kernels' read",
    "lengths",
    "train in parts",
    "kernels' sample",
)


@pytest.mark.parametrize("call", slow_but(["forward", "kernels' lengths", "train"], CALLS))
def test_a_call_beside_a_thread_that_changes_its_arrays(call: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, call],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_backward_takes_the_tokens_of_its_forward() -> None:
    """Whatever became of the caller's array, or was refused or stepped over meanwhile."""
    rnn = cf.RNN(7, 5, 3, cell="gru", num_layers=2)
    tokens = np.random.default_rng(0).integers(0, 7, (6, 4), np.int32)
    lengths = np.array([6, 2, 0, 5])
    for given in (None, lengths):
        y, _ = rnn.forward(tokens, lengths=given)
        _, _, expected = rnn.backward(np.ones_like(y))
        mine = tokens.copy()
        mine_too = None if given is None else given.copy()
        rnn.forward(mine, lengths=mine_too)
        mine[...] = 6
        if mine_too is not None:
            mine_too[...] = 1
        rnn.step(mine[0])
        with pytest.raises(ValueError, match=r"x\[0, 0\] must be in 0 to 6, got 7"):
            rnn._core.forward(np.full((9, 8), 7, np.int32), None, True)
        with pytest.raises(ValueError, match=r"lengths\[1\] must be in 0 to 9, got 10"):
            rnn._core.forward(np.zeros((9, 2), np.int32), None, True, np.array([1, 10]))
        rnn.reset()
        _, _, found = rnn.backward(np.ones_like(y))
        for name, gradient in expected.items():
            assert_same_bits(name, found[name], gradient)


def test_arrays_that_are_not_aligned_are_refused_by_name() -> None:
    rnn = cf.RNN(3, 5, 3)
    memory = np.zeros(6 * 4 + 1, np.uint8)
    x = memory[1:].view(np.float32).reshape(1, 2, 3)
    with pytest.raises(ValueError, match=r"x must be aligned; pass x\.copy\(\)"):
        rnn.forward(x)
    rnn.forward(x.copy())
    targets = memory[1:9].view(np.int64)
    assert not targets.flags.aligned
    logits = np.zeros((1, 3), np.float32)
    loss, _ = cf.cross_entropy(logits, targets)  # is copied anyway
    assert loss == pytest.approx(np.log(3))
    weight = memory[1:].view(np.float32)[:5]
    rnn._core.set_parameter("bias_ih_l0", weight)
    assert not rnn.parameters()["bias_ih_l0"].any()

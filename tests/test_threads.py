"""The thread pool: its barriers, callers in each other's way, resizing under load, fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

import charrnn_fast as cf
from cases import Case, run
from charrnn_fast import _core
from tolerances import assert_same_bits

CASE = Case("lstm", 2, seq_len=20, batch=16, input_size=20, hidden_size=40, output_size=20)
pytestmark = pytest.mark.usefixtures("threads")


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_no_wake_up_and_no_write_is_lost(number: int) -> None:
    cf.set_num_threads(number)
    assert _core.pool_self_test(500) == 500 * number


def _at_once(*functions: Callable[[], None]) -> None:
    """Runs each in a thread of its own; raises what the first one that failed raised."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


def test_callers_at_once_get_the_same_bits() -> None:
    cf.set_num_threads(3)
    expected = run(CASE.network(), CASE)

    def caller() -> None:
        network = CASE.network()
        for _ in range(30):
            for name, value in run(network, CASE).items():
                assert_same_bits(name, value, expected[name])

    _at_once(caller, caller, caller)


def test_the_number_of_threads_may_change_under_load() -> None:
    cf.set_num_threads(1)
    expected = run(CASE.network(), CASE)
    done = threading.Event()
    refusals: list[str] = []

    def caller() -> None:
        try:
            network = CASE.network()
            for _ in range(60):
                for name, value in run(network, CASE).items():
                    assert_same_bits(name, value, expected[name])
        finally:
            done.set()

    def changer() -> None:
        n = 0
        while not done.is_set():
            n += 1
            try:
                cf.set_num_threads(1 + n % 9)
            except ValueError as error:
                refusals.append(str(error))

    _at_once(caller, changer)
    assert all("computing" in refusal for refusal in refusals), refusals


def test_threads_that_share_a_network_get_an_error_or_their_own_gradients() -> None:
    network = CASE.network()
    cases = [CASE.but(seq_len=t, batch=b) for t, b in ((5, 3), (30, 8), (60, 1))]
    cf.set_num_threads(2)
    expected = [run(CASE.network(), case) for case in cases]
    refusals: list[str] = []

    def caller(index: int) -> None:
        for _ in range(60):
            try:
                found = run(network, cases[index])
            except (RuntimeError, ValueError) as error:
                refusals.append(str(error))
            else:
                for name, value in found.items():
                    assert_same_bits(name, value, expected[index][name])

    _at_once(lambda: caller(0), lambda: caller(1), lambda: caller(2))
    assert all("forward" in refusal or "dy" in refusal for refusal in refusals), set(refusals)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes_the_same_bits_while_the_parent_is_busy() -> None:
    """In a program of its own: pytest's other threads are none of the child's business."""
    program = """
import os, signal, sys, threading
import numpy as np
import charrnn_fast as cf
from charrnn_fast import _core
_core.set_sharing_limits(0, 0)
cf.set_num_threads(3)
rnn = cf.RNN(9, 40, cell="gru", num_layers=2)
x = np.linspace(-1, 1, 20 * 16 * 9, dtype=np.float32).reshape(20, 16, 9)
expected = rnn.forward(x)[0].tobytes()
stop = False
def busy():
    while not stop:
        rnn.forward(x)
thread = threading.Thread(target=busy)
thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if rnn.forward(x)[0].tobytes() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0, "the child hung or computed something else"
stop = True
thread.join()
print("done")
"""
    _run(program)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_parent_and_children_train_on_after_a_fork() -> None:
    """A fork between two updates: the pool is alive, the model half-trained. Then a fork of the
    fork, and the workers of multiprocessing, which leave by another door than os._exit."""
    program = """
import multiprocessing, os, signal
import numpy as np
import charrnn_fast as cf
from charrnn_fast import _core
_core.set_sharing_limits(0, 0)
cf.set_num_threads(3)
tokens = np.random.default_rng(0).integers(0, 11, (9, 16, 16))
def trained(rnn, optimizer, steps):
    for step in steps:
        y, _ = rnn.forward(tokens[step])
        rnn_grads = rnn.backward(cf.cross_entropy(y, tokens[step - 1])[1])[2]
        optimizer.step(rnn_grads)
    return b"".join(p.tobytes() for p in rnn.parameters().values())
def fresh(*_):
    rnn = cf.RNN(11, 40, 11, cell="lstm")
    return rnn, cf.optim.Adam(rnn)
def from_scratch(*_):
    return trained(*fresh(), range(9))
expected = from_scratch()
rnn, optimizer = fresh()
trained(rnn, optimizer, range(4))
def forked(depth):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        if depth > 1:
            forked(depth - 1)
        os._exit(0 if trained(rnn, optimizer, range(4, 9)) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0, f"a child at depth {depth} hung or computed otherwise"
forked(3)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(from_scratch, range(4)).get(60) == [expected] * 4
assert trained(rnn, optimizer, range(4, 9)) == expected
print("done")
"""
    _run(program)


def _run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "done\n", done.stderr

"""The thread pool: barriers, concurrent callers, resizing under load, fork."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

import charrnn_fast as cf
from cases import Case, run
from charrnn_fast import _core
from marks import slow_but
from tolerances import assert_same_bits

CASE = Case("lstm", 2, seq_len=20, batch=16, input_size=20, hidden_size=40, output_size=20)
pytestmark = [
    pytest.mark.usefixtures("threads"),
]


@pytest.mark.parametrize("number", slow_but([1, 2, 3], [1, 2, 3, 7]))
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


@pytest.mark.slow
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
    assert all("another thread computes" in refusal for refusal in refusals), refusals


@pytest.mark.parametrize(
    "cases",
    [
        [CASE.but(seq_len=t, batch=b) for t, b in ((5, 3), (30, 8), (60, 1))],
        [CASE.but(seed=n) for n in range(3)],
    ],
    ids=["other shapes", "one shape"],
)
def test_threads_that_share_a_network_get_an_error_or_their_own_gradients(
    cases: list[Case],
) -> None:
    network = CASE.network()
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
    assert all("backward must follow" in refusal for refusal in refusals), set(refusals)


def test_a_forward_belongs_to_the_thread_that_called_it() -> None:
    """Unless it is handed on: a thread without a forward of its own may go back from another's."""
    network, mine, theirs = CASE.network(), CASE.but(seed=1), CASE.but(seed=2)
    expected = run(CASE.network(), theirs)
    with ThreadPoolExecutor(1) as other:
        network.forward(mine.x(), mine.state())
        other.submit(network.forward, theirs.x(), theirs.state()).result()
        with pytest.raises(RuntimeError, match=r"another thread has called.*copy\.deepcopy"):
            network.backward(mine.dy(), mine.dstate())
        grads = other.submit(network.backward, theirs.dy(), theirs.dstate()).result()[2]
        for name, grad in grads.items():
            assert_same_bits(name, grad, expected[f"d {name}"])
        network.forward(mine.x(), keep=False)  # backward cannot follow this one
        # One after the other, as an event loop with worker threads runs them.
        for forward, backward in ((other, None), (None, other), (other, None), (other, other)):
            begin = partial(network.forward, theirs.x(), theirs.state())
            back = partial(network.backward, theirs.dy(), theirs.dstate())
            _ = forward.submit(begin).result() if forward else begin()
            grads = (backward.submit(back).result() if backward else back())[2]
            for name, grad in grads.items():
                assert_same_bits(name, grad, expected[f"d {name}"])
        network.forward(mine.x(), keep=False)
        with pytest.raises(RuntimeError, match=r"another forward .*has come after it"):
            other.submit(network.backward, theirs.dy()).result()


def test_threads_with_a_copy_each() -> None:
    network = CASE.network()
    network.step(CASE.x()[0])
    network.reset()
    expected = run(CASE.network(), CASE)
    stepped = [CASE.network().step(x) for x in CASE.x()[:1]]

    def caller(own: cf.RNN) -> None:
        for _ in range(30):
            for name, value in run(own, CASE).items():
                assert_same_bits(name, value, expected[name])
            own.reset()
            assert_same_bits("y", own.step(CASE.x()[0]), stepped[0])

    copies = [copy.deepcopy(network) for _ in range(3)]
    _at_once(*(partial(caller, own) for own in copies))


def test_threads_that_step_one_network_take_turns() -> None:
    """No crash and no torn state: as many steps as were made, in some order of the threads."""
    network, alone = (cf.RNN(4, 5, cell="gru") for _ in range(2))
    x, count = np.ones((1, 4), "float32"), 200

    def caller() -> None:
        for _ in range(count):
            network.step(x)

    network.step(x)
    _at_once(caller, caller)
    for _ in range(2 * count + 1):
        alone.step(x)
    assert_same_bits("state", network.state, alone.state)


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


@pytest.mark.slow
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

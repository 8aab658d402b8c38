"""Whose threads the kernels run on: the setting, and PyTorch's OpenMP runtime where it is loaded.

tests/cpp/test_executors.cpp has the pools of other programs.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

import charrnn_fast as cf

COMMON = """
import os, signal, threading
import numpy as np
def network():
    import charrnn_fast as cf
    from charrnn_fast import _core
    _core.set_sharing_limits(0, 0)  # small cases shall run on all threads
    cf.set_num_threads(2)
    return cf, _core, cf.RNN(9, 40, cell="gru", num_layers=2)
x = np.linspace(-1, 1, 20 * 16 * 9, dtype=np.float32).reshape(20, 16, 9)
def results(rnn):
    y, _ = rnn.forward(x)
    return b"".join(a.tobytes() for a in (y, *rnn.backward(y)[2].values()))
def in_child(check):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # rather than hang
        os._exit(0 if check() else 1)
    assert os.waitpid(child, 0)[1] == 0, "the child hung or computed otherwise"
"""


def _run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if k != "CHARRNN_EXECUTOR"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMMON + program],
        capture_output=True,
        text=True,
        timeout=300,
        env={**variables, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )


def _succeeds(program: str) -> None:
    done = _run(program + "\nprint('done')")
    assert done.stdout == "done\n", done.stderr


@pytest.fixture
def executor() -> Iterator[None]:
    before = cf.get_executor()
    yield
    cf.set_executor(before)


@pytest.mark.usefixtures("executor")
def test_the_executor_is_set_and_reported() -> None:
    for name in ("own", "openmp", "auto"):
        cf.set_executor(name)
        assert cf.get_executor() == name
        assert cf.build_info()["executor"] in (("own",) if name == "own" else ("own", "openmp"))


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize("name", ["host", "OpenMP", "", None, 3])
def test_other_names_are_refused(name: object) -> None:
    cf.set_executor("own")
    with pytest.raises(ValueError, match=r"name must be 'auto', 'own' or 'openmp', got "):
        cf.set_executor(name)  # type: ignore[arg-type]
    assert cf.get_executor() == "own"


@pytest.mark.parametrize("value", ["own", "openmp", "auto", ""])
def test_the_variable_sets_the_executor(value: str) -> None:
    program = "import charrnn_fast as cf; print(cf.get_executor(), cf.build_info()['executor'])"
    done = _run(program, CHARRNN_EXECUTOR=value)
    assert done.stdout.split() == [value or "auto", "own"], done.stderr


def test_another_value_is_an_error_at_import() -> None:
    done = _run("import charrnn_fast as cf; cf.build_info()", CHARRNN_EXECUTOR="libgomp")
    assert done.returncode == 1
    assert "CHARRNN_EXECUTOR must be auto, own or openmp, got 'libgomp'" in done.stderr


needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or not sys.platform.startswith("linux"),
    reason="PyTorch is not installed, or has no libgomp",
)


@needs_torch
@pytest.mark.slow
@pytest.mark.unsanitized("PyTorch is not built for the sanitizers")
def test_pytorchs_threads_run_the_kernels() -> None:
    """Once it is imported; for the main thread; on as many threads as both sides have."""
    _succeeds("""
cf, _core, rnn = network()
cf.set_num_threads(1)
expected = results(rnn)
cf.set_num_threads(2)
def teams():
    before = _core.openmp_teams()
    assert results(rnn) == expected
    return _core.openmp_teams() - before
assert cf.build_info()["executor"] == "own" and teams() == 0
import torch
torch.set_num_threads(3)
a = torch.ones(300, 300)
torch.mm(a, a)
assert cf.build_info()["executor"] == "openmp" and teams() > 0
for _ in range(20):
    torch.mm(a, a)
    teams()  # on PyTorch's threads if they are still awake
# No thread ends or starts: libgomp's team stays whole.
cf.set_executor("openmp")
threads = set(os.listdir("/proc/self/task"))
for _ in range(50):
    torch.mm(a, a)
    assert teams() > 0
assert set(os.listdir("/proc/self/task")) == threads
cf.set_executor("auto")
found = []
def elsewhere():
    found.append((cf.build_info()["executor"], teams()))
def in_thread():
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
in_thread()
cf.set_executor("openmp")
in_thread()
assert found[0] == ("own", 0), found
assert found[1][0] == "openmp" and found[1][1] > 0, found
cf.set_executor("own")
assert cf.build_info()["executor"] == "own" and teams() == 0
cf.set_executor("auto")
assert teams() > 0
torch.set_num_threads(1)
assert cf.build_info()["executor"] == "own" and teams() == 0
""")


@needs_torch
@pytest.mark.slow
@pytest.mark.unsanitized("PyTorch is not built for the sanitizers")
def test_forked_children_do_not_wait_for_pytorchs_threads() -> None:
    _succeeds("""
import torch
torch.set_num_threads(2)
a = torch.ones(300, 300)
torch.mm(a, a)
def imported_there():
    cf, _core, rnn = network()
    for name in ("auto", "openmp"):
        cf.set_executor(name)
        results(rnn)
    return cf.build_info()["executor"] == "own" and _core.openmp_teams() == 0
in_child(imported_there)
cf, _core, rnn = network()
expected = results(rnn)
assert _core.openmp_teams() > 0
def again():
    return results(rnn) == expected and cf.build_info()["executor"] == "own"
in_child(again)
in_child(lambda: in_child(again) is None and again())
before = _core.openmp_teams()
cf.set_executor("openmp")
assert results(rnn) == expected and _core.openmp_teams() > before
""")

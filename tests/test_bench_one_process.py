"""`bench --one-process`: the peers beside the kernels in one process. No test checks a time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from charrnn_fast.bench import compare as comparison
from charrnn_fast.bench import host, machine, report, runner
from charrnn_fast.bench.cases import select
from charrnn_fast.bench.errors import BenchError, UnavailableError
from charrnn_fast.bench.host import Host, in_this_process
from charrnn_fast.bench.peers import Task, kernels
from charrnn_fast.bench.peers.numpy_reference import NumPy
from charrnn_fast.bench.problem import Problem, Text, make
from charrnn_fast.bench.results import Run
from charrnn_fast.bench.worker import Worker
from charrnn_fast.cli import main

pytestmark = [
    pytest.mark.unsanitized("measures time"),
]

TEXT = "the quick brown fox jumps over the lazy dog. " * 40
BENCH = ["bench", "--quick", "--blocks", "1", "--one-process"]


@pytest.fixture(scope="module")
def text() -> Text:
    return Text.of("a text", TEXT)


@pytest.fixture(params=[in_this_process, Worker])
def a_host(request: pytest.FixtureRequest) -> Iterator[Host]:
    make_host: Callable[[int], AbstractContextManager[Host]] = request.param
    with make_host(1) as made:
        yield made


def training(text: Text) -> Problem:
    return make(select(["train"], [("lstm", 3, 4, 8, 2)], False)[0], text)


class Standing(NumPy):
    """Stands for a peer that can be loaded late. It notes where and with what it was loaded."""

    seen: list[tuple[int, str | None, str | None]]

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        threads_set = os.environ.get("OMP_NUM_THREADS"), os.environ.get("NPROC")
        self.seen.append((os.getpid(), *threads_set))


@pytest.fixture
def standing(monkeypatch: pytest.MonkeyPatch) -> type[Standing]:
    Standing.seen = []
    monkeypatch.setattr(host, "load", lambda name, threads: Standing(threads))
    return Standing


# ---- hosts --------------------------------------------------------------------------------


def test_hosts_do_the_same(a_host: Host, text: Text) -> None:
    problem = training(text)
    with pytest.raises(BenchError, match=r"^numpy: KeyError: 'numpy'$"):
        a_host.prepare("numpy", problem)  # not opened
    assert a_host.open("numpy") == np.__version__
    before = {name: value.copy() for name, value in problem.parameters.items()}
    for _ in range(2):  # training changes weights in place, but not those of the problem
        assert a_host.prepare("numpy", problem) == {"numpy": 1}
        expected = kernels.tasks(problem)[kernels.NAME].check()
        runner.compare(problem.case, "numpy", a_host.check("numpy"), expected)
    assert a_host.time("numpy", 2).seconds > 0
    for name, value in before.items():
        np.testing.assert_array_equal(problem.parameters[name], value)
    with pytest.raises(BenchError, match=r"^numpy does not evaluate this suite$"):
        a_host.evaluate("numpy")
    unknown = replace(problem.network, cell="tcn")
    with pytest.raises(UnavailableError, match=r"^numpy has no cell 'tcn'$"):
        a_host.prepare("numpy", replace(problem, case=unknown))
    a_host.clear()
    with pytest.raises(BenchError, match=r"^numpy: KeyError: 'numpy'$"):
        a_host.check("numpy")


def test_the_environment_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("NPROC", raising=False)
    with in_this_process(3):
        assert os.environ["OMP_NUM_THREADS"] == os.environ["NPROC"] == "3"
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "NPROC" not in os.environ


# ---- runs ---------------------------------------------------------------------------------


def test_a_run_says_where_the_peers_were(
    standing: type[Standing], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    command = [*BENCH, "train", "--cases", "lstm,3,4,8,2", "--threads", "1", "--peers", "torch"]
    assert main([*command, "--json", str(path)]) == 0
    assert standing.seen == [(os.getpid(), "1", "1")]
    run = Run.read(path)
    assert run.one_process
    assert run.rows[0].peers["numpy"].ratio.median > 0
    assert "- peers: in one process with the kernels, whose executor was" in capsys.readouterr().out


def _swallowed() -> None:
    """Ctrl-C where its exception is lost."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def _refused() -> None:
    """Ctrl-C that a compiled module would turn into another exception."""
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        raise UnavailableError("a part cannot be imported")


@pytest.mark.parametrize("interrupt", [_swallowed, _refused])
def test_ctrl_c_in_a_peer_keeps_the_rows(
    standing: type[Standing],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupt: Callable[[], None],
) -> None:
    tasks = NumPy.tasks

    def interrupted(self: NumPy, problem: Problem) -> dict[str, Task]:
        if problem.case.label == "5,6,7":
            interrupt()
        return tasks(self, problem)

    monkeypatch.setattr(standing, "tasks", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    path = tmp_path / "run.json"
    command = [*BENCH, "gemm", "--threads", "1", "--peers", "torch", "--json", str(path)]
    assert main([*command, "--cases", "2,3,4", "5,6,7"]) == 130
    assert [row.case for row in Run.read(path).rows] == ["2,3,4"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_after_the_last_call() -> None:
    with pytest.raises(KeyboardInterrupt), in_this_process(1):
        signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_acts_at_once() -> None:
    def twice() -> None:
        with in_this_process(1):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError

    with pytest.raises(KeyboardInterrupt):
        twice()


@pytest.mark.slow
def test_all_peers_live_beside_the_kernels(tmp_path: Path) -> None:
    """In a new process, where none of them is loaded."""
    installed = [name for name in ("torch", "jax", "onnxruntime") if find_spec(name) is not None]
    if "onnxruntime" in installed and find_spec("onnx") is None:
        installed.remove("onnxruntime")
    if not installed:
        pytest.skip("no peer is installed")
    path = tmp_path / "run.json"
    command = [*BENCH, "train", "forward", "backward", "sample", "step", "--threads", "2"]
    command += ["--cases", "gru,1,5,8,1", "--json", str(path), "--peers"]
    subprocess.run([sys.executable, "-m", "charrnn_fast", *command, *installed], check=True)
    run = Run.read(path)
    assert (run.one_process, list(run.peers), run.unavailable) == (True, installed, {})
    for row in run.rows:
        missing = {"onnxruntime"} if row.suite in ("train", "backward") else set()
        assert set(installed) - missing <= set(row.peers), row.key


# ---- reports ------------------------------------------------------------------------------


def result(**settings: object) -> Run:
    return Run({"isa": "x86-64-v4"}, settings, {"torch": "2"}, {}, {}, [])


def test_results_without_the_entry_are_of_two_processes(tmp_path: Path) -> None:
    old, apart = result(), result(one_process=False, executor="auto")
    together = result(one_process=True, executor="own")
    old.write(tmp_path / "old.json")
    assert not Run.read(tmp_path / "old.json").one_process
    for run in (old, apart):
        assert "- peers: in a process of their own\n" in report.markdown(run)
        assert "Peers of" not in comparison.markdown(apart, run, "old.json")
    both = "in one process with the kernels, whose executor was own"
    assert f"- peers: {both}\n" in report.markdown(together)
    told = f"Peers of this run: {both}; of the base: in a process of their own."
    assert told in comparison.markdown(together, old, "old.json")
    alone = replace(together, peers={})
    assert "peers:" not in report.markdown(alone)
    assert "Peers of" not in comparison.markdown(alone, old, "old.json")


# ---- the command line ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--threads must be one number with --one-process, got 1 2: "),
        (["--threads", "2", "1"], "--threads must be one number with --one-process, got 2 1: "),
        (
            ["--threads", "1", "--peers", "torch", "numpy"],
            "--peers must be without numpy with --one-process, got numpy torch: ",
        ),
        (["--threads", "1"], "jax must not be loaded before --one-process sets XLA's threads; "),
    ],
)
def test_what_one_process_cannot_be_is_told_first(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    def never(self: runner.Runner) -> Run:
        raise AssertionError

    monkeypatch.setattr(runner.Runner, "run", never)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setitem(sys.modules, "jax", ModuleType("jax"))
    assert main(["bench", "--one-process", *arguments]) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith(f"charrnn-fast: error: {message}")
    assert error.count("\n") == 1


def test_default_peers_are_those_that_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    peers: list[str] = []

    def noted(self: runner.Runner) -> Run:
        peers.extend(self._peers)
        return self.result

    monkeypatch.setattr(runner.Runner, "run", noted)
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    assert main(["bench", "gemm", "--one-process", "--threads", "1"]) == 0
    assert peers == [name for name in runner.DEFAULT_PEERS if name != "numpy"]
    assert "torch" in peers and "jax" in peers

"""The benchmarks: what they compare and report. No test checks a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import charrnn_fast as cf
from charrnn_fast import _core
from charrnn_fast.bench import compare as comparison
from charrnn_fast.bench import report, runner
from charrnn_fast.bench.cases import SUITES, Case, Product, Shape, parse, select
from charrnn_fast.bench.errors import BenchError, UnavailableError
from charrnn_fast.bench.peers import MODULES, kernels, load
from charrnn_fast.bench.problem import Text, make
from charrnn_fast.bench.results import Reached, Row, Run, Side, Spread
from charrnn_fast.bench.worker import Worker
from charrnn_fast.cli import main

pytestmark = [
    pytest.mark.unsanitized("measures time"),
]

TEXT = "the quick brown fox jumps over the lazy dog. " * 40
SMALL: dict[str, str] = {
    "train": "lstm,3,4,8,2",
    "forward": "gru,3,4,8,2",
    "backward": "rnn,3,4,8,2",
    "sample": "lstm,2,4,8,2",
    "step": "gru,1,5,8,1",
    "gemm": "3,4,5",
    "time-to-loss": "rnn,4,5,8,1",
}
# What each peer takes part in.
SUITES_OF = {
    "numpy": ("train", "forward", "backward", "sample", "step", "gemm"),
    "torch": tuple(SUITES),
    "torch.compile": ("train", "forward"),
    "torch.bfloat16": ("train",),
    "jax": ("train", "forward", "backward", "sample", "step"),
    "onnxruntime": ("forward", "sample", "step"),
}


@pytest.fixture(scope="module")
def text() -> Text:
    return Text.of("a text", TEXT)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(1) as process:
        yield process


def row(suite: str = "train", case: str = "lstm,3,4,8,2", share: float = 0.5) -> Row:
    near = Spread(share, share * 0.99, share * 1.01, share * 0.9, share * 1.1, 5)
    seconds = Spread.of([0.001, 0.002, 0.004])
    peers = {"torch": Side(seconds, Spread.of([2.0, 3.0]), 1.0, 0.7)}
    reached = {kernels.NAME: Reached(25, 1.5, 1.9, True)} if suite == "time-to-loss" else {}
    return Row(
        suite,
        case,
        1,
        SUITES[suite].unit,
        seconds,
        1.0,
        None if suite == "gemm" else 1e5,
        1e9,
        8.0,
        4096,
        "fma",
        1e11,
        near,
        near,
        1.0,
        peers,
        ["jax: no"],
        2.0 if reached else None,
        reached,
    )


def result(*rows: Row) -> Run:
    settings = {"text": {"name": "a", "characters": 9}, "vocabulary": 3}
    sizes = ("16384", "524288", "8388608", "33554432")
    peaks = {"1": {"fma": 1e11, "read": dict.fromkeys(sizes, 1e10)}}
    machine = {"processor": "P", "commit": None, "charrnn_fast": "0.1.0"}
    return Run(machine, settings, {"torch": "2"}, {"jax": "not installed"}, peaks, list(rows))


# ---- cases --------------------------------------------------------------------------------


def test_flop_and_bytes() -> None:
    train = Case("train", "lstm", 50, 50, 128, 2, input_size=65)
    weights = 3 * 4 * 128 * 128 + 128 * 65
    assert train.flop == 6 * 2500 * weights
    assert train.bytes_read is None
    assert replace(train, suite="forward").flop == 2 * 2500 * 3 * 4 * 128 * 128
    assert replace(train, suite="backward").flop == 4 * 2500 * 3 * 4 * 128 * 128
    sample = replace(train, suite="sample", batch=64)
    assert (sample.flop, sample.bytes_read) == (2 * weights, 4 * weights / 64)  # of a character
    step = Case("step", "gru", 1, 200, 1024, 1, input_size=65)
    assert step.bytes_read == 4 * 3 * 1024 * (1024 + 65)
    assert Product(2, 3, 5).flop == 60


def test_every_suite_has_cases() -> None:
    for quick in (False, True):
        chosen = select(list(SUITES), None, quick)
        assert {case.suite for case in chosen} == set(SUITES)
        assert len(set(chosen)) == len(chosen)


@pytest.mark.parametrize("shape", [("lstm", 50, 50, 128, 2), (64, 512, 2048)])
def test_a_case_is_read_as_it_is_written(shape: Shape) -> None:
    assert parse(",".join(map(str, shape))) == shape


# ---- the sides ----------------------------------------------------------------------------


def test_the_peers_are_these() -> None:
    assert list(SUITES_OF) == list(MODULES)


@pytest.mark.parametrize(("peer", "suite"), [(p, s) for p in MODULES for s in SUITES])
def test_peers_compute_what_the_kernels_do(
    peer: str, suite: str, worker: Worker, text: Text
) -> None:
    try:
        assert worker.open(peer)
    except UnavailableError as error:
        pytest.skip(str(error))
    cells: tuple[str, ...] = ("rnn", "gru", "lstm")
    if peer == "torch.compile":
        cells = ("lstm",)
    if peer == "torch.bfloat16":
        cells = ("rnn", "gru")  # its LSTM takes processors with bfloat16
    for cell in cells if suite != "gemm" else ("",):
        shape: Shape = (3, 4, 5)
        if suite != "gemm":
            shape = (cell, 1 if suite == "step" else 3, 4, 8, 1 if suite == "step" else 2)
        problem = make(select([suite], [shape], False)[0], text)
        expected = kernels.tasks(problem)[kernels.NAME].check()
        try:
            units = worker.prepare(peer, problem)
        except UnavailableError as error:
            pytest.skip(str(error))
        assert bool(units) == (suite in SUITES_OF[peer])
        for side in units:
            try:
                outputs = worker.check(side)
            except UnavailableError as error:
                pytest.skip(str(error))
            runner.compare(problem.case, side, outputs, expected)
            assert worker.time(side, 2).seconds > 0
            if suite == "time-to-loss" and peer == "torch":
                assert 0 < worker.evaluate(side) < 10
        worker.clear()


def test_a_failing_compiler_is_named(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    def compiled(function: object) -> Callable[..., None]:
        def fail(*arguments: object) -> None:
            raise RuntimeError("no C++ compiler\nand a long trace")

        return fail

    monkeypatch.setattr(torch, "compile", compiled)
    before = torch.get_num_threads()
    problem = make(Case("forward", "rnn", 1, 2, 3, 1), text)
    task = load("torch.compile", 1).tasks(problem)["torch.compile"]
    torch.set_num_threads(before)
    with pytest.raises(UnavailableError, match=r"failed: RuntimeError: no C\+\+ compiler$"):
        task.check()


def test_a_cell_that_autocast_refuses_is_named(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    def fail(*arguments: object) -> None:
        raise RuntimeError("could not create a primitive\nand a long trace")

    monkeypatch.setattr(torch.nn.RNN, "forward", fail)
    before = torch.get_num_threads()
    problem = make(Case("train", "rnn", 1, 2, 3, 1), text)
    task = load("torch.bfloat16", 1).tasks(problem)["torch.bfloat16"]
    torch.set_num_threads(before)
    message = "^autocast to bfloat16 failed: RuntimeError: could not create a primitive$"
    with pytest.raises(UnavailableError, match=message):
        task.check()


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("suite", SUITES)
def test_the_kernels_agree_with_themselves(suite: str, compute_dtype: str, text: Text) -> None:
    problem = make(select([suite], [parse(SMALL[suite])], False)[0], text)
    first, *others = kernels.tasks(problem, compute_dtype=compute_dtype).items()
    rounded = compute_dtype != "float32" and suite != "gemm"
    assert ("kernels, bfloat16 products" in dict(others)) == rounded
    expected = first[1].check()
    for name, task in others:
        runner.compare(problem.case, name, task.check(), expected)
    first[1].run()


def test_a_difference_is_named() -> None:
    case = Product(1, 1, 2)
    ours = {"c": np.array([[1.0, 2.0]], np.float32)}
    runner.compare(case, "torch", {"c": ours["c"] + np.float32(1e-6)}, ours)
    wrong = r"gemm 1,1,2: c\[0, 1\] is 2.5 by torch and 2 by the kernels; nothing was timed"
    with pytest.raises(BenchError, match=wrong):
        runner.compare(case, "torch", {"c": np.array([[1.0, 2.5]])}, ours)
    with pytest.raises(BenchError, match="is nan by torch"):
        runner.compare(case, "torch", {"c": np.array([[np.nan, 2.0]])}, ours)
    with pytest.raises(BenchError, match="has shape"):
        runner.compare(case, "torch", {"c": np.zeros((2, 1))}, ours)
    with pytest.raises(BenchError, match="gives"):
        runner.compare(case, "torch", {"d": ours["c"]}, ours)


def test_errors_of_the_process(text: Text) -> None:
    with Worker(1) as process:
        with pytest.raises(BenchError, match="numpy: KeyError"):
            process.prepare("numpy", make(Product(1, 2, 3), text))  # not opened
        process._process.kill()
        with pytest.raises(BenchError, match="the peers' process ended"):
            process.open("numpy")


def test_a_short_text_is_refused() -> None:
    short = Text.of("short.txt", "abc" * 20)
    with pytest.raises(BenchError, match=r"short.txt must have more than 2500 .*lstm,50,50,8"):
        make(Case("train", "lstm", 50, 50, 8, 1), short)


# ---- runs and reports ---------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
def test_a_tiny_run(suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text(TEXT)
    files = {name: tmp_path / name for name in ("text", "json", "markdown")}
    threads = cf.get_num_threads()
    command = ["bench", suite, "--quick", "--blocks", "1", "--threads", "1", "--peers", "numpy"]
    named = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    assert main([*command, "--cases", SMALL[suite], *named]) == 0
    assert cf.get_num_threads() == threads
    output, progress = capsys.readouterr()
    assert output == files["markdown"].read_text()
    assert f"### {suite}: " in output
    assert f"[1/1] {suite} {SMALL[suite]}, 1 thread: " in progress
    run = Run.read(files["json"])
    (only,) = run.rows
    assert only.key == (suite, SMALL[suite], 1)
    assert only.seconds.median > 0
    assert only.share.median > 0
    if suite == "time-to-loss":
        assert kernels.NAME in only.reached
    else:
        assert only.peers["numpy"].ratio.median > 0


def test_the_kernels_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "gemm", "--quick", "--blocks", "2", "--threads", "1", "--cases", "2,3,4"]
    assert main([*command, "--peers"]) == 0
    assert "| 2, 3, 4 | 1 |" in capsys.readouterr().out


def test_products_of_bfloat16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A side of the kernels, and a peer that other runs do not have."""
    path = tmp_path / "run.json"
    command = ["bench", "train", "--quick", "--blocks", "1", "--threads", "1", "--cases"]
    command += ["rnn,3,4,8,1", "lstm,3,4,8,1", "--json", str(path), "--compute-dtype"]
    assert main([*command, "bfloat16", "--peers", "numpy", "torch.bfloat16"]) == 0
    assert "kernels, bfloat16 products" in capsys.readouterr().out
    run = Run.read(path)
    assert run.settings["compute_dtype"] == "bfloat16"
    for row in run.rows:
        assert row.peers["kernels, bfloat16 products"].ratio.median > 0
        # without PyTorch, or where its LSTM has no bfloat16
        if "torch.bfloat16" not in row.peers and "torch.bfloat16" not in run.unavailable:
            assert any("torch.bfloat16: autocast to bfloat16 failed" in n for n in row.notes)
    assert main([*command, "tf32", "--peers"]) == 2
    assert "--compute-dtype must be 'float32' or 'bfloat16' on cpu" in capsys.readouterr().err
    assert "torch.bfloat16" in runner.PEERS and "torch.bfloat16" not in runner.DEFAULT_PEERS


def test_an_interrupted_run_keeps_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = runner.Runner._measure
    calls = 0

    def interrupted(*arguments: object) -> Row:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return measure(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(runner.Runner, "_measure", interrupted)
    command = ["bench", "gemm", "--quick", "--blocks", "1", "--threads", "1", "--peers"]
    path = tmp_path / "run.json"
    assert main([*command, "--cases", "2,3,4", "5,6,7", "--json", str(path)]) == 130
    assert [row.case for row in Run.read(path).rows] == ["2,3,4"]
    assert "| 2, 3, 4 | 1 |" in capsys.readouterr().out


def test_json_comes_back(tmp_path: Path) -> None:
    run = result(*(row(suite) for suite in SUITES))
    run.write(tmp_path / "run.json")
    assert Run.read(tmp_path / "run.json") == run


def test_markdown_has_all_there_is() -> None:
    document = report.markdown(result(row(), row("time-to-loss")))
    for part in (
        "- processor: P",
        "- torch: 2",
        "- jax: left out, not installed",
        "| lstm, 3, 4, 8, 2 | 1 | 2.000 [1.500, 3.000] | 100,000 | 50% of 100 GFLOP/s | "
        "2.50 [2.25, 2.75] (2.000) |",
        "- lstm,3,4,8,2, threads 1: jax: no",
        "torch 0.7 s",
        "| lstm, 3, 4, 8, 2 | 1 | kernels | 2 | 1.50 | 25 | 1.9000 | 1.00 |",
    ):
        assert part in document, document
    assert "commit" not in document
    assert "busy" not in document
    slow = replace(row(), free=0.75)
    assert "- the machine was busy: other programs took 25%" in report.markdown(result(slow))


def test_head_against_base() -> None:
    base = result(row(), row("forward"), row("gemm", "1,2,3"))
    head = result(row(share=0.25), row("forward", share=0.501), row("backward"))
    head.machine["isa"] = "neon"
    found = {change.row.suite: change for change in comparison.changes(head, base)}
    assert set(found) == {"train", "forward"}
    assert (found["train"].ratio, found["train"].verdict) == (2.0, "SLOWER")
    assert found["forward"].verdict == ""  # the quartiles meet
    assert comparison.changes(base, head)[0].verdict == "faster"
    document = comparison.markdown(head, base, "base.json")
    for part in (
        "compared with base.json (version 0.1.0)",
        "| train | lstm, 3, 4, 8, 2 | 1 | 2.000 | SLOWER |",
        "Not in the base: backward lstm,3,4,8,2, threads 1.",
        "isa is neon, of the base None",
    ):
        assert part in document, document


def test_plots_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from charrnn_fast.bench import plots

    folder = tmp_path / "plots"
    paths = plots.write(result(*(row(suite) for suite in SUITES)), folder)
    assert [path.stem for path in paths] == ["roofline", *SUITES]
    assert all("</svg>" in path.read_text() for path in paths)


# ---- the command line ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "suite must be one of train, forward"),
        (["--peers", "theano"], "peer must be one of numpy, torch"),
        (["train", "--cases", "lstm,50"], "case must be a cell of"),
        (["train", "--cases", "tcn,1,2,3,4"], "got 'tcn,1,2,3,4'"),
        (["train", "--cases", "lstm,1,0,3,4"], "got 'lstm,1,0,3,4'"),
        (["train", "--cases", "1,2,3"], "case must fit one of train, got 1,2,3"),
        (["--compare", "{folder}/no.json"], "no.json: No such file or directory"),
        (["--compare", "{text}"], "text is no result of a benchmark: Expecting value"),
        (["--compare", "{other}"], "other.json is no result of a benchmark of format 1"),
        (["--compare", "{old}"], "old.json is no result of a benchmark: machine is missing"),
        (["--json", "{folder}/no/run.json"], "run.json: its folder does not exist"),
        (["--json", "{folder}"], "is a folder, not a file"),
        (["--markdown", "{folder}/no/run.md"], "run.md: its folder does not exist"),
        (["--plots", "{folder}/no/plots"], "plots: its folder does not exist"),
        (["--plots", "{text}"], "--plots: {text} is a file, not a folder"),
        (["--text", "{folder}/no"], "no: No such file or directory"),
        (["--text", "{latin}"], "latin: invalid UTF-8 at byte 4"),
        (["--text", "{empty}"], "empty: the text is empty"),
        (["--blocks", "0"], "--blocks: must be >= 1, got 0"),
        (["--threads", "x"], "--threads: invalid integer value: 'x'"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_timed(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    def never(self: runner.Runner) -> Run:
        raise AssertionError

    monkeypatch.setattr(runner.Runner, "run", never)
    names = {name: str(tmp_path / name) for name in ("text", "latin", "empty")}
    names |= {"folder": str(tmp_path), "other": str(tmp_path / "other.json")}
    names["old"] = str(tmp_path / "old.json")
    Path(names["text"]).write_text(TEXT)
    Path(names["latin"]).write_bytes("grün für".encode("latin-1").replace(b"gr", b"gran"))
    Path(names["empty"]).write_text("")
    Path(names["other"]).write_text('{"format": 0}')
    Path(names["old"]).write_text('{"format": 1}')
    try:
        status = main(["bench", *(argument.format(**names) for argument in arguments)])
    except SystemExit as stop:
        status = int(str(stop.code))
    output, error = capsys.readouterr()
    assert (status, output) == (2, "")
    assert message.format(**names) in error
    assert error.startswith("charrnn-fast: error: ")
    assert error.count("\n") == 1


def test_plots_without_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn_fast.bench.command.find_spec", lambda name: None)
    assert main(["bench", "gemm", "--plots", str(tmp_path)]) == 2
    assert "pip install 'charrnn_fast[plot]'" in capsys.readouterr().err


def test_a_missing_peer_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(self: Worker, peer: str) -> str:
        raise UnavailableError(f"{peer} is not installed")

    monkeypatch.setattr(Worker, "open", missing)
    command = ["bench", "gemm", "--quick", "--blocks", "1", "--threads", "1", "--cases", "2,3,4"]
    assert main([*command, "--peers", "jax"]) == 0
    output, progress = capsys.readouterr()
    assert "- jax: left out, jax is not installed\n" in output
    assert progress.startswith("jax is left out: jax is not installed\n")


def test_benchmarks_are_imported_only_by_their_command() -> None:
    code = "import sys, charrnn_fast.cli; print('charrnn_fast.bench' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


# ---- measurements in C++ ------------------------------------------------------------------


def test_timed_steps_are_steps() -> None:
    rnn = cf.RNN(5, 7, 3, cell="lstm", num_layers=2)
    x = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    state, expected = rnn.states.zeros(2), rnn.states.zeros(2)
    assert _core.time_steps(rnn._core, x, state, 4) > 0
    for _ in range(4):
        rnn._core.step(x, expected)
    assert state.tobytes() == expected.tobytes()


def test_measurements_check_their_arguments() -> None:
    rnn = cf.RNN(5, 7)
    x, state = np.zeros((2, 5), np.float32), rnn.states.zeros(2)
    with pytest.raises(ValueError, match=r"x must have shape \[B, 5\], got \[5\]"):
        _core.time_steps(rnn._core, x[0], state, 1)
    with pytest.raises(TypeError, match="x must have dtype float32, got float64"):
        _core.time_steps(rnn._core, x.astype(np.float64), state, 1)
    with pytest.raises(ValueError, match="state must have shape"):
        _core.time_steps(rnn._core, x, rnn.states.zeros(3), 1)
    with pytest.raises(ValueError, match="count must be >= 1, got 0"):
        _core.time_steps(rnn._core, x, state, 0)
    with pytest.raises(ValueError, match="bytes must be >= 64, got 63"):
        _core.read_bandwidth(63, 0.0)
    assert _core.read_bandwidth(100, 0.0) > 0

"""benchmarks/scaling.py: its computations, and its errors for wrong arguments. No times."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from charrnn_fast import _core
from charrnn_fast.bench.results import Spread

pytestmark = [
    pytest.mark.unsanitized("measures time"),
]

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "scaling.py"


@pytest.fixture(scope="module")
def scaling() -> Any:
    spec = importlib.util.spec_from_file_location("scaling", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["scaling"]


def measured(scaling: Any, value: int, seconds: float, share: float) -> Any:
    point = replace(scaling.Point(), batch=value)
    one = Spread.of([share])
    moved = {"decoder": 0.1}
    return scaling.Measured(
        point, value, Spread.of([seconds]), point.flop, one, moved, 1.0, 1000, 10, 10**8 * value
    )


def test_exponents(scaling: Any) -> None:
    x = [1, 2, 4, 8]
    assert scaling.exponent(x, [3 * v**1.5 for v in x]) == pytest.approx(1.5)
    assert scaling.exponent(x, [1, 1, 0, 1]) is None
    assert scaling.exponent([1], [1]) is None


def test_an_axis_says_where_it_parts_from_its_operations(scaling: Any) -> None:
    points = [measured(scaling, *p) for p in ((1, 1.0, 0.25), (2, 1.0, 0.5), (4, 2.0, 0.5))]
    axis = scaling.Axis("B", scaling.Point(), points)
    fits = {fit.what: fit for fit in axis.fits()}
    assert fits["operations"].all == pytest.approx(1)
    assert fits["time"].all == pytest.approx(0.5)
    assert fits["memory"].all == pytest.approx(1)
    (found,) = scaling.departures(axis)
    assert found.startswith("- B 1 to 2: time 0.00, operations 1.00; share of the peak 25% to 50%.")
    assert "tiles of few rows, calls: B 1 and 2" in found


def test_operations_and_memory_of_a_point(scaling: Any) -> None:
    point = scaling.Point("gru", 5, 3, 8, 2, 7)
    assert point.flop == 6 * 15 * (3 * 3 * 64 + 8 * 7)
    assert point.block_rows == 15
    # h and four values more in each of two layers; four gradients of gates, one of h
    assert point.working()["tape"] == 4 * 15 * 8 * (2 * 5 + 4 + 1)
    assert replace(point, vocab_size=100_000).block_rows == 15
    assert replace(point, vocab_size=100_000, batch=50).block_rows == 41


@pytest.mark.slow
def test_a_small_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = {name: tmp_path / f"run.{name}" for name in ("json", "markdown", "svg")}
    command = [sys.executable, str(SCRIPT), "B", "--quick", "--rounds", "2", "--values", "1,3"]
    options = ["--json", files["json"], "--markdown", files["markdown"], "--plot", files["svg"]]
    done = subprocess.run(
        [*command, "--base", "gru,4,3,8,2,9", *map(str, options)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "[2/2] B 3: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == files["markdown"].read_text()
    assert "### B, at gru, T 4, H 8, L 2, V 9" in done.stdout
    assert "</svg>" in files["svg"].read_text()
    axis = json.loads(files["json"].read_text())["axes"]["B"]
    assert [point["value"] for point in axis["points"]] == [1, 3]
    assert all(point["seconds"]["median"] > 0 for point in axis["points"])
    network = _core.ModelFloat32("gru", 9, 8, 9, 2, "double")
    assert axis["points"][0]["parameters"] == network.num_parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Q"], "axis must be one of T, B, H, L, V, got 'Q'"),
        (["--base", "lstm,1,2"], "--base must be a cell of rnn, gru"),
        (["--base", "lstm,1,2,0,4,5"], "--base must be a cell"),
        (["--base", "tcn,1,2,3,4,5"], "--base must be a cell"),
        (["--values", "1,2"], "--values must come with one axis, got T, B, H, L, V"),
        (
            ["T", "--values", "2,1"],
            "--values must be two or more numbers, ascending, as 25,50,100, got '2,1'",
        ),
        (["T", "--values", "2"], "must be two or more numbers"),
        (["T", "--values", "2,x"], "must be two or more numbers"),
        (["--threads", "0"], "--threads: must be >= 1, got 0"),
        (["--threads", "100000"], "--threads: 100000, this process has "),
        (["--threads", "x"], "argument --threads: invalid int value: 'x'"),
        (["--rounds", "0"], "--rounds: must be >= 1, got 0"),
        (["--json", "{folder}"], "is a folder, not a file"),
        (["--markdown", "{folder}/no/a.md"], "its folder does not exist"),
        (["--plot", "{folder}/a.txt"], "--plot must be a name in .svg, .png or .pdf"),
    ],
)
def test_wrong_arguments(
    scaling: Any,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        status = scaling.main([argument.format(folder=tmp_path) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    output, error = capsys.readouterr()
    assert (status, output) == (2, "")
    assert error.startswith("scaling.py: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_point_that_cannot_be(scaling: Any) -> None:
    point = scaling.Point(hidden_size=2**30)
    with pytest.raises(scaling.BenchError, match=r"lstm, T 50, B 50, H 1073741824, L 1, V 64: "):
        scaling.Child(point, scaling.Settings())

"""The examples that follow the article: each runs unchanged, and its figures are checked."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tolerances import assert_close, network

pytestmark = pytest.mark.unsanitized("trains for long, by calls that other tests make")

EXAMPLES = Path(__file__).parents[1] / "examples"


def _example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hello(capsys: pytest.CaptureFixture[str]) -> None:
    hello = _example("hello")
    figures = hello.main()
    positions, targets = np.arange(4), hello.TARGETS
    assert hello.VOCABULARY.decode(targets) == "ello"
    for stage in (figures.before, figures.nudged, figures.trained):
        assert stage.shape == (4, 4)
        assert_close("the sum", stage.sum(axis=1), np.ones(4), network("float32", terms=4, steps=1))

    correct = [stage[positions, targets] for stage in figures[:3]]
    assert correct[0].max() < 0.5, "it knows the word before training"
    assert (correct[1] > correct[0]).all(), "an update made a correct character less probable"
    assert figures.predicted == "ello" and correct[2].min() > 0.95
    # the same input twice with different answers: without its memory the network cannot tell
    assert figures.forgetful[2] == figures.forgetful[3]
    assert figures.same_bits
    assert capsys.readouterr().out.count("*") == 3 * 4 + 1


def test_two_rnns(capsys: pytest.CaptureFixture[str]) -> None:
    figures = _example("two_rnns").main()
    stacked, two_layers = np.transpose(figures.losses)
    # a sum has at most 32 steps * 16 rows; an update passes on what the earlier ones left
    tolerance = len(stacked) * network("float32", terms=32 * 16, steps=32 + 2)
    assert_close("losses", stacked, two_layers, tolerance)
    assert figures.largest_difference <= tolerance
    assert figures.steps_agree
    assert stacked[-1] < stacked[0] - 1.5
    assert "two networks" in capsys.readouterr().out


@pytest.mark.slow
def test_min_char_rnn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "curves.png"
    arguments = ["--iterations", "1500", "--plot", str(picture)]
    numpy, kernels, one_bit_off = _example("min_char_rnn").main(arguments)
    # in its first updates, this setting magnifies a difference about fifty times by each of them
    for update in range(6):
        tolerance = 50**update * network("float64", terms=200, steps=25)
        relative = kernels.losses[update] / numpy.losses[update]
        assert_close(f"loss of update {update}", relative, 1.0, tolerance)
    for curve in (kernels, one_bit_off):
        assert np.abs(curve.smoothed / numpy.smoothed - 1).max() < 0.06
    assert kernels.smoothed[-1] < 0.7 * kernels.smoothed[0]
    assert min(numpy.seconds, kernels.seconds) > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "the kernels are" in capsys.readouterr().out


def test_min_char_rnn_reads_a_text_over_and_over(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abc\n" * 20, encoding="utf-8")
    arguments = [str(text), "--iterations", "60", "--no-plot", "--dtype", "float32"]
    numpy, kernels, _ = _example("min_char_rnn").main(arguments)
    assert kernels.losses[-1] < 0.5 * kernels.losses[0]
    assert len(numpy.losses) == 60


def test_min_char_rnn_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = _example("min_char_rnn")
    short = tmp_path / "short.txt"
    short.write_text("abc", encoding="utf-8")
    same = tmp_path / "same.txt"
    same.write_text("a" * 100, encoding="utf-8")
    for arguments, message in (
        (["--iterations", "0"], "--iterations must be 1 or more, got 0"),
        ([str(short), "--no-plot"], "TEXT must have 27 characters or more, got 3"),
        ([str(same), "--no-plot"], "TEXT must have two different characters or more"),
        ([str(tmp_path / "missing.txt"), "--no-plot"], "missing.txt"),
        (
            ["--plot", str(tmp_path / "no" / "a.png")],
            f"--plot: there is no folder {tmp_path / 'no'}",
        ),
        (["--plot", str(tmp_path)], f"--plot: {tmp_path} is a folder"),
        (["--plot", str(tmp_path / "a.txt")], "--plot: pictures end in "),
    ):
        with pytest.raises(SystemExit):
            example.main(arguments)
        assert message in capsys.readouterr().err
    monkeypatch.setattr(example, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        example.main([])
    assert "pip install 'charrnn_fast[plot]', or give --no-plot" in capsys.readouterr().err


def test_an_example_runs_as_a_script() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "hello.py")], capture_output=True, text=True, check=True
    )
    assert "after 100 more: it predicts e, l, l, o" in done.stdout

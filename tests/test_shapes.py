"""The examples of the article's shapes of sequence work: figures against bounds and baselines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from test_article import EXAMPLES, _example

pytestmark = pytest.mark.unsanitized("trains for long, by calls that other tests make")

SHAPES = ("one_to_one", "many_to_one", "synced_many_to_many")


def _run(name: str, tmp_path: Path) -> tuple[Any, Any]:
    """The example's module and its figures; it has drawn its picture."""
    example, picture = _example(name), tmp_path / "picture.png"
    figures = example.main(["--plot", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert figures.accuracy >= example.LEAST_ACCURACY
    return example, figures


@pytest.mark.slow
def test_one_to_one(tmp_path: Path) -> None:
    example, figures = _run("one_to_one", tmp_path)
    assert example.DIGITS.shape == (10, 7, 5)
    assert figures.majority < 0.15
    assert figures.majority < figures.linear < 0.5
    assert figures.largest_recurrent_gradient == 0, "one step has no use for W_hh"


@pytest.mark.slow
def test_many_to_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, figures = _run("many_to_one", tmp_path)
    assert figures.majority < 0.55
    assert figures.majority < figures.bag_of_words < 0.65, "the words decide without their order"
    verdicts = [
        float(line.split("%")[0])
        for line in capsys.readouterr().out.splitlines()
        if "% positive: " in line
    ]
    assert [verdict > 50 for verdict in verdicts] == [True, False, True, False]


@pytest.mark.slow
def test_synced_many_to_many(tmp_path: Path) -> None:
    _, figures = _run("synced_many_to_many", tmp_path)
    assert figures.majority < 0.25
    assert figures.single_frames < 0.25, "a frame by itself tells where the dot goes"


@pytest.mark.parametrize("name", SHAPES)
def test_a_picture_is_refused_before_the_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = _example(name)
    for picture, message in (
        (tmp_path / "no" / "a.png", f"there is no folder {tmp_path / 'no'}"),
        (tmp_path / "a.txt", "pictures end in .pdf, .png or .svg"),
    ):
        with pytest.raises(SystemExit):
            example.main(["--plot", str(picture)])
        assert message in capsys.readouterr().err
    monkeypatch.setattr(example, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        example.main(["--plot", "a.png"])
    assert "takes matplotlib: pip install 'charrnn_fast[plot]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_missed_bound_fails_the_script(tmp_path: Path) -> None:
    script, bound = tmp_path / "many_to_one.py", "LEAST_ACCURACY = 0.95"
    source = (EXAMPLES / script.name).read_text(encoding="utf-8")
    assert bound in source
    script.write_text(source.replace(bound, "LEAST_ACCURACY = 1.01"), encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("% right, it has to be 101%\n")

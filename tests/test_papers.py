"""benchmarks/papers.py: rows are trained, skipped and resumed, and wrong ones refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from charrnn_fast import CharLM, Corpus
from charrnn_fast.cli import main as charrnn_fast
from charrnn_fast.training import log

PROGRAM = Path(__file__).parents[1] / "benchmarks"
PLAN = """
[paper]
what = "A paper"
best = 1.25
ngram = 1.5
[text]
line_ends = "crlf"
[settings]
bytes = true
split = [0.8, 0.1, 0.1]
batch_size = 4
seq_len = 16
epochs = 2
sample_length = 0
log_every = 5
[hidden_size.4]
learning_rate = 1e-2
[cell.gru]
learning_rate = 2e-2
[row.gru-2x4]
seq_len = 8
[rows]
lstm-1x4 = 1.75
gru-2x4 = ""
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text and a plan, where papers.py runs."""
    monkeypatch.syspath_prepend(str(PROGRAM))
    monkeypatch.chdir(tmp_path)
    letters = np.random.default_rng(0).choice(list("abcdef \n"), 3000)
    (tmp_path / "text.txt").write_bytes("".join(letters).encode())
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path


def run(*arguments: str) -> None:
    import papers

    files = ["--json", "rows.json", "--markdown", "rows.md", "--logs", "logs", "--runs", "runs"]
    papers.main(["text.txt", "--plan", "plan.toml", *files, *arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a call that is refused says."""
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_rows_one_after_another(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run("--count", "1")
    table = (folder / "rows.md").read_text()
    assert "| lstm 1x4 |" in table and "gru" not in table
    assert "best network has 1.25, their n-gram model 1.5. Rows left to train: 1." in table
    capfd.readouterr()
    run()
    printed = capfd.readouterr().out
    assert printed.startswith("lstm-1x4: finished, test ")
    assert printed.count("-m charrnn_fast train") == 1

    data = (folder / "text.txt").read_bytes().replace(b"\n", b"\r\n")
    assert (folder / "runs" / "text.txt").read_bytes() == data
    content = json.loads((folder / "rows.json").read_text())
    assert content["text"]["bytes"] == len(data)
    assert list(content["rows"]) == ["lstm-1x4", "gru-2x4"]
    entry = content["rows"]["gru-2x4"]
    assert entry["minutes"] > 0
    first = content["rows"]["lstm-1x4"]["settings"]
    assert (entry["settings"]["learning_rate"], first["learning_rate"]) == (2e-2, 1e-2)
    assert (entry["settings"]["seq_len"], first["seq_len"]) == (8, 16)
    validation = [
        e["validation_loss"]
        for e in log.read(folder / "logs" / "gru-2x4.jsonl")
        if e["type"] == "evaluation"
    ]
    assert entry["validation"] == min(validation)
    model = CharLM.load("runs/gru-2x4.best.safetensors")
    split = (0.8, 0.1, 0.1)
    corpus = Corpus.from_files("runs/text.txt", vocabulary=model.vocabulary, split=split)
    assert corpus.test is not None
    test = model.evaluate_ids(corpus.test, corpus.test_starts)
    assert entry["test"] == test < math.log(256)
    line = next(line for line in (folder / "rows.md").read_text().splitlines() if "gru 2x4" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:5] == [
        "gru 2x4", f"{model.num_parameters:,}", f"{min(validation):.4f}", f"{test:.4f}", ""
    ]  # fmt: skip
    assert "| 1.75 |" in (folder / "rows.md").read_text()


def test_an_interrupted_row_is_resumed(folder: Path) -> None:
    run("--rows", "lstm-1x4")
    whole = json.loads((folder / "rows.json").read_text())["rows"]["lstm-1x4"]
    (folder / "rows.json").unlink()
    (folder / "runs" / "lstm-1x4.toml").rename(folder / "settings.toml")
    for path in (folder / "runs").glob("lstm*"):
        path.unlink()
    begun = ["runs/text.txt", "-o", "runs/lstm-1x4.safetensors", "--config", "settings.toml"]
    assert charrnn_fast(["train", *begun, "--epochs", "1"]) == 0
    run("--rows", "lstm-1x4")
    resumed = json.loads((folder / "rows.json").read_text())["rows"]["lstm-1x4"]
    for name in ("validation", "test", "curve"):
        assert resumed[name] == whole[name], name
    assert resumed["minutes"] is None  # of the part before, nothing is known
    steps = [
        e["step"] for e in log.read(folder / "logs" / "lstm-1x4.jsonl") if e["type"] == "resume"
    ]
    assert steps == [whole["curve"][0][0]]


def test_other_settings_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--rows", "lstm-1x4")
    capsys.readouterr()
    said = refused(capsys, "--seed", "1")
    assert "rows.json must have rows of the settings given, got lstm-1x4 of other ones" in said
    (folder / "rows.json").unlink()
    said = refused(capsys, "--seed", "1")
    assert "lstm-1x4.toml must have the settings of lstm-1x4, got other ones" in said
    (folder / "text.txt").write_text("another text")
    assert "must be a folder for this text, got runs with another one" in refused(capsys)
    assert "must be of the text given" in refused_text(folder, capsys)


def refused_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of finished rows of another text."""
    about = {"bytes": 1, "sha256": ""}
    (folder / "rows.json").write_text(json.dumps({"text": about, "rows": {}}))
    return refused(capsys, "--runs", "others")


def test_wrong_arguments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "--rows", "lstm-1x4", "lstm-9x9")
    assert "--rows must be of lstm-1x4, gru-2x4, got lstm-9x9" in said
    assert "--count must be 1 or more, got 0" in refused(capsys, "--count", "0")
    (folder / "text.txt").write_bytes(b"a\r\nb\r\n")
    assert "must have line ends of LF alone, got CR" in refused(capsys)
    (folder / "text.txt").unlink()
    assert "TEXT must be a readable file" in refused(capsys)
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("gru-2x4", "tree-2x4", "a row must be CELL-LAYERSxUNITS, as lstm-2x128, got 'tree-2x4'"),
        ("gru-2x4", "gru-2", "a row must be CELL-LAYERSxUNITS, as lstm-2x128, got 'gru-2'"),
        ("gru-2x4", "gru-2x5", "gru-2x5 needs the table hidden_size.5"),
        ("1.75", "-1.0", 'lstm-1x4 must be a loss above 0 or "", got -1.0'),
        ('"crlf"', '"cr"', "line_ends must be one of lf, crlf, got 'cr'"),
        ("[row.gru-2x4]", "[row.gru-9x4]", "row.gru-9x4 must be of a row of the table rows"),
        ("[paper]", "[book]", "must have the tables paper, text, settings, hidden_size, cell"),
        ("[rows]", "[rows", "plan.toml must be a TOML file"),
    ],
)
def test_wrong_plans(
    folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    (folder / "plan.toml").write_text(PLAN.replace(old, new))
    assert said in refused(capsys)
    assert not (folder / "runs").exists()


def test_the_published_plan_is_readable(folder: Path) -> None:
    import papers

    plan = papers.read_plan(PROGRAM / "papers.toml")
    assert list(plan.rows)[:3] == ["lstm-2x128", "lstm-2x256", "lstm-2x512"]
    assert len(plan.rows) == 36

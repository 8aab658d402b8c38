"""Logs of trainings, and the plots drawn from them."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charrnn_fast import CharLM, Corpus, Trainer
from charrnn_fast.callbacks import Callback, Update
from charrnn_fast.log import JsonLog, TensorBoardLog
from charrnn_fast.training import log, plot

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20


def make(*callbacks: Callback, **options: Any) -> Trainer:
    """Six chunks an epoch."""
    corpus = Corpus.from_text(TEXT)
    model = CharLM(corpus.vocabulary, 8, 1, seed=1)
    return Trainer(model, corpus, 6, 20, callbacks=callbacks, sample_length=7, **options)


class Watch(Callback):
    def __init__(self) -> None:
        self.updates: list[Update] = []

    def updated(self, trainer: Trainer, update: Update) -> None:
        self.updates.append(update)


def entries(path: Path, kind: str) -> list[dict[str, Any]]:
    return [entry for entry in log.read(path) if entry["type"] == kind]


def test_a_log_sums_up_the_updates(tmp_path: Path) -> None:
    path, watch = tmp_path / "run.jsonl", Watch()
    trainer = make(JsonLog(path, every=4), watch)
    trainer.fit(epochs=2, progress=False)
    (start,) = entries(path, "start")
    assert start["model"]["num_parameters"] == trainer.model.num_parameters
    assert start["settings"]["batch_size"] == 6
    assert (start["text"], start["vocabulary"], start["unit"]) == (880, 28, "character")
    lines = entries(path, "updates")
    assert [(line["step"], line["count"]) for line in lines] == [(4, 4), (6, 2), (10, 4), (12, 2)]
    for line in lines:
        part = watch.updates[line["step"] - line["count"] : line["step"]]
        assert line["loss"] == pytest.approx(np.mean([u.loss for u in part]))
        assert line["gradient_norm"] == pytest.approx(np.mean([u.gradient_norm for u in part]))
        assert (line["epoch"], line["learning_rate"]) == (part[-1].epoch, part[-1].learning_rate)
        assert line["symbols_per_second"] > 0
    assert [
        {k: v for k, v in e.items() if k not in ("type", "sample")}
        for e in entries(path, "evaluation")
    ] == [entry._asdict() for entry in trainer.history]
    assert all(len(entry["sample"]) == 7 for entry in entries(path, "evaluation"))


def test_a_resumed_training_goes_on_in_its_log(tmp_path: Path) -> None:
    """Killed after more steps than its checkpoint holds: repeated steps have one line each."""
    straight, path, model = (tmp_path / name for name in ("straight", "log", "model"))
    make(JsonLog(straight, 1)).fit(epochs=3, progress=False)
    killed = make(JsonLog(path, 1), checkpoint_path=model)
    killed.fit(steps=6, progress=False)
    kept = model.read_bytes()
    killed.fit(steps=5, progress=False)
    model.write_bytes(kept)
    with path.open("a") as file:
        file.write('{"type": "updates", "st')  # the kill came in the middle of a line
    resumed = Trainer.resume(model, Corpus.from_text(TEXT), callbacks=[JsonLog(path, 1)])
    resumed.fit(steps=12, progress=False)
    assert [e["step"] for e in entries(path, "resume")] == [6, 6]  # each fit but the first
    for kind, names in (
        ("updates", ("step", "epoch", "loss", "gradient_norm", "learning_rate")),
        ("evaluation", ("step", "validation_loss", "train_loss", "sample")),
    ):
        ours, theirs = entries(path, kind), entries(straight, kind)
        assert [[e[n] for n in names] for e in ours] == [[e[n] for n in names] for e in theirs]


def test_a_log_is_replaced_with_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that is to replace another one, and is killed before its first checkpoint, leaves
    that one's checkpoint and its log."""
    path, model = tmp_path / "log", tmp_path / "model"
    make(JsonLog(path, 1), checkpoint_path=model).fit(steps=6, progress=False)
    old, checkpoint = list(log.read(path)), model.read_bytes()

    options = {"checkpoint_path": model, "checkpoint_every": 4}
    new = make(JsonLog(path, 1), learning_rate=0.5, **options)
    update = new._next_update

    def killed(*arguments: Any) -> Update:
        if new.num_steps == 3:
            raise RuntimeError("killed")
        return update(*arguments)

    monkeypatch.setattr(new, "_next_update", killed)
    with pytest.raises(RuntimeError, match="killed"):
        new.fit(steps=6, progress=False)
    assert model.read_bytes() == checkpoint
    # what is read is the training that was at it last
    (start,) = entries(path, "start")
    assert start["settings"]["learning_rate"] == 0.5
    assert [line["step"] for line in entries(path, "updates")] == [1, 2, 3]
    log_of_both = path.read_bytes()
    resumed = Trainer.resume(model, Corpus.from_text(TEXT), callbacks=[JsonLog(path, 1)])
    resumed.fit(steps=1, progress=False)
    found = list(log.read(path))
    assert found[: len(old)] == old
    assert found[len(old)] == {"type": "resume", "step": 6}
    # once it has a checkpoint of its own, the other one's lines go
    path.write_bytes(log_of_both)
    new = make(JsonLog(path, 1), learning_rate=0.25, **options)
    new.fit(steps=5, progress=False)
    assert len(path.read_text().split('"start"')) == 2
    assert entries(path, "start")[0]["settings"]["learning_rate"] == 0.25
    assert [line["step"] for line in entries(path, "updates")] == [1, 2, 3, 4, 5]


def test_every_checkpoint_ends_a_line_of_the_log(tmp_path: Path) -> None:
    path, model = tmp_path / "log", tmp_path / "model"
    trainer = make(JsonLog(path, 4), checkpoint_path=model, checkpoint_every=3, evaluate_every=7)
    trainer.fit(steps=8, progress=False)
    assert [e["step"] for e in entries(path, "updates")] == [3, 6, 7, 8]
    assert sum(e["count"] for e in entries(path, "updates")) == 8


def test_one_training_at_a_time_has_a_log(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / "log"

    class Another(Callback):
        def updated(self, trainer: Trainer, update: Update) -> None:
            with pytest.raises(BlockingIOError, match="a running training writes to this"):
                JsonLog(path)
            told.append(update.step)

    told: list[int] = []
    make(JsonLog(path), Another()).fit(steps=2, progress=False)
    assert told == [1, 2]
    JsonLog(path)


def test_an_evaluation_that_comes_again_is_there_once(tmp_path: Path) -> None:
    path, model = tmp_path / "log", tmp_path / "model"
    trainer = make(JsonLog(path), checkpoint_path=model)
    trainer.fit(steps=6, progress=False)
    trainer.history.clear()
    trainer._losses, trainer._evaluation_due = (
        (6, 18.0),
        True,
    )  # as of a checkpoint before the evaluation
    trainer.save(model)
    resumed = Trainer.resume(model, Corpus.from_text(TEXT), callbacks=[JsonLog(path)])
    resumed.fit(steps=0, progress=False)
    assert [e["step"] for e in entries(path, "evaluation")] == [6]


def test_a_file_that_is_no_log_is_not_overwritten(tmp_path: Path) -> None:
    for content in ("years of work\n", '{"type": "updates"}\n', "[1]\n", "no end"):
        (tmp_path / "thesis").write_text(content)
        with pytest.raises(FileExistsError, match="no log of a training"):
            JsonLog(tmp_path / "thesis")
        assert (tmp_path / "thesis").read_text() == content
    with pytest.raises(FileNotFoundError):
        JsonLog(tmp_path / "missing" / "log")
    with pytest.raises(ValueError, match="every must be >= 1, got 0"):
        JsonLog(tmp_path / "log", 0)


def test_a_log_with_a_wrong_line_is_told(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"type": "start"}\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"log is no log of a training: line 2 is no entry"):
        list(log.read(tmp_path / "log"))


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    board = pytest.importorskip("tensorboardX.proto.event_pb2")
    record = pytest.importorskip("tensorboardX.record_writer")
    watch = Watch()
    trainer = make(TensorBoardLog(tmp_path), watch)
    trainer.fit(epochs=1, progress=False)
    (file,) = tmp_path.iterdir()
    data, at, found = file.read_bytes(), 0, {}
    assert record.RecordWriter
    while at < len(data):  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[at : at + 8], "little")
        event = board.Event.FromString(data[at + 12 : at + 12 + size])
        at += 16 + size
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    for update in watch.updates:
        for name in ("loss", "gradient_norm", "learning_rate"):
            expected = getattr(update, name)
            assert found[f"training/{name}", update.step] == pytest.approx(expected, rel=1e-6)
    loss = trainer.history[0].validation_loss
    assert found["validation/loss", 6] == pytest.approx(loss, rel=1e-6)


def test_a_picture_takes_an_ending(tmp_path: Path) -> None:
    path = tmp_path / "log"
    make(JsonLog(path)).fit(steps=1, progress=False)
    with pytest.raises(ValueError, match=r"picture must end in its format, .* got .*curve"):
        plot.curves([path], tmp_path / "curve")
    (tmp_path / "binary").write_bytes(b"\x80\n")
    with pytest.raises(ValueError, match="binary is no log of a training: line 1"):
        plot.curves([tmp_path / "binary"], tmp_path / "curve.png")


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'charrnn-fast\[tensorboard\]'"):
        TensorBoardLog(tmp_path)
    path = tmp_path / "log"
    make(JsonLog(path)).fit(steps=1, progress=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'charrnn-fast\[plot\]'"):
        plot.curves([path], tmp_path / "picture.png")


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_curves_are_drawn(tmp_path: Path, ending: str) -> None:
    logs = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for path in logs:
        make(JsonLog(path, 2)).fit(epochs=2, progress=False)
    picture = tmp_path / f"curve.{ending}"
    plot.curves(logs, picture)
    beginning = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending]
    assert picture.read_bytes().startswith(beginning)
    if ending == "svg":  # its words are drawn as shapes, and stand beside them as comments
        words = picture.read_text()
        for word in ("one.jsonl: training", "two.jsonl: validation, best", "learning rate"):
            assert f"<!-- {word}" in words


def test_a_log_without_updates_is_told(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(json.dumps({"type": "start", "unit": "byte"}) + "\n")
    with pytest.raises(ValueError, match="holds no updates: there is nothing to draw yet"):
        plot.curves([path], tmp_path / "picture.png")
    make(JsonLog(path)).fit(steps=1, progress=False)
    with pytest.raises(ValueError, match=r"picture.xyz: Format 'xyz' is not supported"):
        plot.curves([path], tmp_path / "picture.xyz")
    assert os.listdir(tmp_path) == ["log"]


UPDATES = {
    "type": "updates",
    "step": 1,
    "epoch": 0.5,
    "loss": 3.0,
    "gradient_norm": 1.0,
    "learning_rate": 0.002,
}
EVALUATION = {"type": "evaluation", "step": 1, "epoch": 0.5, "validation_loss": 3.0}
NO_NUMBERS: list[Any] = [None, "3", True, -1, 10**400, [], [1.0], {}, {"x": 1}]


@pytest.mark.parametrize("entry", [UPDATES, EVALUATION, {"type": "resume", "step": 1}])
def test_an_entry_with_a_wrong_value_is_named(tmp_path: Path, entry: dict[str, Any]) -> None:
    path, start = tmp_path / "log", json.dumps({"type": "start", "unit": "byte"})
    for key in entry.keys() - {"type"}:
        for wrong in NO_NUMBERS:
            path.write_text(f"{start}\n{json.dumps({**entry, key: wrong})}\n")
            with pytest.raises(ValueError, match=rf"log is no log of a training: line 2: {key} mu"):
                plot.curves([path], tmp_path / "picture.png")
        path.write_text(f"{start}\n{json.dumps({k: v for k, v in entry.items() if k != key})}\n")
        with pytest.raises(ValueError, match=f"line 2: {key} is missing"):
            plot.curves([path], tmp_path / "picture.png")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"NaN", "line 2 is no entry (NaN is no JSON)"),
        (b"[]", "line 2 is no entry (it has no type)"),
        (b'{"type": 3}', "line 2 is no entry (it has no type)"),
        (b"[" * 100_000, "line 2 is no entry (lists and objects are more than 32 deep"),
        (b'{"type":' * 100_000, "line 2 is no entry (lists and objects are more than 32 deep"),
        (b"[" + b"[]," * 100_000 + b"[]]", "line 2 is no entry (it has more than"),
        (b"9" * 5000, "line 2 is no entry (Exceeds the limit"),
        (b'{"type": "updates", "type": "start"}', "line 2 is no entry (a key stands twice)"),
        (b'{"type": "start", "unit": "mile"}', "line 2: unit must be one of "),
        (b'{"type": "start", "step": "3"}', "line 2: step must be an integer"),
        (b'{"type": "later", "step": []}', "line 2: step must be an integer"),
        (
            b'{"type": "evaluation", "step": 1, "epoch": 0, "validation_loss": 1e999}',
            "line 2: validation_loss must be finite",
        ),
        (b"\xff", "line 2 is no entry ('utf-8' codec can't decode"),
    ],
)
def test_lines_that_are_no_entries_are_told(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"type": "start"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=re.escape(f"{path} is no log of a training: {message}")):
        plot.curves([path], tmp_path / "picture.png")
    with pytest.raises(FileExistsError, match="this file is no log of a training; it is not over"):
        JsonLog(path)


def test_a_line_without_end_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_LINE_LIMIT", 100)
    path = tmp_path / "log"
    path.write_bytes(b'{"type": "start"}\n' + b" " * 1000)
    with pytest.raises(ValueError, match=r"line 2 is no entry \(it is too long\)"):
        list(log.read(path))


def test_entries_of_later_versions_are_read_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [{"type": "start", "unit": "byte", "more": [1]}, {"type": "later"}, UPDATES]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot.curves([path], tmp_path / "picture.png")


@pytest.mark.slow
def test_the_largest_and_the_least_numbers_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "a$b$.jsonl"
    for value in (0, 0.0, 1.79e308, 5e-324):
        numbers = dict.fromkeys(("epoch", "loss", "gradient_norm", "learning_rate"), value)
        lines = [{"type": "start", "unit": "byte"}, UPDATES, {**UPDATES, **numbers}]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        plot.curves([path, path], tmp_path / "picture.png")


@pytest.mark.parametrize("step", [0.0, -1.0])
def test_a_clock_that_stands_still_or_goes_back_has_no_speed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: float,
) -> None:
    times = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: 1000.0 + step * next(times))
    monkeypatch.setattr("charrnn_fast.training.progress._LINE_PERIOD", 0.0)
    trainer = make(JsonLog(tmp_path / "log", every=2))
    trainer.fit(epochs=1)
    assert trainer.seconds == 0
    lines = entries(tmp_path / "log", "updates")
    assert [(line["symbols_per_second"], line["seconds"]) for line in lines] == [(None, 0.0)] * 3
    shown = capsys.readouterr().out
    assert " 17%  loss " in shown
    assert "characters/s" not in shown and "s left" not in shown
    assert "validation" in shown

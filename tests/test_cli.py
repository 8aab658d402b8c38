"""The command line: its output, its files and its errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from charrnn_fast import CharLM, Trainer
from charrnn_fast.cli import main, show
from charrnn_fast.text import corpus as text_corpus
from charrnn_fast.text import demo
from charrnn_fast.text import files as text_files
from charrnn_fast.training import log

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
SMALL = ["--hidden-size", "8", "--num-layers", "1", "--batch-size", "6", "--seq-len", "20"]
HUGE = str(10**30)
COMMAND = [sys.executable, "-m", "charrnn_fast"]

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def model(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The checkpoint of a short training."""
    path = tmp_path / "model.safetensors"
    assert main(["train", str(text), "-o", str(path), "--epochs", "2", *SMALL]) == 0
    capsys.readouterr()
    return path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr with which a user's error ends."""
    try:
        status: object = main(arguments)
    except SystemExit as stop:  # argparse leaves this way
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("charrnn-fast: error: ")
    assert error.count("\n") == 1
    return error


# ---- train ----


def test_train_tells_what_it_does_and_saves(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out model.safetensors"
    assert main(["train", str(text), "-o", str(path), "--epochs", "2", *SMALL]) == 0
    output, error = capsys.readouterr()
    trainer = Trainer.resume(path)
    loss = trainer.history[-1].validation_loss
    assert error == ""
    for line in (
        "text        880 characters: 792 to train on, the last 88 for validation",
        "vocabulary  28 characters: '\\n abcdefghijklmnopqrstuvwxyz'",
        f"model       lstm, 1 layer of 8, float32: {trainer.model.num_parameters:,} parameters",
        "training    adam, learning rate 0.002 (x0.97 per epoch from epoch 10), gradient norm "
        "clipped to 5; batch size 6, sequence length 20",
        f"length      12 steps, 2 epochs, on {show.count(cf.get_num_threads(), 'thread')}",
        f"validation loss: {loss:.4f} nats per character ({loss / np.log(2):.4f} bits)",
        f"next: charrnn-fast sample '{path}'",
    ):
        assert f"{line}\n" in output
    assert trainer.num_steps == 12


def test_what_is_left_out_reaches_the_model(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model"
    options = ["--hidden-size", "6", "--num-layers", "2", "--batch-size", "4", "--seq-len", "10"]
    options += ["--layer-norm", "--dropout", "0.2", "--input-dropout", "0.1", "--variational"]
    options += ["--output-dropout", "0.3", "--recurrent-dropout", "0.25", "--weight-drop", "0.15"]
    options += ["--zoneout", "0.1,0.05", "--mask-seed", "7"]
    assert main(["train", str(text), "-o", str(path), "--steps", "3", *options]) == 0
    expected = (
        "normalized, float32: {:,} parameters; in training dropout 0.2, input dropout 0.1, output "
        "dropout 0.3, recurrent dropout 0.25, weight drop 0.15, zoneout 0.1, 0.05, variational\n"
    )
    trainer = Trainer.resume(path)
    assert expected.format(trainer.model.num_parameters) in capsys.readouterr().out
    assert trainer.model.rnn.zoneout == (0.1, 0.05)
    assert trainer.settings()["mask_seed"] == 7
    assert main(["train", str(text), "-o", str(path), "--steps", "4", "--resume", *options]) == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--dropout", "1"], "--dropout: must be finite, at least 0, below 1, got 1.0"),
        (["--zoneout", "0.1,0.2,0.3"], "--zoneout: must be one rate or two"),
        (["--proj-size", "8", "--cell", "gru"], "--proj-size must be 0 with --cell='gru', got 8"),
    ],
)
def test_wrong_rates_are_told(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], option: list[str], message: str
) -> None:
    arguments = ["train", str(text), "-o", str(tmp_path / "model"), "--steps", "3", *option]
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = int(str(stop.code))
    assert status == 2
    assert message in capsys.readouterr().err


def test_options_reach_the_model_and_the_training(tmp_path: Path, text: Path) -> None:
    path = tmp_path / "model"
    options = ["--cell", "gru", "--hidden-size", "5", "--num-layers", "3", "--seed", "9"]
    options += ["--batch-size", "4", "--seq-len", "10", "--optimizer", "rmsprop"]
    options += ["--learning-rate", "0.01", "--steps", "7", "--bytes", "--threads", "1"]
    options += ["--lr-decay", "0.5", "--lr-decay-after", "3", "--clip-norm", "2"]
    assert main(["train", str(text), "-o", str(path), *options]) == 0
    trainer = Trainer.resume(path)
    assert cf.get_num_threads() == 1
    assert repr(trainer.model).startswith("<CharLM: gru, 3 x 5, 256 bytes")
    assert trainer.model.settings()["seed"] == 9
    settings = trainer.settings()
    assert (settings["batch_size"], settings["seq_len"], settings["optimizer"]) == (
        4,
        10,
        "rmsprop",
    )
    assert settings["schedule"] == {"name": "decay", "warmup": 0.0, "decay": 0.5, "after": 3}
    assert settings["clip_norm"] == 2
    assert trainer.learning_rate == 0.01
    assert trainer.num_steps == 7


def test_a_seed_of_64_bits_and_no_clipping(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, seed = tmp_path / "model", 2**64 - 1
    options = ["--seed", str(seed), "--clip-norm", "inf", "--lr-decay", "1", "--steps", "1"]
    assert main(["train", str(text), "-o", str(path), *options, *SMALL]) == 0
    trainer = Trainer.resume(path)
    assert trainer.model.settings()["seed"] == seed
    assert trainer.settings()["clip_norm"] is None
    assert "training    adam, learning rate 0.002, no clipping; batch" in capsys.readouterr().out


def test_overwriting_is_asked_for(text: Path, model: Path) -> None:
    assert main(["train", str(text), "-o", str(model), "--overwrite", "--steps", "1", *SMALL]) == 0
    assert Trainer.resume(model).num_steps == 1


def test_worse_than_guessing_is_told(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", str(text), "-o", str(tmp_path / "model"), "--steps", "6", *SMALL]
    assert main([*train, "--optimizer", "sgd", "--learning-rate", "50"]) == 0
    assert capsys.readouterr().err.endswith(
        "charrnn-fast: warning: the validation loss is above ln 28 = 3.3322, that of uniform "
        "guessing; try more --epochs or a smaller --learning-rate\n"
    )


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs a folder that nobody can write to")
def test_an_unwritable_path_is_the_one_that_was_given(
    text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(["train", str(text), "-o", "/proc/x"], capsys)
    assert error.startswith("charrnn-fast: error: /proc/x: ")


def test_several_texts_are_one_corpus(tmp_path: Path, text: Path) -> None:
    path = tmp_path / "model"
    assert main(["train", str(text), str(text), "-o", str(path), "--steps", "1", *SMALL]) == 0
    assert cf.Corpus.from_text(TEXT * 2).fingerprint in path.read_bytes().decode("latin-1")


def test_folders_and_patterns_are_texts(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "model", tmp_path / "more"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "two.txt").write_text("two\n" * 20)
    (folder / "one.txt").write_text("one\n" * 10)
    pattern = f"{tmp_path}/**/*o*.txt"
    train = ["train", str(text), str(folder), pattern, "-o", str(path), "--steps", "1", *SMALL]
    assert main(train) == 0
    output = capsys.readouterr().out
    assert "text        1,120 characters in 5 files: 1,008 to train on, " in output
    more = "two\n" * 20 + "one\n" * 10
    corpus = cf.Corpus.from_text(TEXT + more + more)
    assert corpus.fingerprint in path.read_bytes().decode("latin-1")
    assert main(["eval", str(path), str(folder), f"{folder}/*.txt"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["total", "160"]


def test_texts_of_another_encoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, text = tmp_path / "model", tmp_path / "text"
    text.write_bytes(("Größe 漢字\r\n" * 90).encode("gb18030"))
    train = ["train", str(text), "-o", str(path), *SMALL, "--encoding", "gb18030"]
    assert main([*train, "--steps", "1"]) == 0
    assert "vocabulary  10 characters: '\\n\\r Gerßö字漢'\n" in capsys.readouterr().out
    # a resumed training knows
    assert main(["train", str(text), "-o", str(path), "--steps", "2", "--resume"]) == 0
    assert Trainer.resume(path).num_steps == 2
    capsys.readouterr()
    assert main(["eval", str(path), str(text), "--encoding", "gb18030"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == [str(text), "900"]
    assert "text: invalid UTF-8 at byte 2" in refused(["eval", str(path), str(text)], capsys)


def test_rare_characters_are_unknown_everywhere(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model"
    text.write_text(TEXT + "ÄÖÜ" * 4, encoding="utf-8")
    train = ["train", str(text), "-o", str(path), "--min-count", "5", *SMALL]
    assert main([*train, "--steps", "1"]) == 0
    line = (
        "vocabulary  29 characters: '\\n abcdefghijklmnopqrstuvwxyz\N{REPLACEMENT CHARACTER}'; "
        "U+FFFD stands for all others: 3 in the text, 1.35 % of it\n"
    )
    assert line in capsys.readouterr().out
    assert main(["info", str(path)]) == 0
    assert line in capsys.readouterr().out
    # the same number again, or none, resumes; another one does not
    assert main([*train, "--steps", "2", "--resume"]) == 0
    assert main(["train", str(text), "-o", str(path), "--steps", "3", "--resume"]) == 0
    capsys.readouterr()
    again = ["train", str(text), "-o", str(path), "--resume", "--min-count", "4"]
    assert f"--min-count must be 5, with which {path} was trained, got 4" in refused(again, capsys)
    text.write_text("the ÄX", encoding="utf-8")
    assert main(["eval", str(path), str(text)]) == 0
    assert capsys.readouterr().out.endswith("  2 unknown\n")


@pytest.mark.parametrize("kind", [[], ["--bytes"]], ids=["characters", "bytes"])
def test_eval_reads_each_text_once(
    tmp_path: Path,
    text: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: list[str],
) -> None:
    """Several as each by itself, of which all are read before the first is measured."""
    path, other, empty = tmp_path / "model", tmp_path / "other", tmp_path / "empty"
    assert main(["train", str(text), "-o", str(path), "--steps", "1", *SMALL, *kind]) == 0
    other.write_text("the dog\n")
    empty.write_text("")
    read: list[str] = []
    read_bytes = text_files.read_bytes

    def noting(paths: Sequence[str]) -> Iterator[text_files.Block[bytes]]:
        read.extend(paths)
        return read_bytes(paths)

    for module in (text_files, text_corpus):
        monkeypatch.setattr(module, "read_bytes", noting)
    measure, lines = ["eval", str(path), "--document-mark", "dog"], []
    capsys.readouterr()
    for paths in ([text, other, text], [text], [other], [text]):
        assert main([*measure, *map(str, paths), "--json"]) == 0
        lines.append(capsys.readouterr().out.splitlines()[:-1])
    assert read[:3] == [str(text), str(other), str(text)]
    assert len(read) == (3 if kind else 6)  # a single file of bytes is read where it is
    assert lines[0] == [line for one in lines[1:] for line in one]
    assert f"the text is empty: {empty}" in refused([*measure, str(text), str(empty)], capsys)
    empty.write_text("a")
    assert f"{empty} must have 2 " in refused([*measure, str(text), str(empty)], capsys)
    empty.write_text("cat")
    message = refused([*measure, str(text), str(empty)], capsys)
    assert f"{empty}: --document-mark must occur in the text, got 'dog'" in message


def test_eval_reads_documents_as_training_does(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model"
    train = ["train", str(text), "-o", str(path), *SMALL, "--steps", "6"]
    assert main([*train, "--document-mark", "dog\\n"]) == 0
    trained = Trainer.resume(path).history[-1].validation_loss
    text.write_text(TEXT[len(TEXT) * 9 // 10 :])
    measure = ["eval", str(path), str(text), "--json"]
    losses = []
    for options in ([], ["--document-mark", "dog\\n"]):
        capsys.readouterr()
        assert main([*measure, *options]) == 0
        losses.append(json.loads(capsys.readouterr().out.splitlines()[0])["nats_per_character"])
    assert losses[1] == pytest.approx(trained, rel=1e-12)
    assert losses[0] != losses[1]
    message = refused([*measure, "--document-mark", "cat"], capsys)
    assert f"{text}: --document-mark must occur in the text, got 'cat'" in message


@pytest.mark.parametrize("way", ["flag", "file", "set"])
def test_a_documents_mark_has_escapes(
    tmp_path: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: str,
) -> None:
    marks = []
    from_files = cf.Corpus.from_files

    def record(*paths: str, document_mark: str | None, **options: Any) -> cf.Corpus:
        marks.append(document_mark)
        return from_files(*paths, document_mark=document_mark, **options)

    monkeypatch.setattr(cf.Corpus, "from_files", record)
    text.write_text("one\\\n\n" * 200)
    path, config = tmp_path / "model", tmp_path / "settings.toml"
    config.write_text(r"document_mark = '\\\n\x0a'")
    given = {
        "flag": ["--document-mark", r"\\\n\x0a"],
        "file": ["--config", str(config)],
        "set": ["--set", r"document_mark=\\\n\x0a"],
    }[way]
    train = ["train", str(text), "-o", str(path)]
    assert main([*train, "--steps", "1", *SMALL, *given]) == 0
    assert main([*train, "--steps", "2", "--resume"]) == 0
    assert main([*train, "--steps", "3", "--resume", "--document-mark", "e"]) == 2
    assert marks == ["\\\n\n", "\\\n\n", "e"]
    error = r"--document-mark must be '\\\n\n', with which {} was trained, got 'e'"
    assert error.format(path) in capsys.readouterr().err


def test_a_text_that_is_cut_off_while_it_is_read_ends_the_training(
    tmp_path: Path, text: Path
) -> None:
    """By an error, and not by a signal, as a mapped file would."""
    path = tmp_path / "model"
    options = ["--bytes", "--epochs", "1000000", "--checkpoint-every", "1"]
    command = [*COMMAND, "train", str(text), "-o", str(path), *SMALL, *options]
    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("step 12 "):
                break
        os.truncate(text, 100)
        error = process.stderr.read()
        process.stdout.read()
        assert process.wait(60) == 2
    assert error == (
        f"charrnn-fast: error: {text} has changed since it was opened (880 bytes then, 100 now); a "
        f"text must stay as it is while it is in use: begin again, with a copy if something goes "
        f"on writing to it; {path} holds step {Trainer.resume(path).num_steps}\n"
    )
    assert Trainer.resume(path).num_steps >= 12


def test_a_resumed_training_ends_in_the_same_file(tmp_path: Path, text: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train = ["train", str(text), "--checkpoint-every", "4"]
    assert main([*train, "-o", str(straight), "--epochs", "3", *SMALL]) == 0
    assert main([*train, "-o", str(stopped), "--epochs", "1", *SMALL]) == 0
    assert main([*train, "-o", str(stopped), "--epochs", "3", "--resume"]) == 0
    assert stopped.read_bytes() == straight.read_bytes()


def test_nothing_is_left_to_train(
    text: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = model.read_bytes()
    assert main(["train", str(text), "-o", str(model), "--epochs", "2", "--resume"]) == 0
    assert "nothing left to train: 12 steps are done" in capsys.readouterr().out
    assert model.read_bytes() == before


def test_dropout_between_no_layers_is_told(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", str(text), *SMALL, "--steps", "1", "--dropout", "0.2"]
    assert main([*train, "-o", str(tmp_path / "one")]) == 0
    assert capsys.readouterr().err.startswith(
        "charrnn-fast: warning: --dropout=0.2 does nothing in a network of one layer: it leaves "
        "out between layers; there are --input-dropout, --output-dropout and --recurrent-dropout\n"
    )
    assert main(["eval", str(tmp_path / "one"), str(text)]) == 0
    assert main(["train", "-o", str(tmp_path / "one"), "--resume", "--steps", "2"]) == 0
    assert "dropout" not in capsys.readouterr().err  # it has been told
    assert main([*train, "-o", str(tmp_path / "two"), "--num-layers", "2"]) == 0
    assert "dropout" not in capsys.readouterr().err


def test_an_early_end_is_told(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model"
    train = ["train", str(text), "-o", str(path), *SMALL, "--epochs", "9", "--patience", "1"]
    assert main([*train, "--learning-rate", "1e-30"]) == 0
    ended = "ended after 12 of 54 steps: 1 evaluation without a new best; a larger --patience goes"
    assert f"\n{ended} on\n" in capsys.readouterr().out
    before = path.read_bytes()
    assert main(["train", "-o", str(path), "--resume"]) == 0
    assert f"nothing left to train: {ended} on\n" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert main(["train", "-o", str(path), "--resume", "--patience", "2"]) == 0
    assert Trainer.resume(path).num_steps == 18


def test_what_another_training_left_is_not_overwritten(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.safetensors"
    train = ["train", str(text), "-o", str(path), "--steps", "2", *SMALL]
    assert main(train) == 0
    path.unlink()
    for name in ("m.best.safetensors", "m.jsonl"):
        capsys.readouterr()
        error = refused(train, capsys)
        assert f"{tmp_path / name} exists, of another training; --overwrite replaces it" in error
        (tmp_path / name).unlink()
    assert main(train) == 0
    assert main([*train, "--overwrite"]) == 0
    # each output has a log of its own
    for name in ("run.v1", "run.v2"):
        assert main(["train", str(text), "-o", str(tmp_path / name), "--steps", "2", *SMALL]) == 0
        assert (tmp_path / f"{name}.jsonl").exists()
    for log_name, other in (("q", "-o"), ("q.best", "the best checkpoint")):
        path, log_path = tmp_path / "q", tmp_path / log_name
        capsys.readouterr()
        new = ["train", str(text), "-o", str(path), "--log", str(log_path), *SMALL]
        assert f"{log_path} would be the log and {other}" in refused(new, capsys)
        assert not log_path.exists()


def test_what_is_written_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Patterns leave it out; a folder to train on does not take it."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT)
    path = folder / "m"
    train = ["train", f"{folder}/*", "-o", str(path), *SMALL]
    assert main([*train, "--steps", "2"]) == 0
    assert {file.name for file in folder.iterdir()} == {"a.txt", "m", "m.best", "m.jsonl"}
    assert main(["train", "-o", str(path), "--resume", "--steps", "3"]) == 0
    assert Trainer.resume(path).num_steps == 3
    other = ["train", str(folder), "-o", str(tmp_path / "m"), *SMALL]
    capsys.readouterr()
    for option, name in (("--log", "the log"), ("--tensorboard", "--tensorboard")):
        error = refused([*other, option, str(folder / "deep")], capsys)
        assert f"deep lies in {folder}, a folder to train on" in error
        assert f"{name} takes another place" in error


def test_logs_and_the_demonstration_are_gone_on_with(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, named = tmp_path / "m", tmp_path / "named"
    train = ["train", str(text), "-o", str(path), "--steps", "2", "--log", str(named), *SMALL]
    assert main(train) == 0
    assert main(["train", "-o", str(path), "--resume", "--steps", "4"]) == 0
    assert [e["step"] for e in log.read(named) if e["type"] == "evaluation"] == [2, 4]
    assert not (tmp_path / "m.jsonl").exists()
    capsys.readouterr()
    assert main(["info", str(path), "--config"]) == 0
    assert "log = " not in capsys.readouterr().out
    path = tmp_path / "demo"
    assert main(["train", "--demo", "-o", str(path), "--steps", "1", *SMALL]) == 0
    assert main(["train", "-o", str(path), "--resume", "--steps", "2"]) == 0
    assert Trainer.resume(path).num_steps == 2
    text.rename(tmp_path / "moved")
    capsys.readouterr()
    error = refused(["train", "-o", str(tmp_path / "m"), "--resume", "--steps", "5"], capsys)
    assert f"{text} is not there, the text that {tmp_path / 'm'} was trained on" in error


def test_what_python_began_keeps_its_settings(tmp_path: Path, text: Path) -> None:
    path = tmp_path / "model"
    corpus = cf.Corpus.from_files(text)
    cosine = cf.schedules.Cosine(epochs=5)
    trainer = Trainer(
        CharLM(corpus.vocabulary, 8, 1), corpus, 6, 20, schedule=cosine, patience=7, sample_length=0
    )
    trainer.configuration = {"note": "by hand"}
    trainer.fit(steps=2, progress=False)
    trainer.save(path)
    resume = ["train", str(text), "-o", str(path), "--resume"]
    assert main([*resume, "--steps", "4", "--clip-norm", "2"]) == 0
    again = Trainer.resume(path, corpus)
    before, after = trainer.settings(), again.settings()
    assert after == {**before, "clip_norm": 2.0}
    assert (again.num_steps, again.configuration) == (4, {"note": "by hand"})
    assert main([*resume, "--steps", "6", "--schedule", "linear"]) == 0
    assert Trainer.resume(path).schedule.name == "linear"


def test_divergence_is_told_and_the_checkpoint_stays(
    text: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = model.read_bytes()
    train = ["train", str(text), "-o", str(model), "--resume", "--epochs", "4"]
    assert main([*train, "--learning-rate", "1e38"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("charrnn-fast: error: training has diverged: ")
    assert error.count("\n") == 1
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden-size", "9"], "--hidden-size must be 8, with which {model} was trained, got 9"),
        (["--cell", "gru"], "--cell must be lstm, with which {model} was trained, got gru"),
        (["--seed", "3"], "--seed must be 0, with which {model} was trained, got 3"),
        (["--layer-norm"], "--layer-norm must be False, with which {model} was trained, got True"),
        (["--seq-len", "5"], "--seq-len must be 20, with which {model} was trained, got 5"),
        (
            ["--optimizer", "sgd"],
            "optimizer must be 'adam', with which {model} was trained",
        ),
        (["--bytes"], "--bytes is given, but {model} was trained on characters"),
    ],
)
def test_resume_refuses_to_change_the_model(
    text: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    before = model.read_bytes()
    error = refused(["train", str(text), "-o", str(model), "--resume", *options], capsys)
    assert message.format(model=model) in error
    assert model.read_bytes() == before


def test_resume_refuses_another_text(
    tmp_path: Path, text: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(TEXT + "the")
    error = refused(["train", str(other), "-o", str(model), "--resume"], capsys)
    assert ", got 883 (fingerprint " in error
    other.write_text(TEXT + "Q")
    error = refused(["train", str(other), "-o", str(model), "--resume"], capsys)
    assert "other.txt has the character 'Q' (U+0051) at position 880" in error


def test_a_training_begins_with_the_weights_of_another(
    tmp_path: Path, text: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On another text, with the same vocabulary; regularization may change, the shape not."""
    other, tuned = tmp_path / "other.txt", tmp_path / "tuned"
    other.write_text("a lazy fox\n" * 80)
    train = ["train", str(other), "-o", str(tuned), "--init-from", str(model), *SMALL]
    options = ["--learning-rate", "1e-30", "--dropout", "0.3"]
    assert main([*train, "--steps", "1", *options]) == 0
    before, after = CharLM.load(model), CharLM.load(tuned)
    assert after.vocabulary == before.vocabulary
    assert after.rnn.dropout == 0.3
    for name, w in before.rnn.parameters().items():
        np.testing.assert_array_equal(after.rnn.parameters()[name], w)
    assert Trainer.resume(tuned).num_steps == 1
    assert main(["info", str(tuned), "--config"]) == 0
    settings = capsys.readouterr().out
    assert "hidden_size = 8\nnum_layers = 1\n" in settings
    assert "dropout = 0.3\n" in settings
    for file in tmp_path.glob("tuned*"):
        file.unlink()
    error = refused([*train, "--hidden-size", "9"], capsys)
    assert f"--hidden-size must be 8, with which {model} was trained, got 9" in error
    other.write_text("A lazy fox\n" * 80)
    error = refused(train, capsys)
    assert "other.txt has the character 'A' (U+0041) at position 0" in error
    error = refused([*train, "--resume"], capsys)
    assert "--resume goes on with a training, --init-from begins one" in error


def test_a_log_is_written_beside_the_model(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, picture = tmp_path / "a.safetensors", tmp_path / "curve.png"
    assert main(["train", str(text), "-o", str(path), "--epochs", "2", *SMALL]) == 0
    assert main(["plot", str(tmp_path / "a.jsonl"), "-o", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    named = tmp_path / "named"
    assert main(["train", str(text), "-o", str(path), "--epochs", "3", "--resume", "--log",
                 str(named), "--log-every", "2"]) == 0  # fmt: skip
    assert [e["step"] for e in log.read(named) if e["type"] == "updates"] == [14, 16, 18]
    capsys.readouterr()
    error = refused(["plot", str(text), "-o", str(picture)], capsys)
    assert "text.txt is no log of a training: line 1 is no entry" in error
    error = refused(["plot", str(named), "-o", str(named)], capsys)
    assert "named is a log to read; -o would overwrite it" in error
    error = refused(["train", str(text), "-o", str(path), "--resume", "--log", str(text)], capsys)
    assert "text.txt is a text to train on; the training would overwrite it" in error
    assert text.read_text() == TEXT


def test_the_best_model_is_named(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.safetensors"
    train = ["train", str(text), "-o", str(path), *SMALL]
    assert main([*train, "--epochs", "2"]) == 0
    assert main([*train, "--epochs", "4", "--resume", "--learning-rate", "30"]) == 0
    trainer = Trainer.resume(path)
    best = trainer.best
    assert best is not None
    assert best.step < trainer.num_steps
    assert (
        f"the best was {best.validation_loss:.4f} after {best.step} steps: "
        f"{tmp_path / 'm.best.safetensors'}\n"
    ) in capsys.readouterr().out


def test_info_writes_the_settings(
    tmp_path: Path, text: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(model), "--config"]) == 0
    settings, again = tmp_path / "run.toml", tmp_path / "again"
    settings.write_text(capsys.readouterr().out)
    assert main(["train", str(text), "-o", str(again), "--config", str(settings)]) == 0
    assert again.read_bytes() == model.read_bytes()
    CharLM.load(model).save(again)
    capsys.readouterr()
    assert "was not trained by charrnn-fast train" in refused(
        ["info", str(again), "--config"], capsys
    )


def test_resume_needs_a_training(
    tmp_path: Path, text: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(["train", str(text), "-o", str(tmp_path / "no"), "--resume"], capsys)
    assert "no does not exist: nothing to resume" in error
    CharLM.load(model).save(model)
    error = refused(["train", str(text), "-o", str(model), "--resume"], capsys)
    assert "holds a model without its training" in error


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_resume_tells_of_a_damaged_checkpoint_as_info_does(
    text: Path, model: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    """Cut off anywhere: nothing, in its length, in its header, in its last tensor."""
    cut = model.read_bytes()[:size]
    model.write_bytes(cut)
    error = refused(["train", str(text), "-o", str(model), "--resume"], capsys)
    assert error == refused(["info", str(model)], capsys)
    assert "damaged" in error
    assert model.read_bytes() == cut


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["fly"], "invalid choice: 'fly'"),
        (["train"], "-o is missing: the file that the model"),
        (["train", "-o", "{out}"], "no text to train on: name one or more files, or use --demo"),
        (["train", "{text}"], "-o is missing"),
        (["train", "{text}", "--resume"], "-o is missing"),
        (["train", "--demo", "{text}"], "--demo brings its own text"),
        (["train", "{folder}/missing", "-o", "{out}"], "missing: No such file or directory"),
        (["train", "{folder}", "-o", "{out}"], "{out} lies in {folder}, a folder to train on, and"),
        (["train", "{folder}/*.html", "-o", "{out}"], "{folder}/*.html matches no file (hidden on"),
        (["train", "{bare}", "-o", "{out}"], "{bare} holds no files (hidden ones are left out)"),
        (
            ["train", "{model}", "-o", "{model}", "--overwrite"],
            "{model} is a text to train on; the training would overwrite it",
        ),
        (["train", "{empty}", "-o", "{out}"], "the text is empty: {empty}"),
        (["train", "{latin}", "-o", "{out}"], "latin: invalid UTF-8 at byte 4 (0xfc"),
        (["train", "{text}", "-o", "{out}", "--encoding", "x"], "--encoding: encoding must be one"),
        (
            ["train", "{latin}", "-o", "{out}", "--encoding", "ascii"],
            "latin: invalid ascii at byte 2",
        ),
        (
            ["train", "{text}", "-o", "{out}", "--encoding", "ascii", "--bytes"],
            "encoding must be 'utf-8' with the byte vocabulary, which decodes nothing, got 'ascii'",
        ),
        (
            ["train", "{text}", "-o", "{out}", "--min-count", "0"],
            "--min-count: must be >= 1, got 0",
        ),
        (
            ["train", "{text}", "-o", "{out}", "--min-count", "3", "--bytes"],
            "--min-count must be 1 with a given vocabulary, ",
        ),
        (
            ["train", "{text}", "-o", "{out}", "--min-count", "999"],
            "the count of the most frequent character, ' ', got 999",
        ),
        (
            ["train", "{text}", "-o", "{out}", "--document-mark", r"dog\n\n"],
            r"--document-mark must occur in the text, got 'dog\n\n'",
        ),
        (
            ["train", "{text}", "-o", "{out}", "--document-mark", r"\q"],
            r"--document-mark: must have no escapes but \n \r \t \f \\ \xNN \uNNNN, got \q",
        ),
        (
            ["train", "--demo", "--encoding", "ascii"],
            "encoding must be utf-8 with --demo, which brings its own text, got ascii",
        ),
        (["train", "{same}", "-o", "{out}"], "vocabulary must have 2 characters or more, got "),
        (["train", "{short}", "-o", "{out}"], "--seq-len=50, got 9"),
        (["train", "{text}", "-o", "{text}"], "text.txt: this file is no checkpoint; it is not"),
        (["train", "{text}", "-o", "{short}"], "no checkpoint; it is not overwritten"),
        (["train", "{text}", "-o", "{folder}"], "this is a folder, not a file"),
        (["train", "{text}", "-o", "{folder}/a/b"], "its folder does not exist"),
        (["train", "{text}", "-o", "{text}/b"], "its folder is a file"),
        (["train", "{text}", "-o", "{out}", "--hidden-size", "0"], "must be >= 1, got 0"),
        (["train", "{text}", "-o", "{out}", "--hidden-size", "x"], "--hidden-size: invalid"),
        (
            ["train", "{text}", "-o", "{out}", "--epochs", "1", "--steps", "1"],
            "the command line gives both epochs and steps",
        ),
        (["train", "{text}", "-o", "{out}", "--cell", "tcn"], "invalid choice: 'tcn'"),
        (
            ["train", "{text}", "-o", "{out}", "--learning-rate", "-1"],
            "--learning-rate: must be finite, above 0",
        ),
        (["train", "{text}", "-o", "{model}"], "{model} exists: --resume goes on with it, --over"),
        (["train", "{text}", "-o", "{model}", "--resume", "--overwrite"], "not allowed with"),
        (["train", "{text}", "-o", "{out}", "--threads", HUGE], "--threads: must be in 1 to 4096"),
        (["train", "{text}", "-o", "{out}", "--threads", "4097"], "--threads: must be in 1 to"),
        (["train", "{text}", "-o", "{out}", "--hidden-size", HUGE], "--hidden-size: must be in"),
        (
            ["train", "{text}", "-o", "{out}", "--hidden-size", "2147483647"],
            "at most 2**40 weights",
        ),
        (["train", "{text}", "-o", "{out}", "--num-layers", "10001"], "--num-layers must be in 1"),
        (
            ["train", "{text}", "-o", "{out}", "--batch-size", "999"],
            "smaller --batch-size or --seq",
        ),
        (
            ["train", "{text}", "-o", "{out}", "--steps", HUGE],
            "--steps: must be in 1 to 2147483647",
        ),
        (
            ["train", "{text}", "-o", "{out}", "--seed", "9" * 20],
            "--seed: must be in 0 to 18446744",
        ),
        (["train", "{text}", "-o", "{out}", "--seed", "9" * 5000], "--seed: invalid integer value"),
        (
            ["train", "{text}", "-o", "{out}", "--lr-decay", "0"],
            "--lr-decay: must be finite, above",
        ),
        (
            ["train", "{text}", "-o", "{out}", "--lr-decay-after", "0"],
            "--lr-decay-after: must be >=",
        ),
        (
            ["train", "{text}", "-o", "{out}", "--clip-norm", "-1"],
            "--clip-norm: must be finite, abo",
        ),
        (
            ["train", "{text}", "-o", "{out}", "--learning-rate", "1e999"],
            "--learning-rate: must be",
        ),
        (
            ["sample", "{model}", "--top-k", HUGE],
            "--top-k: must be in 1 to 2147483647, got 1000000",
        ),
        (["sample", "{model}", "--length", HUGE], "--length: must be in 0 to 2147483647"),
        (["sample", "{model}", "--temperature", "nan"], "--temperature: must be finite"),
        (["sample", "{folder}/missing"], "missing: No such file or directory"),
        (["sample", "{text}"], "text.txt is no charrnn_fast checkpoint"),
        (["sample", "{empty}"], "empty is no charrnn_fast checkpoint"),
        (["sample", "{cut}"], "cut is damaged"),
        (["sample", "{model}", "--prime", "Quick"], "prime has the character 'Q' (U+0051)"),
        (["sample", "{model}", "--temperature", "-1"], "--temperature: must be finite, at least 0"),
        (["sample", "{model}", "--top-p", "2"], "--top-p: must be finite, above 0, at"),
        (["sample", "{model}", "--top-k", "0"], "must be >= 1, got 0"),
        (["sample", "{model}", "--length", "-1"], "must be >= 0, got -1"),
        (["eval", "{model}"], "required: TEXT"),
        (["eval", "{model}", "{text}", "--encoding", "x"], "--encoding: encoding must be one that"),
        (["eval", "{model}", "{latin}"], "latin: invalid UTF-8 at byte 4"),
        (["eval", "{model}", "{short}"], "short has the character '0'"),
        (["info", "{text}"], "text.txt is no charrnn_fast checkpoint"),
        (["info", "{cut}"], "cut is damaged"),
    ],
)
def test_errors_are_one_clear_line(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    text: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    contents = {
        "empty": b"",
        "latin": "Grü".encode() + b"\xfc",
        "same": b"aaaaaaaa" * 99,
        "short": b"0123456789",
        "cut": model.read_bytes()[:-100],
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    names = {name: tmp_path / name for name in contents}
    names |= {"text": text, "model": model, "folder": tmp_path, "out": tmp_path / "out"}
    names["bare"] = tmp_path_factory.mktemp("bare")
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    error = refused([a.format(**names) for a in arguments], capsys)
    assert message.format(**names) in error
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


# ---- sample (more in test_cli_sample.py), info ----


def test_sample_writes_what_the_model_draws(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--length", "90", "--prime", "the ", "--temperature", "0.7", "--seed", "5"]
    assert main(["sample", str(model), *options, "--top-k", "9", "--top-p", "0.9"]) == 0
    output, error = capsys.readouterr()
    assert output == CharLM.load(model).sample(90, "the ", 0.7, 9, 0.9, seed=5) + "\n"
    assert error == ""


def test_sample_tells_the_seed_it_took(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(model), "--length", "50"]) == 0
    output, error = capsys.readouterr()
    name, seed = error.split()
    assert name == "seed"
    assert main(["sample", str(model), "--length", "50", "--seed", seed]) == 0
    assert capsys.readouterr().out == output


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX pipes")
def test_sample_ends_quietly_when_nobody_reads(model: Path) -> None:
    command = [*COMMAND, "sample", str(model), "--length", "10000000", "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(100)) == 100
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def test_info_tells_what_a_checkpoint_holds(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(model)]) == 0
    output = capsys.readouterr().out
    trainer = Trainer.resume(model)
    assert f"lstm, 1 layer of 8, float32: {trainer.model.num_parameters:,} parameters" in output
    assert "28 characters" in output
    assert "training    adam, learning rate 0.002 (x0.97 per epoch from epoch 10), " in output
    assert "12 steps" in output
    assert f"validation {trainer.history[-1].validation_loss:.4f} nats per character" in output
    trainer.model.save(model)
    assert main(["info", str(model)]) == 0
    assert "none stored: the model alone" in capsys.readouterr().out


# ---- demo, help, terminal ----


def test_the_demonstrations_text_is_real_and_everywhere_the_same() -> None:
    text = demo.text()
    assert len(text) == demo.SIZE
    assert text.isascii()
    assert text == demo.text()
    assert "def " in text[int(0.9 * demo.SIZE) :]
    validation = set(text[demo.SIZE * 9 // 10 :])
    assert validation <= set(text[: demo.SIZE * 9 // 10])


def test_the_demonstration_needs_the_librarys_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert "train on a text file of your own" in refused(["train", "--demo"], capsys)


def test_the_demonstration_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "SIZE", 20_000)
    assert main(["train", "--demo", "--steps", "3", "--hidden-size", "4"]) == 0
    output = capsys.readouterr().out
    assert "validation loss: " in output
    assert "bound" not in output  # it is that of the plain demonstration
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("bound", "status"), [(100.0, 0), (0.1, 1)])
def test_the_demonstration_fails_above_its_bound(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bound: float,
    status: int,
) -> None:
    monkeypatch.setattr(demo, "SIZE", 20_000)
    monkeypatch.setattr(demo, "STEPS", 2)
    monkeypatch.setattr(demo, "BOUND", bound)
    assert main(["train", "--demo"]) == status
    output, error = capsys.readouterr()
    assert ("the demonstration worked" in output) == (status == 0)
    assert ("the demonstration failed" in error) == (status == 1)


@pytest.mark.parametrize(
    "command", [[], ["train"], ["sample"], ["eval"], ["score"], ["info"], ["export"]]
)
def test_help_is_there(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {' '.join(['charrnn-fast', *command])}")


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (
            "CHARRNN_NUM_THREADS",
            "CHARRNN_NUM_THREADS must be a whole number in 1 to 4096, got 'foo'",
        ),
        ("CHARRNN_ISA", "CHARRNN_ISA must be one of "),
        ("CHARRNN_EXECUTOR", "CHARRNN_EXECUTOR must be auto, own or openmp, got 'foo'"),
    ],
)
def test_a_bad_environment_is_one_clear_line(model: Path, variable: str, message: str) -> None:
    environment = {**os.environ, variable: "foo"}
    command = [*COMMAND, "info", str(model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"charrnn-fast: error: {message}")
    assert done.stderr.count("\n") == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"charrnn-fast {cf.__version__}\n"


def test_both_ways_to_start_are_one_program(model: Path) -> None:
    result = subprocess.run([*COMMAND, "info", str(model)], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    script = shutil.which("charrnn-fast", path=os.path.dirname(sys.executable))
    if script is not None:
        again = subprocess.run([script, "info", str(model)], capture_output=True, text=True)
        assert again.stdout == result.stdout


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX terminals")
def test_a_terminal_gets_a_bar(tmp_path: Path, text: Path) -> None:
    import fcntl
    import pty
    import struct
    import termios

    text.write_text(TEXT * 100)
    mine, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    command = [*COMMAND, "train", str(text), "-o", str(tmp_path / "model"), "--epochs", "1000"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=its) as process:
        os.close(its)
        output = b""
        while b"loss " not in output:  # at the process's end reading fails
            output += os.read(mine, 1000)
        process.terminate()
    os.close(mine)
    assert b"char/s" in output


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_an_interrupted_training_can_be_resumed(tmp_path: Path, text: Path) -> None:
    path = tmp_path / "model"
    command = [*COMMAND, "train", str(text), "-o", str(path), *SMALL, "--epochs", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 12 "):
                break
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
        assert process.wait(60) == 130
    steps = Trainer.resume(path).num_steps
    assert steps >= 12
    assert f"interrupted after step {steps:,}\n" in output
    assert "--resume" in output

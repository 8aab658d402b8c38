"""Sources of a training's settings: flags, --set, a TOML file, a checkpoint, the defaults."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from charrnn_fast.cli import _parser, main, options
from charrnn_fast.training.trainer import Trainer


def given(*arguments: str) -> options.Values:
    return options.given(_parser().parse_args(["train", *arguments]))


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "run.toml"
    path.write_text(
        'seq_len = 20  # a comment\ncell = "gru"\nzoneout = [0.1]\nlayer_norm = true\n'
        "epochs = 5\nclip_norm = inf\nlearning_rate = 1e-3\n"
    )
    return str(path)


def test_the_nearest_source_counts(config: str) -> None:
    assert given() == {}
    of_file = {
        "seq_len": 20,
        "cell": "gru",
        "zoneout": 0.1,
        "layer_norm": True,
        "epochs": 5,
        "clip_norm": math.inf,
        "learning_rate": 1e-3,
        "steps": None,
    }
    assert given("--config", config) == of_file
    arguments = ("--config", config, "--set", "seq_len=30", "--set", " layer_norm = false ")
    assert given(*arguments) == of_file | {"seq_len": 30, "layer_norm": False}
    flags = ("--seq-len", "40", "--cell", "lstm")
    assert given(*arguments, *flags) == of_file | {
        "seq_len": 40,
        "layer_norm": False,
        "cell": "lstm",
    }


def test_a_file_may_name_the_texts(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    for text, paths in (('"a.txt"', ["a.txt"]), ('["a.txt", "b/*.txt"]', ["a.txt", "b/*.txt"])):
        path.write_text(f"text = {text}")
        assert given("--config", str(path)) == {"text": paths}
        assert given("c.txt", "--config", str(path)) == {"text": ["c.txt"]}


def test_a_nearer_length_replaces_the_other_one(config: str) -> None:
    for asked in (("--set", "steps=7"), ("--steps", "7")):
        values = given("--config", config, *asked)
        assert (values["epochs"], values["steps"]) == (None, 7)
    values = given("--set", "steps=7", "--epochs", "3")
    assert (values["epochs"], values["steps"]) == (3, None)
    with pytest.raises(ValueError, match="--set gives both epochs and steps"):
        given("--set", "steps=7", "--set", "epochs=3")


def test_every_setting_survives_a_checkpoint() -> None:
    values = options.pick(options.ALL, {"clip_norm": math.inf, "zoneout": [0.1, 0.2]})
    read = options.restored(options.stored(values), "model")
    assert values.pop("device") == "cpu"  # of this machine, not of the training
    later = {option.name: option.default for option in options.ALL if option.later}
    assert {name: values.pop(name) for name in later} == later  # which older versions do not know
    assert read == {name: value for name, value in values.items() if value is not None}
    others = {
        "compute_dtype": "bfloat16",
        "split": [0.8, 0.1, 0.1],
        "validation": ["a", "b"],
        "test": ["c"],
        "final_test": True,
    }
    assert options.restored(options.stored(others), "model") == others


def test_every_setting_survives_a_file(tmp_path: Path) -> None:
    odd: dict[str, Any] = {"document_mark": '\U0001f600\x7f"\n', "text": ["a\u00e9\U0001f600.txt"]}
    odd |= {"split": [0.8, 0.1, 0.1], "validation": ["v"], "average": "ema:0.999"}
    values = options.pick(options.ALL, {"clip_norm": math.inf, "zoneout": [0.1, 0.2], **odd})
    path = tmp_path / "run.toml"
    path.write_text(options.to_toml(values))
    read = given("--config", str(path))
    assert {n: v for n, v in read.items() if v is not None} == {
        name: value for name, value in values.items() if value is not None
    }


def test_what_toml_cannot_hold_is_told() -> None:
    with pytest.raises(ValueError, match="TOML cannot hold the setting text"):
        options.to_toml({"text": ["a\udcff.txt"]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sequence_len = 3", "there is no setting 'sequence_len'; did you mean 'seq_len'?"),
        ("xyz = 3", "there is no setting 'xyz'; see charrnn-fast train --help"),
        ("seq_len = 0", "seq_len: .*must be >= 1, got 0"),
        ("seq_len = 1.5", "seq_len: must be a valid integer, got 1.5"),
        ("seq_len = true", "seq_len: must be a valid integer, got True"),
        ("zoneout = [0.1, 0.2, 0.3]", "zoneout: must be one rate or two"),
        ("text = 3", "text: must be paths, got 3"),
        ("text = []", r"text: must be paths, got \[\]"),
        ("layer_norm = 1.5", "layer_norm: must be true or false, got 1.5"),
        ('cell = "tcn"', "cell: must be one of rnn, gru, lstm, .*, got 'tcn'"),
        ("dropout = 1", "dropout: .*below 1, got 1"),
        ("epochs = 2\nsteps = 3", "gives both epochs and steps"),
        ("seq_len = ", "run.toml is no TOML file: "),
        ("[model]\ncell = 1", r"there are no sections; leave out the line \[model\]"),
    ],
)
def test_wrong_settings_are_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        given("--config", str(path))


def test_a_pair_without_a_value_is_told() -> None:
    with pytest.raises(ValueError, match="--set must be key=value, got 'seq_len'"):
        given("--set", "seq_len")


def test_a_configuration_is_kept_and_gone_on_with(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resumed without a word about its settings, a training keeps them and its length."""
    text, path = tmp_path / "text", tmp_path / "model"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    shape = ["--hidden-size", "6", "--batch-size", "4", "--schedule", "cosine", "--warmup", "0.5"]

    def train(*arguments: Any) -> None:
        assert main(["train", str(text), "-o", str(path), *arguments]) == 0

    train("--config", config, *shape, "--overwrite")
    straight = path.read_bytes()
    trainer = Trainer.resume(path)
    settings = trainer.configuration["charrnn-fast train"]
    assert settings["clip_norm"] == "inf"
    assert settings["warmup"] == 0.5
    assert settings["batch_size"] == 4
    assert trainer.num_steps == 45
    for file in tmp_path.glob("model*"):
        file.unlink()
    train("--config", config, *shape[:4], "--epochs", "2", "--set", "schedule=constant")
    other = Trainer.resume(path)
    assert other.schedule.name == "constant"
    train("--resume", "--epochs", "3")
    again = Trainer.resume(path)
    assert again.num_steps == 27
    assert again.schedule == other.schedule
    assert straight != path.read_bytes()
    # the text is kept as well
    assert main(["train", "-o", str(path), "--resume", "--epochs", "4"]) == 0
    assert Trainer.resume(path).num_steps == 36
    train("--resume")
    assert "nothing left to train: " in capsys.readouterr().out

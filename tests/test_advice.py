"""What `train` expects of a text and a model: the rule, and the line that tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from charrnn_fast.cli import main
from charrnn_fast.training.advice import (
    FIT,
    OVERFIT,
    UNDERFIT,
    Case,
    advice,
    dropout_for,
    epochs_to_overfit,
    expected,
)

Capture = pytest.CaptureFixture[str]

# 2x512 with the schedule cosine, nine epochs: what is known of two texts.
MILLION = Case(1_003_854, 3_349_057, 9, 0.5, annealed=True)
BOOK = Case(2_556_969, 3_381_844, 9, 0.5, annealed=True)


def test_the_two_known_results() -> None:
    assert expected(MILLION) == FIT
    assert dropout_for(MILLION) == pytest.approx(0.5, abs=0.06)
    assert expected(BOOK) == UNDERFIT
    assert dropout_for(BOOK) == pytest.approx(0.2, abs=0.06)
    assert "--dropout 0.2" in advice(BOOK)
    assert expected(BOOK._replace(dropout=0.2)) == FIT
    assert advice(BOOK._replace(dropout=0.2)) == ""


def test_each_size_moves_the_end_in_its_direction() -> None:
    case = Case(300_000, 260_000, 20, 0.2)
    epochs = epochs_to_overfit(case)
    assert epochs_to_overfit(case._replace(parameters=520_000)) < epochs
    assert epochs_to_overfit(case._replace(dropout=0.5)) > epochs
    assert epochs_to_overfit(case._replace(annealed=True)) == pytest.approx(1.5 * epochs)
    large = Case(30_000_000, 260_000, 20)
    assert epochs_to_overfit(large._replace(symbols=300_000_000)) > epochs_to_overfit(large)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.85, 0.95, 1.1, 4.0])
def test_the_verdict_follows_from_the_epochs(share: float) -> None:
    case = Case(300_000, 260_000, 1)
    case = case._replace(epochs=share * epochs_to_overfit(case))
    verdict = OVERFIT if share > 1 else UNDERFIT if share < 0.8 else FIT
    assert expected(case) == verdict
    assert bool(advice(case)) == (verdict != FIT)


@pytest.mark.parametrize("symbols", [20_000, 100_000, 1_000_000, 50_000_000])
@pytest.mark.parametrize("parameters", [20_000, 300_000, 4_000_000])
@pytest.mark.parametrize("dropout", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("epochs", [1, 10, 100])
def test_the_advice_taken_leaves_nothing_to_say(
    symbols: int, parameters: int, dropout: float, epochs: int
) -> None:
    case = Case(symbols, parameters, epochs, dropout)
    ways = [way for way in advice(case).split("try ")[-1].split(", ") if "with" not in way]
    words = " ".join(ways).split()
    if "--epochs" in words and "more --epochs" not in " ".join(words):
        asked = int(words[words.index("--epochs") + 1])
        assert (asked < epochs) == (expected(case) == OVERFIT)
        if asked > 10:  # fewer are too coarse
            assert expected(case._replace(epochs=asked)) == FIT
    if "--dropout" in words and expected(case) == OVERFIT:
        rate = float(words[words.index("--dropout") + 1])
        assert rate >= dropout
        assert expected(case._replace(dropout=rate)) != OVERFIT


def test_fewer_epochs_where_dropout_alone_does_not_help() -> None:
    case = Case(90_000, 3_400_000, 40)
    assert "--dropout 0.5 with --epochs 8," in advice(case)
    assert expected(case._replace(dropout=0.5, epochs=8)) == FIT


def test_no_number_of_epochs_that_takes_days() -> None:
    long = Case(90_000_000, 260_000, 20)
    assert advice(long) == "expected to underfit; try a larger --hidden-size or more --epochs"


def test_dropout_of_one_layer_is_that_of_its_output() -> None:
    assert "--output-dropout" in advice(Case(300_000, 900_000, 20, layers=1))


# ---- the line of train ----

SMALL = ["--hidden-size", "8", "--num-layers", "1", "--sample-length", "0", "--steps", "1"]


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "a.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 300)
    return str(path)


def lines(text: str, capsys: Capture, *arguments: str) -> list[str]:
    output = str(Path(text).with_name("m.safetensors"))
    assert main(["train", text, "-o", output, "--threads", "1", *SMALL, *arguments]) == 0
    printed = capsys.readouterr().out.splitlines()
    return [line for line in printed if line.startswith("advice")]


def test_train_tells_it_once_and_only_where_the_rule_holds(text: str, capsys: Capture) -> None:
    (line,) = lines(text, capsys)
    assert line.startswith("advice      expected to underfit; try --epochs ")
    assert not lines(text, capsys, "--resume", "--steps", "2")
    for others in (
        ["--optimizer", "sgd"],
        ["--learning-rate", "0.05"],
        ["--zoneout", "0.1"],
        ["--recurrent-dropout", "0.1"],
        ["--batch-size", "1", "--seq-len", "20"],
        ["--split", "0.5,0.5"],  # half of the text: few characters to train on
    ):
        assert not lines(text, capsys, "--overwrite", *others)
    trained = str(Path(text).with_name("trained.safetensors"))
    Path(text).with_name("m.safetensors").rename(trained)
    assert not lines(text, capsys, "--overwrite", "--init-from", trained, "--seq-len", "20")

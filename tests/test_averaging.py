"""The average of the weights: what it is, what uses it, and that it resumes exactly."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charrnn_fast import CharLM, CheckpointError, Corpus, Trainer
from charrnn_fast.callbacks import Callback
from charrnn_fast.cli import main
from charrnn_fast.storage import checkpoint
from charrnn_fast.training.averaging import Average, checked_setting
from charrnn_fast.training.resume import best_path
from test_cli import refused

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20  # 880 characters, 792 to train
SMALL = ["--hidden-size", "4", "--num-layers", "1", "--batch-size", "6", "--seq-len", "20"]
SMALL += ["--sample-length", "0"]

Capture = pytest.CaptureFixture[str]
Weights = dict[str, np.ndarray[Any, Any]]


@pytest.fixture
def corpus() -> Corpus:
    return Corpus.from_text(TEXT)


class Watch(Callback):
    """Keeps the weights after each update, in float64."""

    def __init__(self) -> None:
        self.weights: list[Weights] = []

    def updated(self, trainer: Trainer, update: Any) -> None:
        parameters = trainer.model.rnn.parameters()
        self.weights.append({name: w.astype(np.float64) for name, w in parameters.items()})


class Stop(Callback):
    """An interrupt after an update."""

    def __init__(self, step: int) -> None:
        self.step = step

    def updated(self, trainer: Trainer, update: Any) -> None:
        if update.step == self.step:
            raise KeyboardInterrupt


def make(corpus: Corpus, dtype: str = "float32", **options: Any) -> Trainer:
    """Six chunks an epoch."""
    model = CharLM(corpus.vocabulary, 4, 2, "gru", seed=1, dtype=dtype, dropout=0.2)
    return Trainer(model, corpus, **{"batch_size": 6, "seq_len": 20, **options})


def weights(model: CharLM) -> dict[str, bytes]:
    return {name: w.tobytes() for name, w in model.rnn.parameters().items()}


def expected(seen: list[Weights], shares: list[float]) -> Weights:
    """The mean of the last weights seen, by these shares."""
    last = seen[len(seen) - len(shares) :]
    return {
        name: np.sum([share * w[name] for share, w in zip(shares, last, strict=True)], axis=0)
        / sum(shares)
        for name in seen[0]
    }


# ---- what it is ----


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("average", "shares"),
    [
        ("ema:0.5", [0.5**k for k in range(12, -1, -1)]),
        ("ema:0.999", [0.999**k for k in range(12, -1, -1)]),
        ("tail:0.2", [1.0] * 3),  # of 13, rounded up
        ("tail:1", [1.0] * 13),
    ],
)
def test_it_is_the_mean_of_the_weights(
    corpus: Corpus, dtype: str, average: str, shares: list[float]
) -> None:
    trainer = make(corpus, dtype, average=average, callbacks=[watch := Watch()], learning_rate=0.05)
    trainer.fit(steps=13, progress=False)
    plain = make(corpus, dtype, learning_rate=0.05)
    plain.fit(steps=13, progress=False)
    assert weights(trainer.model) == weights(plain.model)  # those that train are as ever
    mean = trainer.averaged().rnn.parameters()
    for name, wanted in expected(watch.weights, shares).items():
        tolerance = 1e-6 if dtype == "float32" else 1e-13
        np.testing.assert_allclose(mean[name], wanted, rtol=tolerance, atol=tolerance / 10)
    assert weights(trainer.averaged()) != weights(trainer.model)
    assert trainer.averaged().settings() == trainer.model.settings()


def test_small_changes_are_not_lost() -> None:
    """Each is below half of float32's precision, and thousands of them add up."""
    average, decay = Average("ema:0.9999"), Fraction("0.9999")
    total, norm, count = Fraction(0), Fraction(0), 3000
    for n in range(1, count + 1):
        weight = np.float32(1) if n == 1 else np.float32(1 + 2**-14)
        average.update(n, {"w": np.array([weight])})
        share = Fraction(float(decay ** (count - n)))
        total += share * Fraction(float(weight))
        norm += share
    assert average.values["w"][0] == pytest.approx(float(total / norm), rel=1e-14)
    assert abs(float(total / norm) - 1) > 1000 * 2**-25


def test_before_the_tail_there_is_none(corpus: Corpus, tmp_path: Path) -> None:
    seen: list[int] = []

    class Count(Callback):
        def evaluated(self, trainer: Trainer, evaluation: Any, sample: str) -> None:
            trainer.save(tmp_path / "m")
            _, config = checkpoint.read(tmp_path / "m")
            seen.append(config["training"].get("averaged", 0))

    trainer = make(corpus, average="tail:0.25", evaluate_every=4, callbacks=[Count()])
    assert trainer.averaged() is trainer.model
    trainer.fit(steps=16, progress=False)
    assert seen == [0, 0, 0, 4]
    trainer.fit(steps=4, progress=False)  # of 20 the last 5: it begins anew, at once
    assert seen[-1] == 4


# ---- what uses it ----


def test_it_is_evaluated_and_sampled_from(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "m"
    drawn: list[str] = []

    class Keep(Callback):
        def evaluated(self, trainer: Trainer, evaluation: Any, sample: str) -> None:
            drawn.append(sample)

    split = Corpus.from_text(TEXT, split=(0.8, 0.1, 0.1))
    options: dict[str, Any] = {"average": "ema:0.8", "checkpoint_path": path, "learning_rate": 0.02}
    trainer = make(split, **options, callbacks=[Keep()], sample_length=30)
    trainer.fit(steps=9, progress=False)
    model = trainer.averaged()
    loss = model.evaluate(TEXT[704:792])
    assert trainer.history[-1].validation_loss == loss != trainer.model.evaluate(TEXT[704:792])
    assert drawn[-1] == model.sample(30, seed=9)
    assert trainer.test_loss() == model.evaluate(TEXT[792:])
    for file in (path, best_path(path)):  # the last was the best
        assert weights(CharLM.load(file)) == weights(model)
    resumed = Trainer.resume(path, split)
    assert weights(resumed.model) == weights(trainer.model)
    assert weights(resumed.averaged()) == weights(model)


def test_a_checkpoint_holds_both(corpus: Corpus, tmp_path: Path) -> None:
    trainer = make(corpus, average="ema:0.9", checkpoint_path=tmp_path / "m")
    trainer.fit(steps=5, progress=False)
    tensors, config = checkpoint.read(tmp_path / "m")
    assert config["training"]["averaged"] == 5
    assert config["training"]["settings"]["average"] == "ema:0.9"
    for name, weight in trainer.model.rnn.parameters().items():
        tensor = name if name.startswith("decoder.") else f"rnn.{name}"
        assert tensors[f"trained.{tensor}"].tobytes() == weight.tobytes()
        assert tensors[f"average.{tensor}"].dtype == np.float64
        rounded = tensors[f"average.{tensor}"].astype(np.float32)
        assert tensors[tensor].tobytes() == rounded.tobytes()
    make(corpus, average="tail:0.5").save(tmp_path / "begun")
    tensors, config = checkpoint.read(tmp_path / "begun")
    assert "averaged" not in config["training"]
    assert not any(name.startswith(("trained.", "average.")) for name in tensors)
    assert Trainer.resume(tmp_path / "begun", corpus).num_steps == 0


# ---- exact ----


@pytest.mark.parametrize("average", ["ema:0.9", "tail:0.4"])
@pytest.mark.parametrize("stops", [[3], [9], [7, 10, 12]])
def test_resuming_is_exact(corpus: Corpus, tmp_path: Path, average: str, stops: list[int]) -> None:
    """Before the tail (the last 6 of 14) and in it, at evaluations and between them."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options: dict[str, Any] = {"average": average, "evaluate_every": 5, "keep_every": 4}
    make(corpus, checkpoint_path=whole, **options).fit(steps=14, progress=False)
    trainer = make(corpus, checkpoint_path=parts, callbacks=[Stop(stops[0])], **options)
    for stop in [*stops[1:], 0]:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(steps=14 - trainer.num_steps, progress=False)
        trainer = Trainer.resume(parts, corpus, checkpoint_path=parts, callbacks=[Stop(stop)])
    trainer.fit(steps=14 - trainer.num_steps, progress=False)
    assert parts.read_bytes() == whole.read_bytes()
    assert Path(best_path(parts)).read_bytes() == Path(best_path(whole)).read_bytes()


@pytest.mark.parametrize("how", ["copy", "pickle"])
def test_copies_go_on_with_the_same_bits(corpus: Corpus, how: str) -> None:
    trainer = make(corpus, average="ema:0.9")
    trainer.fit(steps=4, progress=False)
    other = copy.deepcopy(trainer) if how == "copy" else pickle.loads(pickle.dumps(trainer))
    before = weights(other.averaged())
    trainer.fit(steps=3, progress=False)
    assert weights(other.averaged()) == before  # its own
    other.fit(steps=3, progress=False)
    assert weights(other.averaged()) == weights(trainer.averaged())


def test_another_average_begins_on_resuming(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "m"
    make(corpus, average="ema:0.9", checkpoint_path=path).fit(steps=4, progress=False)
    message = r"average changes: after step 4 an average of the weights begins, by ema:0.5; that by"
    with pytest.warns(UserWarning, match=message):
        trainer = Trainer.resume(path, corpus, average="ema:0.5", callbacks=[watch := Watch()])
    assert trainer.averaged() is trainer.model
    trainer.fit(steps=2, progress=False)
    mean = trainer.averaged().rnn.parameters()
    for name, wanted in expected(watch.weights, [0.5, 1.0]).items():
        np.testing.assert_allclose(mean[name], wanted, rtol=1e-6, atol=1e-7)
    with pytest.warns(UserWarning, match=r"average of the weights ends; that by ema:0.9 is lost"):
        trainer = Trainer.resume(path, corpus, average=None, checkpoint_path=path)
    trainer.fit(steps=1, progress=False)
    assert "average" not in Trainer.resume(path).settings()
    with pytest.warns(UserWarning, match=r"after step 5 an average of the weights begins, by tai"):
        Trainer.resume(path, corpus, average="tail:0.5")


def test_the_best_checkpoint_holds_what_was_evaluated(corpus: Corpus, tmp_path: Path) -> None:
    """Also where it is written later, and another tail begins."""
    make(corpus, average="tail:0.5", checkpoint_path=tmp_path / "m").fit(steps=6, progress=False)
    trainer = Trainer.resume(tmp_path / "m", corpus, checkpoint_path=tmp_path / "n")
    loss, model = trainer.history[-1].validation_loss, trainer.averaged()
    trainer.optimizer.lr = 50  # what follows is worse
    trainer.fit(steps=6, progress=False)
    assert trainer.best == trainer.history[0]
    with pytest.warns(UserWarning, match="average changes"):
        other = Trainer.resume(tmp_path / "m", corpus, checkpoint_path=tmp_path / "k", average=None)
    other.fit(steps=0, progress=False)
    assert weights(CharLM.load(best_path(tmp_path / "k"))) == weights(model)
    best = CharLM.load(best_path(tmp_path / "n"))
    assert weights(best) == weights(model)
    assert best.evaluate_ids(corpus.validation) == loss


# ---- refusals ----


def test_settings_are_written_in_one_way() -> None:
    assert [checked_setting(s) for s in ("ema:0.9990", "tail:1", "ema: .5")] == [
        "ema:0.999",
        "tail:1.0",
        "ema:0.5",
    ]


@pytest.mark.parametrize(
    ("average", "message"),
    [
        ("ema", r"average must be ema:DECAY or tail:SHARE, as ema:0.999 or tail:0.2, got 'ema'"),
        ("mean:0.5", r"average must be ema:DECAY .* got 'mean:0.5'"),
        ("ema:x", r"average must be ema:DECAY .* got 'ema:x'"),
        ("ema:1", r"average ema must be finite, above 0, below 1, got 1.0"),
        ("tail:0", r"average tail must be finite, above 0, at most 1, got 0.0"),
        ("tail:1e-999999999", r"average tail must be finite, above 0, at most 1, got 0.0"),
        (0.999, r"average must be ema:DECAY .* got 0.999"),
    ],
)
def test_impossible_averages_are_refused(corpus: Corpus, average: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make(corpus, average=average)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("count", r"training.averaged must be absent where .* at most num_steps, 5, got 6"),
        ("setting", r"training.averaged must be absent where training.settings.average is"),
        ("words", r'settings.average must be like "ema:0.999" or "tail:0.2", got \'mean\''),
        ("decay", r"average ema must be finite, above 0, below 1, got 2.0"),
        ("missing", r"the tensor 'average.rnn.weight_hh_l0' is missing"),
        ("dtype", r"the tensor 'average.decoder.bias' must be float64 of the shape \[28\]"),
        ("absent", r"the tensor '(average|trained)\..*' is unknown to this version"),
    ],
)
def test_damaged_averages_are_refused(
    corpus: Corpus, tmp_path: Path, damage: str, message: str
) -> None:
    path = tmp_path / "m"
    make(corpus, average="ema:0.9", checkpoint_path=path).fit(steps=5, progress=False)
    tensors, config = checkpoint.read(path)
    training = config["training"]
    if damage == "count":
        training["averaged"] = 6
    elif damage == "setting":
        del training["settings"]["average"]
    elif damage in ("words", "decay"):
        training["settings"]["average"] = "mean" if damage == "words" else "ema:2"
    elif damage == "missing":
        del tensors["average.rnn.weight_hh_l0"]
    elif damage == "dtype":
        tensors["average.decoder.bias"] = tensors["average.decoder.bias"].astype(np.float32)
    else:
        del training["averaged"]
    checkpoint.write(path, tensors, config)
    with pytest.raises(CheckpointError, match=message):
        Trainer.resume(path, corpus)


# ---- the command ----


def test_the_command_averages(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text(TEXT)
    train = ["train", "text", *SMALL, "--split", "0.8,0.1,0.1", "--learning-rate", "0.05"]
    assert main([*train, "-o", "m", "--epochs", "3", "--average", "tail:0.50", "--final-test"]) == 0
    out = capsys.readouterr().out
    assert "; weights averaged by tail:0.5\n" in out
    model = CharLM.load("m")
    loss = model.evaluate(TEXT[704:792])
    assert f"validation loss: {loss:.4f} nats" in out
    assert f"test loss: {model.evaluate(TEXT[792:]):.4f} nats" in out
    assert main([*train, "-o", "n", "--epochs", "2", "--average", "ema:0.9"]) == 0
    resume = ["train", "-o", "n", "--resume", "--epochs"]
    assert main([*resume, "3"]) == 0
    assert main([*train, "-o", "k", "--epochs", "3", "--average", "ema:0.9"]) == 0
    assert weights(CharLM.load("n")) == weights(CharLM.load("k"))
    capsys.readouterr()
    assert main([*resume, "4", "--average", "ema:0.5"]) == 0
    assert "warning: --average changes: after step 15 an average" in capsys.readouterr().err
    assert main(["info", "n", "--config"]) == 0
    assert 'average = "ema:0.5"\n' in capsys.readouterr().out
    assert main([*resume, "5", "--average", "none"]) == 0
    assert "an average of the weights ends; that by ema:0.5 is lost" in capsys.readouterr().err
    assert main(["info", "n", "--config"]) == 0
    assert "average" not in capsys.readouterr().out
    assert main([*resume, "6"]) == 0
    Path("settings.toml").write_text('average = "ema:0.5"\n')
    assert main([*train, "-o", "p", "--steps", "1", "--config", "settings.toml"]) == 0
    assert "weights averaged" in capsys.readouterr().out
    more = ["--steps", "1", "--config", "settings.toml", "--average", "none"]
    assert main([*train, "-o", "q", *more]) == 0
    assert "weights averaged" not in capsys.readouterr().out
    for wrong, message in (
        ("ema:1.5", "--average: average ema must be finite, above 0, below 1, got 1.5"),
        ("0.999", "--average: must be ema:DECAY or tail:SHARE, as ema:0.999 or tail:0.2, got '0."),
    ):
        assert message in refused([*train, "-o", "l", "--average", wrong], capsys)

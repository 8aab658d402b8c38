"""Checkpoints that are kept, and trainings that go on with other settings."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from charrnn_fast import CharLM, CheckpointError, Corpus, Trainer
from charrnn_fast.callbacks import Callback
from charrnn_fast.cli import main
from charrnn_fast.schedules import Cosine
from charrnn_fast.storage import checkpoint, configuration
from charrnn_fast.text.chunks import Chunks
from charrnn_fast.training.resume import best_path, kept_path, kept_paths, locked
from test_cli import refused

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20  # 880 characters, 792 to train
SMALL = ["--hidden-size", "4", "--num-layers", "1", "--batch-size", "6", "--seq-len", "20"]
SMALL += ["--sample-length", "0"]

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def corpus() -> Corpus:
    return Corpus.from_text(TEXT)


def make(corpus: Corpus, **options: Any) -> Trainer:
    """Six chunks an epoch."""
    model = CharLM(corpus.vocabulary, 4, 2, "gru", seed=1)
    return Trainer(model, corpus, **{"batch_size": 6, "seq_len": 20, **options})


def weights(trainer: Trainer) -> dict[str, bytes]:
    return {name: w.tobytes() for name, w in trainer.model.rnn.parameters().items()}


# ---- kept checkpoints ----


def test_checkpoints_are_kept_under_their_steps(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    make(corpus, checkpoint_path=path, keep_every=4).fit(steps=9, progress=False)
    kept = kept_paths(path)
    assert list(kept) == [4, 8]
    assert kept[4] == str(tmp_path / "m.step-00000004.safetensors") == kept_path(path, 4)
    for step, file in kept.items():
        undisturbed = make(corpus)
        undisturbed.fit(steps=9 if step == 9 else step, progress=False)
        trainer = Trainer.resume(file, corpus)
        assert trainer.num_steps == step
        assert weights(trainer) == weights(undisturbed)
        trainer.fit(steps=9 - step, progress=False)
        assert weights(trainer) == weights(Trainer.resume(path, corpus))
    assert Trainer.resume(path).settings()["keep_every"] == 4


def test_a_kept_checkpoint_has_its_evaluation(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "m"
    make(corpus, checkpoint_path=path, keep_every=3, evaluate_every=3).fit(steps=6, progress=False)
    for step, file in kept_paths(path).items():
        assert [entry.step for entry in Trainer.resume(file).history] == list(range(3, step + 1, 3))
    assert Path(kept_path(path, 6)).read_bytes() == path.read_bytes()


def test_resuming_keeps_the_same(corpus: Corpus, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    make(corpus, checkpoint_path=whole, keep_every=2, evaluate_every=3).fit(steps=7, progress=False)

    class Stop(Callback):
        def updated(self, trainer: Trainer, update: Any) -> None:
            if update.step == 5:
                raise KeyboardInterrupt

    first = make(corpus, checkpoint_path=parts, keep_every=2, evaluate_every=3, callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt):
        first.fit(steps=7, progress=False)
    second = Trainer.resume(parts, corpus, checkpoint_path=parts)
    second.fit(steps=7 - second.num_steps, progress=False)
    assert parts.read_bytes() == whole.read_bytes()
    assert list(kept_paths(parts)) == [2, 4, 6]
    for step in (2, 4, 6):
        assert (
            Path(kept_path(parts, step)).read_bytes() == Path(kept_path(whole, step)).read_bytes()
        )


def test_a_new_training_keeps_its_own_alone(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "m"
    make(corpus, checkpoint_path=path, keep_every=2).fit(steps=6, progress=False)
    make(corpus, checkpoint_path=path).fit(steps=1, progress=False)
    assert list(kept_paths(path)) == [2, 4, 6]  # it keeps none, and leaves them alone
    make(corpus, checkpoint_path=path, keep_every=3).fit(steps=3, progress=False)
    assert list(kept_paths(path)) == [3]
    (tmp_path / "m.step-00000006").write_text("something else")
    with pytest.raises(OSError, match=r"m\.step-00000006"):
        make(corpus, checkpoint_path=path, keep_every=3)


def test_kept_checkpoints_stay_until_the_new_training_is_saved(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m"
    make(corpus, checkpoint_path=path, keep_every=2).fit(steps=6, progress=False)
    trainer = make(corpus, checkpoint_path=path, keep_every=3)
    write, full = checkpoint.write, True

    def fails(file: Any, *content: Any) -> None:
        if full and str(file) == str(path):
            raise OSError("the disk is full")
        write(file, *content)

    monkeypatch.setattr(checkpoint, "write", fails)
    with pytest.raises(OSError, match="the disk is full"):
        trainer.fit(steps=4, progress=False)
    assert list(kept_paths(path)) == [2, 3, 4, 6]  # 3 is its own
    full = False
    trainer.fit(steps=4, progress=False)
    assert list(kept_paths(path)) == [6]
    assert Trainer.resume(kept_path(path, 6)).settings()["keep_every"] == 3


def test_kept_checkpoints_need_a_path(corpus: Corpus, tmp_path: Path) -> None:
    message = r"keep_every keeps checkpoints beside checkpoint_path, which is missing"
    with pytest.raises(ValueError, match=message):
        make(corpus, keep_every=3)
    make(corpus, keep_every=3, checkpoint_path=tmp_path / "m").save(tmp_path / "m")
    with pytest.raises(ValueError, match=message):
        Trainer.resume(tmp_path / "m", corpus, keep_every=3)
    trainer = Trainer.resume(tmp_path / "m", corpus)  # it does not save, and is the same
    assert trainer.settings()["keep_every"] == 3
    trainer = Trainer.resume(tmp_path / "m", corpus, checkpoint_path=tmp_path / "n")
    trainer.fit(steps=3, progress=False)
    assert list(kept_paths(tmp_path / "n")) == [3]


def test_a_kept_checkpoint_is_locked_while_it_is_written(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "m"
    with (
        locked(kept_path(path, 2)),  # as by a training that saves to it
        pytest.raises(BlockingIOError, match=r"a running training saves to this file"),
    ):
        make(corpus, checkpoint_path=path, keep_every=2).fit(steps=3, progress=False)
    assert kept_paths(path) == {}


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_room_is_told_before(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(corpus, checkpoint_path=tmp_path / "m", keep_every=2)
    trainer.fit(steps=4, progress=False)
    size = (tmp_path / "m").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 10**9, 2 * size))
    trainer.fit(steps=3, progress=False)  # one more
    with pytest.warns(UserWarning, match=r"5 checkpoints to be kept take .* GB .* larger keep_ev"):
        trainer.fit(steps=9, progress=False)


def test_the_command_keeps_and_lists(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text(TEXT)
    train = ["train", "text", "-o", "m.safetensors", *SMALL, "--steps", "12", "--keep-every"]
    assert main([*train, "1"]) == 0
    assert main(["info", "m.safetensors"]) == 0
    line = "kept        12 checkpoints, after steps 1, 2, 3, 4, 5, 6, 7, 8, ..., 12; the first is m"
    assert f"{line}.step-00000001.safetensors\n" in capsys.readouterr().out
    assert main(["eval", "m.step-00000003.safetensors", "text"]) == 0
    Path("m.safetensors").unlink()
    Path("m.best.safetensors").unlink()
    Path("m.jsonl").unlink()
    error = refused([*train, "5"], capsys)
    assert "m.step-00000001.safetensors exists, of another training; --overwrite replac" in error
    error = refused(
        [*train, "5", "--overwrite", "--init-from", "./m.step-00000001.safetensors"], capsys
    )
    assert "--init-from ./m.step-00000001.safetensors is a kept checkpoint of the training" in error
    assert main([*train, "5", "--overwrite"]) == 0
    assert main(["info", "m.safetensors", "--config"]) == 0
    assert "keep_every = 5\n" in capsys.readouterr().out
    assert list(kept_paths("m.safetensors")) == [5, 10]
    assert main(["train", "-o", "m.safetensors", "--resume", "--steps", "15"]) == 0
    assert list(kept_paths("m.safetensors")) == [5, 10, 15]
    # those of a part that was given up, and of another training
    shutil.copy("m.step-00000010.safetensors", "m.safetensors")
    capsys.readouterr()
    assert main(["info", "m.safetensors"]) == 0
    assert "kept        2 checkpoints, after steps 5, 10; the" in capsys.readouterr().out
    assert main([*train[:-1], "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["info", "m.safetensors"]) == 0
    assert "kept " not in capsys.readouterr().out


# ---- other settings ----


def test_dropout_may_change(corpus: Corpus, tmp_path: Path) -> None:
    """From there on it is the training that always had this dropout: masks go by the update."""
    path = tmp_path / "m"
    make(corpus, checkpoint_path=path).fit(steps=3, progress=False)
    changed = Trainer.resume(path, corpus, dropout=0.4, zoneout=0.1, checkpoint_path=path)
    assert (changed.model.rnn.dropout, changed.model.rnn.zoneout) == (0.4, (0.1, 0.0))
    before = Trainer.resume(path, corpus)
    assert weights(changed) == weights(before)
    # the same by hand: a network with the dropout, and the state of the training
    model = CharLM(corpus.vocabulary, 4, 2, "gru", seed=1, dropout=0.4, zoneout=0.1)
    other = Trainer(model, corpus, batch_size=6, seq_len=20, checkpoint_path=tmp_path / "other")
    other.save(tmp_path / "other")
    tensors, config = checkpoint.read(tmp_path / "other")
    stored, old = checkpoint.read(path)
    config["training"] = old["training"]
    checkpoint.write(tmp_path / "other", {**tensors, **stored}, config)
    expected = Trainer.resume(tmp_path / "other", corpus)
    for trainer in (changed, expected):
        trainer.fit(steps=5, progress=False)
    assert weights(changed) == weights(expected)
    before.fit(steps=5, progress=False)
    assert weights(changed) != weights(before)
    assert Trainer.resume(path, corpus).model.settings()["dropout"] == 0.4
    with pytest.raises(ValueError, match=r"dropout must be finite, at least 0, below 1, got 1.5"):
        Trainer.resume(path, corpus, dropout=1.5)


class Read(Callback):
    """Keeps what the updates read, by way of the state: whether it is zero."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.rates: list[float] = []

    def updated(self, trainer: Trainer, update: Any) -> None:
        self.epochs.append(update.epoch)
        self.rates.append(update.learning_rate)


def test_the_batch_size_may_change(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m"
    make(corpus, checkpoint_path=path, schedule=Cosine(epochs=4)).fit(steps=9, progress=False)
    with pytest.warns(
        UserWarning, match=r"batch_size changes from 6 to 4 after step 9: the streams begin anew"
    ):
        trainer = Trainer.resume(
            path, corpus, batch_size=4, checkpoint_path=path, callbacks=[read := Read()]
        )
    assert (trainer.num_steps, trainer.epoch, trainer.steps_per_epoch) == (9, 1.5, 9)
    indices: list[int] = []
    chunk = Chunks.read

    def noting(chunks: Chunks, index: int, offset: int = 0) -> Any:
        indices.append(index)
        return chunk(chunks, index, offset)

    monkeypatch.setattr(Chunks, "read", noting)
    # by hand: the same weights and optimizer, on the streams of the new batch from their start
    by_hand = Trainer.resume(path, corpus)
    ids = corpus.train[:].astype(np.int32)
    piece = (792 - 1) // 4
    trainer.fit(steps=11, progress=False)
    for i in [*range(9), 0, 1]:
        if i == 0:
            by_hand.reset()
        rows = [slice(b * piece + 20 * i, b * piece + 20 * i + 21) for b in range(4)]
        part = np.stack([ids[row] for row in rows], axis=1)
        by_hand.schedule = Fixed(read.rates.pop(0) / by_hand.optimizer.lr)
        by_hand.step(part[:-1], part[1:])
    assert indices == [*range(9), 0, 1]
    assert weights(trainer) == weights(by_hand)
    np.testing.assert_allclose(read.epochs, [1.5 + n / 9 for n in range(1, 12)])
    assert [entry.step for entry in trainer.history] == [
        6,
        9,
        18,
        20,
    ]  # an epoch's end, and its own
    assert trainer.step_at(3) == 9 + 14  # 1.5 epochs of 9 steps
    # it goes on from its place, without another word
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Trainer.resume(path, corpus)
    assert (again.epoch, again.batch_size) == (trainer.epoch, 4)
    for one in (trainer, again):
        one.fit(steps=3, progress=False)
    assert weights(again) == weights(trainer)


class Fixed(Cosine):
    """The factor of one update."""

    def __init__(self, value: float) -> None:
        super().__init__(epochs=1)
        object.__setattr__(self, "value", value)

    def factor(self, epoch: float, drops: int = 0) -> float:
        value: float = self.value  # type: ignore[attr-defined]
        return value


def test_wrong_places_in_a_file_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "m"
    make(corpus, checkpoint_path=path).fit(steps=3, progress=False)
    _, config = checkpoint.read(path)
    assert "batches_from" not in config["training"]
    assert "keep_every" not in config["training"]["settings"]
    for step, epoch, message in (
        (4, 0.5, "batches_from.step must be at most num_steps, 3, got 4"),
        (2, -1, "batches_from.epoch must be finite, at least 0, got -1"),
    ):
        config["training"]["batches_from"] = {"step": step, "epoch": epoch}
        with pytest.raises(ValueError, match=message):
            configuration.check(config)


def test_the_command_goes_on_with_other_settings(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text(TEXT)
    two = ["--num-layers", "2"]
    assert main(["train", "text", "-o", "m", *SMALL, *two, "--epochs", "2"]) == 0
    capsys.readouterr()
    resume = ["train", "-o", "m", "--resume"]
    options = ["--dropout", "0.25", "--zoneout", "0.1,0.2", "--batch-size", "4"]
    assert main([*resume, *options, "--epochs", "4"]) == 0
    out, error = capsys.readouterr()
    assert "in training dropout 0.25, zoneout 0.1, 0.2\n" in out
    assert "length      30 steps, 4 epochs" in out  # 12 of 6 an epoch, then 18 of 9
    assert "warning: --batch-size changes from 6 to 4 after step 12: the streams begin" in error
    assert main([*resume, "--epochs", "5"]) == 0
    out, error = capsys.readouterr()
    assert "length      39 steps, 5 epochs" in out and "dropout 0.25" in out
    assert error == ""
    assert main(["info", "m", "--config"]) == 0
    config = capsys.readouterr().out
    assert "dropout = 0.25\n" in config and "batch_size = 4\n" in config
    assert Path(best_path("m")).exists()
    for option, message in (
        (["--seq-len", "5"], "--seq-len must be 20, with which m was trained, got 5"),
        (["--cell", "gru"], "--cell must be lstm, with which m was trained, got gru"),
        (["--seed", "5"], "--seed must be 0, with which m was trained, got 5"),
        (["--batch-size", "200"], "--batch-size=200 streams by --seq-len=20"),
    ):
        assert message in refused([*resume, *option, "--epochs", "9"], capsys)


def test_a_changed_file_of_other_settings_is_damaged(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "m"
    make(corpus, checkpoint_path=path, keep_every=2).fit(steps=2, progress=False)
    tensors, config = checkpoint.read(path)
    config["training"]["settings"]["keep_every"] = 0
    checkpoint.write(path, tensors, config)
    with pytest.raises(CheckpointError, match=r"settings.keep_every must be >= 1, got 0"):
        Trainer.resume(path)

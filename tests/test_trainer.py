"""Trainer: what each update reads, when it evaluates and saves, and how it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from charrnn_fast import CharLM, Corpus, Trainer, Vocabulary
from charrnn_fast.callbacks import Callback, Evaluation, Update
from charrnn_fast.schedules import Cosine, Decay, Plateau
from charrnn_fast.storage import checkpoint
from charrnn_fast.storage.checkpoint import CheckpointError
from charrnn_fast.text.chunks import Chunks
from charrnn_fast.training.resume import best_path

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20  # 880 characters, 792 to train
OPTIMIZERS = ("sgd", "rmsprop", "adagrad", "adam", "adamw")


@pytest.fixture
def corpus() -> Corpus:
    return Corpus.from_text(TEXT)


def make(corpus: Corpus, cell: str = "lstm", seed: int = 1, **options: Any) -> Trainer:
    """Six chunks an epoch."""
    model = CharLM(corpus.vocabulary, 8, 2, cell, seed=seed, dtype="float64")
    return Trainer(model, corpus, **{"batch_size": 6, "seq_len": 20, **options})


class Watch(Callback):
    """Keeps the losses of all updates."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def updated(self, trainer: Trainer, update: Update) -> None:
        self.losses.append(update.loss)


def weights(trainer: Trainer) -> dict[str, bytes]:
    return {name: w.tobytes() for name, w in trainer.model.rnn.parameters().items()}


def poison(model: CharLM) -> None:
    parameters = {name: np.array(w) for name, w in model.rnn.parameters().items()}
    parameters["weight_hh_l0"][0, 0] = np.nan
    model.rnn.load_parameters(parameters)


# ---- Learning ----


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_repeated_sentence_is_learnt(corpus: Corpus, cell: str) -> None:
    trainer = make(corpus, cell, learning_rate=0.03)
    trainer.fit(epochs=40, progress=False)
    assert trainer.history[0].validation_loss > 2
    assert trainer.history[-1].validation_loss < 0.5
    assert trainer.history[-1].train_loss < 0.5


def test_fit_is_steps_over_the_streams(corpus: Corpus) -> None:
    """The state is carried from chunk to chunk and starts at zero at each epoch."""
    watch = Watch()
    trainer, by_hand = make(corpus, callbacks=[watch]), make(corpus)
    trainer.fit(epochs=2, progress=False)
    piece = (792 - 1) // 6
    ids = corpus.train[:].astype(np.int32)
    losses = []
    for _ in range(2):
        by_hand.reset()
        for start in range(0, piece - 19, 20):
            rows = [slice(b * piece + start, b * piece + start + 21) for b in range(6)]
            chunk = np.stack([ids[row] for row in rows], axis=1)
            losses.append(by_hand.step(chunk[:-1], chunk[1:]))
    assert trainer.steps_per_epoch == 6
    assert watch.losses == losses
    assert weights(trainer) == weights(by_hand)


def test_step_carries_its_state(corpus: Corpus) -> None:
    model = CharLM(corpus.vocabulary, 8, seed=1)
    trainer = Trainer(model, learning_rate=1e-30)  # so small that the weights stay
    x, y = corpus.train[:12].reshape(6, 2), corpus.train[1:13].reshape(6, 2)
    first = trainer.step(x, y)
    second = trainer.step(x, y)
    assert first != second
    trainer.reset()
    assert trainer.step(x, y) == first
    trainer.step(x[:, :1], y[:, :1])  # another batch: the state starts anew
    assert trainer.step(x, y) == first
    assert trainer.step(x, y) == second


def test_ignored_targets_do_not_count(corpus: Corpus) -> None:
    x = corpus.train[:12].reshape(6, 2)
    y = np.full((6, 2), -1)
    y[2, 1] = 3
    mean = Trainer(CharLM(corpus.vocabulary, 8, seed=1)).step(x, y)
    total = Trainer(CharLM(corpus.vocabulary, 8, seed=1), reduction="sum").step(x, y)
    assert mean == total > 0


def test_summed_losses_are_recorded_per_character(corpus: Corpus) -> None:
    of_mean, of_total = Watch(), Watch()
    mean = make(corpus, callbacks=[of_mean])
    total = make(corpus, reduction="sum", callbacks=[of_total])
    mean.fit(steps=1, progress=False)
    total.fit(steps=1, progress=False)
    assert of_total.losses == pytest.approx(of_mean.losses, rel=1e-12)
    assert total.step([[0]], [[1]]) > 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_by_name_and_by_object_agree(corpus: Corpus, optimizer: str) -> None:
    by_name = make(corpus, optimizer=optimizer, learning_rate=0.01)
    model = CharLM(corpus.vocabulary, 8, 2, seed=1, dtype="float64")
    kind = {"sgd": "SGD", "rmsprop": "RMSprop", "adagrad": "Adagrad", "adam": "Adam"}
    made = getattr(cf.optim, kind.get(optimizer, "AdamW"))(model.rnn, lr=0.01)
    by_object = Trainer(model, corpus, batch_size=6, seq_len=20, optimizer=made)
    for trainer in (by_name, by_object):
        before = weights(trainer)
        trainer.fit(steps=3, progress=False)
        assert weights(trainer) != before
    assert weights(by_name) == weights(by_object)


def test_the_learning_rate_follows_the_schedule(corpus: Corpus) -> None:
    trainer = make(corpus, schedule=Decay(decay=0.5, after=2), learning_rate=0.008)
    rates = []
    for _ in range(4):
        rates.append(trainer.learning_rate)
        trainer.fit(epochs=1, progress=False)
    assert rates == [0.008, 0.008, 0.004, 0.002]
    assert make(corpus).learning_rate == 2e-3


def test_a_plateau_lowers_the_learning_rate(corpus: Corpus) -> None:
    trainer = make(corpus, schedule=Plateau(decay=0.1, patience=2), learning_rate=1e-30)
    trainer.fit(epochs=5, progress=False)  # nothing is learned: only the first is a new best
    assert [entry.learning_rate for entry in trainer.history] == pytest.approx(
        [1e-30, 1e-30, 1e-31, 1e-31, 1e-32]
    )


def test_a_random_offset_is_another_one_each_epoch(corpus: Corpus) -> None:
    """Each epoch starts at an offset, from philox(mask_seed, epoch, 1), and wraps around."""
    straight, turned = make(corpus), make(corpus, random_offset=True, mask_seed=3)
    for epoch in range(2):
        low, high, *_ = cf.reference.philox(3, epoch, 1)
        offset = (low + (high << 32)) % len(corpus.train)
        assert offset > 0
        text = np.roll(corpus.train, -offset)
        straight._chunks = Chunks(text, 6, 20, "character")
        for trainer in (straight, turned):
            trainer.fit(epochs=1, progress=False)
        assert weights(straight) == weights(turned)


def test_the_learning_rate_reaches_the_update(corpus: Corpus) -> None:
    """Decayed to nothing, an update changes nothing."""
    trainer = make(corpus, schedule=Decay(decay=1e-300, after=1))
    trainer.fit(epochs=1, progress=False)
    before = weights(trainer)
    trainer.fit(epochs=1, progress=False)
    assert weights(trainer) == before


def test_clipping_bounds_the_update(corpus: Corpus) -> None:
    """One step of plain SGD at learning rate 1 moves the weights by the clipped gradient."""
    moves = {}
    clips: dict[str, dict[str, Any]] = {
        "none": {"clip_norm": None},
        "norm": {"clip_norm": 0.01},
        "value": {"clip_norm": None, "clip_value": 0.001},
    }
    for name, clip in clips.items():
        trainer = make(corpus, optimizer="sgd", learning_rate=1.0, **clip)
        before = {k: np.array(w) for k, w in trainer.model.rnn.parameters().items()}
        trainer.fit(steps=1, progress=False)
        after = trainer.model.rnn.parameters()
        moves[name] = np.concatenate([(after[k] - before[k]).ravel() for k in before])
    assert np.linalg.norm(moves["none"]) > 0.02
    assert np.linalg.norm(moves["norm"]) == pytest.approx(0.01, rel=1e-3)
    assert np.abs(moves["value"]).max() == pytest.approx(0.001, rel=1e-9)


# ---- Evaluation, history, progress ----


def test_history_has_an_entry_for_each_evaluation(corpus: Corpus) -> None:
    watch = Watch()
    trainer = make(corpus, evaluate_every=4, callbacks=[watch])
    trainer.fit(steps=15, progress=False)
    assert [entry.step for entry in trainer.history] == [4, 8, 12, 15]
    assert [entry.epoch for entry in trainer.history] == [4 / 6, 8 / 6, 2, 2.5]
    assert trainer.num_steps == len(watch.losses) == 15
    assert trainer.epoch == 2.5
    last = trainer.history[-1]
    assert last.train_loss == pytest.approx(np.mean(watch.losses[12:]))
    validation = corpus.vocabulary.decode(corpus.validation)
    assert last.validation_loss == trainer.model.evaluate(validation)


def test_progress_shows_losses_and_a_sample(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make(corpus, sample_length=30)
    trainer.fit(epochs=1)
    output = capsys.readouterr().out
    loss = trainer.history[-1].validation_loss
    assert f"step 6  epoch 1.00  training {trainer.history[-1].train_loss:.4f}" in output
    assert f"validation {loss:.4f} nats/character ({loss / np.log(2):.3f} bits)" in output
    sample = trainer.model.sample(30, seed=6)
    assert "".join(f"    | {line}\n" for line in sample.splitlines()) in output
    trainer.fit(epochs=1, progress=False)
    assert capsys.readouterr() == ("", "")


def test_samples_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    corpus = Corpus.from_text("\x1b[2J\x07\ud800é\r\n" * 60)
    make(corpus, batch_size=2, sample_length=100).fit(steps=1)
    assert set("\x1b\x07\r\ud800").isdisjoint(capsys.readouterr().out)


# ---- Checkpoints ----


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_resumed_training_is_the_same_training(
    corpus: Corpus, tmp_path: Path, cell: str, optimizer: str
) -> None:
    options: dict[str, Any] = {
        "cell": cell,
        "optimizer": optimizer,
        "schedule": Cosine(epochs=3, warmup=0.5),
        "random_offset": True,
        "checkpoint_every": 1,
    }
    straight = make(corpus, **options)
    straight.fit(steps=15, progress=False)
    path = tmp_path / "model"
    stopped = make(corpus, checkpoint_path=path, **options)
    stopped.fit(steps=8, progress=False)  # in the middle of the second epoch
    resumed = Trainer.resume(path, Corpus.from_text(TEXT), checkpoint_path=path)
    assert resumed.num_steps == 8
    assert resumed.history == stopped.history
    assert resumed.learning_rate == stopped.learning_rate
    resumed.fit(steps=7, progress=False)
    assert weights(resumed) == weights(straight)
    assert resumed.history[-1] == straight.history[-1]._replace(
        train_loss=resumed.history[-1].train_loss
    )
    assert resumed._losses == straight._losses == (0, 0.0)


def test_stopping_and_resuming_at_evaluations_gives_the_same_file(
    corpus: Corpus, tmp_path: Path
) -> None:
    make(corpus, checkpoint_path=tmp_path / "straight").fit(epochs=3, progress=False)
    make(corpus, checkpoint_path=tmp_path / "stopped").fit(epochs=1, progress=False)
    path = tmp_path / "stopped"
    Trainer.resume(path, corpus, checkpoint_path=path).fit(epochs=2, progress=False)
    assert path.read_bytes() == (tmp_path / "straight").read_bytes()


def test_a_checkpoint_is_a_model_too(corpus: Corpus, tmp_path: Path) -> None:
    trainer = make(corpus, checkpoint_path=tmp_path / "model")
    trainer.fit(steps=3, progress=False)
    loaded = CharLM.load(tmp_path / "model")
    assert loaded.sample(50, seed=1) == trainer.model.sample(50, seed=1)


def test_checkpoints_are_written_when_asked(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    write = checkpoint.write

    def record(path: Path, tensors: Any, config: Any) -> None:
        saved.append((os.path.basename(path), config["training"]["num_steps"]))
        write(path, tensors, config)

    monkeypatch.setattr(checkpoint, "write", record)
    make(corpus, checkpoint_path=tmp_path / "a").fit(steps=14, progress=False)
    assert [step for name, step in saved if name == "a"] == [6, 12, 14]
    saved.clear()
    make(corpus, checkpoint_path=tmp_path / "b", checkpoint_every=4).fit(steps=13, progress=False)
    assert [step for name, step in saved if name == "b"] == [4, 6, 8, 12, 13]


def test_the_best_is_kept_beside_the_last(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    trainer = make(corpus, checkpoint_path=path)
    trainer.fit(epochs=3, progress=False)
    best = CharLM.load(tmp_path / "model.best.safetensors")
    assert trainer.best == trainer.history[-1]
    assert (tmp_path / "model.best.safetensors").read_bytes() == path.read_bytes()
    trainer.optimizer.lr = 10.0
    trainer.fit(epochs=1, progress=False)
    assert trainer.best == trainer.history[-2]
    kept = CharLM.load(tmp_path / "model.best.safetensors")
    for name, w in kept.rnn.parameters().items():
        np.testing.assert_array_equal(w, best.rnn.parameters()[name])
    assert Trainer.resume(path, corpus).best == trainer.best


def test_a_training_ends_where_nothing_gets_better(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "model"
    trainer = make(corpus, learning_rate=1e-30, patience=2, checkpoint_path=path)
    trainer.fit(epochs=9, progress=False)  # nothing is learned: only the first is a new best
    assert trainer.epoch == 3
    trainer.fit(epochs=1, progress=False)
    assert trainer.epoch == 3
    resumed = Trainer.resume(path, corpus)
    resumed.fit(epochs=1, progress=False)
    assert resumed.epoch == 3
    resumed = Trainer.resume(path, corpus, patience=4)
    resumed.fit(epochs=9, progress=False)
    assert resumed.epoch == 5


def test_the_validation_part_may_be_cut_short(corpus: Corpus) -> None:
    trainer = make(corpus, evaluate_length=30)
    trainer.fit(steps=1, progress=False)
    text = corpus.vocabulary.decode(corpus.validation[:30])
    assert trainer.history[0].validation_loss == trainer.model.evaluate(text)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_memory_is_known_beforehand(corpus: Corpus, micro_batches: int) -> None:
    trainer = make(corpus, optimizer="rmsprop", micro_batches=micro_batches)
    expected = trainer.memory
    trainer.fit(steps=1, progress=False)
    network: Any = trainer.model.rnn.core
    optimizer: Any = trainer.optimizer._core
    assert network.held_memory + optimizer.held_memory == pytest.approx(expected, rel=0.05)
    assert cf.optim.memory("rmsprop", trainer.model.rnn) == optimizer.held_memory


def test_more_memory_than_there_is_is_refused(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = make(corpus).memory
    monkeypatch.setattr("charrnn_fast._checks.available_memory", lambda: needed // 2)
    with pytest.raises(MemoryError, match="GB are free; try a smaller batch_size or seq_len"):
        make(corpus)
    monkeypatch.setattr("charrnn_fast._checks.available_memory", lambda: 2 * needed)
    make(corpus)


def test_callbacks_are_told_in_turn(corpus: Corpus, tmp_path: Path) -> None:
    path = str(tmp_path / "model")
    events: list[object] = []

    class Recorder(Callback):
        def started(self, trainer: Trainer, steps: int) -> None:
            events.append(("started", steps))

        def updated(self, trainer: Trainer, update: Update) -> None:
            events.append(("updated", update.step, update.epoch, update.symbols))
            assert update.learning_rate == 2e-3
            assert update.gradient_norm > 0
            if update.step == 8:
                trainer.stop()

        def evaluated(self, trainer: Trainer, evaluation: Evaluation, sample: str) -> None:
            events.append(("evaluated", evaluation.step, len(sample)))

        def saved(self, trainer: Trainer, path: str) -> None:
            events.append(("saved", os.path.basename(path)))

        def ended(self, trainer: Trainer) -> None:
            events.append("ended")

    trainer = make(corpus, checkpoint_path=path, sample_length=5, callbacks=[Recorder()])
    trainer.fit(epochs=5, progress=False)
    updates = [("updated", n, n / 6, 120) for n in range(1, 9)]
    saves = [("saved", "model.best"), ("saved", "model")]
    assert events == [
        ("started", 30),
        *updates[:6],
        ("evaluated", 6, 5),
        *saves,
        *updates[6:],
        ("evaluated", 8, 5),
        *saves,
        "ended",
    ]


def test_a_callback_that_fails_ends_the_training(corpus: Corpus) -> None:
    class Failing(Watch):
        def updated(self, trainer: Trainer, update: Update) -> None:
            raise RuntimeError("the disk of the log is full")

        def ended(self, trainer: Trainer) -> None:
            self.losses.append(-1.0)

    failing = Failing()
    with pytest.raises(RuntimeError, match="the log is full"):
        make(corpus, callbacks=[failing]).fit(epochs=1, progress=False)
    assert failing.losses == [-1.0]


def test_resuming_something_else_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "model"
    make(corpus, checkpoint_path=path).fit(steps=3, progress=False)
    refusals: list[tuple[Corpus, dict[str, Any], str]] = [
        (corpus, {"seq_len": 5}, "seq_len must be 20, with which .*model was trained, got 5"),
        (corpus, {"optimizer": "sgd"}, "optimizer must be 'adam', .*, got 'sgd'"),
        (
            Corpus.from_text("abc" * 300),
            {},
            "vocabulary of the model, <.*28 .* 3 characters",
        ),
        (
            Corpus.from_text(TEXT + "the"),
            {},
            r"trained on, 880 characters \(fingerprint .*, got 883 \(fing",
        ),
        (
            Corpus.from_text(TEXT[1:] + "t"),
            {},
            r"trained on, 880 characters \(fingerprint .*, got 880 \(fing",
        ),
    ]
    for text, changes, message in refusals:
        with pytest.raises(ValueError, match=message):
            Trainer.resume(path, text, **changes)
    assert Trainer.resume(path, corpus, learning_rate=0.5).learning_rate == 0.5


REGULARIZED: dict[str, Any] = {
    "layer_norm": True,
    "dropout": 0.2,
    "input_dropout": 0.1,
    "output_dropout": 0.2,
    "recurrent_dropout": 0.1,
    "weight_drop": 0.2,
    "zoneout": 0.1,
}


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_fit_draws_masks_by_the_number_of_the_update(corpus: Corpus, cell: str) -> None:
    """Each update is that of a forward with the mask_seed that the documentation names."""
    model = CharLM(corpus.vocabulary, 8, 2, cell, seed=1, dtype="float64", **REGULARIZED)
    watch, others = Watch(), Watch()
    trainer = Trainer(model, corpus, 6, 20, mask_seed=5, callbacks=[watch])
    by_hand = CharLM(corpus.vocabulary, 8, 2, cell, seed=1, dtype="float64", **REGULARIZED)
    optimizer, state = cf.optim.Adam(by_hand.rnn, lr=2e-3), None
    assert trainer._chunks is not None
    for update in range(3):
        low, high, *_ = cf.reference.philox(5, update)
        x, targets = trainer._chunks.read(update)
        y, state = by_hand.rnn.forward(x, state, mask_seed=low + (high << 32))
        loss, dy = cf.cross_entropy(y, targets)
        _, _, grads = by_hand.rnn.backward(dy)
        cf.clip_grad_norm(grads, 5.0)
        optimizer.step(grads)
        trainer.fit(steps=1, progress=False)
        assert watch.losses[-1] == loss
        for name, w in by_hand.rnn.parameters().items():
            np.testing.assert_array_equal(w, model.rnn.parameters()[name])
    other = CharLM(corpus.vocabulary, 8, 2, cell, seed=1, dtype="float64", **REGULARIZED)
    Trainer(other, corpus, 6, 20, mask_seed=6, callbacks=[others]).fit(steps=3, progress=False)
    assert others.losses != watch.losses


@pytest.mark.parametrize("proj_size", [0, 3])
def test_a_regularized_training_is_resumed_exactly(
    corpus: Corpus, tmp_path: Path, proj_size: int
) -> None:
    options = REGULARIZED | {"proj_size": proj_size}
    if proj_size:
        options["zoneout"] = (0.0, 0.1)

    def trainer() -> Trainer:
        model = CharLM(corpus.vocabulary, 8, 2, "lstm", seed=1, **options)
        return Trainer(model, corpus, 6, 20, mask_seed=3)

    straight, stopped = trainer(), trainer()
    straight.fit(steps=9, progress=False)
    stopped.fit(steps=4, progress=False)
    stopped.save(tmp_path / "model")
    resumed = Trainer.resume(tmp_path / "model", corpus)
    resumed.fit(steps=5, progress=False)
    assert weights(resumed) == weights(straight)


def test_a_model_alone_cannot_be_resumed(corpus: Corpus, tmp_path: Path) -> None:
    make(corpus).model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="holds a model without its training"):
        Trainer.resume(tmp_path / "model", corpus)


def test_an_optimizer_object_cannot_be_resumed(corpus: Corpus, tmp_path: Path) -> None:
    model = CharLM(corpus.vocabulary, 8)
    optimizer = cf.optim.SGD(model.rnn, lr=0.1, momentum=0.9)
    trainer = Trainer(model, corpus, 6, 20, optimizer)
    trainer.fit(steps=1, progress=False)
    trainer.save(tmp_path / "model")
    with pytest.raises(ValueError, match="trained with an optimizer object"):
        Trainer.resume(tmp_path / "model", corpus)


def test_a_damaged_checkpoint_cannot_be_resumed(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "model"
    make(corpus, checkpoint_path=path).fit(steps=1, progress=False)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        Trainer.resume(path, corpus)


def test_training_by_hand_is_saved_with_its_state(corpus: Corpus, tmp_path: Path) -> None:
    x, y = corpus.train[:12].reshape(6, 2), corpus.train[1:13].reshape(6, 2)
    trainer = Trainer(CharLM(corpus.vocabulary, 8, seed=1))
    trainer.step(x, y)
    trainer.save(tmp_path / "model")
    resumed = Trainer.resume(tmp_path / "model")
    assert [resumed.step(x, y) for _ in range(3)] == [trainer.step(x, y) for _ in range(3)]
    assert weights(resumed) == weights(trainer)


# ---- How a training ends badly ----


def test_nan_stops_the_training_and_the_last_checkpoint_stays(
    corpus: Corpus, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    trainer = make(corpus, checkpoint_path=path)
    trainer.fit(steps=3, progress=False)
    good = path.read_bytes()
    poison(trainer.model)
    before = weights(trainer)
    with pytest.raises(FloatingPointError, match=r"diverged: at step 4 .*nan.*model holds step 3"):
        trainer.fit(steps=5, progress=False)
    assert weights(trainer) == before
    assert trainer.num_steps == 3
    assert path.read_bytes() == good
    with pytest.raises(FloatingPointError, match=r"rnn.weight_hh_l0 is no longer finite"):
        trainer.save(path)
    assert path.read_bytes() == good
    Trainer.resume(path, corpus).fit(steps=5, progress=False)


def test_a_last_update_to_nan_is_not_saved(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update itself was finite, its result is not: only the evaluation after it can tell."""
    path = tmp_path / "model"
    trainer = make(corpus, checkpoint_path=path)
    trainer.fit(steps=3, progress=False)
    good = path.read_bytes()
    update = trainer._update

    def update_to_nan(*chunk: Any) -> tuple[float, float]:
        result = update(*chunk)
        poison(trainer.model)
        return result

    monkeypatch.setattr(trainer, "_update", update_to_nan)
    with pytest.raises(FloatingPointError, match="after step 4 the validation loss is nan"):
        trainer.fit(steps=1, progress=False)
    assert path.read_bytes() == good


def test_a_step_by_hand_stops_at_nan(corpus: Corpus) -> None:
    trainer = Trainer(CharLM(corpus.vocabulary, 8))
    poison(trainer.model)
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        trainer.step([[0]], [[1]])


INTERRUPTED = """
import sys, threading, _thread
from charrnn_fast import CharLM, Corpus, Trainer
corpus = Corpus.from_text({text!r})
model = CharLM(corpus.vocabulary, 8, 2, seed=1, dtype="float64")
trainer = Trainer(model, corpus, 6, 20, checkpoint_path={path!r})
trainer.fit(steps=2, progress=False)
print("ready", flush=True)
try:
    trainer.fit(steps=10**9, progress=False)
except KeyboardInterrupt:
    print(trainer.num_steps, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_an_interrupt_saves_and_leaves(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "model"
    program = INTERRUPTED.format(text=TEXT, path=str(path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGINT)
        steps = int(process.stdout.readline())
        assert process.wait(60) == 0
    resumed = Trainer.resume(path, corpus)
    assert resumed.num_steps == steps > 2
    straight = make(corpus)
    straight.fit(steps=steps, progress=False)
    assert weights(resumed) == weights(straight)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("when", ["before", "within"])
def test_an_evaluation_does_not_hold_up_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """It is postponed until the training resumes."""
    monkeypatch.setattr("charrnn_fast.language.model._EVALUATION_BLOCK", 10)
    corpus, path = Corpus.from_text(TEXT), tmp_path / "model"
    straight = make(corpus)
    straight.fit(steps=8, progress=False)
    seen = []

    class Interrupting(Callback):
        def updated(self, trainer: Trainer, update: Update) -> None:
            if when == "before" and update.step == 6:
                signal.raise_signal(signal.SIGINT)

    trainer = make(corpus, checkpoint_path=path, callbacks=[Interrupting()])
    losses = trainer.model.losses

    def interrupted_losses(*arguments: Any) -> Iterator[tuple[int, float]]:
        for number, piece in enumerate(losses(*arguments)):
            seen.append(number)
            if when == "within" and number == 3:
                signal.raise_signal(signal.SIGINT)
            yield piece

    monkeypatch.setattr(trainer.model, "losses", interrupted_losses)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(steps=8, progress=False)
    assert seen == [0] if when == "before" else [0, 1, 2, 3]
    assert (trainer.num_steps, trainer.history) == (6, [])
    resumed = Trainer.resume(path, corpus)
    resumed.fit(steps=0, progress=False)
    assert resumed.history == straight.history[:1]
    resumed.fit(steps=2, progress=False)
    assert resumed.history == straight.history
    assert weights(resumed) == weights(straight)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_terminal_that_closes_is_an_interrupt(corpus: Corpus, tmp_path: Path) -> None:
    class Closing(Callback):
        def updated(self, trainer: Trainer, update: Update) -> None:
            if update.step == 2:
                signal.raise_signal(signal.SIGHUP)

    path = tmp_path / "model"
    trainer = make(corpus, checkpoint_path=path, callbacks=[Closing()])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(steps=5, progress=False)
    assert Trainer.resume(path, corpus).num_steps == 2


def test_progress_that_nobody_reads_saves_and_leaves(corpus: Corpus, tmp_path: Path) -> None:
    class Closed(Callback):
        def updated(self, trainer: Trainer, update: Update) -> None:
            if update.step == 2:
                raise BrokenPipeError

    path = tmp_path / "model"
    trainer = make(corpus, checkpoint_path=path, callbacks=[Closed()])
    with pytest.raises(BrokenPipeError):
        trainer.fit(steps=5, progress=False)
    assert Trainer.resume(path, corpus).num_steps == 2


@pytest.mark.parametrize("event", ["updated", "saved"])
def test_stop_ends_with_an_evaluation_and_a_checkpoint(
    corpus: Corpus, tmp_path: Path, event: str
) -> None:
    class Stopping(Callback):
        def updated(self, trainer: Trainer, update: Update) -> None:
            if event == "updated" and update.step == 4:
                trainer.stop()

        def saved(self, trainer: Trainer, path: str) -> None:
            if event == "saved" and trainer.num_steps == 4:
                trainer.stop()

    path = tmp_path / "model"
    options: dict[str, Any] = {"checkpoint_every": 2, "evaluate_every": 50}
    trainer = make(corpus, callbacks=[Stopping()], checkpoint_path=path, **options)
    trainer.fit(steps=30, progress=False)
    assert [entry.step for entry in trainer.history] == [4]
    assert Trainer.resume(path, corpus).history == trainer.history


def test_the_best_checkpoint_is_of_this_training(corpus: Corpus, tmp_path: Path) -> None:
    """One that another training has left goes, and one that is missing comes back."""

    class Kill(Callback):
        def updated(self, trainer: Trainer, update: Update) -> None:
            if update.step == 2:
                raise RuntimeError("killed")

    path = tmp_path / "model"
    best = Path(best_path(path))
    make(corpus, checkpoint_path=path).fit(steps=6, progress=False)
    assert best.exists()
    trainer = make(corpus, checkpoint_path=path, checkpoint_every=2)
    trainer.fit(steps=2, progress=False)  # ends with an evaluation
    assert checkpoint.read(best)[1]["training"]["num_steps"] == 2
    options: dict[str, Any] = {"checkpoint_every": 1, "evaluate_every": 50}
    again = make(corpus, checkpoint_path=path, callbacks=[Kill()], **options)
    with pytest.raises(RuntimeError, match="killed"):
        again.fit(steps=3, progress=False)
    assert not best.exists()
    trainer.save(path)
    moved = tmp_path / "moved"
    path.rename(moved)
    resumed = Trainer.resume(moved, corpus, checkpoint_path=moved, learning_rate=5.0)
    resumed.fit(steps=2, progress=False)
    kept = checkpoint.read(best_path(moved))[1]["training"]
    assert kept["num_steps"] == min(resumed.history, key=lambda e: e.validation_loss).step


def test_another_schedule_counts_its_drops(corpus: Corpus) -> None:
    trainer = make(corpus, learning_rate=1.0, evaluate_every=1)
    losses = [3.0, 2.0, 2.5, 2.6, 2.7]
    trainer.history = [Evaluation(i + 1, 0, 0, loss, 0) for i, loss in enumerate(losses)]
    assert trainer.learning_rate == 1
    trainer.schedule = Plateau(patience=1, decay=0.5)
    assert trainer.learning_rate == 0.5**3
    with pytest.raises(TypeError, match=r"schedule must be of charrnn_fast\.schedules"):
        trainer.schedule = "plateau"  # type: ignore[assignment]


def test_a_rate_of_zero_is_gone_on_with(corpus: Corpus, tmp_path: Path) -> None:
    trainer = make(corpus)
    trainer.optimizer.lr = 0
    trainer.fit(steps=1, progress=False)
    trainer.save(tmp_path / "model")
    assert Trainer.resume(tmp_path / "model", corpus).learning_rate == 0


def test_fit_puts_the_interrupt_handler_back(corpus: Corpus) -> None:
    before = signal.getsignal(signal.SIGINT)
    trainer = make(corpus)
    trainer.fit(steps=1, progress=False)
    poison(trainer.model)
    with pytest.raises(FloatingPointError):
        trainer.fit(steps=1, progress=False)
    assert signal.getsignal(signal.SIGINT) is before


# ---- Refusals ----


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
        ({"batch_size": 10**30}, ValueError, "batch_size must be in 1 to 2147483647, got 10000"),
        ({"seq_len": 2.0}, TypeError, "seq_len must be an integer >= 1, got 2.0"),
        ({"batch_size": 100}, ValueError, "must have 2001 characters.*batch_size=100.* got 792"),
        ({"optimizer": "adamax"}, ValueError, "optimizer must be one of sgd,.* got 'adamax'"),
        ({"optimizer": 3}, TypeError, "optimizer must be a name"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be finite, above 0, got 0.0"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be finite"),
        ({"clip_norm": -1}, ValueError, "clip_norm must be finite, above 0, got -1"),
        ({"clip_value": 0}, ValueError, "clip_value must be finite, above 0, got 0"),
        ({"reduction": "none"}, ValueError, "reduction must be 'mean' or 'sum', got 'none'"),
        ({"schedule": "cosine"}, TypeError, "schedule must be of charrnn_fast.schedules or None"),
        ({"evaluate_every": 0}, ValueError, "evaluate_every must be >= 1, got 0"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be >= 1, got 0"),
        ({"sample_length": -1}, ValueError, "sample_length must be >= 0, got -1"),
    ],
)
def test_bad_settings_are_refused(
    corpus: Corpus, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(corpus, **options)


def test_arguments_of_another_type_are_refused(corpus: Corpus) -> None:
    model = CharLM(corpus.vocabulary, 4)
    wrong: list[tuple[Any, Any, str]] = [
        (None, corpus, "model must be a CharLM, got NoneType"),
        (model.rnn, corpus, "model must be a CharLM, got RNN"),
        (model, "text", "corpus must be a Corpus or None, got str"),
    ]
    for first, second, message in wrong:
        with pytest.raises(TypeError, match=message):
            Trainer(first, second)
    trainer = make(corpus)
    bad: Any = "x"
    trainer.optimizer.lr = bad
    before = weights(trainer)
    with pytest.raises(TypeError, match=r"optimizer.lr must be a number .*, got 'x'"):
        trainer.fit(steps=1, progress=False)
    with pytest.raises(TypeError, match=r"optimizer.lr must be a number .*, got 'x'"):
        trainer.step([[0]], [[1]])
    assert weights(trainer) == before


def test_an_infinite_bound_is_none(corpus: Corpus) -> None:
    settings = make(corpus, clip_norm=np.inf, clip_value=np.inf).settings()
    assert settings["clip_norm"] is settings["clip_value"] is None


def test_texts_that_do_not_fit_are_refused(corpus: Corpus) -> None:
    model = CharLM(Vocabulary.from_text("ab"), 4)
    with pytest.raises(ValueError, match=r"vocabulary of the model, <.*2 char.*28 characters"):
        Trainer(model, corpus)
    tiny = Corpus.from_text("ab" * 5, model.vocabulary)
    with pytest.raises(ValueError, match="validation part, the last 10 % of 10 characters"):
        Trainer(model, tiny, batch_size=1, seq_len=2)


def test_an_unwritable_path_is_found_before_training(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a checkpoint")
    for path, error in (
        (tmp_path, IsADirectoryError),
        (tmp_path / "missing" / "model", FileNotFoundError),
        (tmp_path / "file" / "model", NotADirectoryError),
        (tmp_path / "file", FileExistsError),
    ):
        with pytest.raises(error):
            make(corpus, checkpoint_path=path)
    assert (tmp_path / "file").read_text() == "not a checkpoint"


def test_fit_takes_epochs_or_steps(corpus: Corpus) -> None:
    trainer = make(corpus)
    with pytest.raises(ValueError, match="either epochs or steps"):
        trainer.fit()
    with pytest.raises(ValueError, match="either epochs or steps"):
        trainer.fit(epochs=1, steps=1)
    with pytest.raises(ValueError, match=r"steps must be in 0 to .*, got -1"):
        trainer.fit(steps=-1)
    with pytest.raises(TypeError, match="epochs must be an integer"):
        trainer.fit(epochs=0.5)  # type: ignore[arg-type]
    trainer.fit(steps=0, progress=False)
    assert trainer.num_steps == 0
    with pytest.raises(ValueError, match="corpus is None"):
        Trainer(trainer.model).fit(epochs=1)


def test_another_networks_optimizer_is_refused(corpus: Corpus) -> None:
    other = CharLM(corpus.vocabulary, 8)
    with pytest.raises(ValueError, match="got one of another network"):
        make(corpus, optimizer=cf.optim.Adam(other.rnn, lr=1e-3))


@pytest.mark.parametrize(
    ("inputs", "targets", "error", "message"),
    [
        ([0, 1], [1, 2], ValueError, r"inputs must have the shape \[T, B\], got \[2\]"),
        ([[0]], [[0.5]], TypeError, "targets must be integers, got dtype float64"),
        ([[0], [1]], [[0]], ValueError, r"targets must have the shape of inputs, \[2, 1\]"),
        ([[-1]], [[0]], ValueError, r"inputs\[0, 0\] must be in 0 to 27, got -1"),
        ([[28]], [[0]], ValueError, r"inputs\[0, 0\] must be in 0 to 27, got 28"),
        ([[0]], [[28]], ValueError, r"targets\[0, 0\] must be in -1 to 27, got 28"),
        ([[0]], [[-2]], ValueError, r"targets\[0, 0\] must be in -1 to 27, got -2"),
        ([[2**32]], [[0]], ValueError, "must be in 0 to 27, got 4294967296"),
        (np.zeros((0, 1), int), np.zeros((0, 1), int), ValueError, r"\[T, B\], got \[0, 1\]"),
    ],
)
def test_bad_tokens_change_nothing(
    corpus: Corpus, inputs: Any, targets: Any, error: type[Exception], message: str
) -> None:
    trainer = Trainer(CharLM(corpus.vocabulary, 8, dtype="float64"))
    before = weights(trainer)
    with pytest.raises(error, match=message):
        trainer.step(inputs, targets)
    assert weights(trainer) == before


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_bad_tokens_leave_the_carried_state(corpus: Corpus, micro_batches: int) -> None:
    """Whatever their number of streams; the stream that is named is the batch's, not a part's."""
    trained = []
    for refused in (False, True):
        model = CharLM(corpus.vocabulary, 8, dtype="float64")
        trainer = Trainer(model, None, 6, 5, micro_batches=micro_batches)
        good = np.arange(30).reshape(5, 6) % 28
        for dtype in (np.int32, np.uint8, np.int64):
            trainer.step(good.astype(dtype), good)
            for streams in (5, 6, 7) if refused else ():
                bad = np.zeros((4, streams), dtype)
                bad[2, 4] = 28
                for name, batch in (("inputs", (bad, bad * 0)), ("targets", (bad * 0, bad))):
                    with pytest.raises(ValueError, match=rf"{name}\[2, 4\] must be in .*, got 28"):
                        trainer.step(*batch)
        trained.append(weights(trainer))
    assert trained[0] == trained[1]

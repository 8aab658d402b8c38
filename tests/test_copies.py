"""Deep copies and pickles of every object: they share nothing and continue with the same bits."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
import features
from cases import Array, parts
from charrnn_fast._objects import _restored
from charrnn_fast.log import JsonLog, TensorBoardLog
from charrnn_fast.training import callbacks, schedules
from tolerances import assert_same_bits

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def _pickled(protocol: int) -> Callable[[Any], Any]:
    return lambda value: pickle.loads(pickle.dumps(value, protocol))


def _out_of_band(value: Any) -> Any:
    """Arrays beside the pickle, as they are sent to other processes."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, 5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytearray(buffer.raw()) for buffer in buffers])


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "out of band": _out_of_band,
    **{f"protocol {n}": _pickled(n) for n in PROTOCOLS},
}
each_way = pytest.mark.parametrize("copied", WAYS.values(), ids=WAYS)

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("RMSprop", {"alpha": 0.9, "centered": True, "momentum": 0.5}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.3}),
    ("Adam", {"betas": (0.8, 0.9), "weight_decay": 0.01}),
    ("AdamW", {"eps": 1e-6}),
]
each_optimizer = pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=lambda v: str(v)[:30])


class Named(cf.RNN):
    """A subclass with attributes and slots of its own, some of which refer to itself."""

    __slots__ = ("slot",)
    limit = 3
    note: str

    def __init__(self, note: str) -> None:
        super().__init__(4, 5, 3, cell="gru")
        self.note, self._mine, self.slot = note, {"list": [1, 2]}, [3]
        self.parent = self
        self.optimizer = cf.optim.Adam(self)


class Scaled(cf.optim.Adam):
    """An optimizer with another constructor."""

    def __init__(self, rnn: cf.RNN) -> None:
        super().__init__(rnn, lr=0.5, betas=(0.5, 0.6))
        self.factor = 7


class Watch(callbacks.Callback):
    """Refers to the trainer that it watches."""

    def __init__(self) -> None:
        self.trainer: cf.Trainer | None = None
        self.losses: list[float] = []

    def started(self, trainer: cf.Trainer, steps: int) -> None:
        self.trainer = trainer

    def updated(self, trainer: cf.Trainer, update: callbacks.Update) -> None:
        self.losses.append(update.loss)


def _weights(of: Any) -> dict[str, bytes]:
    rnn = of if isinstance(of, cf.RNN) else of.rnn
    return {name: value.tobytes() for name, value in rnn.parameters().items()}


def _tokens(net: cf.RNN) -> Array:
    return np.random.default_rng(0).integers(0, net.input_size, (6, 3))


def _results(net: cf.RNN, **options: Any) -> list[Array]:
    """Of a forward, a backward and, where it can, a step."""
    y, last = net.forward(_tokens(net), **options)
    _, dstate, grads = net.backward(np.ones_like(y), last)
    stepped = [] if net.bidirectional else [net.step(_tokens(net)[0])]
    return [y, *parts(last), *parts(dstate), *grads.values(), *stepped]


def _assert_same(found: list[Array], expected: list[Array]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert_same_bits("copy", np.ascontiguousarray(a), np.ascontiguousarray(b))


# ---- networks -----------------------------------------------------------------------------------


@each_way
def test_a_network_goes_on(copied: Callable[[Any], Any]) -> None:
    net = cf.RNN(4, 5, 3, cell="lstm", num_layers=2, proj_size=3, dropout=0.3, zoneout=(0, 0.1))
    net.step(_tokens(net)[0])
    other = copied(net)
    assert type(other) is cf.RNN and repr(other) == repr(net)
    assert _weights(other) == _weights(net)
    before = _weights(net)
    _assert_same(_results(other, mask_seed=7), _results(net, mask_seed=7))
    other.load_parameters({name: 2 * value for name, value in other.parameters().items()})
    other.state = None
    assert _weights(net) == before and net.state is not None


@pytest.mark.parametrize("case", list(features.combinations()), ids=features.label)
def test_every_option_is_copied(case: features.FeatureCase) -> None:
    net = case.network()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert repr(other) == repr(net)
        _assert_same(_results(other, mask_seed=1), _results(net, mask_seed=1))
        for one in (net, other):
            one.reset()


def test_what_backward_needs_is_not_copied() -> None:
    net = cf.RNN(4, 5, 3)
    y, _ = net.forward(_tokens(net))
    other = copy.deepcopy(net)
    with pytest.raises(RuntimeError, match="backward must follow"):
        other.backward(np.ones_like(y))
    net.backward(np.ones_like(y))


@each_way
def test_subclasses_keep_their_attributes(copied: Callable[[Any], Any]) -> None:
    net = Named("mine")
    other = copied(net)
    assert type(other) is Named
    assert (other.note, other._mine, other.slot) == ("mine", {"list": [1, 2]}, [3])
    assert other._mine is not net._mine and other.slot is not net.slot
    assert other.parent is other and other.optimizer.rnn is other
    other.note = "changed"
    other.anything = 5  # type: ignore[attr-defined]
    assert _weights(other) == _weights(net)


# ---- optimizers ---------------------------------------------------------------------------------


def _trained(net: cf.RNN, optimizer: cf.optim.Optimizer, steps: range) -> dict[str, bytes]:
    for step in steps:
        y, _ = net.forward(_tokens(net), mask_seed=step)
        optimizer.step(net.backward(np.ones_like(y))[2])
    return _weights(net)


@each_optimizer
def test_a_network_and_its_optimizer_go_on(kind: str, options: dict[str, Any]) -> None:
    for copied in WAYS.values():
        if copied is copy.copy:
            continue  # of a tuple it copies nothing
        net = cf.RNN(4, 5, 3, cell="gru", recurrent_dropout=0.2, dtype="float64")
        optimizer = getattr(cf.optim, kind)(net, **options)
        optimizer.lr = 0.05
        _trained(net, optimizer, range(3))
        other, its = copied((net, optimizer))
        assert its.rnn is other is not net and type(its) is type(optimizer)
        assert repr(its) == repr(optimizer)
        assert _trained(other, its, range(3, 6)) == _trained(net, optimizer, range(3, 6))


@each_way
def test_an_optimizer_alone_brings_its_network(copied: Callable[[Any], Any]) -> None:
    net = cf.RNN(4, 5, 3)
    optimizer = Scaled(net)
    _trained(net, optimizer, range(2))
    other, before = copied(optimizer), _weights(net)
    assert type(other) is Scaled and other.factor == 7 and other.betas == (0.5, 0.6)
    assert other.rnn is not net
    after = _trained(other.rnn, other, range(2, 4))
    assert _weights(net) == before != after
    assert _trained(net, optimizer, range(2, 4)) == after


# ---- texts and models ---------------------------------------------------------------------------


@each_way
def test_vocabularies(copied: Callable[[Any], Any]) -> None:
    for vocabulary in (
        cf.Vocabulary.from_text(TEXT),
        cf.Vocabulary.from_text(TEXT + "xyz", min_count=4),
        cf.Vocabulary.from_bytes(),
    ):
        other = copied(vocabulary)
        assert other == vocabulary and hash(other) == hash(vocabulary)
        assert (other.kind, other.unknown, repr(other)) == (
            vocabulary.kind, vocabulary.unknown, repr(vocabulary),
        )  # fmt: skip
        assert other.encode("fox").tolist() == vocabulary.encode("fox").tolist()
        assert not np.shares_memory(other.symbols, vocabulary.symbols)


@each_way
def test_corpora(copied: Callable[[Any], Any], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text(TEXT)
    two.write_text(TEXT * 2)
    in_bytes = cf.Vocabulary.from_bytes()
    for corpus in (
        cf.Corpus.from_text(TEXT, document_mark="\n"),
        cf.Corpus.from_files(one, two, document_mark=""),
        cf.Corpus.from_files(one, vocabulary=in_bytes, document_mark="\n"),
        cf.Corpus.from_files(one, two, vocabulary=in_bytes),
    ):
        other = copied(corpus)
        _ = corpus.fingerprint
        assert repr(other) == repr(corpus) and other.vocabulary == corpus.vocabulary
        for part in ("train", "validation"):
            here, there = getattr(corpus, part), getattr(other, part)
            assert here.dtype == there.dtype and type(here) is type(there)
            assert np.array_equal(here, there)
            if isinstance(here, np.ndarray):
                assert not np.shares_memory(here, there) and not there.flags.writeable
        starts = [c.starts_within(0, len(corpus)).tolist() for c in (corpus, other)]
        assert starts[0] == starts[1]
        assert other.identity() == corpus.identity()


def test_a_pickled_corpus_of_a_file_that_changes(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text(TEXT)
    corpus = cf.Corpus.from_files(path, vocabulary=cf.Vocabulary.from_bytes())
    data = pickle.dumps(corpus)
    assert len(data) < len(TEXT) * 3  # the path, not the text
    path.write_text(TEXT + "more")
    with pytest.raises(OSError, match=f"{path} has changed since"):
        pickle.loads(data)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(data)


def test_a_text_that_exceeds_the_memory_is_not_pickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text"
    path.write_text(TEXT)
    corpus = cf.Corpus.from_files(path)
    monkeypatch.setattr("charrnn_fast.storage.file_array.available_memory", lambda: 100)
    with pytest.raises(MemoryError, match=r"takes 8.8e-07 GB, and 1e-07 GB are free; let"):
        pickle.dumps(corpus)
    assert len(copy.deepcopy(corpus)) == len(TEXT)


@each_way
def test_models(copied: Callable[[Any], Any]) -> None:
    model = cf.CharLM(cf.Vocabulary.from_text(TEXT), 8, 2, "gru", dropout=0.2)
    model.sample(3)
    other = copied(model)
    assert _weights(other) == _weights(model) and repr(other) == repr(model)
    assert other.last_seed == model.last_seed and other.settings() == model.settings()
    assert other.vocabulary == model.vocabulary and other.vocabulary is not model.vocabulary
    assert other.sample(40, "the", seed=1) == model.sample(40, "the", seed=1)
    assert other.evaluate(TEXT) == model.evaluate(TEXT)


# ---- trainings ----------------------------------------------------------------------------------

PLAIN: dict[str, Any] = {"schedule": schedules.Plateau(patience=1), "evaluate_every": 4}
TRAININGS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "parts": {**PLAIN, "micro_batches": 2, "clip_value": 0.01, "random_offset": True},
    "sum": {"optimizer": "rmsprop", "reduction": "sum", "mask_seed": 3, "clip_norm": 1.0},
}


def _trainer(mark: str | None = None, watch: Watch | None = None, **options: Any) -> cf.Trainer:
    corpus = cf.Corpus.from_text(TEXT, document_mark=mark)
    model = cf.CharLM(
        corpus.vocabulary, 8, 2, "lstm", dropout=0.2, zoneout=0.1, weight_drop=0.1, seed=1
    )
    return cf.Trainer(model, corpus, 6, 20, callbacks=[watch] if watch else [], **options)


@pytest.mark.parametrize("options", TRAININGS.values(), ids=TRAININGS)
def test_a_training_goes_on(options: dict[str, Any]) -> None:
    """In the middle of an epoch, with masks, carried states, documents and a schedule."""
    whole = _trainer("fox", **options)
    for steps in (5, 12):
        whole.fit(steps=steps, progress=False)
    begun = _trainer("fox", watch=Watch(), **options)
    begun.configuration["note"] = ["by hand"]
    begun.fit(steps=5, progress=False)
    for copied in WAYS.values():
        other = copied(begun)
        assert other.optimizer.rnn is other.model.rnn is not begun.model.rnn
        assert other.configuration == {"note": ["by hand"]}
        assert other.configuration["note"] is not begun.configuration["note"]
        watch = other._callbacks[0]
        assert watch.trainer is other and watch.losses == begun._callbacks[0].losses  # type: ignore[attr-defined]
        other.fit(steps=12, progress=False)
        assert _weights(other.model) == _weights(whole.model)
        assert other.history == whole.history and other.num_steps == 17
        assert begun.num_steps == 5 and len(begun._callbacks[0].losses) == 5  # type: ignore[attr-defined]


def test_a_training_by_hand_goes_on() -> None:
    trainer = cf.Trainer(cf.CharLM(cf.Vocabulary.from_text("abcd"), 5, 1, "gru"))
    x, y = np.array([[0, 1], [2, 3], [1, 0]]), np.array([[1, 2], [3, 0], [0, 1]])
    trainer.step(x, y)
    other = copy.deepcopy(trainer)
    assert [other.step(x, y) for _ in range(3)] == [trainer.step(x, y) for _ in range(3)]
    other.reset()
    assert trainer._state is not None and trainer._state.any()


def test_logs_are_copied_while_no_training_writes_to_them(tmp_path: Path) -> None:
    class Copying(callbacks.Callback):
        def updated(self, trainer: cf.Trainer, update: callbacks.Update) -> None:
            for log in logs:
                with pytest.raises(TypeError, match=f"a {type(log).__name__} cannot be copied"):
                    copy.deepcopy(log)

    logs = [JsonLog(tmp_path / "log"), TensorBoardLog(tmp_path / "board")]
    corpus = cf.Corpus.from_text(TEXT)
    model = cf.CharLM(corpus.vocabulary, 4, 1, "rnn")
    for others in (copy.deepcopy(logs), pickle.loads(pickle.dumps(logs))):
        assert [type(log) for log in others] == [JsonLog, TensorBoardLog]
    trainer = cf.Trainer(model, corpus, 6, 20, callbacks=[*logs, Copying()])
    trainer.fit(steps=2, progress=False)
    others = pickle.loads(pickle.dumps(logs))
    cf.Trainer(model, corpus, 6, 20, callbacks=others).fit(steps=1, progress=False)


def test_schedules_and_what_callbacks_are_told() -> None:
    values = [
        *(schedules.Constant(), schedules.Decay(after=3), schedules.Cosine(epochs=3, warmup=1)),
        *(schedules.Linear(final=0.1), schedules.Plateau(patience=2), callbacks.Callback()),
        callbacks.Evaluation(1, 0.5, 1.0, 2.0, 0.1),
        callbacks.Update(1, 0.5, 1.0, 2.0, 0.1, 50),
    ]
    for value in values:
        for copied in WAYS.values():
            other = copied(value)
            assert type(other) is type(value)
            assert isinstance(value, callbacks.Callback) or other == value


# ---- other processes, other versions ------------------------------------------------------------


def _in_child(trainer: cf.Trainer, net: cf.RNN, optimizer: cf.optim.Optimizer) -> Any:
    trainer.fit(steps=4, progress=False)
    assert optimizer.rnn is net
    return os.getpid(), _weights(trainer.model), _trained(net, optimizer, range(2)), trainer


def test_spawned_processes_go_on(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text(TEXT)
    corpus = cf.Corpus.from_files(path)
    model = cf.CharLM(corpus.vocabulary, 8, 2, dropout=0.3)
    trainer = cf.Trainer(model, corpus, 6, 20)
    trainer.fit(steps=3, progress=False)
    net = cf.RNN(4, 5, 3)
    optimizer = cf.optim.Adam(net)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        child, *weights, back = pool.apply(_in_child, (trainer, net, optimizer))
    assert child != os.getpid()
    _, *expected, _ = _in_child(trainer, net, optimizer)
    assert weights == expected
    assert _weights(back.model) == weights[0] and len(back.corpus) == len(TEXT)


def test_pickles_that_do_not_fit_are_refused() -> None:
    """Of other versions, and such as were changed by hand; each says what is wrong."""
    net = cf.RNN(4, 5, 3)
    optimizer, trainer = cf.optim.Adam(net), _trainer()
    for whole in (net, optimizer, trainer, trainer.model, trainer.corpus, trainer.model.vocabulary):
        assert whole is not None
        make, (cls, form, saved), _ = whole.__reduce__()
        assert make is _restored and form == cls._format
        assert pickle.dumps(saved)
        with pytest.raises(ValueError, match=f"this {cls.__name__} was pickled in the format 99"):
            make(cls, 99, saved)
        for key in saved:
            rest = {name: value for name, value in saved.items() if name != key}
            with pytest.raises(ValueError, match=f"no whole pickle of a {cls.__name__}.*{key}"):
                make(cls, form, rest)
    saved = net._pickled()
    weights = saved["parameters"]
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"options": {**saved["options"], "hidden_size": 6}}, ValueError, r"must have shape \(6"),
        ({"options": {**saved["options"], "hidden_size": "6"}}, TypeError, "hidden_size must be"),
        ({"options": {**saved["options"], "more": 6}}, TypeError, "more"),
        ({"parameters": {**weights, "more": weights["decoder.bias"]}}, ValueError, "unknown"),
        ({"state": np.zeros((1, 1, 7), "float32")}, ValueError, "state must have shape"),
    ]
    for change, error, message in wrong:
        with pytest.raises(error, match=message):
            _restored(cf.RNN, 1, {**saved, **change})
    model = trainer.model._pickled()
    with pytest.raises(ValueError, match="rnn must be a network over"):
        _restored(cf.CharLM, 1, {**model, "vocabulary": cf.Vocabulary.from_text("ab")})
    with pytest.raises(TypeError, match="rnn must be an RNN, got NoneType"):
        _restored(cf.CharLM, 1, {**model, "rnn": None})
    with pytest.raises(ValueError, match=r"optimizer must be one of model\.rnn"):
        _restored(cf.Trainer, cf.Trainer._format, {**trainer._pickled(), "optimizer": optimizer})

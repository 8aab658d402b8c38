"""Read-only options: which attributes may be set, which not, and what the error says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from charrnn_fast.schedules import Decay
from tolerances import assert_same_bits

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20


def _objects() -> dict[str, Any]:
    corpus = cf.Corpus.from_text(TEXT)
    model = cf.CharLM(corpus.vocabulary, 8, 2)
    trainer = cf.Trainer(model, corpus, 6, 20)
    return {
        "rnn": cf.RNN(4, 5, 3, cell="lstm"),
        "model": model,
        "corpus": corpus,
        "vocabulary": corpus.vocabulary,
        "trainer": trainer,
        **{kind: getattr(cf.optim, kind)(model.rnn) for kind in ("SGD", "RMSprop", "Adagrad")},
        **{kind: getattr(cf.optim, kind)(model.rnn) for kind in ("Adam", "AdamW")},
    }


# what may be set, and what to
MAY_BE_SET: dict[str, dict[str, Any]] = {
    "rnn": {"state": None, "W_hh": np.zeros((20, 5), "f4"), "W_xh": np.zeros((20, 4), "f4"),
            "W_hy": np.zeros((3, 5), "f4"), "b_h": np.zeros(20, "f4"), "b_y": np.zeros(3, "f4")},
    "trainer": {"configuration": {"a": 1}, "history": [], "seconds": 1.0, "schedule": Decay()},
    **{kind: {"lr": 0.5} for kind in ("SGD", "RMSprop", "Adagrad", "Adam", "AdamW")},
}  # fmt: skip


@pytest.mark.parametrize("name", _objects())
def test_what_can_be_read_is_set_with_effect_or_refused(name: str) -> None:
    """Every public attribute that is no method: nothing is set without effect."""
    thing = _objects()[name]
    may = MAY_BE_SET.get(name, {})
    found = 0
    for attribute in dir(thing):
        if attribute[0] == "_" or callable(getattr(thing, attribute)):
            continue
        found += 1
        before = getattr(thing, attribute)
        if attribute in may:
            setattr(thing, attribute, may[attribute])
            np.testing.assert_array_equal(getattr(thing, attribute), may[attribute])
            continue
        message = rf"^{type(thing).__name__}\.{attribute} cannot be changed: ..."
        with pytest.raises(AttributeError, match=message):
            setattr(thing, attribute, before)
        with pytest.raises(AttributeError, match=r"cannot be changed|deleter"):
            delattr(thing, attribute)
        assert getattr(thing, attribute) is before or getattr(thing, attribute) == before
    assert found >= 2 and not may.keys() - set(dir(thing))


@pytest.mark.parametrize(
    ("name", "attribute", "message"),
    [
        ("rnn", "hidden_size", r"fixed when it is built; build another one, whose load_parameters"),
        ("rnn", "droput", r"^RNN has no attribute 'droput'; did you mean 'dropout'\?$"),
        ("rnn", "Hidden_Size", r"has no attribute 'Hidden_Size'; did you mean 'hidden_size'\?$"),
        ("rnn", "rnn_size", r"did you mean 'hidden_size'\?$"),
        ("rnn", "weights", r"^RNN has no attribute 'weights'$"),
        ("model", "vocabulary", r"make another CharLM"),
        ("model", "hidden_size", r"^CharLM has no attribute 'hidden_size'"),
        ("model", "last_seed", r"give sample\(\) a seed$"),
        ("trainer", "batch_size", r"are given to Trainer\(...\), or, to change them"),
        ("trainer", "clip_norm", r"^Trainer.clip_norm cannot be changed: settings are given"),
        ("trainer", "learning_rate", r"optimizer.lr and the schedule, which may be set$"),
        ("trainer", "optimzer", r"did you mean 'optimizer'\?$"),
        ("Adam", "betas", r"of an optimizer's options only lr may be changed .*load_state_dict"),
        ("Adam", "learning_rate", r"^Adam has no attribute 'learning_rate'; did you mean 'lr'\?$"),
        ("Adam", "rnn", r"^Adam.rnn cannot be changed: an optimizer is of one network"),
        ("vocabulary", "kind", r"a vocabulary is immutable"),
        ("corpus", "train", r"a corpus is one text"),
    ],
)
def test_the_refusal_says_what_to_do(name: str, attribute: str, message: str) -> None:
    with pytest.raises(AttributeError, match=message):
        setattr(_objects()[name], attribute, 1)


def test_subclasses_may_have_attributes() -> None:
    class Mine(cf.RNN):
        label: str = "none"

    net = Mine(4, 5)
    net.label = "one"
    net.label = "two"
    net.anything = 5  # type: ignore[attr-defined]
    del net.anything  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"Mine\.num_layers cannot be changed"):
        net.num_layers = 3
    with pytest.raises(AttributeError, match=r"Mine\.input_size cannot be changed"):
        net.__init__(6, 7)  # type: ignore[misc]


def test_what_objects_show() -> None:
    """The options by their names; that of PyTorch's third argument above all."""
    shown = {
        "RNN(10, 20, output_size=2, cell='rnn', num_layers=1, dtype='float32')": cf.RNN(10, 20, 2),
        "RNN(10, 20, cell='gru', num_layers=2, dtype='float64', bias='single', bidirectional=True)":
        cf.RNN(10, 20, cell="gru", num_layers=2, dtype="float64", bias="single",
               bidirectional=True),
        "RNN(4, 5, cell='lstm', num_layers=1, dtype='float32', proj_size=2, zoneout=(0.0, 0.1))":
        cf.RNN(4, 5, cell="lstm", proj_size=2, zoneout=(0, 0.1)),
    }  # fmt: skip
    for text, net in shown.items():
        assert repr(net) == text
        again = eval(text, {"RNN": cf.RNN})
        for name, value in net.parameters().items():
            assert_same_bits(name, again.parameters()[name], value)
    net = cf.RNN(4, 5)
    assert repr(cf.optim.Adam(net, lr=0.5)) == (
        f"<Adam(lr=0.5, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0) of {net!r}, 0 steps>"
    )
    assert repr(cf.optim.SGD(net, momentum=0.5)).startswith(
        "<SGD(lr=0.001, momentum=0.5, dampening=0.0, nesterov=False, weight_decay=0.0) of RNN(4,"
    )
    trainer = _objects()["trainer"]
    assert repr(trainer) == (
        "<Trainer of <CharLM: lstm, 2 x 8, 28 characters, 2,044 parameters> on 880 symbols: "
        "batch_size=6, seq_len=20, Adam, lr=0.002, 0 steps done>"
    )
    assert (trainer.batch_size, trainer.seq_len) == (6, 20)


# ---- optimizers' states -------------------------------------------------------------------------

KINDS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("SGD", {}, []),
    ("SGD", {"momentum": 0.9, "nesterov": True}, ["momentum_buffer"]),
    ("RMSprop", {"alpha": 0.9}, ["square_avg"]),
    (
        "RMSprop",
        {"centered": True, "momentum": 0.5},
        ["square_avg", "grad_avg", "momentum_buffer"],
    ),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.3}, ["sum"]),
    ("Adam", {"betas": (0.8, 0.9), "weight_decay": 0.01}, ["exp_avg", "exp_avg_sq"]),
    ("AdamW", {"eps": 1e-6}, ["exp_avg", "exp_avg_sq"]),
]
each_kind = pytest.mark.parametrize(("kind", "options", "slots"), KINDS)


def _trained(optimizer: cf.optim.Optimizer, steps: range) -> dict[str, bytes]:
    net = optimizer.rnn
    for step in steps:
        rng = np.random.default_rng(step)
        shapes = {name: value.shape for name, value in net.parameters().items()}
        optimizer.step({n: rng.standard_normal(shape).astype("f4") for n, shape in shapes.items()})
    return {name: value.tobytes() for name, value in net.parameters().items()}


@each_kind
def test_a_loaded_optimizer_goes_on(kind: str, options: dict[str, Any], slots: list[str]) -> None:
    """Through JSON and npz-like arrays, into one that was made with other options."""
    net = cf.RNN(4, 5, 3, cell="gru")
    optimizer = getattr(cf.optim, kind)(net, **options)
    _trained(optimizer, range(3))
    optimizer.lr = 0.125
    state = optimizer.state_dict()
    assert list(state) == ["optimizer", "step", "options", "state"]
    assert (state["optimizer"], state["step"]) == (kind.lower(), 3)
    assert state["options"].items() >= {**options, "lr": 0.125}.items()
    other_net = cf.RNN(4, 5, 3, cell="gru", seed=1)
    other_net.load_parameters(net.parameters())
    for name, value in net.parameters().items():
        assert list(state["state"][name]) == slots
        for array in state["state"][name].values():
            assert array.shape == value.shape and array.dtype == value.dtype
            assert array.flags.c_contiguous and array.flags.writeable and array.base is None
    plain = json.loads(json.dumps({key: state[key] for key in ("optimizer", "step", "options")}))
    other = getattr(cf.optim, kind)(other_net)
    _trained(other, range(1))
    other_net.load_parameters(net.parameters())
    other.load_state_dict({**plain, "state": state["state"]})
    assert other.rnn is other_net and repr(other) == repr(optimizer)
    for arrays in state["state"].values():
        for array in arrays.values():
            array[...] = np.nan  # what was given is copied
    assert _trained(other, range(3, 6)) == _trained(optimizer, range(3, 6))
    for name in options:
        assert getattr(other, name) == options[name]


@each_kind
def test_wrong_states_are_refused(kind: str, options: dict[str, Any], slots: list[str]) -> None:
    optimizer = getattr(cf.optim, kind)(cf.RNN(4, 5), **options)
    _trained(optimizer, range(2))
    good = optimizer.state_dict()
    state, other = good["state"], "adam" if kind != "Adam" else "adamw"
    wrong: list[tuple[Any, type[Exception], str]] = [
        (None, TypeError, "state_dict must be a mapping as state_dict.* gives it, got NoneType"),
        ({**good, "more": 1}, ValueError, r"state_dict must have \['optimizer', .*, got .*'more'"),
        ({"step": 3}, ValueError, "state_dict must have .*, got .'step'"),
        ({**good, "optimizer": other}, ValueError, rf"must be '{kind.lower()}',.* got '{other}'"),
        ({**good, "step": -1}, ValueError, r"state_dict\['step'\] must be .*got -1"),
        ({**good, "step": 2**62 + 1}, ValueError, r"state_dict\['step'\] must be .*in 0 to 46"),
        ({**good, "step": 2.0}, TypeError, r"state_dict\['step'\] must be an integer.*got 2.0"),
        ({**good, "options": 3}, TypeError, r"state_dict\['options'\] must be a mapping, got int"),
        ({**good, "options": {"lr": 1}}, ValueError, r"state_dict\['options'\] must have \['lr',"),
        ({**good, "options": {**good["options"], "lr": -1}}, ValueError, "lr must be .*got -1"),
        ({**good, "options": {**good["options"], "weight_decay": "a"}}, TypeError, "weight_decay"),
        ({**good, "state": None}, TypeError, r"\['state'\] must be a mapping, got NoneType"),
        ({**good, "state": {}}, ValueError, r"\['state'\] must have \['weight_ih_l0', .*got \[\]"),
    ]
    name = "bias_hh_l0"
    for slot in slots:
        where = rf"state_dict\['state'\]\['{name}'\]\['{slot}'\] must "
        array = state[name][slot]
        bads: list[tuple[Any, type[Exception], str]] = [
            (array[:-1], ValueError, r"have shape \(5,\), got \(4,\)"),
            (array.astype("f8"), TypeError, "have dtype float32, got float64"),
            (array.tolist(), TypeError, "be an array, got list"),
        ]
        for bad, error, message in bads:
            changed = {**state, name: {**state[name], slot: bad}}
            wrong.append(({**good, "state": changed}, error, where + message))
        lacking = {**state, name: {s: a for s, a in state[name].items() if s != slot}}
        wrong.append(({**good, "state": lacking}, ValueError, rf"\['{name}'\] must have .*{slot}"))
    before = [optimizer.state_dict(), repr(optimizer)]
    for given, error, message in wrong:
        with pytest.raises(error, match=message):
            optimizer.load_state_dict(given)
        np.testing.assert_equal([optimizer.state_dict(), repr(optimizer)], before)


def test_a_state_of_other_options_has_other_arrays() -> None:
    """SGD with a momentum keeps a buffer, without it none; loading takes the options with it."""
    with_momentum = cf.optim.SGD(cf.RNN(4, 5), momentum=0.9)
    without = cf.optim.SGD(cf.RNN(4, 5))
    without.load_state_dict(with_momentum.state_dict())
    assert without.momentum == 0.9
    assert _trained(without, range(3)) == _trained(with_momentum, range(3))
    mixed = {**without.state_dict(), "options": cf.optim.SGD(cf.RNN(4, 5)).state_dict()["options"]}
    with pytest.raises(ValueError, match=r"must have \[\], got \['momentum_buffer'\]"):
        without.load_state_dict(mixed)

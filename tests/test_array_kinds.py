"""Arrays of every kind in every argument: the same bits as a plain one, or an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from cases import Array
from charrnn_fast import optim

TAKEN: tuple[()] = ()
Outcome = tuple[()] | tuple[type[Exception], str]
MASKED: Outcome = (TypeError, "must have no mask, got a masked array, of which all elements would")


class Sub(np.ndarray):
    """A subclass with a mind of its own."""

    def reshape(self, *shape: Any, **options: Any) -> Any:
        raise AssertionError("the package takes it for the array that it is")


def _negative(a: Array) -> Array:
    return a[..., ::-1].copy()[..., ::-1]


def _read_only(a: Array) -> Array:
    a = a.copy()
    a.flags.writeable = False
    return a


def _torch(a: Array) -> Any:
    return pytest.importorskip("torch").from_numpy(a.copy())


# the same numbers in another kind of array
KINDS: dict[str, Callable[[Array], Any]] = {
    "masked": lambda a: np.ma.array(a, mask=np.arange(a.size).reshape(a.shape) % 3 == 0),
    "without a mask": np.ma.array,
    "list with a masked row": lambda a: [np.ma.array(row) for row in a],
    "subclass": lambda a: a.view(Sub),
    "read-only": _read_only,
    "Fortran": np.asfortranarray,
    "negative": _negative,
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "bool": lambda a: a.astype(bool),
    "float16": lambda a: a.astype("float16"),
    "complex": lambda a: a.astype("complex64"),
    "object": lambda a: a.astype(object),
    "text": lambda a: a.astype(str),
    "0-d": lambda a: np.array(a[(0,) * a.ndim]),
    "list": lambda a: a.tolist(),
    "ragged list": lambda a: [a.tolist(), 1],
    "torch": _torch,
}

DTYPE: Outcome = (TypeError, r"float32|integers")
NO_ARRAY: Outcome = (TypeError, "must be an? .*array.*, got ")
LAYOUT: Outcome = (ValueError, "contiguous")
FLOATS: dict[str, Outcome] = {
    "masked": MASKED,
    "without a mask": MASKED,
    "list with a masked row": MASKED,
    "subclass": TAKEN,
    "read-only": TAKEN,
    "Fortran": LAYOUT,
    "negative": LAYOUT,
    **dict.fromkeys(("other byte order", "bool", "float16", "complex", "object", "text"), DTYPE),
    "0-d": (ValueError, "shape"),
    "list": NO_ARRAY,
    "ragged list": NO_ARRAY,
    "torch": (TypeError, "got Tensor: convert it by numpy.asarray"),
}
PARAMETERS: dict[str, Outcome] = {**FLOATS, "Fortran": TAKEN, "negative": TAKEN}
IN_PLACE: dict[str, Outcome] = {
    **FLOATS,
    "read-only": (ValueError, "must be writable"),
    "Fortran": TAKEN,
    "0-d": TAKEN,
}
TOKENS: dict[str, Outcome] = {**FLOATS, "other byte order": TAKEN}
LIKE: dict[str, Outcome] = {
    **TOKENS,
    "Fortran": TAKEN,
    "negative": TAKEN,
    "list": TAKEN,
    "torch": TAKEN,
    "ragged list": (ValueError, "makes no array"),
}


@dataclass
class Taker:
    """A place that takes an array: what it does with one, and a plain one for it."""

    run: Callable[[Any], Any]
    plain: Array
    outcomes: dict[str, Outcome]


def _takers() -> dict[str, Taker]:
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> Array:
        return rng.uniform(0, 1, shape).astype("float32")

    def ids(*shape: int) -> Array:
        return rng.integers(0, 4, shape).astype("int64")

    net, lstm = cf.RNN(4, 5, 3, cell="gru"), cf.RNN(4, 5, 3, cell="lstm")
    x, dy, h = floats(6, 2, 4), floats(6, 2, 3), floats(1, 2, 5)
    logits, targets = floats(6, 2, 3), ids(6, 2) % 3
    shapes = {name: value.shape for name, value in net.parameters().items()}
    weights = {name: floats(*shape) for name, shape in shapes.items()}
    vocabulary = cf.Vocabulary.from_text("abcd")

    def backward(*given: Any) -> Any:
        net.forward(x)
        return net.backward(*given)

    def stepped(value: Any, times: int) -> Any:
        net.reset()
        return [net.step(value) for _ in range(times)]

    def assigned(name: str, value: Any) -> Any:
        other = cf.RNN(4, 5, 3, cell="gru")
        setattr(other, name, value)
        return np.array(getattr(other, name))

    def loaded(value: Any) -> Any:
        net.load_parameters({**weights, "weight_ih_l0": value})
        return {name: np.array(p) for name, p in net.parameters().items()}

    def updated(value: Any) -> Any:
        other = cf.RNN(4, 5, 3, cell="gru")
        optim.Adam(other).step({**weights, "weight_ih_l0": value})
        return {name: np.array(p) for name, p in other.parameters().items()}

    def restored(value: Any) -> Any:
        adam = optim.Adam(cf.RNN(4, 5, 3, cell="gru"))
        state = adam.state_dict()
        state["state"]["weight_ih_l0"]["exp_avg"] = value
        adam.load_state_dict(state)
        return adam.state_dict()

    def clipped(clip: Callable[[Any, float], Any], value: Any) -> Any:
        # in place: of a copy of the same kind, as it comes
        return clip({"a": value}, 0.25), np.array(value)

    def trained(inputs: Any, targets: Any) -> Any:
        return cf.Trainer(cf.CharLM(vocabulary, 5, 1)).step(inputs, targets)

    return {
        "forward x": Taker(net.forward, x, FLOATS),
        "forward tokens": Taker(net.forward, ids(6, 2), TOKENS),
        "forward state": Taker(lambda a: net.forward(x, a), h, FLOATS),
        "forward h": Taker(lambda a: lstm.forward(x, (a, h)), h, FLOATS),
        "forward c": Taker(lambda a: lstm.forward(x, [h, a]), h, FLOATS),
        "forward lengths": Taker(lambda a: net.forward(x, lengths=a), np.array([6, 1]), LIKE),
        "backward dy": Taker(backward, dy, FLOATS),
        "backward dstate": Taker(lambda a: backward(None, a), h, FLOATS),
        "first step": Taker(lambda a: stepped(a, 1), floats(2, 4), FLOATS),
        "next steps": Taker(lambda a: stepped(a, 3), floats(2, 4), FLOATS),
        "state": Taker(lambda a: assigned("state", a), h, FLOATS),
        "W_hh": Taker(lambda a: assigned("W_hh", a), floats(15, 5), PARAMETERS),
        "load_parameters": Taker(loaded, floats(15, 4), PARAMETERS),
        "gradients": Taker(updated, floats(15, 4), PARAMETERS),
        "optimizer state": Taker(restored, floats(15, 4), PARAMETERS),
        "clip_grad_norm": Taker(lambda a: clipped(cf.clip_grad_norm, a), floats(3, 4), IN_PLACE),
        "clip_grad_value": Taker(lambda a: clipped(cf.clip_grad_value, a), floats(3, 4), IN_PLACE),
        "logits": Taker(lambda a: cf.cross_entropy(a, targets), logits, FLOATS),
        "targets": Taker(lambda a: cf.cross_entropy(logits, a), targets, TOKENS),
        "weights": Taker(
            lambda a: cf.cross_entropy(logits, targets, weights=a), floats(6, 2), FLOATS
        ),
        "binary logits": Taker(lambda a: cf.binary_cross_entropy(a, dy), dy, FLOATS),
        "binary targets": Taker(lambda a: cf.binary_cross_entropy(dy, a), dy, FLOATS),
        "y": Taker(lambda a: cf.mean_square(a, dy), dy, FLOATS),
        "square weights": Taker(lambda a: cf.mean_square(dy, dy + 1, weights=a), dy, FLOATS),
        "inputs": Taker(lambda a: trained(a, ids(6, 2) * 0), ids(6, 2), LIKE),
        "training targets": Taker(lambda a: trained(ids(6, 2) * 0, a), ids(6, 2), LIKE),
        "symbols": Taker(cf.Vocabulary, np.array([97, 98, 120]), LIKE),
        "decode": Taker(vocabulary.decode, ids(7), LIKE),
        "one_hot": Taker(
            vocabulary.one_hot, ids(3, 2), {**LIKE, "0-d": TAKEN}
        ),
        "ids": Taker(
            lambda a: np.array(cf.Corpus(a, vocabulary).train, int), ids(30), PARAMETERS | {
                "other byte order": TAKEN, "0-d": (ValueError, r"shape \[N\]")
            },
        ),
    }  # fmt: skip


def _bits(value: Any) -> Any:
    """What makes results comparable, to the bit."""
    if isinstance(value, dict):
        return {name: _bits(v) for name, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_bits(v) for v in value]
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, np.asarray(value).tobytes()
    return value


TAKERS = _takers()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TAKERS)
def test_every_kind_of_array_is_taken_as_it_is_or_refused(name: str, kind: str) -> None:
    taker = TAKERS[name]
    given = KINDS[kind](taker.plain.copy())
    outcome = taker.outcomes[kind]
    if taker.plain.ndim == 1 and kind == "Fortran":
        outcome = TAKEN  # which is then C-contiguous as well
    if name == "first step" and kind == "0-d":
        outcome = (ValueError, "shape|batch")
    if outcome:
        error, message = outcome
        with pytest.raises(error, match=message):
            taker.run(given)
    elif name == "symbols":
        assert taker.run(given) == taker.run(taker.plain.copy())
    elif kind == "0-d":
        taker.run(given)
    else:
        assert _bits(taker.run(given)) == _bits(taker.run(taker.plain.copy()))


def test_arrays_in_files_and_tables(tmp_path: Path) -> None:
    """numpy.memmap, and what has an __array__ of its own."""
    net, x = cf.RNN(4, 5), np.ones((3, 2, 4), "float32")
    mapped = np.memmap(tmp_path / "x", "float32", "w+", shape=x.shape)
    mapped[...] = x
    assert _bits(net.forward(mapped)) == _bits(net.forward(x))
    net.load_parameters({name: np.array(value) for name, value in net.parameters().items()})

    class Table:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
            return np.array([3, 1])

    assert _bits(net.forward(x, lengths=Table())) == _bits(net.forward(x, lengths=[3, 1]))  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"got Table: convert it by numpy.asarray"):
        net.forward(Table())


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_matrix_is_an_array_of_two_dimensions() -> None:
    net, x = cf.RNN(4, 5), np.ones((2, 4), "float32")
    first, second = net.step(x), net.step(x)
    net.reset()
    assert _bits([net.step(np.matrix(x)), net.step(np.matrix(x))]) == _bits([first, second])
    logits, targets = np.ones((1, 3), "float32"), np.zeros(1, int)
    loss = cf.cross_entropy(np.matrix(logits), targets)
    assert _bits(loss) == _bits(cf.cross_entropy(logits, targets))


def test_numbers_that_are_missing() -> None:
    x = np.zeros((3, 2, 4), "float32")
    for lengths in ([np.nan, 1], np.array([1.0, np.nan]), [None, 1], [True, False]):
        with pytest.raises(TypeError, match=r"lengths must be integers, got (float64|object|bool)"):
            cf.RNN(4, 5).forward(x, lengths=lengths)  # type: ignore[arg-type]


def test_a_corpus_of_ids() -> None:
    vocabulary = cf.Vocabulary.from_text("abcd")
    wrong: list[tuple[Any, type[Exception], str]] = [
        (np.array([0, 4]), ValueError, "ids must lie in 0 to 3, got 0 to 4"),
        (np.array([0, -1]), ValueError, "ids must lie in 0 to 3, got -1 to 0"),
        (np.array([], int), ValueError, r"ids must have the shape \[N\], N >= 1, got \[0\]"),
        (np.array([0.5]), TypeError, "ids must be integers, got dtype float64"),
    ]
    for ids, error, message in wrong:
        with pytest.raises(error, match=message):
            cf.Corpus(ids, vocabulary)
    with pytest.raises(TypeError, match="vocabulary must be a Vocabulary, got str"):
        cf.Corpus(np.array([0, 1]), "ab")  # type: ignore[arg-type]

"""`RNN` and the losses as a caller sees them: arguments, state, errors, unchanged inputs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from cases import UNITS, Array, Case, parts, run
from charrnn_fast import reference
from charrnn_fast.schedules import Constant
from tolerances import assert_close, assert_same_bits, network


def _copies(net: cf.RNN) -> dict[str, Array]:
    return {name: np.array(value) for name, value in net.parameters().items()}


def _assert_unchanged(net: cf.RNN, before: dict[str, Array]) -> None:
    for name, value in net.parameters().items():
        assert_same_bits(name, value, before[name])


# ---- building -----------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input_size": 0}, ValueError, "input_size.*>= 1, got 0"),
    ({"input_size": 2.5}, TypeError, "input_size.*integer.*got 2.5"),
    ({"hidden_size": -3}, ValueError, "hidden_size.*>= 1, got -3"),
    ({"hidden_size": "8"}, TypeError, "hidden_size.*integer.*got '8'"),
    ({"output_size": 0}, ValueError, "output_size.*>= 1, got 0"),
    ({"num_layers": 0}, ValueError, "num_layers.*in 1 to 10000, got 0"),
    ({"seed": -1}, ValueError, "seed.*in 0 to 18446744073709551615, got -1"),
    ({"seed": 2**64}, ValueError, "seed.*in 0 to 18446744073709551615, got 18446744073709551616"),
    ({"input_size": 10**30}, ValueError, "input_size.*in 1 to 2147483647, got 10000000000"),
    ({"hidden_size": 2**31}, ValueError, "hidden_size.*in 1 to 2147483647, got 2147483648"),
    ({"output_size": 10**400}, ValueError, "output_size.*2147483647, got an integer of 1329 bit"),
    ({"num_layers": 10**30}, ValueError, "num_layers.*in 1 to 10000, got 10000000000"),
    (
        {"input_size": 2**31 - 1, "hidden_size": 2**31 - 1},
        ValueError,
        r"must have at most 2\*\*40 weights, got 9.22e\+18 for RNN\(2147483647, 2147483647, ",
    ),
    ({"cell": "lstm", "forget_bias": 10**400}, ValueError, "forget_bias must be finite, got inf"),
    ({"dtype": None}, TypeError, "dtype.*'float32' or 'float64', got None"),
    ({"dtype": ">f4"}, TypeError, "dtype.*'float32' or 'float64', got >f4"),
    ({"cell": "mgu"}, ValueError, "cell must be one of 'rnn', .*got 'mgu'"),
    ({"nonlinearity": "gelu"}, ValueError, "nonlinearity.*'tanh' or 'relu', got 'gelu'"),
    (
        {"cell": "lstm", "nonlinearity": "relu"},
        ValueError,
        "must be 'tanh' with cell='lstm', got 'relu'",
    ),
    ({"bias": "both"}, ValueError, "bias.*True, 'single' or False, got 'both'"),
    ({"bias": None}, ValueError, "bias.*True, 'single' or False, got None"),
    ({"dtype": "float16"}, TypeError, "dtype.*'float32' or 'float64', got float16"),
    ({"dtype": "int32"}, TypeError, "dtype.*'float32' or 'float64', got int32"),
    ({"dtype": "single precision"}, TypeError, "dtype.*'float32' or 'float64'"),
    ({"cell": "lstm", "forget_bias": np.nan}, ValueError, "forget_bias.*finite.*nan"),
    ({"dropout": 1.0}, ValueError, "dropout must be .*at least 0, below 1, got 1.0"),
    ({"weight_drop": -0.1}, ValueError, "weight_drop must be .*got -0.1"),
    ({"recurrent_dropout": "half"}, TypeError, "recurrent_dropout must be a number.*'half'"),
    ({"variational": 1}, TypeError, "variational must be True or False, got 1"),
    ({"bidirectional": "yes"}, TypeError, "bidirectional must be True or False, got 'yes'"),
    ({"layer_norm": None}, TypeError, "layer_norm must be True or False, got None"),
    ({"proj_size": 3}, ValueError, "proj_size must be 0 with cell='rnn', got 3"),
    (
        {"cell": "lstm", "proj_size": 6},
        ValueError,
        "proj_size must be less than hidden_size=3, got 6",
    ),
    (
        {"zoneout": (0.1, 0.1)},
        ValueError,
        "second rate of zoneout must be 0 with cell='rnn', got 0.1",
    ),
    ({"zoneout": (0.1,)}, ValueError, r"zoneout must be a rate or a pair \(h, c\)"),
    (
        {"cell": "lstm", "proj_size": 2, "zoneout": 0.1},
        ValueError,
        "behind a projection: the first rate of zoneout must be 0, got 0.1",
    ),
    ({"device": "gpu"}, ValueError, "device must be 'cpu', .*got 'gpu'"),
    ({"device": 0}, TypeError, "device must be a str, got int"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_construction_refuses(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cf.RNN(**{"input_size": 4, "hidden_size": 3, **wrong})


def test_sizes_beyond_memory_are_refused_and_not_a_crash() -> None:
    for hidden_size in (2**31, 2**40, 2**62):
        with pytest.raises((MemoryError, ValueError, OverflowError)):
            cf.RNN(4, hidden_size)


def test_what_exceeds_the_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("charrnn_fast._core.ModelFloat32", fail)
    with pytest.raises(
        MemoryError,
        match=r"RNN\(4, 3, output_size=5, .* has 36 weights and takes 1.44e-07 GB, .*try",
    ):
        cf.RNN(4, 3, 5)


@pytest.mark.parametrize("make", ["RNN", "CharLM"])
def test_dropout_that_does_nothing_is_warned_of(make: str) -> None:
    """As PyTorch does, at the caller's line; not where the same network is made again."""
    vocabulary = cf.Vocabulary.from_text("abcd")

    def made(**options: Any) -> Any:
        return cf.RNN(4, 5, **options) if make == "RNN" else cf.CharLM(vocabulary, 5, **options)

    message = (
        "^dropout=0.3 does nothing in a network of one layer: it leaves out between layers; "
        "there are input_dropout, output_dropout and recurrent_dropout$"
    )
    with pytest.warns(UserWarning, match=message) as told:
        net = made(num_layers=1, dropout=0.3)
    assert len(told) == 1 and told[0].filename == __file__
    pickle.loads(pickle.dumps(copy.deepcopy(net)))
    made(num_layers=1, input_dropout=0.3)
    made(num_layers=2, dropout=0.3)


def test_a_model_with_dropout_that_does_nothing_is_loaded_in_silence(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="does nothing"):
        model = cf.CharLM(cf.Vocabulary.from_text("abcd"), 5, 1, dropout=0.3)
    model.save(tmp_path / "model")
    cf.CharLM.load(tmp_path / "model").score(["ab"], weight_dtype="bfloat16")


def test_the_largest_seed() -> None:
    assert cf.RNN(4, 3, seed=2**64 - 1).W_hh.any()


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_weights_are_counted_before_they_are_made(cell: str) -> None:
    for output_size in (None, 7):
        net = cf.RNN(5, 4, output_size, cell=cell, num_layers=3, bias=False)
        assert net._count_weights() == sum(p.size for p in net.parameters().values())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_weights(dtype: str) -> None:
    """Uniform in +-1/sqrt(H) and decided by the seed."""
    net = cf.RNN(20, 25, 20, cell="lstm", num_layers=2, dtype=dtype, seed=3)
    values = np.concatenate([value.ravel() for value in net.parameters().values()])
    assert values.dtype == dtype
    assert -0.2 <= values.min() < -0.199 and 0.199 < values.max() <= 0.2
    # the mean of n uniform numbers is within four of its standard deviations
    assert abs(values.mean()) < 4 * 0.2 / np.sqrt(3 * len(values))
    assert len(np.unique(values)) > 0.99 * len(values)
    same, other = (
        cf.RNN(20, 25, 20, cell="lstm", num_layers=2, dtype=dtype, seed=s) for s in (3, 4)
    )
    _assert_unchanged(same, _copies(net))
    assert (other.W_hy if other.num_layers == 1 else other.parameters()["decoder.weight"]).any()
    assert not np.array_equal(
        other.parameters()["decoder.weight"], net.parameters()["decoder.weight"]
    )


@pytest.mark.parametrize("init", ["lecun", "lecun_tokens"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "peephole_lstm"])
def test_initial_weights_by_the_features_they_read(cell: str, init: str) -> None:
    """A matrix has the variance 1/n for the n features it reads; vectors are as ever."""
    proj_size = 20 if cell.endswith("lstm") else 0
    width = proj_size or 50
    net = cf.RNN(
        30, 50, 40, cell=cell, num_layers=2, init=init, seed=3, bidirectional=True,
        proj_size=proj_size,
    )  # fmt: skip
    reads = {
        "weight_ih_l0": 1 if init == "lecun_tokens" else 30,
        "weight_ih_l1": 2 * width,
        "weight_hh": width,
        "weight_hr": 50,
        "decoder.weight": 2 * width,
    }
    for name, value in net.parameters().items():
        bound = 1 / np.sqrt(50)
        for beginning, features in reads.items():
            if name.startswith(beginning):
                bound = np.sqrt(3 / features)
                assert value.var() == pytest.approx(1 / features, rel=0.15)
        assert 0.9 * bound < abs(value).max() <= np.float32(bound)
    with pytest.raises(ValueError, match=r"init must be one of 'uniform', .*, got 'he'"):
        cf.RNN(3, 4, init="he")


@pytest.mark.unsanitized("trains for long")
def test_a_language_model_learns_soon() -> None:
    """Its first hundred updates bring it further than with PyTorch's weights."""
    text = "the quick brown fox jumps over the lazy dog, " * 100
    corpus = cf.Corpus.from_text(text)
    losses = []
    for init in ("lecun_tokens", "uniform"):
        model = cf.CharLM(corpus.vocabulary, 32, 2, init=init, seed=1)
        cf.Trainer(model, corpus, 10, 20, schedule=Constant()).fit(steps=100, progress=False)
        losses.append(model.evaluate(text[:500]))
    assert losses[0] < losses[1] - 0.3


@pytest.mark.parametrize("bias", [True, "single"])
def test_forget_bias(bias: bool | str) -> None:
    """The forget gate's two biases add up to what was asked for, the other gates' are as drawn."""
    drawn = cf.RNN(4, 3, cell="lstm", bias=bias, num_layers=2).parameters()
    net = cf.RNN(4, 3, cell="lstm", bias=bias, num_layers=2, forget_bias=1.0)
    for k in range(2):
        biases = {
            name: v for name, v in net.parameters().items() if f"bias_{name[5:7]}_l{k}" == name
        }
        assert np.sum([value[3:6] for value in biases.values()], axis=0).tolist() == [1, 1, 1]
        for name, value in biases.items():
            assert_same_bits(
                name, np.delete(value, slice(3, 6)), np.delete(drawn[name], slice(3, 6))
            )


# ---- parameters ---------------------------------------------------------------------------------


@pytest.mark.host("others give copies")
def test_parameters_are_read_only_and_live() -> None:
    net = cf.RNN(4, 3, 5)
    views = net.parameters()
    for name, view in views.items():
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True
        assert view.base is not None, name
    doubled = {name: 2 * value for name, value in views.items()}
    net.load_parameters(doubled)
    for name, view in views.items():
        assert_same_bits(name, view, doubled[name])


@pytest.mark.parametrize("both_ways", [False, True])
def test_the_memory_order_of_parameters(both_ways: bool) -> None:
    """As documented: layer 0's input weights are transposed views; copies are in C order."""
    net = cf.RNN(4, 5, 3, cell="lstm", num_layers=2, proj_size=2, bidirectional=both_ways)
    views, copies = net.parameters(), net.parameters(copy=True)
    y, _ = net.forward(np.ones((3, 2, 4), "float32"))
    _, _, grads = net.backward(np.ones_like(y))
    assert list(views) == list(copies) == list(grads)
    for name, view in views.items():
        transposed = name in ("weight_ih_l0", "weight_ih_l0_reverse")
        for array in (view, grads[name]):
            assert array.flags.c_contiguous is not transposed, name
            assert array.flags.f_contiguous or (array.ndim > 1 and not transposed)
        assert copies[name].flags.c_contiguous and copies[name].flags.writeable
        assert_same_bits(name, copies[name], np.array(view))
    before = _copies(net)
    net.load_parameters({name: 2 * value for name, value in copies.items()})
    for name, value in copies.items():
        assert_same_bits(name, value, before[name])


def test_a_view_outlives_its_network() -> None:
    net = cf.RNN(64, 64)
    view, expected = net.W_hh, np.array(net.W_hh)
    del net
    for _ in range(8):
        cf.RNN(64, 64)
    assert_same_bits("W_hh", view, expected)


@pytest.mark.parametrize("unit", UNITS)
def test_the_articles_names(unit: str) -> None:
    case = Case(unit, bias="single", output_size=7)
    net = case.network()
    names = {
        "W_xh": "weight_ih_l0",
        "W_hh": "weight_hh_l0",
        "b_h": "bias_ih_l0",
        "W_hy": "decoder.weight",
        "b_y": "decoder.bias",
    }
    for article, name in names.items():
        view = getattr(net, article)
        assert_same_bits(article, view, net.parameters()[name])
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
        value = np.random.default_rng(0).standard_normal(view.shape).astype("float32")
        setattr(net, article, value)
        assert_same_bits(name, net.parameters()[name], value)
        with pytest.raises(ValueError, match=rf"{article} .*shape"):
            setattr(net, article, value[:-1])
        with pytest.raises(TypeError, match=rf"{article} .*float32.*float64"):
            setattr(net, article, value.astype("float64"))
        with pytest.raises(TypeError, match=rf"{article} .*array.*list"):
            setattr(net, article, value.tolist())
        assert_same_bits(name, net.parameters()[name], value)


def test_the_articles_names_are_for_one_layer() -> None:
    with pytest.raises(AttributeError, match=r"W_hh .*one-layer.*2 layers"):
        _ = cf.RNN(4, 3, num_layers=2).W_hh
    with pytest.raises(AttributeError, match=r"W_hh .*one-layer.*bidirectional"):
        _ = cf.RNN(4, 3, bidirectional=True).W_hh
    with pytest.raises(AttributeError, match=r"W_hy .*decoder"):
        _ = cf.RNN(4, 3).W_hy
    with pytest.raises(AttributeError, match=r"b_h .*bias_ih_l0"):
        _ = cf.RNN(4, 3, bias=False).b_h


def test_without_bias_step_is_the_articles() -> None:
    """h = tanh(W_hh h + W_xh x); y = W_hy h, to the letter."""
    net = cf.RNN(4, 3, 4, bias=False, dtype="float64")
    article = reference.RNN(4, 3, 4, dtype="float64")
    article.W_xh, article.W_hh, article.W_hy = net.W_xh, net.W_hh, net.W_hy
    for x in Case(input_size=4, batch=1, dtype="float64").x()[:, 0]:
        assert_close("y", net.step(x), article.step(x), network("float64", terms=7, steps=5))


def test_loading_takes_any_layout() -> None:
    net = cf.RNN(5, 7, 3)
    values = _copies(cf.RNN(5, 7, 3, seed=1))
    layouts = {
        "transposed": {name: np.asfortranarray(value) for name, value in values.items()},
        "strided": {name: np.repeat(value, 2, axis=-1)[..., ::2] for name, value in values.items()},
        "backwards": {name: value[::-1].copy()[::-1] for name, value in values.items()},
    }
    for what, laid_out in layouts.items():
        net.load_parameters(_copies(cf.RNN(5, 7, 3, seed=2)))
        net.load_parameters(laid_out)
        for name, value in net.parameters().items():
            assert_same_bits(f"{name}, {what}", value, values[name])


def test_loading_refuses_and_leaves_all_as_it_was() -> None:
    net = cf.RNN(5, 7, 3)
    before = _copies(net)
    good = _copies(cf.RNN(5, 7, 3, seed=1))
    last = next(reversed(good))
    lacking = {name: value for name, value in good.items() if name != last}
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        (lacking, ValueError, f"missing: .*{last}"),
        ({**good, "weight_ih_l1": good["weight_hh_l0"]}, ValueError, "unknown: .*weight_ih_l1"),
        ({**good, last: good[last][:-1]}, ValueError, rf"{last}.*shape \(3,\), got \(2,\)"),
        ({**good, last: good[last].astype("float64")}, TypeError, f"{last}.*float32, got float64"),
        ({**good, last: good[last].tolist()}, TypeError, f"{last}.*array, got list"),
        (None, TypeError, "parameters must be a mapping of arrays by name, got NoneType"),  # type: ignore[list-item]
    ]
    for given, error, message in wrong:
        with pytest.raises(error, match=message):
            net.load_parameters(given)
        _assert_unchanged(net, before)


def test_loading_from_its_own_views_changes_nothing() -> None:
    net = cf.RNN(5, 7, 3)
    before = _copies(net)
    net.load_parameters(net.parameters())
    _assert_unchanged(net, before)


# ---- one step -----------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
def test_step_carries_its_state_until_reset(unit: str) -> None:
    case = Case(unit, 2, output_size=7)
    net, x = case.network(), case.x()[0]
    assert net.state is None
    first = net.step(x)
    assert first.shape == (3, 7)
    assert not np.array_equal(net.step(x), first)
    net.reset()
    assert net.state is None
    assert_same_bits("y", net.step(x), first)


def test_step_takes_one_vector_or_token_and_batches_of_them() -> None:
    dense, tokens = Case().network(), Case(tokens=True, output_size=7).network()
    assert dense.step(np.zeros(4, "float32")).shape == (6,)
    dense.reset()
    assert dense.step(np.zeros((2, 4), "float32")).shape == (2, 6)
    single: tuple[Any, ...] = (3, np.int64(3), np.array(3), np.array(3, "uint8"))
    for token in single:
        tokens.reset()
        assert tokens.step(token).shape == (7,)
    tokens.reset()
    assert tokens.step(np.array([3, 1])).shape == (2, 7)


def test_step_refuses_and_keeps_its_state() -> None:
    net = Case(tokens=True, output_size=7).network()
    net.step(np.array([1, 2]))
    before = np.array(net.state)
    wrong: list[tuple[Any, type[Exception], str]] = [
        (np.array([1, 2, 3]), ValueError, r"x .*batch of 2, got 3.*reset"),
        (np.array([1, 4]), ValueError, r"x\[1\] must be in 0 to 3, got 4"),
        (np.array([-1, 2]), ValueError, r"x\[0\] must be in 0 to 3, got -1"),
        (np.zeros((2, 5), "float32"), ValueError, r"x must have shape \[B, 4\], got \(2, 5\)"),
        (np.zeros((2, 4), "float64"), TypeError, "x .*float32.*float64"),
        (np.zeros((2, 4), "complex64"), TypeError, "x .*float32.*complex64"),
        (np.zeros((2, 2, 4), "float32"), ValueError, r"x must have shape \[B, 4\]"),
        (np.zeros((2, 8), "float32")[:, ::2], ValueError, "x must be C-contiguous"),
        ([1, 2], TypeError, "x must be .*array.*list"),
        (None, TypeError, "x must be .*array.*NoneType"),
        (True, TypeError, "x must be .*array.*bool"),
        (2**70, ValueError, "x must be in 0 to 3, got 1180591620717411303424"),
        (-(2**70), ValueError, "x must be in 0 to 3, got -1180591620717411303424"),
        (np.zeros((0, 4), "float32"), ValueError, "batch of 1 or more, got 0"),
    ]
    for x, error, message in wrong:
        with pytest.raises(error, match=message):
            net.step(x)
        assert_same_bits("state", np.array(net.state), before)


# ---- sequences ----------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
def test_forward_leaves_the_carried_state_alone(unit: str) -> None:
    case = Case(unit)
    net = case.network()
    net.step(case.x()[0])
    before = [np.array(s) for s in parts(net.state)]
    run(net, case)
    for found, expected in zip(parts(net.state), before, strict=True):
        assert_same_bits("state", found, expected)


@pytest.mark.parametrize("output_size", [None, 7])
@pytest.mark.parametrize("unit", UNITS)
def test_no_steps_at_all(unit: str, output_size: int | None) -> None:
    """T = 0: y is empty, the state passes through forwards and its gradient backwards."""
    for tokens in (False, True):
        case = Case(unit, 2, seq_len=0, tokens=tokens, output_size=output_size)
        net = case.network()
        y, state = net.forward(case.x(), case.state())
        assert y.shape == (0, 3, output_size or 6)
        dx, dstate, grads = net.backward(case.dy(), case.dstate())
        assert dx is None if tokens else dx is not None and dx.shape == (0, 3, 4)
        for found, given in ((state, case.state()), (dstate, case.dstate())):
            for a, b in zip(parts(found), parts(given), strict=True):
                assert_same_bits("state", a, b)
        assert not any(grad.any() for grad in grads.values())


@pytest.mark.parametrize("unit", UNITS)
def test_results_are_the_callers_own(unit: str) -> None:
    """No result is overwritten by a later call, and inputs are only read."""
    case = Case(unit, 2, output_size=7)
    net = case.network()
    x, state, dy, dstate = case.x(), case.state(), case.dy(), case.dstate()
    y, last = net.forward(x, state)
    dx, dfirst, grads = net.backward(dy, dstate)
    results = [y, *parts(last), dx, *parts(dfirst), *grads.values()]
    kept = [np.array(result) for result in results]
    other = case.but(seed=9)
    run(net, other)
    for result, expected in zip(results, kept, strict=True):
        assert_same_bits("result", np.asarray(result), expected)
        assert result is not None and result.flags.writeable
    given = (x, *parts(state), dy, *parts(dstate))
    for a, b in zip(
        given, (case.x(), *parts(case.state()), case.dy(), *parts(case.dstate())), strict=True
    ):
        assert_same_bits("input", a, b)


def test_forward_refuses() -> None:
    net = Case(tokens=True).network()
    h = np.zeros((1, 3, 6), "float32")
    x = np.zeros((5, 3, 4), "float32")
    wrong: list[tuple[Any, Any, type[Exception], str]] = [
        (x.astype("float64"), None, TypeError, "x .*float32.*float64"),
        (x.astype("float16"), None, TypeError, "x .*float32.*float16"),
        (x.astype("float16"), None, TypeError, r"by x.astype\('float32'\)$"),
        (x.astype("float64"), None, TypeError, "or build the network with dtype='float64'$"),
        (x.astype(">f4"), None, TypeError, "got >f4: .*; its byte order is not this machine's$"),
        (x.tolist(), None, TypeError, "x .*array.*list"),
        (x[..., :3].copy(), None, ValueError, r"x must have shape \[T, B, 4\], got \(5, 3, 3\)"),
        (x[:, 0].copy(), None, ValueError, r"x must have shape \[T, B, 4\], got \(5, 4\)"),
        (x[:, ::2], None, ValueError, "x must be C-contiguous.*ascontiguousarray"),
        (x.transpose(1, 0, 2), None, ValueError, "x must be C-contiguous"),
        (x[:, :0].copy(), None, ValueError, "x .*batch of 1 or more, got 0"),
        (np.array([[0, 1], [2, 4]]), None, ValueError, r"x\[1, 1\] must be in 0 to 3, got 4"),
        (np.array([[0, -1]]), None, ValueError, r"x\[0, 1\] must be in 0 to 3, got -1"),
        (np.array([[2**32]]), None, ValueError, r"x\[0, 0\] must be in 0 to 3, got 4294967296"),
        (np.array([[2**64 - 1]], "uint64"), None, ValueError, "got 18446744073709551615"),
        (np.array([0, 1]), None, ValueError, r"x of tokens must have shape \[T, B\], got \(2,\)"),
        (np.array([["a"]]), None, TypeError, "x .*float32"),
        (np.array([[None]]), None, TypeError, "x .*float32.*object"),
        (x, h[:, :2].copy(), ValueError, r"state must have shape .*\(1, 3, 6\), got \(1, 2, 6\)"),
        (x, h.astype("float64"), TypeError, "state .*float32.*float64"),
        (x, h[..., ::-1], ValueError, "state must be C-contiguous"),
        (x, (h, h), TypeError, "state .*tuple"),
        (x, 0.0, TypeError, "state .*float"),
    ]
    for given, state, error, message in wrong:
        with pytest.raises(error, match=message):
            net.forward(given, state)
    options: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"lengths": [5, 4]}, ValueError, r"lengths must have shape \[B\] = \(3,\), got \(2,\)"),
        ({"lengths": [5, 4, 6]}, ValueError, r"lengths\[2\] must be in 0 to 5, got 6"),
        ({"lengths": [5, -1, 0]}, ValueError, r"lengths\[1\] must be in 0 to 5, got -1"),
        ({"lengths": [5.0, 4.0, 3.0]}, TypeError, "lengths must be integers, got float64"),
        ({"mask_seed": -1}, ValueError, "mask_seed must be in 0 to .*got -1"),
        ({"mask_seed": 0.5}, TypeError, "mask_seed must be an integer.*got 0.5"),
    ]
    for given_options, error, message in options:
        with pytest.raises(error, match=message):
            net.forward(x, **given_options)
    lstm = Case("lstm").network()
    with pytest.raises(TypeError, match=r"state must be a tuple \(h, c\), got ndarray"):
        lstm.forward(x, h)
    with pytest.raises(
        ValueError, match=r"\(c\) must be .* numpy.ascontiguousarray\(state\[1\]\)$"
    ):
        lstm.forward(x, (h, h[..., ::-1]))
    with pytest.raises(ValueError, match=r"state\[1\] \(c\) must have shape .*got \(2, 3, 6\)"):
        lstm.forward(x, (h, np.zeros((2, 3, 6), "float32")))


def test_backward_without_forward() -> None:
    case = Case()
    net = case.network()
    with pytest.raises(RuntimeError, match="backward must follow"):
        net.backward(case.dy())
    net.step(case.x()[0])
    with pytest.raises(RuntimeError, match="backward must follow"):
        net.backward(case.dy())
    net.forward(case.x(), keep=False)
    with pytest.raises(RuntimeError, match="backward must follow"):
        net.backward(case.dy())


@pytest.mark.parametrize("unit", UNITS)
def test_backward_belongs_to_the_last_forward(unit: str) -> None:
    """Steps, samples and refused calls in between change nothing; what needs its memory ends it."""
    case = Case(unit, 2, tokens=True, output_size=4)
    net = case.network()
    expected = run(net, case)
    tokens, zero = case.x().astype("int32"), net.states.zeros(3)

    net.forward(case.x(), case.state())
    net.step(tokens[0])
    net._core.sample(9, tokens[0], zero, np.zeros(3, "uint64"), 0, 1.0, 0, 1.0)
    with pytest.raises(ValueError, match="got 9"):
        net.forward(np.full((5, 3), 9))
    _, _, grads = net.backward(case.dy(), case.dstate())
    for name, grad in grads.items():
        assert_same_bits(f"d {name}", grad, expected[f"d {name}"])

    optimizer = cf.optim.SGD(net)._core
    calls: tuple[Callable[[], Any], ...] = (
        lambda: net._core.evaluate(tokens, tokens, zero),
        lambda: net._core.train_step(tokens, tokens, zero, optimizer, 0.1, 1.0, 1.0, "mean"),
    )
    for call in calls:
        net.forward(case.x(), case.state())
        call()
        with pytest.raises(RuntimeError, match="backward must follow"):
            net.backward(case.dy())


def test_backward_needs_the_parameters_of_its_forward() -> None:
    case = Case(output_size=7)
    net = case.network()
    _, _, grads = _forward_and_backward(net, case)
    same = _copies(net)
    changes: tuple[Callable[[], Any], ...] = (
        lambda: cf.optim.SGD(net, lr=0.1).step(grads),
        lambda: net.load_parameters(same),
        lambda: setattr(net, "W_hh", same["weight_hh_l0"]),
    )
    for change in changes:
        net.forward(case.x(), case.state())
        change()
        with pytest.raises(RuntimeError, match="a change of the parameters has come after it"):
            net.backward(case.dy())
        _forward_and_backward(net, case)


def _forward_and_backward(net: cf.RNN, case: Case) -> Any:
    net.forward(case.x(), case.state())
    return net.backward(case.dy())


def test_backward_refuses_and_may_be_repeated() -> None:
    case = Case("lstm", output_size=7)
    net = case.network()
    expected = run(net, case)
    dy, (dh, dc) = case.dy(), case.dstate()
    wrong: list[tuple[Any, Any, type[Exception], str]] = [
        (dy[:4].copy(), None, ValueError, r"dy .*\(5, 3, 7\), got \(4, 3, 7\)"),
        (dy.astype("float64"), None, TypeError, "dy .*float32.*float64"),
        (dy.tolist(), None, TypeError, "dy .*array.*list"),
        (dy[::-1], None, ValueError, "dy must be C-contiguous"),
        (dy, dh, TypeError, r"dstate must be a tuple \(h, c\)"),
        (
            dy,
            (dh, dc[:, :2].copy()),
            ValueError,
            r"dstate\[1\] \(c\) .*\(1, 3, 6\), got \(1, 2, 6\)",
        ),
    ]
    for given, dstate, error, message in wrong:
        with pytest.raises(error, match=message):
            net.backward(given, dstate)
    for _ in range(2):
        _, _, grads = net.backward(dy, case.dstate())
        for name, grad in grads.items():
            assert_same_bits(f"d {name}", grad, expected[f"d {name}"])


# ---- NaN ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
def test_nan_stays_in_its_row(unit: str) -> None:
    case = Case(unit, 2, seq_len=4, batch=5, hidden_size=17, output_size=7)
    net, x = case.network(), case.x()
    expected, _ = net.forward(x)
    damaged = x.copy()
    damaged[1, 2, 0] = np.nan
    y, _ = net.forward(damaged)
    assert np.isnan(y[1:, 2]).all()
    for row in (0, 1, 3, 4):
        assert_same_bits(f"y of row {row}", y[:, row], expected[:, row])
    assert_same_bits("y before", y[0], expected[0])


@pytest.mark.parametrize("what", ["nan", "overflow"])
def test_an_update_that_is_not_finite_changes_nothing(what: str) -> None:
    """The fused update refuses to spread NaN: the parameters and the state stay as they were."""
    case = Case("lstm", tokens=True, input_size=5, output_size=5)
    net = case.network()
    optimizer = cf.optim.Adam(net)
    damaged = _copies(net)
    if what == "nan":
        damaged["weight_hh_l0"][3, 2] = np.nan
    else:
        damaged["decoder.bias"][::2] = 3e38  # the loss of the other tokens is beyond float32
        damaged["decoder.bias"][1::2] = -3e38
    net.load_parameters(damaged)
    before, state = _copies(net), net.states.zeros(3)
    x = case.x().astype("int32")
    loss, norm = net._core.train_step(x, x, state, optimizer._core, 1e-3, np.inf, np.inf, "mean")
    assert not (np.isfinite(loss) and np.isfinite(norm))
    _assert_unchanged(net, before)
    assert not state.any()
    assert optimizer._core.num_steps == 0


# ---- losses and clipping ------------------------------------------------------------------------


def test_cross_entropy_takes_any_number_of_axes() -> None:
    logits, targets = Case(output_size=7).dy(), Case(output_size=7).targets()
    loss, dlogits = cf.cross_entropy(logits, targets)
    flat_loss, flat = cf.cross_entropy(logits.reshape(-1, 7), targets.reshape(-1))
    assert loss == flat_loss
    assert_same_bits("dlogits", dlogits, flat.reshape(logits.shape))
    one, gradient = cf.cross_entropy(logits[0, 0], np.array(3))
    assert gradient.shape == (7,)
    assert one == cf.cross_entropy(logits[0, :1], np.array([3]))[0]


def test_cross_entropy_where_nothing_counts() -> None:
    """No targets, or all -1: a loss and gradients of zero, by either reduction."""
    for reduction in ("mean", "sum"):
        loss, dlogits = cf.cross_entropy(np.ones((2, 3), "float32"), np.full(2, -1), reduction)
        assert loss == 0.0 and not dlogits.any()
        loss, dlogits = cf.cross_entropy(np.ones((0, 3)), np.zeros(0, "int64"), reduction)
        assert loss == 0.0 and dlogits.shape == (0, 3)


def test_cross_entropy_is_stable() -> None:
    for dtype in ("float32", "float64"):
        largest = float(np.finfo(dtype).max)
        logits = np.array([[largest, 0, -largest], [-largest] * 3, [1e4, 1e4, 0]], dtype)
        loss, dlogits = cf.cross_entropy(logits[2:], np.array([1]), "sum")
        assert_close("loss", loss, np.log(2), network(dtype, terms=3, steps=1))
        loss, dlogits = cf.cross_entropy(logits[:1], np.array([0]), "sum")
        assert loss == 0.0 and not dlogits.any()
        loss, dlogits = cf.cross_entropy(logits[1:2], np.array([0]), "sum")
        assert_close("loss", loss, np.log(3), network(dtype, terms=3, steps=1))
        assert np.isfinite(dlogits).all()


def test_cross_entropy_shows_nan() -> None:
    logits = np.zeros((2, 3), "float32")
    logits[1, 2] = np.nan
    loss, _ = cf.cross_entropy(logits, np.array([0, 1]))
    assert np.isnan(loss)


def test_cross_entropy_refuses() -> None:
    logits, targets = np.zeros((5, 2, 7), "float32"), np.zeros((5, 2), "int64")
    wrong: list[tuple[Any, Any, str, type[Exception], str]] = [
        (logits, targets, "none", ValueError, "reduction .*'mean' or 'sum', got 'none'"),
        (logits.tolist(), targets, "mean", TypeError, "logits .*float32 or float64, got list"),
        (logits.astype("float16"), targets, "mean", TypeError, "logits .*float16"),
        (logits, targets.astype("float32"), "mean", TypeError, "targets .*integers.*float32"),
        (logits, targets.tolist(), "mean", TypeError, "targets .*integers.*list"),
        (logits, targets[:4].copy(), "mean", ValueError, r"\(5, 2, 7\) and \(4, 2\)"),
        (logits, logits.astype(int), "mean", ValueError, r"\(5, 2, 7\) and \(5, 2, 7\)"),
        (logits[..., :0].copy(), targets, "mean", ValueError, r"\[\.\.\., V\]"),
        (logits[:, ::-1], targets, "mean", ValueError, "logits must be C-contiguous"),
        (logits, targets[:, ::-1], "mean", ValueError, "targets must be C-contiguous"),
        (logits, targets + 7, "mean", ValueError, r"targets\[0, 0\] must be in -1 to 6, got 7"),
        (logits, targets - 2, "mean", ValueError, r"targets\[0, 0\] must be in -1 to 6, got -2"),
    ]
    for x, y, reduction, error, message in wrong:
        with pytest.raises(error, match=message):
            cf.cross_entropy(x, y, reduction)


def test_clipping_in_place() -> None:
    grads = {"a": np.array([3.0, 0.0], "float32"), "b": np.array([[4.0]], "float32")}
    a, b = grads["a"], grads["b"]
    assert cf.clip_grad_norm(grads, 10.0) == 5.0
    assert a.tolist() == [3, 0] and b.tolist() == [[4]]
    assert cf.clip_grad_norm(grads, 1.0) == 5.0
    assert grads["a"] is a and a.tolist() == pytest.approx([0.6, 0], rel=1e-6)
    cf.clip_grad_value(grads, 0.7)
    assert grads["b"] is b and b.tolist() == [[np.float32(0.7)]]
    assert cf.clip_grad_norm({}, 1.0) == 0.0


def test_an_infinite_bound_only_measures() -> None:
    for values in ([3.0, 4.0], [1.0, np.inf]):
        grad = np.array(values, "float32")
        assert cf.clip_grad_norm({"a": grad}, np.inf) == np.linalg.norm(values)
        assert grad.tolist() == values


def test_clipping_shows_what_is_not_finite() -> None:
    """A norm that is NaN or infinite is returned, so that a caller can stop."""
    assert np.isnan(cf.clip_grad_norm({"a": np.array([1, np.nan], "float32")}, 1.0))
    assert np.isinf(cf.clip_grad_norm({"a": np.array([1, np.inf], "float32")}, 1.0))
    values = np.array([np.nan, np.inf, -np.inf, 2], "float32")
    cf.clip_grad_value({"a": values}, 1.0)
    assert np.isnan(values[0]) and values[1:].tolist() == [1, -1, 1]


def test_clipping_refuses_and_leaves_all_as_it_was() -> None:
    good = np.full(3, 9, "float32")
    frozen = good.copy()
    frozen.flags.writeable = False
    for limit, error, message in (
        (0.0, ValueError, "max_.* above 0, got 0"),
        (-1.0, ValueError, "max_.* above 0, got -1"),
        (np.nan, ValueError, "max_.*got nan"),
        ("5", TypeError, "max_.*number.*'5'"),
        (None, TypeError, "max_.*number.*None"),
    ):
        for clip in (cf.clip_grad_norm, cf.clip_grad_value):
            with pytest.raises(error, match=message):
                clip({"good": good}, limit)  # type: ignore[arg-type]
    for bad, error, message in (
        (good.tolist(), TypeError, r"grads\['bad'\] .*list"),
        (good.astype("float16"), TypeError, r"grads\['bad'\] .*float16"),
        (good.repeat(2)[::2], ValueError, r"grads\['bad'\] .*contiguous"),
        (frozen, ValueError, r"grads\['bad'\] .*writ"),
    ):
        for clip in (cf.clip_grad_norm, cf.clip_grad_value):
            with pytest.raises(error, match=message):
                clip({"good": good, "bad": bad}, 1.0)  # type: ignore[dict-item]
    assert good.tolist() == [9, 9, 9]
    for no_mapping in ([good], None):
        for clip in (cf.clip_grad_norm, cf.clip_grad_value):
            with pytest.raises(TypeError, match=r"grads must be a mapping.*, got (list|NoneType)"):
                clip(no_mapping, 5)  # type: ignore[arg-type]


# ---- threads, build -----------------------------------------------------------------------------


@pytest.mark.usefixtures("threads")
def test_number_of_threads() -> None:
    for n in (1, 2, 5):
        cf.set_num_threads(n)
        assert cf.get_num_threads() == n
    wrongs = [(n, ValueError) for n in (0, -1, 4097, 10**30)]
    for wrong, error in (*wrongs, (1.5, TypeError), ("2", TypeError)):
        with pytest.raises(error, match=r"^n must be .*in 1 to 4096, got "):
            cf.set_num_threads(wrong)  # type: ignore[arg-type]
        assert cf.get_num_threads() == 5


def test_build_info() -> None:
    info = cf.build_info()
    assert info["version"] == cf.__version__
    assert {"compiler", "isa", "threads", "cuda"} <= info.keys()


def test_the_packages_names() -> None:
    """They are imported when first used."""
    assert {*cf.__all__, "__version__"} <= set(dir(cf))
    for name in cf.__all__:
        assert getattr(cf, name) is not None
    with pytest.raises(AttributeError, match="module 'charrnn_fast' has no attribute 'LSTM'"):
        _ = cf.LSTM

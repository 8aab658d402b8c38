"""Same bits: for any threads, batch, steps, one-hot vectors or tokens, and way of sampling.

Nothing here has a tolerance: floating-point arithmetic is deterministic, and the kernels compute
every output in one order of operations, however the work is divided.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from cases import BIASES, UNITS, Array, Case, parts, rows, run
from charrnn_fast import _core
from marks import slow_but
from tolerances import assert_same_bits

THREADS = (2, 3, 7)
NUMBERS: dict[str, dict[str, str]] = {
    "float32": {},
    "float64": {"dtype": "float64"},
    "bfloat16": {"compute_dtype": "bfloat16"},
}
# Every cell, and products of bfloat16 with one of them.
each_unit = pytest.mark.parametrize(
    ("unit", "compute_dtype"),
    slow_but(
        [*((unit, "float32") for unit in UNITS), ("lstm", "bfloat16")],
        [(unit, numbers) for numbers in ("float32", "bfloat16") for unit in UNITS],
    ),
)


def _assert_same(found: dict[str, Array], expected: dict[str, Array], what: str) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert_same_bits(f"{name} {what}", found[name], value)


@pytest.mark.parametrize("regularized", [False, True])
@pytest.mark.parametrize("unit", ["lstm", "gru"])
def test_a_product_in_parts_equals_a_whole_one(unit: str, regularized: bool) -> None:
    """Backward divides the products of many rows, whose gates exceed a cache, and of no few rows.

    129 rows are several blocks, 530 units too, and the depth has a part that is no whole one. Masks
    belong to the number of a row, so with them the first rows alone can be compared.
    """
    T, B, H = 2, 129, 530
    options: dict[str, Any] = {"recurrent_dropout": 0.2} if regularized else {}
    masks: dict[str, Any] = {"mask_seed": 7} if regularized else {}
    net = cf.RNN(3, H, cell=unit, seed=1, **options)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, B, 3)).astype(np.float32)
    dy = rng.standard_normal((T, B, H)).astype(np.float32)
    net.forward(x, **masks)
    dx, dstate, _ = net.backward(dy)
    assert dx is not None
    for few in [slice(0, 4)] if regularized else [slice(0, 4), slice(63, 66), slice(128, 129)]:
        net.forward(np.ascontiguousarray(x[:, few]), **masks)
        few_dx, few_dstate, _ = net.backward(np.ascontiguousarray(dy[:, few]))
        assert few_dx is not None
        assert_same_bits("dx", dx[:, few], few_dx)
        for whole, part in zip(parts(dstate), parts(few_dstate), strict=True):
            assert_same_bits("dstate", whole[:, few], part)


# streams to share out, hidden units to share out, both uneven, and work too small to share
SHAPES = [
    {"seq_len": 11, "batch": 50, "hidden_size": 48},
    {"seq_len": 7, "batch": 1, "hidden_size": 300},
    {"seq_len": 5, "batch": 13, "hidden_size": 129},
    {"seq_len": 3, "batch": 2, "hidden_size": 5},
]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
@pytest.mark.parametrize("unit", UNITS)
def test_threads(unit: str, tokens: bool, numbers: str) -> None:
    for shape in SHAPES:
        case = Case(unit, 2, input_size=37, output_size=41, tokens=tokens)
        case = case.but(**shape, **NUMBERS[numbers])
        cf.set_num_threads(1)
        expected = run(case.network(), case)
        for threads in THREADS:
            cf.set_num_threads(threads)
            assert cf.get_num_threads() == threads
            before = _core.pool_teams()
            _assert_same(run(case.network(), case), expected, f"on {threads} threads")
            assert _core.pool_teams() > before, "the work was not shared"


@pytest.mark.usefixtures("threads")
def test_threads_in_the_loss_of_many_rows() -> None:
    """Blocks of logits share one memory, and the last, smaller one is shared out otherwise."""
    net = cf.RNN(28, 8, 28, cell="lstm")
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 28, (735, 1)).astype(np.int32)
    targets = rng.integers(0, 28, (735, 1)).astype(np.int32)
    cf.set_num_threads(1)
    expected = net._core.evaluate(tokens, targets, net._kernel_zeros(1))
    for threads in (2, 3, 5):
        cf.set_num_threads(threads)
        for _ in range(100):
            assert net._core.evaluate(tokens, targets, net._kernel_zeros(1)) == expected


@pytest.mark.usefixtures("threads")
def test_threads_in_losses_clipping_and_updates() -> None:
    case = Case("lstm", input_size=64, hidden_size=192, output_size=300, batch=40)
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((500, 300)).astype("float32")
    targets = rng.integers(-1, 300, 500)

    def results() -> dict[str, Array]:
        net = case.network()
        loss, dlogits = cf.cross_entropy(logits, targets)
        net.forward(case.x())
        _, _, grads = net.backward(case.dy())
        norm = cf.clip_grad_norm(grads, 0.5)
        for optimizer in (cf.optim.Adam(net), cf.optim.SGD(net, momentum=0.9)):
            optimizer.step(grads)
        numbers = {"loss": np.array(loss), "norm": np.array(norm), "dlogits": dlogits}
        return numbers | {f"d {n}": g for n, g in grads.items()} | net.parameters()

    cf.set_num_threads(1)
    expected = results()
    for threads in THREADS:
        cf.set_num_threads(threads)
        _assert_same(results(), expected, f"on {threads} threads")


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
def test_threads_in_every_loss(weighted: bool, dtype: str) -> None:
    """Rows and blocks of elements shared out evenly and unevenly, to all and to some."""

    def results() -> dict[str, Array]:
        named: dict[str, Array] = {}
        for size in (20_000, 70_001, 131_072):
            rng = np.random.default_rng(size)
            x, z = 5 * rng.standard_normal(size).astype(dtype), rng.random(size).astype(dtype)
            w = np.maximum(rng.uniform(-0.5, 1, size), 0).astype(dtype) if weighted else None
            logits, targets = x[: size // 100 * 100].reshape(-1, 100), rng.integers(-1, 100, size)
            rows = None if w is None else w[: len(logits)]
            for reduction in ("mean", "sum"):
                losses = {
                    "cross_entropy": cf.cross_entropy(
                        logits, targets[: len(logits)], reduction, weights=rows
                    ),
                    "binary_cross_entropy": cf.binary_cross_entropy(x, z, reduction, weights=w),
                    "mean_square": cf.mean_square(x, z, reduction, weights=w),
                }
                for name, (loss, gradient) in losses.items():
                    named[f"{name}, {reduction} of {size}"] = np.array(loss)
                    named[f"d {name}, {reduction} of {size}"] = gradient
        return named

    cf.set_num_threads(1)
    expected = results()
    for threads in (2, 3, 4, 7):
        cf.set_num_threads(threads)
        before = _core.pool_teams()
        _assert_same(results(), expected, f"on {threads} threads")
        assert _core.pool_teams() - before == 18, "the work was not shared"


def _slice(results: dict[str, Array], row: int) -> dict[str, Array]:
    """What belongs to one row of the batch: y, dx and all states; not the parameters' gradients."""
    return {
        name: np.ascontiguousarray(value[:, row : row + 1])
        for name, value in results.items()
        if "weight" not in name and "bias" not in name
    }


def _run(net: cf.RNN, case: Case, chosen: Any) -> dict[str, Array]:
    """Forward and backward of some rows of a case's batch."""
    y, state = net.forward(np.ascontiguousarray(case.x()[:, chosen]), rows(case.state(), chosen))
    dy, dlast = np.ascontiguousarray(case.dy()[:, chosen]), rows(case.dstate(), chosen)
    dx, dstate, _ = net.backward(dy, dlast)
    results = dict(zip(("y", "h_n", "c_n"), (y, *parts(state)), strict=False))
    results |= dict(zip(("dh_0", "dc_0"), parts(dstate), strict=False))
    return results if dx is None else {**results, "dx": dx}


@pytest.mark.parametrize("hidden_size", [3, 33])
@each_unit
def test_every_row_at_every_position_of_every_batch(
    unit: str, compute_dtype: str, hidden_size: int
) -> None:
    """A row's outputs, states and gradients do not depend on which rows share its batch."""
    case = Case(unit, 2, seq_len=3, batch=64, input_size=5, hidden_size=hidden_size, output_size=6)
    case = case.but(compute_dtype=compute_dtype)
    net = case.network()
    alone = [_run(net, case, [row]) for row in range(case.batch)]
    for batch in (*range(1, 18), 50, 64):
        for shift in range(batch):
            chosen = np.roll(np.arange(batch), shift)
            together = _run(net, case, chosen)
            for position, row in enumerate(chosen):
                found = _slice(together, position)
                _assert_same(found, alone[row], f"of row {row} at {position} of {batch}")


@pytest.mark.usefixtures("threads")
@each_unit
def test_sharing_out_units_equals_sharing_out_streams(unit: str, compute_dtype: str) -> None:
    """One wide row shares out its hidden units, fifty share out the rows; row 17 is the same."""
    case = Case(unit, 2, seq_len=4, batch=50, input_size=60, hidden_size=256, output_size=60)
    case = case.but(compute_dtype=compute_dtype)
    net = case.network()
    cf.set_num_threads(1)
    expected = _run(net, case, [17])
    for threads in (1, *THREADS):
        cf.set_num_threads(threads)
        _assert_same(_run(net, case, [17]), expected, f"alone on {threads} threads")
        together = _slice(_run(net, case, np.arange(50)), 17)
        _assert_same(together, expected, f"among 50 on {threads} threads")


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("unit", UNITS)
def test_step_equals_forward(unit: str, bias: bool | str, numbers: str) -> None:
    for hidden_size, output_size, tokens, batch in (
        (1, None, False, 1),
        (17, 9, True, 1),
        (33, 16, False, 5),
        (100, 65, True, 7),
    ):
        case = Case(unit, 2, bias, "float32", 6, batch, 9, hidden_size, output_size, tokens)
        case = case.but(**NUMBERS[numbers])
        net, x = case.network(), case.x()
        y, state = net.forward(x)
        for t in range(case.seq_len):
            assert_same_bits(f"y at {t}", net.step(x[t]), y[t])
        for found, expected in zip(parts(net.state), parts(state), strict=True):
            assert_same_bits("state", found, expected)

        net.reset()
        for t in range(case.seq_len):
            assert_same_bits(f"y of row 0 at {t}", net.step(x[t, 0]), y[t, 0])


@each_unit
def test_a_split_sequence_equals_the_whole(unit: str, compute_dtype: str) -> None:
    case = Case(unit, 3, seq_len=10, hidden_size=19, output_size=7)
    case = case.but(compute_dtype=compute_dtype)
    net, x = case.network(), case.x()
    whole, last = net.forward(x, case.state())
    for cut in range(11):
        head, middle = net.forward(x[:cut], case.state())
        tail, end = net.forward(x[cut:], middle)
        assert_same_bits(f"y cut at {cut}", np.concatenate((head, tail)), whole)
        for found, expected in zip(parts(end), parts(last), strict=True):
            assert_same_bits(f"state cut at {cut}", found, expected)


@each_unit
def test_tokens_equal_one_hot_vectors(unit: str, compute_dtype: str) -> None:
    for input_size, hidden_size in ((4, 3), (65, 33), (130, 17)):
        case = Case(unit, 2, seq_len=9, batch=6, input_size=input_size, hidden_size=hidden_size)
        case = case.but(output_size=4, tokens=True)
        case = case.but(compute_dtype=compute_dtype)
        net = case.network()
        by_token = run(net, case)
        one_hot = np.eye(input_size, dtype="float32")[case.x()]
        y, state = net.forward(one_hot, case.state())
        dx, dstate, grads = net.backward(case.dy(), case.dstate())
        found = dict(zip(("h_n", "c_n"), parts(state), strict=False), y=y)
        found |= dict(zip(("dh_0", "dc_0"), parts(dstate), strict=False))
        found |= {f"d {name}": grad for name, grad in grads.items()}
        assert dx is not None
        _assert_same({name: found[name] for name in by_token}, by_token, "of one-hot vectors")


def test_integer_types_of_tokens_do_not_matter() -> None:
    case = Case("gru", tokens=True)
    net = case.network()
    expected, _ = net.forward(case.x())
    for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"):
        found, _ = net.forward(case.x().astype(dtype))
        assert_same_bits(f"y of {dtype}", found, expected)


@each_unit
def test_repeated_runs_and_fresh_networks_agree(unit: str, compute_dtype: str) -> None:
    """Nothing of an earlier, larger run is left in any workspace."""
    case = Case(unit, 2, seq_len=6, batch=4, hidden_size=15, output_size=5)
    case = case.but(compute_dtype=compute_dtype)
    net = case.network()
    expected = run(net, case)
    run(net, case.but(seq_len=20, batch=33, seed=1))
    net.step(case.x()[0])
    _assert_same(run(net, case), expected, "after a larger run")
    _assert_same(run(case.network(), case), expected, "of a second network")


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.5},
    {"top_k": 3},
    {"top_p": 0.6},
    {"temperature": 1.3, "top_k": 8, "top_p": 0.9},
]


def _options(chosen: dict[str, Any]) -> tuple[float, int, float]:
    """In the order in which the compiled functions take them: all tokens unless told otherwise."""
    return chosen.get("temperature", 1.0), chosen.get("top_k", 0), chosen.get("top_p", 1.0)


def _writer(unit: str, compute_dtype: str = "float32") -> tuple[cf.RNN, Array, Array]:
    """A network that writes, the first tokens of five streams and their seeds."""
    case = Case(unit, 2, tokens=True, batch=5, input_size=23, hidden_size=17, output_size=23)
    case = case.but(compute_dtype=compute_dtype)
    net = case.network()
    sharper = {name: np.array(value) for name, value in net.parameters().items()}
    sharper["decoder.weight"] *= 8  # else all characters are about equally likely
    net.load_parameters(sharper)
    return net, case.x()[0].astype("int32"), np.array([0, 1, 2**32, 2**63, 2**64 - 1], "uint64")


@pytest.mark.parametrize("chosen", OPTIONS, ids=str)
@each_unit
def test_sampling_in_one_call_equals_sampling_by_step(
    unit: str, compute_dtype: str, chosen: dict[str, Any]
) -> None:
    net, tokens, seeds = _writer(unit, compute_dtype)
    state = net._kernel_zeros(len(tokens))
    fused = net._core.sample(40, tokens, state, seeds, 3, *_options(chosen))
    for n in range(40):
        tokens = _core.sample_tokens(net.step(tokens), seeds, 3 + n, *_options(chosen))
        assert tokens.tolist() == fused[n].tolist(), f"character {n}"
    for part, expected in zip(parts(net.state), state, strict=True):
        assert_same_bits("state", part, expected)
    if chosen.get("temperature") != 0:
        assert len({tuple(stream) for stream in fused.T}) == len(seeds)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("unit", slow_but(["lstm"], UNITS))
def test_a_stream_depends_on_its_seed_alone(unit: str) -> None:
    net, tokens, seeds = _writer(unit)

    def write(chosen: Any, length: int = 60) -> Array:
        state = net._kernel_zeros(len(seeds[chosen]))
        drawn: Array = net._core.sample(
            length, np.ascontiguousarray(tokens[chosen]), state, seeds[chosen], 0, 1.0, 0, 1.0
        )
        return drawn

    together = write(slice(None))
    for row in range(len(seeds)):
        assert write([row])[:, 0].tolist() == together[:, row].tolist()
        assert write([row] * 33)[:, 32].tolist() == together[:, row].tolist()
    for order in ([4, 3, 2, 1, 0], [2, 0, 2, 1]):
        assert write(order).tolist() == together[:, order].tolist()
    for threads in THREADS:
        cf.set_num_threads(threads)
        assert write(slice(None)).tolist() == together.tolist()
    assert write(slice(None), 20).tolist() == together[:20].tolist()


@pytest.mark.parametrize("unit", UNITS)
def test_sampling_in_pieces_equals_sampling_at_once(unit: str) -> None:
    net, tokens, seeds = _writer(unit)
    whole = net._core.sample(30, tokens, net._kernel_zeros(5), seeds, 0, 1.0, 0, 1.0)
    state, pieces = net._kernel_zeros(5), []
    for begin, end in ((0, 1), (1, 14), (14, 14), (14, 30)):
        piece = net._core.sample(end - begin, tokens, state, seeds, begin, 1.0, 0, 1.0)
        tokens = piece[-1] if len(piece) else tokens
        pieces.append(piece)
    assert np.concatenate(pieces).tolist() == whole.tolist()


@pytest.mark.parametrize(
    ("rule", "compute_dtype"),
    [
        *((rule, "float32") for rule in ("SGD", "RMSprop", "Adagrad", "Adam", "AdamW")),
        ("Adam", "bfloat16"),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_fused_training_equals_training_by_hand(
    rule: str, compute_dtype: str, reduction: str
) -> None:
    """forward, cross_entropy, backward, both clips and the optimizer's step, or one call of all."""
    case = Case("lstm", 2, tokens=True, input_size=13, hidden_size=17, output_size=13)
    case = case.but(compute_dtype=compute_dtype)
    fused, by_hand = case.network(), case.network()
    one, other = getattr(cf.optim, rule)(fused), getattr(cf.optim, rule)(by_hand)
    carried, state = fused._kernel_zeros(case.batch), None
    for update in range(4):
        here = case.but(seed=update)
        x, targets = here.x().astype("int32"), here.targets().astype("int32")
        loss, norm = fused._core.train_step(
            x, targets, carried, one._core, 0.01, 0.5, 0.02, reduction
        )
        y, state = by_hand.forward(x, state)
        expected, dy = cf.cross_entropy(y, targets, reduction)
        _, _, grads = by_hand.backward(dy)
        expected_norm = cf.clip_grad_norm(grads, 0.5)
        cf.clip_grad_value(grads, 0.02)
        other.lr = 0.01
        other.step(grads)
        assert (loss, norm) == (expected, expected_norm), f"update {update}"
        _assert_same(fused.parameters(), by_hand.parameters(), f"after update {update}")
        for part, expected_part in zip(carried, parts(state), strict=True):
            assert_same_bits("state", part, expected_part)

"""All options of the layers, in the reference and in the kernels, against PyTorch.

Against torch.nn's own modules if they have the option. Else against its definition, written out
here for one row and one step at a time, with PyTorch's differentiation and the reference's masks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cases import Array, named, parts, wide
from charrnn_fast import reference
from charrnn_fast.reference import Regularization, mask, multipliers, site
from features import (
    ALL_UNITS,
    LSTMS,
    ByKernels,
    ByReference,
    FeatureCase,
    combinations,
    label,
    run,
    single_features,
)
from tolerances import assert_close, losses

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
torch.set_num_threads(1)

Tensors = dict[str, Any]


def _tensor(array: Array, *, leaf: bool = False) -> Any:
    return torch.from_numpy(array.copy()).requires_grad_(leaf)


def _results(
    case: FeatureCase, p: Tensors, x: Any, first: Any, y: Any, last: Any
) -> dict[str, Any]:
    """What `named` gives, by PyTorch's backward from a case's dy and dstate."""
    incoming = [_tensor(g) for g in (case.dy(), *parts(case.dstate()))]
    torch.autograd.backward([y, *last], incoming)

    def arrays(tensors: Any) -> Any:
        return tuple(t.detach().numpy() for t in tensors)

    def gradient(t: Any) -> Array:
        return np.zeros(t.shape) if t.grad is None else np.asarray(t.grad.numpy())

    dx = None if case.tokens else gradient(x)
    dstate, grads = tuple(map(gradient, first)), {name: gradient(t) for name, t in p.items()}
    return dict(named(arrays([y])[0], arrays(last), dx, dstate, grads))


def _inputs(case: FeatureCase) -> tuple[Tensors, Any, tuple[Any, ...]]:
    parameters = {name: _tensor(v, leaf=True) for name, v in case.parameters().items()}
    x = _tensor(case.x(), leaf=not case.tokens)
    return parameters, x, tuple(_tensor(s, leaf=True) for s in parts(case.state()))


def _compare(case: FeatureCase, expected: dict[str, Array]) -> None:
    for by in (ByReference, ByKernels):
        found = run(case.parameters(), case, by)
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert_close(f"{name} {by.__name__}", found[name], value, case.tolerance)


# ---- Modules of torch.nn ------------------------------------------------------------------------


def _by_module(case: FeatureCase) -> dict[str, Array]:
    """torch.nn.RNN, GRU or LSTM, packed where rows have lengths, and a Linear."""
    parameters, x, first = _inputs(case)
    options: dict[str, Any] = {"bidirectional": case.bidirectional, "num_layers": case.num_layers}
    if case.kind["cell"] == "rnn":
        options["nonlinearity"] = case.kind["nonlinearity"]
    if case.proj_size:
        options["proj_size"] = case.proj_size
    module = getattr(torch.nn, case.kind["cell"].upper())(
        case.input_size, case.hidden_size, bias=bool(case.bias), dtype=torch.float64, **options
    )
    own = {n: t for n, t in parameters.items() if not n.startswith("decoder")}
    assert list(own) == [name for name, _ in module.named_parameters()]

    inputs, lengths = torch.eye(case.input_size).double()[x] if case.tokens else x, case.lengths()
    if lengths is not None:
        inputs = torch.nn.utils.rnn.pack_padded_sequence(
            inputs, torch.from_numpy(lengths), enforce_sorted=False
        )
    state = first if len(first) == 2 else first[0]
    y, last = torch.func.functional_call(module, own, (inputs, state))
    if lengths is not None:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=case.seq_len)
    if case.output_size:
        y = torch.nn.functional.linear(
            y, parameters["decoder.weight"], parameters.get("decoder.bias")
        )
        if lengths is not None:  # the decoder's bias does not show where a row has ended
            y = y * torch.from_numpy(np.arange(case.seq_len)[:, None] < lengths)[..., None]
    return _results(case, parameters, x, first, y, parts(last))


@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("unit", ["rnn_tanh", "rnn_relu", "gru", "lstm", "projected"])
def test_modules(unit: str, bidirectional: bool, ragged: bool, bias: bool, tokens: bool) -> None:
    case = FeatureCase(
        "lstm" if unit == "projected" else unit,
        num_layers=2,
        proj_size=3 if unit == "projected" else 0,
        dtype="float64",
        output_size=3,
        bidirectional=bidirectional,
        bias=bias,
        tokens=tokens,
    )
    if ragged:
        case = _WithoutEmptyRows(**{**vars(case), "ragged": True})
    for output_size in (None, 3):
        one = case.but(output_size=output_size)
        _compare(one, _by_module(one))


class _WithoutEmptyRows(FeatureCase):
    """PyTorch packs no empty sequence."""

    def lengths(self) -> Array | None:
        lengths = super().lengths()
        return None if lengths is None else np.maximum(lengths, 1)


# ---- Cells of torch.nn in loops -----------------------------------------------------------------


def test_lstm_cell_with_dropout_and_zoneout() -> None:
    """A loop over torch.nn.LSTMCell: variational masks, DropConnect, and zoneout of h and c."""
    rates = Regularization(0.4, 0.3, 0.2, 0.3, variational=True, weight_drop=0.25)
    rates = rates._replace(zoneout=(0.2, 0.4))
    case = FeatureCase("lstm", num_layers=2, dtype="float64", output_size=3, regularization=rates)
    p, x, first = _inputs(case)
    T, B, I, H, seed = case.seq_len, case.batch, 4, 5, 11  # noqa: E741
    batch = np.arange(B)[:, None]

    def m(kind: int, layer: int, rate: float, units: int) -> Any:
        return torch.from_numpy(
            multipliers(seed, site(kind, layer), rate, 0, batch, np.arange(units))
        )

    below, last = list(x), []
    for k in range(2):
        cell = torch.nn.LSTMCell(I if k == 0 else H, H, dtype=torch.float64)
        rows = np.arange(4 * H)[:, None]
        drop = multipliers(seed, site(reference.WEIGHT_DROP, k), 0.25, 0, rows, np.arange(H))
        own = {
            "weight_ih": p[f"weight_ih_l{k}"],
            "weight_hh": p[f"weight_hh_l{k}"] * torch.from_numpy(drop),
            "bias_ih": p[f"bias_ih_l{k}"],
            "bias_hh": p[f"bias_hh_l{k}"],
        }
        of_input = m(reference.INPUT, k, 0.4 if k else 0.3, H if k else I)
        of_h = m(reference.RECURRENT, k, 0.3, H)
        h, c = first[0][k], first[1][k]
        for t in range(T):
            h_new, c_new = torch.func.functional_call(
                cell, own, (below[t] * of_input, (h * of_h, c))
            )
            where = t, batch, np.arange(H)
            hold = torch.from_numpy(mask(seed, site(reference.ZONEOUT_H, k), 0.2, *where))
            h = torch.where(hold, h, h_new)
            hold = torch.from_numpy(mask(seed, site(reference.ZONEOUT_C, k), 0.4, *where))
            c = torch.where(hold, c, c_new)
            below[t] = h
        last.append((h, c))
    top = torch.stack(below) * m(reference.OUTPUT, 2, 0.2, H)
    y = torch.nn.functional.linear(top, p["decoder.weight"], p["decoder.bias"])
    h_n, c_n = (torch.stack(s) for s in zip(*last, strict=True))
    _compare(case, _results(case, p, x, first, y, (h_n, c_n)))


def test_layer_norm_lstm() -> None:
    """torch.nn.LayerNorm around both products, a loop over steps with all rows at once."""
    case = FeatureCase("lstm", dtype="float64", layer_norm=True)
    p, x, first = _inputs(case)
    norm = torch.nn.LayerNorm(20, elementwise_affine=False, dtype=torch.float64)
    h, c = first[0][0], first[1][0]
    outputs = []
    for x_t in x:
        a = p["gain_ih_l0"] * norm(x_t @ p["weight_ih_l0"].T) + p["bias_ih_l0"]
        a = a + p["gain_hh_l0"] * norm(h @ p["weight_hh_l0"].T) + p["bias_hh_l0"]
        i, f, g, o = a.chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    last = h[None], c[None]
    _compare(case, _results(case, p, x, first, torch.stack(outputs), last))


# ---- Everything, one row and one step at a time -------------------------------------------------


class _Row:
    """The definition for one row of the batch: vectors only, and one mask element at a time."""

    def __init__(self, case: FeatureCase, p: Tensors, row: int) -> None:
        self.case, self.p, self.row = case, p, row
        self.rates = case.regularization
        lengths = case.lengths()
        self.length = case.seq_len if lengths is None else int(lengths[row])

    def run(self, x: Any, first: Any) -> tuple[Any, list[Any]]:
        """y [T, ...] of this row, and its last states [L*D, ...]."""
        case, last = self.case, []
        layer_inputs = [x[t] for t in range(self.length)]
        for k in range(case.num_layers):
            rate = self.rates.dropout if k else self.rates.input_dropout
            layer_inputs = [self._input(x_t, rate, k, t) for t, x_t in enumerate(layer_inputs)]
            outputs: list[list[Any]] = [[] for _ in layer_inputs]
            for d in range(case.directions):
                state = tuple(s[k * case.directions + d] for s in first)
                steps = range(self.length)
                for t in reversed(steps) if d else steps:
                    state = self._step(k, d, t, layer_inputs[t], state)
                    outputs[t].append(state[0])
                last.append(state)
            layer_inputs = [torch.cat(halves) for halves in outputs]
        features = case.output_size or case.directions * case.width
        y = [torch.zeros(features, dtype=torch.float64) for _ in range(case.seq_len)]
        for t, h in enumerate(layer_inputs):
            place = site(reference.OUTPUT, case.num_layers)
            y[t] = h * self._multipliers(place, self.rates.output_dropout, t, len(h))
            if case.output_size:
                y[t] = self.p["decoder.weight"] @ y[t] + self.p.get("decoder.bias", 0)
        return torch.stack(y), last

    def _input(self, x: Any, rate: float, layer: int, t: int) -> Any:
        if x.ndim == 0:
            x = torch.eye(self.case.input_size, dtype=torch.float64)[x]
        return x * self._multipliers(site(reference.INPUT, layer), rate, t, len(x))

    def _multipliers(self, place: int, rate: float, t: int, units: int) -> Any:
        seed, row = self.case.mask_seed, self.row
        if seed is None:
            return 1
        t = 0 if self.rates.variational else t
        found = [float(multipliers(seed, place, rate, t, row, unit)) for unit in range(units)]
        return torch.tensor(found, dtype=torch.float64)

    def _weights(self, layer: int, direction: int) -> Tensors:
        """The parameters of one layer and direction; what there is not adds or changes nothing."""
        suffix = f"_l{layer}" + "_reverse" * direction
        own = {n.removesuffix(suffix): t for n, t in self.p.items() if n.endswith(suffix)}
        if self.case.mask_seed is not None:
            W, place = own["weight_hh"], site(reference.WEIGHT_DROP, layer, direction)
            rows, columns = np.indices(W.shape)
            rate = self.rates.weight_drop
            kept = multipliers(self.case.mask_seed, place, rate, 0, rows, columns)
            own["weight_hh"] = W * torch.from_numpy(kept)
        return own

    def _side(self, own: Tensors, side: str, v: Any) -> Any:
        a = own[f"weight_{side}"] @ v
        if f"gain_{side}" in own:
            H = self.case.hidden_size
            sizes = [2 * H, H] if self.case.unit == "gru" else [len(a)]
            norm = torch.nn.functional.layer_norm
            a = torch.cat([norm(block, block.shape, eps=1e-5) for block in a.split(sizes)])
            a = a * own[f"gain_{side}"]
        return a + own.get(f"bias_{side}", 0)

    def _step(self, k: int, d: int, t: int, x: Any, state: Any) -> Any:
        own = self._weights(k, d)
        of_h = self._multipliers(
            site(reference.RECURRENT, k, d), self.rates.recurrent_dropout, t, len(state[0])
        )
        new = self._cell(
            own, self._side(own, "ih", x), self._side(own, "hh", state[0] * of_h), state
        )
        if "weight_hr" in own:
            new = own["weight_hr"] @ new[0], *new[1:]
        kinds = (reference.ZONEOUT_H, reference.ZONEOUT_C)
        held = []
        for kind, rate, s, n in zip(kinds, self.rates.zoneout, state, new, strict=False):
            share: Any = rate
            if self.case.mask_seed is not None:
                where = t, self.row, np.arange(len(s))
                share = torch.from_numpy(
                    mask(self.case.mask_seed, site(kind, k, d), rate, *where).astype("float64")
                )
            held.append(share * s + (1 - share) * n)
        return tuple(held)

    def _cell(self, own: Tensors, A: Any, B: Any, state: Any) -> tuple[Any, ...]:
        unit, a = self.case.unit, A + B
        if unit == "rnn_tanh":
            return (a.tanh(),)
        if unit == "rnn_relu":
            return (a.relu(),)
        if unit == "gru":
            (r, z, _), n_x, n_h = a.chunk(3), A.chunk(3)[2], B.chunk(3)[2]
            n = (n_x + r.sigmoid() * n_h).tanh()
            return ((1 - z.sigmoid()) * n + z.sigmoid() * state[0],)
        c = state[1]
        if unit == "coupled_lstm":
            f, g, o = a.chunk(3)
            c = f.sigmoid() * c + (1 - f.sigmoid()) * g.tanh()
            return o.sigmoid() * c.tanh(), c
        i, f, g, o = a.chunk(4)
        p_i, p_f, p_o = own.get("weight_peephole", (0, 0, 0))
        c_new = (f + p_f * c).sigmoid() * c + (i + p_i * c).sigmoid() * g.tanh()
        return (o + p_o * c_new).sigmoid() * c_new.tanh(), c_new


@pytest.mark.parametrize("case", [*single_features(), *combinations()], ids=label)
def test_by_the_definition(case: FeatureCase) -> None:
    case = case.but(batch=4, seq_len=3)
    p, x, first = _inputs(case)
    found = [_Row(case, p, b).run(x[:, b], [s[:, b] for s in first]) for b in range(case.batch)]
    y = torch.stack([row for row, _ in found], dim=1)
    last = [
        torch.stack([torch.stack([state[n] for state in states]) for _, states in found], dim=1)
        for n in range(case.num_states)
    ]
    _compare(case, _results(case, p, x, first, y, last))


def test_all_units_are_compared() -> None:
    compared = {case.unit for case in combinations()}
    assert compared == set(ALL_UNITS) >= set(LSTMS)


# ---- Losses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "mean_square"])
def test_losses(name: str, reduction: str, weighted: bool, dtype: str) -> None:
    rng = np.random.default_rng(3)
    x = np.asarray(rng.uniform(-3, 3, (4, 3, 7)), dtype)
    z: Array = np.asarray(rng.uniform(0, 1, x.shape), dtype)
    F, leaf = torch.nn.functional, _tensor(x, leaf=True)
    if name == "cross_entropy":
        z = rng.integers(-1, 7, x.shape[:-1])
        rows = F.cross_entropy(
            leaf.flatten(0, 1), _tensor(z).flatten(), ignore_index=-1, reduction="none"
        )
        each = rows.reshape(z.shape)
    elif name == "binary_cross_entropy":
        each = F.binary_cross_entropy_with_logits(leaf, _tensor(z), reduction="none")
    else:
        each = F.mse_loss(leaf, _tensor(z), reduction="none")
    weights = np.asarray(rng.uniform(0, 2, z.shape), dtype) if weighted else None
    w = _tensor(np.where(z == -1, 0, np.ones(z.shape) if weights is None else weights))
    expected = (w * each.double()).sum() / (w.sum() if reduction == "mean" else 1)
    expected.backward()
    loss, gradient = getattr(reference, name)(x, z, reduction, weights)
    # two roundings; the largest element of a square's gradient is 2 * 4, and a weight's 2
    tolerance = 2 * losses(dtype, classes=7, rows=z.size, largest=3 if name[0] != "m" else 16)
    assert_close("loss", loss, expected.item(), tolerance)
    assert_close("gradient", gradient, wide(leaf.grad.numpy()), tolerance)

"""Cells in primitive operators of ONNX, for networks that its recurrent operators do not cover.

One step of one layer in one direction, as `reference.cells` and `reference.layers` have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..registry import Cell
from .graph import Graph

Names = Mapping[str, str]
"""The constants of a direction of a layer, by its parameters' names without suffix."""


def side(graph: Graph, own: Names, cell: Cell, which: str, product: str) -> str:
    """One side's part of the gates, "ih" or "hh", from W x or W h: gain N(W x) + bias."""
    if f"gain_{which}" in own:
        product = graph.add("Mul", _normalized(graph, cell, product), own[f"gain_{which}"])
    if f"bias_{which}" in own:
        product = graph.add("Add", product, own[f"bias_{which}"])
    return product


def step(
    graph: Graph,
    own: Names,
    cell: Cell,
    zoneout: tuple[float, float],
    gx: str,
    prev: Sequence[str],
) -> list[str]:
    """The states [B, R or H] after a step, from the input's part of the gates gx [B, G*H]."""
    gh = side(graph, own, cell, "hh", graph.add("MatMul", prev[0], own["weight_hh"]))
    new = CELLS[cell.name, cell.nonlinearity](graph, own, gx, gh, prev)
    if "weight_hr" in own:
        new[0] = graph.add("MatMul", new[0], own["weight_hr"])
    rates = zip("hc", new, prev, zoneout, strict=False)
    return [_held(graph, name, s, before, rate) for name, s, before, rate in rates]


def _held(graph: Graph, name: str, state: str, before: str, rate: float) -> str:
    """Zoneout's expectation: rate s + (1 - rate) s'."""
    if not rate:
        return state
    kept = graph.add("Mul", before, graph.number(f"zoneout_{name}", rate))
    new = graph.add("Mul", state, graph.number(f"one_minus_zoneout_{name}", 1 - rate))
    result: str = graph.add("Add", kept, new)
    return result


def _normalized(graph: Graph, cell: Cell, value: str) -> str:
    """N(v) = (v - mean) / sqrt(var + 1e-5), of the split gates by itself."""
    gates = graph.split(value, len(cell.gates), -1)
    whole = len(gates) - cell.num_split
    parts = []
    for block in filter(None, (gates[:whole], gates[whole:])):
        v = graph.concat(block, -1)
        centred = graph.add("Sub", v, graph.add("ReduceMean", v, axes=[-1]))
        variance = graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=[-1])
        variance = graph.add("Add", variance, graph.number("epsilon", 1e-5))
        parts.append(graph.add("Div", centred, graph.add("Sqrt", variance)))
    return graph.concat(parts, -1)


def _rnn(activation: str) -> Callable[[Graph, Names, str, str, Sequence[str]], list[str]]:
    def forward(graph: Graph, own: Names, gx: str, gh: str, prev: Sequence[str]) -> list[str]:
        return [graph.add(activation, graph.add("Add", gx, gh))]

    return forward


def _gru(graph: Graph, own: Names, gx: str, gh: str, prev: Sequence[str]) -> list[str]:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = graph.split(gx, 3, -1), graph.split(gh, 3, -1)
    r = graph.add("Sigmoid", graph.add("Add", x_r, h_r))
    z = graph.add("Sigmoid", graph.add("Add", x_z, h_z))
    n = graph.add("Tanh", graph.add("Add", x_n, graph.add("Mul", r, h_n)))
    new = graph.add("Mul", _one_minus(graph, z), n)
    return [graph.add("Add", new, graph.add("Mul", z, prev[0]))]


def _lstm(graph: Graph, own: Names, gx: str, gh: str, prev: Sequence[str]) -> list[str]:
    a_i, a_f, a_g, a_o = graph.split(graph.add("Add", gx, gh), 4, -1)
    return _memory(graph, graph.add("Sigmoid", a_i), graph.add("Sigmoid", a_f), a_g, a_o, prev[1])


def _peephole_lstm(graph: Graph, own: Names, gx: str, gh: str, prev: Sequence[str]) -> list[str]:
    a_i, a_f, a_g, a_o = graph.split(graph.add("Add", gx, gh), 4, -1)
    p_i, p_f, p_o = graph.split(own["weight_peephole"], 3, 0)

    def gate(a: str, p: str) -> str:
        result: str = graph.add("Sigmoid", graph.add("Add", a, graph.add("Mul", p, prev[1])))
        return result

    return _memory(graph, gate(a_i, p_i), gate(a_f, p_f), a_g, a_o, prev[1], p_o)


def _coupled_lstm(graph: Graph, own: Names, gx: str, gh: str, prev: Sequence[str]) -> list[str]:
    a_f, a_g, a_o = graph.split(graph.add("Add", gx, gh), 3, -1)
    f = graph.add("Sigmoid", a_f)
    return _memory(graph, _one_minus(graph, f), f, a_g, a_o, prev[1])


def _memory(
    graph: Graph, i: str, f: str, a_g: str, a_o: str, c: str, p_o: str | None = None
) -> list[str]:
    """h and c of an LSTM, from its gates i and f, and what goes into g and o; p_o: o's peephole."""
    kept, added = graph.add("Mul", f, c), graph.add("Mul", i, graph.add("Tanh", a_g))
    c = graph.add("Add", kept, added)
    if p_o is not None:
        a_o = graph.add("Add", a_o, graph.add("Mul", p_o, c))
    return [graph.add("Mul", graph.add("Sigmoid", a_o), graph.add("Tanh", c)), c]


def _one_minus(graph: Graph, value: str) -> str:
    result: str = graph.add("Sub", graph.number("one", 1), value)
    return result


CELLS = {
    ("rnn", "tanh"): _rnn("Tanh"),
    ("rnn", "relu"): _rnn("Relu"),
    ("gru", "tanh"): _gru,
    ("lstm", "tanh"): _lstm,
    ("peephole_lstm", "tanh"): _peephole_lstm,
    ("coupled_lstm", "tanh"): _coupled_lstm,
}
"""By cell and nonlinearity, as `registry.CELLS`."""

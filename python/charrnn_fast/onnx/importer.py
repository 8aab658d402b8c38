"""Recurrent nodes of ONNX files as networks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from .._checks import FLOATS, StrPath, instance
from ..rnn import RNN
from .nodes import FORMS
from .reading import (
    RECURRENT,
    Graph,
    attributes_of,
    input_of,
    is_recurrent,
    name_of,
    output_of,
    parsed,
)

Array = NDArray[Any]

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_DEFAULTS: dict[str, Any] = {
    "activation_alpha": None,  # of activations that are refused
    "activation_beta": None,
    "activations": None,
    "clip": None,
    "direction": b"forward",
    "hidden_size": None,
    "input_forget": 0,
    "layout": 0,
    "linear_before_reset": 0,
}
"""The attributes of recurrent nodes."""


def load(source: StrPath | bytes | ModelProto, node: str | None = None) -> RNN:
    """The network of the LSTM, GRU or RNN nodes of an ONNX file.

    Nodes that feed one another, as programs write the layers of a network, become one network, with
    a decoder if a linear layer, and nothing else, reads its y. node: the name of one of its nodes;
    None: there is one such network. Weights keep their bits, in the dtype of the file. Arrays of
    the network have time first, whatever order the file has. Where the recurrent biases are all 0,
    the network has bias="single", which is the same.

    States and lengths that the graph gets as inputs, or computes from them, are the arguments of
    `forward`.

    Raises ValueError, with the node's name and what it has, for all that a network would compute
    otherwise: a GRU with linear_before_reset=0, other activations than the default (of RNN: Relu
    too), clip, direction "reverse", peepholes with input_forget, weights that are computed when the
    graph runs, initial states that are constants other than 0; also for damaged files and for those
    without such nodes. OSError if the file cannot be read.
    """
    instance("source", source, (str, os.PathLike, bytes, ModelProto), "a path, bytes or a model")
    if node is not None:
        instance("node", node, str, "the name of a node")
    what = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "the model"
    try:
        graph = Graph(parsed(source))
        return _network(graph, [_Layer(graph, one) for one in _chosen(graph, node)])
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _chosen(graph: Graph, name: str | None) -> list[NodeProto]:
    """The nodes of one network, from the first layer to the last."""
    stacks = list(_stacks(graph))
    if not stacks:
        others = sorted({n.op_type for n in graph.nodes} & {"If", "Loop", "Scan"})
        more = f"; its {' and '.join(others)} nodes are not read" if others else ""
        raise ValueError(f"there is no {', '.join(RECURRENT[:-1])} or {RECURRENT[-1]} node{more}")
    names = [[name_of(node) for node in stack] for stack in stacks]
    if name is None:
        if len(stacks) > 1:
            shown = "; ".join(", ".join(map(repr, stack)) for stack in names)
            raise ValueError(f"node must name one of {len(stacks)} networks, of the nodes {shown}")
        return stacks[0]
    found = [stack for stack, own in zip(stacks, names, strict=True) if name in own]
    if len(found) != 1:
        shown = ", ".join(repr(n) for stack in names for n in stack)
        raise ValueError(f"node must be one of {shown}, got {name!r}")
    return found[0]


def _stacks(graph: Graph) -> Iterator[list[NodeProto]]:
    """The recurrent nodes by networks: in each a node takes the y of the one before it."""
    nodes = [node for node in graph.nodes if is_recurrent(node)]
    above: dict[str, list[NodeProto]] = {}
    for node in nodes:
        path = graph.paths.get(input_of(node, 0))
        if path is not None and _is_alike(graph, node):
            above.setdefault(path.y, []).append(node)
    upper = {output_of(ones[0]) for y, ones in above.items() if y and len(ones) == 1}
    for node in nodes:
        if output_of(node) in upper and output_of(node):
            continue
        stack = [node]
        while len(ones := above.get(output_of(stack[-1]), [])) == 1:
            stack += ones
        yield stack


def _is_alike(graph: Graph, node: NodeProto) -> bool:
    """Whether a node that reads a y can be the next layer of the same network."""
    path = graph.paths[node.input[0]]
    below = next(one for one in graph.nodes if output_of(one) == path.y)
    own, other = attributes_of(node), attributes_of(below)
    if node.op_type != below.op_type or any(
        own.get(name, default) != other.get(name, default)
        for name, default in _DEFAULTS.items()
        if name not in ("layout", "activations")
    ):
        return False
    default = [name.encode() for name in _ACTIVATIONS[node.op_type]] * path.directions
    if own.get("activations", default) != other.get("activations", default):
        return False
    roles = [INPUTS.index(role) for role in ("B", "sequence_lens", "P")]
    if [bool(input_of(node, i)) for i in roles] != [bool(input_of(below, i)) for i in roles]:
        return False
    if input_of(node, roles[1]) != input_of(below, roles[1]):
        return False
    W, R = graph.constant(input_of(node, 1)), graph.constant(input_of(below, 2))
    if W is None or R is None or W.dtype != R.dtype or W.ndim != 3 or R.ndim != 3:
        return False
    axes = "btf" if own.get("layout") else "tbf"
    fits = W.shape[1:] == (R.shape[1], path.directions * R.shape[2])
    return path.axes == axes and path.half is None and fits


class _Decoder(NamedTuple):
    weight: Array
    """[O, D*H]."""
    bias: Array | None
    """[O]."""


def _decoder(graph: Graph, node: NodeProto, features: int) -> _Decoder | None:
    """The linear layer that alone reads the y of a node."""
    paths = {name: path for name, path in graph.paths.items() if path.y == output_of(node)}
    if not graph.outputs.isdisjoint(paths):
        return None
    # those that pass y on are no readers
    readers = {
        id(reader): reader
        for name in paths
        for reader in graph.readers.get(name, ())
        if reader.op_type not in ("Shape", "Size") and output_of(reader) not in paths
    }
    if len(readers) != 1:
        return None
    (reader,) = readers.values()
    weight = graph.constant(input_of(reader, 1))
    is_product = reader.op_type == "MatMul" and paths[reader.input[0]].is_whole
    if not is_product or weight is None or weight.ndim != 2 or len(weight) != features:
        return None
    product = output_of(reader)
    while len(after := graph.readers.get(product, [])) == 1 and product not in graph.outputs:
        if after[0].op_type == "Add":
            others = [name for name in after[0].input if name != product]
            bias = graph.constant(others[0]) if len(others) == 1 else None
            if bias is not None and bias.shape == weight.shape[1:]:
                return _Decoder(weight.T, bias)
        if after[0].op_type != "Reshape" or after[0].input[0] != product:
            break
        product = output_of(after[0])
    return _Decoder(weight.T, None)


def _network(graph: Graph, layers: Sequence[_Layer]) -> RNN:
    """The network of some layers, from the first to the last."""
    first, last = layers[0], layers[-1]
    dtype = first.W.dtype
    decoder = _decoder(graph, last.node, last.directions * last.hidden_size)
    if decoder is not None and decoder.weight.dtype != dtype:
        decoder = None
    bias: bool | str = any(layer.recurrent_bias.any() for layer in layers)
    if not bias and (first.B is not None or (decoder is not None and decoder.bias is not None)):
        bias = "single"
    rnn = RNN(
        first.W.shape[2],
        first.hidden_size,
        None if decoder is None else len(decoder.weight),
        cell=first.cell,
        nonlinearity=first.nonlinearity,
        num_layers=len(layers),
        bias=bias,
        dtype=dtype,
        bidirectional=first.directions == 2,
    )
    parameters: dict[str, Array] = {}
    for number, layer in enumerate(layers):
        parameters.update(layer.parameters(number))
    if decoder is not None:
        parameters["decoder.weight"] = decoder.weight
        zeros = np.zeros(len(decoder.weight), dtype)
        parameters["decoder.bias"] = zeros if decoder.bias is None else decoder.bias
    # without biases there are names too many
    rnn.load_parameters({name: parameters[name] for name in rnn.parameters()})
    return rnn


class _Layer:
    """A recurrent node that a network can compute; ValueError says why it is none."""

    def __init__(self, graph: Graph, node: NodeProto) -> None:
        self.node, self._graph = node, graph
        self._attributes = attributes = attributes_of(node)
        for name in sorted(attributes.keys() - _DEFAULTS):
            self._refuse(f"there must be no attribute {name!r} of this version of the operator")
        self.directions = self._directions()
        if "clip" in attributes:
            self._refuse(f"clip must be left out, got {attributes['clip']}")
        if (layout := self._integer("layout")) not in (0, 1):
            self._refuse(f"layout must be 0 or 1, got {layout}")
        self.cell, self.nonlinearity = self._kind()
        D, G = self.directions, _GATES[node.op_type]
        self.W = self._required("W")
        self.R = self._required("R")
        I, H = self.W.shape[-1], self.R.shape[-1]  # noqa: E741
        self.hidden_size = self._integer("hidden_size") if "hidden_size" in attributes else H
        H = self.hidden_size
        self._check_shape("W", self.W, (D, G * H, I))
        self._check_shape("R", self.R, (D, G * H, H))
        if not I or not H:
            self._refuse(f"W and R must have elements, got sizes {I} of x and {H} of h")
        self.B = self._weights("B")
        if self.B is not None:
            self._check_shape("B", self.B, (D, 2 * G * H))
        self.P = self._weights("P") if node.op_type == "LSTM" else None
        if self.P is not None:
            self._check_shape("P", self.P, (D, 3 * H))
        self._check_state("initial_h")
        if node.op_type == "LSTM":
            self._check_state("initial_c")
        self._check_lengths()

    def _refuse(self, why: str) -> NoReturn:
        raise ValueError(f"{self.node.op_type} {name_of(self.node)!r}: {why}")

    def _directions(self) -> int:
        direction = self._attributes.get("direction", b"forward")
        if direction not in (b"forward", b"bidirectional"):
            name = direction.decode(errors="replace")
            self._refuse(
                f"direction must be 'forward' or 'bidirectional', got {name!r}: a network does not "
                f"read backwards alone"
            )
        return 2 if direction == b"bidirectional" else 1

    def _integer(self, name: str) -> int:
        value: int = self._attributes.get(name, _DEFAULTS[name])
        return value

    def _kind(self) -> tuple[str, str]:
        """The cell and its nonlinearity."""
        operator = self.node.op_type
        default = list(_ACTIVATIONS[operator]) * self.directions
        given = self._attributes.get("activations", [])
        names = [name.decode(errors="replace").capitalize() for name in given] or default
        is_relu = operator == "RNN" and names == ["Relu"] * self.directions
        if names != default and not is_relu:
            takes = ", ".join(default) + " or Relu" * (operator == "RNN")
            self._refuse(f"activations must be {takes}, got {', '.join(names)}")
        if operator == "RNN":
            return "rnn", "relu" if is_relu else "tanh"
        if operator == "GRU":
            if (value := self._integer("linear_before_reset")) != 1:
                self._refuse(
                    f"linear_before_reset must be 1, got {value}: its reset gate acts before the "
                    f"recurrent product, here it acts after it"
                )
            return "gru", "tanh"
        if self._integer("input_forget"):
            if input_of(self.node, INPUTS.index("P")):
                self._refuse("input_forget must be 0 with peepholes (P), got 1")
            return "coupled_lstm", "tanh"
        has_peepholes = bool(input_of(self.node, INPUTS.index("P")))
        return "peephole_lstm" if has_peepholes else "lstm", "tanh"

    def _weights(self, role: str) -> Array | None:
        name = input_of(self.node, INPUTS.index(role))
        if not name:
            return None
        value = self._graph.constant(name)
        if value is None:
            self._refuse(f"{role} must be a constant of the file, got the computed {name!r}")
        if value.dtype not in FLOATS or (role != "W" and value.dtype != self.W.dtype):
            self._refuse(f"all weights must be float32, or float64, got {value.dtype} for {role}")
        return value

    def _required(self, role: str) -> Array:
        value = self._weights(role)
        if value is None or value.ndim != 3:
            got = "none" if value is None else list(value.shape)
            self._refuse(f"{role} must have 3 axes, got {got}")
        return value

    def _check_shape(self, role: str, value: Array, shape: tuple[int, ...]) -> None:
        if value.shape != shape:
            self._refuse(f"{role} must have shape {list(shape)}, got {list(value.shape)}")

    def _check_state(self, role: str) -> None:
        name = input_of(self.node, INPUTS.index(role))
        if name and self._graph.is_constant(name) and not self._graph.is_zero(name):
            self._refuse(
                f"{role} must be 0 or come from an input of the graph, got a constant: a network "
                f"holds no initial state"
            )

    def _check_lengths(self) -> None:
        name = input_of(self.node, INPUTS.index("sequence_lens"))
        value = self._graph.constant(name) if name else None
        if value is not None and np.unique(value).size > 1:
            self._refuse(
                f"sequence_lens must come from an input of the graph, got the constant "
                f"{value.ravel().tolist()}: a network gets lengths with its x"
            )

    @property
    def recurrent_bias(self) -> Array:
        """[D, G*H], of zeros if there is none."""
        return self._biases()[1]

    def _biases(self) -> list[Array]:
        shape = (self.directions, 2 * self.W.shape[1])
        both = np.zeros(shape, self.W.dtype) if self.B is None else self.B
        return np.split(both, 2, axis=1)

    def parameters(self, number: int) -> Iterator[tuple[str, Array]]:
        """Those of a network in which this layer has a number; biases in any case."""
        form = FORMS[self.cell, self.nonlinearity]
        arrays = zip(self.W, self.R, *self._biases(), strict=True)
        for d, values in enumerate(arrays):
            suffix = f"_l{number}" + "_reverse" * d
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            for name, value in zip(names, values, strict=True):
                yield name + suffix, form.from_onnx(value)
            if self.P is not None:
                theirs = self.P[d].reshape(3, -1)
                ours = np.empty_like(theirs)
                ours[list(form.peepholes)] = theirs
                yield f"weight_peephole{suffix}", ours

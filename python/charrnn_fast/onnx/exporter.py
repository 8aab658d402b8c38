"""Networks and language models as ONNX graphs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from .._checks import StrPath, called, instance
from .._names import suggesting
from ..language.model import CharLM
from ..registry import CELLS
from ..rnn import RNN
from ..runtime import build_info
from ..storage import atomic_file
from . import steps
from .graph import Graph
from .nodes import FORMS

Array = NDArray[Any]

_CALLS = ("sequence", "step")
_PRODUCER = "charrnn_fast"
_OPSET, _IR = 17, 8  # read by every ONNX Runtime since 1.12
_LARGEST = 2**31 - 2**20  # bytes of weights: a message of Protocol Buffers has at most 2**31 - 1
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
}


class Value(NamedTuple):
    """An input or an output of a graph."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    """A size, or the letter of one that each call chooses."""

    def __str__(self) -> str:
        return f"{self.name} [{', '.join(map(str, self.shape))}] {self.dtype}"


@suggesting
def export(
    model: RNN | CharLM,
    path: StrPath,
    *,
    form: str = "sequence",
    tokens: bool | None = None,
    lengths: bool = False,
) -> None:
    """Writes a network or a language model to an ONNX file (opset 17), as `to_model` makes it.

    An older export at path is replaced atomically; any other file stays. Raises what `to_model`
    raises, and OSError if path cannot be written or holds another kind of file.
    """
    call = _Call(model, form, tokens, lengths)
    atomic_file.check(path, KIND)
    data = call.model().SerializeToString(deterministic=True)
    atomic_file.replace(path, [data], KIND)


@suggesting
def to_model(
    model: RNN | CharLM,
    *,
    form: str = "sequence",
    tokens: bool | None = None,
    lengths: bool = False,
) -> ModelProto:
    """An ONNX model that computes what the network's `forward`, or its `step`, computes.

    form: "sequence", of any T >= 1, or "step". tokens: whether the input is integer tokens, not
    vectors; None: of a `CharLM`. lengths: adds the input `lengths`, for rows of a sequence that end
    earlier. Inputs and outputs, of any batch B (letters as in `RNN`)::

        form        inputs                                            outputs
        "sequence"  x [T, B, I] or tokens [T, B], lengths [B], h_0, c_0   y [T, B, O], h_n, c_n
        "step"      x [B, I] or tokens [B], h_0, c_0                      y [B, O], h_n, c_n

    x, y and the states, h [L*D, B, R] and c [L*D, B, H] (the LSTMs alone), have the network's
    dtype; tokens and lengths are int64. The y of a `CharLM` is called logits. Dropout is left out,
    as in every call without a mask_seed; zoneout acts by its expectation.

    Layers become nodes LSTM, GRU or RNN. Those with layer_norm, proj_size or zoneout, and float64,
    which these operators of ONNX Runtime do not take, become loops of primitive operators.

    The model's metadata_props hold the vocabulary of a `CharLM`: "charrnn_fast.vocabulary" is JSON
    of its kind ("characters" or "bytes"), its symbols, code points or bytes in the order of the
    ids, and, where it has one, the unknown symbol.

    Raises TypeError and ValueError for wrong arguments, for a step of a bidirectional network and
    for more than 2 GB of weights, the limit of the format; FloatingPointError if a weight is not
    finite.
    """
    return _Call(model, form, tokens, lengths).model()


def signature(
    model: RNN | CharLM, *, form: str = "sequence", lengths: bool = False
) -> tuple[list[Value], list[Value]]:
    """The inputs and the outputs of `to_model` with these arguments."""
    call = _Call(model, form, None, lengths)
    return call.inputs(), call.outputs()


class _Call:
    """The checked arguments of an export."""

    def __init__(self, model: RNN | CharLM, form: str, tokens: bool | None, lengths: bool) -> None:
        instance("model", model, (RNN, CharLM), "an RNN or a CharLM")
        if form not in _CALLS:
            takes = " or ".join(map(repr, _CALLS))
            raise ValueError(f"{called('form')} must be {takes}, got {form!r}")
        for name, flag in (("tokens", tokens), ("lengths", lengths)):
            if not isinstance(flag, (bool, np.bool_)) and not (name == "tokens" and flag is None):
                raise TypeError(f"{called(name)} must be True or False, got {flag!r}")
        self.vocabulary = model.vocabulary if isinstance(model, CharLM) else None
        self.rnn = rnn = model.rnn if isinstance(model, CharLM) else model
        self.is_step, self.lengths = form == "step", bool(lengths)
        self.tokens = self.vocabulary is not None if tokens is None else bool(tokens)
        if self.is_step and rnn.bidirectional:
            raise ValueError(
                f"{called('form')} must be 'sequence' with a bidirectional network, which has no "
                f"step"
            )
        if self.is_step and lengths:
            raise ValueError(
                f"{called('lengths')} must be False with {called('form')}='step': a step has none"
            )
        if rnn.compute_dtype != "float32":
            raise ValueError(
                f"{called('compute_dtype')} of an export must be 'float32', got "
                f"{rnn.compute_dtype!r}: ONNX's runtimes do not round the operands of products; "
                f"CharLM.load(path, {called('compute_dtype')}='float32') has the same weights"
            )
        self._kind = (rnn.cell, rnn.nonlinearity)
        if self._kind not in steps.CELLS:
            takes = ", ".join(sorted({repr(cell) for cell, _ in steps.CELLS}))
            raise ValueError(f"the cell of an export must be one of {takes}, got {rnn.cell!r}")
        size = rnn.core.num_parameters * rnn.dtype.itemsize
        if size > _LARGEST:
            raise ValueError(
                f"an ONNX file must have at most 2 GB, got {size / 1e9:,.3g} GB of weights in "
                f"{rnn!r}"
            )
        for name, value in rnn.parameters().items():
            if not np.isfinite(value).all():
                raise FloatingPointError(f"{name} is no longer finite; nothing is exported")

    @property
    def _has_nodes(self) -> bool:
        """Whether ONNX's recurrent operators compute the layers."""
        rnn = self.rnn
        plain = not (rnn.layer_norm or rnn.proj_size or any(rnn.zoneout))
        return plain and rnn.dtype == np.float32 and self._kind in FORMS

    def inputs(self) -> list[Value]:
        rows: tuple[str, ...] = ("B",) if self.is_step else ("T", "B")
        values = [
            Value("tokens", "int64", rows)
            if self.tokens
            else Value("x", self.rnn.dtype.name, (*rows, self.rnn.input_size))
        ]
        if self.lengths:
            values.append(Value("lengths", "int64", ("B",)))
        return [*values, *self._states("0")]

    def outputs(self) -> list[Value]:
        rows: tuple[str, ...] = ("B",) if self.is_step else ("T", "B")
        name = "y" if self.vocabulary is None else "logits"
        width = self.rnn.output_size or self._directions * self._width
        return [Value(name, self.rnn.dtype.name, (*rows, width)), *self._states("n")]

    def _states(self, when: str) -> list[Value]:
        shapes = self.rnn.states.shapes(1)
        return [
            Value(f"{name}_{when}", self.rnn.dtype.name, (layers, "B", width))
            for name, (layers, _, width) in zip("hc", shapes, strict=False)
        ]

    @property
    def _directions(self) -> int:
        return 2 if self.rnn.bidirectional else 1

    @property
    def _width(self) -> int:
        return self.rnn.proj_size or self.rnn.hidden_size

    def model(self) -> ModelProto:
        graph = Graph(self.rnn.dtype)
        inputs, outputs = self.inputs(), self.outputs()
        y = self._layers(graph, inputs, [value.name for value in outputs[1:]])
        self._decoder(graph, y, outputs[0].name)
        made = helper.make_model(
            helper.make_graph(
                graph.nodes,
                "charrnn_fast",
                [_info(value) for value in inputs],
                [_info(value) for value in outputs],
                graph.initializers(),
                doc_string=repr(self.rnn),
            ),
            producer_name=_PRODUCER,
            producer_version=build_info()["version"],
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR,
        )
        if self.vocabulary is not None:
            stored = {
                **self.vocabulary.to_config(),
                "symbols": self.vocabulary.symbols.tolist(),
            }
            helper.set_model_props(made, {"charrnn_fast.vocabulary": json.dumps(stored)})
        return made

    def _layers(self, graph: Graph, inputs: list[Value], last: Sequence[str]) -> str:
        """Adds all layers, from the inputs to the last states; returns the name of y.

        y is [T, B, D*R], of a step [B, R] from loops, [1, B, R] from nodes.
        """
        rnn = self.rnn
        make = _Nodes if self._has_nodes else _Loops
        layers = make(graph, rnn, inputs[0].name, self.is_step, self.tokens, self.lengths)
        firsts = [value.name for value in inputs if value.name in ("h_0", "c_0")]
        parts = [graph.split(name, rnn.num_layers, 0) for name in firsts]
        lasts: list[list[str]] = [[] for _ in firsts]
        for layer in range(rnn.num_layers):
            for states, state in zip(lasts, layers.add([p[layer] for p in parts]), strict=True):
                states.append(state)
        for name, states in zip(last, lasts, strict=True):
            graph.add("Concat", *states, axis=0, outputs=[name])
        return layers.y

    def _decoder(self, graph: Graph, y: str, name: str) -> None:
        parameters = self.rnn.parameters()
        if self.is_step and self._has_nodes:
            y = graph.add("Squeeze", y, graph.integers(0))
        if self.rnn.output_size is not None:
            weight = graph.constant("decoder.weight", parameters["decoder.weight"].T)
            y = graph.add("MatMul", y, weight)
            if "decoder.bias" in parameters:
                bias = graph.constant("decoder.bias", parameters["decoder.bias"])
                y = graph.add("Add", y, bias)
        if self.lengths:
            zero = graph.number("zero", 0)
            graph.add("Where", "alive", y, zero, outputs=[name])
        else:
            graph.add("Identity", y, outputs=[name])


class _Stack:
    """Adds layers to a graph, one on top of the other."""

    def __init__(
        self, graph: Graph, rnn: RNN, x: str, is_step: bool, tokens: bool, lengths: bool
    ) -> None:
        self.y = x
        self._graph, self._rnn, self._parameters = graph, rnn, rnn.parameters()
        self._is_step, self._tokens, self._lengths = is_step, tokens, lengths
        self._directions = 2 if rnn.bidirectional else 1
        self._layer = 0
        if lengths:
            # [T, B, 1]: whether a step is before its row's end
            zero, one = (graph.constant(f"integer_{i}", np.array(i)) for i in (0, 1))
            steps = graph.add("Gather", graph.add("Shape", x), zero)
            times = graph.add("Unsqueeze", graph.add("Range", zero, steps, one), graph.integers(1))
            alive = graph.add("Less", times, "lengths")
            graph.add("Unsqueeze", alive, graph.integers(2), outputs=["alive"])

    def add(self, states: list[str]) -> list[str]:
        """Adds a layer, from its initial states [D, B, R or H] to its last ones."""
        made = self._added(states)
        self._layer += 1
        return made

    def _added(self, states: list[str]) -> list[str]:
        raise NotImplementedError

    def _of(self, name: str) -> list[Array]:
        """A parameter of the layer, by its name without suffix, one for each direction; or none."""
        suffixes = ("", "_reverse")[: self._directions]
        names = [f"{name}_l{self._layer}{suffix}" for suffix in suffixes]
        return [self._parameters[name] for name in names if name in self._parameters]


class _Nodes(_Stack):
    """Layers as nodes of ONNX's recurrent operators."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        graph, rnn = self._graph, self._rnn
        if self._tokens:
            # OneHot makes zeros of a token that is none; Gather refuses it.
            ids = graph.constant("ids", np.arange(rnn.input_size))
            self.y = graph.add("Gather", ids, self.y)
            depth = graph.constant("input_size", np.array(rnn.input_size))
            values = graph.constant("off_on", np.array([0, 1], rnn.dtype))
            self.y = graph.add("OneHot", self.y, depth, values, axis=-1)
        if self._is_step:
            self.y = graph.add("Unsqueeze", self.y, graph.integers(0))
        if self._lengths:
            # ONNX Runtime gives rows without steps a last state of zeros.
            empty = graph.add("Less", "lengths", graph.integers(1))
            self._empty = graph.add("Unsqueeze", empty, graph.integers(1))
            self._ends = graph.add("Cast", "lengths", to=TensorProto.INT32)

    def _added(self, states: list[str]) -> list[str]:
        graph, rnn, layer = self._graph, self._rnn, self._layer
        form = FORMS[rnn.cell, rnn.nonlinearity]
        attributes = {**form.attributes, "hidden_size": rnn.hidden_size}
        if "activations" in attributes:
            attributes["activations"] = attributes["activations"] * self._directions
        if rnn.bidirectional:
            attributes["direction"] = "bidirectional"

        def stacked(name: str, parts: list[Array]) -> str:
            return graph.constant(f"{name}_l{layer}", np.stack(parts)) if parts else ""

        biases = [form.to_onnx(b) for b in self._of("bias_ih")]
        others = [form.to_onnx(b) for b in self._of("bias_hh")] or [b * 0 for b in biases]
        peepholes = [p[list(form.peepholes)].ravel() for p in self._of("weight_peephole")]
        inputs = [
            self.y,
            stacked("W", [form.to_onnx(w) for w in self._of("weight_ih")]),
            stacked("R", [form.to_onnx(w) for w in self._of("weight_hh")]),
            stacked("B", [np.concatenate(pair) for pair in zip(biases, others, strict=True)]),
            self._ends if self._lengths else "",
            *states,
            stacked("P", peepholes),
        ]
        while not inputs[-1]:
            inputs.pop()
        y, *last = graph.add(form.operator, *inputs, outputs=1 + len(states), **attributes)
        if rnn.bidirectional:
            y = graph.add("Transpose", y, perm=[0, 2, 1, 3])  # [T, D, B, H]
            self.y = graph.add("Reshape", y, graph.integers(0, 0, -1))
        else:
            self.y = graph.add("Squeeze", y, graph.integers(1))
        if self._lengths:
            last = [
                graph.add("Where", self._empty, first, state)
                for first, state in zip(states, last, strict=True)
            ]
        return list(last)


class _Loops(_Stack):
    """Layers as loops of primitive operators; a step without a loop."""

    def _added(self, states: list[str]) -> list[str]:
        graph, layer = self._graph, self._layer
        parts = [graph.split(state, self._directions, 0) for state in states]
        ys, lasts = [], []
        for d in range(self._directions):
            own = {}
            for name in _NAMES:
                if found := self._of(name):
                    value = found[d].T if name in _TRANSPOSED else found[d]
                    own[name] = graph.constant(f"{name}_l{layer}{'_reverse' * d}", value)
            first = [graph.add("Squeeze", part[d], graph.integers(0)) for part in parts]
            y, *last = self._direction(own, first, d)
            ys.append(y)
            lasts.append([graph.add("Unsqueeze", state, graph.integers(0)) for state in last])
        self.y = graph.concat(ys, -1)
        return [graph.concat(directions, 0) for directions in zip(*lasts, strict=True)]

    def _direction(self, own: dict[str, str], first: list[str], direction: int) -> list[str]:
        """y and the last states [B, R or H] of one direction, from its initial states."""
        graph, rnn, cell = self._graph, self._rnn, CELLS[self._rnn.cell, self._rnn.nonlinearity]
        if self._tokens and not self._layer:
            product = graph.add("Gather", own["weight_ih"], self.y)
        else:
            product = graph.add("MatMul", self.y, own["weight_ih"])
        gx = steps.side(graph, own, cell, "ih", product)
        if self._is_step:
            new = steps.step(graph, own, cell, rnn.zoneout, gx, first)
            return [new[0], *new]
        body = graph.body()
        inputs = [("gx", _TYPES[rnn.dtype.name]), ("is_alive", TensorProto.BOOL)]
        inputs = inputs[: 1 + self._lengths]
        prefix = f"l{self._layer}_{direction}_"
        widths = [width for _, _, width in rnn.states.shapes(1)]
        prev = [f"{prefix}{name}_prev" for name, _ in zip("hc", first, strict=False)]
        new = steps.step(body, own, cell, rnn.zoneout, f"{prefix}gx", prev)
        y = new[0]
        if self._lengths:
            alive = f"{prefix}is_alive"
            y = body.add("Where", alive, y, body.number("zero", 0))
            new = [body.add("Where", alive, s, p) for s, p in zip(new, prev, strict=True)]
        results = [body.add("Identity", value) for value in (*new, y)]
        given = [gx, "alive"][: len(inputs)]
        features = [len(cell.gates) * rnn.hidden_size, 1]
        dtype = _TYPES[rnn.dtype.name]
        *last, y = graph.add(
            "Scan",
            *first,
            *given,
            outputs=len(results),
            num_scan_inputs=len(given),
            scan_input_directions=[direction] * len(given),
            scan_output_directions=[direction],
            body=helper.make_graph(
                body.nodes,
                f"layer_{self._layer}",
                [
                    *(_tensor(n, dtype, ("B", w)) for n, w in zip(prev, widths, strict=True)),
                    *(
                        _tensor(f"{prefix}{name}", kind, ("B", width))
                        for (name, kind), width in zip(inputs, features, strict=False)
                    ),
                ],
                [
                    _tensor(name, dtype, ("B", width))
                    for name, width in zip(results, [*widths, widths[0]], strict=True)
                ],
            ),
        )
        return [y, *last]


_NAMES = (
    "weight_ih",
    "weight_hh",
    "bias_ih",
    "bias_hh",
    "gain_ih",
    "gain_hh",
    "weight_peephole",
    "weight_hr",
)
_TRANSPOSED = ("weight_ih", "weight_hh", "weight_hr")


def _info(value: Value) -> Any:
    return _tensor(value.name, _TYPES[value.dtype], value.shape)


def _tensor(name: str, dtype: Any, shape: Sequence[int | str]) -> Any:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def _is_ours(path: str) -> bool:
    """Whether a file begins as an export of any version does."""
    with open(path, "rb") as file:
        beginning = file.read(4 + len(_PRODUCER))
    # field 1, ir_version, of one byte; field 2, producer_name, with its length
    name = _PRODUCER.encode()
    return beginning[:1] == b"\x08" and beginning[2:] == bytes([0x12, len(name)]) + name


KIND = atomic_file.Kind("ONNX file of charrnn_fast", _is_ours)

"""Reading the graph of an ONNX file: constants, what values are made of, where a y goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import (
    AttributeProto,
    ModelProto,
    NodeProto,
    TensorProto,
    checker,
    helper,
    inliner,
    numpy_helper,
)
from onnx.external_data_helper import load_external_data_for_model
from onnx.reference import ReferenceEvaluator

from .._checks import StrPath
from ..storage import input_files

Array = NDArray[Any]

RECURRENT = ("LSTM", "GRU", "RNN")
_OURS = ("", "ai.onnx")  # domains of ONNX's own operators
# What only moves elements: weights may be made by these from the file's constants.
_MOVING = ("Concat", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
# What makes zeros of zeros, whatever its other inputs are, which are shapes and indices.
_KEEPING_ZEROS = (*_MOVING, "Cast", "Expand", "Gather", "Split", "Tile")


_INTEGER = ("an integer", AttributeProto.INT)
_INTEGERS = ("integers", AttributeProto.INTS)
_TYPES = {
    **dict.fromkeys(("axis", "hidden_size", "input_forget", "layout"), _INTEGER),
    **dict.fromkeys(("linear_before_reset", "value_int"), _INTEGER),
    **dict.fromkeys(("axes", "ends", "perm", "starts", "value_ints"), _INTEGERS),
    "activations": ("names", AttributeProto.STRINGS),
    "direction": ("a name", AttributeProto.STRING),
    "value_float": ("a number", AttributeProto.FLOAT),
    "value_floats": ("numbers", AttributeProto.FLOATS),
}


def parsed(source: StrPath | bytes | ModelProto) -> ModelProto:
    """The model of a path, of a file's bytes, or the model itself; its functions are inlined."""
    model = source
    if not isinstance(model, ModelProto):
        data = source
        if not isinstance(data, bytes):
            with input_files.open_input(data) as file:
                data = file.read()
        model = ModelProto()
        try:
            model.ParseFromString(data)
        except DecodeError:
            raise ValueError("this is no ONNX model, or a damaged one") from None
    if not model.ir_version or not model.HasField("graph"):
        raise ValueError("this is no ONNX model")
    if isinstance(source, (str, os.PathLike)):
        try:
            load_external_data_for_model(model, os.path.dirname(os.path.abspath(source)))
        except (checker.ValidationError, ValueError, OverflowError) as error:
            raise ValueError(f"its external data cannot be read: {error}") from error
    if model.functions:
        try:
            model = inliner.inline_local_functions(model)
        except Exception as error:  # of C++, of kinds that are not documented
            raise ValueError(f"its functions cannot be read: {error}") from error
    return model


def name_of(node: NodeProto) -> str:
    """A node's name or, without one, that of its first output."""
    return node.name or next(filter(None, node.output), "")


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """The attributes of one of ONNX's own operators; ValueError if one has the wrong type."""
    made = {}
    for attribute in node.attribute:
        try:
            value = helper.get_attribute_value(attribute)
        except ValueError:  # of a type that is none
            value = None
        takes, kind = _TYPES.get(attribute.name, ("", attribute.type))
        if value is None or attribute.type != kind:
            raise ValueError(
                f"{node.op_type} {name_of(node)!r}: {attribute.name} must be {takes or 'a value'}, "
                f"got {value!r}"
            )
        made[attribute.name] = value
    return made


def input_of(node: NodeProto, index: int) -> str:
    """The name of an input; "": it is left out."""
    return str(node.input[index]) if index < len(node.input) else ""


def output_of(node: NodeProto) -> str:
    """The name of the first output; "": it is left out."""
    return str(node.output[0]) if node.output else ""


def is_recurrent(node: NodeProto) -> bool:
    return node.op_type in RECURRENT and node.domain in _OURS


class Path(NamedTuple):
    """A value that holds the y of a recurrent node, with its axes moved."""

    y: str
    directions: int
    axes: str
    """t, b, d and h; f: d and h merged; _: others."""
    half: int | None = None
    """The direction that it holds; None: all."""

    @property
    def is_whole(self) -> bool:
        """Whether its rows are those of y [T, B, D*H]."""
        return self.axes[-1:] == "f" and self.half is None


class Graph:
    """The nodes and values of a graph."""

    def __init__(self, model: ModelProto) -> None:
        self.nodes: Sequence[NodeProto] = model.graph.node
        self.outputs = {value.name for value in model.graph.output}
        self.readers: dict[str, list[NodeProto]] = {}
        """The nodes that read a value, by its name."""
        self.paths: dict[str, Path] = {}
        self._opsets = {o.domain: o.version for o in model.opset_import}
        constants = {t.name: t for t in model.graph.initializer}
        self._constants: dict[str, TensorProto | Array] = dict(constants)
        # Chains of operators could make more of a small file than there is memory.
        self._left = 4 * sum(t.ByteSize() for t in constants.values()) + 2**20
        made = set(self._constants)
        for node in self.nodes:
            for name in filter(None, node.output):
                if name in made:
                    raise ValueError(f"the value {name!r} must be made once, and is made twice")
                made.add(name)
            for name in dict.fromkeys(filter(None, node.input)):
                self.readers.setdefault(name, []).append(node)
            if node.domain in _OURS and output_of(node):
                self._fold(node)
                self._trace(node)

    # ---- constants ----

    def constant(self, name: str) -> Array | None:
        """The value of a constant; None: it is computed when the graph runs."""
        value = self._constants.get(name)
        if not isinstance(value, TensorProto):
            return value
        if value.data_location == TensorProto.EXTERNAL:
            raise ValueError(
                f"the constant {name!r} is in another file: load the model by its path"
            )
        try:
            made: Array = numpy_helper.to_array(value)
        except (ValueError, TypeError, OverflowError, RuntimeError, LookupError) as error:
            raise ValueError(f"the constant {name!r} is damaged: {error}") from error
        self._constants[name] = made
        return made

    def _fold(self, node: NodeProto) -> None:
        """Computes a node of constants that only moves elements."""
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    self._constants[output_of(node)] = attribute.t
                elif attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
                    value = np.array(attributes_of(node)[attribute.name])
                    kind = np.int64 if "int" in attribute.name else np.float32
                    self._constants[output_of(node)] = value.astype(kind)
        if node.op_type not in _MOVING or not all(n in self._constants for n in node.input if n):
            return
        given = {name: self.constant(name) for name in node.input if name}
        size = sum(self._size(name) for name in node.input)
        if size > self._left:
            return
        self._left -= size
        try:
            evaluator = ReferenceEvaluator(node, opsets=self._opsets)
            self._constants[output_of(node)] = evaluator.run(None, given)[0]
        except Exception as error:  # whatever NumPy makes of wrong operands
            raise ValueError(
                f"{node.op_type} {name_of(node)!r} of constants cannot be computed: {error}"
            ) from error

    def _size(self, name: str) -> int:
        value = self.constant(name)
        return 0 if value is None else value.nbytes

    def is_constant(self, name: str) -> bool:
        """Whether a value is the same for all inputs of the graph, but for its shape."""
        return not self._ancestors(name)[1]

    def is_zero(self, name: str) -> bool:
        """Whether a value that `is_constant` is 0, as far as its constants say."""
        zeros: dict[str, bool] = {}
        for node in self._ancestors(name)[0]:
            parts = node.input if node.op_type == "Concat" else node.input[:1]
            if node.op_type == "ConstantOfShape":
                filled = (a.t for a in node.attribute if a.name == "value")
                made = not any(np.any(numpy_helper.to_array(t)) for t in filled)
            else:
                known = (zeros.get(n, self._is_zero_constant(n)) for n in parts)
                made = node.op_type in _KEEPING_ZEROS and all(known)
            if output_of(node) in self._constants:
                made = self._is_zero_constant(output_of(node))
            zeros.update(dict.fromkeys(node.output, made))
        return zeros.get(name, self._is_zero_constant(name))

    def _is_zero_constant(self, name: str) -> bool:
        value = self.constant(name)
        return value is not None and value.dtype.kind in "fiub" and not np.any(value)

    def _ancestors(self, name: str) -> tuple[list[NodeProto], set[str]]:
        """The nodes that make a value, in order, and the other values whose elements they read."""
        wanted, found = {name}, []
        for node in reversed(self.nodes):
            if wanted.isdisjoint(node.output) or is_recurrent(node) or _has_body(node):
                continue
            found.append(node)
            wanted.difference_update(node.output)
            if node.op_type not in ("Shape", "Size"):
                wanted.update(filter(None, node.input))
        return found[::-1], {n for n in wanted if n not in self._constants}

    # ---- where y goes ----

    def _trace(self, node: NodeProto) -> None:
        """Follows a y through a node that moves its axes."""
        path = self.paths.get(input_of(node, 0))
        if path is None and not is_recurrent(node):
            return
        attributes = attributes_of(node)
        made: Path | None = None
        if path is None or is_recurrent(node):
            directions = 2 if attributes.get("direction") == b"bidirectional" else 1
            made = Path(output_of(node), directions, "btdh" if attributes.get("layout") else "tdbh")
        elif node.op_type == "Identity" or (node.op_type == "Dropout" and len(node.input) < 3):
            made = path
        elif node.op_type == "Transpose":
            order = attributes.get("perm", range(len(path.axes))[::-1])
            if sorted(order) == list(range(len(path.axes))):
                made = path._replace(axes="".join(path.axes[i] for i in order))
        elif node.op_type == "Squeeze":
            made = _squeezed(path, attributes.get("axes", self._integers(node, 1)))
        elif node.op_type == "Slice":
            names = enumerate(("starts", "ends", "axes"), 1)
            made = _sliced(path, *(attributes.get(n, self._integers(node, i)) for i, n in names))
        elif node.op_type == "Concat":
            made = _joined([self.paths.get(n) for n in node.input], attributes.get("axis"))
        elif node.op_type == "Reshape":
            made = _reshaped(path, self._integers(node, 1))
        if made is not None:
            self.paths[output_of(node)] = made

    def _integers(self, node: NodeProto, index: int) -> list[int] | None:
        value = self.constant(input_of(node, index))
        if value is None or value.dtype.kind != "i":
            return None
        result: list[int] = value.ravel().tolist()
        return result


def _has_body(node: NodeProto) -> bool:
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def _merged(path: Path) -> Path:
    """Without directions, h is all of f."""
    if path.directions == 1 and "d" not in path.axes:
        return path._replace(axes=path.axes.replace("h", "f"))
    return path


def _squeezed(path: Path, axes: list[int] | None) -> Path | None:
    rank = len(path.axes)
    if axes is None or not all(-rank <= axis < rank for axis in axes):
        return None
    gone = {path.axes[axis] for axis in axes}
    if not gone <= set("tbd"):
        return None
    return _merged(path._replace(axes="".join(axis for axis in path.axes if axis not in gone)))


def _sliced(
    path: Path, begin: list[int] | None, end: list[int] | None, axes: list[int] | None
) -> Path | None:
    """One of two directions."""
    at = path.axes.find("d")
    if at < 0 or path.directions == 1 or axes not in ([at], [at - len(path.axes)]):
        return None
    if begin == [0] and end == [1]:
        return path._replace(half=0)
    # up to the end, which many write as the largest integer
    return path._replace(half=1) if begin == [1] and end is not None and end[0] > 1 else None


def _joined(paths: list[Path | None], axis: int | None) -> Path | None:
    """Both directions of each step, one after the other."""
    if len(paths) != 2:
        return None
    first, second = paths
    if first is None or second is None:
        return None
    if first._replace(half=1) != second or first.half != 0 or axis not in (2, -1):
        return None
    if first.axes not in ("tbh", "bth"):
        return None
    return Path(first.y, first.directions, first.axes[:2] + "f")


def _reshaped(path: Path, shape: list[int] | None) -> Path | None:
    """Directions and units merged, then steps and rows.

    A shape that is computed is taken for the one that what follows needs: x of a node has 3 axes,
    and a product's sum goes over f.
    """
    if path.is_whole:
        return path._replace(axes="_f") if shape is None or len(shape) == 2 else None
    if path.half is not None or (shape is not None and len(shape) != 3):
        return None
    merged = {"tbdh": "tbf", "btdh": "btf"}
    if path.directions == 1:
        merged |= {"tdbh": "tbf"}
    return path._replace(axes=merged[path.axes]) if path.axes in merged else None

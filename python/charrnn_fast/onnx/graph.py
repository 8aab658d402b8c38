"""Building a graph of ONNX operators."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]


class Graph:
    """Nodes and constants of a graph, or of the body of a loop in it."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.nodes: list[NodeProto] = []
        self._constants: dict[str, Array] = {}
        self._used: dict[str, int] = {}

    def body(self) -> Graph:
        """An empty body of a loop of this graph, whose constants it sees."""
        body = copy.copy(self)
        body.nodes = []
        return body

    def initializers(self) -> list[TensorProto]:
        return [numpy_helper.from_array(value, name) for name, value in self._constants.items()]

    def constant(self, name: str, value: Array) -> str:
        """A constant of this name, which may be asked for again."""
        self._constants.setdefault(name, np.asarray(value, order="C"))
        return name

    def number(self, name: str, value: float) -> str:
        """A scalar of the network's dtype."""
        return self.constant(name, np.array(value, self.dtype))

    def integers(self, *values: int) -> str:
        """A vector of integers, as axes and shapes are given."""
        return self.constant("_".join(["integers", *map(str, values)]), np.array(values, np.int64))

    def add(
        self, operator: str, *inputs: str, outputs: int | Sequence[str] = 1, **attributes: Any
    ) -> Any:
        """Adds a node. Returns the name of its output, or a list where there are several.

        outputs: how many, or their names. An input of "" is left out.
        """
        number = self._used[operator] = self._used.get(operator, -1) + 1
        name = f"{operator}_{number}"
        if isinstance(outputs, int):
            outputs = [f"{name}_{i}" for i in range(outputs)] if outputs > 1 else [f"{name}_out"]
        self.nodes.append(helper.make_node(operator, inputs, outputs, name, **attributes))
        return outputs[0] if len(outputs) == 1 else list(outputs)

    def split(self, value: str, parts: int, axis: int) -> list[str]:
        """Equal parts of a value."""
        if parts == 1:
            return [value]
        result: list[str] = self.add("Split", value, outputs=parts, axis=axis)
        return result

    def concat(self, values: Sequence[str], axis: int) -> str:
        if len(values) == 1:
            return values[0]
        result: str = self.add("Concat", *values, axis=axis)
        return result

"""The nodes and constants of an ONNX file while it is written: constants once each, names short and unique."""

from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Constants:
    """The initializers of a file: equal arrays are one."""

    def __init__(self) -> None:
        self.tensors: list[TensorProto] = []
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, array: np.ndarray | np.generic) -> str:
        """The name of the constant that holds the array."""
        array = np.asarray(array, order="C")
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._names:
            self._names[key] = f"C{len(self._names)}"
            self.tensors.append(numpy_helper.from_array(array.copy(), self._names[key]))
        return self._names[key]

    def placed(self, lists: Sequence[list[onnx.NodeProto]]) -> tuple[list[TensorProto], list[list[TensorProto]]]:
        """Those that no list of nodes has to itself, and each list's own.

        In onnxruntime, a subgraph takes time at every call for each constant that it reads from outside, so its own lie
        within it.
        """
        read = [{name for node in nodes for name in node.input} for nodes in lists]
        readers = Counter(name for names in read for name in names)
        own = [[t for t in self.tensors if t.name in names and readers[t.name] == 1] for names in read]
        alone = {tensor.name for tensors in own for tensor in tensors}
        return [tensor for tensor in self.tensors if tensor.name not in alone], own

    @property
    def bytes(self) -> int:
        """What the arrays take."""
        return sum(len(key[2]) for key in self._names)


class Nodes:
    """A list of nodes, one after the other; each gives the name of its one output."""

    def __init__(self, constants: Constants, prefix: str):
        self.constants, self.prefix = constants, prefix
        self.nodes: list[onnx.NodeProto] = []
        self._numbers = count()

    def name(self) -> str:
        """One that is not taken."""
        return f"{self.prefix}{next(self._numbers)}"

    def __call__(self, operator: str, *inputs: str | np.ndarray | np.generic, name: str = "", **attributes: Any) -> str:
        """Append a node; arrays become constants."""
        output = self.name()
        named = [x if isinstance(x, str) else self.constants.add(x) for x in inputs]
        self.nodes.append(helper.make_node(operator, named, [output], name=name, **attributes))
        return output

    def copy(self, node: onnx.NodeProto, inputs: list[str], outputs: list[str]) -> None:
        """Append another graph's node, with its attributes alone."""
        plain = helper.make_node(node.op_type, inputs, outputs, domain=node.domain)
        plain.attribute.extend(node.attribute)
        for attribute in plain.attribute:
            attribute.doc_string = ""
        self.nodes.append(plain)


def int32(values: Any) -> np.ndarray:
    """Numbers as an int32 array."""
    return np.asarray(values, dtype=np.int32)


def int64(*values: int) -> np.ndarray:
    """Numbers as a list of int64."""
    return np.array(values, dtype=np.int64)

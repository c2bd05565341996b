"""An ONNX graph while it grows: names are made here, constants become float32."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from etils import epy

with epy.lazy_imports():
    import onnx

BATCH = "batch"  # the symbolic first dimension of everything that goes in or out
MICROSOFT = "com.microsoft"  # the domain of operators that only ONNX Runtime has


class Signal(NamedTuple):
    """A tensor on its way through the layers."""

    name: str
    shape: tuple[int, ...]  # without the batch; images end in channels
    channels_first: bool = False  # ONNX convolves [batch, channels, height, width]
    dtype: str = "float32"


class Graph:
    """What a graph is made of, while it grows."""

    runtime = False  # whether it is for ONNX Runtime alone

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.carries: list[Any] = []  # outputs too, but the last ones

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """The result of one operator."""
        return self.split(op, 1, *inputs, **attributes)[0]

    def split(self, op: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """The results of an operator that has several."""
        names = [f"{op.lower()}_{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(onnx.helper.make_node(op, inputs, names, **attributes))
        return names

    def cast(self, name: str, dtype: str) -> str:
        """The same numbers in another type."""
        return self.add("Cast", name, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def constant(self, array: Any) -> str:
        """An array in the file; floats become float32."""
        array = np.asarray(array)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(self, array: np.ndarray) -> str:
        """An array of a layer, as it is."""
        return self.constant(array)

    def input(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        """Something the caller gives, ``[batch, *shape]``."""
        self.inputs.append(declared(name, dtype, (BATCH, *shape)))
        return name

    def output(self, name: str, source: str, shape: tuple[int, ...] = (), dtype: str = "float32") -> None:
        """Something the caller gets, ``[batch, *shape]``."""
        self.nodes.append(onnx.helper.make_node("Identity", [source], [name]))
        made = declared(name, dtype, (BATCH, *shape))
        (self.carries if name.startswith("next_carry") else self.outputs).append(made)

    def model(self, name: str, opset: int, ir_version: int) -> onnx.ModelProto:
        """All of it."""
        opsets = [onnx.helper.make_opsetid("", opset)]
        opsets += [onnx.helper.make_opsetid(MICROSOFT, 1)] if self.runtime else []
        made = onnx.helper.make_graph(self.nodes, name, self.inputs, self.outputs + self.carries, self.constants)
        return onnx.helper.make_model(made, producer_name="shoal", ir_version=ir_version, opset_imports=opsets)


def declared(name: str, dtype: str, shape: tuple[int | str, ...]) -> Any:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return onnx.helper.make_tensor_value_info(name, kind, shape)

"""Write small quantized ONNX graphs (QuantizeLinear / DequantizeLinear) for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bitsmith.numbers.encoding import Encoding

_TYPES = {
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.float32): TensorProto.FLOAT,
}


class Graph:
    """An ONNX graph under construction; every method returns the name of a value."""

    def __init__(self, opset: int = 21) -> None:
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def _name(self, stem: str) -> str:
        return f"{stem}_{len(self._nodes) + len(self._constants) + len(self.inputs)}"

    def input(self, shape: Any, dtype: Any = np.uint8) -> str:
        """A graph input; codes by default."""
        name = self._name("in")
        self.inputs.append(helper.make_tensor_value_info(name, _TYPES[np.dtype(dtype)], shape))
        return name

    def constant(self, value: Any, dtype: Any = None) -> str:
        """An initializer."""
        name = self._name("const")
        self._constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        name = self._name(kind.lower())
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def dq(self, codes: str, encoding: Encoding) -> str:
        """Codes to real values."""
        return self.op("DequantizeLinear", codes, *self._parameters(encoding))

    def q(self, x: str, encoding: Encoding) -> str:
        """Real values to codes."""
        return self.op("QuantizeLinear", x, *self._parameters(encoding))

    def _parameters(self, e: Encoding) -> tuple[str, str]:
        kind = np.int8 if e.format.signed else np.uint8
        return self.constant(e.scale, np.float32), self.constant(e.zero_point, kind)

    def dq_weight(self, codes: np.ndarray, scale: np.ndarray, axis: int = 0) -> str:
        """Constant codes (int8, or int32 for a bias) with symmetric scales along ``axis``."""
        zero = np.zeros(np.shape(scale), codes.dtype)
        inputs = (self.constant(codes), self.constant(scale, np.float32), self.constant(zero))
        attributes = {"axis": axis} if np.ndim(scale) else {}
        return self.op("DequantizeLinear", *inputs, **attributes)

    def output(self, name: str, dtype: Any = np.uint8) -> None:
        """Mark a value as a graph output."""
        kind = _TYPES[np.dtype(dtype)]
        self._outputs.append(helper.make_tensor_value_info(name, kind, None))

    def model(self) -> bytes:
        """The serialized model (ONNX Runtime checks it when it loads it)."""
        graph = helper.make_graph(self._nodes, "test", self.inputs, self._outputs, self._constants)
        opsets = [helper.make_opsetid("", self._opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return model.SerializeToString()

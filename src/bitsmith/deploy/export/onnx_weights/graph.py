"""An ONNX graph under construction: nodes, and initializers by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bitsmith.deploy.export.onnx_weights.storage import Part
from bitsmith.errors import ExportError

__all__ = ["GraphBuilder"]


@final
class GraphBuilder:
    """Collects nodes in order; what was emitted once is found again under its name.

    Args:
        ranks: tensor → number of its axes.
    """

    def __init__(self, ranks: Mapping[str, int]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._ranks = ranks
        self._made: dict[str, tuple[str, ...]] = {}

    def rank(self, tensor: str) -> int:
        """Return the number of axes of a tensor.

        Raises:
            ExportError: the exporter did not find it out.
        """
        if tensor not in self._ranks:
            raise ExportError(f"the input {tensor!r} of a packed layer has no known rank")
        return self._ranks[tensor]

    def constant(self, value: Any, dtype: Any) -> str:
        """Return the name of an initializer with this small value; equal ones are one."""
        array = np.asarray(value, dtype)
        text = "x".join(map(str, array.shape)) or "scalar"
        name = f"const.{array.dtype}.{text}.{array.tobytes().hex()}"
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def hold(self, name: str, part: Part | np.ndarray[Any, Any]) -> str:
        """Return ``name``, an initializer with this content."""
        if name not in self.initializers:
            self.initializers[name] = (
                part.proto(name) if isinstance(part, Part) else numpy_helper.from_array(part, name)
            )
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Emit a node, unless this very node is there already; returns the output."""
        if output not in self._made:
            self._made[output] = (kind, *inputs)
            domain = "com.microsoft" if kind == "MatMulNBits" else ""
            node = helper.make_node(
                kind, list(inputs), [output], name=f"{kind}:{output}", domain=domain, **attributes
            )
            self.nodes.append(node)
        assert self._made[output] == (kind, *inputs), f"two nodes make {output}"
        return output

    def reshape(self, source: str, output: str, shape: Sequence[int]) -> str:
        """Emit Reshape; −1 is what is left, 0 the axis as it is."""
        return self.add("Reshape", [source, self.constant(shape, np.int64)], output)

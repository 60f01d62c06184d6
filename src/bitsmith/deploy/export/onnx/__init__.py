"""ONNX in QDQ form: integers between QuantizeLinear and DequantizeLinear, opset 21.

Written directly, operator by operator (see ``docs/decisions``): every integer kernel appears as
DequantizeLinear → operator → QuantizeLinear, which runtimes fuse; moves act on the uint8 codes
themselves; float islands stay float. Fused clamps have no operator: the quantizer's range does
their work. Activations of fewer than 8 bits are uint8 codes behind a Clip.

``weights="packed"`` holds weights of 4 bits and fewer in ONNX types of 4 and 2 bits (2 bits are
of opset 25), and codes from a table as indices: the file is smaller and loads into the same
integer kernels, so nothing runs faster. ``"int8"``, the default, holds a byte a weight.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from bitsmith.deploy.export import Exporter, replace_atomically
from bitsmith.deploy.export.onnx.model_writer import write_graph, write_model
from bitsmith.deploy.export.onnx.operators import untranslatable
from bitsmith.deploy.export.onnx.weights import WEIGHTS, read_codes, untyped
from bitsmith.errors import ExportError
from bitsmith.model.graph.ir import Graph
from bitsmith.model.place import Outcome
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.simulate import Program
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.version import __version__

__all__ = ["Onnx", "write_float"]


@final
class Onnx(Exporter, name="onnx"):
    """Standard ONNX, QDQ form."""

    suffix: ClassVar[str] = ".onnx"
    takes: ClassVar[tuple[str, ...]] = ("weights",)

    def check(self, model: QuantizedModel, **options: Any) -> list[str]:
        problems, form = untranslatable(model.program.graph), options.get("weights", "int8")
        if form not in WEIGHTS:
            problems.append(f"weights={form!r}: the forms of weights are {', '.join(WEIGHTS)}")
        return problems + (untyped(model.program.layers) if form == "packed" else [])

    def write(
        self, model: QuantizedModel, path: Path, metadata: dict[str, str], **options: Any
    ) -> None:
        proto = write_model(model, metadata, **options)
        try:
            onnx.checker.check_model(proto, full_check=True)
        except Exception as error:
            raise ExportError(f"the ONNX checker refuses the model: {error}") from error
        replace_atomically(path, proto.SerializeToString())

    def read(self, path: Path) -> dict[str, QTensor]:
        try:
            proto = onnx.load(str(path))
        except Exception as error:
            raise ExportError(f"{path} is not a readable ONNX file: {error}") from error
        values = {i.name: i for i in proto.graph.initializer}
        described = {p.key: p.value for p in proto.metadata_props}
        weights = json.loads(described.get("bitsmith.weights", '{"layers": {}}'))
        return {
            name: _qtensor(name, values, weights["schemes"][index])
            for name, index in weights["layers"].items()
        }


def _qtensor(name: str, values: dict[str, onnx.TensorProto], scheme: dict[str, Any]) -> QTensor:
    try:
        codes = read_codes(values, name)
        scale = torch.from_numpy(np.array(numpy_helper.to_array(values[f"{name}.weight_scale"])))
    except KeyError as error:
        raise ExportError(f"the file has no initializer {error}; was it changed?") from None
    parsed = Scheme.from_json(scheme)
    scale = scale.reshape(parsed.granularity.scale_shape(codes.shape))
    return QTensor(codes, scale, torch.zeros_like(scale, dtype=torch.int32), None, parsed)


def write_float(graph: Graph, path: Path) -> None:
    """Write the float32 network as ONNX: the reference for accuracy and speed in a runtime.

    Raises:
        ExportError: an operator has no ONNX form, or the place cannot be written.
    """
    if problems := untranslatable(graph):
        raise ExportError("ONNX cannot represent:\n  " + "\n  ".join(problems))
    outcomes = {
        n.name: Outcome("constant" if n.op == "constant" else "float", "float reference")
        for n in graph
    }
    proto = write_graph(Program(graph, outcomes, {}, {}), {"bitsmith.version": __version__})
    replace_atomically(path, proto.SerializeToString())

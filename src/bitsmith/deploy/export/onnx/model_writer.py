"""A quantized model as an ONNX ModelProto."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper

from bitsmith.deploy.export.onnx.foreign import OPSET, element_type, emit_foreign
from bitsmith.deploy.export.onnx.graph_writer import ELEMENT_TYPES, GraphWriter, code_name
from bitsmith.deploy.export.onnx.operators import EMITTERS, Emission
from bitsmith.deploy.export.onnx.weights import WeightForm, needed_opset, write_weight
from bitsmith.model.graph.ir import GraphInput, Node
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.simulate import Program, code_bounds, pad_code
from bitsmith.version import __version__

__all__ = ["IR_VERSION", "OPSET", "write_graph", "write_model"]

IR_VERSION = 10
IR_VERSION_OF_TWO_BITS = 13


def write_model(
    model: QuantizedModel, metadata: dict[str, str], weights: WeightForm = "int8"
) -> onnx.ModelProto:
    """Return ``model`` in QDQ form, with its recipe and provenance in the metadata."""
    described = {
        "bitsmith.version": __version__,
        "bitsmith.recipe": json.dumps(model.recipe.to_json()),
        "bitsmith.target": model.target,
        "bitsmith.machine": model.machine,
        "bitsmith.provenance": json.dumps(model.file_provenance()),
        "bitsmith.weights": json.dumps(_weight_schemes(model.program)),
        **metadata,
    }
    return write_graph(model.program, described, weights)


def _weight_schemes(program: Program) -> dict[str, Any]:
    """``{"schemes": [scheme, …], "layers": {layer: index}}``: schemes repeat, layers do not."""
    schemes: list[dict[str, Any]] = []
    layers: dict[str, int] = {}
    for name, layer in program.layers.items():
        scheme = layer.weight.scheme.to_json()
        if scheme not in schemes:
            schemes.append(scheme)
        layers[name] = schemes.index(scheme)
    return {"schemes": schemes, "layers": layers}


def write_graph(
    program: Program, metadata: dict[str, str], weights: WeightForm = "int8"
) -> onnx.ModelProto:
    """Return ``program`` as a model whose inputs and outputs are float, batch dynamic."""
    writer = GraphWriter(program)
    for declared in program.graph.inputs:
        writer.put_real(declared.name)
    for node in program.graph:
        _write(writer, node, weights)
    outputs = [_output(writer, name) for name in program.graph.outputs]
    inputs = [
        helper.make_tensor_value_info(i.name, ELEMENT_TYPES[i.dtype], _dynamic(i))
        for i in program.graph.inputs
    ]
    graph = helper.make_graph(
        writer.nodes, "bitsmith", inputs, outputs, list(writer.initializers.values())
    )
    opset = needed_opset(writer.initializers, OPSET)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=IR_VERSION if opset == OPSET else IR_VERSION_OF_TWO_BITS,
        producer_name="bitsmith",
        producer_version=__version__,
    )
    helper.set_model_props(model, metadata)
    return model


def _dynamic(declared: GraphInput) -> list[int | str]:
    """The batch has one name in all inputs; other free axes have one of their own."""
    dims: list[int | str] = []
    for axis, size in enumerate(declared.shape):
        free = f"{declared.name}_{axis}" if axis else "batch"
        dims.append(free if size == -1 else size)
    return dims


def _output(writer: GraphWriter, name: str) -> onnx.ValueInfoProto:
    """A graph output, real, under the tensor's own name (an input handed through gets another)."""
    output = name
    if writer.program.graph.node(name) is None:
        output = writer.add("Identity", [name], f"{name}.output")
    elif not writer.is_real(name):
        writer.dequantize(writer.codes(name), name, name)
    shape = writer.program.graph.shape(name)
    # A later −1 may be a multiple of the batch; only the first axis is named.
    dims = [("batch" if i == 0 else None) if s == -1 else s for i, s in enumerate(shape)]
    return helper.make_tensor_value_info(output, element_type(writer.program.graph, name), dims)


def _write(writer: GraphWriter, node: Node, weights: WeightForm) -> None:
    outcome = writer.program.outcomes[node.name]
    if outcome.kind == "constant":
        _write_constant(writer, node)
    elif node.op == "requantize":
        writer.quantize(writer.real(node.inputs[0]), node.name)
        writer.put_codes(node.name)
    elif outcome.kind == "codes":
        _write_move(writer, node)
        writer.put_codes(node.name)
    elif outcome.kind == "integer":
        _write_integer(writer, node, _integer_params(writer, node, weights), outcome.float_output)
    elif node.op == "aten":
        # Its translation may hold a Conv or a Gemm: see real_undetected.
        emit_foreign(writer, node, [writer.real_undetected(i) for i in node.inputs], node.name)
        writer.put_real(node.name)
    else:
        params = _float_params(writer, node)
        # ONNX Runtime quantizes the weight of a float layer that sits between codes, per tensor.
        read = writer.real_undetected if "weight" in params else writer.real
        _write_clamped(writer, node, [read(i) for i in node.inputs], params)


def _float_params(writer: GraphWriter, node: Node) -> dict[str, str]:
    """Write what a float operator owns; returns the names by role. A table may be of codes."""
    layer = writer.program.layers.get(node.name)
    if layer is not None:
        codes = writer.constant(f"{node.name}.weight_codes", layer.weight.codes)
        rows = layer.weight.scale.reshape(-1, 1).expand(len(layer.weight.codes), 1)
        return {"weight": codes, "scale": writer.constant(f"{node.name}.weight_scale", rows)}
    return {
        role: writer.constant(name, writer.program.graph.params[name])
        for role, name in node.params.items()
    }


def _write_constant(writer: GraphWriter, node: Node) -> None:
    value = writer.program.graph.params[node.params["value"]]
    if node.name in writer.program.encodings:
        codes = writer.program.encodings[node.name].quantize(value)
        writer.constant(code_name(node.name), codes)
        writer.put_codes(node.name)
    readers = writer.program.graph.consumers(node.name)
    if any(
        writer.program.outcomes[r.name].kind == "float" or r.op == "requantize" for r in readers
    ):
        writer.constant(node.name, value)
        writer.put_real(node.name)


def _write_real(
    writer: GraphWriter, node: Node, inputs: list[str], params: dict[str, str], output: str
) -> None:
    """Write ``node`` on real values into ``output``, without its fused clamp."""
    fill = np.float32(node.attrs.get("value", 0.0))
    bounds = (node.attrs["low"], node.attrs["high"]) if node.op == "clamp" else (None, None)
    if node.op == "linear" and len(node.shape) != 2:
        rows = _reshape(writer, inputs[0], f"{output}.rows", _as_rows(writer, node))
        flat = node.with_(shape=(-1, node.shape[-1]))
        EMITTERS["linear"](writer, Emission(flat, [rows], params, f"{output}.flat"))
        _reshape_rows(writer, node, f"{output}.flat", output)
    else:
        EMITTERS[node.op](writer, Emission(node, inputs, params, output, fill, _float32(bounds)))


def _write_clamped(
    writer: GraphWriter, node: Node, inputs: list[str], params: dict[str, str]
) -> None:
    """Write ``node`` in float under its own name, with its fused clamp as a Relu or Clip."""
    activation = node.attrs.get("activation")
    if activation is None:
        _write_real(writer, node, inputs, params, node.name)
    else:
        raw = f"{node.name}.unclamped"
        _write_real(writer, node, inputs, params, raw)
        if list(activation) == [0.0, None]:  # Relu, which runtimes fuse in float too
            EMITTERS["relu"](writer, Emission(node, [raw], {}, node.name))
        else:
            clip = Emission(node, [raw], {}, node.name, bounds=_float32(activation))
            EMITTERS["clamp"](writer, clip)
    writer.put_real(node.name)


def _float32(bounds: Sequence[float | None]) -> tuple[Any, Any]:
    low, high = (None if b is None else np.float32(b) for b in bounds)
    return low, high


def _as_rows(writer: GraphWriter, node: Node) -> list[int]:
    return [-1, writer.program.graph.shape(node.inputs[0])[-1]]


def _reshape(writer: GraphWriter, source: str, output: str, shape: list[int]) -> str:
    target = writer.constant(f"{output}.shape", shape, np.int64)
    return writer.add("Reshape", [source, target], output)


def _reshape_rows(writer: GraphWriter, node: Node, source: str, output: str) -> str:
    """Give the rows of a linear layer its shape; several free axes are those of its input."""
    if node.shape.count(-1) < 2:
        return _reshape(writer, source, output, list(node.shape))
    width = writer.constant(f"{output}.width", node.shape[-1:], np.int64)
    before = writer.free_axes(node.inputs[0], len(node.shape) - 1)
    shape = writer.add("Concat", [before, width], f"{output}.shape", axis=0)
    return writer.add("Reshape", [source, shape], output)


def _write_move(writer: GraphWriter, node: Node) -> None:
    """Write a move on the codes themselves."""
    encoding = writer.program.encodings[node.name]
    kind = np.int8 if encoding.format.signed else np.uint8
    bounds: tuple[Any, Any] = (None, None)
    fill = kind(0)
    if node.op in ("relu", "clamp"):
        low, high = code_bounds(node, encoding)
        bounds = (kind(low), kind(high))
    elif node.op == "pad":
        fill = kind(pad_code(node, encoding))
    source = writer.codes(node.inputs[0])
    EMITTERS[node.op](writer, Emission(node, [source], {}, code_name(node.name), fill, bounds))


def _write_integer(
    writer: GraphWriter, node: Node, params: dict[str, str], float_output: bool
) -> None:
    """DequantizeLinear → operator → QuantizeLinear, which the runtime fuses."""
    if node.op == "linear" and len(node.shape) != 2 and not float_output:
        _write_integer_rows(writer, node, params)
    else:
        inputs = [writer.rounded(name) for name in node.inputs]
        if float_output:
            _write_clamped(writer, node, inputs, params)
            return
        real = f"{node.name}.real"
        _write_real(writer, node, inputs, params, real)
        writer.quantize(real, node.name)
    writer.put_codes(node.name)


def _integer_params(writer: GraphWriter, node: Node, weights: WeightForm) -> dict[str, str]:
    """Write the weight and the bias of a layer; returns their names by role."""
    program = writer.program
    layer = program.layers.get(node.name)
    if layer is None:
        return {}
    params = {"weight": write_weight(writer, node.name, layer, weights)}
    if layer.bias is not None:
        x_scale = torch.tensor(program.encodings[node.inputs[0]].scale, dtype=torch.float32)
        scale = layer.weight.scale
        step = x_scale * (scale.reshape(-1) if scale.dim() else scale)
        params["bias"] = writer.bias(node.name, layer.bias, step)
    return params


def _write_integer_rows(writer: GraphWriter, node: Node, params: dict[str, str]) -> None:
    """A linear layer on more than two axes: reshape the codes, so that the middle fuses."""
    rows = _reshape(
        writer, writer.codes(node.inputs[0]), f"{node.name}.rows", _as_rows(writer, node)
    )
    real_rows, real, codes = (f"{node.name}.{part}" for part in ("rows_real", "flat", "flat_codes"))
    writer.dequantize(rows, real_rows, node.inputs[0])
    flat = node.with_(shape=(-1, node.shape[-1]))
    EMITTERS["linear"](writer, Emission(flat, [real_rows], params, real))
    writer.quantize(real, node.name, codes)
    _reshape_rows(writer, node, codes, code_name(node.name))

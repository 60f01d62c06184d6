"""Write an ONNX file of a module with packed weights, at once or not at all."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, nn
from torch.export import Dim

from bitsmith.deploy.export import first_cause, quiet_translation, replace_atomically
from bitsmith.deploy.export.onnx_weights.embedding import emit_embedding
from bitsmith.deploy.export.onnx_weights.graph import GraphBuilder
from bitsmith.deploy.export.onnx_weights.linear import emit_linear
from bitsmith.deploy.export.onnx_weights.places import DOMAIN, MARKER, with_markers
from bitsmith.deploy.export.onnx_weights.reader import METADATA
from bitsmith.deploy.export.onnx_weights.survey import Activations, Form, Survey, survey
from bitsmith.deploy.export.onnx_weights.weight import emit_parts, emit_weight
from bitsmith.errors import ExportError, InputError
from bitsmith.version import __version__

__all__ = ["check", "write"]

_OPSET, _OPSET_2_BITS = 21, 25
_IR, _IR_2_BITS = 10, 13


def check(
    model: nn.Module, *, form: Form = "matmulnbits", activations: Activations = "float"
) -> list[str]:
    """Return everything of the packed weights that a file cannot represent; empty: all of it can.

    What PyTorch's exporter cannot translate of the arithmetic around them is found by
    :func:`write`. Arguments as there.
    """
    found = list(survey(model, form, activations).problems)
    if importlib.util.find_spec("onnxscript") is None:
        found.append("onnxscript is not installed: pip install 'bitsmith[torch-onnx]'")
    return found


def write(
    model: nn.Module,
    path: str | Path,
    example: Sequence[Tensor] | Tensor,
    *,
    form: Form = "matmulnbits",
    activations: Activations = "float",
    dynamic_shapes: Any = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write ``model`` to ``path``; returns the path.

    Args:
        model: a module with packed weights, in evaluation mode.
        path: of the file.
        example: the positional inputs, with sizes of 2 or more on axes that vary.
        form: ``matmulnbits`` or ``dequantize``.
        activations: ``float``: the runtime multiplies float inputs by the dequantized weight.
            ``int8``: it may quantize the inputs of linear layers to 8 bits by itself, block by
            block; several times faster, and off by 0.3 to 1.4 percent of the largest output.
            Layers that quantize their inputs token by token are exact in both.
        dynamic_shapes: as ``torch.export.export`` takes them; None: every axis varies that the
            model lets vary (PyTorch fixes the length of sequences of recurrent layers).
        metadata: more to write into the file.

    Raises:
        ExportError: the format cannot represent something, PyTorch's exporter cannot translate
            the model, or the place cannot be written.
        InputError: the example has something else than tensors.
    """
    path, inputs = Path(path), (example,) if isinstance(example, Tensor) else tuple(example)
    if strangers := sorted({type(v).__name__ for v in inputs if not isinstance(v, Tensor)}):
        raise InputError(f"the example has {', '.join(strangers)}; give a tensor for every input")
    if problems := check(model, form=form, activations=activations):
        lines = "\n  ".join(problems)
        raise ExportError(f"ONNX in form {form!r} cannot represent:\n  {lines}")
    looked = survey(model, form, activations)
    two = any(s.bits == 2 and not s.packs for s in looked.storages.values())
    proto = _translated(model, inputs, dynamic_shapes, _OPSET_2_BITS if two else _OPSET)
    _replace_markers(proto, looked, activations)
    _describe(proto, looked, form, activations, metadata or {}, _IR_2_BITS if two else _IR)
    try:
        onnx.checker.check_model(proto)
        content = proto.SerializeToString()
    except Exception as error:
        raise ExportError(f"the ONNX checker refuses the model: {error}") from error
    replace_atomically(path, content)
    return path


def _translated(
    model: nn.Module, inputs: tuple[Tensor, ...], dynamic_shapes: Any, opset: int
) -> onnx.ModelProto:
    if dynamic_shapes is None:
        dynamic_shapes = tuple(dict.fromkeys(range(x.dim()), Dim.AUTO) for x in inputs)
    try:
        with quiet_translation(), torch.no_grad():
            traced = torch.export.export(
                with_markers(model), inputs, dynamic_shapes=dynamic_shapes, strict=False
            )
            program: Any = torch.onnx.export(
                traced, inputs, dynamo=True, opset_version=opset, verbose=False
            )
    except Exception as error:  # the exporter raises many types
        raise ExportError(
            f"PyTorch's ONNX exporter cannot translate {type(model).__name__}: {first_cause(error)}"
        ) from error
    proto: onnx.ModelProto = program.model_proto
    nested = any(a.type == onnx.AttributeProto.GRAPH for n in proto.graph.node for a in n.attribute)
    if nested or proto.functions:
        raise ExportError(
            f"{type(model).__name__} has control flow that depends on its inputs; a layer inside "
            "of it has no form here"
        )
    for value in (*proto.graph.input, *proto.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param.isdigit():  # an axis that the model does not let vary
                axis.dim_value = int(axis.dim_param)
    return proto


def _replace_markers(proto: onnx.ModelProto, looked: Survey, activations: Activations) -> None:
    graph = GraphBuilder(_ranks(proto.graph))
    for node in proto.graph.node:
        if (node.domain, node.op_type) != (DOMAIN, MARKER):
            graph.nodes.append(node)
            continue
        number = next(a.i for a in node.attribute if a.name == "number")
        place, name = looked.places[number], looked.names[number]
        storage, (output,) = looked.storages[name], node.output
        emit_parts(graph, name, storage, place)
        if place.use == "linear":
            emit_linear(graph, node.input[0], output, name, storage, place, activations)
        elif place.use == "embedding":
            width = place.packed.shape[1]
            emit_embedding(graph, node.input[0], output, name, storage, width)
        else:
            flat = emit_weight(graph, name, storage, place.packed.shape[1:].numel())
            graph.reshape(flat, output, place.packed.shape)
    nodes = list(graph.nodes)
    _name_outputs(proto.graph, nodes)
    for node in nodes:  # the exporter notes the source of each node, with paths of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.node[:], proto.graph.value_info[:], proto.graph.metadata_props[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(graph.initializers.values())
    for described in (*proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        del described.metadata_props[:]


def _name_outputs(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Call the outputs ``output``, or ``output_0`` …: a marker's name means nothing outside."""
    single = len(graph.output) == 1
    taken = {i.name for i in graph.input} | {v for n in nodes for v in (*n.input, *n.output)}
    produced = {v for n in nodes for v in n.output}
    names: dict[str, str] = {}
    for i, output in enumerate(graph.output):
        wanted = "output" if single else f"output_{i}"
        if output.name in produced and output.name not in names and wanted not in taken:
            names[output.name] = wanted
        output.name = names.get(output.name, output.name)
    for node in nodes:
        node.input[:] = [names.get(v, v) for v in node.input]
        node.output[:] = [names.get(v, v) for v in node.output]


def _ranks(graph: onnx.GraphProto) -> dict[str, int]:
    known = [*graph.input, *graph.value_info, *graph.output]
    return {
        v.name: len(v.type.tensor_type.shape.dim)
        for v in known
        if v.type.tensor_type.HasField("shape")
    }


def _describe(
    proto: onnx.ModelProto,
    looked: Survey,
    form: Form,
    activations: Activations,
    metadata: Mapping[str, str],
    ir_version: int,
) -> None:
    schemes: list[Any] = []
    weights = {}
    for name, storage in looked.storages.items():
        scheme = storage.scheme.to_json()
        if scheme not in schemes:
            schemes.append(scheme)
        weights[name] = storage.to_json() | {"scheme": schemes.index(scheme)}
    tied = {p.name: n for p, n in zip(looked.places, looked.names, strict=True) if p.name != n}
    described = {"schemes": schemes, "weights": weights, "tied": tied}
    domains = {n.domain for n in proto.graph.node}
    kept = [o for o in proto.opset_import if o.domain == ""]
    if "com.microsoft" in domains:
        kept.append(helper.make_opsetid("com.microsoft", 1))
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    proto.ir_version = ir_version
    proto.producer_name, proto.producer_version = "bitsmith", __version__
    proto.graph.name = "bitsmith"
    own = {
        "bitsmith.version": __version__,
        "bitsmith.form": form,
        "bitsmith.activations": activations,
        METADATA: json.dumps(described),
    }
    helper.set_model_props(proto, {**metadata, **own})

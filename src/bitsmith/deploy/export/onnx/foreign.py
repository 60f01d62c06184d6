"""ATen operators without an own ONNX form: translated one call at a time by PyTorch's exporter.

A call that the vocabulary does not know is a float island. ``torch.onnx.export(dynamo=True)``
translates the call alone, with the tensors it gets in a run on random inputs as the example, and
the resulting nodes are put in its place under prefixed names. It needs ``onnxscript``, which the
optional extra ``torch-onnx`` installs.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, final

import onnx
import torch
from onnx import AttributeProto, TensorProto
from torch import Tensor, nn
from torch.export import Dim

from bitsmith.deploy.export import first_cause, quiet_translation
from bitsmith.deploy.export.onnx.graph_writer import GraphWriter
from bitsmith.model.graph.ir import Graph, Node
from bitsmith.model.graph.operators import run_float, run_node

__all__ = ["OPSET", "element_type", "emit_foreign", "untranslatable_calls"]

OPSET = 21
#: Two samples would do to keep the batch dynamic; three do not look like a pair of anything.
_BATCH = 3
#: The same for other free axes; not the batch, so that the two are not taken for one.
_LENGTH = 5


@final
@dataclass(frozen=True)
class _Foreign:
    """What running and translating the foreign calls of a graph gave."""

    types: dict[str, torch.dtype]
    models: dict[str, onnx.ModelProto]
    problems: list[str]


class _Call(nn.Module):  # final in spirit: torch.export traces instances of it
    """One call of the graph as a module: its own tensors are buffers."""

    def __init__(self, node: Node, params: dict[str, Tensor]) -> None:
        super().__init__()
        self._node = node
        self._roles = list(params)
        for index, value in enumerate(params.values()):
            self.register_buffer(f"own{index}", value)

    def forward(self, *inputs: Tensor) -> Tensor:
        own = {role: getattr(self, f"own{i}") for i, role in enumerate(self._roles)}
        return run_node(self._node, own, inputs)


def untranslatable_calls(graph: Graph) -> list[str]:
    """Return a line for every ``aten`` node that cannot be written, with the reason."""
    return _foreign(graph).problems if _calls(graph) else []


def element_type(graph: Graph, tensor: str) -> int:
    """Return the ONNX element type of ``tensor`` when it is computed as real values."""
    floats = all(i.dtype == "float32" for i in graph.inputs)
    if floats and not any(n.op in ("aten", "arange", "full_like", "cast", "ne") for n in graph):
        return TensorProto.FLOAT
    name = str(_foreign(graph).types[tensor]).removeprefix("torch.")
    names = {"float32": "FLOAT", "float64": "DOUBLE", "float16": "FLOAT16"}
    return int(TensorProto.DataType.Value(names.get(name, name.upper())))


def emit_foreign(writer: GraphWriter, node: Node, inputs: list[str], output: str) -> None:
    """Emit the translated nodes of ``node`` between the named ``inputs`` and ``output``."""
    graph = _foreign(writer.program.graph).models[node.name].graph
    names = dict(zip((i.name for i in graph.input), inputs, strict=True))
    bound = set(names)
    (result,) = (o.name for o in graph.output)
    produced = {o for n in graph.node for o in n.output}
    for inner in [*(i.name for i in graph.initializer), *produced]:
        names[inner] = f"{node.name}/{inner}"
    if result in produced and result not in bound:
        names[result] = output
    for value in graph.initializer:
        copy = onnx.TensorProto()
        copy.CopyFrom(value)
        copy.name = names[value.name]
        writer.initializers[copy.name] = copy
    for inner_node in graph.node:
        written = onnx.NodeProto()
        written.CopyFrom(inner_node)
        written.name = f"{node.name}/{inner_node.name}"
        written.input[:] = [names.get(i, i) for i in inner_node.input]
        written.output[:] = [names.get(o, o) for o in inner_node.output]
        writer.nodes.append(written)
    if result not in produced:
        writer.add("Identity", [names[result]], output)


def _calls(graph: Graph) -> list[Node]:
    return [n for n in graph if n.op == "aten"]


def _foreign(graph: Graph) -> _Foreign:
    # A check comes before every write: translate once per graph (frozen, but it has a __dict__).
    cached: _Foreign | None = graph.__dict__.get("_foreign")
    if cached is None:
        cached = _translate_all(graph)
        graph.__dict__["_foreign"] = cached
    return cached


def _translate_all(graph: Graph) -> _Foreign:
    seen = _example_tensors(graph)
    types = {name: value.dtype for name, value in seen.items()}
    calls = _calls(graph)
    if calls and importlib.util.find_spec("onnxscript") is None:
        remedy = "needs onnxscript to be translated: pip install 'bitsmith[torch-onnx]'"
        return _Foreign(types, {}, [f"{_describe(node)} {remedy}" for node in calls])
    models: dict[str, onnx.ModelProto] = {}
    problems: list[str] = []
    for node in calls:
        try:
            models[node.name] = _translate(graph, node, [seen[i] for i in node.inputs])
        except Exception as error:  # the exporter raises many types
            problems.append(f"{_describe(node)} has no ONNX form: {first_cause(error)}")
    return _Foreign(types, models, problems)


def _describe(node: Node) -> str:
    return f"{node.name}: {node.attrs['target']} at {node.source}"


@torch.no_grad()
def _example_tensors(graph: Graph) -> dict[str, Tensor]:
    """Every tensor of a run on random inputs; the shapes and types are what matters."""
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for declared in graph.inputs:
        sizes = enumerate(declared.shape)
        shape = [s if s != -1 else _BATCH if axis == 0 else _LENGTH for axis, s in sizes]
        kind = getattr(torch, declared.dtype)
        value = torch.randn(shape, generator=generator)
        # 1 is a token of every vocabulary, and a mask that hides nothing.
        inputs.append(value.to(kind) if kind.is_floating_point else torch.ones(shape, dtype=kind))
    seen: dict[str, Tensor] = {}
    run_float(graph, inputs, lambda name, value: seen.update({name: value}))
    return seen


def _translate(graph: Graph, node: Node, inputs: list[Tensor]) -> onnx.ModelProto:
    params = {role: graph.params[name] for role, name in node.params.items()}
    dynamic = tuple(
        {axis: Dim.DYNAMIC for axis, size in enumerate(graph.shape(name)) if size == -1}
        for name in node.inputs
    )
    with quiet_translation():
        program: Any = torch.onnx.export(
            _Call(node, params).eval(),
            tuple(x.contiguous() for x in inputs),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes={"inputs": dynamic},
            verbose=False,
        )
    model: onnx.ModelProto = program.model_proto
    others = {n.domain for n in model.graph.node} - {""}
    nested = any(a.type == AttributeProto.GRAPH for n in model.graph.node for a in n.attribute)
    versions = {o.version for o in model.opset_import if not o.domain}
    if others or nested or model.functions or versions != {OPSET}:
        raise ValueError(
            f"its translation is not plain ONNX opset {OPSET}: domains {sorted(others) or 'none'}, "
            f"opsets {sorted(versions)}, control flow {nested}"
        )
    return model

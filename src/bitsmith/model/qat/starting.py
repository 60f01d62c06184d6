"""Where training starts: ranges, codes and biases of a quantized model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitsmith.model.graph.ir import Node
from bitsmith.model.qat.codes import Start, WeightCodes, choose
from bitsmith.model.qat.ranges import ActivationRange, RangeStart
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.simulate import Program
from bitsmith.model.targets import make_target

__all__ = ["real_bias", "roots", "starting_codes", "starting_range"]


def roots(program: Program) -> dict[str, str]:
    """Return, for every quantized tensor, the one whose encoding it shares."""
    found: dict[str, str] = {}
    for declared in program.graph.inputs:
        if declared.name in program.encodings:
            found[declared.name] = declared.name
    for node in program.graph:
        if node.name in program.encodings:
            moved = program.outcomes[node.name].kind == "codes" and node.op != "requantize"
            found[node.name] = found[node.inputs[0]] if moved else node.name
    return found


def starting_range(
    quantized: QuantizedModel, root: str, kind: type[ActivationRange]
) -> ActivationRange:
    """Return the range of a tensor before the first step; a runtime's own demands are kept."""
    program = quantized.program
    node, known = program.graph.node(root), program.encodings[root]
    activation = None if node is None else node.attrs.get("activation")
    target = make_target(quantized.target, quantized.machine)
    if node is not None and (node.op == "constant" or target.fixed_range(node) is not None):
        kind = ActivationRange.registry["fixed"]
    features = math.prod(max(size, 1) for size in program.graph.shape(root)[1:])
    limit = None if activation is None else activation[1]
    lowest = known.zero_point == known.format.code_min
    return kind(RangeStart(known, features, limit, lowest and _from_zero(program, node)))


def _from_zero(program: Program, node: Node | None) -> bool:
    """Whether what a node computes has passed a fused clamp at 0."""
    while node is not None and node.op == "requantize":
        node = program.graph.node(roots(program)[node.inputs[0]])
    return node is not None and node.attrs.get("activation") is not None


def starting_codes(
    quantized: QuantizedModel, node: Node, weight: Tensor, learn: str, learn_edges: bool
) -> WeightCodes:
    """Return the codes of a layer before the first step; arguments as of ``TrainableModel``."""
    layer = quantized.program.layers[node.name]
    target = make_target(quantized.target, quantized.machine)
    bits = quantized.program.encodings[node.inputs[0]].format.bits
    start = Start(weight, layer, target.entry_limit(node, weight, bits))
    kept = layer.weight.scheme.format.bits == 8 and layer.table is None and not learn_edges
    return choose("frozen" if kept else learn, start)


def real_bias(program: Program, node: Node) -> Tensor:
    """Return the bias of a rounded layer, corrections included, in real units: float32 ``[O]``."""
    layer = program.layers[node.name]
    assert layer.bias is not None
    x = torch.tensor(program.encodings[node.inputs[0]].scale, dtype=torch.float32)
    step = x * layer.weight.scale.reshape(-1)
    return (layer.bias.double() * step.double()).float()

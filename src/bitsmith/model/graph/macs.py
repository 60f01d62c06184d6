"""Multiply-accumulates of a node, per sample."""

from __future__ import annotations

import math

from bitsmith.model.graph.ir import Graph, Node

__all__ = ["macs", "macs_by_node"]


def macs(graph: Graph, node: Node) -> int:
    """Return the multiply-accumulates of ``node`` for one sample (a dynamic axis counts once).

    conv: |weight| / O · |output|; transposed conv: |weight| / I · |input|; linear: K · |output|;
    matmul: K · |output|; everything else: 0.
    """
    weight = graph.param(node, "weight")
    out = math.prod(abs(s) for s in node.shape)
    if node.op == "conv" and weight is not None:
        return weight[0].numel() * out
    if node.op == "conv_transpose" and weight is not None:
        return weight[0].numel() * math.prod(abs(s) for s in graph.shape(node.inputs[0]))
    if node.op == "linear" and weight is not None:
        return weight.shape[1] * out
    if node.op == "matmul":
        return abs(graph.shape(node.inputs[0])[-1]) * out
    return 0


def macs_by_node(graph: Graph) -> dict[str, int]:
    """Return node name → multiply-accumulates, for all nodes."""
    return {n.name: macs(graph, n) for n in graph}

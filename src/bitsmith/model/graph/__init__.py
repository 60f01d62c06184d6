"""A model as a graph: capture, meaning of the operators, exact simplifications."""

from bitsmith.model.graph.capture import capture, from_exported
from bitsmith.model.graph.fold import simplify
from bitsmith.model.graph.ir import Graph, GraphInput, Node
from bitsmith.model.graph.operators import run_float, run_node

__all__ = [
    "Graph",
    "GraphInput",
    "Node",
    "capture",
    "from_exported",
    "run_float",
    "run_node",
    "simplify",
]

"""A graph in pieces that are tuned one after another: blocks of a residual network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from bitsmith.model.graph.ir import Graph, Node

__all__ = ["Segment", "segments"]


@final
@dataclass(frozen=True)
class Segment:
    """Nodes between two places where a single tensor carries everything.

    Attributes:
        nodes: in order; constants that they read are among them, also of earlier segments.
        input: the one tensor that comes in.
        output: the one tensor that goes out.
    """

    nodes: tuple[Node, ...]
    input: str
    output: str

    @property
    def name(self) -> str:
        """First and last node that computes something."""
        computed = [n.name for n in self.nodes if n.op != "constant"]
        first, last = computed[0], computed[-1]
        return first if first == last else f"{first} … {last}"


def segments(graph: Graph, layers: Iterable[str]) -> list[Segment]:
    """Return the graph cut wherever exactly one tensor is still needed, with layers in each part.

    The blocks of arXiv 2102.05426, section 3.2, found from the graph: a residual block has two
    live tensors inside and one at its ends. Parts without a layer join the part after them, at the
    end that before them. A graph of several inputs or outputs has none, as one without layers:
    :func:`bitsmith.model.qat.refusals.obstacles` says so before any work.

    Args:
        graph: placed.
        layers: names of the nodes that are tuned.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        return []
    wanted, cuts = set(layers), _cuts(graph)
    found: list[Segment] = []
    start, entry = 0, graph.inputs[0].name
    for position, tensor in cuts:
        nodes = graph.nodes[start : position + 1]
        if not any(n.name in wanted for n in nodes):
            continue
        found.append(Segment(tuple(nodes), entry, tensor))
        start, entry = position + 1, tensor
    rest = graph.nodes[start:]
    if rest and found:
        last = found.pop()
        found.append(Segment((*last.nodes, *rest), last.input, graph.outputs[0]))
    return [_with_constants(graph, part) for part in found]


def _with_constants(graph: Graph, part: Segment) -> Segment:
    own = {n.name for n in part.nodes}
    read = {i for n in part.nodes for i in n.inputs} - own
    missing = [n for n in graph if n.op == "constant" and n.name in read]
    return Segment((*missing, *part.nodes), part.input, part.output)


def _cuts(graph: Graph) -> list[tuple[int, str]]:
    """Positions after which one tensor alone is read by what follows, and that tensor."""
    last = {i: p for p, n in enumerate(graph.nodes) for i in n.inputs}
    last.update(dict.fromkeys(graph.outputs, len(graph.nodes)))
    live: set[str] = {i.name for i in graph.inputs}
    cuts = []
    for position, node in enumerate(graph.nodes):
        if node.op != "constant":
            live.add(node.name)
        live = {name for name in live if last.get(name, -1) > position}
        if len(live) == 1:
            cuts.append((position, next(iter(live))))
    return cuts

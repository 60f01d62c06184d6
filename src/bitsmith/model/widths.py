"""How many bits each quantized tensor has, decided by those who read it.

A layer of a ``W4A4`` recipe reads 4-bit codes, a sum 8-bit ones. A tensor whose readers agree has
what they want. Where they do not, it has the widest, and every narrower width gets a
``requantize`` node, named after the tensor and the bits (``relu_3.a4``), from which those readers
read: its float meaning is the identity, in integers it is a dequantization and a quantization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from bitsmith.model.graph.ir import Graph, Node
from bitsmith.numbers.scheme import Scheme

__all__ = ["Wanted", "Widths", "settle_widths"]

#: Tensor → reader → the scheme it reads; a reader that is no node has a name that is none.
Wanted = Mapping[str, Mapping[str, Scheme]]


@final
@dataclass(frozen=True)
class Widths:
    """A graph in which the readers of every quantized tensor agree.

    Attributes:
        graph: with the ``requantize`` nodes; the one that was given where there are none.
        activations: tensor that gives a group its encoding → scheme.
        added: the ``requantize`` nodes.
    """

    graph: Graph
    activations: dict[str, Scheme]
    added: tuple[Node, ...]


def settle_widths(graph: Graph, group: Mapping[str, str], wanted: Wanted) -> Widths:
    """Return ``graph`` with a width for every group and ``requantize`` nodes where needed.

    Args:
        graph: as captured and simplified.
        group: quantized tensor → the tensor whose encoding it shares.
        wanted: for every quantized tensor what its readers want; moves want nothing of their own,
            as their output is in the same group.
    """
    widest: dict[str, Scheme] = {}
    for tensor, readers in wanted.items():
        for scheme in readers.values():
            held = widest.setdefault(group[tensor], scheme)
            if scheme.integer.bits > held.integer.bits:
                widest[group[tensor]] = scheme
    added: dict[tuple[str, int], Node] = {}
    reads: dict[tuple[str, str], str] = {}
    for tensor, readers in wanted.items():
        for reader, scheme in readers.items():
            if scheme != widest[group[tensor]]:
                node = added.setdefault(
                    (tensor, scheme.integer.bits), _requantize(graph, tensor, scheme.integer.bits)
                )
                reads[reader, tensor] = node.name
                widest[node.name] = scheme
    if not added:
        return Widths(graph, widest, ())
    return Widths(_inserted(graph, list(added.values()), reads), widest, tuple(added.values()))


def _requantize(graph: Graph, tensor: str, bits: int) -> Node:
    taken = {n.name for n in graph} | {i.name for i in graph.inputs}
    name = f"{tensor}.a{bits}"
    while name in taken:
        name += "_"
    source = graph.node(tensor)
    layer, place = ("", "") if source is None else (source.layer, source.source)
    return Node(name, "requantize", (tensor,), shape=graph.shape(tensor), layer=layer, source=place)


def _inserted(graph: Graph, added: list[Node], reads: dict[tuple[str, str], str]) -> Graph:
    """Put every new node right behind what it reads."""
    after: dict[str, list[Node]] = {}
    for node in added:
        after.setdefault(node.inputs[0], []).append(node)
    nodes = [n for declared in graph.inputs for n in after.get(declared.name, [])]
    for node in graph:
        inputs = tuple(reads.get((node.name, i), i) for i in node.inputs)
        nodes += [node.with_(inputs=inputs), *after.get(node.name, [])]
    return graph.with_nodes(nodes)

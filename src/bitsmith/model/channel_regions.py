"""Streams of channels: tensors whose channels correspond, who computes them and who reads them.

In a residual network many layers write into one stream and many read from it. A linear map of
the channels can be folded into all of them at once, if nothing between looks at channels in any
other way: additions, pools and moves do not; activations bear copies of channels, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import final

from bitsmith.model.graph.ir import Graph, Node

__all__ = ["Place", "Region", "channel_regions"]

_LAYERS = ("conv", "linear")
_ACTIVATIONS = frozenset(
    {"relu", "clamp", "leaky_relu", "sigmoid", "tanh", "silu", "hardswish", "hardsigmoid", "gelu"}
)
_SPATIAL = frozenset({"max_pool", "avg_pool", "global_avg_pool", "upsample_nearest"})


@final
@dataclass(frozen=True)
class Place:
    """Where the channels of a tensor are: the axis, and neighbours per channel (flattened)."""

    axis: int
    repeat: int = 1


@final
@dataclass(frozen=True)
class Region:
    """A stream of channels.

    Attributes:
        channels: how many.
        tensors: every tensor of the stream, and where its channels are.
        producers: layers that compute them from other channels.
        consumers: layers that sum over them.
        bends: nodes that only copies of channels pass: activations, maxima, padding by numbers.
        reasons: why the stream cannot be followed to all its ends; empty where it can.
    """

    channels: int
    tensors: dict[str, Place] = field(default_factory=dict)
    producers: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    bends: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def channel_regions(graph: Graph) -> list[Region]:
    """Return the streams that layers (convolutions, linear layers) compute, in order."""
    owners = Counter(name for n in graph for name in n.params.values())
    shared = {n.name for n in graph if any(owners[p] > 1 for p in n.params.values())}
    regions: list[Region] = []
    for node in graph:
        if node.op in _LAYERS and not any(node.name in r.producers for r in regions):
            region = _grown(graph, node)
            if both := shared & {*region.producers, *region.consumers}:
                region.reasons.append(f"other layers use the weight of {', '.join(sorted(both))}")
            regions.append(region)
    return regions


def _grown(graph: Graph, start: Node) -> Region:
    place = _written(start)
    region = Region(start.shape[place.axis])
    waiting = [(start.name, place)]
    while waiting:
        tensor, place = waiting.pop()
        known = region.tensors.get(tensor)
        if known is not None:
            if known != place:
                region.reasons.append(f"{tensor} is read with its channels at two places")
            continue
        region.tensors[tensor] = place
        waiting += _before(graph, region, tensor, place)
        if tensor in graph.outputs:
            region.reasons.append(f"{tensor} is an output of the model")
        for reader in graph.consumers(tensor):
            if reader.op in _LAYERS and _reads(graph, reader) == place.axis:
                if reader.attrs.get("groups", 1) != 1:
                    region.reasons.append(f"{reader.name} reads channels in groups")
                region.consumers.append(reader.name)
            elif (after := _passed(graph, region, reader, tensor, place)) is not None:
                waiting.append((reader.name, after))
    if not region.consumers and not region.reasons:
        region.reasons.append(f"no layer reads {start.name}")
    return region


def _before(graph: Graph, region: Region, tensor: str, place: Place) -> list[tuple[str, Place]]:
    """Give the tensors of the stream that ``tensor`` is computed from."""
    node = graph.node(tensor)
    if node is None:
        region.reasons.append(f"{tensor} is an input of the model")
        return []
    if _bends(node):
        region.bends.append(node.name)
    if node.op in _LAYERS and _written(node) == place:
        if node.attrs.get("groups", 1) != 1:
            region.reasons.append(f"{node.name} computes channels in groups")
        region.producers.append(node.name)
        return []
    found = []
    for source in dict.fromkeys(node.inputs):
        for axis in range(1, len(graph.shape(source))):
            # Only what leads here as well is where it came from.
            if _passage(graph, node, source, Place(axis)) == place:
                found.append((source, Place(axis)))
                break
        else:
            region.reasons.append(f"{tensor} ({node.op}) is not made of channels of one layer")
    if not node.inputs:
        region.reasons.append(f"{tensor} is a constant")
    return found


def _passed(graph: Graph, region: Region, reader: Node, tensor: str, place: Place) -> Place | None:
    after = _passage(graph, reader, tensor, place)
    if after is None:
        region.reasons.append(f"{reader.name} ({reader.op}) looks at channels in another way")
    return after


def _bends(node: Node) -> bool:
    fused = node.attrs.get("activation") is not None
    filled = node.op == "pad" and node.attrs["value"] != 0
    return fused or filled or node.op in _ACTIVATIONS or node.op == "max_pool"


def _passage(graph: Graph, node: Node, source: str, at: Place) -> Place | None:
    """Where the channels of ``source`` are after ``node``; None where they are no channels then."""
    before, after, a = graph.shape(source), node.shape, node.attrs
    if node.op in _ACTIVATIONS:
        return at
    if node.op == "add":
        return at if all(graph.shape(i) == after for i in node.inputs) else None
    if at.repeat != 1:
        return None
    if node.op in _SPATIAL:
        return at if at.axis == 1 and len(before) > 2 else None
    if node.op == "pad":
        pairs = a["pads"]
        own = 2 * (len(before) - 1 - at.axis)
        return None if any(pairs[own : own + 2]) else at
    if node.op == "slice":
        return None if a["axis"] % len(before) == at.axis else at
    if node.op == "transpose":
        return Place([p % len(before) for p in a["perm"]].index(at.axis))
    if node.op == "reshape" and at.axis == 1 and len(after) == 2 and -1 not in before[1:]:
        return Place(1, prod(before[2:])) if after[1] == prod(before[1:]) else None
    return None


def _written(node: Node) -> Place:
    return Place(1 if node.op == "conv" else len(node.shape) - 1)


def _reads(graph: Graph, node: Node) -> int:
    return 1 if node.op == "conv" else len(graph.shape(node.inputs[0])) - 1

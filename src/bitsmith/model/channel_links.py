"""Which layers hand their channels straight to one other layer, and what lies between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bitsmith.model.graph.ir import Graph, Node

__all__ = ["Link", "Stop", "channel_links"]

_LAYERS = ("conv", "linear")
_POOLS = ("max_pool", "avg_pool", "global_avg_pool", "upsample_nearest")


@final
@dataclass(frozen=True)
class Link:
    """Output channel i of ``first`` is what ``second`` reads as channel i, and nobody else.

    Attributes:
        first, second: names of convolutions or linear layers.
        repeat: inputs of ``second`` per channel: the positions of a flattened image.
        clamps: nodes that carry a clamp with an upper end (relu6), which no factor passes.
        padded: a zero that is put in between does not come from ``first``.
        relu: a relu, and nothing but it and moves, lies between.
    """

    first: str
    second: str
    repeat: int
    clamps: tuple[str, ...]
    padded: bool
    relu: bool


@final
@dataclass(frozen=True)
class Stop:
    """A layer whose channels go elsewhere, and why they cannot be followed."""

    first: str
    reason: str


def channel_links(graph: Graph) -> list[Link | Stop]:
    """Return for every convolution and linear layer where its channels go, in order.

    They are followed through relu, leaky relu, clamps at zero, pools, zero padding, nearest
    upsampling, and reshapes, transposes and slices that keep the channels in order.
    """
    shared = _shared(graph)
    found: list[Link | Stop] = []
    for node in graph:
        if node.op in _LAYERS:
            link = _follow(graph, node)
            if isinstance(link, Link) and (both := shared & {link.first, link.second}):
                link = Stop(link.first, f"other layers use the weight of {', '.join(sorted(both))}")
            found.append(link)
    return found


def _shared(graph: Graph) -> set[str]:
    """Nodes that own a parameter which another node owns too."""
    owners: dict[str, list[str]] = {}
    for node in graph:
        for name in node.params.values():
            owners.setdefault(name, []).append(node.name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _follow(graph: Graph, first: Node) -> Link | Stop:
    axis = 1 if first.op == "conv" else len(first.shape) - 1
    node, repeat, clamps, padded, relu, plain = first, 1, [], False, False, True
    while True:
        bounds = _clamp(node)
        if bounds is not None:
            relu = True
            if bounds[0] != 0.0:
                return Stop(first.name, f"{node.name} clamps below at {bounds[0]}, not at 0")
            if bounds[1] is not None:
                clamps.append(node.name)
        readers = graph.consumers(node.name)
        if node.name in graph.outputs:
            return Stop(first.name, f"{node.name} is an output of the model")
        if len(readers) != 1:
            names = ", ".join(r.name for r in readers) or "nothing"
            return Stop(first.name, f"{node.name} is read by {names}")
        reader = readers[0]
        if reader.op in _LAYERS:
            reads = 1 if reader.op == "conv" else len(graph.shape(node.name)) - 1
            if axis != reads:
                return Stop(first.name, f"{reader.name} sums over another axis")
            padded |= any(reader.attrs.get("padding", ()))
            return Link(first.name, reader.name, repeat, tuple(clamps), padded, relu and plain)
        passed = _passed(graph, reader, node, axis, repeat)
        if passed is None:
            return Stop(first.name, f"{reader.name} ({reader.op}) lets no factor pass")
        axis, repeat = passed
        padded |= reader.op == "pad" or (reader.op == "avg_pool" and any(reader.attrs["padding"]))
        plain &= reader.op != "leaky_relu"
        node = reader


def _clamp(node: Node) -> tuple[float | None, float | None] | None:
    if node.op == "relu":
        return 0.0, None
    if node.op == "clamp":
        return node.attrs["low"], node.attrs["high"]
    fused = node.attrs.get("activation")
    return None if fused is None else (fused[0], fused[1])


def _passed(
    graph: Graph, reader: Node, source: Node, axis: int, repeat: int
) -> tuple[int, int] | None:
    """Where the channels of ``source`` are after ``reader``, as axis and inputs per channel."""
    rank = len(reader.shape)
    if reader.op in ("relu", "clamp", "leaky_relu"):
        return axis, repeat
    if repeat > 1:
        return None  # flattened: only a layer may follow
    if reader.op in _POOLS:
        return (axis, repeat) if axis == 1 else None
    if reader.op == "transpose":
        return reader.attrs["perm"].index(axis), repeat
    if reader.op == "slice":
        return (axis, repeat) if reader.attrs["axis"] != axis else None
    if reader.op == "pad":
        touched = rank - len(reader.attrs["pads"]) // 2
        return (axis, repeat) if reader.attrs["value"] == 0.0 and touched > axis else None
    if reader.op == "reshape":
        return _reshaped(graph.shape(source.name), reader.shape, axis)
    return None


def _reshaped(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> tuple[int, int] | None:
    """Channels stay on their axis, or those of ``[N, C, *S]`` become ``[N, C · S]``."""
    if axis >= len(after) or before[:axis] != after[:axis] or before[:axis].count(-1) > 1:
        return None
    if before[axis] == after[axis] > 0:
        return axis, 1
    inside = before[axis + 1 :]
    if len(after) != axis + 1 or min(inside, default=1) < 1 or before[axis] < 1:
        return None
    each, left = divmod(after[axis], before[axis])
    return (axis, each) if not left else None

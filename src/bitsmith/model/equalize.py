"""Equalize the channels of layers that follow each other, in a simplified graph.

The float function stays: it is run before and after, and what changes it by more than float32
rounds is not done. Two steps that do change it a little are done only where the caller allows
them and the change, measured on the caller's data, is small: a relu6 becomes a relu (no factor
passes a clamp at 6), and high biases are absorbed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, final

from torch import Tensor

from bitsmith.algorithms.equalization import (
    absorb_bias,
    absorbable_bias,
    equalizing_scales,
    input_ranges,
    output_ranges,
    range_ratio,
    scale_inputs,
    scale_outputs,
)
from bitsmith.errors import InputError
from bitsmith.model.channel_links import Link, Stop, channel_links
from bitsmith.model.graph.ir import Graph, Node
from bitsmith.model.graph.operators import run_node
from bitsmith.model.probes import Probes
from bitsmith.numbers.statistics import Moments

__all__ = ["Equalized", "equalize"]

#: Largest change of an output, as a share of the largest output, that float32 explains.
_ROUNDING = 1e-4
#: Passes over all chains end when no scale is further from 1 than this.
_CONVERGED = 1e-3


@final
@dataclass(frozen=True)
class Equalized:
    """What became of one layer's output channels.

    Attributes:
        layer: the layer.
        next: the layer that reads its channels; empty where there is none.
        outcome: ``equalized``, or ``skipped`` with a reason.
        reason: why it was skipped, or what was changed beside the scales.
        before, after: the largest range of a channel over the median one, of the worse of the
            two layers; 1 is equal. 0 where there is no pair.
        absorbed: channels whose bias was absorbed.
    """

    layer: str
    next: str
    outcome: Literal["equalized", "skipped"]
    reason: str
    before: float = 0.0
    after: float = 0.0
    absorbed: int = 0


def equalize(
    graph: Graph,
    batches: Iterable[Any] | None = None,
    *,
    replace_relu6: bool = False,
    absorb: bool = False,
    tolerance: float = 1e-3,
    samples: int = 64,
    passes: int = 50,
) -> tuple[Graph, list[Equalized]]:
    """Return ``graph`` with equalized channels and a row for every layer.

    arXiv 1906.04721, sections 4.1.2 and 4.1.3; chains of a layer, depthwise ones and a layer are
    solved at once, all chains in turn until nothing changes.

    Args:
        graph: simplified, in float.
        batches: ``x`` or ``(x, y)``; random inputs where there are none.
        replace_relu6: a clamp with an upper end may become a relu where the outputs change by
            no more than ``tolerance``; all that is changed counts together.
        absorb: high biases may move into the next layer, under the same condition.
        tolerance: mean squared change of the outputs over their variance.
        samples: at most as many samples are run.
        passes: over all chains, at most.

    Raises:
        DataError: no samples, or of the wrong shape or not finite.
        InputError: ``replace_relu6`` or ``absorb`` without data, or a tolerance below 0.
    """
    if batches is None and (replace_relu6 or absorb):
        raise InputError("replacing relu6 and absorbing biases are measured: give data (batches=…)")
    if not tolerance >= 0:
        raise InputError(f"a tolerance is 0 or more, not {tolerance}")
    probes = Probes.of(graph, batches, samples)
    found = channel_links(graph)
    links = [x for x in found if isinstance(x, Link)]
    relaxed = graph
    refused: dict[str, str] = {}
    if replace_relu6:
        relaxed, refused = _without_upper_ends(graph, links, probes, tolerance)
    usable = [x for x in links if not any(c in refused or not replace_relu6 for c in x.clamps)]
    scaled = _converged(relaxed, _chains(relaxed, usable), passes)
    moved = probes.largest_change(relaxed, scaled)
    if not moved <= _ROUNDING:
        why = f"scales change the outputs by {moved:.2g} of the largest"
        return graph, [_skipped(graph, x, why) for x in found]
    absorbed: dict[str, int] = {}
    if absorb:
        scaled, absorbed = _absorbed(graph, scaled, usable, probes, tolerance)
    rows = []
    for x in found:
        if isinstance(x, Stop) or x not in usable:
            rows.append(_skipped(graph, x, _why_not(x, refused)))
            continue
        note = f"relu instead of the clamp of {', '.join(x.clamps)}" if x.clamps else ""
        before, after = _ratio(graph, x), _ratio(scaled, x)
        count = absorbed.get(x.first, 0)
        rows.append(Equalized(x.first, x.second, "equalized", note, before, after, count))
    return scaled, rows


def _why_not(x: Link | Stop, refused: dict[str, str]) -> str:
    if isinstance(x, Stop):
        return x.reason
    reasons = [refused[c] for c in x.clamps if c in refused]
    return "; ".join(reasons) or f"{', '.join(x.clamps)} clamps above, which no factor passes"


def _skipped(graph: Graph, x: Link | Stop, why: str) -> Equalized:
    if isinstance(x, Stop):
        return Equalized(x.first, "", "skipped", x.reason)
    ratio = _ratio(graph, x)
    return Equalized(x.first, x.second, "skipped", why, ratio, ratio)


def _layer(graph: Graph, name: str) -> tuple[Node, Tensor, Tensor | None]:
    node = graph.node(name)
    assert node is not None
    weight = graph.param(node, "weight")
    assert weight is not None
    return node, weight, graph.param(node, "bias")


def _groups(node: Node) -> int:
    groups: int = node.attrs.get("groups", 1)
    return groups


def _ratio(graph: Graph, link: Link) -> float:
    (_, one, _), (node, two, _) = _layer(graph, link.first), _layer(graph, link.second)
    read = input_ranges(two, _groups(node), link.repeat)
    return max(range_ratio(output_ranges(one)), range_ratio(read))


def _without_upper_ends(
    graph: Graph, links: list[Link], probes: Probes, tolerance: float
) -> tuple[Graph, dict[str, str]]:
    """Make relus of the clamps between pairs, one after the other, while outputs allow it."""
    refused: dict[str, str] = {}
    for name in dict.fromkeys(c for link in links for c in link.clamps):
        tried = graph.with_nodes([_as_relu(n) if n.name == name else n for n in graph])
        change = probes.change(tried)
        if change <= tolerance:
            graph = tried
        else:
            refused[name] = f"without the clamp of {name} the outputs change by {change:.2g}"
    return graph, refused


def _as_relu(node: Node) -> Node:
    if node.op == "clamp":
        return node.with_(op="relu", attrs={})
    return node.with_(attrs={**node.attrs, "activation": [0.0, None]})


def _chains(graph: Graph, links: list[Link]) -> list[list[Link]]:
    """Join links whose middle is depthwise: they are solved at once."""
    chains: list[list[Link]] = []
    for link in links:
        node, weight, _ = _layer(graph, link.first)
        depthwise = _groups(node) == len(weight) > 1 == weight.shape[1]
        before = next((c for c in chains if c[-1].second == link.first), None)
        if depthwise and before is not None and before[-1].repeat == 1:
            before.append(link)
        else:
            chains.append([link])
    return chains


def _converged(graph: Graph, chains: list[list[Link]], passes: int) -> Graph:
    for _ in range(passes):
        largest = 0.0
        for chain in chains:
            graph, change = _solved(graph, chain)
            largest = max(largest, change)
        if largest <= _CONVERGED:
            break
    return graph


def _solved(graph: Graph, chain: list[Link]) -> tuple[Graph, float]:
    """Return the graph with one chain equalized, and the largest logarithm of a scale."""
    ranges = [output_ranges(_layer(graph, link.first)[1]) for link in chain]
    last, weight, _ = _layer(graph, chain[-1].second)
    ranges.append(input_ranges(weight, _groups(last), chain[-1].repeat))
    scales = equalizing_scales(ranges)
    for link, scale in zip(chain, scales, strict=True):
        first, one, bias = _layer(graph, link.first)
        graph = _with_params(graph, first, *scale_outputs(one, bias, scale))
        second, two, after = _layer(graph, link.second)
        two = scale_inputs(two, scale, _groups(second), link.repeat)
        graph = _with_params(graph, second, two, after)
    return graph, max(float(s.log().abs().max()) for s in scales)


def _with_params(graph: Graph, node: Node, weight: Tensor, bias: Tensor | None) -> Graph:
    names = {"weight": f"{node.name}.equalized_weight"}
    params = {names["weight"]: weight}
    if bias is not None:
        names["bias"] = f"{node.name}.equalized_bias"
        params[names["bias"]] = bias
    changed = node.with_(params=names)
    nodes = [changed if n.name == node.name else n for n in graph]
    return graph.with_nodes(nodes, params=params)


def _absorbed(
    original: Graph, graph: Graph, links: list[Link], probes: Probes, tolerance: float
) -> tuple[Graph, dict[str, int]]:
    """Move high biases on, ``μ − 3σ`` where the outputs allow it, else what all values exceed."""
    counts: dict[str, int] = {}
    for link in links:
        node, _, bias = _layer(graph, link.first)
        if not link.relu or link.padded or bias is None:
            continue
        seen = _before_relu(graph, node, probes)
        typical = absorbable_bias(seen.mean.reshape(-1), seen.variance.reshape(-1).sqrt())
        certain = seen.low.reshape(-1).double().clamp(min=0)
        for amount in (typical, certain):
            count = int((amount > 0).sum())
            if not count:
                continue
            tried = _with_bias_moved(graph, link, amount)
            if probes.change(tried) <= tolerance:
                graph, counts[link.first] = tried, count
                break
    return graph, counts


def _before_relu(graph: Graph, node: Node, probes: Probes) -> Moments:
    """Moments of each output channel of ``node`` before its activation."""
    plain = node.with_(attrs={k: v for k, v in node.attrs.items() if k != "activation"})
    params = {role: graph.params[name] for role, name in node.params.items()}
    seen = Moments(axis=1 if node.op == "conv" else len(node.shape) - 1)
    for x in probes.tensor(graph, node.inputs[0]):
        seen.update(run_node(plain, params, [x]))
    return seen


def _with_bias_moved(graph: Graph, link: Link, amount: Tensor) -> Graph:
    first, one, bias = _layer(graph, link.first)
    second, two, after = _layer(graph, link.second)
    assert bias is not None
    lower, higher = absorb_bias(bias, two, after, amount, _groups(second), link.repeat)
    return _with_params(_with_params(graph, first, one, lower), second, two, higher)

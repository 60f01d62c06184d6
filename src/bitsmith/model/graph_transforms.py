"""Linear maps of channels, folded into the layers around them: at run time nothing is added.

A map A of the channels of a stream (see :mod:`bitsmith.model.channel_regions`) goes into every
layer that computes them, ``Aᵀ·W`` and ``Aᵀ·b``, and its counterpart W' (``W'·Aᵀ = W``) into every
layer that reads them. Weights stay float32; the new graph is run beside the old one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from bitsmith.algorithms.linear_transform import LinearTransform, map_inputs
from bitsmith.algorithms.transforms.outlier_split import OutlierSplit
from bitsmith.algorithms.transforms.rotation import Rotation
from bitsmith.errors import CheckFailedError
from bitsmith.model.channel_regions import Place, Region, channel_regions
from bitsmith.model.graph import Graph, GraphInput, Node, run_float
from bitsmith.numbers.affine import fake_quantize
from bitsmith.numbers.formats.integer import int4
from bitsmith.numbers.granularity import PerChannel
from bitsmith.numbers.scheme import Scheme

__all__ = ["ChannelMapRow", "rotate", "split_outlier_channels"]

#: Relative tolerance between the outputs of both graphs: float32 sums in another order.
TOLERANCE = 1e-4
_W4 = Scheme(int4, granularity=PerChannel(0))


@final
@dataclass(frozen=True)
class ChannelMapRow:
    """What was done to one stream of channels.

    Attributes:
        producers, consumers: layers that compute the channels and that read them.
        channels, new_channels: how many before and after.
        outcome: ``split``, ``rotated``, or ``refused``.
        reason: why it was refused; empty otherwise.
        error_before, error_after: of all these layers' weights under the scheme, the mean square
            of nearest rounding's error in units of that of the layer's weights, mean over the
            layers, with copies added up again; None where no map was tried.
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    channels: int
    new_channels: int
    outcome: Literal["split", "rotated", "refused"]
    reason: str = ""
    error_before: float | None = None
    error_after: float | None = None


def split_outlier_channels(
    graph: Graph, expand: float = 0.02, *, scheme: Scheme = _W4
) -> tuple[Graph, list[ChannelMapRow]]:
    """Return the graph with outlier channels split (arXiv 1901.09504), and a row per stream.

    The channels that are split are computed twice, by the layers before; activations lie between
    as they may, for they act on copies alike. A stream is left as it is where that does not lower
    the rounding error of the weights that read it.

    Args:
        graph: simplified, float.
        expand: share of the channels of a stream that are added; above 0, at most 1.
        scheme: how the weights will be quantized: per tensor, or per channel of axis 0.

    Raises:
        InputError: an ``expand`` out of range.
        SchemeError: the scheme's granularity does not allow more inputs.
        CheckFailedError: the new graph computes something else (tolerance 1e-4 of its largest
            output, on random input).
    """
    return _mapped_graph(graph, OutlierSplit(expand), scheme, "split")


def rotate(
    graph: Graph, seed: int = 0, *, scheme: Scheme = _W4
) -> tuple[Graph, list[ChannelMapRow]]:
    """Return the graph with streams of channels rotated, and a row per stream.

    Only streams without an activation, such as the residual stream between linear bottlenecks
    (arXiv 1801.04381): nothing else commutes with a rotation. A stream is left as it is where
    the rotation does not lower the rounding error of the weights around it.

    Args:
        graph: simplified, float.
        seed: of the random rotation, see
            :func:`bitsmith.algorithms.transforms.rotation.orthogonal`.
        scheme: how the weights will be quantized.

    Raises:
        InputError: a negative seed.
        SchemeError: the scheme does not fit a weight.
        CheckFailedError: as :func:`split_outlier_channels`.
    """
    return _mapped_graph(graph, Rotation(seed), scheme, "rotated")


def _mapped_graph(
    graph: Graph, transform: LinearTransform, scheme: Scheme, done: Literal["split", "rotated"]
) -> tuple[Graph, list[ChannelMapRow]]:
    rows, now = [], graph
    for region in channel_regions(graph):
        now, row = _mapped_region(now, region, transform, scheme, done)
        rows.append(row)
    _check_function(graph, now)
    return now, rows


def _mapped_region(
    graph: Graph,
    region: Region,
    transform: LinearTransform,
    scheme: Scheme,
    done: Literal["split", "rotated"],
) -> tuple[Graph, ChannelMapRow]:
    ends = tuple(region.producers), tuple(region.consumers)
    old = region.channels
    reasons = list(dict.fromkeys(region.reasons))
    if done == "rotated" and region.bends:
        reasons.append(f"only copies of channels pass {', '.join(region.bends)}")
    if reasons:
        return graph, ChannelMapRow(*ends, old, old, "refused", "; ".join(reasons))
    readers = [_weight(graph, name) for name in region.consumers]
    found = transform([_channels_apart(w, old) for w in readers], scheme)
    matrix = found.matrix
    writers = [_weight(graph, name) for name in region.producers]
    plain = torch.eye(old)
    before = _error(readers, readers, writers, plain, scheme)
    mapped = [
        w.flatten(1) if r.dim() == 2 else w for w, r in zip(found.weights, readers, strict=True)
    ]
    after = _error(readers, mapped, [_outputs_mapped(w, matrix) for w in writers], matrix, scheme)
    if found.kept_identity or not after < before:
        reason = "the rounding error of the weights around it would not fall"
        return graph, ChannelMapRow(*ends, old, old, "refused", reason, before, after)
    row = ChannelMapRow(*ends, old, matrix.shape[1], done, "", before, after)
    return _with_map(graph, region, mapped, matrix), row


def _weight(graph: Graph, name: str) -> Tensor:
    node = graph.node(name)
    weight = None if node is None else graph.param(node, "weight")
    assert weight is not None
    return weight


def _channels_apart(weight: Tensor, channels: int) -> Tensor:
    """Return ``[out, channels, …]``: a linear layer may read several neighbours of each channel."""
    if weight.dim() > 2 or weight.shape[1] == channels:
        return weight
    return weight.reshape(len(weight), channels, -1)


def _outputs_mapped(weight: Tensor, matrix: Tensor) -> Tensor:
    """Return ``Aᵀ·W``, or ``Aᵀ·b`` of a bias."""
    if weight.dim() == 1:
        return map_inputs(weight.unsqueeze(0), matrix)[0]
    return map_inputs(weight.transpose(0, 1), matrix).transpose(0, 1).contiguous()


def _error(
    readers: list[Tensor],
    mapped: list[Tensor],
    writers: list[Tensor],
    matrix: Tensor,
    scheme: Scheme,
) -> float:
    """Return the mean over all layers of the relative squared rounding error."""
    total = 0.0
    for weight, new in zip(readers, mapped, strict=True):
        rounded = _channels_apart(fake_quantize(new, scheme), matrix.shape[1])
        total += _relative(map_inputs(rounded, matrix.T).reshape(weight.shape), weight)
    for weight in writers:
        total += _relative(fake_quantize(weight, scheme), weight)
    return total / max(1, len(readers) + len(writers))


def _relative(found: Tensor, weight: Tensor) -> float:
    w = weight.double()
    size = float(w.square().sum())
    return float((found.double() - w).square().sum()) / size if size else 0.0


def _with_map(graph: Graph, region: Region, mapped: list[Tensor], matrix: Tensor) -> Graph:
    """Return the graph with the new weights and the new number of channels."""
    params = dict(graph.params)
    nodes = {n.name: n for n in graph}
    for name, weight in zip(region.consumers, mapped, strict=True):
        nodes[name] = _with_param(nodes[name], "weight", weight, params)
    for name in region.producers:  # after the consumers: a layer may be both
        for role in ("weight", "bias"):
            if role in nodes[name].params:
                own = _outputs_mapped(params[nodes[name].params[role]], matrix)
                nodes[name] = _with_param(nodes[name], role, own, params)
    for name, place in region.tensors.items():
        nodes[name] = _with_channels(nodes[name], place, matrix.shape[1])
    return graph.with_nodes([nodes[n.name] for n in graph], params=params)


def _with_param(node: Node, role: str, value: Tensor, params: dict[str, Tensor]) -> Node:
    name = f"{node.name}.mapped_{role}"
    params[name] = value
    return node.with_(params={**node.params, role: name})


def _with_channels(node: Node, place: Place, channels: int) -> Node:
    shape = list(node.shape)
    shape[place.axis] = channels * place.repeat
    attrs = node.attrs
    if node.op == "reshape" and attrs["shape"][place.axis] not in (-1, 0):
        written = list(attrs["shape"])
        written[place.axis] = shape[place.axis]
        attrs = {**attrs, "shape": written}
    return node.with_(shape=tuple(shape), attrs=attrs)


def _check_function(before: Graph, after: Graph) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [_random(i, generator) for i in before.inputs]
    with torch.no_grad():
        pairs = zip(run_float(before, inputs), run_float(after, inputs), strict=True)
    for name, (old, new) in zip(before.outputs, pairs, strict=True):
        largest = float(old.abs().max()) if old.numel() else 0.0
        worst = float((new - old).abs().max()) if old.numel() else 0.0
        if not worst <= TOLERANCE * max(largest, 1e-30):
            raise CheckFailedError(
                f"the mapped graph differs from the graph at output {name}: {worst:.3g} on values "
                f"up to {largest:.3g}, more than {TOLERANCE:g} of that"
            )


def _random(declared: GraphInput, generator: torch.Generator) -> Tensor:
    shape = [2 if i == 0 else 8 if n == -1 else n for i, n in enumerate(declared.shape)]
    if declared.dtype == "float32":
        return torch.randn(shape, generator=generator)
    kind = getattr(torch, declared.dtype)
    return torch.randint(2, shape, generator=generator).to(kind)  # tables have two rows at least

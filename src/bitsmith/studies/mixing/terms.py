"""The sums of integers that unlike zero points ask for, computed exactly and counted.

With ``x = s_x (q_x − z_x)`` and ``w = s_w (q_w − z_w)`` the sum over K products is

    Σ (q_x − z_x)(q_w − z_w) = Σ q_x q_w − z_w Σ q_x − z_x Σ q_w + K z_x z_w

(arXiv 1712.05877, section 2.3, eq. 7). The first is what a kernel computes. The third and the
fourth do not depend on the data: they go into the bias once. The second does, and is made anew
for each position of each image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from bitsmith.model.graph import Graph
from bitsmith.model.graph.ir import Node
from bitsmith.model.graph.macs import macs_by_node
from bitsmith.model.rounded import RoundedLayer, multiplying, run_part
from bitsmith.numbers.affine import quantize_codes

__all__ = ["TERMS", "Cost", "LayerTerms", "cost", "layer_terms"]

TERMS = ("products", "inputs", "weights", "constant")


@final
@dataclass(frozen=True)
class LayerTerms:
    """The four sums of one layer over some samples.

    Attributes:
        layer: its name.
        sizes: name of :data:`TERMS` → mean absolute value, in steps of the product of scales.
        result: mean absolute value of their sum.
        difference: largest difference of the four added up from ``Σ (q_x − z_x)(q_w − z_w)``.
    """

    layer: str
    sizes: Mapping[str, float]
    result: float
    difference: float


@final
@dataclass(frozen=True)
class Cost:
    """What a sample takes beside its products.

    Attributes:
        macs: products of all layers.
        run_time: additions and multiplications for the sums of inputs, made for each sample.
        constants: values that are added to the biases, once for all samples.
    """

    macs: int
    run_time: int
    constants: int

    @property
    def share(self) -> float:
        """Run-time operations in per cent of the products."""
        return 100 * self.run_time / max(1, self.macs)


@torch.no_grad()
def layer_terms(graph: Graph, layers: Mapping[str, RoundedLayer], x: Tensor) -> list[LayerTerms]:
    """Return the four sums of every layer, in exact whole numbers, for samples ``[N, …]``.

    Each layer gets what the rounded layers before it give. A convolution reads its border as the
    code of 0, which is ``z_x``.
    """
    values = run_part(graph, {graph.inputs[0].name: x}, layers, keep=True)
    found = []
    for node in multiplying(graph):
        layer = layers[node.name]
        assert layer.reads is not None
        source, q = values[node.inputs[0]], layer.weight
        codes = quantize_codes(
            source, layer.reads.scale, layer.reads.zero_point, layer.reads.scheme
        ).double()
        z_x, z_w = float(layer.reads.zero_point), _per_channel(q.zero_point, q.codes.shape[0])
        w = q.codes.double()
        padded = _padded(node, codes, z_x)
        ones, per_output = torch.ones_like(w), torch.ones_like(padded)
        terms = {
            "products": _sum(node, padded, w),
            "inputs": -z_w * _sum(node, padded, ones),
            "weights": -z_x * _sum(node, per_output, w),
            "constant": z_x * z_w * _sum(node, per_output, ones),
        }
        whole = _sum(node, padded - z_x, w - z_w.reshape(-1, *[1] * (w.dim() - 1)))
        added = torch.stack(list(terms.values())).sum(0)
        sizes = {name: float(t.abs().mean()) for name, t in terms.items()}
        found.append(
            LayerTerms(
                node.name, sizes, float(whole.abs().mean()), float((added - whole).abs().max())
            )
        )
    return found


def cost(graph: Graph, layers: Mapping[str, RoundedLayer]) -> Cost:
    """Return what one sample takes: the zero points decide which sums there are.

    The sum of the inputs of a position is the same for all output channels of a group: K additions
    for each position, and for each output a product with its ``z_w`` and a subtraction.
    """
    macs, run_time, constants = macs_by_node(graph), 0, 0
    for node in multiplying(graph):
        layer = layers[node.name]
        weight = layer.weight.codes
        k = weight[0].numel()
        outputs = macs[node.name] // k
        positions = outputs // len(weight) * int(node.attrs.get("groups", 1))
        if bool((layer.weight.zero_point != 0).any()):
            run_time += positions * k + 2 * outputs
        if layer.reads is not None and bool(layer.reads.zero_point != 0):
            constants += len(weight)
    return Cost(sum(macs[n.name] for n in multiplying(graph)), run_time, constants)


def _per_channel(zero_point: Tensor, channels: int) -> Tensor:
    """Return ``z_w`` of each output channel, shaped for ``[N, O, …]``."""
    flat = zero_point.double().reshape(-1)
    return flat.expand(channels) if len(flat) == 1 else flat


def _padded(node: Node, codes: Tensor, zero: float) -> Tensor:
    if node.op == "linear":
        return codes
    return F.pad(codes, _borders(node.attrs["padding"]), value=zero)


def _borders(padding: Iterable[int]) -> list[int]:
    """Return before and after each axis, the last axis first, as ``F.pad`` takes them."""
    pads = list(padding)
    return [p for pad in reversed(pads) for p in (pad, pad)]


def _sum(node: Node, x: Tensor, w: Tensor) -> Tensor:
    """Return ``[N, …, O]``: sums of products in float64, whole numbers below 2^53 and so exact."""
    if node.op == "linear":
        return F.linear(x, w)
    a = node.attrs
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[w.dim() - 2]
    found: Tensor = convolve(x, w, None, a["stride"], 0, a["dilation"], a["groups"])
    return found.movedim(1, -1)

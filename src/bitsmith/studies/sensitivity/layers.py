"""Each layer rounded alone, and each with all before it: outputs, logits, predictions.

A batch runs once in float and every value is kept. What a layer costs alone is then found by
running the graph from that layer on; what it costs with those before it, from the values that
they have left. All layers together so take about as much as running the network as many times as
there are layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.insight.measure import paired_difference
from bitsmith.model.evaluate import correct
from bitsmith.model.graph import Graph
from bitsmith.model.rounded import RoundedLayer, multiplying, run_part

__all__ = ["Effect", "LayerEffect", "Sensitivity", "sensitivity"]

MAX_SQNR = 150.0


@final
@dataclass(frozen=True, eq=False)
class Effect:
    """What some rounded layers do to the network.

    Attributes:
        output: SQNR of the output of the last of them, in dB.
        logits: SQNR of the network's output, in dB.
        right: whether each sample is right, bool [N].
        delta, low, high: accuracy less float in points, with its 95 % interval, paired.
    """

    output: float
    logits: float
    right: Tensor
    delta: float
    low: float
    high: float

    @property
    def accuracy(self) -> float:
        """In per cent."""
        return 100 * float(self.right.double().mean())


@final
@dataclass(frozen=True, eq=False)
class LayerEffect:
    """One layer.

    Attributes:
        layer: its name.
        op: ``conv`` or ``linear``.
        weights: how many.
        isolated: it alone is rounded.
        cumulative: it and every layer before it are.
    """

    layer: str
    op: str
    weights: int
    isolated: Effect
    cumulative: Effect


@final
@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Every layer, in the order they run, and what the float network gets right, bool [N]."""

    right: Tensor
    layers: tuple[LayerEffect, ...]

    @property
    def whole(self) -> Effect:
        """All layers rounded."""
        return self.layers[-1].cumulative


@final
@dataclass
class _Sums:
    """Squares of values and errors, and what was right."""

    signal: float = 0.0
    noise: float = 0.0
    logit_signal: float = 0.0
    logit_noise: float = 0.0
    right: list[Tensor] = field(default_factory=list)

    def add(self, plain: Tensor, found: Tensor, logits: Tensor, changed: Tensor, y: Tensor) -> None:
        self.signal += float(plain.double().square().sum())
        self.noise += float((found - plain).double().square().sum())
        self.logit_signal += float(logits.double().square().sum())
        self.logit_noise += float((changed - logits).double().square().sum())
        self.right.append(correct(changed, y))

    def effect(self, float_right: Tensor) -> Effect:
        right = torch.cat(self.right)
        delta, low, high = paired_difference(right, float_right)
        output = _sqnr(self.signal, self.noise)
        return Effect(output, _sqnr(self.logit_signal, self.logit_noise), right, delta, low, high)


@torch.no_grad()
def sensitivity(
    graph: Graph,
    layers: dict[str, RoundedLayer],
    batches: Iterable[tuple[Tensor, Any]],
    advance: Callable[[int], None] | None = None,
) -> Sensitivity:
    """Return what rounding does, layer by layer.

    Args:
        graph: of a float model with one input and logits as its output.
        layers: what each convolution and linear layer becomes; all of them.
        batches: labelled samples ``(x, y)``.
        advance: told the samples of each batch.
    """
    nodes = multiplying(graph)
    position = {node.name: i for i, node in enumerate(graph.nodes)}
    alone, together = ({n.name: _Sums() for n in nodes} for _ in range(2))
    float_right: list[Tensor] = []
    for x, y in batches:
        plain = run_part(graph, {graph.inputs[0].name: x}, {}, keep=True)
        logits = plain[graph.outputs[0]]
        float_right.append(correct(logits, y))
        values, done = {graph.inputs[0].name: x}, 0
        for node in nodes:
            own, at = {node.name: layers[node.name]}, position[node.name]
            found, changed = _from(graph, plain, own, at)
            alone[node.name].add(plain[node.name], found, logits, changed, y)
            values = run_part(graph, values, layers, done, at)
            found, changed = _from(graph, values, own, at)
            together[node.name].add(plain[node.name], found, logits, changed, y)
            values, done = {**values, node.name: found}, at + 1
        if advance is not None:
            advance(len(x))
    right = torch.cat(float_right)
    return Sensitivity(
        right,
        tuple(
            LayerEffect(
                n.name, n.op, layers[n.name].values.numel(), alone[n.name].effect(right),
                together[n.name].effect(right),
            )
            for n in nodes
        ),
    )  # fmt: skip


def _from(
    graph: Graph, values: dict[str, Tensor], layer: dict[str, RoundedLayer], at: int
) -> tuple[Tensor, Tensor]:
    """Return the rounded output of the layer at a position, and the logits that follow."""
    after = run_part(graph, values, layer, at, at + 1, keep=True)
    name = graph.nodes[at].name
    return after[name], run_part(graph, after, {}, at + 1)[graph.outputs[0]]


def _sqnr(signal: float, noise: float) -> float:
    """Return the ratio in dB; what is reproduced exactly has 150."""
    if noise <= 0 or signal <= 0:
        return MAX_SQNR
    return float(10 * torch.log10(torch.tensor(signal / noise, dtype=torch.float64)))

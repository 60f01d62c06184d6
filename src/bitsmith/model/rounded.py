"""A float graph some of whose layers round their weight, and what they read.

Sums stay float: what is measured is the rounding alone, of any scheme, also of one that no
integer kernel computes. Parts of the graph can be run, so that what a layer costs is found from
the values in front of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from bitsmith.algorithms.rounding import Rounding
from bitsmith.algorithms.roundings.nearest import Nearest
from bitsmith.errors import WeightsError
from bitsmith.model.calibrate import checked_inputs
from bitsmith.model.graph.ir import Graph, Node
from bitsmith.model.graph.operators import last_uses, run_float, run_node
from bitsmith.numbers.affine import fake_quantize
from bitsmith.numbers.calibrators import Calibrator
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Statistic

__all__ = [
    "RoundedInput",
    "RoundedLayer",
    "RoundedModel",
    "input_statistics",
    "multiplying",
    "round_inputs",
    "round_layers",
    "run_part",
]

_MULTIPLYING = ("conv", "linear")


@final
@dataclass(frozen=True, eq=False)
class RoundedInput:
    """How a layer rounds what it reads: scheme, scale and zero point."""

    scheme: Scheme
    scale: Tensor
    zero_point: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x`` as its codes stand for it."""
        return fake_quantize(x, self.scheme, self.scale, self.zero_point)


@final
@dataclass(frozen=True, eq=False)
class RoundedLayer:
    """What one layer becomes.

    Attributes:
        weight: its codes.
        reads: how it rounds its input; None: as it comes.
    """

    weight: QTensor
    reads: RoundedInput | None = None

    @cached_property
    def values(self) -> Tensor:
        """The weight that the codes stand for."""
        return self.weight.dequantize()


def multiplying(graph: Graph) -> list[Node]:
    """Return the convolutions and linear layers of ``graph``, in the order they run."""
    return [n for n in graph if n.op in _MULTIPLYING and graph.param(n, "weight") is not None]


@torch.no_grad()
def input_statistics(
    graph: Graph, calibrator: Calibrator, batches: Iterable[Any]
) -> dict[str, Statistic]:
    """Return what ``calibrator`` needs to know of each tensor that a layer reads, by its name.

    Args:
        graph: of a float model.
        calibrator: whose statistic is gathered.
        batches: ``x`` or ``(x, y)``.

    Raises:
        DataError: no batches; inputs of the wrong shape or not finite.
    """
    found = {n.inputs[0]: calibrator.statistic() for n in multiplying(graph)}

    def observe(name: str, x: Tensor) -> None:
        if name in found:
            found[name].update(x)

    for inputs in checked_inputs(graph, batches):
        run_float(graph, inputs, observe)
    return found


def round_layers(
    graph: Graph, weight: Scheme, rounding: Rounding | None = None
) -> dict[str, RoundedLayer]:
    """Return layer name → its rounded weight, for every convolution and linear layer.

    Args:
        graph: of a float model.
        weight: scheme of every weight ``[O, I, …]``.
        rounding: chooses codes and scales without data; None: nearest codes in the whole range.

    Raises:
        SchemeError: a weight cannot have the scheme.
        WeightsError: a weight is not finite, with the layer's name.
    """
    found = {}
    for node in multiplying(graph):
        values = graph.param(node, "weight")
        assert values is not None
        if count := int((~torch.isfinite(values)).sum()):
            raise WeightsError(f"layer {node.name}: {count} weights are NaN or infinite")
        found[node.name] = RoundedLayer((rounding or Nearest())(values, weight).qtensor)
    return found


def round_inputs(
    graph: Graph,
    layers: Mapping[str, RoundedLayer],
    inputs: Scheme,
    calibrator: Calibrator,
    statistics: Mapping[str, Statistic],
) -> dict[str, RoundedLayer]:
    """Return the layers, which now round what they read too.

    Args:
        graph: of a float model.
        layers: of :func:`round_layers`.
        inputs: scheme of what layers read, one range each.
        calibrator, statistics: give the ranges, see :func:`input_statistics`.
    """
    return {
        node.name: replace(
            layers[node.name],
            reads=RoundedInput(inputs, *calibrator(statistics[node.inputs[0]], inputs)),
        )
        for node in multiplying(graph)
    }


@torch.no_grad()
def run_part(
    graph: Graph,
    values: dict[str, Tensor],
    layers: Mapping[str, RoundedLayer],
    start: int = 0,
    stop: int | None = None,
    *,
    keep: bool = False,
) -> dict[str, Tensor]:
    """Run the nodes at positions ``start`` to ``stop`` (not included); return the values there.

    Args:
        graph: of a float model.
        values: tensor name → value, of all that these nodes read from before; not changed.
        layers: layers that round; the others are float.
        start, stop: positions in ``graph.nodes``; None: to the end.
        keep: also what nothing later reads; otherwise it is forgotten as soon as possible.
    """
    values, last = dict(values), last_uses(graph)
    for position, node in enumerate(graph.nodes[start:stop], start):
        params = {role: graph.params[name] for role, name in node.params.items()}
        read = [values[name] for name in node.inputs]
        if (layer := layers.get(node.name)) is not None:
            params["weight"] = layer.values
            if layer.reads is not None:
                read[0] = layer.reads(read[0])
        values[node.name] = run_node(node, params, read)
        for name in {*node.inputs, node.name} if not keep else ():
            if last.get(name, position) <= position and name not in graph.outputs:
                values.pop(name, None)
    return values


@final
class RoundedModel(nn.Module):
    """The graph with rounded layers, as a function of its inputs.

    >>> from bitsmith.model.graph import capture, simplify
    >>> from bitsmith.numbers.formats.integer import int8
    >>> graph = simplify(capture(nn.Linear(4, 2), torch.zeros(2, 4)))
    >>> rounded = RoundedModel(graph, round_layers(graph, Scheme(int8)))
    >>> rounded(torch.ones(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(self, graph: Graph, layers: Mapping[str, RoundedLayer]) -> None:
        super().__init__()
        self.graph, self.layers = graph, dict(layers)
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the first output of the graph."""
        names = [declared.name for declared in self.graph.inputs]
        values = run_part(self.graph, dict(zip(names, inputs, strict=True)), self.layers)
        return values[self.graph.outputs[0]]

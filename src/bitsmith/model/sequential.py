"""Round a placed graph layer by layer, in one sweep, each seeing what the ones before it cost.

For every batch two networks advance together: the float one, and the integers so far. At a layer
its weight is rounded for the inputs that it really gets, its bias takes back the mean error, and
only then it runs. No gradients, one pass over the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.algorithms.corrections.empirical import Empirical, OutputMeans
from bitsmith.algorithms.grouped_descent import descend_groups
from bitsmith.algorithms.objective import weight_error
from bitsmith.algorithms.rounding import Rounding
from bitsmith.algorithms.roundings.searched import Searched
from bitsmith.errors import DataError, InputError, WeightsError
from bitsmith.model.calibrate import checked_inputs
from bitsmith.model.convert import (
    IntegerLayer,
    demanded_rounding,
    integer_layer,
    integer_table,
    layer_of,
    least_scale,
)
from bitsmith.model.graph.ir import Node
from bitsmith.model.graph.operators import last_uses, run_node
from bitsmith.model.layer_sums import DAMPINGS, LayerSums
from bitsmith.model.place import Placement
from bitsmith.model.simulate import Program, Values, execute
from bitsmith.model.targets import Target
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.statistics import Gram

__all__ = ["Sweep", "SweepRow", "sequential"]


@final
@dataclass(frozen=True)
class Sweep:
    """How layers are rounded.

    Attributes:
        rounding: name of a rounding for layers of fewer than 8 bits; one that takes data gets the
            Gram matrix of the inputs. In place of one that needs it, grouped convolutions get
            searched ranges and :func:`~bitsmith.algorithms.grouped_descent.descend_groups`. Codes
            from a table are of
            :class:`~bitsmith.algorithms.roundings.shared_table.SharedTable`, with the same data.
        toward_float: round the weight that makes the float output of the inputs that the layer
            really gets, instead of the layer's own.
        correct_bias: take back the mean error of each channel; a rounding is then judged by the
            variance of its error alone.
        dampings: that ``toward_float`` chooses from, see
            :meth:`~bitsmith.model.layer_sums.LayerSums.toward_float`.
        samples: held in memory, at most.
        rows: of inputs that second moments are over, per layer, at most.
    """

    rounding: str = "coordinate"
    toward_float: bool = True
    correct_bias: bool = True
    dampings: tuple[float, ...] = DAMPINGS
    samples: int = 256
    rows: int = 1 << 18

    def __post_init__(self) -> None:
        Rounding.registry[self.rounding]
        if not all(d > 0 for d in self.dampings) or self.samples < 1 or self.rows < 1:
            raise InputError(
                f"a sweep has dampings above 0 and at least one sample and row, not {self}"
            )


@final
@dataclass(frozen=True)
class SweepRow:
    """What became of one layer.

    Attributes:
        layer: its name.
        bits: of its codes.
        rounding: what chose them; that of the target where the codes must obey it.
        objective: mean square (variance, where the bias is corrected) of the error of the layer's
            output before its activation, against the float network.
        nearest_objective: the same with what the target alone would choose: nearest codes.
        kept_nearest: nothing was better than that.
        bias_error, bias_error_before: mean over channels of the squared mean error of the output,
            with and without the correction.
    """

    layer: str
    bits: int
    rounding: str
    objective: float
    nearest_objective: float
    kept_nearest: bool
    bias_error: float
    bias_error_before: float


@final
@dataclass
class _Batch:
    """Float values and integers of one batch, so far."""

    floats: dict[str, Tensor]
    values: Values


def sequential(
    placement: Placement,
    target: Target,
    encodings: dict[str, Encoding],
    batches: Iterable[Any],
    sweep: Sweep | None = None,
    *,
    advance: Callable[[str], None] | None = None,
) -> tuple[dict[str, IntegerLayer], list[SweepRow]]:
    """Return the integer layers of a placed graph, rounded in order, and a row for each.

    arXiv 2210.17323 for the codes, 1906.04721 section 4.2 for the biases.

    Args:
        placement: of the graph.
        target: decides what codes must obey.
        encodings: of every quantized activation.
        batches: ``x`` or ``(x, y)``; no more than ``sweep.samples`` samples are taken.
        sweep: how; the defaults if None.
        advance: told the name of each layer that is done.

    Raises:
        DataError: no samples, of the wrong shape, or not finite.
        WeightsError: a weight or bias is not finite, or a bias leaves int32.
    """
    sweep = sweep or Sweep()
    graph = placement.graph
    layers: dict[str, IntegerLayer] = {}
    program = Program(graph, placement.outcomes, encodings, layers)
    running = _started(program, batches, sweep.samples)
    rows: list[SweepRow] = []
    last = last_uses(graph)
    with torch.no_grad():
        for position, node in enumerate(graph.nodes):
            if node.name in placement.weights and node.op == "embedding":
                layers[node.name] = integer_table(node, placement)
            elif node.name in placement.weights:
                made = _Layer(node, placement, target, encodings[node.inputs[0]], sweep)
                layers[node.name], row = made.rounded(running)
                rows.append(row)
                if advance is not None:
                    advance(node.name)
            for batch in running:
                _run(node, placement, batch)
                for name in {*node.inputs, node.name}:
                    if last.get(name, position) <= position:
                        batch.floats.pop(name, None)
                        batch.values.drop(name)
    return layers, rows


def _started(program: Program, batches: Iterable[Any], samples: int) -> list[_Batch]:
    running: list[_Batch] = []
    left = samples
    for inputs in checked_inputs(program.graph, batches):
        held = {i.name: x[:left] for i, x in zip(program.graph.inputs, inputs, strict=True)}
        running.append(_Batch(held, Values(program, reals=dict(held))))
        left -= len(inputs[0])
        if left <= 0:
            break
    if not running:
        raise DataError("there are no samples to round with; an iterator may be used up")
    return running


def _run(node: Node, placement: Placement, batch: _Batch) -> None:
    params = {role: placement.graph.params[name] for role, name in node.params.items()}
    batch.floats[node.name] = run_node(node, params, [batch.floats[i] for i in node.inputs])
    execute(node, batch.values)


@final
class _Layer:
    """One convolution or linear layer on its way to integers."""

    def __init__(
        self, node: Node, placement: Placement, target: Target, x: Encoding, sweep: Sweep
    ) -> None:
        weight = placement.graph.param(node, "weight")
        assert weight is not None
        self.node, self.x, self.sweep = node, x, sweep
        self.weight, self.bias = weight, placement.graph.param(node, "bias")
        self.scheme = placement.weights[node.name]
        self.nearest = integer_layer(node, placement, target, x)
        self.demanded = demanded_rounding(node, placement, target, x)
        self.table_bits = placement.tables.get(node.name)

    def rounded(self, running: list[_Batch]) -> tuple[IntegerLayer, SweepRow]:
        """Return the layer and what became of it."""
        sums, centred = self._sums(running), self.sweep.correct_bias
        nearest = float(sums.miss(self.nearest.weight.dequantize(), centred).mean())
        best, objective, name = self.nearest, nearest, self.demanded.name
        q, tried = self._codes(sums)
        found = float(sums.miss(q.dequantize(), centred).mean())
        if found < nearest:
            best, objective, name = self._layer(q), found, tried
        layer, before, after = self._corrected(best, sums)
        kept = best is self.nearest
        row = SweepRow(self.node.name, layer.bits, name, objective, nearest, kept, after, before)
        return layer, row

    def _sums(self, running: list[_Batch]) -> LayerSums:
        source = self.node.inputs[0]
        total = sum(_rows(self.node, self.weight, b.floats[source]) for b in running)
        sums = LayerSums(self.node, self.weight, min(1.0, self.sweep.rows / max(1, total)))
        plain = self.node.with_(
            attrs={k: v for k, v in self.node.attrs.items() if k != "activation"}
        )
        for batch in running:
            y = run_node(plain, {"weight": self.weight}, [batch.floats[source]])
            x = self.x.dequantize(batch.values.code(source))
            sums.update(x, y)
        return sums

    def _codes(self, sums: LayerSums) -> tuple[QTensor, str]:
        """Return codes for the inputs that ``sums`` has seen, and the name of their rounding."""
        centred, weight = self.sweep.correct_bias, self.weight
        if self.sweep.toward_float:
            weight, _ = sums.toward_float(centred, self.sweep.dampings)
        floor = least_scale(self.weight, self.bias, self.x, self.scheme)
        rounding = self.demanded
        if rounding.lowers_error and self.scheme.format.bits < 8:
            rounding = Rounding.registry[self.sweep.rounding]()
        dense = sums.groups == 1
        used = rounding if dense or not rounding.needs else Searched()
        given = sums.gram(centred) if dense and Gram in (used.needs, used.takes) else None
        try:
            q = used(weight, self.scheme, min_scale=floor, statistic=given).qtensor
        except DataError as error:
            raise WeightsError(f"layer {self.node.name}: {error}") from error
        name = used.name
        apart = used is not rounding or self.table_bits is not None
        if not dense and apart and self.scheme.affine:
            levels = None if self.table_bits is None else torch.unique(q.codes)
            h = sums.covariance(centred)
            q = descend_groups(weight, q, h, min_scale=floor, levels=levels)
            name = "grouped-descent"
        return self._without_empty_scales(q), name

    def _without_empty_scales(self, q: QTensor) -> QTensor:
        """A channel of zeros takes the scale that conversion gives it, for its bias."""
        empty = (self.weight.flatten(1) == 0).all(1)
        if q.scale.numel() != len(empty) or not bool(empty.any()):
            return q
        scale = torch.where(empty.reshape(q.scale.shape), self.nearest.weight.scale, q.scale)
        return replace(q, scale=scale)

    def _corrected(self, layer: IntegerLayer, sums: LayerSums) -> tuple[IntegerLayer, float, float]:
        """Return the layer with its bias corrected, and the bias error before and after."""
        q = layer.weight
        step = torch.tensor(self.x.scale, dtype=torch.float32) * q.scale.reshape(-1)
        zero = torch.zeros(len(self.weight))
        now = zero if layer.bias is None else (layer.bias.double() * step.double()).float()
        plain = sums.mean_y if self.bias is None else sums.mean_y + self.bias.double()
        found = sums.mean_output(q.dequantize()) + now.double()
        done = Empirical()(now, OutputMeans(plain, found), step=step)
        if not self.sweep.correct_bias or done.kept:
            return layer, done.error_before, done.error_before
        changed = layer_of(self.node, q, done.bias, self.x, layer.error, layer.nearest_error)
        return replace(layer, bias=changed.bias), done.error_before, done.error

    def _layer(self, q: QTensor) -> IntegerLayer:
        errors = weight_error(self.weight, q.dequantize()), self.nearest.nearest_error
        bits = self.table_bits
        return layer_of(self.node, q, self.bias, self.x, *errors, table_bits=bits)


def _rows(node: Node, weight: Tensor, x: Tensor) -> int:
    """How many inputs a filter or a row of the weight meets in ``x``."""
    if node.op == "linear":
        return x.numel() // weight.shape[1]
    return len(x) * math.prod(abs(s) for s in node.shape[2:])

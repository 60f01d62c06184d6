"""What quantization did to each tensor: error against the float graph, and the values' spread.

Everything comes from one pass of the float graph and the integer simulation over the same
samples, in bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.insight.measure import Record
from bitsmith.model.calibrate import as_inputs
from bitsmith.model.graph import run_float
from bitsmith.model.quantized import QuantizedModel
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.statistics import Histogram

__all__ = ["TensorError", "WeightSpread", "layer_records", "tensor_errors", "weight_spreads"]

#: A tensor that is reproduced exactly has no finite SQNR; this is what float32 could show.
MAX_SQNR = 150.0


@final
@dataclass(frozen=True, eq=False)
class TensorError:
    """One quantized activation: what it should be and how far off the integers are.

    Attributes:
        tensor: its name; of a graph input or of the operator that computes it.
        op: ``input`` or the operator.
        encoding: scale, zero point, format.
        sqnr: ``10·log10(Σ x² / Σ (x − x̂)²)`` in dB of the cumulative error, at most 150.
        mean_lsb, max_lsb: mean and largest ``|x − x̂| / scale``, in codes.
        clipped: share of the float values outside the encoding's range.
        n: values compared.
        values: histogram of the float values x.
    """

    tensor: str
    op: str
    encoding: Encoding
    sqnr: float
    mean_lsb: float
    max_lsb: float
    clipped: float
    n: int
    values: Histogram


@final
@dataclass(frozen=True, eq=False)
class WeightSpread:
    """The weight of one integer layer.

    Attributes:
        layer: its name.
        shape: of the weight, output channels first.
        sqnr: of the quantized weight against the float weight, in dB, at most 150.
        low_scale, high_scale: smallest and largest scale over the output channels.
        bits: effective bits (what the pair bound leaves of them).
        values: histogram of the float weight, batch norms folded in.
    """

    layer: str
    shape: tuple[int, ...]
    sqnr: float
    low_scale: float
    high_scale: float
    bits: float
    values: Histogram


def sqnr(signal: float, noise: float) -> float:
    """Return ``10·log10(signal / noise)``, between 0-signal's −150 and 150 dB.

    >>> sqnr(100.0, 1.0), sqnr(1.0, 0.0)
    (20.0, 150.0)
    """
    if noise <= 0:
        return MAX_SQNR
    if signal <= 0:
        return -MAX_SQNR
    return max(-MAX_SQNR, min(MAX_SQNR, 10 * math.log10(signal / noise)))


@torch.no_grad()
def tensor_errors(model: QuantizedModel, batches: Iterable[Any]) -> list[TensorError]:
    """Return the error of every quantized activation, in the order of the graph.

    Args:
        model: freshly quantized: its graph still has the float weights (a loaded simulation has
            integers only).
        batches: ``x`` or ``(x, y)``; a few hundred samples suffice.

    Raises:
        DataError: no batches; or the model has no float weights.
    """
    graph, found = model.program.graph, model.program.encodings
    if lost := [n for n in model.program.layers if "weight" not in _params(model, n)]:
        raise DataError(f"the float weights of {', '.join(lost)} are gone: a loaded simulation")
    sums = {name: _Sums(found[name]) for name in found}
    for batch in batches:
        inputs = as_inputs(batch)
        values = model.trace(*inputs)

        def compare(name: str, x: Tensor, values: Any = values) -> None:
            if name in sums and name in values.codes:
                sums[name].add(x, sums[name].encoding.dequantize(values.codes[name]))

        run_float(graph, inputs, compare)
    if not any(s.n for s in sums.values()):
        raise DataError("layer errors need samples, and the data gave none")
    ops = {node.name: node.op for node in graph}
    names = [i.name for i in graph.inputs] + [n.name for n in graph]
    return [sums[n].finished(n, ops.get(n, "input")) for n in names if n in sums and sums[n].n]


def _params(model: QuantizedModel, name: str) -> dict[str, str]:
    node = model.program.graph.node(name)
    return {} if node is None else node.params


def weight_spreads(model: QuantizedModel) -> list[WeightSpread]:
    """Return the spread and error of every integer layer's weight, in the order of the graph."""
    rows = []
    for node in model.program.graph:
        layer = model.program.layers.get(node.name)
        weight = model.program.graph.param(node, "weight")
        if layer is None or weight is None:
            continue
        histogram = Histogram()
        histogram.update(weight)
        gap = layer.weight.dequantize().double() - weight.double()
        error = sqnr(float(weight.double().square().sum()), float(gap.square().sum()))
        low, high = (float(v) for v in torch.aminmax(layer.weight.scale))
        shape = tuple(weight.shape)
        row = WeightSpread(node.name, shape, error, low, high, layer.effective_bits, histogram)
        rows.append(row)
    return rows


def layer_records(errors: Iterable[TensorError], keys: dict[str, Any]) -> list[Record]:
    """Return each tensor's SQNR against the float graph, in dB."""
    return [
        Record(
            **{**keys, "layer": e.tensor, "op": e.op, "metric": "sqnr", "value": e.sqnr, "n": e.n}
        )
        for e in errors
    ]


@final
class _Sums:
    """Running sums of one tensor over the batches."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.signal = self.noise = self.total = self.largest = 0.0
        self.outside = self.n = 0
        self.values = Histogram()

    def add(self, x: Tensor, x_hat: Tensor) -> None:
        gap = (x.double() - x_hat.double()).abs()
        self.signal += float(x.double().square().sum())
        self.noise += float(gap.square().sum())
        self.total += float(gap.sum())
        self.largest = max(self.largest, float(gap.max()))
        half = self.encoding.scale / 2
        beyond = (x < self.encoding.low - half) | (x > self.encoding.high + half)
        self.outside += int(beyond.sum())
        self.n += x.numel()
        self.values.update(x)

    def finished(self, tensor: str, op: str) -> TensorError:
        scale = self.encoding.scale
        return TensorError(
            tensor=tensor,
            op=op,
            encoding=self.encoding,
            sqnr=sqnr(self.signal, self.noise),
            mean_lsb=self.total / self.n / scale,
            max_lsb=self.largest / scale,
            clipped=self.outside / self.n,
            n=self.n,
            values=self.values,
        )

"""From encodings to integers: quantized weights, int32 biases that fit, quantized constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.algorithms.roundings.nearest import Nearest
from bitsmith.errors import DataError, WeightsError
from bitsmith.model.graph.ir import Graph, Node
from bitsmith.model.place import Placement
from bitsmith.model.targets import Target
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme

__all__ = ["IntegerLayer", "integer_layer", "integer_table"]

#: |bias code| stays below this, so that bias plus products stay inside int32.
_BIAS_LIMIT = float(1 << 30)
#: A channel without weights gives its bias this many steps of resolution.
_BIAS_STEPS = float(1 << 20)


@final
@dataclass(frozen=True)
class IntegerLayer:
    """A convolution, linear layer or table of an embedding in integers.

    Attributes:
        weight: int8 codes per output channel (axis 0).
        bias: int32 ``[O]`` in steps of ``x.scale · weight.scale``, or None.
        error, nearest_error: mean squared weight error, of this rounding and of plain nearest.
    """

    weight: QTensor
    bias: Tensor | None
    error: float
    nearest_error: float

    @property
    def effective_bits(self) -> float:
        """Mean over channels of 8 + log2(full-range scale / scale used): what a bound costs."""
        weight = self.weight.dequantize().flatten(1)
        full = weight.abs().amax(1).clamp(min=1e-38) / self.weight.scheme.code_max
        lost = torch.log2(self.weight.scale.reshape(-1) / full).clamp(min=0)
        return float(self.weight.scheme.format.bits - lost.mean())


def integer_layer(
    graph: Graph, node: Node, placement: Placement, target: Target, x: Encoding
) -> IntegerLayer:
    """Return ``node``'s weight and bias in integers, for inputs encoded as ``x``.

    A channel whose bias would leave int32 gets a larger weight scale: ONNX Runtime would clip
    the bias silently.

    Raises:
        WeightsError: the weight or the bias has NaN or infinite values.
    """
    weight, bias = graph.param(node, "weight"), graph.param(node, "bias")
    assert weight is not None
    if bias is not None and not bool(torch.isfinite(bias).all()):
        raise WeightsError(f"layer {node.name}: a bias is not finite")
    scheme = placement.weights[node.name]
    min_scale = _bias_scale(weight, bias, x, scheme)
    try:
        rounded = target.rounding(node, weight, scheme)(weight, scheme, min_scale=min_scale)
    except DataError as error:
        raise WeightsError(f"layer {node.name}: {error}") from error
    q = _without_empty_scales(rounded.qtensor, weight, min_scale)
    codes = None
    if bias is not None:
        step = torch.tensor(x.scale, dtype=torch.float32) * q.scale.reshape(-1)
        wide = torch.round(bias.double() / step.double())
        if not bool((wide.abs() <= 2 * _BIAS_LIMIT - 1).all()):
            raise WeightsError(f"layer {node.name}: a bias leaves int32")
        codes = wide.to(torch.int32)
    return IntegerLayer(q, codes, rounded.error, rounded.nearest_error)


def integer_table(graph: Graph, node: Node, placement: Placement) -> IntegerLayer:
    """Return the table of an embedding as codes, one scale for each row; nothing is summed.

    Raises:
        WeightsError: the table has NaN or infinite values.
    """
    weight = graph.param(node, "weight")
    assert weight is not None
    try:
        rounded = Nearest()(weight, placement.weights[node.name])
    except DataError as error:
        raise WeightsError(f"layer {node.name}: {error}") from error
    return IntegerLayer(rounded.qtensor, None, rounded.error, rounded.nearest_error)


def _bias_scale(weight: Tensor, bias: Tensor | None, x: Encoding, scheme: Scheme) -> Tensor:
    shape = scheme.granularity.scale_shape(weight.shape)
    if bias is None:
        return torch.zeros(shape)
    smallest = bias.double().abs() / (x.scale * _BIAS_LIMIT)
    return torch.nan_to_num(smallest).float().reshape(shape)


def _without_empty_scales(q: QTensor, weight: Tensor, min_scale: Tensor) -> QTensor:
    """A channel of zeros has no scale of its own; give its bias a fine one instead of 1."""
    empty = (weight.flatten(1) == 0).all(1).reshape(q.scale.shape)
    if not bool(empty.any()):
        return q
    fine = (min_scale * (_BIAS_LIMIT / _BIAS_STEPS)).clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.where(empty & (min_scale > 0), fine, q.scale)
    return QTensor(q.codes, scale, q.zero_point, q.codebook, q.scheme)

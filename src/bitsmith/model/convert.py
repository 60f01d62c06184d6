"""From encodings to integers: quantized weights, int32 biases that fit, quantized constants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from bitsmith.algorithms.rounding import Rounded, Rounding
from bitsmith.algorithms.roundings.nearest import Nearest
from bitsmith.algorithms.roundings.shared_table import SharedTable
from bitsmith.errors import DataError, WeightsError
from bitsmith.model.graph.ir import Node
from bitsmith.model.place import Placement
from bitsmith.model.targets import Target
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import int1, ternary
from bitsmith.numbers.packing import packed_bytes
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme

__all__ = [
    "IntegerLayer",
    "demanded_codes",
    "demanded_rounding",
    "integer_layer",
    "integer_table",
    "layer_of",
    "least_scale",
]

#: |bias code| stays below this, so that bias plus products stay inside int32.
_BIAS_LIMIT = float(1 << 30)
#: A channel without weights gives its bias this many steps of resolution.
_BIAS_STEPS = float(1 << 20)


@final
@dataclass(frozen=True)
class IntegerLayer:
    """A convolution, linear layer or table of an embedding in integers.

    Attributes:
        weight: int8 codes, one scale for each output channel (axis 0) or for all.
        bias: int32 ``[O]`` in steps of ``x.scale · weight.scale``, or None.
        error, nearest_error: mean squared weight error, of this rounding and of plain nearest.
        table: the values that the codes take, int8 ``[≤ 2^bits]`` ascending, where they are
            fewer than the scheme has; None: every code of the scheme.
    """

    weight: QTensor
    bias: Tensor | None
    error: float
    nearest_error: float
    table: Tensor | None = None

    @property
    def bits(self) -> int:
        """Bits of a stored code: those of the format, or of an index into the table."""
        if self.table is None:
            return self.weight.scheme.format.bits
        return max(1, (self.table.numel() - 1).bit_length())

    @property
    def effective_bits(self) -> float:
        """Mean over channels of bits + log2(full-range scale / scale used): what a bound costs.

        Of codes from a table, the bits of an index. Where all channels share a scale, a channel
        has the bits that its own values span: those of small range have few. Channels of zeros
        have none then, and do not count otherwise.
        """
        if self.table is not None:
            return float(self.bits)
        weight = self.weight.dequantize().flatten(1)
        full = weight.abs().amax(1).clamp(min=1e-38) / self.weight.scheme.code_max
        bits, scale = float(self.weight.scheme.format.bits), self.weight.scale.reshape(-1)
        lost = torch.log2(scale / full).clamp(0, bits)
        counted = weight.abs().amax(1) > 0 if scale.numel() > 1 else torch.ones_like(lost) > 0
        return bits - float(lost[counted].mean()) if bool(counted.any()) else bits

    @property
    def nbytes(self) -> int:
        """Bytes of the weight, densely packed: codes or indices, scales, and the table."""
        if self.table is None:
            return self.weight.nbytes
        indices = packed_bytes(self.weight.codes.numel(), self.bits)
        return indices + self.table.numel() + 4 * self.weight.scale.numel()


def integer_layer(node: Node, placement: Placement, target: Target, x: Encoding) -> IntegerLayer:
    """Return ``node``'s weight and bias in integers, for inputs encoded as ``x``.

    A channel whose bias would leave int32 gets a larger weight scale (all get it where they share
    one): ONNX Runtime would clip the bias silently.

    Raises:
        WeightsError: the weight or the bias has NaN or infinite values.
    """
    weight = placement.graph.param(node, "weight")
    bias = placement.graph.param(node, "bias")
    assert weight is not None
    if bias is not None and not bool(torch.isfinite(bias).all()):
        raise WeightsError(f"layer {node.name}: a bias is not finite")
    scheme = placement.weights[node.name]
    rounded = _rounded(node, weight, bias, scheme, x, demanded_rounding(node, placement, target, x))
    errors = rounded.error, rounded.nearest_error
    table_bits = placement.tables.get(node.name)
    return layer_of(node, rounded.qtensor, bias, x, *errors, table_bits=table_bits)


def demanded_rounding(node: Node, placement: Placement, target: Target, x: Encoding) -> Rounding:
    """Return the rounding that obeys what ``target`` and a table ask of the codes of a layer."""
    weight = placement.graph.param(node, "weight")
    assert weight is not None
    table_bits = placement.tables.get(node.name)
    if table_bits is not None:
        return SharedTable(table_bits, target.entry_limit(node, weight, x.format.bits))
    return target.rounding(node, weight, placement.weights[node.name], x.format.bits)


def demanded_codes(
    node: Node, weight: Tensor, bias: Tensor | None, scheme: Scheme, target: Target, x: Encoding
) -> QTensor:
    """Return the codes of a weight that ``target`` itself would choose, as :func:`integer_layer`.

    Raises:
        WeightsError: the weight is not finite.
    """
    rounding = target.rounding(node, weight, scheme, x.format.bits)
    return _rounded(node, weight, bias, scheme, x, rounding).qtensor


def _rounded(
    node: Node, weight: Tensor, bias: Tensor | None, scheme: Scheme, x: Encoding, rounding: Rounding
) -> Rounded:
    min_scale = least_scale(weight, bias, x, scheme)
    try:
        found = rounding(weight, scheme, min_scale=min_scale)
    except DataError as error:
        raise WeightsError(f"layer {node.name}: {error}") from error
    return replace(found, qtensor=_without_empty_scales(found.qtensor, weight, min_scale))


def layer_of(
    node: Node,
    weight: QTensor,
    bias: Tensor | None,
    x: Encoding,
    error: float,
    nearest_error: float,
    *,
    table_bits: int | None = None,
) -> IntegerLayer:
    """Return a rounded weight and a float bias as a layer in integers.

    Args:
        node: the layer.
        weight: symmetric codes per output channel or per tensor. The sign bits of ``int1`` become
            the codes −1 and 1.
        bias: float32 ``[O]``, or None.
        x: encoding of the layer's input.
        error, nearest_error: see :class:`IntegerLayer`.
        table_bits: the codes take at most ``2^table_bits`` values, which become its table.

    Raises:
        WeightsError: a bias leaves int32, or the codes take more values.
    """
    codes = None
    if bias is not None:
        step = torch.tensor(x.scale, dtype=torch.float32) * weight.scale.reshape(-1)
        wide = torch.round(bias.double() / step.double())
        limit = 2 * _BIAS_LIMIT - 1
        if count := int((~(wide.abs() <= limit)).sum()):
            raise WeightsError(
                f"layer {node.name}: {count} of {len(wide)} biases leave int32: above {limit:,} "
                "steps (input scale times weight scale); give the layer 8-bit weights or leave it "
                "float in the recipe; in training, lower the learning rate"
            )
        codes = wide.to(torch.int32)
    if weight.scheme.format == int1:
        weight, table_bits = _signs(weight), 1
    table = None if table_bits is None else torch.unique(weight.codes)
    if table is not None and table_bits is not None and table.numel() > 1 << table_bits:
        raise WeightsError(
            f"layer {node.name}: its codes take {table.numel()} values, and a table of "
            f"{table_bits} bits holds {1 << table_bits}"
        )
    return IntegerLayer(weight, codes, error, nearest_error, table)


def _signs(q: QTensor) -> QTensor:
    """Return ``int1`` as codes to calculate with: −1 and 1 of ``ternary``."""
    scheme = Scheme(ternary, granularity=q.scheme.granularity)
    return QTensor((1 - 2 * q.codes.to(torch.int8)), q.scale, q.zero_point, None, scheme)


def integer_table(node: Node, placement: Placement) -> IntegerLayer:
    """Return the table of an embedding as codes, one scale for each row; nothing is summed.

    Raises:
        WeightsError: the table has NaN or infinite values.
    """
    weight = placement.graph.param(node, "weight")
    assert weight is not None
    try:
        rounded = Nearest()(weight, placement.weights[node.name])
    except DataError as error:
        raise WeightsError(f"layer {node.name}: {error}") from error
    return IntegerLayer(rounded.qtensor, None, rounded.error, rounded.nearest_error)


def least_scale(weight: Tensor, bias: Tensor | None, x: Encoding, scheme: Scheme) -> Tensor:
    """Return the smallest weight scales at which the bias stays inside int32; the scale's shape."""
    shape = scheme.granularity.scale_shape(weight.shape)
    if bias is None:
        return torch.zeros(shape)
    smallest = torch.nan_to_num(bias.double().abs() / (x.scale * _BIAS_LIMIT)).float()
    return smallest.reshape(shape) if shape else smallest.amax()


def _without_empty_scales(q: QTensor, weight: Tensor, min_scale: Tensor) -> QTensor:
    """A channel of zeros has no scale of its own; give its bias a fine one instead of 1.

    So has a whole weight of zeros, where one scale is for all.
    """
    empty = (weight.flatten(1) == 0).all(1)
    empty = empty.reshape(q.scale.shape) if q.scale.dim() else empty.all()
    if not bool(empty.any()):
        return q
    fine = (min_scale * (_BIAS_LIMIT / _BIAS_STEPS)).clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.where(empty & (min_scale > 0), fine, q.scale)
    return QTensor(q.codes, scale, q.zero_point, q.codebook, q.scheme)

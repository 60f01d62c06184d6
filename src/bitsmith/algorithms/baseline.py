"""Nearest rounding in the min–max range: what every rounding is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from bitsmith.numbers.affine import quantize, scale_zero_point
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.granularity import blocked
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.ranges import value_range
from bitsmith.numbers.scheme import Scheme

__all__ = ["nearest", "weight_range"]


def nearest(weight: Tensor, scheme: Scheme, min_scale: Tensor) -> QTensor:
    """Return ``weight`` at its nearest codes, ties to even, in each group's min–max range.

    A learned table gets the evenly spaced values from the smallest to the largest weight of its
    group: ``2^bits`` of them, or for vectors of d weights the grid of ``2^⌊bits/d⌋`` values along
    each of the d (the rest of the table repeats the last entry).

    Args:
        weight: float32, finite, not empty.
        scheme: any.
        min_scale: no scale is smaller; the shape of the scale.

    Raises:
        DataError: the weight is empty or not finite.
        SchemeError: the scheme does not fit the weight.
    """
    if isinstance(scheme.format, LearnedFormat):
        return _even_table(weight, scheme, scheme.format)
    if not bool((min_scale > 0).any()):
        return quantize(weight, scheme)
    scale, zero_point = weight_range(weight, scheme)
    return quantize(weight, scheme, torch.maximum(scale, min_scale), zero_point)


def weight_range(weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return ``(scale, zero_point)`` of the min–max range, of the scale's shape."""
    return scale_zero_point(
        *value_range(weight, scheme.granularity.scale_shape(weight.shape)), scheme
    )


def _even_table(weight: Tensor, scheme: Scheme, number: LearnedFormat) -> QTensor:
    d = number.dimension
    shape = scheme.granularity.scale_shape(weight.shape)
    low, high = value_range(weight, shape)
    per_axis = 1 << (number.bits // d)
    share = torch.linspace(0, 1, per_axis) if per_axis > 1 else torch.tensor([0.5])
    even = torch.lerp(low[..., None], high[..., None], share)  # [*shape, per_axis]
    wide, narrow = blocked(weight.shape, shape)
    width = (high - low).reshape(narrow)
    unit = (weight.reshape(wide) - low.reshape(narrow)) / torch.where(width > 0, width, 1.0)
    levels = (unit.reshape(weight.shape) * (per_axis - 1)).round().to(torch.int64)
    codebook = even
    if d > 1:
        place = per_axis ** torch.arange(d)
        levels = (levels.reshape(*levels.shape[:-1], -1, d) * place).sum(-1)
        entries = torch.arange(1 << number.bits).clamp(max=per_axis**d - 1)
        digits = entries[:, None] // place % per_axis  # [2^bits, d]
        codebook = even[..., digits]
    inner = scheme.scale_format
    if isinstance(inner, NumberFormat):
        codebook = inner.decode(inner.encode(codebook))
    ones = torch.ones(shape)
    zero_point = torch.zeros(shape, dtype=torch.int32)
    return QTensor(levels.to(number.dtype), ones, zero_point, codebook, scheme)

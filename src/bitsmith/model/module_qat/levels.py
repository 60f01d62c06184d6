"""Scales, offsets and codes while they are trained: the form in which they will be stored.

A scale is rounded to its scheme's scale format in every forward pass, so training sees the numbers
that the packed weight will hold. The gradient passes through that rounding unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.granularity import blocked
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scales import store_offsets, store_scales
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.straight_through import scaled_gradient, straight_through

__all__ = [
    "Layout",
    "Level",
    "in_format",
    "in_units",
    "not_finite",
    "stored_offset",
    "stored_scale",
]

_TINY = torch.finfo(torch.float32).tiny


@final
@dataclass(frozen=True)
class Layout:
    """Which values of a weight ``[rows, columns]`` share a scale.

    Attributes:
        groups: shape of the scales.
        wide, narrow: shapes in which weight and scales broadcast.
        count: number of scales.
        members: values that share one.
    """

    groups: tuple[int, ...]
    wide: tuple[int, ...]
    narrow: tuple[int, ...]
    count: int
    members: int

    @classmethod
    def of(cls, shape: torch.Size, scheme: Scheme) -> Layout:
        """Return the layout of a weight of ``shape``."""
        groups = scheme.granularity.scale_shape(shape)
        count = torch.Size(groups).numel()
        return cls(groups, *blocked(shape, groups), count, shape.numel() // max(count, 1))

    def grouped(self, x: Tensor) -> Tensor:
        """Return values ``[count, members]``; a view or a copy."""
        order = [i for i, n in enumerate(self.narrow) if n > 1]
        order += [i for i in range(len(self.wide)) if i not in order]
        return x.reshape(self.wide).permute(order).reshape(self.count, -1)


@final
@dataclass(frozen=True)
class Level:
    """Scales or offsets as they are deployed, with a gradient, and their second level if any."""

    values: Tensor
    stored: QTensor | None = None


def stored_scale(exact: Tensor, scheme: Scheme) -> Level:
    """Return the numbers that ``scheme`` stores for scales; NaN stays NaN.

    Args:
        exact: float32, of the shape of the scheme's granularity.
        scheme: its ``scale_format`` rounds them.
    """
    inner, given = scheme.scale_format, exact.detach()
    if not isinstance(inner, Scheme):
        least = _TINY if inner is None else max(inner.step, _TINY)
        return Level(in_format(exact, inner, least))
    if not_finite(given):
        return Level(exact * torch.nan)
    stored = store_scales(given.clamp(min=_TINY), scheme)
    return Level(straight_through(stored.dequantize(), exact), stored)


def stored_offset(exact: Tensor, scheme: Scheme) -> Level:
    """Return the numbers that ``scheme`` stores for offsets, which are 0 or more."""
    inner, given = scheme.offset_format, exact.detach()
    if not isinstance(inner, Scheme):
        return Level(in_format(exact, inner, 0.0))
    if not_finite(given):
        return Level(exact * torch.nan)
    stored = store_offsets(given.clamp(min=0.0), scheme)
    return Level(straight_through(stored.dequantize(), exact), stored)


def in_units(ratio: Tensor, unit: Tensor, factor: float) -> Tensor:
    """Return ``unit · ratio``, and for the ratio the gradient ``factor · gradient / unit``.

    Plain descent then moves the product as if it were the parameter itself, whatever the unit;
    optimizers whose steps have a size of their own (Adam) change it in proportion to the unit.
    Scales are far smaller than weights: without it the usual learning rates of Adam leave
    nothing of them after a few steps.

    Args:
        ratio: a parameter, near 1.
        unit: float32, positive, its shape.
        factor: of the gradient.
    """
    scaled = scaled_gradient(ratio.float(), factor)
    return straight_through((scaled * unit).detach(), scaled / unit)


def in_format(
    exact: Tensor, number: NumberFormat | Scheme | None, least: float | None = None
) -> Tensor:
    """Return the nearest numbers of a float format, at least ``least``; NaN stays NaN."""
    given = exact.detach()
    bounded = given if least is None else given.clamp(min=least)
    if isinstance(number, NumberFormat):
        known = torch.isfinite(bounded)
        rounded = number.decode(number.encode(torch.where(known, bounded, 0.0)))
        bounded = torch.where(known, rounded, bounded)
    return straight_through(bounded, exact)


def not_finite(x: Tensor) -> bool:
    """Whether a value is NaN or infinite."""
    return not bool(torch.isfinite(x).all())

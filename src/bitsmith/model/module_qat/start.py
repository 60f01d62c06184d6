"""Where learned scales start: at those of least squared error of the weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.algorithms.roundings.searched import Searched
from bitsmith.model.module_qat.levels import Layout
from bitsmith.numbers.ranges import value_range
from bitsmith.numbers.scales import scale_parameters
from bitsmith.numbers.scheme import Scheme

__all__ = ["COLLAPSE", "Start", "searched_start"]

COLLAPSE = 2.0**-10
"""A scale goes no lower than this share of where it started."""

_STEPS = 20
"""Candidates of the range search, as many as rounding without training takes."""


@final
@dataclass(frozen=True)
class Start:
    """Scale, and the value of code 0: float32 of the shape of the groups."""

    scale: Tensor
    offset: Tensor


def searched_start(flat: Tensor, scheme: Scheme, layout: Layout) -> Start:
    """Return scale and offset with which the weight loses the least.

    A group of zeros says nothing of a scale: it gets the mean of the others', or where all are
    zero the one with which uniform weights of variance 1 / (3 · columns), the usual initial
    ones, fit.

    Args:
        flat: float32 ``[rows, columns]``, finite.
        scheme: of it, with scales.
        layout: of both.
    """
    empty = layout.grouped(flat).abs().amax(1) == 0
    if not bool(empty.any()):
        return _searched(flat, scheme, layout)
    ones = torch.where(empty.reshape(layout.narrow), 1.0, flat.reshape(layout.wide))
    found = _searched(ones.reshape(flat.shape), scheme, layout)
    number, filled = scheme.format, ~empty.reshape(layout.groups)
    usual = flat.shape[1] ** -0.5 / max(number.max, -number.min, 1.0)
    mean = found.scale[filled].mean() if bool(filled.any()) else found.scale.new_tensor(usual)
    scale = torch.where(filled, found.scale, mean)
    return Start(scale, torch.where(filled, found.offset, found.offset / found.scale * scale))


def _searched(flat: Tensor, scheme: Scheme, layout: Layout) -> Start:
    """Return scale and offset of groups none of which is all zeros."""
    found = Searched(_STEPS)(flat, scheme).qtensor
    plain = scale_parameters(*value_range(flat, layout.groups), scheme)
    usable = found.scale > 0  # blocks that were searched may have scales of 0 or below
    scale = torch.where(usable, found.scale, plain.scale)
    if found.offset is not None and plain.offset is not None:
        return Start(scale, -torch.where(usable, found.offset, plain.offset))
    point = torch.where(usable, found.zero_point, plain.zero_point)
    return Start(scale, -point.to(torch.float32) * scale)

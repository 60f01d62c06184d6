"""Which schemes blocks are searched for, and what those say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch

from bitsmith.errors import SchemeError
from bitsmith.numbers.block_fit import Codes
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.formats.minifloat import fp32
from bitsmith.numbers.granularity import PerGroup
from bitsmith.numbers.scheme import Scheme

__all__ = ["BlockPlan", "block_plan"]


@final
@dataclass(frozen=True)
class BlockPlan:
    """What a scheme says, in numbers.

    Attributes:
        size: values in a block.
        count: blocks in a super-block; 1 without two levels.
        codes, dtype: of values.
        inner, shift: the schemes of scales and offsets in two levels.
        shifted: there are offsets.
        scale_number, offset_number: how ``d`` and ``m``, or scales and offsets, are stored.
    """

    size: int
    count: int
    codes: Codes
    dtype: torch.dtype
    inner: Scheme | None
    shift: Scheme | None
    shifted: bool
    scale_number: NumberFormat
    offset_number: NumberFormat


def block_plan(scheme: Scheme) -> BlockPlan:
    """Return the plan of ``scheme``.

    Raises:
        SchemeError: blocks are not searched for it; every reason is listed.
    """
    if reasons := list(_refusals(scheme)):
        raise SchemeError(f"blocks cannot be searched for this scheme: {'; '.join(reasons)}")
    grain, inner, shift = scheme.granularity, scheme.scale_format, scheme.offset_format
    assert isinstance(grain, PerGroup)
    two = inner if isinstance(inner, Scheme) else None
    count = two.granularity.size if two and isinstance(two.granularity, PerGroup) else 1
    return BlockPlan(
        grain.size,
        count,
        Codes(scheme.code_min, scheme.code_max),
        scheme.format.dtype,
        two,
        shift if isinstance(shift, Scheme) else None,
        scheme.shifted,
        _number(inner),
        _number(shift),
    )


def _number(level: NumberFormat | Scheme | None) -> NumberFormat:
    number = level.scale_format if isinstance(level, Scheme) else level
    return number if isinstance(number, NumberFormat) else fp32


def _refusals(scheme: Scheme) -> Iterator[str]:
    inner, shift = scheme.scale_format, scheme.offset_format
    if not scheme.affine or not (scheme.symmetric or scheme.shifted):
        yield (
            f"{scheme.format.name} is searched for when it is an integer format, symmetric or with "
            "an offset_format (use search_range(x, scheme) for zero points)"
        )
    if not _last_axis(scheme):
        yield f"its blocks are groups along the last axis, PerGroup(size), not {scheme.granularity}"
    if scheme.rounding != "half_even":
        yield f"codes are the nearest ones, not by {scheme.rounding}"
    for name, level in (("scales", inner), ("offsets", shift)):
        if isinstance(level, Scheme) and not (level.affine and _last_axis(level)):
            yield f"{name} in two levels are integers in groups along the last axis, not {level}"
        elif isinstance(level, Scheme) and level.integer.signed and not level.symmetric:
            yield f"{name} in two levels have no zero point, but {level} has one"
        elif _number(level).min >= 0 or isinstance(getattr(level, "scale_format", None), Scheme):
            yield f"{name} come down to a float format with a sign, not {level}"
    if scheme.shifted:
        levels = [level for level in (inner, shift) if isinstance(level, Scheme)]
        if len(levels) == 1 or (levels and levels[0].granularity != levels[1].granularity):
            yield "scales and offsets have the same levels"


def _last_axis(scheme: Scheme) -> bool:
    return isinstance(scheme.granularity, PerGroup) and scheme.granularity.axis == -1

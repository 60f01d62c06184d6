"""Small blocks with their scale, or scale and offset, searched for: the block types of GGUF.

Ranges of 16 or 32 values, let alone scales that are quantized once more, are too coarse a view:
here scales, offsets and codes of every block are fitted to each other by least squares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.errors import SchemeError
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.block_fit import Codes, fit_offset, fit_scale, loss, total
from bitsmith.numbers.block_levels import fit_super_blocks
from bitsmith.numbers.block_plan import BlockPlan, block_plan
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.formats.minifloat import fp32
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.ranges import as_float32, relative_importance, value_range
from bitsmith.numbers.scheme import Scheme

__all__ = ["search_blocks"]

_SLAB = 1 << 17
"""Values searched at a time: a dozen arrays of this size stay near the processor."""


def search_blocks(x: Tensor, scheme: Scheme, importance: Tensor | None = None) -> QTensor:
    """Return ``x`` quantized in blocks whose scales, offsets and codes suit each other.

    Minimised is ``Σ importance · (x − Q(x))²``. In each block candidate scales are tried, with
    the least-squares scale (and offset) for their codes in closed form, as in ggml's
    ``make_qx_quants`` and ``make_qkx2_quants``; then codes and scale are refitted in turn. With
    two levels, the codes of scales and offsets are searched for their neighbours and the
    numbers they multiply refitted, so that what rounding the scales costs is won back. No
    super-block (without two levels: no block) is worse than in its min–max range.

    A scale may be negative (it is where the largest magnitude is positive and the codes reach one
    further down), and 0 in a block of zeros. An offset may be negative where it is stored with a
    sign: a block without values near 0 then spends no codes on them.

    Args:
        x: floating point, not empty; the blocks run along its last axis.
        scheme: an integer format in groups along the last axis: symmetric, or with an offset
            format; scales (and offsets) in a float format, or both in an integer scheme of groups
            along the last axis with a float scale.
        importance: how much an error counts, not negative; broadcasts to ``x``.

    Raises:
        DataError: ``x`` is empty or not finite; importance is negative, not finite, or does not
            broadcast.
        SchemeError: another kind of scheme, or one that does not fit the tensor; or scales beyond
            their format.

    >>> from bitsmith.numbers.affine import quantize
    >>> from bitsmith.numbers.named_schemes import named_scheme
    >>> x = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    >>> searched, plain = (f(x, named_scheme("Q4_K")) for f in (search_blocks, quantize))
    >>> bool((searched.dequantize() - x).norm() < 0.9 * (plain.dequantize() - x).norm())
    True
    """
    plan = block_plan(scheme)
    x = as_float32(x)
    groups = scheme.granularity.scale_shape(x.shape)
    outer = groups if plan.inner is None else plan.inner.granularity.scale_shape(groups)
    value_range(x)  # refuses what is empty or not finite
    blocks = x.reshape(-1, plan.count, plan.size)
    weights = None if importance is None else relative_importance(importance, x)
    if weights is not None:
        weights = weights.reshape(blocks.shape)
    found: list[_Part] = []
    step = max(1, _SLAB // (plan.count * plan.size))
    for start in range(0, len(blocks), step):
        w = None if weights is None else weights[start : start + step]
        found.append(_searched(blocks[start : start + step], w, plan, scheme))
    whole = _Part(*(torch.cat(parts) for parts in zip(*map(_fields, found), strict=True)))
    return _assembled(whole, scheme, plan, x.shape, groups, outer)


@final
@dataclass(frozen=True)
class _Part:
    """Of some super-blocks: d, m ``[s]``; codes of scales and offsets ``[s, k]``, of values
    ``[s, k, n]``.
    """

    d: Tensor
    m: Tensor
    scales: Tensor
    offsets: Tensor
    codes: Tensor


def _fields(part: _Part) -> tuple[Tensor, ...]:
    return part.d, part.m, part.scales, part.offsets, part.codes


def _searched(blocks: Tensor, weights: Tensor | None, plan: BlockPlan, scheme: Scheme) -> _Part:
    """Search values ``[s, k, n]``, in units near their largest so that no square overflows.

    Super-blocks in which the range is better after all are those of :func:`quantize`: where
    ``d`` is denormal in its format, rounding it may undo more than the search gained.
    """
    x = blocks.permute(2, 1, 0).contiguous()
    w = None if weights is None else weights.permute(2, 1, 0).contiguous()
    unit = _power_of_two(x.abs().amax((0, 1)))  # [s]
    unscaled = x / unit
    rounders = _rounder(plan.scale_number, unit), _rounder(plan.offset_number, unit)
    offset = None
    if plan.shifted:
        signed = plan.shift is None
        scale, offset = fit_offset(unscaled, w, plan.codes, signed)
    else:
        scale = fit_scale(unscaled, w, plan.codes)
    if plan.inner is None:
        scale = rounders[0](scale)
        offset = None if offset is None else rounders[1](offset)
        d = scale[0]
        m = torch.zeros_like(d) if offset is None else offset[0]
        a = b = torch.ones_like(scale)
    else:
        own = Codes(plan.inner.code_min, plan.inner.code_max)
        shift = None if plan.shift is None else Codes(0, plan.shift.code_max)
        best = fit_super_blocks(unscaled, w, plan.codes, (scale, offset), (own, shift), rounders)
        d, m, a, b = best.d, best.m, best.scales, best.offsets
    real = (d * unit), (m * unit)
    codes = _final_codes(x, real[0] * a, real[1] * b if plan.shifted else None, plan.codes)
    found = _Part(*real, a.T, b.T, codes.to(plan.dtype).permute(2, 1, 0))
    plain = _plain(blocks, scheme)
    lost, plain_lost = (_loss(part, unscaled, w, unit, plan) for part in (found, plain))
    better = lost <= plain_lost
    return _Part(
        *(
            torch.where(better.reshape(-1, *[1] * (one.dim() - 1)), one, other)
            for one, other in zip(_fields(found), _fields(plain), strict=True)
        )
    )


def _plain(blocks: Tensor, scheme: Scheme) -> _Part:
    """Return what :func:`quantize` makes of ``[s, k, n]`` values."""
    q = quantize(blocks.flatten(1), scheme)
    codes = q.codes.reshape(blocks.shape)
    if q.scales is None:
        ones = torch.ones_like(q.scale)
        m = torch.zeros_like(ones) if q.offset is None else q.offset
        return _Part(q.scale[:, 0], m[:, 0], ones, ones, codes)
    d, a = q.scales.scale[:, 0], q.scales.codes.float()
    if q.offsets is None:
        return _Part(d, torch.zeros_like(d), a, torch.zeros_like(a), codes)
    return _Part(d, q.offsets.scale[:, 0], a, q.offsets.codes.float(), codes)


def _loss(part: _Part, x: Tensor, w: Tensor | None, unit: Tensor, plan: BlockPlan) -> Tensor:
    """Return the loss of each super-block, in ``unit``: ``[s]``."""
    scale = part.d / unit * part.scales.T
    offset = part.m / unit * part.offsets.T if plan.shifted else torch.zeros_like(scale)
    return total(loss(x, w, scale, offset, part.codes.permute(2, 1, 0).float()))


def _final_codes(x: Tensor, scale: Tensor, offset: Tensor | None, codes: Codes) -> Tensor:
    """Return the codes by the definition of quantizing, which divides."""
    if offset is not None:
        x = x + offset
    safe = torch.where(scale == 0, 1.0, scale)
    found = (x / safe).round_().clamp_(codes.low, codes.high)
    return torch.where(scale == 0, float(max(codes.low, 0)), found)


def _rounder(number: NumberFormat, unit: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the rounding to ``number`` of values given in ``unit``, which saturates."""
    if number is fp32:
        return lambda values: values
    return lambda values: number.decode(number.encode(values * unit)) / unit


def _power_of_two(a: Tensor) -> Tensor:
    """Return the power of two next above, within the normal numbers; 1 for 0."""
    exponent = torch.frexp(a).exponent.to(torch.int32).clamp(-100, 126)
    power = ((exponent + 127) << 23).view(torch.float32)
    return torch.where(a == 0, 1.0, power)


def _assembled(
    part: _Part,
    scheme: Scheme,
    plan: BlockPlan,
    shape: torch.Size,
    groups: tuple[int, ...],
    outer: tuple[int, ...],
) -> QTensor:
    codes = part.codes.reshape(shape)
    zeros = torch.zeros(groups, dtype=torch.int32, device=codes.device)
    d, m = part.d.reshape(outer), part.m.reshape(outer)
    _refuse_beyond(d, plan.scale_number, "scales")
    _refuse_beyond(m, plan.offset_number, "offsets")
    if plan.inner is None:
        offset = m if plan.shifted else None
        return QTensor(codes, d, zeros, None, scheme, None, offset)
    scales = _level(part.scales.reshape(groups), d, plan.inner)
    if plan.shift is None:
        return QTensor(codes, scales.dequantize(), zeros, None, scheme, scales)
    offsets = _level(part.offsets.reshape(groups), m, plan.shift)
    return QTensor(
        codes, scales.dequantize(), zeros, None, scheme, scales, offsets.dequantize(), offsets
    )


def _level(codes: Tensor, d: Tensor, inner: Scheme) -> QTensor:
    point = torch.zeros_like(d, dtype=torch.int32)
    return QTensor(codes.to(inner.format.dtype), d, point, None, inner)


def _refuse_beyond(values: Tensor, number: NumberFormat, name: str) -> None:
    """Refuse what saturated; the search gives no number that is exactly the format's largest."""
    if over := int((values.abs() >= number.max).sum()):
        raise SchemeError(
            f"{over} of {values.numel()} {name} are beyond {number.name}, whose largest number is "
            f"{number.max:g}: use a format with a larger range, such as bf16 or None (float32)"
        )

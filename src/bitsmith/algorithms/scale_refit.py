"""The scales of least output error for codes that stay as they are."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.granularity import PerChannel, PerGroup, blocked
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme

__all__ = ["blocked_like", "refit_scales"]


def refit_scales(weight: Tensor, q: QTensor, h: Tensor, min_scale: Tensor) -> QTensor:
    """Return ``q`` with the scales of least ``tr(D·H·Dᵀ)`` for its codes, group after group.

    The best scale of a group g of a row, the others as they are, is ``s − c·(H·D)_g / (c·H_gg·c)``
    with c its codes less the zero point; rounded to the scheme's scale format, and taken where
    the error falls and it is at least ``min_scale``. Schemes whose scales are not of groups of a
    row (per tensor, two levels, none) are returned as they are.
    """
    groups = _groups_of_rows(q)
    if not groups:
        return q
    zero = blocked_like(q.zero_point, q.shape)
    levels = _levels(q, zero)
    scale = q.scale.reshape(len(weight), groups).clone()
    floor = min_scale.reshape(scale.shape)
    size = levels.shape[1] // groups
    steps = scale.double().repeat_interleave(size, 1)
    gradient = (levels * steps - weight.flatten(1).double()) @ h
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        c = levels[:, part]
        slope, curve = (c * gradient[:, part]).sum(1), ((c @ h[part, part]) * c).sum(1)
        now = scale[:, g]
        wanted = _stored(now.double() - slope / curve.clamp(min=1e-300), q.scheme)
        delta = wanted.double() - now.double()
        good = (wanted > 0) & (wanted >= floor[:, g]) & torch.isfinite(wanted)
        good &= (curve > 0) & (delta * (2 * slope + delta * curve) < 0)
        delta = torch.where(good, delta, 0.0)
        scale[:, g] = torch.where(good, wanted, now)
        gradient += (c * delta[:, None]) @ h[part]
    return replace(q, scale=scale.reshape(q.scale.shape))


def blocked_like(part: Tensor, shape: torch.Size) -> Tensor:
    """Return the scale or zero point of each weight, ``[out, K]``."""
    wide, narrow = blocked(shape, part.shape)
    return part.reshape(narrow).expand(wide).reshape(shape).flatten(1)


def _levels(q: QTensor, zero: Tensor) -> Tensor:
    """Return what the scale multiplies, float64 ``[out, K]``."""
    if not q.scheme.affine:
        return q.scheme.format.decode(q.codes).flatten(1).double()
    return q.codes.flatten(1).double() - zero


def _groups_of_rows(q: QTensor) -> int:
    """Return the number of scales of a row, where each is of neighbouring inputs; else 0."""
    by, inner = q.scheme.granularity, q.scheme.scale_format
    if not q.scheme.scaled or isinstance(inner, Scheme) or q.codes.dim() < 2:
        return 0
    if by == PerChannel(0):
        return 1
    if isinstance(by, PerGroup) and q.codes.dim() == 2 and by.axis in (1, -1):
        return q.scale.shape[1]
    return 0


def _stored(scale: Tensor, scheme: Scheme) -> Tensor:
    """Return float32 scales in the scheme's scale format."""
    scale = scale.to(torch.float32)
    inner = scheme.scale_format
    if not isinstance(inner, NumberFormat):
        return scale
    return inner.decode(inner.encode(scale.clamp(min=0)))

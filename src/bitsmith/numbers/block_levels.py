"""Scales and offsets of small blocks in two levels, searched and refitted together.

Values, weights and scales lie as in :mod:`block_fit`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.numbers.block_fit import (
    Codes,
    extreme,
    inverse,
    loss,
    nearest,
    ratio,
    total,
    weighted,
)

__all__ = ["SuperBlocks", "fit_super_blocks"]

_Rounder = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True)
class SuperBlocks:
    """Scales in two levels: ``scale = d · scale_code``, ``offset = m · offset_code``.

    Attributes:
        d, m: ``[s]``.
        scales, offsets: codes ``[k, s]``, as float.
        loss: weighted squared error ``[k, s]``.
    """

    d: Tensor
    m: Tensor
    scales: Tensor
    offsets: Tensor
    loss: Tensor


def fit_super_blocks(
    x: Tensor,
    w: Tensor | None,
    codes: Codes,
    wished: tuple[Tensor, Tensor | None],
    levels: tuple[Codes, Codes | None],
    rounders: tuple[_Rounder, _Rounder],
) -> SuperBlocks:
    """Return scales (and offsets) in two levels, near those that are best without.

    First the finest ``d`` (and ``m``) that reach all of them, and some coarser ones. Then in turn:
    each block tries the neighbours of its scale and offset codes; ``d`` and ``m`` are refitted to
    all codes by least squares. Nothing is taken that is not better.

    Args:
        x, w, codes: values, weights, and codes of values.
        wished: scales and offsets ``[k, s]``.
        levels: their codes; None without offsets.
        rounders: to the numbers in which ``d`` and ``m`` are stored.
    """
    scale, (own, shift) = wished[0], levels
    zero = torch.zeros_like(scale)
    offset = zero if wished[1] is None else wished[1]
    top, highest = extreme(scale), offset.amax(0)
    best: SuperBlocks | None = None
    for f, g in _coarser(own, shift):
        d = rounders[0](top * f)
        m = rounders[1](highest * g)
        a = (scale * inverse(d)).round_().clamp_(own.low, own.high)
        b = zero if shift is None else (offset * inverse(m)).round_().clamp_(0, shift.high)
        best = _better(best, _state(x, w, codes, d, m, a, b))
    assert best is not None
    for _ in range(2):
        best = _neighbours(best, x, w, codes, own, shift)
        best = _refitted(best, x, w, codes, shift is not None, rounders)
    return _neighbours(best, x, w, codes, own, shift)


def _neighbours(
    now: SuperBlocks, x: Tensor, w: Tensor | None, codes: Codes, own: Codes, shift: Codes | None
) -> SuperBlocks:
    """Return the best of each block's scale and offset codes and those next to them."""
    a, b, least = now.scales, now.offsets, now.loss
    for i, j in itertools.product((-1, 0, 1), (-1, 0, 1) if shift else (0,)):
        if i == j == 0:
            continue
        one = (now.scales + i).clamp_(own.low, own.high)
        other = (now.offsets + j).clamp_(0, shift.high) if shift else now.offsets
        found = _state(x, w, codes, now.d, now.m, one, other).loss
        better = found < least
        a, b = torch.where(better, one, a), torch.where(better, other, b)
        least = torch.where(better, found, least)
    return SuperBlocks(now.d, now.m, a, b, least)


def _refitted(
    now: SuperBlocks,
    x: Tensor,
    w: Tensor | None,
    codes: Codes,
    shifted: bool,
    rounders: tuple[_Rounder, _Rounder],
) -> SuperBlocks:
    """Return ``d`` and ``m`` of least squares for all codes, where they are better."""
    offset = now.m * now.offsets if shifted else None
    a = nearest(x, now.d * now.scales, offset, codes).mul_(now.scales)
    wa = weighted(a, w)
    saa, sxa = total(total(wa * a)), total(total(wa * x))
    d, m = ratio(sxa, saa), now.m
    if shifted:
        b = now.offsets
        one = torch.full_like(b, float(len(x))) if w is None else total(w)
        sab, sbb = total(total(wa) * b), total(one * b * b)
        sxb = total(total(weighted(x, w)) * b)
        det = saa * sbb - sab * sab
        m = ratio(sab * sxa - sxb * saa, det)
        negative = (m < 0) | (det <= 0)
        m = torch.where(negative, 0.0, m)
        d = torch.where(negative, d, ratio(sxa * sbb - sxb * sab, det))
    found = _state(x, w, codes, rounders[0](d), rounders[1](m), now.scales, now.offsets)
    return _better(now, found)


def _state(
    x: Tensor, w: Tensor | None, codes: Codes, d: Tensor, m: Tensor, a: Tensor, b: Tensor
) -> SuperBlocks:
    scale, offset = d * a, m * b
    lost = loss(x, w, scale, offset, nearest(x, scale, offset, codes))
    return SuperBlocks(d, m, a, b, lost)


def _better(old: SuperBlocks | None, new: SuperBlocks) -> SuperBlocks:
    """Return, for each super-block, the one of the smaller loss."""
    if old is None:
        return new
    take = total(new.loss) < total(old.loss)
    return SuperBlocks(*(torch.where(take, vars(new)[k], vars(old)[k]) for k in vars(new)))


def _coarser(own: Codes, shift: Codes | None) -> list[tuple[float, float]]:
    """Return the candidates of ``d`` and ``m``, as parts of the largest scale and offset."""
    ends = [own.low, own.low + 1, own.high] if own.low else [own.high, own.high - 1]
    if own.high <= 15:
        ends += [own.high - 2, own.high + 1]
    if shift is None:
        return [(1 / end, 0.0) for end in ends]
    others = range(shift.high - 2, shift.high + 1) if shift.high <= 15 else [shift.high]
    return [(1 / end, 1 / other) for end in ends for other in others]

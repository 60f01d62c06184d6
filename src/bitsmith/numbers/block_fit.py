"""Scales and offsets of small blocks by weighted least squares, all blocks at once.

Values are ``x [n, k, s]``: n values in a block, k blocks in a super-block, s super-blocks (k is 1
without them), with weights ``w`` of that shape or None. In this order every sum over a block runs
along rows of neighbouring blocks. Scales and offsets of blocks are ``[k, s]``, and a value is
``scale · code − offset``.
"""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor

__all__ = [
    "Codes",
    "extreme",
    "fit_offset",
    "fit_scale",
    "inverse",
    "loss",
    "nearest",
    "ratio",
    "total",
    "weighted",
]

_REFINEMENTS = 4


@final
class Codes(NamedTuple):
    """The smallest and the largest code."""

    low: int
    high: int


def nearest(x: Tensor, scale: Tensor, offset: Tensor | None, codes: Codes) -> Tensor:
    """Return the nearest codes as float; the code nearest 0 where the scale is 0."""
    found = x.clone() if offset is None else x + offset
    return found.mul_(inverse(scale)).round_().clamp_(codes.low, codes.high)


def fit_scale(x: Tensor, w: Tensor | None, codes: Codes) -> Tensor:
    """Return the scale of each block, of either sign.

    For each of some candidates at which code the value of largest magnitude comes to lie, the
    others are rounded, and the best scale for these codes is in closed form, ``Σwxq / Σwq²``; it
    lowers the error by ``(Σwxq)² / Σwq²``. The candidate that lowers it most goes on: codes and
    scale are made the best for each other in turn.
    """
    wx = weighted(x, w)
    unit = inverse(extreme(x))
    best, most = torch.zeros_like(unit), torch.zeros_like(unit)
    for reach in _reaches(codes):
        q = (x * (unit * reach)).round_().clamp_(codes.low, codes.high)
        scale, gain = _scale_of(wx, w, q)
        better = gain > most
        most, best = torch.where(better, gain, most), torch.where(better, scale, best)
    for _ in range(_REFINEMENTS):
        scale, gain = _scale_of(wx, w, nearest(x, best, None, codes))
        best = torch.where(gain > most, scale, best)
        most = torch.maximum(gain, most)
    return best


def fit_offset(x: Tensor, w: Tensor | None, codes: Codes, signed: bool) -> tuple[Tensor, Tensor]:
    """Return scale and offset of each block, the offset not negative unless ``signed``.

    Candidates stretch the codes over more or less than the range of the values. For each, the
    values are rounded and the least-squares line through them found; the line with the least
    error goes on: codes and line are made the best for each other in turn.
    """
    low, high = x.amin(0), x.amax(0)
    if not signed:
        low = low.clamp(max=0.0)
    unit = inverse(high - low)
    one = torch.full_like(low, float(len(x))) if w is None else total(w)
    sums = one, total(weighted(x, w))
    scale, offset = (high - low) / codes.high, -low
    least = loss(x, w, scale, offset, nearest(x, scale, offset, codes))

    def improve(q: Tensor) -> None:
        nonlocal scale, offset, least
        line = _line_of(x, w, q, sums, signed)
        found = loss(x, w, *line, q)
        better = found < least
        least = torch.where(better, found, least)
        scale = torch.where(better, line[0], scale)
        offset = torch.where(better, line[1], offset)

    for step in _stretches(codes):
        q = ((x - low) * (unit * (codes.high + step))).round_().clamp_(codes.low, codes.high)
        improve(q)
    for _ in range(_REFINEMENTS):
        improve(nearest(x, scale, offset, codes))
    return scale, offset


def _scale_of(wx: Tensor, w: Tensor | None, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least-squares scale for codes, and by how much it lowers the error."""
    product = total(wx * q)
    scale = ratio(product, total(weighted(q.square_(), w)))
    return scale, product * scale


def _line_of(
    x: Tensor, w: Tensor | None, q: Tensor, sums: tuple[Tensor, Tensor], signed: bool
) -> tuple[Tensor, Tensor]:
    """Return scale and offset of the least-squares line ``x ≈ scale · q − offset``."""
    one, sx = sums
    wq = weighted(q, w)
    sq, sqq, sxq = total(wq), total(wq * q), total(wq * x)
    det = one * sqq - sq * sq
    scale, offset = ratio(one * sxq - sx * sq, det), ratio(sq * sxq - sqq * sx, det)
    outside = det <= 0
    if not signed:
        outside |= offset < 0
    return torch.where(outside, ratio(sxq, sqq), scale), torch.where(outside, 0.0, offset)


def loss(x: Tensor, w: Tensor | None, scale: Tensor, offset: Tensor, q: Tensor) -> Tensor:
    """Return the weighted squared error of each block."""
    error = (q * scale).sub_(offset).sub_(x).square_()
    return total(error if w is None else error.mul_(w))


def total(t: Tensor) -> Tensor:
    """Return the sum along axis 0, halves added to halves: the same bits for any other axes."""
    own = False
    while len(t) > 1:
        first, second, *last = torch.split(t, len(t) // 2)
        t = torch.add(first, second, out=first if own else None)
        own = True
        if last:
            t[0] += last[0][0]
    return t[0]


def extreme(t: Tensor) -> Tensor:
    """Return the value of largest magnitude along axis 0."""
    return t.gather(0, t.abs().argmax(0, keepdim=True))[0]


def weighted(x: Tensor, w: Tensor | None) -> Tensor:
    """Return ``w · x``."""
    return x if w is None else x * w


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a / b``, 0 where ``b`` is."""
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


def inverse(a: Tensor) -> Tensor:
    """Return ``1 / a``, 0 where ``a`` is."""
    return ratio(torch.ones_like(a), a)


def _reaches(codes: Codes) -> list[float]:
    """Return the candidates where the value of largest magnitude comes to lie.

    Beyond the last code (the value is then cut off) as well as before it, in tenths of a code,
    and for few codes in ever larger parts of their number.
    """
    near = [0.1 * i for i in range(-9, 10)]
    ends = {codes.high, -codes.low}
    found = []
    for end, sign in ((-codes.low, -1.0), (codes.high, 1.0)):
        part = near if end == max(ends) else near[::3]
        far = [end * f for f in (0.2, 0.35, 0.5)] if end <= 16 else []
        found += [sign * (end + step) for step in part + [f for f in far if f > 0.9]]
    return found


def _stretches(codes: Codes) -> list[float]:
    """Return by how many codes the range of the values is stretched."""
    if codes.high <= 3:
        return [0.1 * i for i in range(-5, 13)]
    return [0.1 * i for i in range(-10, 11, 2)] + [0.15 * codes.high, 0.3 * codes.high]

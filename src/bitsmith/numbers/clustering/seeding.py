"""Starts of Lloyd's iterations in one dimension: quantiles, and k-means++ by look-ups."""

from __future__ import annotations

import torch
from torch import Tensor

from bitsmith.numbers.clustering.rows import SortedRows

__all__ = ["plus_plus", "quantiles"]


def quantiles(rows: SortedRows, k: int) -> Tensor:
    """Return the values at shares ``(j + ½)/k`` of the weight, float64 ``[rows, 1, k]``."""
    share = (torch.arange(k, dtype=torch.float64, device=rows.x.device) + 0.5) / k
    target = share * rows.weight[:, -1:]
    place = torch.searchsorted(rows.weight[:, 1:].contiguous(), target)
    return rows.x.gather(1, place.clamp(max=rows.x.shape[1] - 1))[:, None]


def plus_plus(rows: SortedRows, k: int, uniform: Tensor) -> Tensor:
    """Return k centres drawn one by one with probability ``∝ w·D²``, float64 ``[rows, starts, k]``.

    D is the distance to the nearest centre drawn so far (Arthur & Vassilvitskii 2007, section
    2.2). Sorted values make a draw O(k·log n): the prefix sums give the loss of each centre's
    run of values, a run is drawn by its loss, and bisection finds the value inside it.

    Args:
        uniform: the draws, float64 in [0, 1), ``[starts, k]``; every row uses the same.
    """
    count, n = rows.x.shape
    target = uniform[:, 0] * rows.weight[:, -1:]  # [rows, starts]
    place = torch.searchsorted(rows.weight[:, 1:].contiguous(), target, right=True)
    centres = rows.x.gather(1, place.clamp(max=n - 1))[..., None]  # [rows, starts, 1]
    for j in range(1, k):
        bounds = rows.runs(centres)
        weight, first, second = rows.between(bounds)
        mass = (second - 2 * centres * first + centres.square() * weight).clamp(min=0)
        total = mass.cumsum(-1)
        target = uniform[:, j] * total[..., -1]
        run = torch.searchsorted(total, target[..., None], right=True).clamp(max=j - 1)
        rest = target[..., None] - (total - mass).gather(2, run)
        begin, end = bounds.gather(2, run), bounds.gather(2, run + 1)
        place = _bisect(rows, centres.gather(2, run), begin, end, rest)
        drawn = rows.x.gather(1, place.reshape(count, -1)).reshape(place.shape)
        centres = torch.cat([centres, drawn], 2).sort(2).values
    return centres


def _bisect(rows: SortedRows, centre: Tensor, begin: Tensor, end: Tensor, rest: Tensor) -> Tensor:
    """Return the first place in ``begin … end − 1`` up to which the loss exceeds ``rest``.

    All ``[rows, starts, 1]``; an empty run gives a place beside it.
    """
    n = rows.x.shape[1]
    low, high = begin, (end - 1).clamp(min=0)
    for _ in range(n.bit_length()):
        middle = (low + high) // 2
        part = torch.cat([begin, middle + 1], 2)
        weight, first, second = rows.between(part)
        enough = second - 2 * centre * first + centre.square() * weight > rest
        high = torch.where(enough, middle, high)
        low = torch.where(enough, low, torch.minimum(middle + 1, high))
    return low.clamp(max=n - 1)

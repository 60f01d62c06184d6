"""Sorted rows with prefix sums: the squared error of any cluster of neighbours in four look-ups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["SortedRows", "prefix_sums", "sort_rows", "usable_weights"]


@final
@dataclass(frozen=True)
class SortedRows:
    """Rows of values in ascending order, about their weighted mean, in float64.

    With W, S and Q the prefix sums of ``w``, ``w·x`` and ``w·x²``, the values ``i … j − 1`` of a
    row lose ``Q_j − Q_i − (S_j − S_i)²/(W_j − W_i)`` about their weighted mean.

    Attributes:
        x: ``[rows, n]``, less the row's mean.
        w: weights, up to a factor, ``[rows, n]``.
        mean: what was subtracted, ``[rows, 1]``.
        weight, first, second: W, S and Q, ``[rows, n + 1]``.
    """

    x: Tensor
    w: Tensor
    mean: Tensor
    weight: Tensor
    first: Tensor
    second: Tensor

    def runs(self, centres: Tensor) -> Tensor:
        """Return the boundaries of the runs of values nearest to ascending ``centres``.

        ``centres`` is float64 ``[rows, starts, k]``, the result int64 ``[rows, starts, k + 1]``
        from 0 to n; a value midway belongs to the lower centre.
        """
        count, starts, k = centres.shape
        middles = ((centres[..., :-1] + centres[..., 1:]) / 2).reshape(count, -1)
        inner = torch.searchsorted(self.x, middles, right=True).reshape(count, starts, k - 1)
        inner = torch.nn.functional.pad(inner, (1, 0))
        return torch.nn.functional.pad(inner, (0, 1), value=self.x.shape[1])

    def between(self, bounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return weight, first and second sums of clusters ``bounds[…, j] … bounds[…, j+1]``.

        ``bounds`` is int64 ``[rows, starts, k + 1]``; each result is ``[rows, starts, k]``.
        """
        flat = bounds.reshape(len(bounds), -1)
        sums = (self.weight, self.first, self.second)
        weight, first, second = (s.gather(1, flat).reshape(bounds.shape).diff() for s in sums)
        return weight, first, second

    def loss(self, bounds: Tensor) -> Tensor:
        """Return the loss of each partition about its clusters' means, ``[rows, starts]``."""
        weight, first, second = self.between(bounds)
        smallest = torch.finfo(torch.float64).tiny
        return (second - first.square() / weight.clamp(min=smallest)).clamp(min=0).sum(-1)


def usable_weights(weights: Tensor | None) -> Tensor | None:
    """Return ``weights`` ``[rows, n]`` with ones in every row that is all zero.

    A row whose sensitivities are all zero says nothing about where precision matters, and still
    needs entries that represent it: it is treated as unweighted, in the objective too.
    """
    if weights is None:
        return None
    return torch.where((weights == 0).all(1, keepdim=True), weights.new_ones(()), weights)


def sort_rows(values: Tensor, weights: Tensor | None) -> SortedRows:
    """Return ``values`` ``[rows, n]`` sorted with the prefix sums of ``weights`` (1 if None)."""
    if weights is None:
        x = values.sort(1).values.double()
        weight = torch.ones_like(x)
    else:
        values, order = values.sort(1)
        x, weight = values.double(), weights.gather(1, order).double()
        weight = weight / weight.amax(1, keepdim=True)
    return prefix_sums(x, weight)


def prefix_sums(x: Tensor, weight: Tensor) -> SortedRows:
    """Return the record of rows in ascending order already, float64; ``weight`` as given."""
    mean = (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    x = x - mean
    total = torch.cumsum(weight, 1)
    if total.device.type != "cpu":  # sums in parallel may fall by rounding
        total = torch.cummax(total, 1).values
    # What a weight adds to its rounded prefix sum: with it, no weight means no moment either.
    added = torch.diff(total, dim=1, prepend=torch.zeros_like(total[:, :1]))
    moment = x * added
    sums = (total, torch.cumsum(moment, 1), torch.cumsum(moment * x, 1))
    padded = (torch.nn.functional.pad(s, (1, 0)) for s in sums)
    return SortedRows(x.contiguous(), weight.contiguous(), mean, *padded)

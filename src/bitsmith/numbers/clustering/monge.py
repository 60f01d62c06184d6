"""Shortest paths over boundaries of clusters, by divide and conquer on a Monge cost.

The least loss of splitting sorted values into t clusters obeys ``F_t(j) = min_i F_{t−1}(i) +
cost(i, j)``. The squared error about the mean is Monge, ``cost(a, c) + cost(b, d) ≤ cost(a, d) +
cost(b, c)`` for a ≤ b ≤ c ≤ d, so the best i does not fall as j grows, and halving the rows finds
all of them in O(n log n) (Wu, "Optimal quantization by matrix searching", 1991; Grønlund et al.,
arXiv 1701.07204, section 2.2). Any subset of the rows and columns stays Monge, and so does a term
that depends on one boundary only: the lower bounds of :mod:`narrow` run through the same code.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt

from bitsmith.numbers.clustering.rows import SortedRows

__all__ = ["Array", "Front", "Sums", "backtrack", "forward", "positions"]

Array = npt.NDArray[Any]

_PIECE = 1 << 20  # candidate pairs evaluated at a time


@final
@dataclass(frozen=True)
class Sums:
    """The prefix sums of all rows, end to end: position ``row·stride + i`` is before value i."""

    weight: Array
    first: Array
    second: Array
    stride: int

    @classmethod
    def of(cls, rows: SortedRows) -> Sums:
        """Return the prefix sums of ``rows`` without a copy."""
        weight, first, second = (
            s.numpy().reshape(-1) for s in (rows.weight, rows.first, rows.second)
        )
        return cls(weight, first, second, rows.weight.shape[1])

    def mirrored(self) -> Sums:
        """Return the sums of the values in reverse: position p becomes ``len − 1 − p``."""
        weight, first, second = (-s[::-1] for s in (self.weight, self.first, self.second))
        return Sums(weight, first, second, self.stride)

    def loss(self, begin: Array, end: Array) -> Array:
        """Return the squared error of clusters ``begin … end`` about their means, at least 0."""
        weight, first = self.weight[end] - self.weight[begin], self.first[end] - self.first[begin]
        second = self.second[end] - self.second[begin]
        smallest = np.finfo(np.float64).tiny
        loss = second - first * first / np.maximum(weight, smallest)
        return np.asarray(np.maximum(loss, 0))


@final
@dataclass(frozen=True)
class Front:
    """Where one boundary may lie, in ascending order, over all rows.

    A candidate is a point (``end == begin``: the cluster on its left ends where the one on its
    right begins) or a cell with the values inside it left out (``end < begin``).

    Attributes:
        end: positions where the cluster on the left ends, int64 ``[candidates]``.
        begin: positions where the cluster on the right begins.
        discount: what a path through the candidate is let off, float64 or None for nothing.
    """

    end: Array
    begin: Array
    discount: Array | None = None

    def mirrored(self, size: int) -> Front:
        """Return the candidates for :meth:`Sums.mirrored` sums of ``size`` positions."""
        discount = None if self.discount is None else self.discount[::-1]
        return Front(size - 1 - self.begin[::-1], size - 1 - self.end[::-1], discount)


def positions(points: Array) -> Front:
    """Return the front of candidate points."""
    return Front(points, points)


def forward(sums: Sums, fronts: Sequence[Front]) -> tuple[list[Array], list[Array]]:
    """Return the least loss of reaching each candidate, and from where.

    Args:
        fronts: of boundaries 0 … k; the first and the last hold one point a row.

    Returns:
        ``(losses, origins)``, a list item a front: the loss of the clusters up to the candidate
        less the discounts before it (its own not yet), infinite where it cannot be reached; and
        the index into the front before. ``origins[0]`` is empty.
    """
    losses, origins = [np.zeros(len(fronts[0].end))], [np.zeros(0, np.int64)]
    for before, after in itertools.pairwise(fronts):
        value = losses[-1] if before.discount is None else losses[-1] - before.discount
        # A path may stand still; inside one cell that costs nothing, and is handled apart.
        cells = bool((before.end < before.begin).any()) and bool((after.end < after.begin).any())
        first = np.searchsorted(before.end, after.end - after.end % sums.stride)
        side: Literal["left", "right"] = "left" if cells else "right"
        last = np.searchsorted(before.end, after.end, side) - 1
        best, origin = _cheapest(sums, value, before.begin, after.end, first, last)
        if cells:
            same = np.minimum(last + 1, len(before.end) - 1)
            still = np.where(before.end[same] == after.end, value[same], np.inf)
            best = np.minimum(best, still)
        losses.append(best)
        origins.append(origin)
    return losses, origins


def backtrack(fronts: Sequence[Front], origins: Sequence[Array]) -> Array:
    """Return the boundaries of the best path of each row, int64 ``[rows, k + 1]``."""
    index = np.arange(len(fronts[-1].end))
    bounds = [fronts[-1].end]
    for front, origin in zip(fronts[-2::-1], origins[:0:-1], strict=True):
        index = origin[index]
        bounds.append(front.begin[index])
    return np.stack(bounds[::-1], 1)


def _cheapest(
    sums: Sums, value: Array, begin: Array, end: Array, first: Array, last: Array
) -> tuple[Array, Array]:
    """Return min and argmin over ``first[j] ≤ i ≤ last[j]`` of ``value[i] + cost(i, j)``.

    ``first`` is constant within a row of values and ascending over rows, ``last`` ascending.
    Every other candidate of a row is solved first; its neighbours bound those in between.
    """
    best, origin = np.full(len(end), np.inf), first.copy()
    reachable = np.flatnonzero(last >= first)
    if not len(reachable):
        return best, origin
    group = first[reachable]
    opens = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    sizes = np.diff(np.r_[opens, len(group)])
    local = np.arange(len(group)) - np.repeat(opens, sizes)  # place within the row of values
    size = np.repeat(sizes, sizes)
    columns = (value - sums.second[begin], sums.weight[begin], sums.first[begin])
    step = 1 << int(sizes.max()).bit_length() - 1
    while step:
        chosen = np.flatnonzero((local & (2 * step - 1)) == step - 1)
        here = reachable[chosen]
        below = reachable[np.maximum(chosen - step, 0)]
        above = reachable[np.minimum(chosen + step, len(reachable) - 1)]
        low = np.where(local[chosen] >= step, origin[below], first[here])
        bounded = local[chosen] + step < size[chosen]
        high = np.where(bounded, np.minimum(origin[above], last[here]), last[here])
        best[here], origin[here] = _scan(sums, columns, end[here], low, high)
        step //= 2
    return best, origin


def _scan(
    sums: Sums, columns: tuple[Array, Array, Array], end: Array, low: Array, high: Array
) -> tuple[Array, Array]:
    """Return min and argmin of each ragged range ``low[j] … high[j]`` of candidates."""
    lengths = high - low + 1
    pieces = np.unique(np.searchsorted(np.cumsum(lengths), np.arange(0, lengths.sum(), _PIECE)))
    best, origin = np.empty(len(end)), np.empty(len(end), np.int64)
    for start, stop in zip(pieces, [*pieces[1:], len(end)], strict=True):
        part = slice(start, stop)
        length = lengths[part]
        starts = np.cumsum(length) - length
        index = np.arange(length.sum()) + np.repeat(low[part] - starts, length)
        weight = np.repeat(sums.weight[end[part]], length) - columns[1][index]
        spread = np.repeat(sums.first[end[part]], length) - columns[2][index]
        spread *= spread
        spread /= np.maximum(weight, np.finfo(np.float64).tiny, out=weight)
        loss = np.subtract(columns[0][index], spread, out=spread)
        least = np.minimum.reduceat(loss, starts)
        hits = np.flatnonzero(loss == np.repeat(least, length))
        origin[part] = index[hits[np.searchsorted(hits, starts)]]
        best[part] = least + sums.second[end[part]]
    return best, origin

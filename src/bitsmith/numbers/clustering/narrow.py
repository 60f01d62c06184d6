"""Branch and bound: where the boundaries of an optimal one-dimensional clustering can still lie.

The values of a row are cut into cells of neighbours. For each of the k − 1 boundaries a set of
cells that may hold it is kept; a cell is dropped when every partition with the boundary inside
it provably loses more than a partition that is known. Two lower bounds, both minimised by
:func:`monge.forward` from both sides:

- *Left out*: cells that hold a boundary cost nothing, and a cluster costs at least what the full
  cells between two of them cost.
- *Rounded*: moving the boundary of an optimal partition to one of the ends of its cell loses at
  most ``(c_{t+1} − c_t)·Σ_i w_i·|x_i − μ|`` (i over the cell, μ its mean), for the loss of a value
  is ``(x − c_1)²`` less hinges ``2·(c_{t+1} − c_t)·max(0, x − middle_t)`` and Jensen's gap of a
  hinge is at most half the mean absolute deviation. That deviation is at most ``√(W·loss)`` of
  the cell, and the gap between centres is bounded by where the boundaries may lie. The bound is
  quadratic in the width of cells, so few rounds suffice.

No step is a heuristic: what remains always contains the boundaries of an optimal partition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from bitsmith.numbers.clustering.monge import Array, Front, Sums, backtrack, forward, positions

__all__ = [
    "Cells",
    "cut_cells",
    "edge_partition",
    "narrow_left_out",
    "narrow_rounded",
    "point_fronts",
]


@final
@dataclass(frozen=True)
class Cells:
    """Cells of all rows in order, and which of them may hold which boundary.

    Attributes:
        edges: int64 ascending positions, from the first to the last of each row.
        left: indices into ``edges`` of the left edge of each cell, int64 ``[cells]``.
        alive: whether boundary t + 1 may lie in the cell (its edges included), bool
            ``[k − 1, cells]``.
    """

    edges: Array
    left: Array
    alive: Array

    def candidates(self) -> int:
        """Return how many positions remain, summed over the boundaries."""
        return int((self.alive @ (self.edges[self.left + 1] - self.edges[self.left])).sum())

    def refine(self, parts: int) -> Cells:
        """Return the cells with every living one cut into ``parts`` of as many values."""
        living = self.left[self.alive.any(0)]
        begin, end = self.edges[living], self.edges[living + 1]
        inner = begin[:, None] + (end - begin)[:, None] * np.arange(1, parts) // parts
        edges = np.unique(np.concatenate([self.edges, inner.reshape(-1)]))
        parent = np.searchsorted(self.edges[self.left], edges, side="right") - 1
        left = np.flatnonzero(edges[:-1] < self.edges[self.left + 1][parent[:-1]])
        return Cells(edges, left, self.alive[:, parent[left]])


def cut_cells(x: Array, weight: Array, k: int, count: int) -> Cells:
    """Return at most ``count`` cells a row in which every boundary may lie.

    They hold equal shares of ``∫ density^(1/3)``, as the centres of a good quantizer do (Panter
    & Dite 1951), so that the clusters have about as many cells each.

    Args:
        x: ascending values, ``[rows, n]``.
        weight: of each value, ``[rows, n]``.
    """
    rows, n = x.shape
    spread = np.gradient(x, axis=1)
    share = np.cbrt(weight * spread * spread)
    for _ in range(4):  # a gap next to one outlier takes one cell, not most of them
        share = np.minimum(share, share.sum(1, keepdims=True) / count)
    share = np.cumsum(share, axis=1)
    levels = np.arange(1, count) / count
    starts = np.arange(rows) * (n + 1)
    inner = [np.searchsorted(s, levels * s[-1]) + a for s, a in zip(share, starts, strict=True)]
    edges = np.unique(np.concatenate([starts, starts + n, *inner]))
    left = np.flatnonzero(edges[:-1] // (n + 1) == edges[1:] // (n + 1))
    return Cells(edges, left, np.ones((k - 1, len(left)), bool))


def narrow_left_out(sums: Sums, cells: Cells, limit: Array) -> Cells:
    """Return the cells that the bound *left out* does not exclude; ``limit`` is ``[rows]``."""
    edges, alive = cells.edges, cells.alive.copy()
    inner = [cells.left[a] for a in alive]
    fronts = [Front(edges[i], edges[i + 1]) for i in inner]
    for flags, keep in zip(alive, _within(sums, fronts, limit), strict=True):
        flags[flags] = keep
    return _unless_empty(cells, alive, sums)


def narrow_rounded(sums: Sums, cells: Cells, x: Array, limit: Array, noise: Array) -> Cells:
    """Return the cells that the bound *rounded* does not exclude.

    Args:
        x: the ascending values, ``[rows, n]``.
        limit: the loss above which a partition is not optimal, ``[rows]``.
        noise: the rounding error that a loss from ``sums`` may have, ``[rows]``.
    """
    edges, left, alive = cells.edges, cells.left, cells.alive.copy()
    row = edges[left] // sums.stride
    weight = sums.weight[edges[left + 1]] - sums.weight[edges[left]]
    loss = sums.loss(edges[left], edges[left + 1]) + noise[row]
    single = edges[left + 1] - edges[left] == 1
    deviation = np.where(single, 0.0, np.sqrt(weight * loss))
    fronts, inner = [], []
    for flags, gap in zip(alive, _gaps(sums, cells, x), strict=True):
        discount = np.full(len(edges), -1.0)
        discount[left[flags]] = (gap[row] * deviation)[flags]
        after = left[flags] + 1
        discount[after] = np.maximum(discount[after], (gap[row] * deviation)[flags])
        inner.append(np.flatnonzero(discount >= 0))
        points = edges[inner[-1]]
        fronts.append(Front(points, points, discount[inner[-1]]))
    for flags, keep, points in zip(alive, _within(sums, fronts, limit), inner, strict=True):
        reached = np.zeros(len(edges), bool)
        reached[points[keep]] = True
        flags &= reached[left] | reached[left + 1]
    return _unless_empty(cells, alive, sums)


def point_fronts(sums: Sums, cells: Cells) -> list[Front]:
    """Return, for boundaries 0 … k, every position that remains."""
    fronts = []
    for flags in cells.alive:
        begin, end = cells.edges[cells.left[flags]], cells.edges[cells.left[flags] + 1]
        length = end - begin + 1
        offset = np.repeat(begin - (np.cumsum(length) - length), length)
        points = np.arange(length.sum()) + offset
        fronts.append(positions(points[np.r_[True, points[1:] > points[:-1]]]))
    return _with_ends(sums, fronts)


def edge_partition(sums: Sums, cells: Cells) -> Array:
    """Return the boundaries of the best partition at edges of living cells, ``[rows, k + 1]``."""
    fronts = []
    for flags in cells.alive:
        found = np.zeros(len(cells.edges), bool)
        found[cells.left[flags]] = found[cells.left[flags] + 1] = True
        fronts.append(positions(cells.edges[found]))
    fronts = _with_ends(sums, fronts)
    return backtrack(fronts, forward(sums, fronts)[1])


def _with_ends(sums: Sums, fronts: list[Front]) -> list[Front]:
    starts = np.arange(0, len(sums.weight), sums.stride)
    return [positions(starts), *fronts, positions(starts + sums.stride - 1)]


def _within(sums: Sums, fronts: list[Front], limit: Array) -> list[Array]:
    """Return which candidates lie on a path that loses at most ``limit``, a mask a front."""
    whole, size = _with_ends(sums, fronts), len(sums.weight)
    prefix, _ = forward(sums, whole)
    suffix, _ = forward(sums.mirrored(), [f.mirrored(size) for f in reversed(whole)])
    masks = []
    for front, before, after in zip(fronts, prefix[1:-1], suffix[-2:0:-1], strict=True):
        total = before + after[::-1]
        if front.discount is not None:
            total -= front.discount
        masks.append(total <= limit[front.end // sums.stride])
    return masks


def _gaps(sums: Sums, cells: Cells, x: Array) -> Array:
    """Return upper bounds of the distance of the centres about each boundary, ``[k − 1, rows]``.

    The mean of a cluster grows with both of its ends, so the right centre is at most the mean
    between the last places of its two boundaries, the left at least that between the first.
    """
    starts = np.arange(0, len(sums.weight), sums.stride)
    rows = np.arange(len(starts))
    low, high = [starts], [starts]
    for flags in cells.alive:
        living = cells.left[flags]
        row = cells.edges[living] // sums.stride
        low.append(cells.edges[living[np.searchsorted(row, rows)]])
        high.append(cells.edges[living[np.searchsorted(row, rows, side="right") - 1] + 1])
    low.append(starts + sums.stride - 1)
    high.append(starts + sums.stride - 1)
    firsts, lasts = np.stack(low), np.stack(high)  # [k + 1, rows]
    least = _mean(sums, x, firsts[:-1], firsts[1:], outer=firsts[:-1])
    most = _mean(sums, x, lasts[:-1], lasts[1:], outer=lasts[1:] - 1)
    return np.asarray(np.maximum(most[1:] - least[:-1], 0))


def _mean(sums: Sums, x: Array, begin: Array, end: Array, outer: Array) -> Array:
    """Return the means of ``begin … end``; of nothing, the value at position ``outer``."""
    weight = sums.weight[end] - sums.weight[begin]
    row, column = outer // sums.stride, np.minimum(outer % sums.stride, x.shape[1] - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (sums.first[end] - sums.first[begin]) / weight
    return np.asarray(np.where(weight > 0, mean, x[row, column]))


def _unless_empty(before: Cells, alive: Array, sums: Sums) -> Cells:
    """Return the narrowed cells, or those before if rounding left a boundary without a cell."""
    row = before.edges[before.left] // sums.stride
    opens = np.flatnonzero(np.r_[True, row[1:] != row[:-1]])
    if not np.logical_or.reduceat(alive, opens, axis=1).all():
        return before
    return Cells(before.edges, before.left, alive)

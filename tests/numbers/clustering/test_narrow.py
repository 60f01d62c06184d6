"""The bounds of branch and bound: they may drop only what no optimal partition uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitsmith.numbers.clustering.monge import Sums, backtrack, forward
from bitsmith.numbers.clustering.narrow import (
    Cells,
    cut_cells,
    narrow_left_out,
    narrow_rounded,
    point_fronts,
)
from bitsmith.numbers.clustering.rows import SortedRows, sort_rows


def sample() -> SortedRows:
    generator = torch.Generator().manual_seed(21)
    normal = torch.randn(4, 1500, generator=generator, dtype=torch.float64)
    other = torch.randn(1500, generator=generator, dtype=torch.float64)
    x = torch.stack([normal[0], normal[1] ** 3, normal[2] + 6 * other.sign(), normal[3] / other])
    return sort_rows(x, torch.rand(4, 1500, generator=generator, dtype=torch.float64) + 0.1)


def optimum(rows: SortedRows, sums: Sums, k: int):
    """Return the boundaries of the plain dynamic program and their losses."""
    count, n = rows.x.shape
    starts = np.arange(count) * (n + 1)
    edges = np.stack([starts, starts + n], 1).reshape(-1)
    fronts = point_fronts(sums, Cells(edges, 2 * np.arange(count), np.ones((k - 1, count), bool)))
    bounds = backtrack(fronts, forward(sums, fronts)[1])
    return bounds, sums.loss(bounds[:, :-1], bounds[:, 1:]).sum(1)


def holds(cells: Cells, bounds) -> bool:
    """Say whether each boundary of each row lies in a living cell."""
    for boundary, alive in zip(bounds.T[1:-1], cells.alive, strict=True):
        left = cells.left[alive]
        begin, end = cells.edges[left], cells.edges[left + 1]
        inside = (begin <= boundary[:, None]) & (boundary[:, None] <= end)
        if not inside.any(1).all():
            return False
    return True


@pytest.mark.parametrize("k", [2, 5, 9])
@pytest.mark.parametrize("count", [3, 10, 40, 150, 600])
def test_the_optimum_stays_however_tight_the_limit(count, k):
    """With 3 cells and 9 clusters several boundaries share a cell."""
    rows = sample()
    sums, x = Sums.of(rows), rows.x.numpy()
    bounds, best = optimum(rows, sums, k)
    cells = cut_cells(x, rows.w.numpy(), k, count)
    limit, noise = best * (1 + 1e-10), 1e-12 * rows.second[:, -1].numpy()
    cells = narrow_left_out(sums, cells, limit)
    assert holds(cells, bounds)
    for _ in range(3):
        cells = narrow_rounded(sums, cells, x, limit, noise)
        assert holds(cells, bounds)
        cells = cells.refine(3)
        assert holds(cells, bounds)
    if count >= 150:
        assert cells.candidates() < 0.2 * (k - 1) * x.size


@pytest.mark.parametrize("k", [3, 6])
def test_the_optimum_stays_where_one_cell_holds_several_boundaries(k):
    rows = sample()
    sums = Sums.of(rows)
    bounds, best = optimum(rows, sums, k)
    starts = np.arange(4)[:, None] * 1501
    edges = (starts + np.array([0, 5, 10, 1450, 1490, 1495, 1500])).reshape(-1)
    left = np.flatnonzero(np.arange(28) % 7 < 6)
    cells = Cells(edges, left, np.ones((k - 1, 24), bool))
    narrowed = narrow_left_out(sums, cells, best * (1 + 1e-10))
    assert holds(narrowed, bounds)
    assert not narrowed.alive.all()


def test_refined_cells_cover_the_same_places():
    rows = sample()
    cells = cut_cells(rows.x.numpy(), rows.w.numpy(), 3, 20)
    keep = np.random.default_rng(0).random(cells.alive.shape) < 0.3
    cells = Cells(cells.edges, cells.left, keep)
    finer = cells.refine(5)
    assert finer.candidates() == cells.candidates()
    assert finer.alive.sum() > 3 * cells.alive.sum()
    assert np.isin(cells.edges, finer.edges).all()


def test_a_limit_below_the_optimum_drops_nothing():
    """Then a boundary would be left without a cell: the narrowing gives the cells back."""
    rows = sample()
    sums = Sums.of(rows)
    cells = cut_cells(rows.x.numpy(), rows.w.numpy(), 4, 500)
    assert narrow_left_out(sums, cells, np.zeros(4)) is cells

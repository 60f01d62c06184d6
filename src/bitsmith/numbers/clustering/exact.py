"""Exact one-dimensional k-means: dynamic programming, after branch and bound on long rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.clustering.clusters import (
    Clusters,
    check_k,
    check_values,
    check_weights,
    finish,
)
from bitsmith.numbers.clustering.lloyd import descend
from bitsmith.numbers.clustering.monge import Array, Sums, backtrack, forward
from bitsmith.numbers.clustering.narrow import (
    Cells,
    cut_cells,
    edge_partition,
    narrow_left_out,
    narrow_rounded,
    point_fronts,
)
from bitsmith.numbers.clustering.rows import SortedRows, prefix_sums, sort_rows, usable_weights

__all__ = ["kmeans_exact"]

_SHORT = 2048  # rows up to here, or 4·_CELLS·k, go straight to the dynamic program
_BATCH = 1 << 20  # values of rows solved together
_CELLS = 64  # for each cluster, at first
_PARTS = 8  # into which a cell is cut
_FEW = 1 << 16  # remaining positions that no longer pay another round of bounds


def kmeans_exact(values: Tensor, k: int, weights: Tensor | None = None) -> Clusters:
    """Return the codebook of k entries with the least weighted squared error.

    Minimises ``Σ_i w_i·min_j (x_i − c_j)²`` over all codebooks. In one dimension optimal clusters
    are runs of sorted values, so a shortest path over their boundaries finds the global optimum
    (Wang & Song, "Ckmeans.1d.dp", 2011), in O(k·n·log n) by the Monge property (:mod:`monge`).
    Rows of more than ``max(2048, 256·k)`` values first drop what branch and bound excludes
    (:mod:`narrow`): nearly all positions of ordinary weights for 16 entries. Where it cannot drop
    any, the dynamic program runs over all of them, and the result is the same.

    Precision: float64 throughout, about the weighted mean. The partition is optimal up to the
    rounding of the prefix sums, about ``√n·2⁻⁵²·Σ w·(x − mean)²``, and is then improved by Lloyd
    steps with plain sums; weights below ``2⁻⁵²`` of their row's sum may count as 0 in the
    partition. The entries are rounded to float32. On the CPU; results are on the device of
    ``values``. Memory: about 100 bytes a value, and 24 for each remaining position of each
    boundary (of all n·k positions only where the bounds exclude nothing).

    Args:
        values: floating, ``[n]`` or ``[rows, n]`` for a codebook a row.
        k: entries of a codebook, 1 to 256.
        weights: sensitivities ≥ 0 (Fisher diagonal or second moment of the input: SqueezeLLM,
            arXiv 2306.07629, equation 3), the shape of ``values`` or its trailing axes. A row of
            zeros counts as unweighted; otherwise a value of weight 0 is not represented, and only
            gets the nearest code.

    Raises:
        DataError: values or weights that are empty, not finite, negative weights, or shapes that
            do not fit.
        SchemeError: k out of range.

    >>> c = kmeans_exact(torch.tensor([1.0, 1.5, 7.0, 8.0, 8.5]), 2)
    >>> c.codebook.tolist(), c.codes.tolist(), round(c.objective.item(), 4)
    ([1.25, 7.833333492279053], [0, 0, 1, 1, 1], 1.2917)
    """
    check_k(k)
    check_values(values)
    if values.ndim not in (1, 2):
        raise DataError(f"values of shape {tuple(values.shape)}: [n] or [rows, n] are clustered")
    weights = check_weights(weights, values.shape)
    device, rows = values.device, values.detach().cpu()
    rows = rows.reshape(-1, rows.shape[-1])
    heavy = None if weights is None else weights.detach().cpu().reshape(rows.shape)
    heavy = usable_weights(heavy)
    parts = []
    batch = max(1, _BATCH // rows.shape[1])
    for start in range(0, len(rows), batch):
        part = slice(start, start + batch)
        parts.append(_centres(rows[part], None if heavy is None else heavy[part], k))
    found = finish(rows, heavy, torch.cat(parts), restarts=0, exact=True)
    book, objective = found.codebook, found.objective
    if values.ndim == 1:
        book, objective = book[0], objective[0]
    codes = found.codes.reshape(values.shape)
    return Clusters(book.to(device), codes.to(device), objective.to(device), 0, True)


def _centres(values: Tensor, weights: Tensor | None, k: int) -> Tensor:
    """Return the optimal centres of ``values`` ``[rows, n]``, float64 ``[rows, k]``."""
    if len(values) == 1:
        rows = _merged(values[0], None if weights is None else weights[0])
    else:
        rows = sort_rows(values, weights)
    centres = _settled(rows, torch.from_numpy(_bounds(rows, k)))
    few, distinct = _few_values(rows, k)
    return torch.where(few, distinct, centres) + rows.mean


def _merged(values: Tensor, weights: Tensor | None) -> SortedRows:
    """Return ``values`` ``[n]`` as one row, equal ones merged, those of weight 0 left out."""
    plain = (values if values.dtype == torch.float64 else values.float()).contiguous().numpy()
    if weights is None:
        x = np.sort(plain)
        opens = np.flatnonzero(np.r_[True, x[1:] != x[:-1]])
        merged = np.diff(np.r_[opens, len(x)]).astype(np.float64)
    else:
        heavy = weights.double().numpy()
        order = np.argsort(plain)
        order = order[heavy[order] > 0]
        x, heavy = plain[order], heavy[order]
        opens = np.flatnonzero(np.r_[True, x[1:] != x[:-1]])
        merged = np.add.reduceat(heavy / heavy.max(), opens)
    distinct = torch.from_numpy(x[opens].astype(np.float64))
    return prefix_sums(distinct[None], torch.from_numpy(merged)[None])


def _few_values(rows: SortedRows, k: int) -> tuple[Tensor, Tensor]:
    """Return which rows have at most k distinct values of weight > 0, and these, ``[rows, k]``."""
    x = torch.where(rows.w > 0, rows.x, -torch.inf).cummax(1).values
    new = x > torch.nn.functional.pad(x[:, :-1], (1, 0), value=-torch.inf)
    rank = new.cumsum(1) - 1
    candidates = torch.where(new, x, torch.inf)
    distinct = x[:, -1:].repeat(1, k)
    distinct.scatter_reduce_(1, rank.clamp(0, k - 1), candidates, "amin")
    return rank[:, -1:] < k, distinct


def _bounds(rows: SortedRows, k: int) -> Array:
    """Return the boundaries of an optimal partition, places in a row, int64 ``[rows, k + 1]``."""
    sums, (count, n) = Sums.of(rows), rows.x.shape
    if k == 1 or n <= max(_SHORT, 4 * _CELLS * k):
        every = Cells(*_whole(count, n), np.ones((k - 1, count), bool))
        fronts = point_fronts(sums, every)
    else:
        fronts = point_fronts(sums, _narrowed(rows, sums, k))
    found = backtrack(fronts, forward(sums, fronts)[1])
    return np.asarray(found - np.arange(count)[:, None] * sums.stride)


def _whole(count: int, n: int) -> tuple[Array, Array]:
    """Return the edges and left indices of one cell a row."""
    starts = np.arange(count) * (n + 1)
    return np.stack([starts, starts + n], 1).reshape(-1), 2 * np.arange(count)


def _narrowed(rows: SortedRows, sums: Sums, k: int) -> Cells:
    """Return what branch and bound leaves of every boundary's places."""
    x = rows.x.numpy()
    stride = np.arange(len(x))[:, None] * sums.stride
    moment = rows.first.abs().amax(1) * rows.x.abs().amax(1)
    total = torch.maximum(rows.second[:, -1], moment).numpy()
    noise = 8 * np.finfo(np.float64).eps * np.sqrt(x.shape[1]) * total

    def limit(cells: Cells) -> Array:
        start = torch.from_numpy(edge_partition(sums, cells) - stride)[:, None]  # [rows, 1, k + 1]
        bounds = descend(rows, start, iterations=50)
        return np.asarray(rows.loss(bounds)[:, 0].numpy() * (1 + 1e-9) + noise)

    cells = cut_cells(x, rows.w.numpy(), k, max(1024, _CELLS * k))
    bound = limit(cells)
    cells = narrow_rounded(sums, narrow_left_out(sums, cells, bound), x, bound, noise)
    left = cells.candidates()
    # Another round of bounds runs over the edges of all new cells twice; the end over places once.
    while left > max(_FEW, 2 * _PARTS * int(cells.alive.sum())):
        cells = cells.refine(_PARTS)
        bound = np.minimum(bound, limit(cells))
        cells = narrow_rounded(sums, cells, x, bound, noise)
        before, left = left, cells.candidates()
        if left > 0.7 * before:
            break
    return cells


def _settled(rows: SortedRows, bounds: Tensor) -> Tensor:
    """Return the centres ``[rows, k]`` after Lloyd steps whose sums cancel nothing."""
    k = bounds.shape[1] - 1
    places = torch.arange(rows.x.shape[1]).expand(rows.x.shape)
    for _ in range(10):
        code = torch.searchsorted(bounds[:, 1:-1].contiguous(), places.contiguous(), right=True)
        sums = torch.zeros(2, len(bounds), k, dtype=torch.float64)
        sums[0].scatter_add_(1, code, rows.w)
        sums[1].scatter_add_(1, code, rows.w * rows.x)
        centres = torch.where(sums[0] > 0, sums[1] / sums[0], -torch.inf).cummax(1).values
        centres = torch.where(centres.isinf(), rows.x[:, :1], centres)
        moved = rows.runs(centres[:, None])[:, 0]
        if torch.equal(moved, bounds):
            break
        bounds = moved
    return centres

"""Lloyd's iterations in one dimension, all rows and all restarts at once."""

from __future__ import annotations

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.clustering.clusters import (
    Clusters,
    check_counts,
    check_k,
    check_values,
    check_weights,
    finish,
)
from bitsmith.numbers.clustering.rows import SortedRows, sort_rows, usable_weights
from bitsmith.numbers.clustering.seeding import plus_plus, quantiles

__all__ = ["descend", "kmeans_lloyd"]

_BATCH = 1 << 21  # values of rows worked on together


def kmeans_lloyd(
    values: Tensor,
    k: int,
    weights: Tensor | None = None,
    restarts: int = 8,
    seed: int = 0,
    iterations: int = 100,
) -> Clusters:
    """Return the best codebooks of Lloyd's iterations, a local optimum of each row.

    Minimises ``Σ_i w_i·min_j (x_i − c_j)²`` by turns of assigning every value to its nearest
    centre and moving every centre to its values' weighted mean (Lloyd 1982); the loss never
    rises. The first start is at the weighted quantiles, the others are k-means++ (Arthur &
    Vassilvitskii 2007); the best of them is kept row by row. A centre that loses all its values
    moves to the far end of the costliest run, one an iteration. Rows are sorted once, so that an
    iteration costs k look-ups and not n: no Python loop over rows, and a row gives the same
    result alone as among others, since all rows use the same random draws.

    Args:
        values: floating, ``[rows, n]``, or ``[n]`` for one codebook.
        k: entries of a codebook, 1 to 256.
        weights: as in :func:`kmeans_exact`.
        restarts: starts, at least 1.
        seed: of the k-means++ draws.
        iterations: at most, at least 1; they end when no value moves.

    Raises:
        DataError: values or weights as in :func:`kmeans_exact`.
        InputError: restarts or iterations below 1.
        SchemeError: k out of range.

    >>> kmeans_lloyd(torch.tensor([[1.0, 1.5, 7.0, 8.0], [0.0, 0.0, 4.0, 4.0]]), 2).codebook
    tensor([[1.2500, 7.5000],
            [0.0000, 4.0000]])
    """
    check_k(k)
    check_counts(restarts=restarts, iterations=iterations)
    check_values(values)
    if values.ndim not in (1, 2):
        raise DataError(f"values of shape {tuple(values.shape)}: [n] or [rows, n] are clustered")
    weights = check_weights(weights, values.shape)
    rows = values.detach().reshape(-1, values.shape[-1])
    heavy = usable_weights(None if weights is None else weights.detach().reshape(rows.shape))
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(restarts - 1, k, generator=generator, dtype=torch.float64)
    uniform = uniform.to(values.device)
    centres = []
    batch = max(1, _BATCH // rows.shape[1])
    for start in range(0, len(rows), batch):
        part = slice(start, start + batch)
        some = sort_rows(rows[part], None if heavy is None else heavy[part])
        centres.append(_best(some, k, uniform, iterations))
    found = finish(rows, heavy, torch.cat(centres), restarts, exact=False)
    if values.ndim == 2:
        return found
    return Clusters(found.codebook[0], found.codes[0], found.objective[0], restarts, False)


def descend(rows: SortedRows, bounds: Tensor, iterations: int) -> Tensor:
    """Return the boundaries after Lloyd's iterations, int64 ``[rows, starts, k + 1]``.

    ``bounds[…, j] … bounds[…, j + 1] − 1`` are the places of cluster j; the loss of the result,
    :meth:`SortedRows.loss`, is at most that of the start.
    """
    for _ in range(iterations):
        moved = rows.runs(_means(rows, bounds))
        if torch.equal(moved, bounds):
            break
        bounds = moved
    return bounds


def _best(rows: SortedRows, k: int, uniform: Tensor, iterations: int) -> Tensor:
    """Return the centres of the best start of each row, float64 ``[rows, k]``."""
    starts = [quantiles(rows, k)]
    if len(uniform):
        starts.append(plus_plus(rows, k, uniform))
    bounds = descend(rows, rows.runs(torch.cat(starts, 1)), iterations)
    best = rows.loss(bounds).argmin(1)[:, None, None].expand(-1, 1, k + 1)
    return _means(rows, bounds.gather(1, best))[:, 0] + rows.mean


def _means(rows: SortedRows, bounds: Tensor) -> Tensor:
    """Return ascending centres of the runs; one of the centres without values is re-seeded."""
    weight, first, second = rows.between(bounds)
    used = weight > 0
    mean = first / torch.where(used, weight, 1)
    if used.all():
        return mean
    # Centres without values stand with their left neighbour, or with the first that has any.
    filled = torch.where(used, mean, -torch.inf).cummax(-1).values
    lowest = torch.where(used, mean, torch.inf).amin(-1, keepdim=True)
    filled = torch.maximum(filled, lowest)
    loss = torch.where(used, second - mean * first, -1)
    worst = loss.argmax(-1, keepdim=True)
    ends = torch.cat([bounds.gather(2, worst), bounds.gather(2, worst + 1) - 1], -1)
    ends = ends.clamp(0, rows.x.shape[1] - 1)
    points = rows.x.gather(1, ends.reshape(len(ends), -1)).reshape(ends.shape)
    away = (points - filled.gather(2, worst)).abs().argmax(-1, keepdim=True)
    point = points.gather(2, away)
    empty = (~used).int().argmax(-1, keepdim=True)
    noise = 1e-13 * rows.second[:, -1:, None]
    helps = (~used.all(-1, keepdim=True)) & (loss.gather(2, worst) > noise)
    seeded = filled.scatter(2, empty, torch.where(helps, point, filled.gather(2, empty)))
    return seeded.sort(-1).values

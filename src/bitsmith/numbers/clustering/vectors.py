"""k-means of short vectors: the codebooks of product quantization."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.clustering.clusters import (
    Clusters,
    check_counts,
    check_k,
    check_values,
    check_weights,
)

__all__ = ["assign_vectors", "kmeans_vectors"]

_PIECE = 1 << 21  # distances held at a time


def kmeans_vectors(
    vectors: Tensor,
    k: int,
    weights: Tensor | None = None,
    seed: int = 0,
    restarts: int = 4,
    iterations: int = 50,
) -> Clusters:
    """Return the best codebook of Lloyd's iterations from k-means++ starts, a local optimum.

    Minimises ``Σ_n min_j Σ_d h_nd·(x_nd − c_jd)²``; the centre of a cluster is the weighted mean
    of each coordinate (of weight 0 in all its vectors: the plain mean). Product quantization
    cuts weights into such vectors (Jégou et al. 2011; for networks: arXiv 1907.05686, equations
    3 to 5). A centre that loses all its vectors moves to the vector that loses most. The loss
    never rises; distances are formed piece by piece in float64.

    Args:
        vectors: floating, ``[n, dims]``.
        k: entries of the codebook, 1 to 256.
        weights: sensitivities ≥ 0 of vectors, ``[n]``, or of coordinates, ``[n, dims]``; all
            zero counts as unweighted.
        seed: of the k-means++ draws (Arthur & Vassilvitskii 2007).
        restarts: starts, at least 1.
        iterations: at most, at least 1; they end when no code changes.

    Returns:
        The record with ``codebook`` ``[k, dims]`` in lexicographic order, ``codes`` ``[n]``.

    Raises:
        DataError: vectors or weights that are empty, not finite, negative weights, or shapes
            that do not fit.
        InputError: restarts or iterations below 1.
        SchemeError: k out of range.

    >>> found = kmeans_vectors(torch.tensor([[0.0, 0.0], [0.0, 2.0], [9.0, 9.0]]), 2)
    >>> found.codebook.tolist(), found.codes.tolist(), found.objective.item()
    ([[0.0, 1.0], [9.0, 9.0]], [0, 0, 1], 2.0)
    """
    check_k(k)
    check_counts(restarts=restarts, iterations=iterations)
    heavy = _checked(vectors, weights)
    x = vectors.detach().double()
    mean = x.mean(0)
    x = x - mean
    h = torch.ones(1, 1, dtype=x.dtype, device=x.device) if heavy is None else heavy
    generator = torch.Generator().manual_seed(seed)
    best, least, tries = x[:k], torch.inf, 2 + int(math.log(k))
    for _ in range(restarts):
        uniform = torch.rand(k, tries, generator=generator, dtype=torch.float64)
        start = _plus_plus(x, h, uniform.to(x.device))
        centres, loss = _lloyd(x, h, start, iterations)
        if loss < least:
            best, least = centres, loss
    book = _ordered((best + mean).float())
    codes, losses = _look_up(x, h, book.double() - mean)
    return Clusters(book, codes.to(torch.uint8), losses.sum(), restarts, False)


def assign_vectors(vectors: Tensor, codebook: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the nearest entry of each vector, uint8 ``[n]``; near-ties within rounding go to
    either, exact ties of the computed distances to the lower index.

    Args:
        vectors: floating, ``[n, dims]``.
        codebook: floating, ``[k, dims]``.
        weights: as in :func:`kmeans_vectors`; only those of coordinates change the result.

    Raises:
        DataError: as :func:`kmeans_vectors`, or a codebook that does not fit.

    >>> assign_vectors(torch.tensor([[0.0, 3.0]]), torch.tensor([[3.0, 3.0], [0.0, 0.0]])).tolist()
    [0]
    """
    heavy = _checked(vectors, weights)
    check_values(codebook, "codebook entries")
    if codebook.ndim != 2 or codebook.shape[1] != vectors.shape[1]:
        shapes = f"{tuple(codebook.shape)} for vectors of {tuple(vectors.shape)}"
        raise DataError(f"a codebook of shape {shapes}: [k, dims] with the same dims")
    check_k(len(codebook))
    x = vectors.detach().double()
    h = torch.ones(1, 1, dtype=x.dtype, device=x.device) if heavy is None else heavy
    mean = x.mean(0)
    return _look_up(x - mean, h, codebook.double() - mean)[0].to(torch.uint8)


def _checked(vectors: Tensor, weights: Tensor | None) -> Tensor | None:
    """Return the sensitivities, float64 ``[n, 1]`` or ``[n, dims]``, or None for unweighted."""
    check_values(vectors, "vectors")
    if vectors.ndim != 2:
        raise DataError(f"vectors of shape {tuple(vectors.shape)}: [n, dims] are clustered")
    if weights is None:
        return None
    shape = vectors.shape if weights.ndim == 2 else vectors.shape[:1]
    if weights.shape != shape:
        shapes = f"{tuple(weights.shape)} for vectors of {tuple(vectors.shape)}"
        raise DataError(f"sensitivities of shape {shapes}: [n] or [n, dims]")
    checked = check_weights(weights, shape)
    assert checked is not None
    heavy = checked.detach().double().reshape(len(vectors), -1)
    top = heavy.max()
    return None if top == 0 else heavy


def _look_up(x: Tensor, h: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest centres, int64 ``[n]``, and what each vector loses, float64 ``[n]``."""
    codes = torch.empty(len(x), dtype=torch.int64, device=x.device)
    losses = torch.empty(len(x), dtype=torch.float64, device=x.device)
    size = max(1, _PIECE // max(len(centres), x.shape[1]))
    square = centres.square()
    for start in range(0, len(x), size):
        piece = x[start : start + size]
        heavy = h[start : start + size] if len(h) > 1 else h
        cross = (piece * heavy) @ centres.T
        near = heavy.expand(-1, x.shape[1]) @ square.T - 2 * cross  # less Σ h·x²
        code = near.argmin(1)
        codes[start : start + size] = code
        losses[start : start + size] = (heavy * (piece - centres[code]).square()).sum(1)
    return codes, losses


def _plus_plus(x: Tensor, h: Tensor, uniform: Tensor) -> Tensor:
    """Return k-means++ centres, float64 ``[k, dims]``, from draws in [0, 1) ``[k, tries]``.

    Of the candidates drawn for a centre the one that leaves the least loss is taken (the greedy
    variant that Arthur & Vassilvitskii 2007 propose in section 6).
    """
    heavy = h.expand(x.shape)
    moment, square = heavy * x, (heavy * x.square()).sum(1, keepdim=True)
    nearest = torch.full((len(x), 1), torch.inf, dtype=x.dtype, device=x.device)
    mass, chosen = heavy.mean(1), []
    for draws in uniform:
        total = mass.cumsum(0)
        place = torch.searchsorted(total, total[-1] * draws, right=True).clamp(max=len(x) - 1)
        tries = x[place]
        norm = h.expand(-1, x.shape[1]) @ tries.square().T
        away = square - 2 * moment @ tries.T + norm  # [n, tries]
        left = torch.minimum(away.clamp_(min=0), nearest)
        best = int(left.sum(0).argmin())
        nearest = left[:, best : best + 1]
        mass = nearest[:, 0]
        chosen.append(tries[best])
    return torch.stack(chosen)


def _lloyd(x: Tensor, h: Tensor, centres: Tensor, iterations: int) -> tuple[Tensor, float]:
    """Return the centres after at most ``iterations`` and the loss with them."""
    codes, loss = _look_up(x, h, centres)
    for _ in range(iterations):
        centres = _move(x, h, centres, codes, loss)
        before = codes
        codes, loss = _look_up(x, h, centres)
        if torch.equal(codes, before):
            break
    return centres, float(loss.sum())


def _move(x: Tensor, h: Tensor, centres: Tensor, codes: Tensor, loss: Tensor) -> Tensor:
    """Return the centres at their vectors' weighted means, the empty ones where most is lost."""
    k, dims = centres.shape
    heavy = h.expand(len(x), dims)
    sums = torch.zeros(k, 3 * dims, dtype=x.dtype, device=x.device)
    sums.index_add_(0, codes, torch.cat([heavy, heavy * x, x], 1))
    weight, moment, plain = sums.reshape(k, 3, dims).unbind(1)
    count = torch.bincount(codes, minlength=k)
    mean = plain / count.clamp(min=1)[:, None]
    moved = torch.where(weight > 0, moment / torch.where(weight > 0, weight, 1), mean)
    empty = (count == 0).nonzero()[:, 0]
    worst = loss.topk(min(len(empty), len(x))).indices
    worst = worst[loss[worst] > 0]
    moved[empty] = centres[empty]
    moved[empty[: len(worst)]] = x[worst]
    return moved


def _ordered(book: Tensor) -> Tensor:
    """Return the entries in lexicographic order; repetitions repeat the last, at the end."""
    distinct = torch.unique(book, dim=0)
    return torch.cat([distinct, distinct[-1:].expand(len(book) - len(distinct), -1)])

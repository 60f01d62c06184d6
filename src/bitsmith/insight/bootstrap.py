"""Rank correlation and mean loss of two models on the same samples: differences with intervals.

The interval is a paired bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 13: percentile interval): samples are drawn with replacement, the same ones for both
models, and the difference of the two figures is computed on each draw. Two models that agree on
every sample have the interval [0, 0].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bitsmith.errors import DataError

__all__ = ["loss_difference", "spearman", "spearman_difference"]

Array = NDArray[np.float64]

#: Draws at a time, so that memory stays bounded: 64 draws of 1,500 samples are 0.8 MB.
_PIECE = 64
_LOW, _HIGH = 0.025, 0.975


def spearman(x: Tensor, y: Tensor) -> float:
    """Return Spearman's rank correlation of ``x`` and ``y`` times 100.

    Pearson's correlation of the ranks, where equal values share their mean rank. 0 where all of
    ``x`` or all of ``y`` are equal, because the ranking then says nothing.

    Args:
        x: numbers [N].
        y: numbers [N] of the same samples.

    Raises:
        DataError: not two finite tensors of one shape [N], or N below 2.

    >>> import torch
    >>> round(spearman(torch.tensor([0.1, 0.5, 0.7]), torch.tensor([1.0, 3.0, 2.0])), 6)
    50.0
    """
    first, second = _arrays(x=x, y=y)
    ones = np.ones((1, len(first)))
    ranks = _ranks(first, ones), _ranks(second, ones)
    return 100 * float(_correlation(*ranks, ones)[0])


def spearman_difference(
    a: Tensor, b: Tensor, scores: Tensor, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Return ``spearman(a, scores) − spearman(b, scores)`` and its 95 % interval, both × 100.

    ``(delta, low, high)``; the interval is a paired bootstrap over the samples.

    Args:
        a: what the judged model gives each sample, [N].
        b: what the reference gives the same samples, [N].
        scores: the truth, [N].
        resamples: draws.
        seed: of the draws.

    Raises:
        DataError: not three finite tensors of one shape [N], N below 2, or ``resamples`` below
            100, with which the ends of the interval are noise.

    >>> import torch
    >>> truth = torch.arange(100.0)
    >>> delta, low, high = spearman_difference(truth, truth.flip(0), truth)
    >>> delta, low > 199
    (200.0, True)
    """
    judged, reference, truth = _arrays(a=a, b=b, scores=scores)

    def difference(weights: Array) -> Array:
        ranks = _ranks(truth, weights)
        one = _correlation(_ranks(judged, weights), ranks, weights)
        return 100 * (one - _correlation(_ranks(reference, weights), ranks, weights))

    delta = float(difference(np.ones((1, len(truth))))[0])
    return delta, *_interval(difference, len(truth), resamples, seed)


def loss_difference(
    a: Tensor, b: Tensor, counts: Tensor, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Return ``Σa/Σcounts − Σb/Σcounts`` and its 95 % interval, for example in nats per token.

    ``(delta, low, high)``; the interval is a paired bootstrap over texts, not over tokens, which
    are not independent within a text.

    Args:
        a: the judged model's summed loss of each text, [N].
        b: the reference's, of the same texts, [N].
        counts: predicted tokens of each text, all above 0, [N].
        resamples: draws.
        seed: of the draws.

    Raises:
        DataError: not three finite tensors of one shape [N], N below 2, counts of 0 or less, or
            ``resamples`` below 100.

    >>> import torch
    >>> sums = torch.tensor([10.0, 20.0, 30.0])
    >>> delta, low, high = loss_difference(sums + 1, sums, torch.tensor([10, 10, 10]))
    >>> round(delta, 9), round(low, 9), round(high, 9)
    (0.1, 0.1, 0.1)
    """
    judged, reference, tokens = _arrays(a=a, b=b, counts=counts)
    if tokens.min() <= 0:
        raise DataError(f"counts are above 0, but the least is {tokens.min():g}")

    def difference(weights: Array) -> Array:
        found: Array = (weights @ (judged - reference)) / (weights @ tokens)
        return found

    delta = float(difference(np.ones((1, len(tokens))))[0])
    return delta, *_interval(difference, len(tokens), resamples, seed)


def _interval(
    difference: Callable[[Array], Array], n: int, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of ``difference`` over draws of ``n`` samples.

    A draw is how often each sample is in it: weights [draws, n] that sum to n.
    """
    if resamples < 100:
        raise DataError(f"an interval needs at least 100 resamples, not {resamples}")
    generator = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, _PIECE):
        draws = min(_PIECE, resamples - start)
        chosen = generator.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
        weights = np.bincount(chosen.ravel(), minlength=draws * n).reshape(draws, n)
        found.append(difference(weights.astype(np.float64)))
    low, high = np.quantile(np.concatenate(found), (_LOW, _HIGH))
    return float(low), float(high)


def _ranks(values: Array, weights: Array) -> Array:
    """Return the mean rank of each value in samples where it occurs ``weights`` times.

    Args:
        values: [N].
        weights: how often each value occurs, [draws, N].

    Returns:
        [draws, N]: ``(weight of smaller values) + (weight of equal values + 1) / 2``.
    """
    _, group = np.unique(values, return_inverse=True)  # equal values, smallest first
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    within = np.add.reduceat(weights[:, order], starts, axis=1)  # [draws, groups]
    below = np.cumsum(within, axis=1) - within
    ranks: Array = (below + (within + 1) / 2)[:, group]
    return ranks


def _correlation(x: Array, y: Array, weights: Array) -> Array:
    """Return Pearson's correlation of each row of ``x`` and ``y`` under ``weights``, [draws]."""
    total = weights.sum(1, keepdims=True)
    x = x - (weights * x).sum(1, keepdims=True) / total
    y = y - (weights * y).sum(1, keepdims=True) / total
    covariance = (weights * x * y).sum(1)
    spread = np.sqrt((weights * x * x).sum(1) * (weights * y * y).sum(1))
    found: Array = np.divide(covariance, spread, out=np.zeros_like(covariance), where=spread > 0)
    return found


def _arrays(**tensors: Tensor) -> list[Array]:
    """Return float64 arrays of the tensors, after checking that they belong together."""
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    one = next(iter(shapes.values()))
    if len(set(shapes.values())) > 1 or len(one) != 1 or one[0] < 2:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise DataError(f"tensors over the same 2 or more samples [N] are needed, not {listed}")
    arrays = {name: t.detach().cpu().double().numpy() for name, t in tensors.items()}
    bad = {name: int((~np.isfinite(v)).sum()) for name, v in arrays.items()}
    if any(bad.values()):
        listed = ", ".join(f"{count} of {name}" for name, count in bad.items() if count)
        raise DataError(
            f"values that are NaN or infinite have no rank and no mean: {listed}; look for such "
            "values in the model's weights"
        )
    return list(arrays.values())

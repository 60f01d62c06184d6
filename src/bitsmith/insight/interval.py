"""The interval of a mean over repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

from bitsmith.errors import DataError

__all__ = ["mean_interval"]

_LEAST = 5


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of independent repeats and its 95 % interval: ``(mean, low, high)``.

    ``mean ± t·s/√n`` with Student's t at n − 1 degrees of freedom (Abramowitz and Stegun,
    Handbook of Mathematical Functions, 26.7.5, to the fourth order).

    Raises:
        DataError: fewer than 5 values, or values that are not finite.

    >>> [round(v, 3) for v in mean_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]
    [3.5, 1.537, 5.463]
    """
    n = len(values)
    if n < _LEAST or not all(map(math.isfinite, values)):
        raise DataError(
            f"an interval needs at least {_LEAST} finite values, not {list(values)[:_LEAST]}"
            f"{' …' if n > _LEAST else ''}"
        )
    mean = fmean(values)
    half = _student(n - 1) * stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


def _student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's distribution."""
    z: float = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum((term / freedom ** (i + 1) for i, term in enumerate(terms)), 0.0)

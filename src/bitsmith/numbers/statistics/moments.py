"""Mean, variance, skewness and kurtosis, of the tensor or of each index of an axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.granularity import PerChannel
from bitsmith.numbers.ranges import as_float32, value_range
from bitsmith.numbers.statistics.statistic import Statistic

__all__ = ["Moments"]

_PIECE = 1 << 18  # values taken to float64 at a time

_Part = tuple[int, Tensor, Tensor]  # n per row, mean [2, ...], M_2 to M_4 [3, ...]


@final
class Moments(Statistic, name="moments", exact=False):
    """Count, mean and central moments up to the fourth, with the exact extremes.

    Kept are the mean and ``M_p = Σ (x − mean)^p`` for p = 2, 3, 4, in float64. Parts combine by
    Pébay's formulas (Sandia report SAND2008-6212), which have no cancellation between large
    sums. The mean is held as a sum of two float64, so that means far from 0 do not blur the
    differences between parts.

    Statistics of a set of values, not estimates for a larger one: the variance divides by n.
    All tensors have the shape that ``PerTensor`` or ``PerChannel(axis)`` gives a scale.

    Attributes:
        axis: None for the whole tensor, else the axis whose indices are kept apart.
        n: values seen per index of the axis, the same for each.
        low, high: exact extremes, float32; +inf and −inf before the first value.
        sums: ``M_2, M_3, M_4``: float64 ``[3, *scale_shape]``.

    >>> m = Moments()
    >>> m.update(torch.tensor([1.0, 2.0, 3.0]))
    >>> m.update(torch.tensor([10.0]))
    >>> m.mean.item(), m.variance.item(), round(m.skewness.item(), 4), m.kurtosis.item()
    (4.0, 12.5, 1.0182, 2.2304)
    """

    def __init__(self, axis: int | None = None) -> None:
        self.axis = axis
        self.low, self.high = torch.tensor(math.inf), torch.tensor(-math.inf)
        self.n, self.count = 0, 0
        self._mean = torch.zeros(2, dtype=torch.float64)  # [2, ...], the two sum to the mean
        self.sums = torch.zeros(3, dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        """Σ x / n; NaN before the first value."""
        return self._mean.sum(0) / (1.0 if self.n else math.nan)

    @property
    def variance(self) -> Tensor:
        """M_2 / n, the squared standard deviation; NaN before the first value."""
        return self.sums[0] / (self.n or math.nan)

    @property
    def skewness(self) -> Tensor:
        """√n · M_3 / M_2^(3/2); 0 for mirrored data, NaN for constant data."""
        return math.sqrt(self.n) * self.sums[1] / self.sums[0] ** 1.5

    @property
    def kurtosis(self) -> Tensor:
        """n · M_4 / M_2²: 3 for a normal distribution, 1.8 uniform, 6 Laplace; NaN if constant."""
        return self.n * self.sums[2] / self.sums[0] ** 2

    def update(self, x: Tensor) -> None:
        x = as_float32(x)
        if x.numel() == 0:
            return
        shape = () if self.axis is None else PerChannel(self.axis).scale_shape(x.shape)
        low, high = value_range(x, shape)
        self._check(low)
        rows = x.reshape(1, -1) if self.axis is None else x.movedim(self.axis, 0).flatten(1)
        n, mean, sums = reduce(_joined, map(_central, _pieces(rows)))
        self._add((n, mean.view(2, *shape).cpu(), sums.view(3, *shape).cpu()), low, high)

    def merge(self, other: Moments) -> Moments:
        if self.axis != other.axis:
            raise DataError(f"moments along axis {self.axis} and axis {other.axis} do not merge")
        if not other.empty:
            self._check(other.low)
            self._add((other.n, other._mean, other.sums), other.low, other.high)
        return self

    def state_dict(self) -> dict[str, Any]:
        return {
            "axis": self.axis,
            "low": self.low.clone(),
            "high": self.high.clone(),
            "mean": self._mean.clone(),
            "sums": self.sums.clone(),
            "n": self.n,
            "count": self.count,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Moments:
        moments = cls(state["axis"])
        moments.low, moments.high = state["low"].clone(), state["high"].clone()
        moments._mean, moments.sums = state["mean"].clone(), state["sums"].clone()
        moments.n, moments.count = state["n"], state["count"]
        return moments

    def _check(self, low: Tensor) -> None:
        if not self.empty and low.shape != self.low.shape:
            raise DataError(
                f"moments of shape {tuple(self.low.shape)} cannot take in values with moments of "
                f"shape {tuple(low.shape)}: every batch needs the same channels and rank"
            )

    def _add(self, part: _Part, low: Tensor, high: Tensor) -> None:
        self.low, self.high = (
            torch.minimum(self.low, low.cpu()),
            torch.maximum(self.high, high.cpu()),
        )
        mine = (self.n, self._mean, self.sums)
        self.n, self._mean, self.sums = part if self.empty else _joined(mine, part)
        self.count = self.n * self.low.numel()


def _pieces(rows: Tensor) -> Iterator[Tensor]:
    """Cut ``[C, n]`` along n into parts of about ``_PIECE`` values, in float64."""
    for part in torch.split(rows, max(1, _PIECE // rows.shape[0]), dim=1):
        yield part.to(torch.float64)


def _central(x: Tensor) -> _Part:
    """Return n, mean and central sums of each row of float64 ``[C, n]``, in two passes.

    The rounded mean misses the exact one by r, which the second pass finds and takes out.
    """
    n = x.shape[1]
    mean = x.mean(1)
    d = x - mean.unsqueeze(1)
    d2 = d * d
    r = d.mean(1)
    s2, s3, s4 = d2.sum(1), (d2 * d).sum(1), d2.square_().sum(1)
    m2 = s2 - n * r**2
    m3 = s3 - 3 * r * s2 + 2 * n * r**3
    m4 = s4 - 4 * r * s3 + 6 * r**2 * s2 - 3 * n * r**4
    return n, torch.stack([mean, r]), torch.stack([m2, m3, m4])


def _joined(one: _Part, other: _Part) -> _Part:
    """Combine two parts; a and b are their shares and d the difference of their means."""
    (n1, mean1, (p2, p3, p4)), (n2, mean2, (q2, q3, q4)) = one, other
    n = n1 + n2
    a, b = n1 / n, n2 / n
    d = (mean2[0] - mean1[0]) + (mean2[1] - mean1[1])
    m2 = p2 + q2 + n * a * b * d**2
    m3 = p3 + q3 + n * a * b * (a - b) * d**3 + 3 * d * (a * q2 - b * p2)
    m4 = p4 + q4 + n * a * b * (a * a - a * b + b * b) * d**4
    m4 = m4 + 6 * d**2 * (a * a * q2 + b * b * p2) + 4 * d * (a * q3 - b * p3)
    shift = mean1[1] + b * d
    high = mean1[0] + shift
    back = high - mean1[0]  # Knuth's two-sum: high + low is mean1[0] + shift exactly
    low = (mean1[0] - (high - back)) + (shift - back)
    return n, torch.stack([high, low]), torch.stack([m2, m3, m4])

"""A range that leaves a stated share of the values outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.errors import InputError
from bitsmith.numbers.calibrators import Calibrator, tensor_histogram
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Histogram, Statistic

__all__ = ["Percentile"]


@final
@dataclass(frozen=True)
class Percentile(Calibrator, name="percentile"):
    """The range that holds ``percentile`` per cent of the values; 100 is exact min–max.

    Asymmetric: half of the rest is left out at each end. Symmetric: the percentile of |x|.
    Quantiles interpolate linearly inside a bin of the histogram, and stay within the exact
    extremes.

    >>> h = Histogram()
    >>> h.update(torch.linspace(-1, 1, 2001))
    >>> from bitsmith.numbers.formats.integer import uint8
    >>> low, high = Percentile(90.0).limits(h, Scheme(uint8, symmetric=False))
    >>> round(float(low), 2), round(float(high), 2)
    (-0.9, 0.9)
    """

    statistic = Histogram

    percentile: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 100:
            raise InputError(f"a percentile is above 0 and at most 100, not {self.percentile}")

    def limits(self, statistic: Statistic, scheme: Scheme) -> tuple[Tensor, Tensor]:
        histogram = tensor_histogram(statistic, scheme)
        low, high = histogram.low, histogram.high
        share = self.percentile / 100
        if share < 1 and scheme.symmetric:
            high = min(max(-low, high), _magnitude_quantile(histogram, share))
            low = -high
        elif share < 1:
            below, above = _quantile_pair(histogram, (1 - share) / 2)
            low, high = min(max(low, below), high), max(min(high, above), low)
        return torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)


def _quantile_pair(histogram: Histogram, tail: float) -> tuple[float, float]:
    """Return the values that leave the share ``tail`` below and above."""
    counts = histogram.counts.to(torch.float64)
    index = histogram.first + torch.arange(len(counts), dtype=torch.float64)
    left = (index - (index <= 0).to(torch.float64)) * histogram.width
    right = (index + (index >= 0).to(torch.float64)) * histogram.width
    low = -_quantile(counts.flip(0), -right.flip(0), -left.flip(0), 1 - tail)
    return low, _quantile(counts, left, right, 1 - tail)


def _magnitude_quantile(histogram: Histogram, share: float) -> float:
    """Return the quantile of |x|: bins mirror around 0, so the counts of ±i add up."""
    magnitude = (histogram.first + torch.arange(len(histogram.counts))).abs()
    counts = torch.bincount(magnitude, weights=histogram.counts.to(torch.float64))
    left = torch.arange(len(counts), dtype=torch.float64) * histogram.width
    return _quantile(counts, left, left + histogram.width, share)


def _quantile(counts: Tensor, left: Tensor, right: Tensor, share: float) -> float:
    """Return the value below which ``share`` of ``counts`` lie, linear inside a bin."""
    cumulative = counts.cumsum(0)
    target = share * cumulative[-1]
    i = int(torch.searchsorted(cumulative, target).clamp(max=len(counts) - 1))
    inside = 1 - float((cumulative[i] - target) / counts[i])
    return float(left[i] + inside * (right[i] - left[i]))

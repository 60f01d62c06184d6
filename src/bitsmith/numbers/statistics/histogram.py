"""Counts in bins of a power-of-two width, which merge without rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.ranges import as_float32, value_range
from bitsmith.numbers.statistics.statistic import Statistic

__all__ = ["Histogram"]


@final
class Histogram(Statistic, name="histogram", exact=True):
    """Counts in bins of a power-of-two width, with the exact smallest and largest value.

    Bin ``i`` of width ``w = 2^exponent`` holds the values with ``trunc(x / w) == i``: bin 0 is
    (−w, w), and bins i > 0 and i < 0 are [i·w, (i+1)·w) and ((i−1)·w, i·w]. The width is the
    smallest power of two with which bins from 0 to the exact extremes number at most
    ``max_bins``, and doubles as the range grows.

    Why merging is exact: the width depends on the extremes only and never shrinks as they
    widen, so no part is coarser than the whole; a product with a power of two does not round
    (and where it underflows, to 0, truncation gives 0 anyway); and ``trunc(x / 2w) =
    trunc(trunc(x / w) / 2)``, so coarse bins are sums of fine bins.

    Attributes:
        low, high: exact smallest and largest value; +inf and −inf before the first value.
        exponent: the bin width is ``2^exponent``.
        first: the index of the first bin, at most 0.
        counts: int64 ``[n_bins]`` on the CPU; bin 0 is always among them.

    >>> h = Histogram(max_bins=4)
    >>> h.update(torch.tensor([0.0, 0.3, 0.6, 0.9, 2.0]))
    >>> h.width, h.counts.tolist(), h.high
    (1.0, [4, 0, 1], 2.0)
    """

    MIN_EXPONENT = -126  # 2^126 is a float32, 2^127·2 is not; finer bins are all denormals

    def __init__(self, max_bins: int = 4096) -> None:
        if not 4 <= max_bins <= 1 << 20:
            raise DataError(f"a histogram has between 4 and {1 << 20} bins, not {max_bins}")
        self.max_bins = max_bins
        self.low, self.high = math.inf, -math.inf
        self.exponent, self.first = self.MIN_EXPONENT, 0
        self.counts = torch.zeros(1, dtype=torch.int64)
        self.count = 0

    @property
    def width(self) -> float:
        """The bin width, ``2^exponent``."""
        return math.ldexp(1.0, self.exponent)

    @property
    def centres(self) -> Tensor:
        """The middle of each bin: float64 ``[n_bins]``; 0 for bin 0, else ``(i ± ½)·width``."""
        index = self.first + torch.arange(len(self.counts), dtype=torch.float64)
        return (index + 0.5 * torch.sign(index)) * self.width

    def update(self, x: Tensor) -> None:
        x = as_float32(x).reshape(-1)
        if x.numel() == 0:
            return
        low, high = (float(v) for v in value_range(x))
        self._widen(low, high)
        factor = math.ldexp(1.0, -self.exponent)
        total = torch.zeros(len(self.counts), dtype=torch.int64, device=x.device)
        for start in range(0, len(x), 1 << 16):  # pieces that stay in the cache
            index = (x[start : start + (1 << 16)] * factor).to(torch.int32)  # conversion truncates
            total += torch.bincount(index.sub_(self.first), minlength=len(self.counts))
        self.counts += total.cpu()
        self.count += x.numel()

    def merge(self, other: Histogram) -> Histogram:
        if self.max_bins != other.max_bins:
            raise DataError(
                f"histograms of at most {self.max_bins} and {other.max_bins} bins do not merge"
            )
        if not other.empty:
            counts, first, exponent = other.counts.clone(), other.first, other.exponent
            self._widen(other.low, other.high)
            self._add(counts, first, exponent)
            self.count += other.count
        return self

    def state_dict(self) -> dict[str, Any]:
        return {
            "max_bins": self.max_bins,
            "low": self.low,
            "high": self.high,
            "exponent": self.exponent,
            "first": self.first,
            "counts": self.counts.clone(),
            "count": self.count,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Histogram:
        histogram = cls(state["max_bins"])
        for name in ("low", "high", "exponent", "first", "count"):
            setattr(histogram, name, state[name])
        histogram.counts = state["counts"].clone()
        return histogram

    def _widen(self, low: float, high: float) -> None:
        """Make room for values from ``low`` to ``high``, in wider bins where it must be."""
        if self.low <= low and high <= self.high:
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        counts, first, exponent = self.counts, self.first, self.exponent
        while True:
            self.first = math.trunc(math.ldexp(min(self.low, 0.0), -self.exponent))
            last = math.trunc(math.ldexp(max(self.high, 0.0), -self.exponent))
            if last - self.first < self.max_bins:
                break
            self.exponent += 1
        self.counts = torch.zeros(last - self.first + 1, dtype=torch.int64)
        self._add(counts, first, exponent)

    def _add(self, counts: Tensor, first: int, exponent: int) -> None:
        """Add the counts of bins ``first …`` of width ``2^exponent``, no wider than ours."""
        index = first + torch.arange(len(counts))
        ratio = 1 << min(self.exponent - exponent, 62)
        coarse = torch.div(index, ratio, rounding_mode="trunc")
        self.counts.index_add_(0, coarse - self.first, counts)

"""Mergeable summaries of streams of tensors, of bounded size.

A statistic sees batches one by one (:meth:`Statistic.update`), and parts that were gathered
apart combine (:meth:`Statistic.merge`): merging parts, split and ordered in any way, gives
*exactly* the state of one pass over everything.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self, final

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.granularity import PerChannel
from bitsmith.numbers.ranges import as_float32, value_range

__all__ = ["Extrema", "Histogram", "Statistic"]


class Statistic(ABC):
    """A summary of a stream of values; its size does not grow with the stream.

    Contract, tested for every subclass: ``a.update(x); a.update(y)`` leaves the state that
    merging a statistic of ``y`` into one of ``x`` does, bit for bit and in either order; an
    empty batch changes nothing; a batch with NaN or infinite values raises DataError and
    changes nothing.
    """

    count: int
    """Values seen."""

    @property
    def empty(self) -> bool:
        """True before the first value."""
        return self.count == 0

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """Take in a batch of floating-point values, any shape.

        Raises:
            DataError: ``x`` has NaN or infinite values, or is not floating point.
        """

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Take in everything that ``other`` has seen; ``other`` is not changed. Return self.

        Raises:
            DataError: the two were set up differently.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the whole state: numbers and CPU tensors, as :meth:`from_state` reads it."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return the statistic whose :meth:`state_dict` is ``state``."""


@final
class Extrema(Statistic):
    """The exact smallest and largest value, of the tensor or of each index of an axis.

    Attributes:
        axis: None for the whole tensor, else the axis whose indices are kept apart.
        low, high: float32 on the CPU, of the shape that ``PerTensor`` or ``PerChannel(axis)``
            gives a scale; +inf and −inf before the first value.

    >>> e = Extrema(axis=0)
    >>> e.update(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    >>> e.low.tolist(), e.high.tolist(), e.count
    ([[-2.0], [3.0]], [[1.0], [4.0]], 4)
    """

    def __init__(self, axis: int | None = None) -> None:
        self.axis = axis
        self.low, self.high = torch.tensor(math.inf), torch.tensor(-math.inf)
        self.count = 0

    def update(self, x: Tensor) -> None:
        x = as_float32(x)
        if x.numel() == 0:
            return
        shape = () if self.axis is None else PerChannel(self.axis).scale_shape(x.shape)
        low, high = value_range(x, shape)
        self._widen(low.cpu(), high.cpu(), x.numel())

    def merge(self, other: Extrema) -> Extrema:
        if self.axis != other.axis:
            raise DataError(f"extrema along axis {self.axis} and axis {other.axis} do not merge")
        if not other.empty:
            self._widen(other.low, other.high, other.count)
        return self

    def state_dict(self) -> dict[str, Any]:
        return {
            "axis": self.axis,
            "low": self.low.clone(),
            "high": self.high.clone(),
            "count": self.count,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Extrema:
        extrema = cls(state["axis"])
        extrema.low, extrema.high = state["low"].clone(), state["high"].clone()
        extrema.count = state["count"]
        return extrema

    def _widen(self, low: Tensor, high: Tensor, count: int) -> None:
        if not self.empty and low.shape != self.low.shape:
            raise DataError(
                f"extrema of shape {tuple(self.low.shape)} cannot take in values with extrema of "
                f"shape {tuple(low.shape)}: every batch needs the same channels and rank"
            )
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.count += count


@final
class Histogram(Statistic):
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

"""The range whose quantized histogram is nearest to the whole in Kullback-Leibler divergence.

Migacz, "8-bit inference with TensorRT" (GTC 2017), as published and in the calibrators of MXNet
and ONNX Runtime, for any number of levels. 0 is exact at every scale and ReLU makes many of
them, so first the count of the bin of 0 is cut to that of its neighbour (to the sum of both, if
there are two; TensorRT's own tools replace it likewise). Then, for a range that holds the bins
``a … b`` of a histogram with counts c and total T:

1. *P* is c over the bins a … b, with all counts below a added to bin a and all above b to bin b,
   divided by T.
2. *Q*: the m = b − a + 1 bins are cut into n levels, level j from bin a + ⌊j·m/n⌋ up to (not
   with) bin a + ⌊(j+1)·m/n⌋. The counts c of a level, now without those from outside, are spread
   evenly over those of its bins that P is not 0 in; all are divided by their sum.
3. Smoothing: Q becomes (1 − ε)·Q + ε·U with U even over the bins that P is not 0 in and
   ε = 10⁻⁴, so that the divergence is finite.
4. KL(P‖Q) = Σ P·ln(P/Q) over the bins that P is not 0 in.

The range is the one with the smallest divergence. Divergences within 10⁻⁹ nats of the smallest
count as equal, and of those the widest range is taken.

- Symmetric scheme: the histogram of absolute values (bins ±i add up), n the number of codes from
  0 up, a = 0, and every b with at least n bins; the range is ±(b + 1)·width.
- Asymmetric, values on one side of 0: n the number of codes, the bin of 0 is one end, and every
  other end with at least n bins. Negative values are searched in the mirror, a = 0.
- Asymmetric, values on both sides: starting from the whole range, the upper end is searched with
  the lower one fixed, then, in the mirror, the lower end with the upper one fixed, and both once
  more. Each end stays on its side of 0.

At 2 or 3 levels the divergence says little about the error; ``mse`` is the better choice there.
A histogram of no more than n bins keeps its whole range. No range exceeds the exact extremes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.numbers.calibrators import Calibrator, even_codes, tensor_histogram
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Histogram, Statistic

__all__ = ["Entropy", "divergences"]

_SMOOTHING = 1e-4
_TIE = 1e-9
_ROUNDS = 2
_PIECE = 1 << 18  # look-ups at a time


@final
@dataclass(frozen=True)
class Entropy(Calibrator, name="entropy"):
    """The range with the smallest KL divergence between the values and their quantized form.

    >>> h = Histogram()
    >>> h.update(torch.randn(100_000, generator=torch.Generator().manual_seed(0)))
    >>> h.update(torch.tensor([30.0]))
    >>> from bitsmith.numbers.formats.integer import int8
    >>> bool(Entropy().limits(h, Scheme(int8))[1] < 6)     # the outlier is given up
    True
    """

    statistic = Histogram

    def limits(self, statistic: Statistic, scheme: Scheme) -> tuple[Tensor, Tensor]:
        histogram = tensor_histogram(statistic, scheme)
        low, high = histogram.low, histogram.high
        levels = even_codes(scheme)
        if scheme.symmetric:
            counts = _magnitudes(histogram)
            last = _best_end(counts, 0, scheme.code_max + 1, 1)
            high = min(max(-low, high), (last + 1) * histogram.width)
            low = -high
        else:
            first, last = _both_ends(histogram, levels)
            # Bins are as wide as ``width``, and bin 0 reaches to both sides of 0.
            low = max(low, (first - 1) * histogram.width)
            high = min(high, (last + 1) * histogram.width)
        return torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)


def divergences(counts: Tensor, start: int, ends: Tensor, levels: int) -> Tensor:
    """Return KL(P‖Q) in nats for the ranges of bins ``start … end``: float64 ``[len(ends)]``.

    P is constant in c and Q constant in a level, so that with cumulative sums of c, of c·ln c
    and of the bins that are not 0 a level costs one look-up. Only the first and the last bin,
    which take in the counts from outside, are corrected for one by one.

    Args:
        counts: int64 ``[bins]``, not all 0.
        start: first bin.
        ends: int64, last bins, each at least ``start + levels − 1``.
        levels: n, at least 2.
    """
    c = counts.to(torch.float64)
    total = c.sum()
    # [3, bins + 1]: counts, bins that are not 0, c·ln c, each summed over the bins before.
    summed = torch.stack([c, (c > 0).to(c.dtype), _entropy(c)]).cumsum(1)
    summed = torch.cat([summed.new_zeros(3, 1), summed], 1)
    parts = torch.split(ends, max(1, _PIECE // levels))
    return torch.cat([_divergences(c, summed, total, start, part, levels) for part in parts])


def _divergences(
    c: Tensor, summed: Tensor, total: Tensor, start: int, ends: Tensor, levels: int
) -> Tensor:
    size = (ends - start + 1).unsqueeze(1)
    edge = start + torch.arange(levels + 1) * size // levels  # [R, levels + 1]
    inside, bins, _ = summed[:, edge].diff(dim=2)  # [R, levels] each
    below, above = summed[0, start], total - summed[0, ends + 1]  # what moves into a … b
    first, last = c[start], c[ends]
    bins[:, 0] += (below > 0) & (first == 0)
    bins[:, -1] += (above > 0) & (last == 0)
    spread = inside / bins.clamp(min=1) / inside.sum(1, keepdim=True).clamp(min=1)
    q = (1 - _SMOOTHING) * spread + _SMOOTHING / bins.sum(1, keepdim=True)
    cross = (inside * q.log()).sum(1) + below * q[:, 0].log() + above * q[:, -1].log()
    own: Tensor = (
        summed[2, ends + 1] - summed[2, start]
    )  # Σ c·ln c, but for the two bins at the ends
    own += _entropy(first + below) - _entropy(first) + _entropy(last + above) - _entropy(last)
    divergence: Tensor = (own - cross) / total - total.log()
    return divergence


def _entropy(c: Tensor) -> Tensor:
    found: Tensor = torch.xlogy(c, c)
    return found


def _best_end(counts: Tensor, start: int, levels: int, least: int) -> int:
    """Return the last bin of the best range from ``start``; at least ``least − 1`` is inside."""
    shortest = max(start + levels, least)
    if len(counts) <= shortest:
        return len(counts) - 1
    ends = torch.arange(shortest - 1, len(counts))
    found = divergences(counts, start, ends, levels)
    return int(ends[(found <= found.min() + _TIE).nonzero()[-1]])


def _both_ends(histogram: Histogram, levels: int) -> tuple[int, int]:
    """Return the first and the last bin, counted from the bin of 0, of the best range."""
    zero = -histogram.first
    counts = _without_zeros(histogram.counts, zero)
    first, last = 0, len(counts) - 1
    for _ in range(_ROUNDS):
        if histogram.high > 0:
            last = _best_end(counts, first, levels, zero + 1)
        if histogram.low < 0:  # the same, seen in a mirror
            turn = len(counts) - 1
            first = turn - _best_end(counts.flip(0), turn - last, levels, turn - zero + 1)
    return first - zero, last - zero


def _magnitudes(histogram: Histogram) -> Tensor:
    """Return the histogram of |x|: bins mirror around 0, so the counts of ±i add up."""
    index = (histogram.first + torch.arange(len(histogram.counts))).abs()
    counts = torch.zeros(int(index.max()) + 1, dtype=torch.int64)
    return _without_zeros(counts.index_add_(0, index, histogram.counts), 0)


def _without_zeros(counts: Tensor, zero: int) -> Tensor:
    """Return the counts with that of bin ``zero`` cut to the sum of those beside it."""
    if len(counts) == 1:
        return counts
    counts = counts.clone()
    beside = counts[zero + 1 : zero + 2].sum() + counts[max(zero - 1, 0) : zero].sum()
    counts[zero] = torch.minimum(counts[zero], beside)
    return counts

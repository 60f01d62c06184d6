"""The range that loses the least squared error when the values seen are quantized with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.numbers.affine import scale_zero_point
from bitsmith.numbers.calibrators import Calibrator, tensor_histogram
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Histogram, Statistic

__all__ = ["Mse", "expected_squared_error"]

# Multipliers of a bound: half octaves down to 2^-10 and 0, then ever finer around the best.
_COARSE = torch.cat([torch.exp2(-torch.arange(21) / 2), torch.zeros(1)])
_FINE = [torch.exp2(torch.arange(-4, 5) / steps) for steps in (8, 32, 128)]
_PIECE = 1 << 20  # look-ups at a time


@final
@dataclass(frozen=True)
class Mse(Calibrator, name="mse"):
    """The range with the smallest :func:`expected_squared_error` of those searched.

    The objective is evaluated exactly, for the scale and the rounded zero point that the range
    leads to, so 0 stays exact. The search goes over products of the extremes with powers of
    two: half octaves from 1 to 2^−10 and 0, then eighths, 32nds and 128ths of an octave around
    the best; for an asymmetric scheme over every pair of a lower and an upper bound. The whole
    range is a candidate, so the result is never worse than min–max. Formats that take no scale
    keep the whole range.

    >>> h = Histogram()
    >>> h.update(torch.cat([torch.linspace(-1, 1, 1000), torch.tensor([50.0])]))
    >>> from bitsmith.numbers.formats.integer import int8
    >>> low, high = Mse().limits(h, Scheme(int8))
    >>> bool(high > 40)           # one value in a thousand, but its square counts
    True
    """

    statistic = Histogram

    def limits(self, statistic: Statistic, scheme: Scheme) -> tuple[Tensor, Tensor]:
        histogram = tensor_histogram(statistic, scheme)
        ends = [min(histogram.low, 0.0), max(histogram.high, 0.0)]
        low, high = torch.tensor(ends, dtype=torch.float32).unbind()
        if not scheme.scaled:
            return low, high
        widest = (low, high)
        if scheme.symmetric:
            top = torch.maximum(-low, high)
            if scheme.affine:  # full range: code_max stands for less than the bound
                top = top * ((scheme.code_max - scheme.code_min) / (2 * scheme.code_max))
            widest = (-top, top)
        trial = (widest[0] * _COARSE, widest[1] * _COARSE)
        for fine in _FINE:
            low, high = _best(histogram, scheme, low, high, *trial)
            trial = ((low * fine).clamp(min=widest[0]), (high * fine).clamp(max=widest[1]))
        return _best(histogram, scheme, low, high, *trial)


def expected_squared_error(
    histogram: Histogram, scale: Tensor, zero_point: Tensor, scheme: Scheme
) -> Tensor:
    """Return the mean of ``(x − dequantize(quantize(x)))²`` over the histogram, float64 ``[C]``.

    Every value counts as the centre of its bin (0 for the bin of 0). For the values ``v_j`` of
    the codes, ascending, with middles ``m_j`` and decision thresholds ``b_j`` between v_j and
    v_(j+1) (in the middle, or at v_(j+1) for floor),

        E(x − Q(x))² = E(x − v_max)² − 2·Σ_j (v_(j+1) − v_j)·E[(m_j − x)·1(x < b_j)],

    because moving x from v_(j+1) to v_j changes its squared error by 2·(v_(j+1) − v_j)·(x − m_j).
    The expectation is a linear interpolation in two cumulative sums, so a range costs one
    look-up a code, not a pass over the bins. Rounding ``stochastic`` counts as to nearest.

    Args:
        histogram: what was seen, not empty.
        scale, zero_point: ``[C]`` candidates.
        scheme: codes and rounding; ``v_j = scale · (code − zero_point)``, or the format's value
            of the code times the scale.

    >>> from bitsmith.numbers.formats.integer import int2
    >>> h = Histogram()
    >>> h.update(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    >>> one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    >>> float(expected_squared_error(h, one, zero, Scheme(int2))) < 1e-6
    True
    """
    grid = _grid(scheme)
    rows = max(1, _PIECE // len(grid))
    parts = zip(torch.split(scale, rows), torch.split(zero_point, rows), strict=True)
    return torch.cat(
        [_grid_error(histogram, (grid - z.unsqueeze(1)), s, scheme.rounding) for s, z in parts]
    )


def _grid(scheme: Scheme) -> Tensor:
    """Return the values of all codes at scale 1 and zero point 0, ascending, float64."""
    if scheme.affine:
        return torch.arange(scheme.code_min, scheme.code_max + 1, dtype=torch.float64)
    return scheme.format.grid.to(torch.float64)


def _grid_error(histogram: Histogram, grid: Tensor, scale: Tensor, rounding: str) -> Tensor:
    """Return :func:`expected_squared_error` for a grid ``[C, values]`` at each scale ``[C]``."""
    half = histogram.width / 2  # every centre is a whole number of half bins
    node, mass = _nodes(histogram)
    below = mass.cumsum(0)  # P(x ≤ node)
    linear = torch.cat([below.new_zeros(1), below.cumsum(0)[:-1]])  # E(node − x)⁺, in half bins
    value = grid * (scale.to(torch.float64) / half).unsqueeze(1)  # in half bins
    gap = value.diff()  # [C, values − 1]
    middle = value[:, :-1] + gap / 2
    shift = gap / 2 if rounding == "floor" else torch.zeros_like(gap)
    at = middle + shift - node[0]
    index = (torch.ceil(at).clamp_(1, len(node)) - 1).to(torch.int64)  # last node below b_j
    share = below[index]
    reached = linear[index] + share * (at - index - shift)  # E[(m_j − x)·1(x < b_j)]
    top = value[:, -1]
    mean, square = (mass * node).sum(), (mass * node * node).sum()
    error = square - 2 * top * mean + top * top - 2 * (gap * reached).sum(1)
    return error.clamp_(min=0) * half * half


def _nodes(histogram: Histogram) -> tuple[Tensor, Tensor]:
    """Return positions in half bins, one apart, and the share of the values at each.

    Bin i has its centre at 2i + sign(i); a node without mass comes first.
    """
    index = histogram.first + torch.arange(len(histogram.counts))
    place = 2 * index + torch.sign(index)
    start = int(place[0]) - 1
    mass = torch.zeros(int(place[-1]) - start + 1, dtype=torch.float64)
    mass[place - start] = histogram.counts.to(torch.float64) / histogram.count
    return start + torch.arange(len(mass), dtype=torch.float64), mass


def _best(
    histogram: Histogram, scheme: Scheme, low: Tensor, high: Tensor, lows: Tensor, highs: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the best range of ``(low, high)``, which wins ties, and those of the given bounds."""
    if not scheme.symmetric:  # every lower with every upper bound; else they mirror
        lows, highs = torch.cartesian_prod(torch.unique(lows), torch.unique(highs)).unbind(1)
    lows, highs = torch.cat([low.view(1), lows]), torch.cat([high.view(1), highs])
    scale, zero_point = scale_zero_point(lows, highs, scheme)
    best = expected_squared_error(histogram, scale, zero_point, scheme).argmin()
    return lows[best], highs[best]

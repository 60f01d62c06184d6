"""What a range costs: calibrators on values, and the error of every clipping threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.numbers.affine import fake_quantize, scale_zero_point
from bitsmith.numbers.calibrators import calibrators, make_calibrator
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.granularity import PerChannel
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Histogram, Statistic

__all__ = ["BITS", "Curve", "Statistics", "curve", "scheme_of", "specs", "thresholds"]

BITS = (8, 4)
PERCENTILES = ("99", "99.9", "99.99")
#: Thresholds along the axis of a figure.
_POINTS = 240


def specs() -> list[str]:
    """Return the short form of every registered calibrator, ``minmax`` first.

    >>> specs()[:3]
    ['minmax', 'percentile:99', 'percentile:99.9']
    """
    rest = [name for name in calibrators if name not in ("minmax", "percentile")]
    return ["minmax", *(f"percentile:{p}" for p in PERCENTILES), *rest]


def scheme_of(bits: int, *, signed: bool) -> Scheme:
    """Return symmetric signed integers, or asymmetric unsigned ones for what follows a ReLU."""
    return Scheme(integer_format(bits, signed=signed), symmetric=signed)


@final
class Statistics:
    """What all calibrators have to see of one tensor, gathered together.

    Attributes:
        histogram: the part that most of them read.
    """

    def __init__(self) -> None:
        kinds = {make_calibrator(spec).statistic for spec in specs()}
        self.histogram = Histogram()
        self._seen: dict[type[Statistic], Statistic] = {k: k() for k in kinds - {Histogram}}
        self._seen[Histogram] = self.histogram

    def update(self, x: Tensor) -> None:
        """Take in values of any shape."""
        for statistic in self._seen.values():
            statistic.update(x)

    def limits(self, spec: str, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """Return the range that a calibrator chooses."""
        calibrator = make_calibrator(spec)
        return calibrator.limits(self._seen[calibrator.statistic], scheme)


@final
@dataclass(frozen=True, eq=False)
class Curve:
    """The mean squared error of each threshold ``[T]`` and its two parts, float64.

    Attributes:
        at: the thresholds.
        clipping: of values beyond the outermost codes.
        rounding: of all others.
    """

    at: Tensor
    clipping: Tensor
    rounding: Tensor

    @property
    def total(self) -> Tensor:
        """The sum of both parts."""
        return self.clipping + self.rounding


def curve(values: Tensor, counts: Tensor, at: Tensor, scheme: Scheme) -> Curve:
    """Return the error of ``values`` at every threshold.

    Args:
        values: float ``[n]``.
        counts: how often each occurs, ``[n]``.
        at: thresholds, positive, ``[T]``; the range is ±threshold, or 0 to threshold where the
            scheme is asymmetric.
        scheme: integers with one scale.

    >>> found = curve(torch.tensor([1.0, 9.0]), torch.ones(2), torch.tensor([7.5]),
    ...               scheme_of(4, signed=True))
    >>> found.clipping.tolist(), found.rounding.tolist()      # 9 becomes 7, 1 stays
    ([2.0], [0.0])
    """
    rows = Scheme(scheme.format, symmetric=scheme.symmetric, granularity=PerChannel(0))
    high = at.float().unsqueeze(1)
    scale, zero = scale_zero_point(-high if scheme.symmetric else 0 * high, high, rows)
    x = values.float().expand(len(at), -1).contiguous()
    share = counts.double() / counts.double().sum()
    error = (fake_quantize(x, rows, scale, zero).double() - x.double()).square() * share
    outside = (x > scale * (scheme.code_max - zero)) | (x < scale * (scheme.code_min - zero))
    clipping = (error * outside).sum(1)
    return Curve(at, clipping, error.sum(1) - clipping)


def thresholds(low: float, high: float) -> Tensor:
    """Return thresholds to draw, from ``low`` to ``high`` in equal ratios."""
    return torch.logspace(math.log10(low), math.log10(high), _POINTS)

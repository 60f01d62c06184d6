"""The whole range: from the smallest to the largest value seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, final

from torch import Tensor

from bitsmith.errors import SchemeError
from bitsmith.numbers.calibrators import Calibrator
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Extrema, Statistic

__all__ = ["MinMax"]


@final
@dataclass(frozen=True)
class MinMax(Calibrator, name="minmax"):
    """Exact smallest and largest value, of the tensor or of each channel.

    The same range as ``percentile:100``, from :class:`Extrema` alone: it needs no histogram and
    keeps channels apart.
    """

    statistic = Extrema

    def limits(self, statistic: Statistic, scheme: Scheme) -> tuple[Tensor, Tensor]:
        extrema = cast(Extrema, statistic)
        shape = tuple(extrema.low.shape)
        if scheme.granularity.scale_shape(shape) != shape:
            kept = "the whole tensor" if extrema.axis is None else f"axis {extrema.axis}"
            raise SchemeError(f"extrema of {kept} do not give the scales of {scheme.granularity}")
        return extrema.low, extrema.high

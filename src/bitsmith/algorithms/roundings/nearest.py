"""Round every weight to its nearest code, in the min–max range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from bitsmith.algorithms.baseline import nearest
from bitsmith.algorithms.rounding import Rounding
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Gram, Statistic

__all__ = ["Nearest"]


@final
@dataclass(frozen=True)
class Nearest(Rounding, name="nearest"):
    """Nearest code, ties to even; the range is each group's smallest and largest weight.

    A learned table becomes evenly spaced, see :func:`bitsmith.algorithms.baseline.nearest`. Given
    a Gram statistic, it reports the error of the layer's output; the codes are the same.

    >>> import torch
    >>> from bitsmith.numbers.formats.integer import int8
    >>> Nearest()(torch.tensor([-1.0, 0.5]), Scheme(int8)).qtensor.codes.tolist()
    [-127, 64]
    """

    takes = Gram
    diagonal = True

    def round(
        self, weight: Tensor, scheme: Scheme, min_scale: Tensor, statistic: Statistic | None
    ) -> QTensor:
        return nearest(weight, scheme, min_scale)

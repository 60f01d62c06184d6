"""Round every weight to its nearest code, in the min–max range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.algorithms.rounding import Rounding, weight_range
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme

__all__ = ["Nearest"]


@final
@dataclass(frozen=True)
class Nearest(Rounding, name="nearest"):
    """Nearest code, ties to even; the range is each group's smallest and largest weight.

    >>> from bitsmith.numbers.formats.integer import int8
    >>> Nearest()(torch.tensor([-1.0, 0.5]), Scheme(int8)).qtensor.codes.tolist()
    [-127, 64]
    """

    def round(self, weight: Tensor, scheme: Scheme, min_scale: Tensor) -> QTensor:
        scale, zero_point = weight_range(weight, scheme)
        return quantize(weight, scheme, torch.maximum(scale, min_scale), zero_point)

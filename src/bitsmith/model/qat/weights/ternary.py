"""Ternary weights: −1, 0 and 1, and a learned scale for each output channel."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from bitsmith.model.convert import IntegerLayer
from bitsmith.model.qat.codes import FixedLevels, Start
from bitsmith.model.qat.straight_through import quantize_real
from bitsmith.numbers.formats.integer import ternary

__all__ = ["TernaryCodes"]

_THRESHOLD = 0.7
_LEAST = 1e-8
"""Width of a cell, in scales, at least."""


@final
class TernaryCodes(FixedLevels, name="ternary"):
    """``sign(w)`` where ``|w| > Δ``, else 0, times a scale that is learned, and Δ with it.

    It starts as ternary weight networks are (arXiv 1605.04711, equations 4 to 6): ``Δ = 0.7 ·
    mean|w|`` and the scale is the mean of the magnitudes above it. Their ratio stays. Gradients
    are those of learned steps, of cells ``2Δ`` wide.

    Attributes:
        cell: float32 ``[O]``, the width of the cell of 0, in scales.
    """

    learns = frozenset({"lsq"})
    cell: Tensor

    def begin(self, start: Start) -> None:
        size = start.weight.detach().flatten(1).abs()
        threshold = _THRESHOLD * size.mean(1, keepdim=True)
        above = size > threshold
        mean = (size * above).sum(1) / above.sum(1).clamp(min=1)
        mean = torch.where(mean > 0, mean, start.scales)  # of a channel of zeros: fits its bias
        self.place(start.weight, mean)
        self.register_buffer("cell", (2 * threshold.flatten() / mean).clamp(min=_LEAST))

    @classmethod
    def fits(cls, layer: IntegerLayer) -> bool:
        return layer.table is None and layer.weight.scheme.format == ternary

    @property
    def high(self) -> float:
        return 1.0

    def levels(self, weight: Tensor, scale: Tensor) -> Tensor:
        return quantize_real(weight, scale * self.cell, -1.0, 1.0)

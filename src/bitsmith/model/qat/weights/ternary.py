"""Ternary weights: −1, 0 and 1, and a learned scale for each output channel."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from bitsmith.model.convert import IntegerLayer
from bitsmith.model.qat.codes import COLLAPSE, Start, WeightCodes
from bitsmith.model.qat.straight_through import damped, quantize_real
from bitsmith.numbers.formats.integer import ternary

__all__ = ["TernaryCodes"]

_THRESHOLD = 0.7
_LEAST = 1e-8
"""Width of a cell, in scales, at least."""


@final
class TernaryCodes(WeightCodes, name="ternary"):
    """``sign(w)`` where ``|w| > Δ``, else 0, times a scale that is learned, and Δ with it.

    It starts as ternary weight networks are (arXiv 1605.04711, equations 4 to 6): ``Δ = 0.7 ·
    mean|w|`` and the scale is the mean of the magnitudes above it. Their ratio stays. Gradients
    are those of learned steps, of cells ``2Δ`` wide.

    Attributes:
        weight: float32 ``[O, …]``.
        log_scale: float32 ``[O]``; 0 at first.
    """

    learns = frozenset({"lsq"})
    start: Tensor
    cell: Tensor

    def begin(self, start: Start) -> None:
        self.weight = nn.Parameter(start.weight.detach().clone())
        size = self.weight.detach().flatten(1).abs()
        threshold = _THRESHOLD * size.mean(1, keepdim=True)
        above = size > threshold
        mean = (size * above).sum(1) / above.sum(1).clamp(min=1)
        mean = torch.where(mean > 0, mean, start.scales)  # of a channel of zeros: fits its bias
        self.register_buffer("start", mean)
        self.register_buffer("cell", (2 * threshold.flatten() / mean).clamp(min=_LEAST))
        self.log_scale = nn.Parameter(torch.zeros_like(mean))
        self._factor = 1 / math.sqrt(max(self.weight[0].numel(), 1))

    @classmethod
    def fits(cls, layer: IntegerLayer) -> bool:
        return layer.table is None and layer.weight.scheme.format == ternary

    @property
    def own(self) -> Tensor:
        return self.weight

    @property
    def base(self) -> Tensor:
        return self.start

    def collapsed(self) -> int:
        return int((self.log_scale < COLLAPSE).sum())

    def restart(self, weight: Tensor) -> None:
        """Its codes have no other number of bits."""

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.start * damped(self.log_scale, self._factor).exp()
        return quantize_real(weight, scale * self.cell, -1.0, 1.0), scale

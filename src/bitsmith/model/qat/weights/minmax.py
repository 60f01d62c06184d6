"""Scales that follow the weight: those of its extremes, or of its mean where codes are signs."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from bitsmith.model.convert import IntegerLayer
from bitsmith.model.qat.codes import Start, WeightCodes, is_binary, wide
from bitsmith.model.qat.straight_through import quantize_real
from bitsmith.numbers.formats.integer import int8, ternary
from bitsmith.numbers.ranges import value_range
from bitsmith.numbers.scales import scale_parameters
from bitsmith.numbers.straight_through import sign_through

__all__ = ["MinMaxCodes"]

_REACH = 2.0
_THRESHOLD = 0.7
_LEAST = 1e-30
_FLOOR = 2.0**-10
"""A scale goes no lower than this share of where it started."""


@final
class MinMaxCodes(WeightCodes, name="minmax"):
    """The weight alone trains; each step computes the scales from it.

    Integers: those of each channel's extremes, so that nothing saturates. Binary: ``sign(w)`` and
    ``mean|w|`` (XNOR-Net, arXiv 1603.05279, equation 6). Ternary: 0 up to ``Δ = 0.7 · mean|w|``
    and the mean of the magnitudes above (1605.04711, equations 4 to 6). The gradient passes
    straight through the rounding (1308.3432).

    Attributes:
        weight: float32 ``[O, …]``.
    """

    learns = frozenset({"minmax"})
    gradual = True
    floor: Tensor

    def begin(self, start: Start) -> None:
        self.binary = is_binary(start.layer)
        self.limit = start.limit if self.given.format == int8 else None
        self.weight = nn.Parameter(start.weight.detach().clone())
        self.register_buffer("floor", (start.scales * _FLOOR).clamp(min=_LEAST))

    @classmethod
    def fits(cls, layer: IntegerLayer) -> bool:
        return layer.table is None or is_binary(layer)

    @property
    def own(self) -> Tensor:
        return self.weight

    @property
    def base(self) -> Tensor:
        return self.floor

    @torch.no_grad()
    def collapsed(self) -> int:
        return int((self.quantized(self.weight)[1] <= self.floor).sum())

    def restart(self, weight: Tensor) -> None:
        """The scales follow by themselves."""

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        size = weight.detach().reshape(len(self.floor), -1).abs()  # [scales, …]
        mean = size.mean(1)
        if self.binary:
            scale = torch.maximum(mean, self.floor)
            return sign_through(weight / wide(scale, weight), _REACH), scale
        if self.given.format == ternary:
            threshold = _THRESHOLD * mean
            above = size > threshold.reshape(-1, 1)
            scale = (size * above).sum(1) / above.sum(1).clamp(min=1)
            cell = torch.maximum(2 * threshold, self.floor)
            return quantize_real(weight, cell, -1.0, 1.0), torch.maximum(scale, self.floor)
        scheme = self.scheme
        low, high = float(scheme.code_min), float(scheme.code_max)
        if self.limit is not None and scheme is self.given:
            low, high = max(low, -float(self.limit)), min(high, float(self.limit))
            scale = size.amax(1) / high
        elif bool(torch.isfinite(mean).all()):
            ends = value_range(weight.detach(), (len(self.floor), *[1] * (weight.dim() - 1)))
            scale = scale_parameters(*ends, scheme).scale.reshape(-1)
        else:
            scale = torch.full_like(mean, torch.nan)  # training diverged: the loss shows it
        scale = torch.maximum(scale, self.floor)
        return quantize_real(weight, scale, low, high), scale

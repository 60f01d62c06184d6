"""Ternary weights whose threshold and scale are means of magnitudes."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from bitsmith.model.module_qat.levels import Level, stored_scale
from bitsmith.model.module_qat.quantizer import WeightQuantizer
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.straight_through import straight_through

__all__ = ["TernaryWeights"]

_THRESHOLD = 0.7


@final
class TernaryWeights(WeightQuantizer, name="twn"):
    """Ternary weight networks (arXiv:1605.04711, equations 4 to 6).

    ``scale · sign(w)`` where ``|w| > Δ = 0.7 · mean|w|``, else 0, with the mean of the magnitudes
    above Δ as the scale. The gradient passes to the weight as it is.
    """

    learn = "minmax"
    held: Tensor

    @classmethod
    def refusal(cls, scheme: Scheme) -> str:
        return "" if scheme.format.name == "ternary" else "it is not ternary"

    def start(self, flat: Tensor) -> None:
        self.register_buffer("held", torch.ones(2, self.layout.count, device=flat.device))

    def values(self, flat: Tensor) -> Tensor:
        levels, level = self._ternary(flat.detach())
        found = levels * level.values.reshape(self.layout.narrow)
        return straight_through(found.reshape(flat.shape), flat)

    @torch.no_grad()
    def qtensor(self, flat: Tensor) -> QTensor:
        levels, level = self._ternary(flat)
        zero = torch.zeros(self.layout.groups, dtype=torch.int32, device=flat.device)
        codes = levels.to(self.current.format.dtype).reshape(flat.shape)
        return QTensor(codes, level.values, zero, None, self.current, level.stored)

    def collapsed(self) -> int:
        return 0

    @torch.no_grad()
    def hold(self, flat: Tensor) -> None:
        self.held.copy_(torch.stack(self._threshold_and_scale(flat)))

    def _ternary(self, flat: Tensor) -> tuple[Tensor, Level]:
        """Return −1, 0 or 1 for each weight, and the scales as they are deployed."""
        layout = self.layout
        threshold, scale = self.held.float() if self.frozen else self._threshold_and_scale(flat)
        wide = flat.reshape(layout.wide)
        above = wide.abs() > threshold.reshape(layout.narrow)
        levels = torch.where(above, torch.sign(wide), 0.0)
        levels = torch.where(torch.isnan(wide), wide, levels)
        return levels, stored_scale(scale.reshape(layout.groups), self.current)

    def _threshold_and_scale(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        magnitudes = self.layout.grouped(flat).abs()
        threshold = _THRESHOLD * magnitudes.mean(1)
        above = magnitudes > threshold[:, None]
        total = torch.where(above, magnitudes, 0.0).sum(1)
        return threshold, total / above.sum(1).clamp(min=1)

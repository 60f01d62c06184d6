"""Straight-through rounding in the min–max range, which follows the weight in every step."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from bitsmith.errors import SchemeError
from bitsmith.model.module_qat.levels import not_finite
from bitsmith.model.module_qat.quantizer import WeightQuantizer
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.straight_through import straight_through

__all__ = ["MinMax"]


@final
class MinMax(WeightQuantizer, name="minmax"):
    """Nearest rounding in each group's smallest and largest weight; nothing but it is trained.

    The gradient is the straight-through estimator of arXiv:1308.3432. In the range of its own
    extremes no weight saturates; in a frozen range one that does gets no gradient.
    """

    learn = "minmax"
    gradual = True
    held: Tensor

    @classmethod
    def refusal(cls, scheme: Scheme) -> str:
        if scheme.learned:
            return "its table is learned, not a range"
        number = scheme.format.name
        if number in ("int1", "ternary"):
            return f"the range of {number} is a mean, not an extreme"
        return "" if scheme.rounding != "stochastic" else "it rounds at random"

    def start(self, flat: Tensor) -> None:
        groups = torch.zeros(3, self.layout.count, device=flat.device)
        self.register_buffer("held", groups)  # scale, zero point, offset

    def values(self, flat: Tensor) -> Tensor:
        if not_finite(flat.detach()):
            return flat * torch.nan
        found = self.qtensor(flat)
        return straight_through(found.dequantize(), flat, self._inside(flat.detach(), found))

    @torch.no_grad()
    def qtensor(self, flat: Tensor) -> QTensor:
        if not self.frozen:
            return quantize(flat, self.current)
        groups = self.layout.groups
        scale, zero_point, offset = (part.reshape(groups).clone() for part in self.held.float())
        shift = offset if self.current.shifted else None
        return quantize(flat, self.current, scale, zero_point.to(torch.int32), shift)

    def collapsed(self) -> int:
        return 0

    def hold(self, flat: Tensor) -> None:
        if isinstance(self.current.scale_format, Scheme):
            raise SchemeError(
                f"{self.label}: scales in two levels that follow the weight cannot be frozen: "
                "train with learn='lsq'"
            )
        found = quantize(flat, self.current)
        offset = torch.zeros_like(found.scale) if found.offset is None else found.offset
        parts = (found.scale, found.zero_point.to(torch.float32), offset)
        self.held.copy_(torch.stack([part.reshape(-1) for part in parts]))

    def _inside(self, flat: Tensor, found: QTensor) -> Tensor | None:
        """Return where a frozen range does not clip; None where every value is within it."""
        scheme, layout = self.current, self.layout
        if not self.frozen or not scheme.scaled:
            return None
        wide, step = flat.reshape(layout.wide), found.scale.reshape(layout.narrow)
        low, high = scheme.format.min, scheme.format.max
        point: Tensor | float = 0.0
        if scheme.affine:
            low, high = scheme.code_min, scheme.code_max
            point = found.zero_point.reshape(layout.narrow)
        if found.offset is not None:
            wide = wide + found.offset.reshape(layout.narrow)
        steps = wide / step + point
        return ((steps >= low - 0.5) & (steps <= high + 0.5)).reshape(flat.shape)

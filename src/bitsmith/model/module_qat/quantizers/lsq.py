"""Learned step size: the scale of each group is a parameter."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from bitsmith.model.module_qat.levels import Level, in_units, stored_scale
from bitsmith.model.module_qat.quantizer import WeightQuantizer
from bitsmith.model.module_qat.start import COLLAPSE, searched_start
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.straight_through import (
    gradient_factor,
    learned_grid,
    learned_step,
    straight_through,
)

__all__ = ["LearnedStep"]


@final
class LearnedStep(WeightQuantizer, name="lsq"):
    """LSQ (arXiv:1902.08153): ``scale · clamp(round(w / scale))``, the scale trained.

    For every format whose scales mirror around 0: integers, binary and ternary, tables (NF4) and
    small floats (MXFP4). It starts with the scales of least squared error, and its gradient is
    multiplied by ``1 / √(N · Q_P)`` (section 2.2), N the weights that share the scale. The
    parameter is the scale in units of where it started: see
    :func:`bitsmith.model.module_qat.levels.in_units`.
    """

    learn = "lsq"
    gradual = True
    unit: Tensor

    @classmethod
    def refusal(cls, scheme: Scheme) -> str:
        if scheme.learned:
            return "its table is learned, not a scale"
        if not scheme.scaled:
            return f"{scheme.format.name} has no scale"
        if not scheme.symmetric:
            return "it has a zero point or an offset"
        return "" if scheme.rounding == "half_even" else f"it rounds {scheme.rounding}"

    def start(self, flat: Tensor) -> None:
        scale = searched_start(flat, self.current, self.layout).scale.reshape(-1)
        self.parameter("scale", torch.ones_like(scale))
        self.register_buffer("unit", scale)

    def values(self, flat: Tensor) -> Tensor:
        scheme, layout = self.current, self.layout
        wide, scale = flat.reshape(layout.wide), self._scale().values.reshape(layout.narrow)
        if scheme.affine:
            found = learned_step(wide, scale, scheme.code_min, scheme.code_max)
        else:
            found = learned_grid(wide, scale, scheme.format)
        return found.reshape(flat.shape)

    @torch.no_grad()
    def qtensor(self, flat: Tensor) -> QTensor:
        scheme, layout, level = self.current, self.layout, self._scale()
        unit = flat.reshape(layout.wide) / level.values.reshape(layout.narrow)
        if scheme.affine:
            codes = torch.round(unit).clamp(scheme.code_min, scheme.code_max)
            codes = codes.to(scheme.format.dtype)
        else:
            codes = scheme.format.encode(unit)
        zero = torch.zeros(layout.groups, dtype=torch.int32, device=flat.device)
        codes = codes.reshape(flat.shape)
        return QTensor(codes, level.values, zero, None, scheme, level.stored)

    def collapsed(self) -> int:
        return int((self.get_parameter("scale") <= COLLAPSE).sum())

    def hold(self, flat: Tensor) -> None:
        """Keep the scale; it is a parameter, which stops to train."""

    def _scale(self) -> Level:
        """Return the scale as it is deployed, of the shape of the groups."""
        ratio, number = self.get_parameter("scale"), self.current.format
        factor = gradient_factor(self.layout.members, max(number.max, -number.min, 1.0))
        bounded = straight_through(ratio.detach().clamp(min=COLLAPSE), ratio)
        scale = in_units(bounded, self.unit.float(), factor)
        return stored_scale(scale.reshape(self.layout.groups), self.current)

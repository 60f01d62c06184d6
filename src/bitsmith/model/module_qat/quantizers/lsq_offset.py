"""Learned step size and offset: asymmetric codes whose range is two parameters."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from bitsmith.model.module_qat.levels import Level, in_units, stored_offset, stored_scale
from bitsmith.model.module_qat.quantizer import WeightQuantizer
from bitsmith.model.module_qat.start import COLLAPSE, searched_start
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.straight_through import (
    gradient_factor,
    learned_step_offset,
    straight_through,
    zero_code,
)

__all__ = ["LearnedStepOffset"]


@final
class LearnedStepOffset(WeightQuantizer, name="lsq+"):
    """LSQ+ (arXiv:2004.09576): ``scale · code + offset``, both trained.

    The offset is deployed as the scheme says: as a zero point, the multiple of the scale nearest to
    it, or as a number in the offset format. Start and scaling of the gradients as of ``lsq``.
    """

    learn = "lsq"
    gradual = True
    unit: Tensor

    @classmethod
    def refusal(cls, scheme: Scheme) -> str:
        if scheme.learned or not scheme.affine or scheme.symmetric:
            return "it has neither a zero point nor an offset"
        return "" if scheme.rounding == "half_even" else f"it rounds {scheme.rounding}"

    def start(self, flat: Tensor) -> None:
        found = searched_start(flat, self.current, self.layout)
        self.parameter("scale", torch.ones_like(found.scale))
        self.parameter("offset", found.offset / found.scale)
        self.register_buffer("unit", found.scale.reshape(-1))

    def values(self, flat: Tensor) -> Tensor:
        scheme, layout = self.current, self.layout
        scale, offset = self._range()
        found = learned_step_offset(
            flat.reshape(layout.wide),
            scale.values.reshape(layout.narrow),
            offset.values.reshape(layout.narrow),
            scheme.code_min,
            scheme.code_max,
            integer_zero=not scheme.shifted,
        )
        return found.reshape(flat.shape)

    @torch.no_grad()
    def qtensor(self, flat: Tensor) -> QTensor:
        scheme, layout = self.current, self.layout
        scale, offset = self._range()
        low, high = scheme.code_min, scheme.code_max
        step, start = scale.values.reshape(layout.narrow), offset.values.reshape(layout.narrow)
        wide = flat.reshape(layout.wide)
        if scheme.shifted:
            codes, z = torch.round((wide - start) / step), torch.zeros_like(step)
        else:
            z = zero_code(step, start, low, high)
            codes = torch.round(wide / step) + z
        codes = codes.clamp(low, high).to(scheme.format.dtype).reshape(flat.shape)
        point = z.to(torch.int32).reshape(layout.groups)
        lowest = -offset.values + 0.0 if scheme.shifted else None
        return QTensor(
            codes, scale.values, point, None, scheme, scale.stored, lowest, offset.stored
        )

    def collapsed(self) -> int:
        return int((self.get_parameter("scale") <= COLLAPSE).sum())

    def hold(self, flat: Tensor) -> None:
        """Keep scale and offset; they are parameters, which stop to train."""

    def _range(self) -> tuple[Level, Level]:
        """Return scale and offset as they are deployed, of the shape of the groups."""
        scheme, groups = self.current, self.layout.groups
        factor = gradient_factor(self.layout.members, max(scheme.code_max, -scheme.code_min))
        ratio, unit = self.get_parameter("scale"), self.unit.float()
        bounded = straight_through(ratio.detach().clamp(min=COLLAPSE), ratio)
        scale = stored_scale(in_units(bounded, unit, factor).reshape(groups), scheme)
        offset = in_units(self.get_parameter("offset"), unit, factor).reshape(groups)
        if not scheme.shifted:
            return scale, Level(offset)
        stored = stored_offset(-offset, scheme)
        return scale, Level(-stored.values, stored.stored)

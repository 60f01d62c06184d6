"""Binary weights whose scale is the mean magnitude."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from bitsmith.model.module_qat.levels import Level, stored_scale
from bitsmith.model.module_qat.quantizer import WeightQuantizer
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.straight_through import sign_through

__all__ = ["Xnor"]


@final
class Xnor(WeightQuantizer, name="xnor"):
    """XNOR-Net's binary weights (arXiv:1603.05279, section 3.1): ``mean|w| · sign(w)``.

    That scale has the least squared error. The gradient passes through both factors; that of the
    sign where ``|w| ≤ 1``.
    """

    learn = "minmax"
    held: Tensor

    @classmethod
    def refusal(cls, scheme: Scheme) -> str:
        return "" if scheme.format.name == "int1" else "it is not binary (int1)"

    def start(self, flat: Tensor) -> None:
        self.register_buffer("held", torch.ones(self.layout.count, device=flat.device))

    def values(self, flat: Tensor) -> Tensor:
        scale = self._scale(flat).values.reshape(self.layout.narrow)
        return (sign_through(flat.reshape(self.layout.wide)) * scale).reshape(flat.shape)

    @torch.no_grad()
    def qtensor(self, flat: Tensor) -> QTensor:
        level = self._scale(flat)
        zero = torch.zeros(self.layout.groups, dtype=torch.int32, device=flat.device)
        codes = self.current.format.encode(flat)
        return QTensor(codes, level.values, zero, None, self.current, level.stored)

    def collapsed(self) -> int:
        return 0

    @torch.no_grad()
    def hold(self, flat: Tensor) -> None:
        self.held.copy_(self.layout.grouped(flat).abs().mean(1))

    def _scale(self, flat: Tensor) -> Level:
        mean = self.held.float() if self.frozen else self.layout.grouped(flat).abs().mean(1)
        return stored_scale(mean.reshape(self.layout.groups), self.current)

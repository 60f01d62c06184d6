"""Binary weights: signs, and a learned scale for each output channel."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from bitsmith.model.convert import IntegerLayer
from bitsmith.model.qat.codes import FixedLevels, Start, is_binary, wide
from bitsmith.numbers.straight_through import sign_through

__all__ = ["BinaryCodes"]

_REACH = 2.0
"""Scales from 0 at which the gradient of a weight ends."""


@final
class BinaryCodes(FixedLevels, name="binary"):
    """``sign(w)``, 1 for 0, times a scale that starts at ``mean |w|`` and is learned.

    The start is that of XNOR-Net (arXiv 1603.05279, equation 6), the least squared error. The
    gradient of a weight passes where ``|w| ≤ 2s`` (1602.02830, section 1.3, in units of the
    scale): one far out does not drift further.
    """

    learns = frozenset({"lsq"})

    def begin(self, start: Start) -> None:
        mean = start.weight.detach().flatten(1).abs().mean(1)
        mean = torch.where(mean > 0, mean, start.scales)  # of a channel of zeros: fits its bias
        self.place(start.weight, mean)

    @classmethod
    def fits(cls, layer: IntegerLayer) -> bool:
        return is_binary(layer)

    @property
    def high(self) -> float:
        return 1.0

    def levels(self, weight: Tensor, scale: Tensor) -> Tensor:
        return sign_through(weight / wide(scale, weight).detach(), _REACH)

"""Binary weights: signs, and a learned scale for each output channel."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from bitsmith.model.convert import IntegerLayer
from bitsmith.model.qat.codes import COLLAPSE, Start, WeightCodes, is_binary, wide
from bitsmith.model.qat.straight_through import damped
from bitsmith.numbers.straight_through import sign_through

__all__ = ["BinaryCodes"]

_REACH = 2.0
"""Scales from 0 at which the gradient of a weight ends."""


@final
class BinaryCodes(WeightCodes, name="binary"):
    """``sign(w)``, 1 for 0, times a scale that starts at ``mean |w|`` and is learned.

    The start is that of XNOR-Net (arXiv 1603.05279, equation 6), the least squared error. The
    gradient of a weight passes where ``|w| ≤ 2s`` (1602.02830, section 1.3, in units of the
    scale): one far out does not drift further.

    Attributes:
        weight: float32 ``[O, …]``.
        log_scale: float32 ``[O]``; 0 at first.
    """

    learns = frozenset({"lsq"})
    start: Tensor

    def begin(self, start: Start) -> None:
        self.weight = nn.Parameter(start.weight.detach().clone())
        mean = self.weight.detach().flatten(1).abs().mean(1)
        mean = torch.where(mean > 0, mean, start.scales)  # of a channel of zeros: fits its bias
        self.register_buffer("start", mean)
        self.log_scale = nn.Parameter(torch.zeros_like(mean))
        self._factor = 1 / math.sqrt(max(self.weight[0].numel(), 1))

    @classmethod
    def fits(cls, layer: IntegerLayer) -> bool:
        return is_binary(layer)

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
        return sign_through(weight / wide(scale, weight).detach(), _REACH), scale

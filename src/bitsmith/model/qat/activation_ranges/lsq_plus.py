"""Learned step sizes and zero points of activations."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from bitsmith.model.qat.ranges import ActivationRange
from bitsmith.model.qat.straight_through import bounded, damped

__all__ = ["LearnedStepOffsetRange"]


@final
class LearnedStepOffsetRange(ActivationRange, name="lsq+"):
    """LSQ+ (arXiv 2004.09576): scale and zero point are learned.

    Equations 3 and 4, with the offset rounded to a whole code, as integer kernels need it:
    saturated values move it. A range that starts at 0, of a fused relu, keeps it.

    Attributes:
        log_scale: float32 ``[]``; 0 at first.
        offset: float32 ``[]``, what the zero point has moved by, as a share of the range.
    """

    def begin(self) -> None:
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.offset = nn.Parameter(torch.zeros(()), requires_grad=not self.given.from_zero)

    def scale(self) -> Tensor:
        return self.stepped(self.log_scale)

    @property
    def zero_point(self) -> int:
        moved = self.offset.item()
        return self.code_at(self.given_position + (moved if math.isfinite(moved) else 0.0))

    def zero(self) -> Tensor | None:
        if self.given.from_zero:
            return None
        return damped(bounded(self.offset, *self._ends), self.factor) * float(self.span)

    def observe(self, low: Tensor, high: Tensor) -> None:
        """Batches change nothing."""

    @property
    def _ends(self) -> tuple[float, float]:
        return -self.given_position, 1 - self.given_position

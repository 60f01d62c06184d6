"""Learned step sizes of activations."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from bitsmith.model.qat.ranges import ActivationRange

__all__ = ["LearnedStepRange"]


@final
class LearnedStepRange(ActivationRange, name="lsq"):
    """LSQ (arXiv 1902.08153): the scale is learned, the zero point stays.

    ``∂(s·q)/∂s = q − v`` inside the range and ``q`` where a value saturates (equation 3).

    Attributes:
        log_scale: float32 ``[]``, the parameter; 0 at first.
    """

    def begin(self) -> None:
        self.log_scale = nn.Parameter(torch.zeros(()))

    def scale(self) -> Tensor:
        return self.stepped(self.log_scale)

    @property
    def zero_point(self) -> int:
        return self.code_at(self.given_position)

    def zero(self) -> Tensor | None:
        return None

    def observe(self, low: Tensor, high: Tensor) -> None:
        """Batches change nothing."""

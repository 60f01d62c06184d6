"""Learned clipping of activations."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from bitsmith.model.qat.ranges import ActivationRange

__all__ = ["LearnedClip"]


@final
class LearnedClip(ActivationRange, name="pact"):
    """PACT (arXiv 1805.06085): the upper end is learned, from the values beyond it alone.

    ``∂(s·q)/∂s`` is 0 inside the range and ``q`` where a value saturates, which is equation 3 for
    the end ``α = s · q_max``. The paper regularizes α with its square: give the optimizer a weight
    decay for it if you want that; ``log_scale`` decays towards the range that calibration found.

    Attributes:
        log_scale: float32 ``[]``, the parameter; 0 at first.
    """

    clips = True

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

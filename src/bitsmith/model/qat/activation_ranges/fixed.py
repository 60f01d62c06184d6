"""Ranges that stay where calibration put them."""

from __future__ import annotations

from typing import final

from torch import Tensor

from bitsmith.model.qat.ranges import ActivationRange

__all__ = ["FixedRange"]


@final
class FixedRange(ActivationRange, name="fixed"):
    """The calibrated encoding; nothing is learned."""

    def begin(self) -> None:
        """There is nothing beside the start."""

    def scale(self) -> Tensor:
        return self.start

    @property
    def zero_point(self) -> int:
        return self.code_at(self.given_position)

    def zero(self) -> Tensor | None:
        return None

    def observe(self, low: Tensor, high: Tensor) -> None:
        """Batches change nothing."""

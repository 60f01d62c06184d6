"""Codes that stay as they are."""

from __future__ import annotations

from typing import final

from torch import Tensor

from bitsmith.model.convert import IntegerLayer
from bitsmith.model.qat.codes import Start, WeightCodes

__all__ = ["FrozenWeight"]


@final
class FrozenWeight(WeightCodes, name="frozen"):
    """Codes and scales of a layer that is kept as it was rounded, at 8 bits mostly.

    Codes of 8 bits obey the pair bound of the machine, which no gradient knows of.
    """

    learns = frozenset({"frozen"})
    codes: Tensor
    scales: Tensor

    def begin(self, start: Start) -> None:
        self.register_buffer("codes", start.layer.weight.codes.float())
        self.register_buffer("scales", start.scales)

    @classmethod
    def fits(cls, layer: IntegerLayer) -> bool:
        return True

    @property
    def own(self) -> Tensor:
        return self.codes * self.scales.reshape(-1, *[1] * (self.codes.dim() - 1))

    @property
    def base(self) -> Tensor:
        return self.scales

    def collapsed(self) -> int:
        return 0

    def restart(self, weight: Tensor) -> None:
        """Its codes have no other number of bits."""

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self.codes, self.scales

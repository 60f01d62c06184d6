"""The exact smallest and largest value, of the tensor or of each index of an axis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.granularity import PerChannel
from bitsmith.numbers.ranges import as_float32, value_range
from bitsmith.numbers.statistics.statistic import Statistic

__all__ = ["Extrema"]


@final
class Extrema(Statistic, name="extrema", exact=True):
    """The exact smallest and largest value, of the tensor or of each index of an axis.

    Attributes:
        axis: None for the whole tensor, else the axis whose indices are kept apart.
        low, high: float32 on the CPU, of the shape that ``PerTensor`` or ``PerChannel(axis)``
            gives a scale; +inf and −inf before the first value.

    >>> e = Extrema(axis=0)
    >>> e.update(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    >>> e.low.tolist(), e.high.tolist(), e.count
    ([[-2.0], [3.0]], [[1.0], [4.0]], 4)
    """

    def __init__(self, axis: int | None = None) -> None:
        self.axis = axis
        self.low, self.high = torch.tensor(math.inf), torch.tensor(-math.inf)
        self.count = 0

    def update(self, x: Tensor) -> None:
        x = as_float32(x)
        if x.numel() == 0:
            return
        shape = () if self.axis is None else PerChannel(self.axis).scale_shape(x.shape)
        low, high = value_range(x, shape)
        self._widen(low.cpu(), high.cpu(), x.numel())

    def merge(self, other: Extrema) -> Extrema:
        if self.axis != other.axis:
            raise DataError(f"extrema along axis {self.axis} and axis {other.axis} do not merge")
        if not other.empty:
            self._widen(other.low, other.high, other.count)
        return self

    def state_dict(self) -> dict[str, Any]:
        return {
            "axis": self.axis,
            "low": self.low.clone(),
            "high": self.high.clone(),
            "count": self.count,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Extrema:
        extrema = cls(state["axis"])
        extrema.low, extrema.high = state["low"].clone(), state["high"].clone()
        extrema.count = state["count"]
        return extrema

    def _widen(self, low: Tensor, high: Tensor, count: int) -> None:
        if not self.empty and low.shape != self.low.shape:
            raise DataError(
                f"extrema of shape {tuple(self.low.shape)} cannot take in values with extrema of "
                f"shape {tuple(low.shape)}: every batch needs the same channels and rank"
            )
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.count += count

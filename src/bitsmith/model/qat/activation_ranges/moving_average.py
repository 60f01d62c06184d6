"""Ranges that follow the extremes of the training batches."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from bitsmith.model.qat.ranges import ActivationRange
from bitsmith.model.qat.ranks import mean_over_ranks
from bitsmith.numbers.affine import scale_zero_point
from bitsmith.numbers.moving_average import MovingAverage
from bitsmith.numbers.scheme import Scheme

__all__ = ["MovingAverageRange"]

_MOMENTUM = 0.99
_LESS = 1e-6
"""What a range stays inside its limit by: the scale is rounded."""


@final
class MovingAverageRange(ActivationRange, name="moving_average"):
    """The moving average of the smallest and largest value of each batch.

    arXiv 1712.05877, section 3.1; calibration counts as the first batch. In a distributed run each
    step takes the mean of the ranks' extremes, so that ranges agree.

    Attributes:
        lowest, highest: float64 ``[]``, the decaying sums of
            :class:`~bitsmith.numbers.moving_average.MovingAverage`.
        weight: float64 ``[]``, their total weight.
    """

    observes = True
    lowest: Tensor
    highest: Tensor
    weight: Tensor

    def begin(self) -> None:
        known = self.given.encoding
        fresh = 1 - _MOMENTUM
        for name, value in (
            ("lowest", fresh * known.low),
            ("highest", fresh * known.high),
            ("weight", fresh),
        ):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    def scale(self) -> Tensor:
        return self._fitted()[0]

    @property
    def zero_point(self) -> int:
        return int(self._fitted()[1])

    def zero(self) -> Tensor | None:
        return None

    @torch.no_grad()
    def observe(self, low: Tensor, high: Tensor) -> None:
        (ends,) = mean_over_ranks(torch.stack([low.detach(), high.detach()]).to(torch.float32))
        average = MovingAverage.from_state(self._state())
        average.update(ends)
        state = average.state_dict()
        self.lowest.copy_(state["low"])
        self.highest.copy_(state["high"])
        self.weight.fill_(state["weight"])

    def _state(self) -> dict[str, Any]:
        return {
            "momentum": _MOMENTUM,
            "axis": None,
            "steps": 1,
            "weight": float(self.weight),
            "low": self.lowest.cpu(),
            "high": self.highest.cpu(),
        }

    @torch.no_grad()
    def _fitted(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of the averages."""
        average = MovingAverage.from_state(self._state())
        low, high = average.low, average.high
        if self.given.from_zero:
            low = torch.zeros_like(low)
        if self.given.limit is not None:
            high = high.clamp(max=self.given.limit * (1 - _LESS))
        return scale_zero_point(low, high, Scheme(self.format, symmetric=False))

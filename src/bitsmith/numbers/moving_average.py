"""The moving average of batch extremes, which follows activations while they are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.granularity import PerChannel
from bitsmith.numbers.ranges import as_float32, value_range

__all__ = ["MovingAverage"]


@final
class MovingAverage:
    """Exponential moving average of the smallest and largest value of each batch.

    With momentum m, after t batches with extremes ``e_1 … e_t`` (arXiv:1712.05877, section 3.1,
    which recommends m close to 1)::

        average = (1 − m) · Σ_i m^(t−i) · e_i  /  (1 − m^t)

    The division corrects the bias towards the start value 0 (arXiv:1412.6980, section 3): after
    one batch the average is that batch's extreme. It lies inside the extremes seen.

    Later batches weigh more, so this is no :class:`~bitsmith.numbers.statistics.Statistic`:
    order matters. What holds instead: a batch is an affine map of the state and affine maps
    compose, so *consecutive* parts merge, in their order, to one pass, up to rounding in float64.

    Args:
        momentum: m, at least 0 (the last batch alone) and below 1.
        axis: None for the whole tensor, else the axis whose indices are kept apart.

    Attributes:
        steps: batches seen, t.

    Raises:
        DataError: the momentum is out of range.

    >>> a = MovingAverage(momentum=0.75)
    >>> a.update(torch.tensor([-1.0, 1.0]))
    >>> a.update(torch.tensor([-1.0, 8.0]))
    >>> a.low.item(), a.high.item()     # (0.75·1 + 8) / 1.75
    (-1.0, 5.0)
    """

    def __init__(self, momentum: float = 0.99, axis: int | None = None) -> None:
        if not 0 <= momentum < 1:
            raise DataError(f"momentum is at least 0 and below 1, not {momentum}")
        self.momentum, self.axis, self.steps = momentum, axis, 0
        self._weight = 0.0  # Σ (1 − m)·m^(t−i) = 1 − m^t
        self._low, self._high = torch.zeros(2, dtype=torch.float64).unbind()

    @property
    def empty(self) -> bool:
        """True before the first batch."""
        return self.steps == 0

    @property
    def low(self) -> Tensor:
        """Average of the batches' smallest values, float32, of the scale's shape.

        Raises:
            DataError: no batch was seen.
        """
        return self._average(self._low)

    @property
    def high(self) -> Tensor:
        """Average of the batches' largest values, as :attr:`low`."""
        return self._average(self._high)

    def update(self, x: Tensor) -> None:
        """Take in a batch of floating-point values, any shape; an empty one changes nothing.

        Raises:
            DataError: ``x`` has NaN or infinite values, or is not floating point, or has other
                channels than earlier batches; nothing changed.
        """
        x = as_float32(x)
        if x.numel() == 0:
            return
        shape = () if self.axis is None else PerChannel(self.axis).scale_shape(x.shape)
        low, high = (bound.cpu().to(torch.float64) for bound in value_range(x, shape))
        fresh = 1 - self.momentum
        self._follow(self.momentum, 1, fresh, fresh * low, fresh * high)

    def merge(self, other: MovingAverage) -> MovingAverage:
        """Take in the batches of ``other``, which come *after* those seen here. Return self.

        Raises:
            DataError: the two were set up differently, or have seen other channels.
        """
        self._same(other)
        if not other.empty:
            decay = self.momentum**other.steps
            self._follow(decay, other.steps, other._weight, other._low, other._high)
        return self

    @staticmethod
    def average(parts: Sequence[MovingAverage]) -> MovingAverage:
        """Return the mean of the ranks of a distributed run, as a new moving average.

        The same, up to rounding, as one moving average over steps whose extremes are the means
        of those of the ranks' batches.

        Raises:
            DataError: no parts, or they differ in set-up, channels or steps.
        """
        if not parts:
            raise DataError("the mean of no moving averages is not defined")
        mean = MovingAverage.from_state(parts[0].state_dict())
        for other in parts[1:]:
            mean._same(other)
        if len(steps := {part.steps for part in parts}) > 1:
            raise DataError(
                f"ranks have taken {sorted(steps)} steps; all must have the same number"
            )
        if not mean.empty:
            mean._low = torch.stack([part._low for part in parts]).mean(0)
            mean._high = torch.stack([part._high for part in parts]).mean(0)
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state: numbers and CPU tensors, as :meth:`from_state` reads it."""
        return {
            "momentum": self.momentum,
            "axis": self.axis,
            "steps": self.steps,
            "weight": self._weight,
            "low": self._low.clone(),
            "high": self._high.clone(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> MovingAverage:
        """Return the moving average whose :meth:`state_dict` is ``state``."""
        average = cls(state["momentum"], state["axis"])
        average.steps, average._weight = state["steps"], state["weight"]
        average._low, average._high = state["low"].clone(), state["high"].clone()
        return average

    def _average(self, bound: Tensor) -> Tensor:
        if self.empty:
            raise DataError("a moving average that has seen no batch has no range")
        return (bound / self._weight).to(torch.float32)

    def _same(self, other: MovingAverage) -> None:
        mine, theirs = (self.momentum, self.axis), (other.momentum, other.axis)
        if mine != theirs:
            raise DataError(
                f"moving averages of (momentum, axis) {mine} and {theirs} do not combine"
            )
        if not (self.empty or other.empty):
            self._fits(other._low)

    def _fits(self, low: Tensor) -> None:
        if low.shape != self._low.shape:
            raise DataError(
                f"a moving average of shape {tuple(self._low.shape)} cannot take in one of shape "
                f"{tuple(low.shape)}: every batch needs the same channels and rank"
            )

    def _follow(self, decay: float, steps: int, weight: float, low: Tensor, high: Tensor) -> None:
        if not self.empty:
            self._fits(low)
        self._low, self._high = decay * self._low + low, decay * self._high + high
        self._weight = decay * self._weight + weight
        self.steps += steps

"""Mean squared gradients of the values of a tensor: the diagonal of the empirical Fisher matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.ranges import as_float32, value_range
from bitsmith.numbers.statistics.statistic import Statistic

__all__ = ["Fisher"]

_PIECE = 1 << 20  # values taken to float64 at a time


@final
class Fisher(Statistic, name="fisher", exact=False):
    """Σ g² over samples, of each value apart; float64 of the tensor's shape, whatever is seen.

    A batch is ``[samples, *shape]``, one gradient per sample: the square of a mean over samples
    is another number.

    Attributes:
        samples: gradients seen.
        sums: Σ g², float64 ``[*shape]``; empty before the first sample.

    >>> f = Fisher()
    >>> f.update(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> f.mean_square.tolist()
    [5.0, 2.0]
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(0, dtype=torch.float64)
        self.samples, self.count = 0, 0

    @property
    def mean_square(self) -> Tensor:
        """E[g²] of each value, float64 ``[*shape]``."""
        return self.sums / max(self.samples, 1)

    def update(self, x: Tensor) -> None:
        x = as_float32(x)
        if x.numel() == 0:
            return
        if x.dim() == 0:
            raise DataError("gradients come as [samples, *shape]; a scalar has no samples")
        value_range(x)  # refuses what is not finite
        self._check(x.shape[1:])
        for part in torch.split(x, max(1, _PIECE // x[0].numel())):
            self._add(part.to(torch.float64).square_().sum(0).cpu())
        self.samples += len(x)
        self.count += x.numel()

    def merge(self, other: Fisher) -> Fisher:
        if not other.empty:
            self._check(other.sums.shape)
            self._add(other.sums)
            self.samples += other.samples
            self.count += other.count
        return self

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums.clone(), "samples": self.samples, "count": self.count}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Fisher:
        fisher = cls()
        fisher.sums = state["sums"].clone()
        fisher.samples, fisher.count = state["samples"], state["count"]
        return fisher

    def _check(self, shape: torch.Size) -> None:
        if not self.empty and shape != self.sums.shape:
            raise DataError(
                f"squared gradients of shape {tuple(self.sums.shape)} cannot take in gradients of "
                f"shape {tuple(shape)}"
            )

    def _add(self, sums: Tensor) -> None:
        self.sums = self.sums + sums if self.sums.numel() else sums.clone()

"""Sums of products of features over all rows: XᵀX, or only its diagonal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.ranges import as_float32, value_range
from bitsmith.numbers.statistics.statistic import Statistic

__all__ = ["Gram"]

_PIECE = 1 << 20  # values taken to float64 at a time


@final
class Gram(Statistic, name="gram", exact=False):
    """The Gram matrix XᵀX of rows of K features, float64; its size is K², or K.

    The last axis of a batch is the features; all axes before it are rows. The product of two
    float32 is exact in float64, so only the sums round: an entry (i, j) over n rows has an error of
    about √n float64 steps of √(G_ii · G_jj), and of n at most.

    Args:
        diagonal: keep only Σ x_k² per feature, which is all that weighting by a second moment
            takes.

    Attributes:
        rows: rows seen.
        sums: ``[K, K]``, or ``[K]`` for the diagonal; ``[0, 0]`` or ``[0]`` before the first row.

    >>> g = Gram()
    >>> g.update(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> g.sums.tolist(), g.second_moment.tolist()
    ([[10.0, 2.0], [2.0, 4.0]], [5.0, 2.0])
    """

    def __init__(self, diagonal: bool = False) -> None:
        self.diagonal = diagonal
        self.sums = torch.zeros(0 if diagonal else (0, 0), dtype=torch.float64)
        self.rows, self.count = 0, 0

    @property
    def second_moment(self) -> Tensor:
        """E[x_k²], the mean square of each feature: float64 ``[K]``."""
        return (self.sums if self.diagonal else self.sums.diagonal()) / max(self.rows, 1)

    def update(self, x: Tensor) -> None:
        x = as_float32(x)
        if x.numel() == 0:
            return
        if x.dim() == 0:
            raise DataError("a Gram matrix needs a last axis of features; a scalar has none")
        value_range(x)  # refuses what is not finite
        self._check(x.shape[-1])
        rows = x.reshape(-1, x.shape[-1])
        for part in torch.split(rows, max(1, _PIECE // rows.shape[1])):
            part = part.to(torch.float64)
            self._add((part.square_().sum(0) if self.diagonal else part.T @ part).cpu())
        self.rows += len(rows)
        self.count += x.numel()

    def merge(self, other: Gram) -> Gram:
        if self.diagonal != other.diagonal:
            raise DataError("a Gram matrix and a diagonal of one do not merge")
        if not other.empty:
            self._check(len(other.sums))
            self._add(other.sums)
            self.rows += other.rows
            self.count += other.count
        return self

    def state_dict(self) -> dict[str, Any]:
        return {
            "diagonal": self.diagonal,
            "sums": self.sums.clone(),
            "rows": self.rows,
            "count": self.count,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Gram:
        gram = cls(state["diagonal"])
        gram.sums = state["sums"].clone()
        gram.rows, gram.count = state["rows"], state["count"]
        return gram

    def _check(self, features: int) -> None:
        if not self.empty and features != len(self.sums):
            raise DataError(
                f"a Gram matrix of {len(self.sums)} features cannot take in rows of {features}"
            )

    def _add(self, sums: Tensor) -> None:
        self.sums = self.sums + sums if len(self.sums) else sums.clone()

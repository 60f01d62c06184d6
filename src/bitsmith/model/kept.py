"""The first samples of a stream that is read once, kept for the steps that need them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.model.calibrate import as_inputs

__all__ = ["Kept"]


@final
class Kept:
    """Keeps at most ``limit`` samples of what passes.

    >>> kept = Kept(3)
    >>> seen = list(kept.watch([torch.zeros(2, 5), torch.ones(2, 5)]))
    >>> [len(x) for x, in kept.batches], kept.tensor().shape
    ([2, 1], torch.Size([3, 5]))
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.batches: list[list[Tensor]] = []

    def watch(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield every batch as it is, and keep the first samples."""
        left = self.limit
        for batch in batches:
            if left > 0:
                inputs = [x[:left] for x in as_inputs(batch)]
                self.batches.append(inputs)
                left -= len(inputs[0])
            yield batch

    def tensor(self) -> Tensor:
        """Return the samples of a model with one input, ``[N, …]``.

        Raises:
            DataError: nothing passed, or the batches have several inputs.
        """
        if any(len(inputs) != 1 for inputs in self.batches):
            raise DataError("learned rounding and distillation take models of one input")
        if not self.batches:
            raise DataError("no samples were kept: the data was empty")
        return torch.cat([inputs[0] for inputs in self.batches])

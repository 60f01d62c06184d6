"""Calibration data that is gone through once for every block of a model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, final

from torch import nn

from bitsmith.errors import DataError
from bitsmith.model.blocks import Block, as_arguments, input_statistics
from bitsmith.model.calibrate import checked_batches
from bitsmith.model.recipe import Recipe

__all__ = ["Passes", "block_passes"]


@final
class Passes:
    """Calibration batches, asked for anew in every pass; none is kept."""

    def __init__(self, data: Iterable[Any]) -> None:
        batches = iter(checked_batches(data))
        first = list(itertools.islice(batches, 1))
        if not first:
            raise DataError("the calibration data is empty: its iterator gave no batch")
        as_arguments(first[0])
        self.once = batches is data
        self._data = itertools.chain(first, batches) if self.once else data

    def __iter__(self) -> Iterator[Any]:
        count = 0
        for batch in self._data:
            count += 1
            yield batch
        if not count:
            raise DataError("the calibration data gave no batch when it was gone through again")

    def check_passes(self, passes: int, recipe: Recipe) -> None:
        """Refuse an iterator that would have to be gone through again."""
        if self.once and passes > 1:
            raise DataError(
                f"the calibration data is an iterator, which gives its batches once, and recipe "
                f"{recipe.name!r} goes through them {passes} times, once or twice a block: pass "
                "what can be iterated again, such as a list or a DataLoader"
            )


def block_passes(model: nn.Module, blocks: Iterable[Block]) -> int:
    """Return for how many blocks statistics are gathered, found with data that has no batch."""
    passes = 0

    def counted() -> Iterator[Any]:
        nonlocal passes
        passes += 1
        yield from ()

    for block in blocks:
        input_statistics(model, block, counted())
    return passes

"""Short ascending tables of values: which entry is nearest, and which value a code stands for.

What formats and codebooks without a bit trick encode and decode with.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import final

import numpy as np
import torch
from torch import Tensor

__all__ = ["Nearest", "look_up", "thresholds"]

_MOST_CELLS = 1 << 14  # two tables of that size stay in a second-level cache


def thresholds(values: Sequence[float], codes: Sequence[int]) -> Tensor:
    """Return where rounding to the nearest value changes from each value to the next, exactly.

    Entry ``i`` is the smallest float32 that goes to ``values[i + 1]`` rather than ``values[i]``:
    the first one above their midpoint, or the midpoint itself where it is a float32 and the tie
    goes up. A tie goes to the even code; to the upper value where both codes are odd or both
    even. Midpoints are calculated with fractions, so nothing rounds.

    Args:
        values: finite float32 values, strictly ascending.
        codes: the code of each value.

    Returns:
        float32 ``[n_values − 1]``, ascending.

    >>> thresholds([0.0, 1.0, 2.0], [0, 1, 2]).tolist()  # 0.5 goes down to 0, 1.5 up to 2
    [0.5000000596046448, 1.5]
    """
    pairs = zip(values, values[1:], codes, codes[1:], strict=False)
    found = [
        _smallest_above((Fraction(low) + Fraction(high)) / 2, odd <= even)
        for low, high, even, odd in ((a, b, c % 2, d % 2) for a, b, c, d in pairs)
    ]
    return torch.tensor(found, dtype=torch.float32)


def _smallest_above(bound: Fraction, inclusive: bool) -> float:
    """Return the smallest float32 ``> bound``, or ``>= bound``."""

    def above(x: np.float32) -> bool:
        return Fraction(float(x)) > bound or (inclusive and Fraction(float(x)) == bound)

    x = np.float32(float(bound))
    while above(x):
        x = np.nextafter(x, np.float32(-np.inf))
    while not above(x):
        x = np.nextafter(x, np.float32(np.inf))
    return float(x)


@final
class Nearest:
    """Finds the nearest of 2 to 256 ascending values, exactly, without searching.

    The range is cut into equal cells so narrow that none holds two thresholds. The cell of ``x``
    then says how many thresholds lie in the cells below, and one comparison decides the rest.
    As ``x → cell`` never decreases, its own rounding cannot put anything on the wrong side.
    Values too unevenly spaced for that are searched by bisection, which takes several times as
    long.

    Args:
        bounds: float32 ``[n − 1]``, ascending, of :func:`thresholds`.

    Attributes:
        bisects: the values are so uneven.

    >>> Nearest(thresholds([-1.0, 0.0, 0.1], [0, 1, 2]))(torch.tensor([-9.0, -0.5, 0.04, 0.06]))
    tensor([0, 0, 1, 2], dtype=torch.uint8)
    """

    def __init__(self, bounds: Tensor) -> None:
        self._bounds = bounds
        self._low = float(bounds[0])
        span = float(bounds[-1]) - self._low
        gap = float(bounds.double().diff().min()) if len(bounds) > 1 else 1.0
        cells = int(min(2 * span / gap, _MOST_CELLS)) + 1
        self._per_cell = cells / span if span > 0 else 1.0
        self._last = cells
        self.bisects = not 2.0**-126 <= self._per_cell < 2.0**127  # a normal float32
        if self.bisects:
            return
        cell = self._cell(bounds)
        self.bisects = bool((cell.diff() == 0).any())
        # Cells without a threshold compare with NaN, which nothing reaches.
        self._inside = torch.full((cells + 1,), torch.nan)
        self._inside[cell] = bounds
        every = torch.arange(cells + 1, dtype=torch.int32)
        self._below = torch.searchsorted(cell, every).to(torch.uint8)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the index of the value nearest to each of ``x``: uint8, shape of ``x``.

        Args:
            x: float32; infinities go to the ends.

        Raises:
            IndexError: NaN, unless the table is bisected, which takes NaN for the largest.
        """
        if self.bisects:
            bounds = self._bounds.to(x.device)
            return torch.bucketize(x.contiguous(), bounds, right=True).to(torch.uint8)
        x = x.contiguous()
        cell = self._cell(x).flatten()
        index = self._below.to(x.device).index_select(0, cell)
        bound = self._inside.to(x.device).index_select(0, cell)
        index += (x.flatten() >= bound).view(torch.uint8)
        return index.reshape(x.shape)

    def _cell(self, x: Tensor) -> Tensor:
        """Return a number of 0 … ``_last`` that never decreases with ``x``."""
        return (x - self._low).mul_(self._per_cell).clamp_(0, self._last).to(torch.int32)


def look_up(table: Tensor, codes: Tensor) -> Tensor:
    """Return ``table[codes]``, shape of ``codes``; an IndexError where a code is beyond it.

    >>> look_up(torch.tensor([0.5, 2.0]), torch.tensor([[1, 0]], dtype=torch.uint8))
    tensor([[2.0000, 0.5000]])
    """
    index = codes.to(torch.int32).flatten()
    return table.to(codes.device).index_select(0, index).reshape(codes.shape)

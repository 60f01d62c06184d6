"""AWQ: weights that meet large inputs are scaled up before rounding, where that pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.algorithms.objective import output_error, second_moments
from bitsmith.algorithms.transform import Transform
from bitsmith.errors import InputError
from bitsmith.numbers.affine import fake_quantize
from bitsmith.numbers.range_search import search_range
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Gram, Statistic

__all__ = ["AWQ", "awq_scales"]


@final
@dataclass(frozen=True)
class AWQ(Transform, name="awq"):
    """Activation-aware weight quantization (arXiv 2306.00978, eq. 5), see :func:`awq_scales`.

    Attributes:
        grid: exponents tried from 0 up, ``k / grid``.
        clip_steps: ranges tried per group for every exponent; 0 for min–max.

    >>> from bitsmith.numbers.formats.integer import int2
    >>> seen = Gram()
    >>> seen.update(torch.tensor([[9.0, 1.0], [-8.0, 1.0]]))
    >>> done = AWQ()([torch.tensor([[0.3, 1.0], [1.0, 0.6]])], Scheme(int2), seen)
    >>> done.objective < done.identity_objective, bool(done.scales[0] > done.scales[1])
    (True, True)
    """

    needs = Gram
    learned = False

    grid: int = 20
    clip_steps: int = 0

    def __post_init__(self) -> None:
        if self.grid < 1 or self.clip_steps < 0:
            raise InputError(
                f"grid is at least 1 and clip_steps at least 0, not {self.grid}, {self.clip_steps}"
            )

    def scales(
        self, weights: Sequence[Tensor], scheme: Scheme, statistic: Statistic
    ) -> tuple[Tensor, float | None, float | None]:
        assert isinstance(statistic, Gram)
        return awq_scales(weights, scheme, statistic, grid=self.grid, clip_steps=self.clip_steps)


def awq_scales(
    weights: Sequence[Tensor], scheme: Scheme, gram: Gram, *, grid: int = 20, clip_steps: int = 0
) -> tuple[Tensor, float, float]:
    """Return the scales ``[in]`` of least output error of those tried, its error, and that of 1.

    Tried is ``s = m^α / √(max m^α · min m^α)`` for α = 0, 1/grid, …, (grid − 1)/grid; minimised
    ``Σ_W mean((x·Wᵀ − (x / s)·Q(W·diag(s))ᵀ)²)`` over the rows that the Gram statistic has seen
    (its diagonal: for uncorrelated inputs). α = 0 is s = 1; the first of equals wins.

    The published method has the mean of |x| for the magnitude m; here it is the root mean square,
    which the Gram statistic holds. Convolutions: the mean square is over the kernel's places as
    well. An input that was always 0 has scale 1.

    Args:
        weights: float32, ``[out, in, *kernel]``, one ``in`` and kernel.
        scheme: any but one with a learned table.
        gram: of the input.
        grid: number of exponents.
        clip_steps: ranges tried by :func:`search_range`, each error counting as the mean square
            of the input it meets (the published clip search has the output of each group for its
            objective); 0 for min–max.

    Raises:
        DataError: the Gram statistic is not of these weights' inputs.
        SchemeError: the scheme does not fit a weight.
    """
    squares = torch.stack([second_moments(gram, w) for w in weights])[0]
    inputs = weights[0].shape[1]
    size = squares.reshape(inputs, -1).mean(1).sqrt()
    alive = size > 0
    best = plain = (torch.ones(inputs), _error(weights, scheme, gram, squares, None, clip_steps))
    for k in range(1, grid):
        s = torch.where(alive, size, 1.0) ** (k / grid)
        if bool(alive.any()):
            s = s / (s[alive].max() * s[alive].min()).sqrt()
        s = torch.where(alive, s, 1.0).to(torch.float32)
        error = _error(weights, scheme, gram, squares, s, clip_steps)
        if error < best[1]:
            best = s, error
    return *best, plain[1]


def _error(
    weights: Sequence[Tensor],
    scheme: Scheme,
    gram: Gram,
    squares: Tensor,
    scales: Tensor | None,
    clip_steps: int,
) -> float:
    total = 0.0
    for w in weights:
        s = torch.ones(w.shape[1]) if scales is None else scales
        along = s.reshape(1, -1, *[1] * (w.dim() - 2))
        scaled = w * along
        ranges: tuple[Tensor, ...] = ()
        if clip_steps:
            importance = squares.float().reshape(1, *w.shape[1:]) / along.square()
            ranges = search_range(scaled, scheme, importance, steps=clip_steps)
        total += output_error(w, fake_quantize(scaled, scheme, *ranges) / along, gram)
    return total

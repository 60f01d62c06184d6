"""SmoothQuant: a part of the activations' outliers moved into the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.algorithms.transform import Transform
from bitsmith.errors import DataError, InputError
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Extrema, Statistic

__all__ = ["SmoothQuant", "smoothquant_scales"]


@final
@dataclass(frozen=True)
class SmoothQuant(Transform, name="smoothquant"):
    """SmoothQuant (arXiv 2211.10438, eq. 4), see :func:`smoothquant_scales`.

    Reads the extremes of each input: ``Extrema(axis=-1)``, for convolutions ``Extrema(axis=1)``.

    Attributes:
        alpha: how much of the activations' range goes to the weights; 0.5 shares it evenly.

    >>> from bitsmith.numbers.formats.integer import int8
    >>> seen = Extrema(axis=-1)
    >>> seen.update(torch.tensor([[1.0, -16.0]]))
    >>> done = SmoothQuant()([torch.tensor([[1.0, 1.0]])], Scheme(int8), seen)
    >>> done.scales.tolist(), done.weights[0].tolist()
    ([1.0, 4.0], [[1.0, 4.0]])
    """

    needs = Extrema

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha is between 0 and 1, not {self.alpha}")

    def scales(
        self, weights: Sequence[Tensor], scheme: Scheme, statistic: Statistic
    ) -> tuple[Tensor, float | None, float | None]:
        assert isinstance(statistic, Extrema)
        largest = torch.maximum(statistic.high, -statistic.low).reshape(-1)
        if len(largest) != weights[0].shape[1]:
            raise DataError(
                f"weights of {weights[0].shape[1]} inputs need the extremes of each input, "
                f"Extrema(axis=-1); these are of {len(largest)}"
            )
        return smoothquant_scales(weights, largest, self.alpha), None, None


def smoothquant_scales(
    weights: Sequence[Tensor], largest_input: Tensor, alpha: float = 0.5
) -> Tensor:
    """Return ``s_j = max|X_j|^α / max|W_j|^(1−α)``, float32 ``[in]``; arXiv 2211.10438, eq. 4.

    ``max|W_j|`` is over all weights. An input that was always 0, or that all weights ignore, has
    nothing to share: its scale is 1.

    Args:
        weights: ``[out, in, *kernel]``, one ``in``.
        largest_input: ``max|X_j|``, ``[in]``.
        alpha: 0 to 1.
    """
    columns = [w.abs().movedim(1, 0).flatten(1).amax(1) for w in weights]
    weight = torch.stack(columns).amax(0).to(torch.float64)
    x = largest_input.to(torch.float64)
    scales = x**alpha / weight ** (1 - alpha)
    return torch.where((x > 0) & (weight > 0), scales, 1.0).to(torch.float32)

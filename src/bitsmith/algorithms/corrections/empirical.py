"""Bias correction from the mean outputs that data shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.algorithms.correction import Correction

__all__ = ["Empirical", "OutputMeans"]


@final
@dataclass(frozen=True)
class OutputMeans:
    """Mean outputs of a layer before its activation, over samples and positions, ``[O]``.

    Attributes:
        expected: of the float network.
        found: of the quantized network, with the bias that is to be corrected.
    """

    expected: Tensor
    found: Tensor


@final
@dataclass(frozen=True)
class Empirical(Correction, name="empirical"):
    """Empirical bias correction (arXiv 1906.04721, section 4.2.2).

    ``b ← b − (E[ŷ] − E[y])``, one layer after the other: ``ŷ`` is of a network whose earlier
    layers are quantized and corrected, so that what they do to the mean is taken back too.

    >>> means = OutputMeans(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.0]))
    >>> done = Empirical()(torch.tensor([0.25, 0.25]), means)
    >>> done.bias.tolist(), done.error, done.error_before
    ([-0.25, 0.25], 0.0, 0.125)
    """

    needs = OutputMeans

    def shift(self, evidence: OutputMeans) -> Tensor:
        return evidence.found.to(torch.float64) - evidence.expected.to(torch.float64)

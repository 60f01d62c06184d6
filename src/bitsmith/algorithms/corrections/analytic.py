"""Bias correction without data: the mean inputs follow from batch norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.algorithms.correction import Correction
from bitsmith.errors import DataError

__all__ = ["Analytic", "NormalInputs", "clipped_normal_mean"]


@final
@dataclass(frozen=True)
class NormalInputs:
    """A layer whose inputs are clipped normal variables, and its weight before and after.

    Attributes:
        weight: float, ``[O, I/groups, *kernel]``.
        rounded: the same with what its codes stand for.
        mean, std: of each input channel before the activation, ``[I]``: shift and |scale| of the
            batch norm that makes it.
        low, high: the activation's clamp, ``0, None`` for relu, ``0, 6`` for relu6; None: open.
    """

    weight: Tensor
    rounded: Tensor
    mean: Tensor
    std: Tensor
    low: float | None = 0.0
    high: float | None = None


@final
@dataclass(frozen=True)
class Analytic(Correction, name="analytic"):
    """Analytic bias correction (arXiv 1906.04721, section 4.2.1).

    The shift is ``Σ (Ŵ − W)·E[x]``, with the mean of a clipped normal variable for every input;
    padding is taken for one more mean input.

    >>> inputs = NormalInputs(torch.tensor([[1.0]]), torch.tensor([[1.5]]),
    ...     torch.tensor([4.0]), torch.tensor([0.0]))
    >>> Analytic()(torch.tensor([1.0]), inputs).bias.tolist()
    [-1.0]
    """

    needs = NormalInputs

    def shift(self, evidence: NormalInputs) -> Tensor:
        error = evidence.rounded.to(torch.float64) - evidence.weight.to(torch.float64)
        inputs, channels = evidence.mean.numel(), error.shape[1] if error.dim() > 1 else 0
        if not channels or inputs % channels or len(error) % (inputs // channels or 1):
            raise DataError(
                f"a weight of shape {tuple(error.shape)} does not meet {inputs} input channels"
            )
        groups = inputs // channels
        mean = clipped_normal_mean(evidence.mean, evidence.std, evidence.low, evidence.high)
        total = error.reshape(groups, len(error) // groups, channels, -1).sum(3)
        return (total @ mean.reshape(groups, channels, 1)).reshape(-1)


def clipped_normal_mean(
    mean: Tensor, std: Tensor, low: float | None = 0.0, high: float | None = None
) -> Tensor:
    """Return ``E[clamp(x, low, high)]`` of normal ``x``, float64, of the shape of ``mean``.

    With ``α = (low − μ)/σ``, ``β = (high − μ)/σ``, the normal density φ and its integral Φ::

        σ·(φ(α) − φ(β)) + μ·(Φ(β) − Φ(α)) + low·Φ(α) + high·(1 − Φ(β))

    (arXiv 1906.04721, appendix C); a σ of 0 gives the clamped mean.

    Raises:
        DataError: shapes that differ, values that are not finite, a negative ``std``, or a ``low``
            above ``high``.

    >>> x = clipped_normal_mean(torch.tensor([0.0]), torch.tensor([1.0]))  # 1/√(2π)
    >>> round(x.item(), 6)
    0.398942
    """
    finite = bool(torch.isfinite(mean).all()) and bool(torch.isfinite(std).all())
    if mean.shape != std.shape or not finite or not bool((std >= 0).all()):
        raise DataError(
            f"means {tuple(mean.shape)} and standard deviations {tuple(std.shape)} have one shape, "
            "are finite, and no standard deviation is negative"
        )
    a, b = -math.inf if low is None else low, math.inf if high is None else high
    if not a <= b:
        raise DataError(f"a clamp from {a} to {b} is empty")
    mu, sigma = mean.to(torch.float64), std.to(torch.float64)
    spread = torch.where(sigma > 0, sigma, 1.0)
    alpha, beta = (a - mu) / spread, (b - mu) / spread
    below, above = torch.special.ndtr(alpha), torch.special.ndtr(-beta)
    found = sigma * (_density(alpha) - _density(beta)) + mu * (1 - below - above)
    if low is not None:
        found = found + low * below
    if high is not None:
        found = found + high * above
    return torch.where(sigma > 0, found, mu.clamp(a, b))


def _density(z: Tensor) -> Tensor:
    return torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)

"""Analytic clipping: the best range if values follow a normal or a Laplace distribution.

ACIQ, Banner, Nahshan, Hoffer and Soudry, "Post training 4-bit quantization of convolutional
networks for rapid-deployment", arXiv:1810.05723. The squared error of clipping at ±α and rounding
to n evenly spaced codes is, to first order,

    MSE(α) = 2 · ∫_α^∞ (x − α)² f(x) dx  +  α² / (3·n²)

and its derivative is 0 at a multiple of the distribution's width that depends on n only. The
paper tabulates n = 2^bits; here the equations are solved for any n.

How the width is found, from a histogram (every value counts as the centre of its bin):

- asymmetric scheme, values on both sides of 0: around the mean μ, σ = √E(x − μ)² or b = E|x − μ|;
  the range is μ ± α;
- symmetric scheme, values on both sides: around 0, σ = √E x² or b = E|x|; the range is ±α;
- values on one side of 0, as after ReLU: the distribution is half of one around 0 and any number
  of zeros, so σ = √E(x² | x ≠ 0) or b = E(|x| | x ≠ 0). The bin of 0 holds zeros and the smallest
  values; as many of it count as not zero as its neighbour holds. Codes in [0, α] lie as close as
  twice as many in ±α, so an asymmetric scheme solves for 2·n (the paper's rule for fused ReLU:
  one more bit) and its range is 0 to α; a symmetric one solves for n.

The range never exceeds the exact extremes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.numbers.calibrators import Calibrator, even_codes, tensor_histogram
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Histogram, Statistic

__all__ = ["Gaussian", "Laplace", "gaussian_alpha", "laplace_alpha"]


@final
@dataclass(frozen=True)
class Gaussian(Calibrator, name="gaussian"):
    """ACIQ for normally distributed values: μ ± α, with α/σ from :func:`gaussian_alpha`.

    >>> h = Histogram()
    >>> h.update(torch.randn(10_000, generator=torch.Generator().manual_seed(0)))
    >>> from bitsmith.numbers.formats.integer import int4
    >>> abs(float(Gaussian().limits(h, Scheme(int4))[1]) - 2.559) < 0.05
    True
    """

    statistic = Histogram

    def limits(self, statistic: Statistic, scheme: Scheme) -> tuple[Tensor, Tensor]:
        return _limits(tensor_histogram(statistic, scheme), scheme, 2, gaussian_alpha)


@final
@dataclass(frozen=True)
class Laplace(Calibrator, name="laplace"):
    """ACIQ for Laplace distributed values: μ ± α, with α/b from :func:`laplace_alpha`.

    >>> h = Histogram()
    >>> h.update(torch.empty(10_000).exponential_(generator=torch.Generator().manual_seed(0)))
    >>> from bitsmith.numbers.formats.integer import uint3
    >>> abs(float(Laplace().limits(h, Scheme(uint3, symmetric=False))[1]) - 5.03) < 0.1
    True
    """

    statistic = Histogram

    def limits(self, statistic: Statistic, scheme: Scheme) -> tuple[Tensor, Tensor]:
        return _limits(tensor_histogram(statistic, scheme), scheme, 1, laplace_alpha)


def gaussian_alpha(levels: float) -> float:
    """Return the best α/σ for a normal distribution and ``levels`` codes in ±α.

    The root of ``a·erfc(a/√2) + a/(3·levels²) = √(2/π)·exp(−a²/2)`` (arXiv:1810.05723, the
    derivative of the Gaussian case set to 0).

    >>> [round(gaussian_alpha(2**bits), 3) for bits in (2, 3, 4, 8)]
    [1.711, 2.152, 2.559, 3.924]
    """

    def slope(a: float) -> float:
        clipping = a * math.erfc(a / math.sqrt(2)) - math.sqrt(2 / math.pi) * math.exp(-a * a / 2)
        return clipping + a / (3 * levels**2)

    return _root(slope)


def laplace_alpha(levels: float) -> float:
    """Return the best α/b for a Laplace distribution and ``levels`` codes in ±α.

    The root of ``a/(3·levels²) = exp(−a)`` (arXiv:1810.05723, the derivative of
    the Laplace case set to 0): Lambert's W of ``3·levels²``.

    >>> [round(laplace_alpha(2**bits), 3) for bits in (2, 3, 4, 8)]
    [2.831, 3.897, 5.029, 9.897]
    """
    return _root(lambda a: a / (3 * levels**2) - math.exp(-a))


def _root(slope: Callable[[float], float]) -> float:
    """Return where an increasing function is 0 between 0 and 64, by bisection to the last bit."""
    low, high = 0.0, 64.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return low


def _limits(
    histogram: Histogram, scheme: Scheme, power: int, alpha: Callable[[float], float]
) -> tuple[Tensor, Tensor]:
    """Return the range of the module's docstring for a width of ``E|x|^power ^ (1/power)``."""
    low, high = histogram.low, histogram.high
    levels = even_codes(scheme)
    one_sided = low >= 0 or high <= 0
    middle = 0.0
    if not (scheme.symmetric or one_sided):
        mean = float((histogram.centres * histogram.counts).sum()) / histogram.count
        middle = min(max(mean, low), high)
    reach = alpha(levels * (2 if one_sided and not scheme.symmetric else 1))
    reach *= _width(histogram, middle, power, one_sided)
    if scheme.symmetric:
        high = min(reach, max(-low, high))
        low = -high
    else:
        low, high = max(low, middle - reach), min(high, middle + reach)
    # Values within the bin of 0 alone count as 0, so the reach may fall short of them all.
    low, high = min(low, high), max(low, high)
    return torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)


def _width(histogram: Histogram, middle: float, power: int, one_sided: bool) -> float:
    """Return ``E|x − middle|^power ^ (1/power)``; if one-sided, of the values that are not 0."""
    counts, centres = histogram.counts.to(torch.float64), histogram.centres
    if one_sided and len(counts) > 1:
        zero = -histogram.first
        neighbour = counts[zero + 1] if histogram.high > 0 else counts[zero - 1]
        counts[zero] = torch.minimum(counts[zero], neighbour)
        centres[zero] = histogram.width / 2
    mean = (centres - middle).abs().pow(power) @ counts / counts.sum()
    return float(mean ** (1 / power))

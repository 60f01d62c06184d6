"""255 normal values and one far outside: what each calibrator leaves of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.numbers.affine import quantize, scale_zero_point
from bitsmith.studies.clipping.errors import BITS, Statistics, scheme_of, specs

__all__ = ["INLIERS", "OUTLIER", "WITHOUT", "Outcome", "draw_values", "outcomes"]

#: Normal values of standard deviation 1, and one value of this size.
INLIERS, OUTLIER = 255, 50.0
#: How the range of the inliers alone is called.
WITHOUT = "minmax, no outlier"


@final
@dataclass(frozen=True)
class Outcome:
    """One draw quantized with one calibrator's range.

    Attributes:
        calibrator: short form, or :data:`WITHOUT`.
        limit: the range is ±limit.
        codes: how many different codes the inliers take.
        codes_in_all: how many there are.
        mae: mean absolute error of the inliers, in standard deviations.
        outlier_error: absolute error of the outlier; None without one.
        mse: mean squared error of all values.
    """

    calibrator: str
    bits: int
    limit: float
    scale: float
    codes: int
    codes_in_all: int
    mae: float
    outlier_error: float | None
    mse: float


def draw_values(repeats: int, seed: int) -> list[Tensor]:
    """Return draws ``[256]``, the outlier last."""
    generator = torch.Generator().manual_seed(seed)
    inliers = torch.randn(repeats, INLIERS, generator=generator)
    return list(torch.cat([inliers, torch.full((repeats, 1), OUTLIER)], 1))


def outcomes(x: Tensor) -> list[Outcome]:
    """Return what every calibrator makes of ``x [256]``, at 8 and 4 bits, same order always."""
    whole, inliers = Statistics(), Statistics()
    whole.update(x)
    inliers.update(x[:INLIERS])
    return [
        _outcome(x, spec, bits, whole if spec != WITHOUT else inliers)
        for bits in BITS
        for spec in (WITHOUT, *specs())
    ]


def _outcome(x: Tensor, spec: str, bits: int, seen: Statistics) -> Outcome:
    alone = spec == WITHOUT
    scheme = scheme_of(bits, signed=True)
    low, high = seen.limits("minmax" if alone else spec, scheme)
    scale, zero = scale_zero_point(low, high, scheme)
    x = x[:INLIERS] if alone else x
    q = quantize(x, scheme, scale, zero)
    error = (q.dequantize().double() - x.double()).abs()
    return Outcome(
        calibrator=spec,
        bits=bits,
        limit=max(-float(low), float(high)),
        scale=float(scale),
        codes=len(torch.unique(q.codes[:INLIERS])),
        codes_in_all=scheme.code_max - scheme.code_min + 1,
        mae=float(error[:INLIERS].mean()),
        outlier_error=None if alone else float(error[-1]),
        mse=float(error.square().mean()),
    )

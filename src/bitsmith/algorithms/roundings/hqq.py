"""Half-quadratic quantization: ranges for which few large errors count less than many small."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from bitsmith.algorithms.baseline import weight_range
from bitsmith.algorithms.rounding import Rounding
from bitsmith.errors import InputError, SchemeError
from bitsmith.numbers.affine import quantize, quantize_codes
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.granularity import blocked
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Statistic

__all__ = ["HQQ"]

_P = 0.7
_SLAB = 1 << 20  # weights at a time, where groups are independent


@final
@dataclass(frozen=True)
class HQQ(Rounding, name="hqq"):
    """Half-quadratic quantization (Badri and Shaji 2023, "Half-Quadratic Quantization of Large
    Machine Learning Models"), for integer zero points. Needs no data.

    Minimises ``Σ |W − Q(W)|^p`` with p = 0.7 by splitting the error from the weight, in turns:

    - ``E = sign(D)·max(0, |D| − |D|^(p−1)/β)`` with ``D = (W − Q(W)) / scale``: the errors that
      are so large that they are let go;
    - the range that fits ``T = W − scale·E`` best in least squares, for the codes as they are;
    - ``β ← κ·β``.

    Where it differs from the published method:

    - there the scale stays min–max and the zero point is any real number, ``mean(code − T /
      scale)``; here zero points are codes, so scale and zero point are fitted together (the line
      through ``(code, T)``), the zero point is rounded, and the scale fitted again for it. A
      symmetric scheme and a table such as nf4 fit the scale alone;
    - D is measured in steps of the scale, so that β means the same for all weights;
    - the published iteration stops for the whole tensor where the error rises; here each group
      keeps its best range of all turns, min–max being the first.

    Attributes:
        iterations: turns.
        beta, kappa: the first β and its growth.

    >>> from bitsmith.numbers.formats.integer import uint2
    >>> w = torch.tensor([0.0, 0.1, 0.21, 0.3, 0.31, 0.19, 0.1, 0.6])
    >>> rounded = HQQ()(w, Scheme(uint2, symmetric=False))
    >>> rounded.objective < rounded.nearest_objective
    True
    """

    norm: ClassVar[float] = _P

    iterations: int = 20
    beta: float = 10.0
    kappa: float = 1.01

    def __post_init__(self) -> None:
        if self.iterations < 0 or not (self.beta > 0 and math.isfinite(self.beta)):
            raise InputError(
                f"iterations is 0 or more and beta above 0, not {self.iterations} and {self.beta}"
            )
        if not (self.kappa >= 1 and math.isfinite(self.kappa)):
            raise InputError(f"kappa is at least 1, not {self.kappa}")

    def round(
        self, weight: Tensor, scheme: Scheme, min_scale: Tensor, statistic: Statistic | None
    ) -> QTensor:
        two_level = isinstance(scheme.scale_format, Scheme)
        if two_level or scheme.offset_format is not None or not scheme.scaled:
            raise SchemeError(
                f"hqq fits the scale and zero point of each group alone, which {scheme} "
                "does not have: use searched or nearest"
            )
        scale, point = weight_range(weight, scheme)
        scale = torch.maximum(scale, min_scale)
        groups = len(scale) if scale.dim() else 1
        if groups == 1 or scheme.rounding == "stochastic":
            return quantize(weight, scheme, *self._fit(weight, scheme, scale, point, min_scale))
        block, step = len(weight) // groups, max(1, _SLAB * groups // weight.numel())
        for start in range(0, groups, step):
            part = slice(start, start + step)
            rows = weight[start * block : (start + step) * block]
            scale[part], point[part] = self._fit(
                rows, scheme, scale[part], point[part], min_scale[part]
            )
        return quantize(weight, scheme, scale, point)

    def _fit(
        self, weight: Tensor, scheme: Scheme, scale: Tensor, point: Tensor, least: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the best scale and zero point of all turns, per group."""
        wide, narrow = blocked(weight.shape, scale.shape)
        shared = [i for i, (n, s) in enumerate(zip(wide, narrow or (1,) * len(wide), strict=True))
                  if s == 1 or n != s]  # fmt: skip
        unit = scale.reshape(narrow)
        w = weight.reshape(wide) / unit  # errors of tiny weights would vanish
        best, best_loss, beta = (scale, point), torch.full_like(unit, torch.inf), self.beta
        for turn in range(self.iterations + 1):
            codes = quantize_codes(weight, scale, point, scheme).reshape(wide)
            code = codes.float() if scheme.affine else scheme.format.decode(codes)
            step, zero = scale.reshape(narrow) / unit, point.reshape(narrow).float()
            d = w - (code - zero) * step
            loss = d.abs().pow_(_P).sum(shared, keepdim=bool(narrow))
            better = loss < best_loss
            best_loss = torch.where(better, loss, best_loss)
            chosen = better.reshape(scale.shape)
            best = (torch.where(chosen, scale, best[0]), torch.where(chosen, point, best[1]))
            if turn == self.iterations:
                break
            target = w - step * _shrunk(d / step, beta)
            step, zero = _fitted(target, code, step, zero, shared, scheme)
            scale = _storable((step * unit).reshape(scale.shape), least, scale, scheme)
            point = zero.reshape(scale.shape).to(torch.int32)
            beta *= self.kappa
        return best


def _shrunk(d: Tensor, beta: float) -> Tensor:
    """Return the generalized soft threshold for |·|^p, p < 1; 0 at 0, where the power is ∞."""
    size = d.abs()
    return torch.sign(d) * (size - size.pow(_P - 1) / beta).clamp_(min=0)


def _fitted(
    target: Tensor, code: Tensor, step: Tensor, zero: Tensor, shared: list[int], scheme: Scheme
) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point of least ``Σ (target − scale·(code − zero))²``, by group."""

    def mean(x: Tensor) -> Tensor:
        return x.mean(shared, keepdim=step.dim() > 0)

    if not scheme.symmetric:
        at, to = mean(code), mean(target)
        slope = mean((code - at) * (target - to)) / mean((code - at).square())
        point = torch.round(at - to / slope).clamp(scheme.code_min, scheme.code_max)
        zero = torch.where((slope > 0) & torch.isfinite(point), point, zero)
    level = code - zero
    fit = mean(level * target) / mean(level.square())
    return torch.where((fit > 0) & torch.isfinite(fit), fit, step), zero


def _storable(scale: Tensor, least: Tensor, before: Tensor, scheme: Scheme) -> Tensor:
    """Return the scale in its scale format and at least ``least``; ``before`` where it has none."""
    tiny = torch.finfo(torch.float32).tiny
    scale = torch.maximum(scale.clamp(min=tiny), least)
    inner = scheme.scale_format
    if isinstance(inner, NumberFormat):
        scale = inner.decode(inner.encode(scale))
    fits = (scale > 0) & torch.isfinite(scale) & (scale >= least)
    return torch.where(fits, scale, before)

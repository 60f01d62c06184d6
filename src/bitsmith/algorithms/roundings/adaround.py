"""Learned rounding: whether each weight goes up or down is relaxed, trained, and hardened."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from bitsmith.algorithms.descent import (
    Start,
    better_rows,
    descend,
    descend_with_scales,
    hessian,
    started,
)
from bitsmith.algorithms.rounding import Rounding
from bitsmith.algorithms.scale_refit import blocked_like
from bitsmith.errors import InputError, SchemeError
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Gram, Statistic

__all__ = ["AdaRound"]

_ZETA, _GAMMA = 1.1, -0.1
"""The ends to which the sigmoid is stretched (arXiv 2004.10568, section 3.4)."""
_BETA = 20.0, 2.0
"""The exponent of the regulariser, at its start and end; annealed with a cosine."""
_WARM = 0.2
"""Share of the iterations without regulariser."""
_MOMENTS = 0.9, 0.999
"""Adam's (arXiv 1412.6980)."""


@final
@dataclass(frozen=True)
class AdaRound(Rounding, name="adaround"):
    """AdaRound (arXiv 2004.10568, eqs. 21 to 24) on the output error of the layer.

    Each weight is ``s·clip(⌊w/s⌋ + h(V))`` with ``h(V) = clip(σ(V)·(ζ − γ) + γ, 0, 1)``; V is
    trained with Adam on ``tr(D·H·Dᵀ) + λ·Σ (1 − |2·h(V) − 1|^β)``, β falling from 20 to 2, and
    then h is 0 or 1.

    Where it differs from the published method:

    - without an activation in between the layer's output error is a quadratic in the Gram matrix
      H of its inputs, so no batches are drawn: every step sees all the data, for all rows at once;
    - errors count in steps of the row's mean scale, and H has a mean diagonal of 1, so that λ
      means the same for all layers;
    - the two values to choose from are the weight's neighbours, or where the start's code lies
      beyond them, that code and the next one towards the weight;
    - after it, single codes and then the scales move as long as the error falls (see
      :mod:`bitsmith.algorithms.descent`); rows that were better before the training stay.

    Attributes:
        iterations: steps of Adam; 0 for the descent alone.
        rate: of Adam.
        regularization: λ.
        start: rounding whose range is kept, and whose codes the training starts from.
        sweeps: passes of a descent over all inputs, at most.
        refits: turns of scales and codes at the end.
        damping: share of the mean diagonal that is added to the diagonal.

    >>> from bitsmith.numbers.formats.integer import int2
    >>> seeded = torch.Generator().manual_seed(0)
    >>> gram = Gram()
    >>> gram.update(torch.randn(64, 3, generator=seeded) @ torch.randn(3, 8, generator=seeded))
    >>> rounded = AdaRound()(torch.randn(4, 8, generator=seeded), Scheme(int2), statistic=gram)
    >>> rounded.objective < 0.1 * rounded.nearest_objective
    True
    """

    needs = Gram

    iterations: int = 1000
    rate: float = 0.1
    regularization: float = 1.0
    start: Start = "gptq"
    sweeps: int = 20
    refits: int = 4
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.sweeps < 1 or self.refits < 0:
            raise InputError(
                "iterations and refits are 0 or more and sweeps at least 1, not "
                f"{self.iterations}, {self.refits} and {self.sweeps}"
            )
        if not (0 < self.rate < math.inf and 0 <= self.regularization < math.inf):
            raise InputError(
                "rate is above 0 and regularization 0 or more, not "
                f"{self.rate} and {self.regularization}"
            )

    def round(
        self, weight: Tensor, scheme: Scheme, min_scale: Tensor, statistic: Statistic | None
    ) -> QTensor:
        assert isinstance(statistic, Gram)
        if not scheme.affine:
            raise SchemeError(
                f"adaround rounds to neighbouring integers, and {scheme.format.name} is a table of "
                "values: use coordinate"
            )
        first = started(self.start, self.name, weight, scheme, min_scale, statistic)
        h = hessian(statistic, weight, self.damping)
        first = descend(weight, first, h, sweeps=self.sweeps)
        if self.iterations:
            trained = descend(weight, self._trained(weight, first, h), h, sweeps=self.sweeps)
            first = better_rows(weight, first, trained, h)
        return descend_with_scales(
            weight, first, h, min_scale, sweeps=self.sweeps, refits=self.refits
        )

    def _trained(self, weight: Tensor, start: QTensor, h: Tensor) -> QTensor:
        """Return ``start`` with trained codes of the same range."""
        scheme, h = start.scheme, h.to(torch.float32)
        scale, zero = (blocked_like(p, start.shape) for p in (start.scale, start.zero_point))
        real = weight.flatten(1) / scale + zero  # [out, K], in steps
        unit = scale / scale.mean(1, keepdim=True)
        code = start.codes.flatten(1).to(torch.float32)
        # Of the two candidates one is the start's code; a weight far off the grid has no others.
        low = torch.where(code > real, code - 1, code)
        up = (real - low).clamp(0, 1).lerp_(code - low, 0.5).clamp_(0.01, 0.99)
        v = torch.logit((up - _GAMMA) / (_ZETA - _GAMMA))
        first, second = torch.zeros_like(v), torch.zeros_like(v)
        for step, beta in enumerate(_annealed(self.iterations), 1):
            soft = torch.sigmoid(v)
            up = soft * (_ZETA - _GAMMA) + _GAMMA
            moves = (up > 0) & (up < 1)
            value = low + up.clamp_(0, 1)
            moves &= (value > scheme.code_min) & (value < scheme.code_max)
            error = (value.clamp_(scheme.code_min, scheme.code_max) - real).mul_(unit)
            slope = (error @ h).mul_(unit).mul_(2)
            if beta is not None:
                side = 2 * up - 1
                pull = side.abs().pow_(beta - 1).mul_(side.sign())
                slope.sub_(pull, alpha=2 * beta * self.regularization)
            slope.mul_(soft * (1 - soft) * (_ZETA - _GAMMA)).mul_(moves)
            first.lerp_(slope, 1 - _MOMENTS[0])
            second.lerp_(slope.square_(), 1 - _MOMENTS[1])
            root = (second / (1 - _MOMENTS[1] ** step)).sqrt_().add_(1e-8)
            v.addcdiv_(first, root, value=-self.rate / (1 - _MOMENTS[0] ** step))
        hard = low + (torch.sigmoid(v) * (_ZETA - _GAMMA) + _GAMMA >= 0.5)
        codes = hard.clamp_(scheme.code_min, scheme.code_max).to(start.codes.dtype)
        return replace(start, codes=codes.reshape(start.codes.shape))


def _annealed(iterations: int) -> Iterator[float | None]:
    """Give β for each iteration; None where there is no regulariser yet."""
    warm = int(_WARM * iterations)
    for step in range(iterations):
        done = (step - warm) / max(1, iterations - warm)
        high, low = _BETA
        yield None if step < warm else low + (high - low) * (1 + math.cos(done * math.pi)) / 2

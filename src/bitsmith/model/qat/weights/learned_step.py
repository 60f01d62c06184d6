"""Learned step sizes, and the learned rounding that starts from them and goes back to them."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from bitsmith.algorithms.roundings.searched import Searched
from bitsmith.model.convert import IntegerLayer
from bitsmith.model.qat.codes import LearnedScales, Start, wide
from bitsmith.model.qat.straight_through import quantize_real
from bitsmith.numbers.formats.integer import int8, ternary
from bitsmith.numbers.qtensor import QTensor

__all__ = ["LearnedRounding", "LearnedStep"]

_STEPS = 20
"""Candidates of the search for new scales."""
_CELL = 0.1
"""Furthest, in steps, that a weight begins from the value of its code.

A code that looked at its neighbours (GPTQ) is often not the nearest one. At the edge of its cell
the first steps of an optimizer would undo thousands of such choices at once.
"""


@final
class LearnedStep(LearnedScales, name="learned-step"):
    """LSQ (arXiv 1902.08153): the weight and one step size for each output channel train.

    ``codes = clamp(round(w / s))`` with ``s = start · exp(log_scale)``. It starts with the codes
    that rounding without training found: each weight is moved as little as gives its code.

    Attributes:
        low, high: smallest and largest code.
    """

    learns = frozenset({"lsq"})
    gradual = True

    def begin(self, start: Start) -> None:
        weight, scale = start.weight.detach(), start.scales
        self.limit = float(start.limit if self.given.format == int8 else self.given.code_max)
        if self.limit < self.given.code_max:
            scale = torch.maximum(scale, _largest(weight, len(scale)) / self.limit)
        self.place(weight, scale)
        if self.limit >= self.given.code_max:
            self.settle(start.layer.weight.codes.float())
        self._float, self._untouched = weight, self.weight._version

    @property
    def high(self) -> float:
        """Largest code."""
        scheme = self.scheme
        return min(float(scheme.code_max), self.limit) if scheme is self.given else scheme.code_max

    @property
    def low(self) -> float:
        """Smallest code."""
        least = float(self.scheme.code_min)
        return max(least, -self.limit) if self.limit < self.given.code_max else least

    @classmethod
    def fits(cls, layer: IntegerLayer) -> bool:
        return layer.table is None and layer.weight.scheme.format != ternary

    @torch.no_grad()
    def restart(self, weight: Tensor) -> None:
        if self.weight._version == self._untouched:  # with more bits the float weight says more
            weight = self._float
            self.weight.copy_(weight)
        found = Searched(_STEPS)(weight, self.scheme).qtensor.scale.reshape(-1)
        empty = _largest(weight, len(self.start)) == 0
        self.start.copy_(torch.where(empty, self.scale(), found))
        self.log_scale.zero_()

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scale()
        return quantize_real(weight, scale, self.low, self.high), scale

    @torch.no_grad()
    def settle(self, codes: Tensor) -> None:
        """Move each weight well into the cell of its code in ``codes``."""
        scale = wide(self.scale(), codes)
        cell = (self.weight / scale).clamp(self.low, self.high)
        self.weight.copy_(torch.minimum(torch.maximum(cell, codes - _CELL), codes + _CELL) * scale)


def _largest(weight: Tensor, scales: int) -> Tensor:
    """Largest magnitude under each scale: of each output channel, or of all together."""
    return weight.reshape(scales, -1).abs().amax(1)


@final
class LearnedRounding(nn.Module):
    """AdaRound (arXiv 2004.10568): up or down, learned; weights and scales stay.

    In the place of a :class:`LearnedStep` for a while. While it trains
    ``codes = clamp(floor(w / s) + h)`` with the rectified sigmoid
    ``h = clamp(1.2 · sigmoid(v) − 0.1, 0, 1)`` (equation 23); :meth:`harden` rounds h.

    Attributes:
        v: float32 ``[O, …]``; at first h is the fraction that was lost.
    """

    below: Tensor
    scales: Tensor

    def __init__(self, step: LearnedStep) -> None:
        """Start from the weight and scales of ``step``, which :meth:`harden` settles."""
        super().__init__()
        self._step = [step]  # in a list: no submodule, its parameters do not train here
        with torch.no_grad():
            scale = step.scale()
            exact = (step.weight / wide(scale, step.weight)).clamp(step.low, step.high)
            below = exact.floor().clamp(max=step.high - 1)
            share = ((exact - below + 0.1) / 1.2).clamp(1e-4, 1 - 1e-4)
        self.register_buffer("below", below)
        self.register_buffer("scales", scale)
        self.v = nn.Parameter(torch.logit(share))

    def up(self) -> Tensor:
        """Return h, the share of a step that each weight goes up."""
        return (1.2 * torch.sigmoid(self.v) - 0.1).clamp(0, 1)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return codes, not whole while they are undecided, and scales."""
        return self.below + self.up(), self.scales

    def undecided(self, exponent: float) -> Tensor:
        """Return ``Σ 1 − |2h − 1|^exponent``, the regularizer (equation 24)."""
        return (1 - (2 * self.up() - 1).abs().pow(exponent)).sum()

    @property
    def step(self) -> LearnedStep:
        """What :meth:`harden` gives back."""
        return self._step[0]

    @torch.no_grad()
    def harden(self) -> LearnedStep:
        """Return the weight that rounds to what was learned."""
        step = self._step[0]
        step.settle(self.below + (self.up() >= 0.5))
        return step

    def frozen(self) -> QTensor:
        """Return the quantized tensor of :meth:`harden`."""
        return self.harden().frozen()

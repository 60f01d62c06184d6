"""Start from GPTQ's codes and move single codes, then scales, as long as the output error falls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from bitsmith.algorithms.descent import (
    Start,
    check_turns,
    descend_with_scales,
    hessian,
    started,
)
from bitsmith.algorithms.rounding import Rounding
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Gram, Statistic

__all__ = ["Coordinate"]


@final
@dataclass(frozen=True)
class Coordinate(Rounding, name="coordinate"):
    """Coordinate descent on the layer's output error (QuantEase, arXiv 2309.01885, section 3).

    See :mod:`bitsmith.algorithms.descent`. Where the published method starts from nearest
    rounding, this starts from GPTQ's codes (whose errors still have all later inputs to be made
    up for in, which single moves cannot do), and takes turns with scales refitted to the codes.

    Attributes:
        start: rounding whose codes and range it starts from.
        sweeps: passes over all inputs in one turn, at most.
        refits: turns of scales and codes after the first descent.
        gain: a sweep that lowers the error by a smaller share is the last of its turn.
        damping: share of the mean diagonal that is added to the diagonal.

    >>> import torch
    >>> from bitsmith.numbers.formats.integer import int2
    >>> seeded = torch.Generator().manual_seed(0)
    >>> gram = Gram()
    >>> gram.update(torch.randn(64, 3, generator=seeded) @ torch.randn(3, 8, generator=seeded))
    >>> w = torch.randn(4, 8, generator=seeded)
    >>> ways = [Rounding.registry[n]() for n in ("coordinate", "gptq", "searched")]
    >>> errors = [way(w, Scheme(int2), statistic=gram).objective for way in ways]
    >>> errors == sorted(errors)
    True
    """

    needs = Gram

    start: Start = "gptq"
    sweeps: int = 20
    refits: int = 4
    gain: float = 1e-3
    damping: float = 0.01

    def __post_init__(self) -> None:
        check_turns(self.sweeps, self.refits, self.gain)

    def round(
        self, weight: Tensor, scheme: Scheme, min_scale: Tensor, statistic: Statistic | None
    ) -> QTensor:
        assert isinstance(statistic, Gram)
        q = started(self.start, self.name, weight, scheme, min_scale, statistic)
        h = hessian(statistic, weight, self.damping)
        return descend_with_scales(
            weight, q, h, min_scale, sweeps=self.sweeps, refits=self.refits, gain=self.gain
        )

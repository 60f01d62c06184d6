"""The error of one rounding: its bias and its spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final, get_args

import torch

from bitsmith.insight.interval import mean_interval
from bitsmith.numbers.affine import quantize_codes
from bitsmith.numbers.formats.integer import int16
from bitsmith.numbers.scheme import Rounding, Scheme

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["MODES", "QUARTERS", "SMALL_BIAS", "SMOOTH", "Spread", "draw_spreads", "spread"]

MODES: tuple[Rounding, ...] = get_args(Rounding)
#: What is rounded: no ties; a tie in every fourth value.
SMOOTH, QUARTERS = "normal values", "quarter steps"
#: A bias below this part of a step counts as none.
SMALL_BIAS = 0.01


@final
@dataclass(frozen=True)
class Spread:
    """Rounding errors ``rounded − x`` in steps: bias with its interval, and RMS, over repeats."""

    mode: Rounding
    values: str
    n: int
    bias: tuple[float, float, float]
    rms: float
    sum_deviation: float
    """Standard deviation over repeats of the error of the sum."""

    @property
    def biased(self) -> bool | None:
        """Whether the bias is beyond a hundredth of a step; None: the interval does not tell."""
        _, low, high = self.bias
        if low > -SMALL_BIAS and high < SMALL_BIAS:
            return False
        return True if low > SMALL_BIAS or high < -SMALL_BIAS else None


def spread(mode: Rounding, values: str, repeats: int, n: int, seed: int) -> Spread:
    """Return the errors of ``repeats`` draws of ``n`` values, `SMOOTH` or `QUARTERS`."""
    one, zero = torch.tensor(1.0), torch.tensor(0, dtype=torch.int32)
    errors = []
    for repeat in range(repeats):
        own = seed * repeats + repeat
        generator = torch.Generator().manual_seed(own)
        if values == SMOOTH:
            x = 100 * torch.randn(n, generator=generator)
        else:
            x = torch.randint(0, 400, (n,), generator=generator) / 4
        scheme = Scheme(int16, rounding=mode, seed=own if mode == "stochastic" else 0)
        errors.append(quantize_codes(x, one, zero, scheme).double() - x.double())
    each = torch.stack(errors)
    return Spread(
        mode,
        values,
        n,
        mean_interval(each.mean(1).tolist()),
        float(each.square().mean().sqrt()),
        float(each.sum(1).std()),
    )


def draw_spreads(canvas: Canvas, spreads: list[Spread]) -> None:
    """Draw bias with intervals, and RMS error."""
    from bitsmith.insight.report.style import FIRST, LINE, SECOND, plain

    left, right = canvas.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.12})
    left.axvline(0, color=LINE, linewidth=1)
    for values, colour, shift, mark in ((SMOOTH, FIRST, -0.14, "o"), (QUARTERS, SECOND, 0.14, "D")):
        group = [s for s in spreads if s.values == values]
        rows = [MODES.index(s.mode) + shift for s in group]
        left.hlines(rows, [s.bias[1] for s in group], [s.bias[2] for s in group], color=colour)
        left.plot([s.bias[0] for s in group], rows, mark, color=colour, markersize=5, label=values)
        right.plot([s.rms for s in group], rows, mark, color=colour, markersize=5)
    left.set_yticks(range(len(MODES)), MODES)
    left.set_ylim(len(MODES) - 0.5, -0.5)
    left.set_xlabel("mean error in steps (bias)")
    right.set_xlabel("RMS error in steps")
    right.set_xlim(left=0)
    plain(left, right)
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

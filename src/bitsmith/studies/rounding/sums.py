"""Long sums of small numbers in accumulators of low precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final, get_args

import torch
from torch import Tensor

from bitsmith.insight.interval import mean_interval
from bitsmith.numbers.affine import round_to_integer
from bitsmith.numbers.formats import formats
from bitsmith.numbers.scheme import Rounding

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["FLOATS", "HUNDREDTH", "SMALL", "Paths", "accumulate", "draw_sums", "float_sum"]

MODES: tuple[Rounding, ...] = get_args(Rounding)
#: Accumulated in an integer accumulator: from 0.2 to 0.4 of its step. In floats: this number.
SMALL, HUNDREDTH = (0.2, 0.4), 0.01
FLOATS = ("fp16", "bf16", "fp8_e4m3fn")
#: Additions between two points of a drawn line.
_EVERY = 8


@final
@dataclass(frozen=True, eq=False)
class Paths:
    """Running sums: ``[repeat, addition]`` in steps, and the exact ones, of each rounding."""

    exact: Tensor
    rounded: dict[Rounding, Tensor]

    def final(self, mode: Rounding) -> tuple[float, float, float]:
        """The last sum with its interval over repeats."""
        return mean_interval(self.rounded[mode][:, -1].tolist())


def accumulate(repeats: int, additions: int, seed: int) -> Paths:
    """Add small numbers to sums that are rounded to whole steps after each addition.

    All repeats add the same numbers: they differ in what stochastic rounding draws.
    """
    generator = torch.Generator().manual_seed(seed)
    low, high = SMALL
    addends = low + (high - low) * torch.rand(additions, generator=generator).expand(repeats, -1)
    rounded = {}
    for mode in MODES:
        path, total = torch.empty(addends.shape), torch.zeros(repeats)
        for i in range(additions):
            total = round_to_integer(total + addends[:, i], mode, generator)
            path[:, i] = total
        rounded[mode] = path
    return Paths(addends.double().cumsum(1), rounded)


def float_sum(name: str, additions: int) -> Tensor:
    """Return the running sum of a hundredth in a float format: ``[addition]``."""
    number = formats[name]
    addend, total, path = torch.tensor(HUNDREDTH), torch.tensor(0.0), torch.empty(additions)
    for i in range(additions):
        total = number.decode(number.encode(total + addend))
        path[i] = total
    return path


def draw_sums(canvas: Canvas, paths: Paths, floats: dict[str, Tensor]) -> None:
    """Draw the running sums of integer and of float accumulators."""
    from bitsmith.insight.report.style import INK, SERIES, plain

    left, right = canvas.subplots(1, 2, gridspec_kw={"wspace": 0.2})
    length = paths.exact.shape[1]
    steps = range(1, length + 1, _EVERY)
    exact = paths.exact.mean(0)[::_EVERY]
    left.plot(steps, exact, color=INK, linewidth=1, linestyle="--", label="exact")
    groups: dict[tuple[float, ...], list[Rounding]] = {}
    for mode in MODES:
        mean = paths.rounded[mode].mean(0)[::_EVERY]
        groups.setdefault(tuple(mean.tolist()), []).append(mode)
    for (line, modes), colour in zip(groups.items(), SERIES, strict=False):
        repeats = paths.rounded[modes[0]][:, ::_EVERY]
        band = torch.quantile(repeats, torch.tensor([0.025, 0.975]), dim=0)
        left.fill_between(steps, band[0], band[1], color=colour, alpha=0.25, linewidth=0)
        left.plot(steps, line, color=colour, linewidth=1.4, label=", ".join(modes))
    left.set_xlabel("additions")
    left.set_title("integer accumulator, in steps")
    ends = [1, len(floats[FLOATS[0]])]
    right.plot(ends, [HUNDREDTH * n for n in ends], color=INK, linewidth=1, linestyle="--")
    for (name, path), colour in zip(floats.items(), SERIES, strict=False):
        shown = path[::_EVERY]
        points = range(1, len(path) + 1, _EVERY)
        right.plot(points, shown, color=colour, linewidth=1.4, label=name)
    right.set_xlabel("additions")
    right.set_title("float accumulators")
    for axis in (left, right):
        axis.legend(loc="upper left")
    plain(left, right, grid="y")

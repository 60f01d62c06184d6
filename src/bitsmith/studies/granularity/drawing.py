"""The figures: error by row, error by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bitsmith.studies.granularity.errors import BITS, SIZES, Layers, Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["draw_layers", "draw_rows"]


def draw_rows(canvas: Canvas, found: Sequence[Outcome]) -> None:
    """Draw the relative error of each row against its size."""
    from bitsmith.insight.report.style import SERIES, plain

    axes = canvas.subplots(1, len(BITS), sharey=True, gridspec_kw={"wspace": 0.08})
    for axis, bits in zip(axes, BITS, strict=True):
        for o, colour, mark in zip(
            (o for o in found if o.bits == bits), SERIES, "osD^", strict=False
        ):
            shares = [100 * share for share in o.rows]
            axis.plot(SIZES, shares, mark, color=colour, markersize=3, label=o.granularity)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(f"{bits} bits")
        axis.set_xlabel("standard deviation of the row")
    axes[0].set_ylabel("mean error, % of mean weight")
    plain(*axes, grid="y")
    axes[0].legend(loc="upper right")


def draw_layers(canvas: Canvas, layers: Layers) -> None:
    """Draw the relative error of each layer in each granularity."""
    from bitsmith.insight.report.style import SERIES, plain

    axes = canvas.subplots(1, len(BITS), sharey=True, gridspec_kw={"wspace": 0.06})
    cuts = list(dict.fromkeys(o.granularity for found in layers.values() for o in found))
    for axis, bits in zip(axes, BITS, strict=True):
        for cut, colour, mark in zip(cuts, SERIES, "osD^", strict=False):
            points = [
                (100 * o.relative, row)
                for row, found in enumerate(layers.values())
                for o in found
                if (o.bits, o.granularity) == (bits, cut)
            ]
            axis.plot(*zip(*points, strict=True), mark, color=colour, markersize=4.5, label=cut)
        axis.set_title(f"{bits} bits")
        axis.set_xlim(left=0)
        axis.set_xlabel("mean error, % of mean weight")
    axes[0].set_yticks(range(len(layers)), list(layers), fontsize=7.5)
    axes[0].set_ylim(len(layers) - 0.5, -0.5)
    plain(*axes, grid="both")
    axes[1].legend(
        loc="lower right", bbox_to_anchor=(1.03, 1.04), ncols=len(cuts), handletextpad=0,
        columnspacing=0.8,
    )  # fmt: skip

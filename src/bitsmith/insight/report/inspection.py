"""The picture of an inspection: the range of each weight, and what each bit width loses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitsmith.insight.exhibits import Figure
from bitsmith.insight.inspect import Inspection

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["inspection_figure"]

#: Bit widths that are drawn; all are in the table.
DRAWN = (8, 6, 4, 3, 2)


def inspection_figure(found: Inspection) -> Figure:
    """Return the figure of a network's weights, a row each.

    Left: thin from the smallest to the largest value, thicker the middle 99.8 % and 98 %, a mark
    at the median. Right: mean error of nearest rounding, per output channel, for each bit width.
    """
    return Figure(
        "weights",
        "Range of each weight, and the error of each bit width",
        "Left: thin, all values; thicker, the middle 99.8 % and 98 %; mark, the median. Right: "
        "mean error of nearest rounding, symmetric per output channel, against the mean weight.",
        lambda canvas: _draw(canvas, found),
        size=(7.6, 1.0 + 0.2 * max(1, len(found.weights))),
    )


def _draw(canvas: Canvas, found: Inspection) -> None:
    from bitsmith.insight.report.style import FIRST, INK, MUTED, SERIES, plain

    left, right = canvas.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
    rows = range(len(found.weights))
    p01, p1, p50, p99, p999 = zip(*(w.quantiles for w in found.weights), strict=True)
    ends = [w.low for w in found.weights], [w.high for w in found.weights]
    left.hlines(rows, *ends, color=MUTED, linewidth=0.8)
    left.plot([*ends[0], *ends[1]], [*rows, *rows], "|", color=MUTED, markersize=5)
    left.hlines(rows, p01, p999, color=FIRST, linewidth=2.2)
    left.hlines(rows, p1, p99, color=FIRST, linewidth=5.5)
    left.plot(p50, rows, "|", color=INK, markersize=8)
    left.set_xlabel("value")
    for bits, colour, mark in zip(DRAWN, SERIES, "osD^v", strict=True):
        errors = [100 * w.relative[bits] for w in found.weights]
        right.plot(errors, rows, mark, color=colour, markersize=4.5, label=f"{bits} bits")
    right.set_xscale("symlog", linthresh=0.1)
    right.set_xlim(left=0)
    right.set_xlabel("mean error, % of mean weight")
    left.set_yticks(rows, [w.layer for w in found.weights], fontsize=7.5)
    left.set_ylim(len(rows) - 0.5, -0.5)
    plain(left, right)
    right.legend(
        loc="lower right", bbox_to_anchor=(1.03, 1), ncols=len(DRAWN), handletextpad=0,
        columnspacing=0.8,
    )  # fmt: skip

"""The pictures: ranges over values, and clipping error against rounding error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from bitsmith.numbers.scheme import Scheme
from bitsmith.studies.clipping.errors import curve, thresholds
from bitsmith.studies.clipping.outlier import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["Panel", "draw_ranges", "draw_thresholds"]

_MARKS = "osD^vPX*<>h"
#: Values nearer to 0 lie on a linear part of the axis.
_LINEAR = 4.0


@final
@dataclass(frozen=True, eq=False)
class Panel:
    """Clipping error against rounding error of one set of values.

    Attributes:
        title: above it.
        values, counts: ``[n]``, what is clipped.
        scheme: integers with one scale.
        chosen: the threshold of each calibrator.
        span: smallest and largest threshold drawn.
        inliers: values whose own error is drawn too, ``[m]``.
    """

    title: str
    values: Tensor
    counts: Tensor
    scheme: Scheme
    chosen: dict[str, float]
    span: tuple[float, float]
    inliers: Tensor | None = None


def draw_ranges(canvas: Canvas, x: Tensor, found: Sequence[Outcome]) -> None:
    """Draw the values, and below them what each calibrator's range covers at each width."""
    from bitsmith.insight.report.style import FIRST, INK, MUTED, SECOND, plain

    names = list(dict.fromkeys(o.calibrator for o in found))
    axis = canvas.subplots()
    axis.plot(x, torch.full_like(x, -1.0), "|", color=INK, markersize=13, alpha=0.5)
    widths = list(dict.fromkeys(o.bits for o in found))
    for bits, colour, shift in zip(widths, (FIRST, SECOND), (-0.17, 0.17), strict=False):
        own = [o for o in found if o.bits == bits]
        rows = [names.index(o.calibrator) + shift for o in own]
        limits = [o.limit for o in own]
        axis.barh(
            rows, [2 * v for v in limits], left=[-v for v in limits], height=0.28, color=colour,
            label=f"{bits} bits",
        )  # fmt: skip
        for row, o in zip(rows, own, strict=True):
            axis.annotate(
                f"{o.codes} codes", (o.limit, row), (3, 0), textcoords="offset points",
                va="center", fontsize=7, color=MUTED,
            )  # fmt: skip
    axis.set_yticks(range(-1, len(names)), ["values", *names])
    axis.set_ylim(len(names) - 0.4, -1.6)
    axis.set_xscale("symlog", linthresh=_LINEAR, linscale=2.0)
    axis.set_xlim(-100, 160)
    ticks = [-50, -10, -4, -2, 0, 2, 4, 10, 50]
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.minorticks_off()
    axis.set_xlabel(f"value, in standard deviations (logarithmic beyond ±{_LINEAR:g})")
    axis.legend(loc="upper left")
    plain(axis, grid="x")


def draw_thresholds(canvas: Canvas, panels: Sequence[Panel]) -> None:
    """Draw the parts of the error against the threshold, and where the calibrators stand."""
    from bitsmith.insight.report.style import MUTED, plain

    axes = canvas.subplots(1, len(panels), squeeze=False, gridspec_kw={"wspace": 0.22})[0]
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel)
        axis.set_title(panel.title)
        axis.set_xlabel("threshold")
    axes[0].set_ylabel("mean squared error", color=MUTED)
    handles, labels = axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.91, 0.9))
    plain(*axes, grid="both")


def _draw_panel(axis: Any, panel: Panel) -> None:
    from bitsmith.insight.report.style import FIRST, INK, MUTED, SERIES

    line = curve(panel.values, panel.counts, thresholds(*panel.span), panel.scheme)
    total = line.total
    lowest = float(total.min()) / 8
    if (own := panel.inliers) is not None:
        inner = curve(own, own.new_ones(len(own)), line.at, panel.scheme).total
        axis.plot(line.at, inner, color=FIRST, linewidth=1.2, label="sum, inliers alone")
        lowest = min(lowest, float(inner.min()) / 2)
    axis.plot(line.at, line.clipping, color=MUTED, linewidth=1, linestyle=":", label="clipping")
    axis.plot(line.at, line.rounding, color=MUTED, linewidth=1, linestyle="--", label="rounding")
    axis.plot(line.at, total, color=INK, linewidth=1.4, label="sum")
    at = torch.tensor(list(panel.chosen.values()))
    for i, (name, x, y) in enumerate(
        zip(
            panel.chosen, at, curve(panel.values, panel.counts, at, panel.scheme).total, strict=True
        )
    ):
        # Choices that coincide stay visible: the first are larger.
        axis.plot(
            x, y, _MARKS[i % len(_MARKS)], color=SERIES[i % len(SERIES)], linestyle="none",
            markersize=10 - 0.55 * i, markeredgecolor=INK, markeredgewidth=0.4, label=name,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(*panel.span)
    axis.set_ylim(lowest, float(total.max()) * 2)

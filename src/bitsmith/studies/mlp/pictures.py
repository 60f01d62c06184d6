"""The figures: accuracies as bars by bit width, and differences to float with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bitsmith.studies.mlp.networks import BITS, Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["draw_accuracies", "draw_differences"]

#: Which bars there are: label, method, granularity, calibrator (None: any).
_BARS: tuple[tuple[str, str, str, str | None], ...] = (
    ("PTQ, no calibration", "ptq", "per-tensor", "none"),
    ("on noise", "ptq", "per-tensor", "noise"),
    ("on images", "ptq", "per-tensor", "minmax"),
    ("PTQ, scale a channel", "ptq", "per-channel", None),
    ("PTQ + finetune", "ptq+finetune", "per-channel", None),
    ("QAT", "qat", "per-channel", None),
)
_WIDTH = 0.142
#: Those with ranges from images, which can be near float.
_NEAR = _BARS[2:]
_ALONE = "PTQ, scale a tensor"
#: Differences are drawn down to this many points, or as far as the best of each width.
_REACH = -4.0


def _of(found: Sequence[Outcome], bar: tuple[str, str, str, str | None]) -> list[Outcome]:
    _, method, granularity, calibrator = bar
    own = [o for o in found if (o.method, o.granularity) == (method, granularity)]
    own = [o for o in own if calibrator in (None, o.calibrator)]
    return sorted(own, key=lambda o: BITS.index(o.bits))


def draw_accuracies(canvas: Canvas, found: Sequence[Outcome]) -> None:
    """Draw a bar for each method and width, and the float network as a line."""
    from bitsmith.insight.report.style import (
        FIFTH,
        FIRST,
        INK,
        LINE,
        MUTED,
        PAPER,
        SECOND,
        THIRD,
        plain,
    )

    axis = canvas.subplots()
    colours = (LINE, FIFTH, MUTED, SECOND, THIRD, FIRST)
    for i, (bar, colour) in enumerate(zip(_BARS, colours, strict=True)):
        for group, o in enumerate(_of(found, bar)):
            height, (low, high) = o.evaluation.accuracy or 0.0, o.evaluation.interval or (0, 0)
            at = group + (i - 2.5) * _WIDTH
            label = bar[0] if group == 0 else None
            axis.bar(at, height, _WIDTH * 0.9, color=colour, label=label)
            axis.plot([at, at], [low, high], color=INK, linewidth=0.8)
            axis.text(
                at, 1.5, f"{height:.1f}", ha="center", va="bottom", fontsize=6.5, rotation=90,
                color=INK if colour == LINE else PAPER,
            )  # fmt: skip
    plain_accuracy = found[0].evaluation.accuracy or 0.0
    axis.axhline(plain_accuracy, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axis.text(
        len(BITS) - 0.48, plain_accuracy, f"float\n{plain_accuracy:.1f}", fontsize=7.5,
        va="center",
    )  # fmt: skip
    axis.set_xticks(range(len(BITS)), [f"{bits} bits" for bits in BITS])
    axis.set_xlim(-0.5, len(BITS) - 0.5)
    axis.set_ylim(0, 100)
    axis.set_yticks(range(0, 101, 20))
    axis.set_ylabel("accuracy, %")
    plain(axis, grid="y")
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=6, columnspacing=1.0,
                handlelength=1.0, handletextpad=0.5)  # fmt: skip


def draw_differences(canvas: Canvas, found: Sequence[Outcome]) -> None:
    """Draw the paired difference of each method and width with its interval."""
    from bitsmith.insight.report.style import FIRST, INK, MUTED, SECOND, THIRD, plain

    axis = canvas.subplots()
    drawn = [_of(found, bar) for bar in _NEAR]
    near = [o.against.delta or 0.0 for group in drawn for o in group if o.against is not None]
    best = [max(near[i :: len(BITS)]) for i in range(len(BITS))]
    reach = min(_REACH, min(best) - 1.0)
    for i, (bar, group, colour, mark) in enumerate(
        zip(_NEAR, drawn, (MUTED, SECOND, THIRD, FIRST), "osD^", strict=True)
    ):
        label = _ALONE if bar is _NEAR[0] else bar[0]
        axis.plot([], [], mark, color=colour, markersize=5, label=label)
        for column, o in enumerate(group):
            d = o.against
            if d is None or d.delta is None or d.delta < reach:
                continue
            at = column + (i - 1.5) * 0.14
            axis.plot([at, at], [d.low or 0.0, d.high or 0.0], color=colour, linewidth=1.2)
            axis.plot([at], [d.delta], mark, color=colour, markersize=5)
    axis.axhline(0.0, color=INK, linewidth=0.8)
    axis.set_xticks(range(len(BITS)), [f"{bits} bits" for bits in BITS])
    axis.set_xlim(-0.5, len(BITS) - 0.5)
    axis.set_ylabel("less float, points")
    plain(axis, grid="y")
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4)

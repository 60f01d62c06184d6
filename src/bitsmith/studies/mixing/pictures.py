"""The figures: differences by combination, and the size of the four integer sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bitsmith.studies.mixing.outcomes import BITS, COMBINATIONS, Outcome
from bitsmith.studies.mixing.terms import TERMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["draw_accuracies", "draw_terms"]

#: Differences are drawn down to this many points below the best of a width.
_REACH = 12.0
_NAMES = {
    "products": "Σ qx·qw  (the kernel)",
    "inputs": "zw·Σ qx  (at run time)",
    "weights": "zx·Σ qw  (in the bias)",
    "constant": "K·zx·zw  (in the bias)",
}


def draw_accuracies(canvas: Canvas, found: Sequence[Outcome]) -> None:
    """Draw a panel for each width: the difference to float of the four combinations."""
    from bitsmith.insight.report.style import FIRST, INK, PAPER, SECOND, plain

    axes = canvas.subplots(1, len(BITS), sharey=True, gridspec_kw={"wspace": 0.12})
    for axis, bits in zip(axes, BITS, strict=True):
        own = [o for o in found if o.bits == bits]
        floor = max(o.against.delta or 0.0 for o in own) - _REACH
        for y, o in enumerate(own):
            d, colour = o.against, FIRST if o.inputs == "asymmetric" else SECOND
            delta, low, high = d.delta or 0.0, d.low or 0.0, d.high or 0.0
            at = max(delta, floor)
            if delta < floor:
                axis.plot([at], [y], "<", color=colour, markersize=7)
            else:
                even = low <= 0 <= high
                axis.plot([low, high], [y, y], color=colour, linewidth=1.4)
                axis.plot(
                    [at], [y], "o", color=colour, markersize=6.5,
                    markerfacecolor=PAPER if even else colour,
                )  # fmt: skip
            axis.annotate(
                f"{delta:+.2f}", (at, y), xytext=(0, 7), ha="center", fontsize=8,
                textcoords="offset points",
            )  # fmt: skip
        axis.axvline(0.0, color=INK, linewidth=0.8)
        axis.set_ylim(len(own) - 0.5, -0.75)
        axis.set_title(f"{bits} bits")
        axis.set_xlabel("points of accuracy, less float")
        plain(axis)
    rows = [o for o in found if o.bits == BITS[0]]
    axes[0].set_yticks(range(len(rows)), [o.label for o in rows], fontsize=8)


def draw_terms(canvas: Canvas, found: Sequence[Outcome], layer: str) -> None:
    """Draw the mean size of each term of one layer at the largest width."""
    from bitsmith.insight.report.style import FIRST, FOURTH, LINE, MUTED, SECOND, THIRD, plain

    axis = canvas.subplots()
    colours = dict(zip(TERMS, (FIRST, SECOND, THIRD, FOURTH), strict=True))
    own = [o for o in found if o.bits == BITS[0]]
    for group, o in enumerate(own):
        named = zip([*colours.values(), LINE], _sizes(o, layer), strict=True)
        for i, (colour, size) in enumerate(named):
            if size <= 0:
                continue
            axis.bar(group + (i - 2) * 0.16, size, 0.145, color=colour)
            axis.text(
                group + (i - 2) * 0.16, size * 1.12, _short(size), ha="center", va="bottom",
                fontsize=7, color=MUTED,
            )  # fmt: skip
    for name in TERMS:
        axis.bar([0], [0], color=colours[name], label=_NAMES[name])
    axis.bar([0], [0], color=LINE, label="their sum")
    axis.set_yscale("log")
    drawn = [s for o in own for s in _sizes(o, layer) if s > 0]
    axis.set_ylim(min(drawn) / 3, max(drawn) * 2.5)
    axis.set_xticks(range(len(COMBINATIONS)), [o.label for o in own], fontsize=7.5)
    axis.set_xlim(-0.5, len(own) - 0.5)
    axis.set_ylabel("mean size")
    plain(axis, grid="y")
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=5, columnspacing=0.9,
                handlelength=1.0, handletextpad=0.4, fontsize=7.5)  # fmt: skip


def _sizes(o: Outcome, layer: str) -> list[float]:
    """Return the mean size of each term of a layer, and of their sum."""
    terms = next(t for t in o.terms if t.layer == layer)
    return [*(terms.sizes[name] for name in TERMS), terms.result]


def _short(size: float) -> str:
    return f"{size / 1e3:,.0f} k" if size >= 1e4 else f"{size / 1e3:.1f} k"

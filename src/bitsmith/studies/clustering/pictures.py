"""The figures: accuracy and bytes by entries, distinct values by layer, codes of one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bitsmith.studies.clustering.clusters import Form
from bitsmith.studies.clustering.entries import Codebook, Sizes

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["draw_codes", "draw_distinct", "draw_entries"]

#: Differences up to this many points are drawn to scale, larger ones by their logarithm.
_LINEAR = 2.0
_TICKS = (-80.0, -40.0, -20.0, -10.0, -5.0, -2.0, -1.0, 0.0, 1.0)


def draw_entries(canvas: Canvas, tables: Sequence[Codebook], whole: Sizes) -> None:
    """Draw the difference to float, and the bytes of each file, against the entries."""
    from bitsmith.insight.report.style import FIRST, INK, SECOND, plain

    left, right = canvas.subplots(1, 2, gridspec_kw={"wspace": 0.28})
    for way, colour, mark, shift, label in (
        ("plain", SECOND, "s", -0.08, "k-means"),
        ("weighted", FIRST, "o", 0.08, "weighted by inputs"),
    ):
        own = [t for t in tables if t.way == way]
        points = [(t.bits + shift, t.against) for t in own]
        left.plot(
            [x for x, _ in points], [d.delta for _, d in points], f"{mark}-", color=colour,
            markersize=4.5, linewidth=0.9, label=label,
        )  # fmt: skip
        for x, d in points:
            left.plot([x, x], [d.low or 0.0, d.high or 0.0], color=colour, linewidth=1.1)
    left.axhline(0.0, color=INK, linewidth=0.8)
    lowest = min(t.against.low or 0.0 for t in tables)
    left.set_yscale("symlog", linthresh=_LINEAR, linscale=2.0)
    left.set_ylim(min(lowest, -1.0) * 1.25, 1.0)
    ticks = [v for v in _TICKS if v > min(lowest, -1.0) * 1.25]
    left.set_yticks(ticks, [f"{v:+g}" if v else "0" for v in ticks])
    left.minorticks_off()
    left.set_ylabel("points less float")
    left.legend(loc="lower right")
    _sizes(right, tables, whole)
    bits = sorted({t.bits for t in tables})
    for axis in (left, right):
        axis.set_xticks(bits, [str(1 << b) for b in bits])
        axis.set_xlabel("entries of a table")
        axis.set_xlim(bits[0] - 0.6, bits[-1] + 0.6)
        plain(axis, grid="y")


def _sizes(axis: Any, tables: Sequence[Codebook], whole: Sizes) -> None:
    """Draw the files: one bar a form; of two tables with as many entries the weighted one."""
    from bitsmith.insight.report.style import FOURTH, INK, MUTED, THIRD

    own = {t.bits: t.sizes for t in tables}
    for shift, colour, name, label in (
        (-0.27, MUTED, "packed", "packed"),
        (0.0, FOURTH, "squeezed", "through LZMA"),
        (0.27, THIRD, "coded", "Huffman coded"),
    ):
        heights = [getattr(s, name) / 1e3 for s in own.values()]
        axis.bar([b + shift for b in own], heights, 0.25, color=colour, label=label)
    axis.set_ylabel("kB on disk")
    top = max(s.packed for s in own.values()) / 1e3
    axis.set_ylim(0, top * 1.35)
    axis.legend(loc="upper left")
    axis.annotate(
        f"float32: {whole.packed / 1e3:,.0f} kB", (0.98, 0.97), xycoords="axes fraction",
        ha="right", va="top", fontsize=8, color=INK,
    )  # fmt: skip


def draw_distinct(canvas: Canvas, made: Sequence[Form]) -> None:
    """Draw a row for each layer: values before, codes after."""
    from bitsmith.insight.report.style import FIRST, INK, LINE, PAPER, SECOND, THIRD, plain

    axis = canvas.subplots()
    layers = [layer.layer for layer in made[0].layers]
    for y, one in enumerate(zip(*(form.layers for form in made), strict=True)):
        axis.plot([one[0].before, one[0].after], [y, y], color=LINE, linewidth=1.2, zorder=1)
    rows = range(len(layers))
    before = [layer.before for layer in made[0].layers]
    axis.plot(before, rows, "|", color=INK, markersize=12, markeredgewidth=1.6, label="clustered")
    for form, colour, mark, size in zip(
        made, (SECOND, FIRST, THIRD), "so^", (5.0, 6.5, 3.5), strict=True
    ):
        counts = [layer.after for layer in form.layers]
        axis.plot(
            counts, rows, mark, color=colour, markersize=size, markeredgecolor=PAPER,
            markeredgewidth=0.6, label=form.name,
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xlim(min(before) * 0.6, 330)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axis.set_yticks(rows, layers, fontsize=7)
    axis.set_ylim(len(layers) - 0.4, -0.6)
    axis.set_xlabel("distinct values (logarithmic)")
    plain(axis)
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, columnspacing=1.2,
                handletextpad=0.3)  # fmt: skip


def draw_codes(canvas: Canvas, made: Sequence[Form], layer: str) -> None:
    """Draw how many weights of a layer have each code: plainly, and with clusters kept."""
    import torch

    from bitsmith.insight.report.style import FIRST, SECOND, plain

    axes = canvas.subplots(2, 1, sharex=True, gridspec_kw={"hspace": 0.35})
    for axis, form, colour in zip(axes, made[:2], (SECOND, FIRST), strict=True):
        own = next(c for c in form.layers if c.layer == layer)
        codes, counts = torch.unique(own.codes, return_counts=True)
        axis.vlines(codes.tolist(), 0, counts.tolist(), color=colour, linewidth=1.6)
        axis.set_title(f"{form.name}: {own.after} codes, from {own.before} values")
        axis.set_ylabel("weights")
        axis.set_ylim(bottom=0)
        plain(axis, grid="y")
    axes[-1].set_xlabel("int8 code")
    axes[-1].set_xlim(-131, 131)

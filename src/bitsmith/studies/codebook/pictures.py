"""The pictures: error against real bits per weight, and where the levels lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitsmith.studies.codebook.methods import METHODS, Cost, Method, store

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["LEVELS", "Totals", "draw_error", "draw_levels", "levels"]

#: By method and bits, of one subject.
Totals = Mapping[tuple[Method, int], Cost]

#: Whose levels are drawn, all with one scale or table for the whole layer.
LEVELS = (
    Method("int", "tensor", "min–max"),
    Method("int", "tensor", "searched"),
    Method("nf", "tensor", "min–max"),
    Method("nf", "tensor", "searched"),
    Method("codebook", "tensor", "k-means"),
)


def levels(weight: Tensor, method: Method, bits: int) -> Tensor:
    """Return the values that the weights of a layer take, ascending."""
    q = store(weight, method, bits, group=1)
    return torch.empty(0) if q is None else torch.unique(q.dequantize())


def draw_error(canvas: Canvas, subjects: Mapping[str, Totals]) -> None:
    """Draw error against bits per weight, a panel for each subject, a line for each method."""
    from bitsmith.insight.report.style import MUTED, plain

    axes = canvas.subplots(1, len(subjects), squeeze=False, sharey=True)[0]
    for axis, (name, totals) in zip(axes, subjects.items(), strict=True):
        for method in METHODS:
            own = [c for (m, _), c in sorted(totals.items(), key=_bits) if m == method]
            axis.plot(
                [c.bits_per_weight for c in own], [100 * c.relative for c in own],
                label=method.name, linewidth=1.2, **_look(method),
            )  # fmt: skip
        axis.set_yscale("log")
        axis.set_title(name)
        axis.set_xlabel("bits per weight")
    ticks = [t for t in (5, 10, 20, 40, 80) if _within(t, subjects)]
    axes[0].set_yticks(ticks, [f"{t} %" for t in ticks])
    axes[0].set_ylabel("relative error", color=MUTED)
    for axis in axes:
        axis.minorticks_off()
    handles, labels = axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.91, 0.93))
    plain(*axes, grid="both")


def _bits(item: tuple[tuple[Method, int], Cost]) -> int:
    return item[0][1]


def _within(tick: float, subjects: Mapping[str, Totals]) -> bool:
    found = [100 * c.relative for totals in subjects.values() for c in totals.values()]
    return min(found) / 1.1 <= tick <= max(found) * 1.1


def _look(method: Method) -> dict[str, Any]:
    """Return colour by what is shared, and marker and dashes by how."""
    from bitsmith.insight.report.style import FIFTH, FIRST, FOURTH, INK, MUTED, PAPER, SECOND, THIRD

    colours = {
        "int": {"tensor": MUTED, "channel": FIRST, "group": SECOND},
        "nf": {"tensor": FIFTH, "group": FIFTH},
        "codebook": {"tensor": THIRD, "channel": FOURTH},
    }
    colour = colours.get(method.family, {}).get(method.cut, INK)
    marker = {"nf": "D", "pot": "v", "apot": "^", "codebook": "s"}.get(method.family, "o")
    plain = method.how == "min–max"
    return {
        "color": colour, "marker": marker, "markersize": 5, "linestyle": ":" if plain else "-",
        "markerfacecolor": PAPER if plain else colour,
    }  # fmt: skip


def draw_levels(canvas: Canvas, weight: Tensor, bits: int, methods: Sequence[Method]) -> None:
    """Draw the histogram of a layer, and below it the values of each method."""
    from bitsmith.insight.report.style import INK, LINE, plain

    top, below = canvas.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [1.3, 1], "hspace": 0.06}
    )
    values = weight.flatten().tolist()
    top.hist(values, bins=80, color=LINE)
    for row, method in enumerate(methods):
        at = levels(weight, method, bits)
        below.plot(at, [row] * len(at), "|", color=_look(method)["color"], markersize=13,
                   markeredgewidth=1.6)  # fmt: skip
    below.set_yticks(range(len(methods)), [m.named(bits) for m in methods])
    below.set_ylim(len(methods) - 0.4, -0.6)
    below.set_xlabel("weight")
    top.set_yticks([])
    top.axvline(0, color=INK, linewidth=0.4)
    below.axvline(0, color=INK, linewidth=0.4)
    plain(top, below, grid="")

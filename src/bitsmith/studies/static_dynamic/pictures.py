"""The figures: drifting images, accuracies and their differences, and what ranges have to hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from bitsmith.studies.static_dynamic.drift import Drift
from bitsmith.studies.static_dynamic.findings import Runs
from bitsmith.studies.static_dynamic.networks import BITS, FORMS, Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["draw_accuracies", "draw_agreement", "draw_differences", "draw_uses"]

#: Drift, form, bits → a number and its interval.
Value = Callable[[Drift, str, int], tuple[float, float, float]]
_LABELS = {
    "brightness": "brightness, added to every pixel",
    "contrast": "contrast, as a factor",
}
#: How many images of each kind are shown.
_SHOWN = 7


def draw_accuracies(canvas: Canvas, found: Sequence[Outcome], images: dict[Drift, Tensor]) -> None:
    """Draw a drifting image, and below it the accuracy of every network with its band."""
    from bitsmith.insight.report.style import INK, plain

    runs = Runs(found)
    grid = canvas.add_gridspec(
        1 + len(BITS), len(runs.kinds), height_ratios=[0.36, *(1 for _ in BITS)], wspace=0.06,
        hspace=0.24,
    )  # fmt: skip
    lines = [("float", INK, (0, (4, 3)), ""), *_looks()]
    first: Any = None
    for column, kind in enumerate(runs.kinds):
        own = runs.kind(kind)
        _draw_strip(canvas, grid[0, column], [(d, images[d]) for d in _spread(own)])
        for row, bits in enumerate(BITS):
            axis = canvas.add_subplot(grid[row + 1, column], sharey=first)
            first = first or axis
            for form, colour, dashes, mark in lines:
                width = 32 if form == "float" else bits
                them = [runs.of(d, form, width).evaluation for d in own]
                low, high = ([(e.interval or (0.0, 0.0))[end] for e in them] for end in (0, 1))
                at = [d.amount for d in own]
                axis.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
                axis.plot(
                    at, [e.accuracy or 0.0 for e in them], marker=mark, markersize=3, color=colour,
                    linestyle=dashes, linewidth=1.2, label=form,
                )  # fmt: skip
            _finish(axis, kind, own, last=row == len(BITS) - 1)
            axis.set_title(f"{bits} bits", pad=3)
            if column:
                axis.tick_params(labelleft=False)
            else:
                axis.set_ylabel("accuracy, %")
            plain(axis, grid="y")
    handles, labels = first.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.11, 0.97), ncols=len(lines))


def draw_differences(canvas: Canvas, found: Sequence[Outcome]) -> None:
    """Draw, for every width, the paired difference of each form to float."""
    from bitsmith.insight.report.style import INK

    runs = Runs(found)

    def ends(drift: Drift, form: str, bits: int) -> tuple[float, float, float]:
        d = runs.of(drift, form, bits).against
        return (0.0, 0.0, 0.0) if d is None else (d.delta or 0.0, d.low or 0.0, d.high or 0.0)

    for axis in _draw_forms(canvas, runs, ends, "less float, points"):
        axis.axhline(0.0, color=INK, linewidth=0.8)


def draw_agreement(canvas: Canvas, found: Sequence[Outcome]) -> None:
    """Draw, for every width, how often each form predicts another class than float."""
    runs = Runs(found)
    for axis in _draw_forms(canvas, runs, runs.unlike, "unlike float, %"):
        axis.set_ylim(bottom=0)


def _draw_forms(canvas: Canvas, runs: Runs, value: Value, name: str) -> list[Any]:
    """Draw lines with bands: a column for each kind of drift, a row for each width."""
    from bitsmith.insight.report.style import plain

    axes = canvas.subplots(
        len(BITS), len(runs.kinds), squeeze=False, sharey="row",
        gridspec_kw={"wspace": 0.06, "hspace": 0.28},
    )  # fmt: skip
    for row, bits in enumerate(BITS):
        for axis, kind in zip(axes[row], runs.kinds, strict=True):
            own = runs.kind(kind)
            at = [d.amount for d in own]
            for form, colour, dashes, mark in _looks():
                middle, low, high = zip(*(value(d, form, bits) for d in own), strict=True)
                axis.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
                axis.plot(
                    at, middle, marker=mark, markersize=3, color=colour, linestyle=dashes,
                    linewidth=1.2, label=form,
                )  # fmt: skip
            _finish(axis, kind, own, last=row == len(BITS) - 1)
            axis.set_title(f"{bits} bits", pad=3)
            plain(axis, grid="y")
        axes[row][0].set_ylabel(name)
    handles, labels = axes[0][0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.11, 0.99), ncols=len(FORMS))
    return [axis for them in axes for axis in them]


def _looks() -> list[tuple[str, str, Any, str]]:
    """Return form, colour, dashes and mark."""
    from bitsmith.insight.report.style import FIRST, SECOND, THIRD

    dashes = ("-", "-", (0, (1, 1.4)))
    return list(zip(FORMS, (SECOND, FIRST, THIRD), dashes, "soD", strict=True))


def draw_uses(canvas: Canvas, found: Sequence[Outcome]) -> None:
    """Draw how much of each layer's inputs is clipped, and of a static range one sample spans."""
    from bitsmith.insight.report.style import SERIES, plain

    runs = Runs(found)
    axes = canvas.subplots(
        2, len(runs.kinds), squeeze=False, sharey="row",
        gridspec_kw={"wspace": 0.06, "hspace": 0.16},
    )  # fmt: skip
    for column, kind in enumerate(runs.kinds):
        own = runs.kind(kind)
        uses = [runs.of(d, FORMS[0], BITS[-1]).uses for d in own]
        at = [d.amount for d in own]
        for layer, (colour, mark) in enumerate(zip(SERIES, "osD^v", strict=True)):
            if layer >= len(uses[0]):
                break
            for row, name in enumerate(("clipped", "spanned")):
                axes[row][column].plot(
                    at, [100 * getattr(u[layer], name) for u in uses], marker=mark, markersize=3,
                    color=colour, linewidth=1.2, label=f"layer {layer + 1}",
                )  # fmt: skip
        for row in (0, 1):
            _finish(axes[row][column], kind, own, last=row == 1)
            plain(axes[row][column], grid="y")
    axes[0][0].set_ylabel("inputs clipped, %")
    axes[1][0].set_ylabel("a sample spans,\n% of the range")
    handles, labels = axes[0][0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.11, 0.98), ncols=len(labels))


def _spread(own: Sequence[Drift]) -> list[Drift]:
    """Return some of the drifts, equally far apart, the ends among them."""
    places = np.linspace(0, len(own) - 1, min(_SHOWN, len(own))).round().astype(int)
    return [own[i] for i in dict.fromkeys(places.tolist())]


def _draw_strip(canvas: Canvas, place: Any, shown: Sequence[tuple[Drift, Tensor]]) -> None:
    """Draw one image under some drifts, side by side."""
    from bitsmith.insight.report.style import MUTED

    cells = place.subgridspec(1, len(shown), wspace=0.12)
    for i, (drift, image) in enumerate(shown):
        axis = canvas.add_subplot(cells[0, i])
        pixels = image.movedim(0, -1).numpy()
        single = pixels.shape[-1] == 1
        axis.imshow(
            pixels[..., 0] if single else pixels[..., :3], cmap="gray", vmin=0.0, vmax=1.0,
            interpolation="nearest",
        )  # fmt: skip
        axis.set_title(drift.label, fontsize=7, pad=2, color=MUTED, loc="center")
        axis.set_xticks([])
        axis.set_yticks([])
        for side in axis.spines.values():
            side.set_visible(False)


def _finish(axis: Any, kind: str, own: Sequence[Drift], *, last: bool) -> None:
    """Mark where nothing drifts, and name the axis below the last row."""
    from bitsmith.insight.report.style import LINE

    still = next(d for d in own if d.none)
    axis.axvline(still.amount, color=LINE, linewidth=0.8)
    if kind == "contrast":
        axis.set_xscale("log", base=2)
        axis.minorticks_off()
        whole = [d.amount for d in own if float(np.log2(d.amount)).is_integer()]
        axis.set_xticks(whole, [f"×{a:.3g}" for a in whole])
    if last:
        axis.set_xlabel(_LABELS[kind])
    else:
        axis.tick_params(labelbottom=False)

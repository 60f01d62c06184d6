"""Figures as SVG text that takes its colours from the page, so that it follows light and dark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitsmith.insight.evaluation import Difference, Evaluation
from bitsmith.insight.layers import TensorError
from bitsmith.insight.report.style import FIRST, INK, LINE, MUTED, SECOND, canvas, plain
from bitsmith.numbers.statistics import Histogram

__all__ = ["accuracy_figure", "cost_figure", "error_figure", "histogram_figure"]

_BINS = 64


def accuracy_figure(first: Evaluation, second: Evaluation, against: Difference) -> str:
    """Return both accuracies with their intervals, and below the paired difference with its own."""
    with canvas(6.4, 2.5, "accuracy of both networks") as (figure, result):
        top, bottom = figure.subplots(2, 1, gridspec_kw={"height_ratios": [2, 1.15], "hspace": 1.1})
        for row, (e, colour) in enumerate(((first, FIRST), (second, SECOND))):
            low, high = e.interval or (0.0, 0.0)
            top.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="round")
            top.plot([e.accuracy], [row], "o", color=colour, markersize=7)
        top.set_yticks([0, 1], ["float32", "integers"])
        top.set_ylim(1.6, -0.6)
        top.set_xlabel("accuracy in % with 95 % interval")
        bottom.axvline(0, color=LINE, linewidth=1)
        bottom.plot([against.low, against.high], [0, 0], color=INK, linewidth=2)
        bottom.plot([against.delta], [0], "D", color=INK, markersize=6)
        bottom.set_yticks([0], ["difference"])
        bottom.set_ylim(-0.6, 0.6)
        reach = 1.2 * max(abs(against.low or 0), abs(against.high or 0), 0.01)
        bottom.set_xlim(-reach, reach)
        bottom.set_xlabel("percentage points, paired, with 95 % interval")
        plain(top, bottom)
    return result[0]


def cost_figure(first: Evaluation, second: Evaluation) -> str:
    """Return size and latencies of both networks as pairs of bars, each pair on its own axis."""
    pairs = [("size, kB", (first.bytes or 0) / 1000, (second.bytes or 0) / 1000)]
    for batch, time in first.latencies.items():
        other = second.latencies[batch]
        pairs.append((f"ms at batch {batch}", time.median_ms, other.median_ms))
    with canvas(6.4, 0.95 * len(pairs), "size and latency of both networks") as (figure, result):
        axes = np.atleast_1d(figure.subplots(len(pairs), 1, gridspec_kw={"hspace": 0.9}))
        for axis, (name, a, b) in zip(axes, pairs, strict=True):
            axis.barh([0, 1], [a, b], height=0.62, color=[FIRST, SECOND])
            for row, value in enumerate((a, b)):
                axis.text(
                    value, row, f" {value:,.3g}" if value < 100 else f" {value:,.0f}", va="center"
                )
            axis.set_yticks([0, 1], ["float32", "integers"])
            axis.set_ylim(1.5, -0.5)
            axis.set_xlim(0, 1.18 * max(a, b))
            axis.set_xticks([])
            axis.set_title(name, loc="left", fontsize=9, color=MUTED)
        plain(*axes)
        for axis in axes:
            axis.spines["bottom"].set_visible(False)
            axis.grid(visible=False)
    return result[0]


def error_figure(errors: Sequence[TensorError]) -> str:
    """Return the SQNR of each tensor against the float graph, one row each, in graph order."""
    height = 0.7 + 0.19 * len(errors)
    with canvas(7.2, height, "error of each tensor") as (figure, result):
        axis = figure.subplots()
        rows = range(len(errors))
        values = [e.sqnr for e in errors]
        axis.hlines(rows, 0, values, color=FIRST, linewidth=1.6)
        axis.plot(values, list(rows), "o", color=FIRST, markersize=4.5)
        axis.set_yticks(list(rows), [e.tensor for e in errors], fontsize=7.5)
        axis.set_ylim(len(errors) - 0.4, -0.6)
        axis.set_xlim(min(0.0, *values), 1.06 * max(1.0, *values))
        axis.set_xlabel("signal to quantization noise in dB, cumulative (higher is better)")
        plain(axis)
    return result[0]


def histogram_figure(name: str, values: Histogram, low: float, high: float, colour: str) -> str:
    """Return the distribution of ``values`` on a logarithmic count axis, with the range it gets.

    Args:
        name: makes the figure's identifiers unique.
        values: what was seen.
        low, high: the range that codes can represent, drawn as two lines.
        colour: `FIRST` or `SECOND`.
    """
    with canvas(2.7, 1.25, f"histogram {name}") as (figure, result):
        axis = figure.subplots()
        start, stop = min(values.low, low), max(values.high, high)
        if start == stop:
            start, stop = start - 0.5, stop + 0.5
        counts, edges = np.histogram(
            values.centres.numpy().clip(start, stop),
            bins=_BINS,
            range=(start, stop),
            weights=values.counts.numpy(),
        )
        shown = np.where(counts > 0, counts, np.nan)
        axis.stairs(np.nan_to_num(shown, nan=0.5), edges, baseline=0.5, fill=True, color=colour)
        axis.set_yscale("log")
        axis.set_ylim(0.5, 2 * max(1.0, float(counts.max())))
        for bound in (low, high):
            axis.axvline(bound, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        margin = 0.03 * (stop - start)
        axis.set_xlim(start - margin, stop + margin)
        axis.tick_params(labelsize=7)
        axis.locator_params(axis="x", nbins=5)
        axis.yaxis.set_visible(False)
        plain(axis)
        axis.spines["left"].set_visible(False)
        axis.grid(visible=False)
    return result[0]

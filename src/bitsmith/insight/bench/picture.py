"""The picture of a benchmark of layers: milliseconds of each contender, and the memory's limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bitsmith.insight.bench.kernels import Cell, KernelSpeeds
from bitsmith.insight.exhibits import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["kernels_figure"]

_FAMILIES = ("float32", "bitsmith", "torch", "onnxruntime", "llama.cpp")


def kernels_figure(found: KernelSpeeds) -> Figure:
    """Return the figure: a panel for each number of rows, a bar for each contender.

    Bars are milliseconds with the quartiles over the turns, on a logarithmic axis; the mark on
    each is how long reading its weight takes at the measured bandwidth: no bar ends left of it.
    """
    rows = list(dict.fromkeys(c.rows for c in found.cells))
    lines = max((len(_panel(found, m)) for m in rows), default=1)
    return Figure(
        "kernels",
        f"A linear layer of {found.n}×{found.k}, {found.threads} threads",
        "Milliseconds, median and quartiles. Black marks: reading the weight at the "
        f"{found.bandwidth.bytes_per_second / 1e9:.1f} GB/s of this machine's memory.",
        lambda canvas: _draw(canvas, found, rows),
        size=(3.4 + 2.6 * len(rows), 1.3 + 0.2 * lines),
    )


def _panel(found: KernelSpeeds, rows: int) -> list[Cell]:
    """Return the cells of one number of rows; what is in several heats from the first."""
    cells: dict[str, Cell] = {}
    for c in found.cells:
        if c.rows == rows:
            cells.setdefault(c.name, c)
    return list(cells.values())


def _draw(canvas: Canvas, found: KernelSpeeds, rows: Sequence[int]) -> None:
    from matplotlib.ticker import LogLocator

    from bitsmith.insight.report.style import INK, SERIES, plain

    colours = dict(zip(_FAMILIES, (INK, *SERIES), strict=False))
    axes = canvas.subplots(1, len(rows), squeeze=False, sharey=True, gridspec_kw={"wspace": 0.08})
    labels = list(dict.fromkeys(c.name for m in rows for c in _panel(found, m)))
    for axis, m in zip(axes[0], rows, strict=True):
        cells = _panel(found, m)
        for family in _FAMILIES:
            _bars(axis, [c for c in cells if c.family == family], labels, colours[family], family)
        at = [labels.index(c.name) for c in cells]
        limits = [1e3 * c.bytes / found.bandwidth.bytes_per_second for c in cells]
        axis.plot(limits, at, "|", color=INK, markersize=9, markeredgewidth=1.6,
                  label="limit of memory")  # fmt: skip
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.set_title(f"{m} row{'s' if m > 1 else ''}")
        axis.set_xlabel("ms")
    axes[0][0].set_yticks(range(len(labels)), labels, fontsize=7.5)
    axes[0][0].set_ylim(len(labels) - 0.4, -0.6)
    plain(*axes[0])
    handles, names = axes[0][0].get_legend_handles_labels()
    canvas.legend(handles, names, loc="lower center", bbox_to_anchor=(0.5, 0.9), ncols=6)


def _bars(axis: Any, cells: Sequence[Cell], labels: list[str], colour: str, family: str) -> None:
    from bitsmith.insight.report.style import MUTED

    if not cells:
        return
    at = [labels.index(c.name) for c in cells]
    middle = [c.times.median_ms for c in cells]
    spread = [
        [m - c.times.quartiles_ms[0] for m, c in zip(middle, cells, strict=True)],
        [c.times.quartiles_ms[1] - m for m, c in zip(middle, cells, strict=True)],
    ]
    axis.barh(
        at, middle, xerr=spread, height=0.72, color=colour, label=family,
        error_kw={"ecolor": MUTED, "elinewidth": 0.8},
    )  # fmt: skip

"""How every figure looks, and the forms it is written in.

A figure is drawn once, with the colours of this module. Inside a page they become the page's
variables, so that it follows light and dark; a stand-alone file keeps them, on white. Nothing of
matplotlib's global state is touched and no display is needed.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = [
    "FIFTH",
    "FIRST",
    "FOURTH",
    "INK",
    "LINE",
    "MUTED",
    "PAPER",
    "SECOND",
    "SERIES",
    "THIRD",
    "canvas",
    "inline_svg",
    "plain",
    "png",
    "standalone_svg",
]

#: Colours to draw with: text, less important text, lines, background, and five that people with
#: any colour vision tell apart (after Okabe and Ito, darkened where white shines through).
INK, MUTED, LINE, PAPER = "#101112", "#606162", "#c0c1c2", "#fefdfe"
FIRST, SECOND, THIRD, FOURTH, FIFTH = "#0072b3", "#d55e01", "#00795d", "#b0568d", "#8a7501"
SERIES = (FIRST, SECOND, THIRD, FOURTH, FIFTH)
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    PAPER: "paper",
    FIRST: "first",
    SECOND: "second",
    THIRD: "third",
    FOURTH: "fourth",
    FIFTH: "fifth",
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlecolor": MUTED,
    "axes.titlelocation": "left",
    "xtick.color": MUTED,
    "ytick.color": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_DPI = 160

#: Draws on an empty figure.
Draw = Callable[[Figure], None]


def plain(*axes: Any, grid: str = "x") -> None:
    """Take everything from axes that carries no information; keep grid lines along ``grid``."""
    for axis in axes:
        axis.set_facecolor("none")
        axis.tick_params(which="both", length=0)
        axis.grid(visible=False)
        if grid:
            axis.grid(visible=True, axis=grid)
        axis.set_axisbelow(True)


@contextmanager
def canvas(width: float, height: float, label: str) -> Iterator[tuple[Figure, list[str]]]:
    """Give a figure of inches, and a list that receives its SVG for a page when the block ends."""
    key = hashlib.sha256(label.encode()).hexdigest()[:10]
    result: list[str] = []
    with _styled({"svg.hashsalt": key}):
        figure = _empty(width, height, FigureCanvasSVG)
        yield figure, result
        text = _svg(figure)
    result.append(_inline(text, label, key))


def inline_svg(draw: Draw, size: tuple[float, float], label: str) -> str:
    """Return the ``<svg>`` element of a figure for a page.

    Args:
        draw: draws it.
        size: width and height in inches.
        label: what it shows, for those who cannot see it; different for each figure of a page.
    """
    with canvas(*size, label) as (figure, result):
        draw(figure)
    return result[0]


def standalone_svg(draw: Draw, size: tuple[float, float]) -> str:
    """Return a figure as an SVG file on white, its letters as outlines."""
    with _styled({"svg.fonttype": "path", "svg.hashsalt": "bitsmith"}):
        figure = _empty(*size, FigureCanvasSVG)
        draw(figure)
        return _svg(figure, facecolor="white")


def png(draw: Draw, size: tuple[float, float]) -> bytes:
    """Return a figure as a PNG file on white, 160 dots per inch."""
    with _styled({}):
        figure = _empty(*size, FigureCanvasAgg)
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format="png", dpi=_DPI, facecolor="white", bbox_inches="tight",
            pad_inches=0.1, metadata={"Software": None},
        )  # fmt: skip
    return buffer.getvalue()


def _styled(more: dict[str, Any]) -> Any:
    style: Any = {**_STYLE, **more}
    return matplotlib.rc_context(style)


def _empty(width: float, height: float, kind: Callable[[Figure], object]) -> Figure:
    figure = Figure(figsize=(width, height), facecolor="none")
    kind(figure)
    return figure


def _svg(figure: Figure, facecolor: str = "none") -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", bbox_inches="tight", pad_inches=0.04, facecolor=facecolor,
        metadata={"Date": None},
    )  # fmt: skip
    return buffer.getvalue()


def _inline(svg: str, label: str, key: str) -> str:
    """Return the ``<svg>`` element alone, with the page's colours and identifiers of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="f{key}-', svg)
    svg = re.sub(r"url\(#", f"url(#f{key}-", svg)
    svg = re.sub(r'href="#', f'href="#f{key}-', svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{_attribute(label)}"', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")

"""The figure: accuracy lost and noise by layer, alone and with all before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitsmith.studies.sensitivity.layers import LayerEffect, Sensitivity

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["draw_layers", "layers_size"]


def layers_size(found: Sensitivity) -> tuple[float, float]:
    """Return inches that hold a row for each layer."""
    return 7.4, 1.0 + 0.2 * max(6, len(found.layers))


def draw_layers(canvas: Canvas, found: Sensitivity) -> None:
    """Draw the layers from top to bottom: loss alone, loss together, SQNR of both."""
    from bitsmith.insight.report.style import FIRST, INK, SECOND, plain

    axes = canvas.subplots(1, 3, sharey=True, gridspec_kw={"width_ratios": (1, 1, 0.9)})
    rows = range(len(found.layers))
    for axis, colour, mark, title, isolated in (
        (axes[0], FIRST, "o", "this layer alone", True),
        (axes[1], SECOND, "s", "with all layers before it", False),
    ):
        for y, e in zip(rows, found.layers, strict=True):
            _loss(axis, y, e, colour, mark, isolated)
        axis.axvline(0.0, color=INK, linewidth=0.8)
        axis.set_xlabel("points of accuracy")
        axis.set_title(title, color=colour)
    axes[1].step(
        [e.cumulative.delta for e in found.layers], list(rows), where="mid", color=SECOND,
        linewidth=0.6, alpha=0.6,
    )  # fmt: skip
    for effects, mark, colour in (
        ([e.isolated for e in found.layers], "o-", FIRST),
        ([e.cumulative for e in found.layers], "s-", SECOND),
    ):
        axes[2].plot(
            [e.output for e in effects], rows, mark, color=colour, markersize=3.5, linewidth=0.8
        )
    axes[2].set_xlabel("SQNR of its output, dB")
    axes[2].set_title("its output, in both colours")
    axes[0].set_yticks(rows, [e.layer for e in found.layers], fontsize=7.5)
    axes[0].set_ylim(len(found.layers) - 0.4, -0.6)
    plain(*axes)


def _loss(axis: Any, y: int, e: LayerEffect, colour: str, mark: str, isolated: bool) -> None:
    from bitsmith.insight.report.style import PAPER

    effect = e.isolated if isolated else e.cumulative
    told = effect.high < 0 or effect.low > 0
    axis.plot([effect.low, effect.high], [y, y], color=colour, linewidth=1.1)
    axis.plot(
        [effect.delta], [y], mark, color=colour, markerfacecolor=colour if told else PAPER,
        markersize=4.5,
    )  # fmt: skip

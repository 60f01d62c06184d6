"""The figure: the plane in two colours for every network, with the test points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bitsmith.data import Split
from bitsmith.studies.moons.networks import BITS, FORMS, Field, Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["draw_boundaries"]


def draw_boundaries(canvas: Canvas, field: Field, test: Split, found: Sequence[Outcome]) -> None:
    """Draw the float network on the left, and beside it a row of widths for each form."""
    from bitsmith.insight.report.style import INK, MUTED

    widths = [1, 0.1, *(1 for _ in BITS)]
    grid = canvas.add_gridspec(
        len(FORMS), len(widths), width_ratios=widths, wspace=0.08, hspace=0.2
    )
    plain = canvas.add_subplot(grid[len(FORMS) // 2, 0])
    _panel(plain, field, test, found[0], "float")
    for row, form in enumerate(FORMS):
        for column, bits in enumerate(BITS):
            axis = canvas.add_subplot(grid[row, column + 2])
            own = next(o for o in found if (o.form, o.bits) == (form, bits))
            _panel(axis, field, test, own, f"{bits} bits")
            if column == 0:
                axis.set_ylabel(form, color=INK)
    plain.set_xlabel("x₁", color=MUTED)
    plain.set_ylabel("x₂", color=MUTED)


def _panel(axis: Any, field: Field, test: Split, o: Outcome, title: str) -> None:
    from bitsmith.insight.report.style import FIRST, INK, SECOND

    margin = o.margin.numpy()
    inside = (margin > 0).astype(float)
    across, up = field.across.numpy(), field.up.numpy()
    axis.contourf(across, up, inside, levels=[-0.5, 0.5, 1.5], colors=[FIRST, SECOND], alpha=0.22)
    if inside.min() != inside.max():
        axis.contour(across, up, inside, levels=[0.5], colors=[INK], linewidths=0.8)
    for label, colour in enumerate((FIRST, SECOND)):
        own = test.x[test.y == label]
        axis.plot(own[:, 0], own[:, 1], "o", color=colour, markersize=1.3, markeredgewidth=0)
    axis.set_title(f"{title}  {o.evaluation.accuracy:.1f} %", fontsize=7.5, pad=3)
    axis.set_facecolor("none")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlim(across[0], across[-1])
    axis.set_ylim(up[0], up[-1])

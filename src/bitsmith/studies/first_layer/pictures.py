"""The figures: a weight with both ranges, the histogram of its error, and every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsmith.studies.first_layer.errors import FULL, OWN, Outcome, change, of, scheme_of
from bitsmith.studies.first_layer.networks import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["draw_errors", "draw_layers"]

_BINS = 41


def draw_errors(canvas: Canvas, found: Mapping[Network, Sequence[Outcome]], bits: int) -> None:
    """Draw each network's weights with both ranges, beside them histograms of the error."""
    axes = canvas.subplots(
        len(found), 2, squeeze=False, gridspec_kw={"wspace": 0.12, "hspace": 0.5}
    )
    for (left, right), (network, outcomes) in zip(axes, found.items(), strict=True):
        _draw_weights(left, network, outcomes, bits)
        _draw_histograms(right, outcomes)
        left.set_title(f"{network.name}: {network.first}")
    axes[-1][0].set_xlabel("weight")
    axes[-1][1].set_xlabel("error, thousandths")


def _draw_weights(axis: Any, network: Network, found: Sequence[Outcome], bits: int) -> None:
    """Draw the distribution, and below it the codes of both ranges, those without a weight pale."""
    from bitsmith.insight.report.style import FIRST, INK, LINE, MUTED, SECOND, plain

    weight = network.weights[network.first].flatten().double().numpy()
    counts, edges = np.histogram(weight, _BINS)
    axis.stairs(counts, edges, fill=True, color=MUTED, alpha=0.55)
    top = float(counts.max())
    for row, (form, colour) in enumerate(((FULL, SECOND), (OWN, FIRST))):
        own, scheme = of(found, form), scheme_of(form, bits)
        zero = int(own.zero_point[0])
        low, high = (own.step * (code - zero) for code in (scheme.code_min, scheme.code_max))
        at, height = -top * (0.17 + 0.2 * row), top * 0.11
        axis.barh(at, high - low, height, left=low, color=LINE)
        inside = max(low, weight.min()), min(high, weight.max())
        axis.barh(at, inside[1] - inside[0], height, left=inside[0], color=colour)
        axis.annotate(
            f"{form}: {own.unused:.0f} of {own.codes} codes without a weight", (low, at), (0, -9),
            textcoords="offset points", va="center", fontsize=7, color=colour,
        )  # fmt: skip
    axis.plot([0, 0], [-top * 0.42, top], color=INK, linewidth=0.6)
    axis.set_ylim(-top * 0.56, top * 1.05)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    plain(axis, grid="")


def _draw_histograms(axis: Any, found: Sequence[Outcome]) -> None:
    """Draw both errors as outlines over the same bins, and half a step of each as dashes."""
    from bitsmith.insight.report.style import FIRST, SECOND, plain

    reach = 500 * max(of(found, form).step for form in (FULL, OWN))
    edges = np.linspace(-reach, reach, _BINS + 1)
    top = 0.0
    for form, colour in ((FULL, SECOND), (OWN, FIRST)):
        own = of(found, form)
        errors = (1000 * own.error.numpy()).clip(-reach, reach)
        counts, _ = np.histogram(errors, edges)
        share = 100 * counts / len(errors)
        axis.stairs(share, edges, fill=True, color=colour, alpha=0.16)
        axis.stairs(
            share, edges, color=colour, linewidth=1.3,
            label=f"{form}: scale {own.step:.5g}, mean |error| {own.mae:.3g}",
        )  # fmt: skip
        for end in (-500 * own.step, 500 * own.step):
            axis.axvline(end, color=colour, linewidth=0.9, linestyle=(0, (3, 2)))
        top = max(top, float(share.max()))
    axis.set_ylim(0, top * 1.06)
    axis.set_ylabel("weights, %")
    axis.yaxis.set_label_position("right")
    axis.yaxis.tick_right()
    axis.spines["left"].set_visible(False)
    axis.legend(loc="lower right", bbox_to_anchor=(1.04, 0.99), fontsize=7.5)
    plain(axis, grid="y")


def draw_layers(canvas: Canvas, found: Mapping[Network, Mapping[str, Sequence[Outcome]]]) -> None:
    """Draw, for every convolution, by how much the error changes against how much the step does."""
    from bitsmith.insight.report.style import FIRST, INK, MUTED, SECOND, plain

    cuts = ("per-tensor", "per-channel")
    axes = canvas.subplots(1, len(cuts), sharey=True, gridspec_kw={"wspace": 0.08})
    for axis, cut in zip(axes, cuts, strict=True):
        least = 0.0
        for (network, layers), colour, mark in zip(
            found.items(), (FIRST, SECOND), "os", strict=False
        ):
            for name, own in layers.items():
                mirrored, wide = of(own, FULL, cut), of(own, OWN, cut)
                mean, low, high = change(wide, mirrored)
                at = 100 * (wide.step / mirrored.step - 1)
                begins = name == network.first
                axis.plot([at, at], [low, high], color=colour, linewidth=0.9, alpha=0.8)
                axis.plot(
                    [at], [mean], mark, color=colour, markersize=7 if begins else 4,
                    markeredgecolor=INK if begins else colour, markeredgewidth=1.0,
                    label=network.name if begins else None,
                )  # fmt: skip
                if begins:
                    axis.annotate(
                        name, (at, mean), (-7, 4), textcoords="offset points", fontsize=7.5,
                        ha="right",
                    )  # fmt: skip
                least = min(least, at, mean)
        axis.plot([least, 0], [least, 0], color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
        axis.axhline(0.0, color=INK, linewidth=0.6)
        axis.set_title(f"{cut} scales", pad=3)
        axis.set_xlabel("step, asymmetric less symmetric, %")
        plain(axis, grid="both")
    axes[0].set_ylabel("mean |error|, %")
    axes[0].legend(loc="upper left", handletextpad=0.2)

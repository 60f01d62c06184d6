"""The figures: the weights step by step, and the derivatives of each rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from bitsmith.studies.one_weight.rules import RULES, Problem, Step, slopes

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["draw_slopes", "draw_training"]


def draw_training(canvas: Canvas, problem: Problem, found: Mapping[str, Sequence[Step]]) -> None:
    """Draw the float and the rounded weight of each rule over the steps."""
    from bitsmith.insight.report.style import FIRST, INK, SECOND, plain

    axes = canvas.subplots(1, len(RULES), sharey=True, gridspec_kw={"wspace": 0.07})
    for axis, rule in zip(axes, RULES, strict=True):
        states = found[rule.name]
        steps = range(len(states))
        if problem.x:
            wanted = problem.target / problem.x
            axis.axhline(wanted, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axis.plot(
            steps, [s.quantized for s in states], color=SECOND, linewidth=1.6,
            drawstyle="steps-post", label="rounded",
        )  # fmt: skip
        axis.plot(steps, [s.weight for s in states], color=FIRST, linewidth=1.2, label="float")
        axis.set_title(rule.name)
        axis.set_xlabel("step")
    axes[0].set_ylabel("weight")
    axes[0].legend(loc="lower right")
    plain(*axes, grid="y")


def draw_slopes(canvas: Canvas, problem: Problem) -> None:
    """Draw the derivatives for the weight and for the step of the code, against the weight."""
    from bitsmith.insight.report.style import FIRST, SECOND, plain

    top = 1 << (problem.bits - 1)
    reach = problem.scale * top * 1.25
    weights = torch.linspace(-reach, max(reach, problem.scale * 2 * top * 1.1), 4001)
    axes = canvas.subplots(
        2, len(RULES), sharex=True, sharey="row", gridspec_kw={"wspace": 0.07, "hspace": 0.16}
    )
    for column, rule in enumerate(RULES):
        _, for_weight, for_scale = slopes(problem, rule, weights)
        upper, lower = axes[0][column], axes[1][column]
        upper.plot(weights, for_weight, color=FIRST, linewidth=1.2)
        lower.plot(weights, for_scale, color=SECOND, linewidth=1.0)
        lower.set_yscale("symlog", linthresh=1.0, linscale=0.7)
        upper.set_title(rule.name)
        lower.set_xlabel("float weight")
    axes[0][0].set_ylabel("∂q/∂w")
    axes[0][0].set_yticks([0, 1])
    axes[1][0].set_ylabel("∂q/∂scale")
    plain(*axes.ravel(), grid="y")

"""The figures: accuracy against bytes with its front, and losses as a map of ways and widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bitsmith.studies.sweep.outcomes import Outcome, front
from bitsmith.studies.sweep.variants import Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["draw_front", "draw_map", "map_size"]

#: Variants further below float than this many points lie on the lower edge.
_REACH = 10.0
#: Names stand at points this many times further right than the last.
_APART = 1.3
#: Losses of this many points have the full colour.
_DARKEST = 10.0
_METHODS = ("ptq", "ptq+finetune", "qat", "codebook")
_LABELS = {"ptq": "PTQ", "ptq+finetune": "PTQ + finetune", "qat": "QAT", "codebook": "codebook"}


def draw_front(canvas: Canvas, found: Sequence[Outcome]) -> None:
    """Draw a panel for each network: accuracy against kB, the front as steps."""
    models = list(dict.fromkeys(o.variant.model for o in found))
    axes = canvas.subplots(1, len(models), squeeze=False)[0]
    for axis, model in zip(axes, models, strict=True):
        own = [o for o in found if o.variant.model == model]
        _panel(axis, own, model if len(models) > 1 else "")
    _legend(axes[0], found)


def _panel(axis: Any, own: Sequence[Outcome], title: str) -> None:
    from bitsmith.insight.report.style import INK, MUTED, plain

    float_one = next(o for o in own if o.against is None)
    floor = float_one.accuracy - _REACH
    low = max(floor, min(o.interval[0] for o in own)) if len(own) > 1 else floor
    best = front(own)
    steps = [o for o in best if o.accuracy > floor]
    if steps:
        x = [o.bytes / 1e3 for o in steps]
        axis.step(
            x, [o.accuracy for o in steps], where="post", color=MUTED, linewidth=0.8, zorder=1
        )
    for o in own:
        _point(axis, o, floor)
    _far_below(axis, [o for o in own if o.accuracy < floor], floor)
    for o in _apart(steps):
        if o.against is not None:
            axis.annotate(
                o.variant.name, (o.bytes / 1e3, o.accuracy), xytext=(-3, 7), ha="right",
                textcoords="offset points", fontsize=7, color=INK,
            )  # fmt: skip
    axis.axhline(float_one.accuracy, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axis.annotate(
        f"float {float_one.accuracy:.1f}", (float_one.bytes / 1e3, float_one.accuracy),
        xytext=(0, -11), textcoords="offset points", fontsize=7.5, ha="center",
    )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_ylim(low - 0.06 * (float_one.accuracy - low) - 0.3, float_one.accuracy + 1.2)
    axis.set_xlabel("kB: codes, scales, tables, biases (logarithmic)")
    axis.set_ylabel("accuracy, %")
    axis.set_title(title)
    plain(axis, grid="y")


def _apart(steps: Sequence[Outcome]) -> list[Outcome]:
    """Return those of the front whose names do not run into each other."""
    kept: list[Outcome] = []
    for o in steps:
        if not kept or o.bytes > _APART * kept[-1].bytes:
            kept.append(o)
    return kept


def _point(axis: Any, o: Outcome, floor: float) -> None:
    from bitsmith.insight.report.style import INK

    x = o.bytes / 1e3
    if o.against is None:
        axis.plot([x], [o.accuracy], "*", color=INK, markersize=9, zorder=3)
        return
    colour, mark = _style(o.variant.method)
    if o.accuracy < floor:
        axis.plot([x], [floor], "v", color=colour, markersize=4, zorder=3)
        return
    filled = colour if o.variant.static else "none"
    axis.plot([x, x], [max(v, floor) for v in o.interval], color=colour, linewidth=0.8, zorder=2)
    axis.plot([x], [o.accuracy], mark, color=colour, markerfacecolor=filled, markersize=5, zorder=3)


def _far_below(axis: Any, own: Sequence[Outcome], floor: float) -> None:
    """Write what lies below the axis above its triangle, side by side where triangles meet."""
    from bitsmith.insight.report.style import MUTED

    last, shift = 0.0, 0
    for o in sorted(own, key=lambda o: o.bytes):
        shift = shift + 8 if o.bytes < 1.05 * last else 0
        last = o.bytes
        axis.annotate(
            f"{o.variant.name} {o.accuracy:.0f} %", (o.bytes / 1e3, floor), xytext=(shift, 6),
            textcoords="offset points", fontsize=6.5, color=MUTED, rotation=90, ha="center",
            va="bottom",
        )  # fmt: skip


def _style(method: str) -> tuple[str, str]:
    from bitsmith.insight.report.style import FIRST, FOURTH, SECOND, THIRD

    marks = dict(
        zip(_METHODS, zip((SECOND, THIRD, FIRST, FOURTH), "oD^s", strict=True), strict=True)
    )
    return marks[method]


def _legend(axis: Any, found: Sequence[Outcome]) -> None:
    from bitsmith.insight.report.style import MUTED

    present = {o.variant.method for o in found}
    for method in [m for m in _METHODS if m in present]:
        colour, mark = _style(method)
        axis.plot([], [], mark, color=colour, markersize=5, label=_LABELS[method])
    if any(not o.variant.static and o.against is not None for o in found):
        axis.plot(
            [], [], "o", color=MUTED, markerfacecolor="none", markersize=5,
            label="open: weights only",
        )  # fmt: skip
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.02), ncols=5, columnspacing=1.2,
                handletextpad=0.3)  # fmt: skip


def _way(variant: Variant, several: bool) -> str:
    """Return everything of a variant but the bits of its weights."""
    parts = [variant.model] if several else []
    parts += [_LABELS[variant.method], f"A{variant.activations}" if variant.static else "weights"]
    parts += [variant.granularity]
    parts += [] if variant.scheme == "symmetric" else ["asym."]
    parts += [variant.calibrator] if variant.calibrator not in ("-", "mse") else []
    parts += [variant.algorithm] if variant.algorithm != "auto" else []
    return ", ".join(parts)


def _ways(found: Sequence[Outcome]) -> dict[str, dict[int, Outcome]]:
    several = len({o.variant.model for o in found}) > 1
    ways: dict[str, dict[int, Outcome]] = {}
    for o in found:
        if o.against is not None:
            ways.setdefault(_way(o.variant, several), {})[o.variant.bits] = o
    return ways


def map_size(found: Sequence[Outcome]) -> tuple[float, float]:
    """Return inches that hold a row for each way."""
    return 7.4, 0.9 + 0.27 * max(2, len(_ways(found)))


def draw_map(canvas: Canvas, found: Sequence[Outcome]) -> None:
    """Draw a row for each way to quantize, a column for each width of the weights."""
    from bitsmith.insight.report.style import FIRST, INK, LINE, PAPER, SECOND, plain

    ways = _ways(found)
    widths = sorted({bits for row in ways.values() for bits in row}, reverse=True)
    axis = canvas.subplots()
    for y, row in enumerate(ways.values()):
        for x, bits in enumerate(widths):
            o = row.get(bits)
            if o is None or o.against is None:
                axis.plot([x], [y], ".", color=LINE, markersize=2)
                continue
            loss = max(0.0, -o.against.delta)
            depth = min(1.0, loss / _DARKEST) ** 0.5
            told = o.against.sign != 0
            axis.barh(y, 0.94, 0.86, x - 0.47, color=SECOND, alpha=0.06 + 0.94 * depth, linewidth=0)
            if not told:
                axis.barh(y, 0.94, 0.86, x - 0.47, color="none", edgecolor=FIRST, linewidth=1)
            axis.text(
                x, y, f"{o.against.delta:+.2f}", ha="center", va="center", fontsize=7.5,
                color=PAPER if depth > 0.9 else INK,
            )  # fmt: skip
    axis.set_yticks(range(len(ways)), list(ways), fontsize=7.5)
    axis.set_xticks(range(len(widths)), [f"{bits} bit{'s' * (bits > 1)}" for bits in widths])
    axis.set_xlim(-0.5, len(widths) - 0.5)
    axis.set_ylim(len(ways) - 0.5, -0.5)
    axis.xaxis.tick_top()
    plain(axis, grid="")
    for side in axis.spines.values():
        side.set_visible(False)

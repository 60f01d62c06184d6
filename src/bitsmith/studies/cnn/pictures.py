"""The figures: errors of weights, accuracies, codes, and what a carried observer changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsmith.studies.cnn.networks import Against, Judged
from bitsmith.studies.cnn.observers import Carried
from bitsmith.studies.cnn.static import Codes, Static
from bitsmith.studies.cnn.weights import BITS, FORMS, Simulated

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["draw_accuracies", "draw_codes", "draw_observers", "draw_weights"]

#: Differences below this many points are said, not drawn.
_REACH = -1.0
_BINS = 80
#: Shares of codes below this many per cent are at the foot of a logarithmic axis.
_LEAST = 1e-4


def draw_weights(canvas: Canvas, found: Sequence[Simulated]) -> None:
    """Draw the error of each layer's weight, symmetric and asymmetric, a panel a width."""
    from bitsmith.insight.report.style import FIRST, LINE, SECOND, plain

    axes = canvas.subplots(1, len(BITS), sharey=True, gridspec_kw={"wspace": 0.07})
    names = [e.layer for e in found[0].errors]
    for axis, bits in zip(axes, BITS, strict=True):
        pair = [next(s for s in found if (s.form, s.bits) == (f, bits)) for f in FORMS]
        values = [[100 * e.relative for e in s.errors] for s in pair]
        for row, ends in enumerate(zip(*values, strict=True)):
            axis.plot(ends, [row, row], color=LINE, linewidth=2, zorder=1)
        for own, s, colour, mark in zip(values, pair, (SECOND, FIRST), "so", strict=True):
            axis.plot(own, range(len(names)), mark, color=colour, markersize=5.5, label=s.form)
        axis.set_xlim(0, 1.12 * max(map(max, values)))
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_title(f"{bits} bits", pad=3)
    axes[len(BITS) // 2].set_xlabel("mean |error|, % of the mean |weight|")
    axes[0].set_yticks(range(len(names)), names)
    plain(*axes, grid="x")
    axes[-1].legend(loc="lower right", bbox_to_anchor=(1.03, 1.08), ncols=2, handletextpad=0.1,
                    columnspacing=0.8)  # fmt: skip


def draw_accuracies(
    canvas: Canvas, plain_network: Judged, found: Sequence[Simulated], integers: Static,
    against: Against,
) -> None:  # fmt: skip
    """Draw every network's accuracy, and beside it its difference to float."""
    from bitsmith.insight.report.style import FIRST, INK, MUTED, SECOND, THIRD, plain

    colours = {FORMS[0]: SECOND, FORMS[1]: FIRST}
    rows: list[tuple[str, Judged, Against | None, str]] = [("float32", plain_network, None, INK)]
    rows += [
        (f"weights {s.bits} bits, {s.form}", s.judged, s.against, colours[s.form]) for s in found
    ]
    rows.append(("all in int8, ONNX Runtime", integers.runtime, against, THIRD))
    near = [g.accuracy for _, _, g, _ in rows if g and (g.accuracy.delta or 0.0) >= _REACH]
    reach = 1.15 * min([d.low or 0.0 for d in near], default=_REACH)
    left, right = canvas.subplots(
        1, 2, sharey=True, gridspec_kw={"wspace": 0.1, "width_ratios": [1, 1.5]}
    )
    for row, (_, judged, gap, colour) in enumerate(rows):
        e = judged.evaluation
        left.plot(e.interval or (0, 0), [row, row], color=colour, linewidth=1.4)
        left.plot([e.accuracy], [row], "o", color=colour, markersize=5)
        if gap is None:
            continue
        d = gap.accuracy
        if (d.delta or 0.0) < _REACH:
            beyond = f"◂ {d.delta:+.2f}".replace("-", "−")
            right.annotate(
                beyond, (reach, row), (3, 0), textcoords="offset points",
                va="center", fontsize=7.5, color=MUTED,
            )  # fmt: skip
            continue
        right.plot([d.low or 0.0, d.high or 0.0], [row, row], color=colour, linewidth=1.4)
        right.plot([d.delta], [row], "o", color=colour, markersize=5)
    right.axvline(0.0, color=INK, linewidth=0.8)
    left.set_yticks(range(len(rows)), [name for name, *_ in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    left.set_xlabel("accuracy, %")
    right.set_xlim(left=reach)
    right.set_xlabel("less float, points (paired)")
    plain(left, right, grid="x")


def draw_codes(canvas: Canvas, codes: Sequence[Codes]) -> None:
    """Draw how often each code occurs, tensor by tensor, with the real values above."""
    from bitsmith.insight.report.style import FIRST, MUTED, SECOND, plain

    axes = np.atleast_1d(canvas.subplots(1, len(codes), sharey=True, gridspec_kw={"wspace": 0.1}))
    for axis, own in zip(axes, codes, strict=True):
        share = 100 * own.counts / own.counts.sum()
        e = own.encoding
        axis.stairs(share.clip(_LEAST), range(257), baseline=_LEAST, fill=True, color=FIRST)
        axis.bar([e.zero_point + 0.5], [share[e.zero_point]], width=3.0, color=SECOND)
        axis.set_yscale("log")
        axis.set_ylim(_LEAST, 200)
        axis.set_xticks([0, 128, 255])
        axis.set_title(
            f"{own.name}\nscale {e.scale:.4g}, zero at {e.zero_point}", pad=3, fontsize=8
        )
        axis.set_xlabel("code", color=MUTED)
        plain(axis, grid="y")
    axes[0].set_ylabel("values, %")


def draw_observers(canvas: Canvas, plain_network: Judged, integers: Static, own: Carried) -> None:
    """Draw the file's logits against both float networks, and what observers do to ranges."""
    left, right = canvas.subplots(1, 2, gridspec_kw={"wspace": 0.32, "width_ratios": [1.25, 1]})
    _draw_logits(left, plain_network, integers, own)
    _draw_ranges(right, own)


def _draw_logits(axis: Any, plain_network: Judged, integers: Static, own: Carried) -> None:
    from bitsmith.insight.report.style import FIRST, SECOND, plain

    gaps = [
        (integers.runtime.logits - base.logits).flatten().double().numpy()
        for base in (plain_network, own.rounding)
    ]
    reach = 1.05 * float(np.quantile(np.abs(gaps[0]), 0.999)) or 1.0
    edges = np.linspace(-reach, reach, _BINS + 2)  # an odd number of bins: one around 0
    looks = ((SECOND, "less the clean float network"), (FIRST, "less the one that still rounds"))
    for values, (colour, label) in zip(gaps, looks, strict=True):
        counts, _ = np.histogram(values, edges)
        share = 100 * counts / len(values)
        axis.stairs(share.clip(_LEAST), edges, baseline=_LEAST, fill=True, color=colour,
                    alpha=0.75, label=label)  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylim(1e-3, 200)
    axis.locator_params(axis="x", nbins=5)
    axis.set_xlabel("logits of the file")
    axis.set_ylabel("logits, %")
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99))
    plain(axis, grid="y")


def _draw_ranges(axis: Any, own: Carried) -> None:
    from bitsmith.insight.report.style import FIRST, INK, LINE, SECOND, plain

    for row, r in enumerate(own.ranges):
        ends = [100.0, 100.0 + r.change]
        axis.plot(ends, [row, row], color=LINE, linewidth=2, zorder=1)
        axis.plot([ends[0]], [row], "o", color=FIRST, markersize=5.5,
                  label="calibrated" if row == 0 else None)  # fmt: skip
        axis.plot([ends[1]], [row], "s", color=SECOND, markersize=5.5,
                  label="after the test images" if row == 0 else None)  # fmt: skip
    axis.axvline(100.0, color=INK, linewidth=0.6)
    axis.set_yticks(range(len(own.ranges)), [r.name for r in own.ranges])
    axis.set_ylim(len(own.ranges) - 0.5, -0.5)
    axis.set_xlabel("length of the range, % of the calibrated one")
    axis.legend(loc="lower left", bbox_to_anchor=(-0.04, 0.99), handletextpad=0.1)
    plain(axis, grid="x")

"""One outlier of 256 values, and real activations: what each way to choose a range leaves."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, final

from torch import Tensor

from bitsmith.errors import DataError, InputError, WeightsError
from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.interval import mean_interval
from bitsmith.insight.measure import Record
from bitsmith.studies import Options, Study, StudyResult
from bitsmith.studies.clipping.activations import MODEL, Activation, compare
from bitsmith.studies.clipping.errors import BITS, scheme_of, specs
from bitsmith.studies.clipping.findings import activation_findings, outlier_findings
from bitsmith.studies.clipping.outlier import (
    INLIERS,
    OUTLIER,
    WITHOUT,
    Outcome,
    draw_values,
    outcomes,
)
from bitsmith.studies.clipping.pictures import Panel, draw_ranges, draw_thresholds

__all__ = ["Clipping"]


@final
class Clipping(Study, name="clipping"):
    """What a range should hold, and what it may cut off."""

    title = "One outlier of 256 values, and what clipping makes of it"
    text = (
        f"{INLIERS} normal values and one of {OUTLIER:g} standard deviations are quantized with "
        "the range of every calibrator. A range that holds the outlier makes the steps wide; one "
        "that cuts it off loses the outlier. Which error is smaller depends on what is counted: "
        "look at the inliers and at the squared error separately. Then the same calibrators on "
        "the activations of a trained network, where values far outside are rare but real."
    )
    figures = ("ranges", "threshold", "activations")
    dataset = "cifar10"

    def measure(self, options: Options) -> StudyResult:
        repeats = 6 if options.quick else 40
        values = draw_values(repeats, options.seed)
        with options.stage("outliers", repeats) as advance:
            drawn = []
            for x in values:
                drawn.append(outcomes(x))
                advance(1)
        groups = [list(group) for group in zip(*drawn, strict=True)]
        real, skipped = self._activations(options)
        tables = [_outlier_table(groups, bits) for bits in BITS]
        figures = _outlier_figures(values[0], drawn[0])
        records, findings = list(_outlier_records(groups)), outlier_findings(groups)
        if real is not None:
            tables += [_activation_table(real, bits) for bits in BITS]
            figures.append(_activation_figure(real))
            records += _activation_records(real, str(options.dataset))
            findings += activation_findings(real)
        return StudyResult(tables, figures, records, findings, skipped)

    def _activations(self, options: Options) -> tuple[Activation | None, list[str]]:
        """Return what was measured of the network, or why that could not be.

        Raises:
            InputError: data that was asked for is absent or does not fit the network.
        """
        from bitsmith.data import load_dataset
        from bitsmith.zoo import load_model

        name = str(options.dataset)
        with options.stage("activations of ResNet-20", None):
            try:
                loaded = load_model(MODEL)
                split = load_dataset(name).split("train")
            except (DataError, WeightsError) as error:
                if name != self.dataset:
                    raise
                return None, [f"activations of ResNet-20: {error}"]
            if split.input_shape != loaded.input_shape:
                raise InputError(
                    f"{MODEL} takes samples of shape {loaded.input_shape}, and {name!r} has "
                    f"{split.input_shape}"
                )
            images = 24 if options.quick else 256
            return compare(loaded.module, split, images, options.seed), []


def _outlier_table(groups: Sequence[Sequence[Outcome]], bits: int) -> Table:
    rows = []
    for group in groups:
        first = group[0]
        if first.bits != bits:
            continue
        mae, low, high = mean_interval([o.mae for o in group])
        rows.append(
            [
                first.calibrator,
                f"±{fmean(o.limit for o in group):.2f}",
                f"{fmean(o.scale for o in group):.4f}",
                f"{fmean(o.codes for o in group):.1f} of {first.codes_in_all}",
                f"{mae:.4f}",
                f"{low:.4f} to {high:.4f}",
                "–" if first.outlier_error is None else f"{_outlier_error(group):.2f}",
                f"{fmean(o.mse for o in group):.4g}",
            ]
        )
    columns = ["calibrator", ">range", ">scale", ">codes of the inliers", ">their mean error"]
    columns += [">95 % interval", ">error of the outlier", ">mean squared error"]
    note = (
        f"Means over {len(groups[0])} draws. {WITHOUT}: the {INLIERS} inliers alone. One of "
        f"{INLIERS + 1} values is {100 / (INLIERS + 1):.2f} %: a percentile cuts it off only if "
        "it leaves out more than that."
    )
    return Table(f"One outlier in {INLIERS + 1} values, {bits} bits", columns, rows, note)


def _outlier_error(group: Sequence[Outcome]) -> float:
    return fmean(o.outlier_error or 0.0 for o in group)


def _activation_table(real: Activation, bits: int) -> Table:
    layers = list(dict.fromkeys(o.layer for o in real.outcomes))
    sqnr = {(o.layer, o.calibrator): o.sqnr for o in real.outcomes if o.bits == bits}
    rows = []
    for spec in specs():
        found = [sqnr[layer, spec] for layer in layers]
        rows.append([spec, *(f"{v:.1f}" for v in found), f"{fmean(found):.2f}"])
    return Table(
        f"Outputs of the blocks of ResNet-20, {bits} bits: SQNR in dB",
        ["calibrator", *(f">{layer}" for layer in layers), ">mean"],
        rows,
        f"Higher is better. Unsigned integers, one scale each; {real.images} images of the train "
        f"split calibrate, {real.images} others are measured.",
    )


def _outlier_figures(x: Tensor, found: Sequence[Outcome]) -> list[Figure]:
    chosen = {
        bits: {o.calibrator: o.limit for o in found if o.bits == bits and o.calibrator != WITHOUT}
        for bits in BITS
    }
    panels = [
        Panel(
            f"{bits} bits", x, x.new_ones(len(x)), scheme_of(bits, signed=True), chosen[bits],
            (1.0, 1.25 * OUTLIER), x[:INLIERS],
        )
        for bits in BITS
    ]  # fmt: skip
    return [
        Figure(
            "ranges",
            "The values and the range of each calibrator",
            "First draw. Beside each bar: how many different codes the inliers take.",
            lambda canvas: draw_ranges(canvas, x, found),
            size=(7.0, 4.4),
        ),
        Figure(
            "threshold",
            "Clipping against rounding, one outlier",
            "The mean squared error of all 256 values for every threshold, its two parts, and "
            "what the calibrators choose; in blue the error of the inliers alone, whose minimum "
            "lies elsewhere. Logarithmic axes.",
            lambda canvas: draw_thresholds(canvas, panels),
            size=(7.4, 3.2),
        ),
    ]


def _activation_figure(real: Activation) -> Figure:
    layer = _widest_loss(real)
    histogram = real.histograms[layer]
    panels = [
        Panel(
            f"{bits} bits", histogram.centres, histogram.counts, scheme_of(bits, signed=False),
            {o.calibrator: o.high for o in real.outcomes if (o.layer, o.bits) == (layer, bits)},
            (histogram.high / 25, histogram.high * 1.1),
        )
        for bits in BITS
    ]  # fmt: skip
    return Figure(
        "activations",
        "Clipping against rounding, activations of ResNet-20",
        f"Output of {layer}, the block in which the whole range loses most at {BITS[-1]} bits, as "
        "the calibrators saw it. Logarithmic axes.",
        lambda canvas: draw_thresholds(canvas, panels),
        size=(7.4, 3.2),
    )


def _widest_loss(real: Activation) -> str:
    """Return the block with the largest distance from ``minmax`` to the best, at few bits."""
    own = [o for o in real.outcomes if o.bits == BITS[-1]]
    whole = {o.layer: o.sqnr for o in own if o.calibrator == "minmax"}
    return max(whole, key=lambda n: max(o.sqnr for o in own if o.layer == n) - whole[n])


def _outlier_records(groups: Sequence[Sequence[Outcome]]) -> list[Record]:
    records = []
    for group in groups:
        whole = next(g for g in groups if (g[0].bits, g[0].calibrator) == (group[0].bits, "minmax"))
        parts = [("inliers", "mae", [o.mae for o in group], [o.mae for o in whole])]
        if group[0].calibrator != WITHOUT:
            errors = [o.outlier_error or 0.0 for o in group]
            parts.append(("outlier", "mae", errors, [o.outlier_error or 0.0 for o in whole]))
            parts.append(("all values", "mse", [o.mse for o in group], [o.mse for o in whole]))
        for op, metric, values, reference in parts:
            keys: dict[str, Any] = {
                "op": op, "calibrator": group[0].calibrator, "weight_bits": group[0].bits,
                "granularity": "per-tensor", "metric": metric, "value": fmean(values),
                "n": len(group),
            }  # fmt: skip
            if values != reference:
                delta = mean_interval([a - b for a, b in zip(values, reference, strict=True)])
                keys |= dict(zip(("delta", "delta_low", "delta_high"), delta, strict=True))
                keys["reference"] = fmean(reference)
            records.append(Record(**keys))
    return records


def _activation_records(real: Activation, dataset: str) -> list[Record]:
    return [
        Record(
            model=MODEL, dataset=dataset, split="train", layer=o.layer, calibrator=o.calibrator,
            activation_bits=o.bits, granularity="per-tensor", metric="sqnr", value=o.sqnr,
            n=real.images,
        )
        for o in real.outcomes
    ]  # fmt: skip

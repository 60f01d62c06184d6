"""Static against dynamic ranges of activations as images drift from the calibration set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

from torch import Tensor

from bitsmith.data.stand_in import load_or_stand_in
from bitsmith.insight.evaluation import Evaluation
from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.measure import Record
from bitsmith.studies import Options, Setting, Study, StudyResult
from bitsmith.studies.static_dynamic.drift import Drift
from bitsmith.studies.static_dynamic.findings import Runs, findings
from bitsmith.studies.static_dynamic.networks import (
    BITS,
    FORMS,
    Outcome,
    Subject,
    outcomes,
    trained_subject,
)
from bitsmith.studies.static_dynamic.pictures import (
    draw_accuracies,
    draw_agreement,
    draw_differences,
    draw_uses,
)

__all__ = ["StaticDynamic"]


@final
class StaticDynamic(Study, name="static-dynamic"):
    """What a calibrated range is worth on data that it has not seen the like of."""

    title = "Static against dynamic activation ranges on drifting images"
    text = (
        "A multilayer perceptron of 256, 128 and 10 units with rounded weights, the same in every "
        "form. Static: the range of each layer's input is found once, from training images as they "
        "are. Dynamic: each sample has a range of its own, found while it is computed. Then the "
        "test images become darker or brighter, flatter or harder, and so leave the calibration "
        "set: values beyond a static range are clipped, values that fill a part of it are rounded "
        "coarsely. The float network suffers from the drift too, so that each form is compared "
        "with it on the same drifted images. Look at where static falls below dynamic, and at "
        "whether calibrating anew brings it back."
    )
    figures = ("accuracy", "difference", "agreement", "ranges")
    dataset = "fashion-mnist"
    settings: ClassVar[Mapping[str, Setting]] = {
        "calibrator": Setting("mse", "what chooses the static ranges"),
    }

    def measure(self, options: Options) -> StudyResult:
        dataset, skipped = load_or_stand_in(str(options.dataset), self.dataset)
        subject = trained_subject(dataset, options)
        found = list(outcomes(subject, options))
        shown = _example(subject, Runs(found).drifts)
        records = [_record(subject, o) for o in found]
        return StudyResult(
            [_table(subject, found)], _figures(found, shown), records, findings(found), skipped
        )


def _figures(found: Sequence[Outcome], shown: dict[Drift, Tensor]) -> list[Figure]:
    return [
        Figure(
            "accuracy",
            "Accuracy as the images drift",
            "Above: one test image under the drift. Bands: 95 % intervals. The vertical line marks "
            "images like those of the calibration set.",
            lambda canvas: draw_accuracies(canvas, found, shown),
            size=(7.4, 5.4),
        ),
        Figure(
            "difference",
            "What rounding costs on the same drifted images",
            "Accuracy less that of the float network, paired, with 95 % bands; each row has its "
            "own scale.",
            lambda canvas: draw_differences(canvas, found),
            size=(7.4, 4.2),
        ),
        Figure(
            "agreement",
            "How often the rounded network predicts another class than float",
            "On the same drifted images, right or wrong, with 95 % bands; each row has its own "
            "scale. Where the float network fails, accuracy may rise by chance; this cannot.",
            lambda canvas: draw_agreement(canvas, found),
            size=(7.4, 4.2),
        ),
        Figure(
            "ranges",
            "Why: what the drift makes of the static ranges",
            f"Ranges at {BITS[-1]} bits. Above: values beyond the range, which are clipped. Below: "
            "the distance between the smallest and the largest value of a sample, in lengths of "
            "the range; below 100 % codes are left unused.",
            lambda canvas: draw_uses(canvas, found),
            size=(7.4, 3.6),
        ),
    ]


def _example(subject: Subject, drifts: Sequence[Drift]) -> dict[Drift, Tensor]:
    """Return the first test image under every drift, black 0 and white 1, ``[C, H, W]``."""
    x, _ = next(iter(subject.test.batches(1)))
    levels = subject.levels
    return {
        d: ((d(x, levels) - levels.black) / (levels.white - levels.black))[0].clamp(0, 1)
        for d in drifts
    }


def _table(subject: Subject, found: Sequence[Outcome]) -> Table:
    runs = Runs(found)
    rows = []
    for drift in runs.drifts:
        cells = [drift.kind, drift.label, _percent(runs.of(drift, "float", 32).evaluation)]
        for bits in BITS:
            cells += [_percent(runs.of(drift, form, bits).evaluation) for form in FORMS]
            gain = runs.gain(drift, bits)
            cells.append(f"{gain.delta:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]")
        rows.append(cells)
    columns = ["drift", ">by", ">float, %"]
    for bits in BITS:
        columns += [f">static, {bits} bits", ">dynamic", ">static, anew", ">dynamic less static"]
    note = (
        f"{found[0].evaluation.n:,} test images; {subject.train.provenance}. Static ranges: "
        f"{subject.calibrator}, from {subject.calibration:,} training images. Weights: one scale "
        "an output channel. Differences in points, paired, with 95 % intervals: of twenty that are "
        "nothing one does not hold 0. Sums are in float: a simulation in which the ranges alone "
        "differ."
    )
    return Table("Accuracy under drift", columns, rows, note)


def _percent(found: Evaluation) -> str:
    return f"{found.accuracy:.2f}"


def _record(subject: Subject, o: Outcome) -> Record:
    against: dict[str, Any] = {}
    if o.against is not None:
        d = o.against
        against = {"delta": d.delta, "delta_low": d.low, "delta_high": d.high}
        against |= {"granularity": "per-channel", "algorithm": o.form}
        against["reference"] = (o.evaluation.accuracy or 0.0) - (d.delta or 0.0)
        if o.form != FORMS[1]:
            against["calibrator"] = subject.calibrator
    return Record(
        model="mlp", dataset=subject.test.dataset, split=subject.test.name,
        data_sha256=subject.test.sha256, method="float" if o.against is None else "ptq",
        weight_bits=o.bits, activation_bits=o.bits, op=f"{o.drift.kind} {o.drift.label}",
        metric="accuracy", value=o.evaluation.accuracy, n=o.evaluation.n, **against,
    )  # fmt: skip

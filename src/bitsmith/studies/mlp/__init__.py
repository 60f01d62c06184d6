"""A multilayer perceptron in 8 to 2 bits: quantized after training, finetuned, trained so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from bitsmith.data import Dataset, load_dataset
from bitsmith.errors import DataError
from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.measure import Record
from bitsmith.studies import Options, Study, StudyResult
from bitsmith.studies.mlp.findings import findings
from bitsmith.studies.mlp.networks import BITS, Outcome, Subject, outcomes, trained_subject
from bitsmith.studies.mlp.pictures import draw_accuracies, draw_differences

__all__ = ["MultilayerPerceptron"]

#: In place of pictures that are not at hand; always there.
_ELSE = "digits"
_SEEN = {
    "none": "no data: ±1, 0 to 1 after ReLU",
    "noise": "uniform noise in place of images",
    "minmax": "images: smallest to largest (minmax)",
    "mse": "images: least squared error (mse)",
}
_METHODS = {"ptq": "PTQ", "ptq+finetune": "PTQ + finetune", "qat": "QAT"}


@final
class MultilayerPerceptron(Study, name="mlp"):
    """What the first network that everybody quantizes loses, and to what."""

    title = "A multilayer perceptron in 8, 4, 3 and 2 bits"
    text = (
        "Layers of 256, 128 and 10 units with ReLU, weights and activations quantized in every "
        "layer, the first and the last too. First as tutorials do it: one scale a tensor, the "
        "nearest code, ranges of activations from nothing, from noise, from images. Then with a "
        "scale for each output channel, rounding and biases found layer by layer: after training "
        "(PTQ), finetuned after the float network without labels, and trained with labels (QAT), "
        "scales learned. Look at what a missing calibration costs at 8 bits, and at which width "
        "training begins to pay."
    )
    figures = ("accuracy", "difference")
    dataset = "fashion-mnist"

    def measure(self, options: Options) -> StudyResult:
        dataset, skipped = self._data(options)
        subject = trained_subject(dataset, options)
        found = list(outcomes(subject, options))
        figures = [
            Figure(
                "accuracy",
                "Accuracy by bit width",
                "Weights and activations of that many bits. Line: float32. Whiskers: 95 % "
                "intervals.",
                lambda canvas: draw_accuracies(canvas, found),
                size=(7.4, 3.4),
            ),
            Figure(
                "difference",
                "Difference to float, in points",
                "Paired on the same test images, with 95 % intervals: one that holds 0 shows no "
                "difference. What is further off than the axis reaches is left out.",
                lambda canvas: draw_differences(canvas, found),
                size=(7.4, 2.9),
            ),
        ]
        tables = [_tutorial_table(found), _learned_table(subject, found)]
        records = [_record(subject, o, found[0]) for o in found]
        return StudyResult(tables, figures, records, findings(found), skipped)

    def _data(self, options: Options) -> tuple[Dataset, list[str]]:
        """Return the data; digits where the study's own is absent, and then the reason."""
        name = str(options.dataset)
        dataset = load_dataset(name)
        try:
            dataset.split("train")
        except DataError as error:
            if name != self.dataset:
                raise
            return load_dataset(_ELSE), [f"{name}: {error}; everything here is of {_ELSE}"]
        return dataset, []


def _cells(o: Outcome) -> list[str]:
    low, high = o.evaluation.interval or (0.0, 0.0)
    cells = [f"{o.evaluation.accuracy:.2f}", f"{low:.2f} to {high:.2f}"]
    if o.against is None:
        return [*cells, "–", "–"]
    d = o.against
    return [*cells, f"{d.delta:+.2f}", f"{d.low:+.2f} to {d.high:+.2f}"]


_COLUMNS = (">accuracy, %", ">95 % interval", ">less float", ">95 % interval, paired")


def _tutorial_table(found: Sequence[Outcome]) -> Table:
    rows = [
        [str(o.bits), _SEEN[str(o.calibrator)], *_cells(o)]
        for bits in BITS
        for o in found
        if o.granularity == "per-tensor" and o.bits == bits
    ]
    rows.insert(0, ["32", "float", *_cells(found[0])])
    columns = [">bits", "ranges of activations from", *_COLUMNS]
    note = "Nearest codes, sums in float: a simulation. Weights: the largest sets the scale."
    return Table("One scale a tensor, after training", columns, rows, note)


def _learned_table(subject: Subject, found: Sequence[Outcome]) -> Table:
    rows = [
        [str(o.bits), _METHODS[o.method], *_cells(o)]
        for o in found
        if o.granularity == "per-channel"
    ]
    rows.insert(0, ["32", "float", *_cells(found[0])])
    effort, train = subject.effort, subject.train
    used = effort.samples or train.n
    note = (
        f"{found[0].evaluation.n:,} test images. {train.provenance}. PTQ: {effort.calibration:,} "
        f"training images; finetune: {effort.finetune} epoch{'s' * (effort.finetune > 1)} of "
        f"{used:,} images without labels; QAT: {effort.qat} epochs with labels. Computed in "
        "integers, as ONNX Runtime does."
    )
    return Table("One scale an output channel", [">bits", "method", *_COLUMNS], rows, note)


def _record(subject: Subject, o: Outcome, plain: Outcome) -> Record:
    against: dict[str, Any] = {}
    if o.against is not None:
        d = o.against
        against = {"delta": d.delta, "delta_low": d.low, "delta_high": d.high}
        against["reference"] = plain.evaluation.accuracy
    return Record(
        model="mlp", dataset=subject.test.dataset, split=subject.test.name,
        data_sha256=subject.test.sha256, method=o.method, weight_bits=o.bits,
        activation_bits=o.bits, granularity=o.granularity, calibrator=o.calibrator,
        metric="accuracy", value=o.evaluation.accuracy, n=o.evaluation.n, **against,
    )  # fmt: skip

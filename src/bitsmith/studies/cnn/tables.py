"""The tables: weights, accuracies, layers of the file, and what the file is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from bitsmith.insight.exhibits import Table
from bitsmith.numbers.encoding import Encoding
from bitsmith.studies.cnn.networks import Against, Judged, Subject
from bitsmith.studies.cnn.observers import Carried
from bitsmith.studies.cnn.static import RECIPE, Static
from bitsmith.studies.cnn.weights import Simulated

__all__ = ["accuracy_table", "layer_table", "observer_table", "weight_table"]

_COLUMNS = (">accuracy, %", ">less float", ">95 % interval, paired", ">loss, nats", ">less float")


def weight_table(weights: Sequence[Simulated]) -> Table:
    """Return scale, zero point and error of every weight."""
    rows = [
        [
            str(s.bits),
            s.form,
            e.layer,
            f"{e.n:,}",
            f"{e.scale:.6f}",
            str(e.zero_point),
            f"{e.mae:.3g}",
            f"{100 * e.relative:.2f} %",
        ]
        for s in weights
        for e in s.errors
    ]
    columns = [">bits", "range", "layer", ">weights", ">scale", ">zero point", ">mean |error|"]
    return Table(
        "Weights rounded, one scale a tensor",
        [*columns, ">of the mean |weight|"],
        rows,
        "Symmetric: the largest weight sets the scale; narrow at 8 bits (−127 to 127). Asymmetric: "
        "from the smallest weight to the largest.",
    )


def accuracy_table(
    plain: Judged, weights: Sequence[Simulated], integers: Static, gap: Against
) -> Table:
    """Return accuracy and loss of every network, and their differences to float."""
    rows = [["float32", f"{plain.evaluation.accuracy:.2f}", "–", "–", f"{plain.loss:.5f}", "–"]]
    rows += [[f"weights {s.bits} bits, {s.form}", *_cells(s.judged, s.against)] for s in weights]
    rows.append(["all in int8, ONNX Runtime", *_cells(integers.runtime, gap)])
    return Table(
        f"Accuracy and loss on {plain.evaluation.n:,} test images", ["network", *_COLUMNS], rows
    )


def _cells(judged: Judged, gap: Against) -> list[str]:
    d = gap.accuracy
    return [
        f"{judged.evaluation.accuracy:.2f}",
        f"{d.delta:+.2f}",
        f"{d.low:+.2f} to {d.high:+.2f}",
        f"{judged.loss:.5f}",
        f"{gap.loss[0]:+.5f} [{gap.loss[1]:+.5f}, {gap.loss[2]:+.5f}]",
    ]


def layer_table(subject: Subject, integers: Static) -> Table:
    """Return what every layer of the file calculates with."""
    rows = []
    for layer in integers.layers:
        low, high = layer.weight
        rows.append(
            [
                layer.name,
                layer.op,
                layer.kernel,
                _encoding(layer.input),
                f"int8, {low:.5f} to {high:.5f}",
                "int32",
                "float32" if layer.output is None else _encoding(layer.output),
            ]
        )
    columns = ["layer", "operator", "kernel", "input", "weight", "bias", "output"]
    return Table(
        "Types and scales of every layer in the file",
        columns,
        rows,
        f"Codes: type, scale, zero point. Weights: smallest and largest scale, one an output "
        f"channel. {RECIPE}, calibrated on {subject.calibration:,} training images; pool and "
        "flatten move codes and keep their scale.",
    )


def _encoding(e: Encoding) -> str:
    return f"{e.format.name}, {e.scale:.5f}, {e.zero_point}"


def observer_table(subject: Subject, plain: Judged, integers: Static, own: Carried) -> Table:
    """Return the file against the clean float network and against those that are not."""
    file = integers.runtime
    looked = (
        ("the clean float network", plain),
        ("float, values still rounded", own.rounding),
        ("the same, observers still on", own.observing),
        ("file made after that", own.file),
    )
    rows = []
    for name, base in looked:
        gap = subject.against(file, base)
        rows.append(
            [
                name,
                f"{base.evaluation.accuracy:.2f}",
                f"{base.loss:.5f}",
                str(gap.accuracy.changed),
                f"{gap.logits:.3g}",
                f"{gap.loss[0]:+.5f} [{gap.loss[1]:+.5f}, {gap.loss[2]:+.5f}]",
            ]
        )
    columns = ["compared with", ">accuracy, %", ">loss, nats", ">predictions that differ"]
    return Table(
        "The same int8 file against four networks",
        [*columns, ">largest difference of a logit", ">loss of the file less this one's"],
        rows,
        "Only the first row is a loss of accuracy. Observers: moving averages of the extremes of "
        "each batch, as quantization-aware training has them.",
    )

"""The two-convolution network of MNIST: weights rounded, then all of it in integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from bitsmith.data.stand_in import load_or_stand_in
from bitsmith.insight.exhibits import Figure
from bitsmith.insight.measure import Record
from bitsmith.studies import Options, Study, StudyResult
from bitsmith.studies.cnn.findings import findings
from bitsmith.studies.cnn.networks import Against, Judged, Subject, trained_subject
from bitsmith.studies.cnn.observers import Carried, carried
from bitsmith.studies.cnn.pictures import (
    draw_accuracies,
    draw_codes,
    draw_observers,
    draw_weights,
)
from bitsmith.studies.cnn.static import RECIPE, Static, static
from bitsmith.studies.cnn.tables import (
    accuracy_table,
    layer_table,
    observer_table,
    weight_table,
)
from bitsmith.studies.cnn.weights import Simulated, simulations

__all__ = ["ConvolutionalNetwork"]


@final
class ConvolutionalNetwork(Study, name="cnn"):
    """From rounded weights to a file in integers, each step against the clean float network."""

    title = "A convolutional network from float to a file in int8"
    text = (
        "Convolutions of 32 and 64 channels, a pool, layers of 128 and 10 units: the network of "
        "many first tutorials. First its weights alone are rounded, with one scale a tensor, "
        "symmetric and asymmetric, and calculate in float. Then all of it goes into integers: "
        "ranges of activations from training images, each convolution fused with its ReLU, "
        "exported, and run by ONNX Runtime. At last the mistake that makes such results look "
        "better than they are: the file is compared with a float network from which the "
        "observers and the rounding were not removed."
    )
    figures = ("weights", "accuracy", "codes", "observers")
    dataset = "mnist"

    def measure(self, options: Options) -> StudyResult:
        dataset, skipped = load_or_stand_in(str(options.dataset), self.dataset)
        subject = trained_subject(dataset, options)
        with options.stage("float, weights, integers, observers", 4) as advance:
            plain = subject.judge("float32", subject.module)
            advance(1)
            weights = list(simulations(subject, plain))
            advance(1)
            integers = static(subject)
            advance(1)
            own = carried(subject, integers)
            advance(1)
        gap = subject.against(integers.runtime, plain)
        tables = [
            weight_table(weights),
            accuracy_table(plain, weights, integers, gap),
            layer_table(subject, integers),
            observer_table(subject, plain, integers, own),
        ]
        figures = _figures(plain, weights, integers, own, gap)
        records = _records(subject, plain, weights, integers, own)
        said = findings(subject, plain, weights, integers, own)
        return StudyResult(tables, figures, records, said, skipped)


def _figures(
    plain: Judged, weights: Sequence[Simulated], integers: Static, own: Carried, gap: Against
) -> list[Figure]:
    return [
        Figure(
            "weights",
            "Mean absolute error of each layer's weight",
            "One scale a tensor, nearest codes; each panel has its own axis.",
            lambda canvas: draw_weights(canvas, weights),
            size=(7.4, 2.2),
        ),
        Figure(
            "accuracy",
            "Accuracy, and its difference to float",
            "Whiskers: 95 % intervals, on the right those of the paired difference: one that holds "
            "0 shows no difference. Triangles point to what is further off.",
            lambda canvas: draw_accuracies(canvas, plain, weights, integers, gap),
            size=(7.4, 2.9),
        ),
        Figure(
            "codes",
            "What the layers hand on: uint8 codes",
            "How often each code occurs, on a logarithmic axis; orange: the code of 0, where ReLU "
            "puts everything below.",
            lambda canvas: draw_codes(canvas, integers.codes),
            size=(7.4, 2.1),
        ),
        Figure(
            "observers",
            "The file against a clean float network, and against one that still rounds",
            "Left: differences of all logits; against the network that still rounds there are "
            "none, because both sides carry the same error. Right: what observers that are still "
            "on do to the ranges while the test images pass.",
            lambda canvas: draw_observers(canvas, plain, integers, own),
            size=(7.4, 2.9),
        ),
    ]


def _records(
    subject: Subject,
    plain: Judged,
    weights: Sequence[Simulated],
    integers: Static,
    own: Carried,
) -> list[Record]:
    base = {
        "model": "mnist-cnn", "dataset": subject.test.dataset, "split": subject.test.name,
        "data_sha256": subject.test.sha256,
    }  # fmt: skip
    clean = {"method": "float", "weight_bits": 32, "activation_bits": 32, **base}
    records = _judged(subject, plain, None, clean)
    for s in weights:
        keys: dict[str, Any] = {
            "method": "ptq", "weight_bits": s.bits, "activation_bits": 32,
            "granularity": "per-tensor", "recipe": f"int{s.bits} {s.form}", "algorithm": "nearest",
        }  # fmt: skip
        records += _judged(subject, s.judged, plain, {**base, **keys})
        records += [
            Record(model="mnist-cnn", layer=e.layer, **keys, metric="mae", value=e.mae, n=e.n)
            for e in s.errors
        ]
    whole = {
        "method": "ptq", "weight_bits": 8, "activation_bits": 8, "granularity": "per-channel",
        "recipe": RECIPE, "target": "onnxruntime",
        "calibrator": integers.quantized.provenance["calibrator"], **base,
    }  # fmt: skip
    for judged in (integers.simulated, integers.runtime):
        own_keys = {**whole, "runtime": judged.evaluation.runtime}
        size = integers.bytes if judged is integers.runtime else None
        records += _judged(subject, judged, plain, own_keys, size)
    return [*records, *_checks(integers, own, whole)]


def _judged(
    subject: Subject,
    judged: Judged,
    plain: Judged | None,
    keys: dict[str, Any],
    size: int | None = None,
) -> list[Record]:
    """Return accuracy and loss, against float unless it is the float network."""
    e = judged.evaluation
    against: list[dict[str, Any]] = [{}, {}]
    if plain is not None:
        gap = subject.against(judged, plain)
        ends = (
            (plain.evaluation.accuracy, gap.accuracy.delta, gap.accuracy.low, gap.accuracy.high),
            (plain.loss, *gap.loss),
        )
        names = ("reference", "delta", "delta_low", "delta_high")
        against = [dict(zip(names, own, strict=True)) for own in ends]
    return [
        Record(**keys, metric="accuracy", value=e.accuracy, n=e.n, bytes=size, **against[0]),
        Record(**keys, metric="loss", value=judged.loss, n=e.n, **against[1]),
    ]


def _checks(integers: Static, own: Carried, keys: dict[str, Any]) -> list[Record]:
    """Return what was counted: the file against each of the others."""
    file = integers.runtime.evaluation
    records = [
        Record(
            **keys, runtime="onnxruntime", reason=f"against {name}", metric="changed_predictions",
            value=float((file.predictions != other.evaluation.predictions).sum()), n=file.n,
        )
        for name, other in (
            ("the simulation", integers.simulated),
            ("float, values still rounded", own.rounding),
            ("float, observers still on", own.observing),
            ("the file made after observing", own.file),
        )
    ]  # fmt: skip
    v = integers.verification
    records.append(
        Record(
            **keys, runtime="onnxruntime", metric="executed_integer",
            value=float(v.executed_integer or 0), reference=float(v.planned_integer), n=v.samples,
        )
    )  # fmt: skip
    return records

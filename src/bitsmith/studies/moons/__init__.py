"""Two half moons: the decision boundary of a small network, bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from bitsmith.data import load_dataset
from bitsmith.insight.evaluation import difference
from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.measure import Record
from bitsmith.studies import Options, Study, StudyResult
from bitsmith.studies.moons.networks import BITS, FORMS, HIDDEN, Field, Outcome, outcomes
from bitsmith.studies.moons.pictures import draw_boundaries

__all__ = ["HalfMoons"]

_DATA = "moons"
_KEYS: dict[str, dict[str, Any]] = {
    "float": {"method": "float"},
    "PTQ, nearest": {"method": "ptq", "granularity": "per-tensor", "algorithm": "nearest"},
    "PTQ, by layer": {"method": "ptq", "granularity": "per-channel", "algorithm": "sequential"},
    "QAT": {"method": "qat", "granularity": "per-channel"},
}


@final
class HalfMoons(Study, name="moons"):
    """Decision boundaries that one can look at."""

    title = "Two half moons: what few bits make of a decision boundary"
    text = (
        f"A network with layers of {HIDDEN[0]} and {HIDDEN[1]} units tells two interleaved half "
        "moons apart (scikit-learn's make_moons, 1,000 points, noise 0.25, seed 42; 700 to train, "
        "300 to test). Weights and activations of every layer are quantized, the two coordinates "
        "too: 2 bits leave each coordinate four values, so that the plane falls into at most 16 "
        "cells. Quantized after training as tutorials do it (one scale a tensor, nearest codes); "
        "with codes and biases found layer by layer, one scale an output channel; and trained so "
        "(QAT), the bits lowered step by step to the last."
    )
    figures = ("boundaries",)

    def measure(self, options: Options) -> StudyResult:
        data = load_dataset(_DATA)
        train, test = data.split("train"), data.split("test")
        field = Field.around(train, 80 if options.quick else 240)
        found = list(outcomes(train, test, field, options))
        figure = Figure(
            "boundaries",
            "Decision boundaries: float, PTQ and QAT",
            "Background: the class that the network gives; points: the test points in the colour "
            "of their own class. Numbers: accuracy on them.",
            lambda canvas: draw_boundaries(canvas, field, test, found),
            size=(7.4, 5.2),
        )
        records = [
            Record(
                model="mlp 2-16-16-2", dataset=_DATA, split="test", data_sha256=test.sha256,
                **_KEYS[o.form], weight_bits=o.bits, activation_bits=o.bits, metric="accuracy",
                value=o.evaluation.accuracy, n=o.evaluation.n, **_against(o, found[0]),
            )
            for o in found
        ]  # fmt: skip
        return StudyResult([_table(found)], [figure], records, _findings(found))


def _against(o: Outcome, plain: Outcome) -> dict[str, Any]:
    if (d := o.against) is None:
        return {}
    reference = plain.evaluation.accuracy
    return {"delta": d.delta, "delta_low": d.low, "delta_high": d.high, "reference": reference}


def _table(found: Sequence[Outcome]) -> Table:
    rows = []
    for o in found:
        low, high = o.evaluation.interval or (0.0, 0.0)
        d = o.against
        rows.append(
            [
                str(o.bits),
                o.form,
                f"{o.evaluation.accuracy:.2f}",
                f"{low:.2f} to {high:.2f}",
                "–" if d is None else f"{d.delta:+.2f}",
                "–" if d is None else f"{d.low:+.2f} to {d.high:+.2f}",
            ]
        )
    columns = [">bits", "method", ">accuracy, %", ">95 % interval", ">less float"]
    return Table(
        f"Accuracy on {found[0].evaluation.n} test points", [*columns, ">95 % interval, paired"],
        rows,
        "Ranges of activations from the training points. PTQ, nearest: a simulation in float; the "
        "others are computed in integers, as ONNX Runtime does.",
    )  # fmt: skip


def _findings(found: Sequence[Outcome]) -> list[str]:
    plain = found[0].evaluation
    low, high = plain.interval or (0.0, 0.0)
    least = BITS[-1]
    own = ", ".join(f"{o.form} {o.evaluation.accuracy:.2f} %" for o in found[1:] if o.bits == least)
    sentences = [
        f"Right on {plain.n} test points: float {plain.accuracy:.2f} % [{low:.2f}, {high:.2f}], "
        f"for the noise lets the moons overlap; in {least} bits {own}."
    ]
    for bits in BITS:
        near, layered, qat = (
            next(o for o in found if (o.form, o.bits) == (f, bits)) for f in FORMS
        )
        accuracies = ", ".join(
            f"{o.form} {o.evaluation.accuracy:.2f} %" for o in (near, layered, qat)
        )
        sentences.append(
            f"At {bits} bits: {accuracies}. {_order(qat, near)}; {_order(qat, layered)}."
        )
    return sentences


def _order(one: Outcome, other: Outcome) -> str:
    d = difference(one.evaluation, other.evaluation)
    if d.delta is None or d.low is None or d.high is None:
        return "unknown"
    verdict = (
        "not distinguishable from" if d.low <= 0 <= d.high else "above" if d.low > 0 else "below"
    )
    points = f"{d.delta:+.2f} [{d.low:+.2f}, {d.high:+.2f}] points"
    return f"{one.form} is {verdict} {other.form} ({points})"

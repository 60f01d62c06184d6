"""What the numbers of a run show, in sentences; orders only where an interval supports them."""

from __future__ import annotations

from collections.abc import Sequence

from bitsmith.insight.evaluation import Difference
from bitsmith.studies.cnn.networks import Against, Judged, Subject
from bitsmith.studies.cnn.observers import Carried
from bitsmith.studies.cnn.static import RECIPE, Static
from bitsmith.studies.cnn.weights import BITS, FORMS, Simulated

__all__ = ["findings"]


def findings(
    subject: Subject, plain: Judged, weights: Sequence[Simulated], integers: Static, own: Carried
) -> list[str]:
    """Return sentences on every part of a run."""
    return [
        _float(plain),
        *(_weights(subject, weights, bits) for bits in BITS),
        _static(subject, plain, integers),
        _executed(integers),
        _rounding(subject, plain, integers, own),
        _observing(integers, own),
    ]


def _float(plain: Judged) -> str:
    e = plain.evaluation
    low, high = e.interval or (0.0, 0.0)
    return (
        f"The float network is right on {e.accuracy:.2f} % [{low:.2f}, {high:.2f}] of {e.n:,} test "
        f"images, with a loss of {plain.loss:.4f} nats."
    )


def _weights(subject: Subject, weights: Sequence[Simulated], bits: int) -> str:
    one, other = (next(s for s in weights if (s.form, s.bits) == (f, bits)) for f in FORMS)
    better = sum(b.mae < a.mae for a, b in zip(one.errors, other.errors, strict=True))
    d = subject.against(other.judged, one.judged).accuracy
    return (
        f"Weights alone in {bits} bits, one scale a tensor: against float {_said(one.against)} "
        f"symmetric, {_said(other.against)} asymmetric. Asymmetric has the lower mean absolute "
        f"error in {better} of {len(one.errors)} layers; asymmetric less symmetric is "
        f"{_points(d)}."
    )


def _static(subject: Subject, plain: Judged, integers: Static) -> str:
    gap = subject.against(integers.runtime, plain)
    loss = gap.loss
    same = " (not distinguishable)" if loss[1] <= 0 <= loss[2] else ""
    return (
        f"Weights and activations in int8 ({RECIPE}, {subject.calibration:,} calibration images), "
        f"run by ONNX Runtime: {integers.runtime.evaluation.accuracy:.2f} %, against float "
        f"{_points(gap.accuracy)}; loss {integers.runtime.loss:.4f}, {loss[0]:+.5f} "
        f"[{loss[1]:+.5f}, {loss[2]:+.5f}] nats{same}. Of {gap.accuracy.n:,} predictions "
        f"{gap.accuracy.changed} differ. The file has {integers.bytes:,} bytes, the float "
        f"parameters have {integers.float_bytes:,}."
    )


def _executed(integers: Static) -> str:
    v = integers.verification
    e, simulated = integers.runtime.evaluation, integers.simulated.evaluation
    changed = int((e.predictions != simulated.predictions).sum())
    unequal = int((integers.runtime.logits != integers.simulated.logits).any(1).sum())
    verdict = "holds" if v.passed else f"does not hold ({'; '.join(v.failures)})"
    return (
        f"The file is what the simulation says: {changed} of {e.n:,} predictions differ, and the "
        f"logits of {unequal:,} images. Tensor by tensor on {v.samples} images the verification "
        f"{verdict}; {v.executed_integer} of {v.planned_integer} planned operators ran in integers."
        if changed == 0 and v.passed
        else f"The file is not what the simulation says: {changed} of {e.n:,} predictions differ, "
        f"and the logits of {unequal:,} images; the verification {verdict}."
    )


def _rounding(subject: Subject, plain: Judged, integers: Static, own: Carried) -> str:
    clean, kept = (subject.against(integers.runtime, base) for base in (plain, own.rounding))
    moved = subject.against(own.rounding, plain)
    verdict = (
        "measures nothing: both sides carry the same error"
        if kept.logits == 0
        else "misses what both sides have in common"
    )
    return (
        f"A float network that still carries the rounding is no float network: its predictions "
        f"differ from the clean one's on {_images(moved)}, its logits by up to {moved.logits:.3g}. "
        f"Against it the file differs on {_images(kept)}, and by at most {kept.logits:.2g} in a "
        f"logit; against the clean one on {_images(clean)}, and by up to {clean.logits:.3g}. The "
        f"first comparison {verdict}; what is lost shows only against the network before anything "
        "was inserted."
    )


def _observing(integers: Static, own: Carried) -> str:
    most = max(own.ranges, key=lambda r: abs(r.change))
    ranges = sum(r.before != r.after for r in own.ranges)
    one, file = own.observing, own.file.evaluation
    moved = int((one.logits != own.rounding.logits).any(1).sum())
    files = int((own.file.logits != integers.runtime.logits).any(1).sum())
    changed = int((file.predictions != integers.runtime.evaluation.predictions).sum())
    return (
        f"Observers that are still on go on learning while they are measured: the test images "
        f"move {ranges} of {len(own.ranges)} ranges, most {most.name} ({most.change:+.1f} % in "
        f"length). The same network then gives other logits on {moved:,} of {file.n:,} images, "
        f"and they depend on the order of the batches; the file made of it afterwards differs "
        f"from the one made before on {files:,} (in the prediction on {changed}): test images "
        "have calibrated it."
    )


def _said(against: Against) -> str:
    return _points(against.accuracy)


def _images(against: Against) -> str:
    n = against.accuracy.changed
    return f"{n:,} image{'s' * (n != 1)}"


def _points(d: Difference) -> str:
    if d.delta is None or d.low is None or d.high is None:
        return "unknown"
    mark = " (not distinguishable)" if d.low <= 0 <= d.high else ""
    return f"{d.delta:+.2f} [{d.low:+.2f}, {d.high:+.2f}] points{mark}"

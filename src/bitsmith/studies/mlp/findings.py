"""What the numbers of a run show, in sentences; orders only where an interval supports them."""

from __future__ import annotations

from collections.abc import Sequence

from bitsmith.insight.evaluation import Difference, difference
from bitsmith.studies.mlp.networks import BITS, Outcome

__all__ = ["findings"]


def findings(found: Sequence[Outcome]) -> list[str]:
    """Return sentences on the outcomes, the float network first."""
    return [_headline(found), _calibration(found), *(_width(found, bits) for bits in BITS)]


def _headline(found: Sequence[Outcome]) -> str:
    plain = found[0].evaluation
    low, high = plain.interval or (0.0, 0.0)
    own = {(o.method, o.bits): o for o in found if o.granularity == "per-channel"}
    trained, rounded = (
        ", ".join(f"{own[method, bits].evaluation.accuracy:.2f}" for bits in BITS)
        for method in ("qat", "ptq")
    )
    widths = ", ".join(map(str, BITS))
    return (
        f"Right on {plain.n:,} test images: float {plain.accuracy:.2f} % [{low:.2f}, {high:.2f}]; "
        f"in {widths} bits, one scale an output channel, QAT {trained} %, PTQ {rounded} %."
    )


def _calibration(found: Sequence[Outcome]) -> str:
    own = {o.calibrator: o.against for o in found if (o.granularity, o.bits) == ("per-tensor", 8)}
    lost = _below(own["none"]) and _below(own["noise"]) and not _below(own["minmax"])
    return (
        "One scale a tensor at 8 bits, against float: ranges that have seen no data "
        f"{_said(own['none'])}, from noise {_said(own['noise'])}, from images "
        f"{_said(own['minmax'])}."
        + lost
        * " The bits are the same: what is lost is the calibration's."
    )


def _width(found: Sequence[Outcome], bits: int) -> str:
    own = {o.method: o for o in found if (o.granularity, o.bits) == ("per-channel", bits)}
    ptq, tuned, qat = own["ptq"], own["ptq+finetune"], own["qat"]
    return (
        f"At {bits} bits, one scale an output channel, against float: PTQ {_said(ptq.against)}, "
        f"PTQ + finetune {_said(tuned.against)}, QAT {_said(qat.against)}. "
        f"{_order('Finetuning', tuned, ptq, 'PTQ')}; {_order('QAT', qat, ptq, 'PTQ')}; "
        f"{_order('QAT', qat, tuned, 'finetuning')}."
    )


def _order(name: str, one: Outcome, other: Outcome, base: str) -> str:
    d = difference(one.evaluation, other.evaluation)
    if _below(d):
        return f"{name} is below {base} by {_points(d, -1)}"
    if d.low is not None and d.low > 0:
        return f"{name} is above {base} by {_points(d, 1)}"
    return f"{name} and {base} are not distinguishable ({_points(d, 1)})"


def _points(d: Difference, sign: int) -> str:
    ends = sorted((sign * (d.low or 0.0), sign * (d.high or 0.0)))
    return f"{sign * (d.delta or 0.0):.2f} [{ends[0]:.2f}, {ends[1]:.2f}] points"


def _below(d: Difference | None) -> bool:
    return d is not None and d.high is not None and d.high < 0


def _said(d: Difference | None) -> str:
    if d is None or d.delta is None or d.low is None or d.high is None:
        return "unknown"
    mark = " (not distinguishable)" if d.low <= 0 <= d.high else ""
    return f"{d.delta:+.2f} [{d.low:+.2f}, {d.high:+.2f}] points{mark}"

"""What the numbers of a run show, in sentences; orders only where an interval supports them."""

from __future__ import annotations

from collections.abc import Sequence

from bitsmith.insight.evaluation import Difference, Evaluation, difference
from bitsmith.studies.mixing.outcomes import BITS, COMBINATIONS, Outcome

__all__ = ["findings"]


def findings(plain: Evaluation, found: Sequence[Outcome]) -> list[str]:
    """Return sentences on the outcomes of every width."""
    low, high = plain.interval or (0.0, 0.0)
    sentences = [
        f"The float network is right on {plain.accuracy:.2f} % [{low:.2f}, {high:.2f}] of "
        f"{plain.n:,} test images."
    ]
    for bits in BITS:
        own = {(o.inputs, o.weights): o for o in found if o.bits == bits}
        listed = ", ".join(
            f"{inputs}/{weights} {_said(own[inputs, weights].against)}"
            for inputs, weights in COMBINATIONS
        )
        sentences.append(f"At {bits} bits, inputs/weights, against float: {listed}.")
        sentences.append(
            f"At {bits} bits asymmetric inputs are {_effect(own, 'inputs')}; asymmetric weights "
            f"are {_effect(own, 'weights')}."
        )
    costs = next(o.cost for o in found if o.weights == "asymmetric")
    worst = max(t.difference for o in found for t in o.terms)
    sentences.append(
        f"Asymmetric weights take {costs.run_time:,} more operations an image while the network "
        f"runs, {costs.share:.2f} % of {costs.macs:,} products; asymmetric inputs take none, "
        "because their terms do not depend on the image."
    )
    sentences.append(
        f"Added up in whole numbers the terms differ from Σ (qx − zx)(qw − zw) by {worst:g} at "
        "most."
    )
    return sentences


def _effect(own: dict[tuple[str, str], Outcome], which: str) -> str:
    """Say what making one of the two asymmetric changes, with either scheme of the other."""
    parts = []
    for other in ("symmetric", "asymmetric"):
        pair = [
            (s, other) if which == "inputs" else (other, s) for s in ("asymmetric", "symmetric")
        ]
        d = difference(own[pair[0]].evaluation, own[pair[1]].evaluation)
        beside = "weights" if which == "inputs" else "inputs"
        parts.append(f"{_verdict(d)} with {other} {beside} ({_points(d)})")
    return " and ".join(parts)


def _verdict(d: Difference) -> str:
    low, high = d.low or 0.0, d.high or 0.0
    return "better" if low > 0 else "worse" if high < 0 else "not distinguishable"


def _points(d: Difference) -> str:
    return f"{d.delta:+.2f} [{d.low:+.2f}, {d.high:+.2f}] points"


def _said(d: Difference) -> str:
    mark = "" if _verdict(d) != "not distinguishable" else ", not distinguishable"
    return f"{_points(d)}{mark}"

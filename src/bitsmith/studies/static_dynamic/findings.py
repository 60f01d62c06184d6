"""What the numbers of a run show, in sentences; orders only where an interval supports them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from bitsmith.insight.evaluation import Difference, difference
from bitsmith.insight.measure import paired_difference, wilson_interval
from bitsmith.studies.static_dynamic.drift import Drift
from bitsmith.studies.static_dynamic.networks import BITS, FORMS, Outcome

__all__ = ["Runs", "findings"]

Key = tuple[Drift, str, int]


@final
class Runs:
    """The outcomes of a run by drift, form and width."""

    def __init__(self, found: Sequence[Outcome]) -> None:
        self._by: dict[Key, Outcome] = {(o.drift, o.form, o.bits): o for o in found}
        self.drifts = list(dict.fromkeys(o.drift for o in found))

    def of(self, drift: Drift, form: str, bits: int) -> Outcome:
        """Return one outcome."""
        return self._by[drift, form, bits]

    def kind(self, kind: str) -> list[Drift]:
        """Return the drifts of a kind, in order."""
        return [d for d in self.drifts if d.kind == kind]

    @property
    def kinds(self) -> list[str]:
        """What drifts, in order."""
        return list(dict.fromkeys(d.kind for d in self.drifts))

    def gain(self, drift: Drift, bits: int, form: str = FORMS[1]) -> Difference:
        """Return the accuracy of a form less that of the static network, paired."""
        one, base = self.of(drift, form, bits), self.of(drift, FORMS[0], bits)
        return difference(one.evaluation, base.evaluation)

    def unlike(self, drift: Drift, form: str, bits: int) -> tuple[float, float, float]:
        """Return on how many images a form predicts another class than float does.

        ``(share, low, high)`` in per cent, with the 95 % interval (Wilson).
        """
        against = self.of(drift, form, bits).against
        assert against is not None
        share = 100 * against.changed / against.n
        return share, *wilson_interval(against.changed, against.n)

    def nearer(self, drift: Drift, bits: int) -> tuple[float, float, float]:
        """Return on how many more images dynamic predicts as float than static does, in points."""
        plain = self.of(drift, "float", 32).evaluation.predictions
        one, base = (
            self.of(drift, form, bits).evaluation.predictions == plain
            for form in (FORMS[1], FORMS[0])
        )
        return paired_difference(one, base)


def findings(found: Sequence[Outcome]) -> list[str]:
    """Return sentences on the outcomes."""
    runs = Runs(found)
    sentences = [_still(runs)]
    for kind in runs.kinds:
        sentences.append(_float(runs, kind))
        sentences += [_order(runs, kind, bits) + " " + _like(runs, kind, bits) for bits in BITS]
    sentences += [_anew(runs, kind) for kind in runs.kinds]
    return sentences


def _still(runs: Runs) -> str:
    still = next(d for d in runs.drifts if d.none)
    plain = runs.of(still, "float", 32).evaluation
    low, high = plain.interval or (0.0, 0.0)
    parts = [
        f"{form} at {bits} bits {_said(runs.of(still, form, bits).against)}"
        for bits in BITS
        for form in FORMS[:2]
    ]
    return (
        f"On images like those of the calibration set the float network is right on "
        f"{plain.accuracy:.2f} % [{low:.2f}, {high:.2f}] of {plain.n:,}; against it: "
        f"{', '.join(parts)}."
    )


def _float(runs: Runs, kind: str) -> str:
    own = runs.kind(kind)
    still = next(d for d in own if d.none)
    base = runs.of(still, "float", 32).evaluation
    ends = [d for d in (own[0], own[-1]) if not d.none]
    parts = [
        f"{_said(difference(runs.of(d, 'float', 32).evaluation, base))} at {d.label}" for d in ends
    ]
    return f"{kind.capitalize()} alone moves the float network by {', '.join(parts)}."


def _order(runs: Runs, kind: str, bits: int) -> str:
    gains = {d: runs.gain(d, bits) for d in runs.kind(kind)}
    above = [d for d, g in gains.items() if g.low is not None and g.low > 0]
    below = [d for d, g in gains.items() if g.high is not None and g.high < 0]
    parts = [
        f"{word} static at {_listed(own)}, most at {most.label}: {_said(gains[most])}"
        for word, own in (("above", above), ("below", below))
        if own
        for most in [max(own, key=lambda d: abs(gains[d].delta or 0.0))]
    ]
    rest = len(gains) - len(above) - len(below)
    parts += [f"not distinguishable at {'the other ' if parts else 'all '}{rest}"] if rest else []
    return f"{kind.capitalize()} at {bits} bits: dynamic is {'; '.join(parts)} of {len(gains)}."


def _like(runs: Runs, kind: str, bits: int) -> str:
    """Return what becomes of the predictions, which accuracy hides where float fails too."""
    nearer = {d: runs.nearer(d, bits) for d in runs.kind(kind)}
    more = [d for d, (_, low, _) in nearer.items() if low > 0]
    fewer = [d for d, (_, _, high) in nearer.items() if high < 0]
    parts = []
    for word, own in (("more", more), ("fewer", fewer)):
        if own:
            most = max(own, key=lambda d: abs(nearer[d][0]))
            mean, low, high = nearer[most]
            parts.append(
                f"on {word} images than static at {_listed(own)}, most at {most.label}: "
                f"{mean:+.2f} [{low:+.2f}, {high:+.2f}] points"
            )
    said = "; ".join(parts) or f"no more and no less often than static at all {len(nearer)}"
    return f"It predicts as float does {said}."


def _anew(runs: Runs, kind: str) -> str:
    worst, bits = max(
        ((d, b) for d in runs.kind(kind) for b in BITS if not d.none),
        key=lambda key: runs.gain(*key).delta or 0.0,
    )
    static = runs.of(worst, FORMS[0], bits)
    clipped = " / ".join(f"{100 * u.clipped:.1f}" for u in static.uses)
    spanned = " / ".join(f"{100 * u.spanned:.0f}" for u in static.uses)
    return (
        f"Where dynamic gains most over static ({kind} {worst.label}, {bits} bits: "
        f"{_said(runs.gain(worst, bits))}), {clipped} % of the inputs of layers 1 / 2 / 3 lie "
        f"beyond the static ranges and a sample spans {spanned} % of them; static ranges "
        f"calibrated anew on training images of that {kind} give "
        f"{_said(runs.gain(worst, bits, FORMS[2]))} over the old ones."
    )


def _listed(drifts: Sequence[Drift]) -> str:
    return ", ".join(d.label for d in drifts)


def _said(d: Difference | None) -> str:
    assert d is not None  # every form but float has one
    same = (d.low or 0.0) <= 0 <= (d.high or 0.0)
    mark = " (not distinguishable)" if same else ""
    return f"{d.delta:+.2f} [{d.low:+.2f}, {d.high:+.2f}] points{mark}"

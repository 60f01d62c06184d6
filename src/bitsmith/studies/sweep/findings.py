"""What the numbers of a sweep show, in sentences; orders only where an interval supports them."""

from __future__ import annotations

from collections.abc import Sequence

from bitsmith.studies.sweep.outcomes import Choice, Outcome, front

__all__ = ["findings"]


def findings(found: Sequence[Outcome], pairs: Sequence[Choice]) -> list[str]:
    """Return sentences on the outcomes and on single choices."""
    sentences = []
    for plain in [o for o in found if o.against is None]:
        own = [o for o in found if o.variant.model == plain.variant.model]
        sentences += _network(plain, own)
    return sentences + _choices(pairs)


def _network(plain: Outcome, own: Sequence[Outcome]) -> list[str]:
    low, high = plain.interval
    sentences = [
        f"{plain.variant.model} in float is right on {plain.accuracy:.2f} % [{low:.2f}, "
        f"{high:.2f}] of {plain.n:,} test samples and takes {plain.bytes / 1e3:,.0f} kB."
    ]
    rest = [o for o in own if o.against is not None]
    even = [o for o in rest if o.against is not None and o.against.sign >= 0]
    if even:
        least = min(even, key=lambda o: o.bytes)
        sentences.append(
            f"The smallest of {len(rest)} variants that is not distinguishable from float, or "
            f"better: {least.variant.label}, {least.bytes / 1e3:,.0f} kB "
            f"({plain.bytes / least.bytes:.1f} times smaller), {_said(least)}."
        )
    elif rest:
        sentences.append(f"All {len(rest)} variants are worse than float.")
    on_front = [o for o in front(own) if o.against is not None]
    if on_front:
        listed = "; ".join(
            f"{o.variant.name} {o.variant.method} {o.bytes / 1e3:,.0f} kB, {o.accuracy:.2f} %"
            for o in on_front
        )
        sentences.append(
            f"No other variant is both smaller and better, by the numbers as they are: {listed}."
        )
    return sentences


def _choices(pairs: Sequence[Choice]) -> list[str]:
    sentences = []
    for axis in dict.fromkeys(p.axis for p in pairs):
        own = [p for p in pairs if p.axis == axis]
        told = [p for p in own if p.difference.sign]
        most = max(told or own, key=lambda p: abs(p.difference.delta))
        first, second = (getattr(o.variant, axis) for o in (most.first, most.second))
        d = most.difference
        verdict = ("not distinguishable", "better", "worse")[d.sign]
        sentences.append(
            f"{axis.capitalize()}: {len(told)} of {len(own)} comparisons that change nothing else "
            f"show a difference; the largest{'' if told else ', which does not,'} is {second} "
            f"against {first} at {most.first.variant.name}: {d.delta:+.2f} [{d.low:+.2f}, "
            f"{d.high:+.2f}] points ({verdict})."
        )
    return sentences


def _said(o: Outcome) -> str:
    d = o.against
    return "" if d is None else f"{d.delta:+.2f} [{d.low:+.2f}, {d.high:+.2f}] points"

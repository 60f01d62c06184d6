"""What the numbers of a run show, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from bitsmith.studies.codebook.methods import BITS, Method, Outcome
from bitsmith.studies.codebook.pictures import Totals

__all__ = ["findings", "front", "gains"]

Way = tuple[Method, int]

#: Pairs at equal bits of an index: is the second nearer than the first?
_PAIRS = (
    (Method("int", "channel", "searched"), Method("codebook", "tensor", "k-means")),
    (Method("int", "channel", "searched"), Method("codebook", "channel", "k-means")),
    (Method("int", "group", "min–max"), Method("nf", "group", "min–max")),
    (Method("int", "group", "searched"), Method("nf", "group", "searched")),
)
#: Room for scales and tables above the bits of an index, when storage is what is equal.
_ROOM = 0.5
_TABLES = Method("codebook", "channel", "k-means")


def findings(
    totals: Mapping[str, Totals], outcomes: Mapping[str, Sequence[Outcome]]
) -> Iterator[str]:
    """Give sentences on all subjects; pairs are compared layer by layer, where there are several.

    Args:
        totals: of each subject, over its layers.
        outcomes: of each subject, every layer.
    """
    for name, sums in totals.items():
        yield f"{name}, nearest at equal bits of an index: {_nearest(sums, by_storage=False)}."
        yield f"{name}, nearest at equal storage: {_nearest(sums, by_storage=True)}."
    several = {n: found for n, found in outcomes.items() if len({o.layer for o in found}) > 1}
    if several:
        yield from (_pair(several, *pair) for pair in _PAIRS)
    yield _tables(totals)
    yield _huffman(totals)


def front(totals: Totals) -> set[Way]:
    """Return the ways for which no other is as small and as near."""
    kept: list[Way] = []
    for way in sorted(totals, key=lambda way: (totals[way].bytes, totals[way].error)):
        if not kept or totals[way].error < totals[kept[-1]].error:
            kept.append(way)
    return set(kept)


def gains(outcomes: Sequence[Outcome], first: Method, second: Method, bits: int) -> list[float]:
    """Return by how many dB the second is nearer than the first, layer by layer."""
    sqnr = {(o.method, o.layer): o.cost.sqnr for o in outcomes if o.bits == bits}
    return [sqnr[second, n] - sqnr[first, n] for method, n in sqnr if method == second]


def _nearest(totals: Totals, *, by_storage: bool) -> str:
    parts = []
    for bits in BITS:
        fitting = [
            way
            for way, cost in totals.items()
            if (cost.bits_per_weight <= bits + _ROOM if by_storage else way[1] == bits)
        ]
        method, index = min(fitting, key=lambda way: totals[way].error)
        cost = totals[method, index]
        limit = f"at most {bits + _ROOM:g}: " if by_storage else ""
        parts.append(
            f"{limit}{method.named(index)} ({100 * cost.relative:.1f} %, "
            f"{cost.bits_per_weight:.2f} bits per weight)"
        )
    return "; ".join(parts)


def _pair(outcomes: Mapping[str, Sequence[Outcome]], first: Method, second: Method) -> str:
    parts = []
    for name, found in outcomes.items():
        widths = {bits: g for bits in BITS if (g := gains(found, first, second, bits))}
        layers = max(map(len, widths.values()))
        won = ", ".join(
            f"{sum(v > 0 for v in g)} at {bits} bits (median {median(g):+.2f} dB)"
            for bits, g in widths.items()
        )
        parts.append(f"of {layers} layers of {name} in {won}")
    return f"“{second.name}” is nearer than “{first.name}”: {'; '.join(parts)}."


def _tables(totals: Mapping[str, Totals]) -> str:
    bits = BITS[-1]
    costs = {name: sums[_TABLES, bits] for name, sums in totals.items()}
    parts = [
        f"{cost.bits_per_weight:.2f} bits per weight in {name} "
        f"({100 * (1 - cost.index_bytes / cost.bytes):.0f} % of it tables)"
        for name, cost in costs.items()
    ]
    return f"Equal bits are not equal storage: {_TABLES.named(bits)} takes {', '.join(parts)}."


def _huffman(totals: Mapping[str, Totals]) -> str:
    methods = (
        Method("int", "channel", "min–max"),
        Method("int", "channel", "searched"),
        Method("codebook", "tensor", "k-means"),
    )
    bits = BITS[-1]
    parts = []
    for method in methods:
        costs = [sums[method, bits] for sums in totals.values()]
        saved = [100 * (1 - c.huffman / c.bytes) for c in costs]
        parts.append(f"{min(saved):.1f} to {max(saved):.1f} % of {method.named(bits)}")
    return f"Huffman coding saves, of the bytes of a model: {'; '.join(parts)}."

"""Affine integers against k-means against nf4, at equal bits, on real weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.measure import Record
from bitsmith.studies import Options, Study, StudyResult
from bitsmith.studies.codebook.findings import findings, front
from bitsmith.studies.codebook.methods import (
    BITS,
    Method,
    Outcome,
    outcomes,
    total,
)
from bitsmith.studies.codebook.pictures import LEVELS, Totals, draw_error, draw_levels
from bitsmith.studies.codebook.subjects import Subject, find_subjects

__all__ = ["Codebooks"]

#: Whose weights the figure of the levels shows, in this order of preference.
_SHOWN = ("layer3.0.conv1", "layer3.1.conv1", "layer3.2.conv1")
_ALGORITHMS = {"min–max": "nearest", "searched": "nearest", "k-means": "k-means"}


@final
class Codebooks(Study, name="codebook"):
    """What a learned table is worth, and what it costs."""

    title = "Integers, k-means and nf4 at equal bits on real weights"
    text = (
        "Every weight matrix is stored with 2, 3 and 4 bits of an index: as evenly spaced "
        "integers (one scale per tensor, output channel or group), as nf4, as powers of two and "
        "their sums, and as tables learned by exact k-means. Equal bits of an index are not equal "
        "storage: scales and tables are stored too, 16 bits each, and a table of 16 entries per "
        "channel is 16 times as much as a scale. So look at the error against all bits per weight."
    )
    figures = ("error", "levels")

    def measure(self, options: Options) -> StudyResult:
        subjects, skipped = find_subjects(options.seed, quick=options.quick)
        stored: dict[str, list[Outcome]] = {}
        for subject in subjects:
            with options.stage(f"weights of {subject.name}", len(subject.weights)) as advance:
                stored[subject.name] = []
                for layer, weight in subject.weights.items():
                    stored[subject.name] += outcomes(layer, weight, subject.group)
                    advance(1)
        sums = {name: _totals(found) for name, found in stored.items()}
        return StudyResult(
            [_table(subject, sums[subject.name]) for subject in subjects],
            [_error_figure(sums), _levels_figure(subjects[0])],
            [r for subject in subjects for r in _records(subject.name, sums[subject.name])],
            findings(sums, stored),
            skipped,
        )


def _totals(found: Iterable[Outcome]) -> Totals:
    by_way: dict[tuple[Method, int], list[Outcome]] = {}
    for o in found:
        by_way.setdefault((o.method, o.bits), []).append(o)
    return {way: total(o.cost for o in group) for way, group in by_way.items()}


def _table(subject: Subject, totals: Totals) -> Table:
    best = front(totals)
    rows = [
        [
            method.named(bits),
            f"{cost.bits_per_weight:.3f}",
            f"{cost.bytes:,}",
            f"{cost.huffman:,}",
            f"{cost.huffman_bits:.3f}",
            f"{100 * cost.relative:.2f} %",
            f"{cost.sqnr:.2f}",
            "•" if (method, bits) in best else "",
        ]
        for (method, bits), cost in totals.items()
    ]
    columns = ["stored as", ">bits per weight", ">bytes", ">Huffman bytes", ">Huffman bits"]
    some = next(iter(totals.values()))
    misfits = [n for n, w in subject.weights.items() if w.shape[1] % subject.group]
    note = f"Groups of {subject.group} input channels"
    note += f"; {', '.join(misfits)}: per channel, since no group divides it" if misfits else ""
    return Table(
        f"{subject.name}: {some.n:,} weights in {len(subject.weights)} "
        f"layer{'s' * (len(subject.weights) > 1)}",
        [*columns, ">relative error", ">SQNR, dB", "front"],
        rows,
        f"{note}. Everything that is needed to read the weights is counted; scales and tables are "
        "fp16. Relative error: ‖w − ŵ‖ / ‖w‖ over all layers. Front: no other way is as small and "
        "as near.",
    )


def _error_figure(sums: dict[str, Totals]) -> Figure:
    return Figure(
        "error",
        "Error against all that is stored",
        f"Each line: {', '.join(map(str, BITS))} bits of an index. Left and down is better. Before "
        "Huffman coding. Logarithmic error.",
        lambda canvas: draw_error(canvas, sums),
        size=(7.6, 3.4),
    )


def _levels_figure(subject: Subject) -> Figure:
    layer = next((n for n in _SHOWN if n in subject.weights), next(iter(subject.weights)))
    weight = subject.weights[layer]
    return Figure(
        "levels",
        "Where the levels lie",
        f"The weights of {layer} of {subject.name}, and the values that {BITS[-1]} bits give "
        "them with one scale or one table for the whole layer.",
        lambda canvas: draw_levels(canvas, weight, BITS[-1], LEVELS),
        size=(7.0, 3.2),
    )


def _records(name: str, totals: Totals) -> Iterable[Record]:
    for (method, bits), cost in totals.items():
        for suffix, size, width in (
            ("", cost.bytes, cost.bits_per_weight),
            (" + Huffman", cost.huffman, cost.huffman_bits),
        ):
            yield Record(
                model=name,
                recipe=method.named(bits) + suffix,
                method="codebook" if method.how == "k-means" else "ptq",
                weight_bits=bits,
                granularity=f"per-{method.cut}",
                algorithm=_ALGORITHMS[method.how],
                calibrator=_calibrator(method),
                metric="sqnr",
                value=cost.sqnr,
                n=cost.n,
                bytes=size,
                bits_per_weight=width,
            )


def _calibrator(method: Method) -> str | None:
    if method.how == "searched":
        return "mse" if method.cut == "tensor" else "search_range"
    return "minmax" if method.how == "min–max" else None

"""Findings as tables for people; the same columns in every command."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitsmith.cli.output import Output
    from bitsmith.deploy.verify import Verification
    from bitsmith.insight.evaluation import Difference, Evaluation
    from bitsmith.model.quantized import CoverageRow

__all__ = ["amount", "coverage_table", "evaluation_table", "percent", "verification_tables"]

#: Verification rows without any difference are summed up when there are more of them than this.
_FEW = 12


def amount(size: int | None) -> str:
    """Return a number of bytes for people.

    >>> amount(2_400_000), amount(780)
    ('2,400.0 kB', '780 B')
    """
    if size is None:
        return "-"
    return f"{size} B" if size < 1000 else f"{size / 1000:,.1f} kB"


def percent(share: float) -> str:
    """Return a share of 1 in per cent.

    >>> percent(0.12345), percent(0.0)
    ('12.35 %', '-')
    """
    return f"{100 * share:.2f} %" if share else "-"


def coverage_table(output: Output, rows: Iterable[CoverageRow]) -> None:
    """Print what became of each operator."""
    output.heading("Coverage")
    output.table(
        ["layer", "operator", "outcome", "reason", ">share of MACs", ">effective bits"],
        [
            (
                row.layer,
                row.op,
                row.outcome,
                row.reason,
                percent(row.macs_share),
                "" if row.weight_bits is None else f"{row.weight_bits:.2f}",
            )
            for row in rows
        ],
    )


def evaluation_table(
    output: Output, evaluations: Iterable[Evaluation], against: Difference | None = None
) -> None:
    """Print accuracy, size and latency of each; then the paired difference."""
    output.heading("Evaluation")
    rows = []
    for e in evaluations:
        low, high = e.interval or (0.0, 0.0)
        score = "no labels" if e.accuracy is None else f"{e.accuracy:.2f} % [{low:.2f}, {high:.2f}]"
        times = [
            f"{t.median_ms:.3f} [{t.low_ms:.3f}, {t.high_ms:.3f}]" for t in e.latencies.values()
        ]
        rows.append((e.name, e.runtime, score, f"{e.n:,}", amount(e.bytes), *times))
    batches = [f">ms at batch {b} [quartiles]" for b in e.latencies]
    output.table(["model", "runtime", ">accuracy [95 %]", ">samples", ">size", *batches], rows)
    if against is None:
        return
    if against.delta is not None:
        output.line(
            f"difference {against.delta:+.2f} percentage points, 95 % interval "
            f"[{against.low:+.2f}, {against.high:+.2f}] (paired, Tango)"
        )
    output.line(
        f"same prediction on {against.n - against.changed:,} of {against.n:,} samples "
        f"({against.agreement:.2f} %)"
    )


def verification_tables(output: Output, found: Verification) -> None:
    """Print every tensor that differs (all of a small network), the operators, the worst cases."""
    output.heading(f"Simulation against {found.runtime} {found.runtime_version}")
    shown = [t for t in found.tensors if t.differing or t.isolated_differing]
    same = len(found.tensors) - len(shown)
    if same <= _FEW:
        shown = list(found.tensors)
    columns = ["tensor", "kernel", ">codes", ">differ", ">max", ">mean"]
    columns += [">isolated codes", ">differ", ">max", ">mean", "cause"]
    if shown:
        output.table(
            columns,
            [
                (
                    t.tensor,
                    t.kernel,
                    f"{t.n:,}",
                    f"{t.differing:,}",
                    f"{t.max_lsb:g}",
                    f"{t.mean_lsb:.2g}",
                    f"{t.isolated_n:,}",
                    f"{t.isolated_differing:,}",
                    f"{t.isolated_max_lsb:g}",
                    f"{t.isolated_mean_lsb:.2g}",
                    t.cause,
                )
                for t in shown
            ],
        )
    if len(shown) < len(found.tensors):
        codes = sum(t.n for t in found.tensors if t not in shown)
        output.line(f"{same} tensors, {codes:,} values: no difference, cumulative or isolated")
    _verification_facts(output, found)


def _verdict(found: Verification) -> str:
    if not found.passed:
        return "NO: " + "; ".join(found.failures)
    if found.exact:
        return "yes"
    return (
        f"yes, as far as {found.runtime} can: the simulation is {found.target}'s, and every "
        "operator alone agrees to one code; the differences above add up from layer to layer"
    )


def _verification_facts(output: Output, found: Verification) -> None:
    worst = [w for w in found.worst_cases if w.differing]
    saturated = sum(w.saturated for w in found.worst_cases)
    codes = sum(w.n for w in found.worst_cases)
    differ = ", ".join(f"{w.layer} ({w.differing} of {w.n}, up to {w.max_lsb:g})" for w in worst)
    output.heading("Verdict")
    output.facts(
        [
            ("samples", f"{found.samples:,}"),
            ("in integers", found.in_integers),
            ("executed", ", ".join(f"{n} {op}" for op, n in sorted(found.operators.items()))),
            ("predictions changed", f"{found.changed_predictions} of {found.samples:,}"),
            ("largest output difference", f"{found.output_max_difference:g}"),
            (
                "worst-case codes",
                f"{codes:,} codes of {len(found.worst_cases)} layers: "
                + (f"differ in {differ}" if worst else "all equal")
                + f"; {saturated} pair sums would saturate without VNNI",
            ),
            (
                "exact on",
                f"machine {found.machine!r}, neighbours in the order {found.order_assumed}",
            ),
            ("this machine", ", ".join(found.instruction_sets) or "unknown instruction sets"),
            ("holds", _verdict(found)),
        ]
    )

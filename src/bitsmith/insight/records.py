"""Findings as flat records: one function per kind of finding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bitsmith.deploy.verify import TensorComparison, Verification
from bitsmith.insight.evaluation import Difference, Evaluation
from bitsmith.insight.measure import Record
from bitsmith.model.quantized import CoverageRow, QuantizedModel

__all__ = [
    "coverage_records",
    "described_keys",
    "evaluation_records",
    "quantized_keys",
    "stored_bits",
    "verification_records",
]

#: Keys that a model's provenance shares with records.
_PROVENANCE = ("model", "dataset", "split", "data_sha256", "seed", "effort", "calibrator")


def quantized_keys(model: QuantizedModel) -> dict[str, Any]:
    """Return what every record about a quantized model says of how it was made."""
    given = [rule for rule in model.recipe.rules if rule.weight is not None]
    general = given[-1] if given else None  # the last rule is the general one
    keys: dict[str, Any] = {k: v for k, v in model.provenance.items() if k in _PROVENANCE}
    keys |= {
        "recipe": model.recipe.name,
        "method": model.provenance.get("method", "ptq"),
        "activation_bits": model.recipe.static_activation.format.bits,
        "target": model.target,
        "machine_target": model.machine,
    }
    if general is not None and (weight := general.weight) is not None:
        keys["weight_bits"] = general.table_bits or weight.format.bits
        keys["granularity"] = (
            "per-channel" if weight.granularity.scale_shape((2, 2)) else "per-tensor"
        )
    return keys


def described_keys(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that a file's own metadata gives (see ``Subject.described``)."""
    if not described:
        return {}
    known = dict(described.get("provenance", {}))
    keys = {k: known[k] for k in ("model", "seed", "effort", "calibrator") if k in known}
    keys |= {"recipe": described["recipe"], "target": described["target"]}
    return {
        k: v for k, v in (keys | {"machine_target": described["machine"]}).items() if v is not None
    }


def stored_bits(model: QuantizedModel) -> float | None:
    """Return bits per weight over all quantized layers, scales included; None without any."""
    layers = model.program.layers.values()
    count = sum(layer.weight.codes.numel() for layer in layers)
    return 8 * sum(layer.nbytes for layer in layers) / count if count else None


def coverage_records(rows: Iterable[CoverageRow], keys: Mapping[str, Any]) -> list[Record]:
    """Return one record per operator; its metric, if any, is the effective bits of its weight."""
    records = []
    for row in rows:
        bits = (
            {}
            if row.weight_bits is None
            else {"metric": "effective_bits", "value": row.weight_bits}
        )
        own = {"layer": row.layer, "op": row.op, "outcome": row.outcome, "reason": row.reason}
        records.append(Record(**{**keys, **own, "macs_share": row.macs_share, **bits}))
    return records


def evaluation_records(
    subject: Evaluation,
    keys: Mapping[str, Any],
    against: Difference | None = None,
    reference: Evaluation | None = None,
) -> list[Record]:
    """Return accuracy (with the paired difference, if there is a reference), size and latencies."""
    common = {**keys, "runtime": subject.runtime, "method": subject.method, "bytes": subject.bytes}
    records = []
    if subject.accuracy is not None:
        fields: dict[str, Any] = {"metric": "accuracy", "value": subject.accuracy, "n": subject.n}
        if against is not None and reference is not None:
            fields |= {"reference": reference.accuracy, "delta": against.delta}
            fields |= {"delta_low": against.low, "delta_high": against.high}
        records.append(Record(**{**common, **fields}))
        low, high = subject.interval or (None, None)
        for metric, value in (("accuracy_low", low), ("accuracy_high", high)):
            records.append(Record(**{**common, "metric": metric, "value": value, "n": subject.n}))
    if against is not None:
        changed = {"metric": "changed_predictions", "value": against.changed, "n": against.n}
        records.append(Record(**{**common, **changed}))
    for batch, time in subject.latencies.items():
        record = Record(
            **{
                **common,
                "metric": f"latency_batch{batch}",
                "value": time.median_ms,
                "latency_ms": time.median_ms,
                "n": time.n,
            }
        )
        records.append(record)
    return records


def verification_records(found: Verification, keys: Mapping[str, Any]) -> list[Record]:
    """Return per tensor max_lsb and differing_codes, cumulative and isolated, and the counts."""
    common = {**keys, "runtime": found.runtime}
    records = [r for t in found.tensors for r in _tensor_records(t, common)]
    for case in found.worst_cases:
        fields = {"layer": case.layer, "metric": "worst_case_max_lsb", "value": case.max_lsb}
        records.append(Record(**{**common, **fields, "n": case.n}))
    totals = (
        ("executed_integer", found.executed_integer, found.planned_integer),
        ("changed_predictions", found.changed_predictions, found.samples),
        ("output_max_difference", found.output_max_difference, found.samples),
    )
    outcome = {"outcome": "holds" if found.passed else "does not hold"}
    reason = {"reason": "; ".join(found.failures)} if found.failures else {}
    for metric, value, n in totals:
        if value is None:  # the runtime does not tell
            continue
        records.append(
            Record(**{**common, **outcome, **reason, "metric": metric, "value": value, "n": n})
        )
    return records


def _tensor_records(t: TensorComparison, common: Mapping[str, Any]) -> list[Record]:
    """Two records per view; a tensor compared in real units reports its largest difference."""
    own = {**common, "layer": t.tensor, "op": t.op, "outcome": t.outcome, "reason": t.kernel}
    own |= {"cause": t.cause} if t.cause else {}
    largest = "max_lsb" if t.magnitude is None else "max_difference"
    share = "differing_codes" if t.magnitude is None else "differing_values"
    views = (
        (False, t.n, t.differing, t.max_lsb),
        (True, t.isolated_n, t.isolated_differing, t.isolated_max_lsb),
    )
    records = []
    for isolated, n, differing, most in views:
        if not n:
            continue
        view = {**own, "isolated": isolated, "n": n}
        records.append(Record(**{**view, "metric": largest, "value": most}))
        records.append(Record(**{**view, "metric": share, "value": differing / n}))
    return records

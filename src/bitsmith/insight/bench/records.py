"""What a benchmark measured, as flat records."""

from __future__ import annotations

from typing import Any

from bitsmith.insight.bench.bandwidth import Bandwidth
from bitsmith.insight.bench.kernels import Cell, KernelSpeeds
from bitsmith.insight.bench.network import NetworkSpeeds
from bitsmith.insight.measure import Record
from bitsmith.model.speed.layers import FLOAT
from bitsmith.model.speed.race import Ratio, Times, faster

__all__ = ["kernel_records", "network_records"]


def kernel_records(found: KernelSpeeds) -> list[Record]:
    """Return latency, ratios with their intervals and share of the bandwidth of each cell.

    ``metric`` ends in the rows of the input: ``latency_rows8`` in ms, ``times_float32_rows8`` and
    ``times_onnxruntime_rows8`` how many times faster, ``bandwidth_share_rows8`` of 1.
    """
    shape = f"{found.n}x{found.k}"
    records = [_bandwidth(found.bandwidth)]
    for cell in found.cells:
        common: dict[str, Any] = {"op": "linear", "layer": shape, "n": cell.times.n}
        common |= {"runtime": "torch" if cell.family in (FLOAT, "bitsmith") else cell.family}
        common |= {"recipe": cell.name, "bytes": cell.bytes}
        records += _cell(cell, common)
    for one in found.absent:
        records.append(
            Record(op="linear", layer=shape, recipe=one.name, outcome="absent", reason=one.reason)
        )
    return records


def network_records(found: NetworkSpeeds, keys: dict[str, Any]) -> list[Record]:
    """Return latency and ratio to float of each kind of layer and of the whole model.

    Args:
        found: what was measured.
        keys: of every record: model, data set …
    """
    records = [_bandwidth(found.bandwidth)]
    for kind in found.layers:
        own = {**keys, "layer": kind.layers[0], "op": kind.op, "runtime": "torch"}
        for name, times in kind.times.items():
            records += _speed(times, {**own, "recipe": name}, faster(times, kind.times[FLOAT]), "")
    for whole in found.whole:
        own = {**keys, "recipe": whole.name, "runtime": "torch", "bytes": whole.bytes}
        records += _speed(whole.times, own, whole.to_float, "")
    return records


def _cell(cell: Cell, common: dict[str, Any]) -> list[Record]:
    end = f"_rows{cell.rows}"
    records = _speed(cell.times, common, cell.to_float, end)
    if cell.to_rival is not None:
        ratio = _ratio(cell.to_rival) | {"metric": f"times_onnxruntime{end}"}
        records.append(Record(**{**common, **ratio, "reason": f"against {cell.rival}"}))
    share = {"metric": f"bandwidth_share{end}", "value": cell.bandwidth_share}
    return [*records, Record(**{**common, **share})]


def _speed(times: Times, common: dict[str, Any], ratio: Ratio, end: str) -> list[Record]:
    took = {"metric": f"latency{end}", "value": times.median_ms, "latency_ms": times.median_ms}
    own = {**common, "n": times.n}
    records = [Record(**{**own, **took})]
    if common["recipe"] != FLOAT:
        records.append(Record(**{**own, "metric": f"times_float32{end}", **_ratio(ratio)}))
    return records


def _ratio(ratio: Ratio) -> dict[str, float]:
    """Return a ratio as the difference to 1, with its interval."""
    return {
        "value": ratio.value,
        "reference": 1.0,
        "delta": ratio.value - 1,
        "delta_low": ratio.low - 1,
        "delta_high": ratio.high - 1,
    }


def _bandwidth(found: Bandwidth) -> Record:
    return Record(metric="read_bandwidth", value=found.bytes_per_second, reason=found.method)

"""Emit embeddings: rows of codes are gathered, and only those are decoded."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from bitsmith.deploy.export.onnx_weights.graph import GraphBuilder
from bitsmith.deploy.export.onnx_weights.storage import Storage
from bitsmith.deploy.export.onnx_weights.weight import emit_weight, float_of

__all__ = ["emit_embedding"]


def emit_embedding(
    graph: GraphBuilder, index: str, output: str, name: str, storage: Storage, columns: int
) -> None:
    """Emit the rows ``index`` ``[...]`` of a table: ``output`` ``[..., columns]``.

    Rows of whole bytes are gathered as codes. Gather takes no type of less than 8 bits, so a
    table of them that a linear layer shares, like one that is looked up, is decoded whole.
    """
    if not storage.scheme.affine or (storage.kind == "codes" and storage.bits < 8):
        weight = emit_weight(graph, name, storage, columns)
        graph.add("Gather", [weight, index], output)
        return
    assert storage.kind in ("codes", "bytes")
    wide = storage.shape[1]
    groups = storage.groups[1]
    rows = graph.add("Gather", [f"{name}.codes", index], f"{output}.codes")
    lead = [0] * graph.rank(index)
    if storage.kind == "bytes":
        rows = _unpacked(graph, rows, storage, lead)
    real = graph.add("Cast", [rows], f"{output}.codes.float", to=TensorProto.FLOAT)
    if groups > 1:
        real = graph.reshape(real, f"{output}.apart", [*lead, groups, wide // groups])
    if zero := _zero_points(graph, index, output, name, storage):
        real = graph.add("Sub", [real, zero], f"{output}.centred")
    scale = _scales(graph, index, output, name, storage)
    whole = groups == 1 and columns == wide
    real = graph.add("Mul", [real, scale], output if whole else f"{output}.scaled")
    if groups > 1:
        real = graph.reshape(real, output if columns == wide else f"{output}.wide", [*lead, wide])
    if columns != wide:
        ends = [graph.constant([v], np.int64) for v in (0, columns, -1)]
        graph.add("Slice", [real, *ends], output)


def _unpacked(graph: GraphBuilder, rows: str, storage: Storage, lead: list[int]) -> str:
    """Split bytes ``[..., n]`` into codes ``[..., columns]``."""
    each = 8 // storage.bits
    # Not BitShift, which OpenVINO 2026.4 gets wrong on uint8.
    steps = graph.constant([1 << storage.bits * i for i in range(each)], np.int32)
    base = graph.constant(1 << storage.bits, np.int32)
    last = graph.constant([-1], np.int64)
    whole = graph.add("Cast", [rows], f"{rows}.whole", to=TensorProto.INT32)
    apart = graph.add("Unsqueeze", [whole, last], f"{rows}.apart")
    moved = graph.add("Div", [apart, steps], f"{rows}.moved")
    codes = graph.add("Mod", [moved, base], f"{rows}.digits")
    wide = -(-storage.shape[1] // each) * each
    flat = graph.reshape(codes, f"{rows}.flat", [*lead, wide])
    if wide == storage.shape[1]:
        return flat
    ends = [graph.constant([v], np.int64) for v in (0, storage.shape[1], -1)]
    return graph.add("Slice", [flat, *ends], f"{rows}.cut")


def _zero_points(graph: GraphBuilder, index: str, output: str, name: str, storage: Storage) -> str:
    """Emit what is subtracted from the stored codes of the rows; empty: nothing."""
    if storage.scheme.symmetric:
        return graph.constant(storage.offset, np.float32) if storage.offset else ""
    shape = [storage.shape[0], *([storage.groups[1]] if storage.groups[1] > 1 else []), 1]
    point = graph.reshape(f"{name}.zero_point", f"{name}.zero_point.rows", shape)
    rows = graph.add("Gather", [point, index], f"{output}.points")
    return graph.add("Cast", [rows], f"{output}.points.float", to=TensorProto.FLOAT)


def _scales(graph: GraphBuilder, index: str, output: str, name: str, storage: Storage) -> str:
    rows, groups = storage.groups
    each = storage.shape[0] // rows
    shape = [rows, *([groups] if groups > 1 else []), 1]
    scale = graph.reshape(float_of(graph, f"{name}.scale", storage), f"{name}.scale.rows", shape)
    if each > 1:
        size = graph.constant(each, np.int64)
        wide = graph.add("Cast", [index], f"{index}.int64", to=TensorProto.INT64)
        index = graph.add("Div", [wide, size], f"{index}.by.{each}")
    return graph.add("Gather", [scale, index], f"{output}.scales")

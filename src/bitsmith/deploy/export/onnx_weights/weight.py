"""Emit the real values of a weight: codes, then DequantizeLinear or a table."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from bitsmith.deploy.export.onnx_weights.graph import GraphBuilder
from bitsmith.deploy.export.onnx_weights.parts import to_parts
from bitsmith.deploy.export.onnx_weights.places import Place
from bitsmith.deploy.export.onnx_weights.storage import Storage, scale_type, table_of
from bitsmith.numbers.formats import NumberFormat

__all__ = ["emit_parts", "emit_scale", "emit_weight", "float_of"]


def emit_parts(graph: GraphBuilder, name: str, storage: Storage, place: Place) -> None:
    """Put the tensors of a weight into the file, once."""
    if f"{name}.codes" not in graph.initializers:
        for part_name, part in to_parts(place.packed.qtensor(), storage).items():
            graph.hold(f"{name}.{part_name}", part)


def emit_weight(graph: GraphBuilder, name: str, storage: Storage, columns: int) -> str:
    """Return the name of the float weight ``[N, columns]``; of ``columns`` storage transposed.

    Runtimes compute everything that depends on constants alone when they load a file, but leave
    DequantizeLinear where it is. So every way to a weight begins with one, and codes are what
    stays in memory.
    """
    if storage.scheme.affine:
        real = _dequantized(graph, name, storage)
    else:
        real = _looked_up(graph, name, storage)
    if columns == storage.shape[1]:
        return real
    axis = 0 if storage.kind == "columns" else 1
    ends = [graph.constant([v], np.int64) for v in (0, columns, axis)]
    return graph.add("Slice", [real, *ends], f"{name}.cut")


def emit_scale(graph: GraphBuilder, name: str, storage: Storage, blocks: int = 0) -> str:
    """Return the name of the float32 scales ``[N, C]``; with ``blocks``, ``[N, blocks]``.

    Runtimes compute the repetitions when they load the file.
    """
    rows, columns = storage.groups
    real = float_of(graph, f"{name}.scale", storage)
    wide = blocks or columns
    if (rows, columns) == (storage.shape[0], wide):
        return real
    shape = (rows, storage.shape[0] // rows, columns, wide // columns)
    apart = graph.reshape(real, f"{name}.scale.apart", [rows, 1, columns, 1])
    target = graph.constant(shape, np.int64)
    repeated = graph.add("Expand", [apart, target], f"{name}.scale.repeated")
    return graph.reshape(repeated, f"{name}.scale.{wide}", [storage.shape[0], wide])


def float_of(graph: GraphBuilder, name: str, storage: Storage) -> str:
    """Return the name of scales or table entries in float32."""
    element, inner = scale_type(storage.scheme), storage.scheme.scale_format
    if element == TensorProto.FLOAT:
        return name
    if element != TensorProto.UINT8:
        return graph.add("Cast", [name], f"{name}.float", to=TensorProto.FLOAT)
    assert isinstance(inner, NumberFormat)
    values = graph.hold(f"{inner.name}.values", table_of(inner)[1].numpy())
    index = graph.add("Cast", [name], f"{name}.index", to=TensorProto.INT32)
    return graph.add("Gather", [values, index], f"{name}.float")


def _dequantized(graph: GraphBuilder, name: str, storage: Storage) -> str:
    groups, turned = storage.groups[1], storage.kind == "columns"
    scale = emit_scale(graph, name, storage)
    if groups == 1:
        scale = graph.reshape(scale, f"{name}.scale.flat", [-1])
        attributes = {"axis": int(turned)}
    else:
        if turned:
            scale = graph.add("Transpose", [scale], f"{name}.scale.turned", perm=[1, 0])
        attributes = {"axis": int(not turned), "block_size": storage.shape[1] // groups}
    points = _zero_points(graph, name, storage)
    return graph.add(
        "DequantizeLinear", [f"{name}.codes", scale, *points], f"{name}.real", **attributes
    )


def _zero_points(graph: GraphBuilder, name: str, storage: Storage) -> list[str]:
    if not storage.scheme.symmetric:
        return [f"{name}.zero_point"]
    if storage.offset == 0:
        return []
    # Only codes that were shifted to uint8 for integer products: one scale for a row.
    points = np.full(storage.shape[0], storage.offset, np.uint8)
    return [graph.hold(f"{name}.middle", points)]


def _looked_up(graph: GraphBuilder, name: str, storage: Storage) -> str:
    (rows, groups), (n, columns) = storage.groups, storage.places
    scheme, number = storage.scheme, storage.scheme.format
    one = graph.constant(1, np.float32)
    whole = graph.add("DequantizeLinear", [f"{name}.codes", one], f"{name}.codes.whole")
    index = graph.add("Cast", [whole], f"{name}.codes.index", to=TensorProto.INT32)
    apart = [rows, n // rows, groups, columns // groups]
    if scheme.learned:
        entries = 1 << number.bits
        starts = np.arange(rows * groups).reshape(rows, 1, groups, 1) * entries
        first = graph.hold(f"{name}.codebook.starts", starts.astype(np.int32))
        index = graph.reshape(index, f"{name}.codes.apart", apart)
        index = graph.add("Add", [index, first], f"{name}.codes.entry")
        table = float_of(graph, f"{name}.codebook", storage)
        vectors = [storage.dimension] if storage.dimension > 1 else []
        table = graph.reshape(table, f"{name}.codebook.flat", [-1, *vectors])
    else:
        table = graph.hold(f"{number.name}.values", table_of(number)[1].numpy())
    real = graph.add("Gather", [table, index], f"{name}.entries")
    if scheme.scaled:
        real = graph.reshape(real, f"{name}.entries.apart", apart)
        scale = float_of(graph, f"{name}.scale", storage)
        scale = graph.reshape(scale, f"{name}.scale.apart", [rows, 1, groups, 1])
        real = graph.add("Mul", [real, scale], f"{name}.scaled")
    return graph.reshape(real, f"{name}.real", list(storage.shape))

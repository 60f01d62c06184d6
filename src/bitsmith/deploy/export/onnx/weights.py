"""How the file holds the weight of a layer: as int8 codes, or packed.

Packed codes have ONNX types of 4 or 2 bits, and the graph makes int8 of them:

==================================  =============================================  =====
``INT4`` or ``INT2`` codes          Cast to int8                                   opset
``UINT4`` or ``UINT2`` indices      Cast to int32, Gather from the table (int8)    21
==================================  =============================================  =====

(2 bits need opset 25; codes of 3 bits take 4.) These steps have constant inputs, so ONNX Runtime
takes them once, when it loads the file, and then runs what it runs for int8 codes. A
DequantizeLinear of the packed codes themselves, shorter to write, it does not fuse: the layer
would run in float, and of 2-bit codes it refuses the file (1.31.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from bitsmith.deploy.export.onnx.graph_writer import GraphWriter
from bitsmith.model.convert import IntegerLayer
from bitsmith.numbers.packing import pack

__all__ = ["WEIGHTS", "WeightForm", "needed_opset", "read_codes", "untyped", "write_weight"]

WeightForm = Literal["int8", "packed"]
WEIGHTS: tuple[WeightForm, ...] = ("int8", "packed")
"""The forms that a file can hold its weights in."""

_OPSET_OF_TWO_BITS = 25


def write_weight(writer: GraphWriter, name: str, layer: IntegerLayer, form: WeightForm) -> str:
    """Emit a layer's codes and scales; return the name of its real values."""
    codes = _packed(writer, name, layer) if form == "packed" else None
    if codes is None:
        codes = writer.constant(f"{name}.weight_codes", layer.weight.codes)
    shape, axis = ((), None) if layer.weight.scale.dim() == 0 else ((-1,), 0)
    scale = writer.constant(f"{name}.weight_scale", layer.weight.scale.reshape(shape))
    # ONNX Runtime fuses a Gemm only when the zero points, though all 0, are written out.
    points = writer.constant(
        f"{name}.weight_zero_point", layer.weight.zero_point.reshape(shape).to(torch.int8)
    )
    return writer.add("DequantizeLinear", [codes, scale, points], f"{name}.weight", axis=axis)


def needed_opset(initializers: Mapping[str, onnx.TensorProto], least: int) -> int:
    """Return the opset that the types of the initializers need, at least ``least``."""
    kinds = {TensorProto.DataType.Name(i.data_type) for i in initializers.values()}
    return max(least, _OPSET_OF_TWO_BITS) if kinds & {"INT2", "UINT2"} else least


def untyped(layers: Mapping[str, IntegerLayer]) -> list[str]:
    """Return a line for every layer whose packed type the installed onnx does not have."""
    known = set(TensorProto.DataType.keys())
    return [
        f"{name}: weights of 2 bits need onnx 1.20 or newer, which has {kind}; this is "
        f"{onnx.__version__}"
        for name, layer in layers.items()
        if (width := _width(layer)) is not None and (kind := f"INT{width}") not in known
    ]


def read_codes(values: Mapping[str, onnx.TensorProto], name: str) -> Tensor:
    """Return the int8 codes of a layer from the initializers of a file.

    Raises:
        KeyError: they are not there.
    """
    if f"{name}.weight_table" in values:
        table, indices = (_int8(values[f"{name}.weight_{part}"]) for part in ("table", "indices"))
        return table[indices.long()]
    return _int8(values[f"{name}.weight_codes"])


def _int8(value: onnx.TensorProto) -> Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(value)).astype(np.int8))


def _packed(writer: GraphWriter, name: str, layer: IntegerLayer) -> str | None:
    """Emit packed codes and what makes int8 of them; None where 8 bits are needed."""
    bits = _width(layer)
    if bits is None:
        return None
    codes, table = layer.weight.codes, layer.table
    unpacked = f"{name}.weight_unpacked"
    if table is None or _fits(table, bits):
        stored = _initializer(writer, f"{name}.weight_codes", codes, f"INT{bits}", bits)
        return writer.add("Cast", [stored], unpacked, to=TensorProto.INT8)
    found = torch.searchsorted(table, codes).to(torch.uint8)
    stored = _initializer(writer, f"{name}.weight_indices", found, f"UINT{bits}", bits)
    indices = writer.add("Cast", [stored], f"{stored}.int32", to=TensorProto.INT32)
    entries = writer.constant(f"{name}.weight_table", table)
    return writer.add("Gather", [entries, indices], unpacked, axis=0)


def _width(layer: IntegerLayer) -> int | None:
    """Bits of the narrowest packed type for a layer's codes or indices; None beyond 4 bits."""
    return None if layer.bits > 4 else 2 if layer.bits <= 2 else 4


def _fits(table: Tensor, bits: int) -> bool:
    return int(table.min()) >= -(1 << bits - 1) and int(table.max()) < 1 << bits - 1


def _initializer(writer: GraphWriter, name: str, codes: Tensor, kind: str, bits: int) -> str:
    packed = pack(codes, bits).numpy().tobytes()
    writer.initializers[name] = onnx.helper.make_tensor(
        name, TensorProto.DataType.Value(kind), tuple(codes.shape), packed, raw=True
    )
    return name

"""The tensors that stand for one quantized weight in the file, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from bitsmith.deploy.export.onnx_weights.storage import (
    FLOATS,
    INTEGERS,
    Part,
    Storage,
    scale_type,
)
from bitsmith.errors import WeightsError
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.packing import pack, packed_bytes, unpack
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme

__all__ = ["from_parts", "to_parts"]


def to_parts(q: QTensor, storage: Storage) -> dict[str, Part]:
    """Return ``codes``, ``scale`` … as the file holds them."""
    scheme, (rows, columns) = storage.scheme, storage.groups
    parts = {"codes": _codes_part(q.codes, storage)}
    if scheme.scaled:
        parts["scale"] = _real_part(q.scale.reshape(rows, columns), scheme)
    if not scheme.symmetric:
        parts["zero_point"] = _zero_part(q.zero_point.reshape(rows, columns), storage)
    if q.codebook is not None:
        parts["codebook"] = _real_part(q.codebook, scheme)
    return parts


def from_parts(parts: Mapping[str, Part], storage: Storage) -> QTensor:
    """Return the weight that :func:`to_parts` wrote, bit for bit.

    Raises:
        WeightsError: a part is missing, or has another type or shape than the scheme says; all
            are listed.
        SchemeError: the values do not fit the scheme.
    """
    scheme = storage.scheme
    groups = scheme.granularity.scale_shape(storage.shape)
    expected = _expected(storage)
    wrong = [f"{n} is missing" for n in expected if n not in parts]
    wrong += [
        f"{n} has the type {parts[n].element} and shape {parts[n].shape}, and must have type "
        f"{element} and shape {shape}"
        for n, (element, shape) in expected.items()
        if n in parts and (parts[n].element, parts[n].shape) != (element, shape)
    ]
    wrong += [
        f"{n} holds {len(parts[n].content)} bytes, not {_size(*spec)}"
        for n, spec in expected.items()
        if n in parts and len(parts[n].content) != _size(*spec)
    ]
    if wrong:
        raise WeightsError("; ".join(wrong))
    codes = _codes(parts["codes"], storage)
    scale = torch.ones(groups)
    if scheme.scaled:
        scale = _real(parts["scale"], scheme).reshape(groups)
    zero = torch.zeros(groups, dtype=torch.int32)
    if not scheme.symmetric:
        zero = _zero(parts["zero_point"], storage).reshape(groups)
    codebook = _real(parts["codebook"], scheme) if scheme.learned else None
    return QTensor(codes, scale, zero, codebook, scheme)


def _expected(storage: Storage) -> dict[str, tuple[int, tuple[int, ...]]]:
    scheme, (rows, columns) = storage.scheme, storage.places
    shape: tuple[int, ...] = (rows, columns)
    groups = storage.groups[1]
    zeros: tuple[int, ...] = (rows, groups) if groups > 1 else (rows,)
    if storage.kind == "columns":
        shape, zeros = (columns, rows), (groups, rows) if groups > 1 else (rows,)
    elif storage.kind == "bytes":
        shape = (rows, packed_bytes(columns, storage.bits))
    elif storage.kind == "blocks":
        shape = (rows, storage.blocks, storage.block * storage.bits // 8)
        zeros = (rows, packed_bytes(storage.blocks, storage.bits))
    found: dict[str, tuple[int, tuple[int, ...]]] = {"codes": (storage.element, shape)}
    real = scale_type(scheme)
    assert real is not None
    if scheme.scaled:
        found["scale"] = (real, storage.groups)
    if not scheme.symmetric:
        found["zero_point"] = (storage.element, zeros)
    if isinstance(scheme.format, LearnedFormat):
        vectors = (storage.dimension,) if storage.dimension > 1 else ()
        lead = scheme.granularity.scale_shape(storage.shape)
        found["codebook"] = (real, (*lead, 1 << scheme.format.bits, *vectors))
    return found


def _size(element: int, shape: Sequence[int]) -> int:
    bits = next((b for (b, _), e in INTEGERS.items() if e == element), 0)
    bits = bits or 8 * FLOATS[element].itemsize
    return packed_bytes(torch.Size(shape).numel(), bits)


def _codes_part(codes: Tensor, storage: Storage) -> Part:
    stored = codes.to(torch.int16) + storage.offset
    if storage.kind == "columns":
        stored = stored.T.contiguous()
    else:
        stored = pad(stored, (0, _wide(storage) - stored.shape[1]))
    return Part(*_expected(storage)["codes"], _stream(stored, storage.bits))


def _codes(part: Part, storage: Storage) -> Tensor:
    (rows, columns), wide = storage.places, _wide(storage)
    stored = _integers(part, storage, storage.bits, rows * wide)
    if storage.kind == "columns":
        stored = stored.reshape(columns, rows).T
    stored = stored.reshape(rows, wide)[:, :columns] - storage.offset
    return stored.to(storage.scheme.format.dtype).contiguous()


def _wide(storage: Storage) -> int:
    """Codes of a row as it is stored."""
    columns = storage.places[1]
    if storage.kind == "blocks":
        return storage.blocks * storage.block
    return columns + (-columns % (8 // storage.bits) if storage.kind == "bytes" else 0)


def _zero_part(zero: Tensor, storage: Storage) -> Part:
    """Zero points, one for each row and group; of ``blocks`` one for each block."""
    rows, bits = storage.shape[0], storage.bits
    zero = (zero.to(torch.int16) + storage.offset).repeat_interleave(rows // len(zero), 0)
    if storage.kind == "columns":
        zero = zero.T.contiguous()
    elif storage.kind == "blocks":
        zero = zero.repeat_interleave(storage.blocks // zero.shape[1], 1)
        zero = pad(zero, (0, -storage.blocks % (8 // bits)))
    elif storage.kind == "bytes":
        bits = 8
    return Part(*_expected(storage)["zero_point"], _stream(zero, bits))


def _zero(part: Part, storage: Storage) -> Tensor:
    rows, (groups, columns), bits = storage.shape[0], storage.groups, storage.bits
    wide, step = columns, 1
    if storage.kind == "blocks":
        wide, step = storage.blocks + -storage.blocks % (8 // bits), storage.blocks // columns
    zero = _integers(part, storage, 8 if storage.kind == "bytes" else bits, rows * wide)
    if storage.kind == "columns":
        zero = zero.reshape(columns, rows).T
    zero = zero.reshape(rows, wide)[:: rows // groups, : columns * step : step]
    return (zero - storage.offset).to(torch.int32)


def _stream(values: Tensor, bits: int) -> bytes:
    return pack(values, bits).numpy().tobytes()


def _integers(part: Part, storage: Storage, bits: int, n: int) -> Tensor:
    stream = torch.frombuffer(bytearray(part.content), dtype=torch.uint8)
    signed = storage.signed and not storage.packs
    return unpack(stream, bits, n, signed).to(torch.int16)


def _real_part(values: Tensor, scheme: Scheme) -> Part:
    """Scales or entries of a table: in a float type of ONNX, or as codes."""
    element, inner = scale_type(scheme), scheme.scale_format
    assert element is not None
    dtype = FLOATS.get(element)
    if dtype is None:
        assert isinstance(inner, NumberFormat)
        stored = inner.encode(values)
    else:
        stored = values.to(dtype)
    content = stored.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return Part(element, tuple(values.shape), content)


def _real(part: Part, scheme: Scheme) -> Tensor:
    inner, dtype = scheme.scale_format, FLOATS.get(part.element)
    stored = torch.frombuffer(bytearray(part.content), dtype=dtype or torch.uint8)
    if dtype is None:
        assert isinstance(inner, NumberFormat)
        stored = inner.decode(stored)
    return stored.to(torch.float32).reshape(part.shape)

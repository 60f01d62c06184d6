"""Quantized tensors as the bytes of GGUF's blocks, and back.

A block is a few fields after each other. Most hold one part of every code: ``width`` bits, several
to a byte, in runs of ``run`` bytes; the first ``run`` codes lie in the lowest bits of the run, the
next in the bits above them, and so on (ggml-common.h; written out in ``dequantize_row_*`` of
ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.deploy.export.gguf.block_types import BlockType
from bitsmith.errors import WeightsError
from bitsmith.numbers.pieces import PIECE
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme

__all__ = ["from_blocks", "to_blocks"]


@final
@dataclass(frozen=True)
class _Field:
    """Bits ``shift`` to ``shift + width`` of every value of a part.

    Attributes:
        part: ``codes``, ``scales`` or ``levels`` (codes of scales, then those of offsets).
    """

    part: str
    width: int
    run: int
    shift: int = 0


_D, _M = "d", "m"  # fp16
_TWELVE = "twelve"  # eight scales and eight offsets of 6 bits
_NIBBLES = _Field("codes", 4, 16)
_FIFTH_BITS = _Field("codes", 1, 1, shift=4)
_LAYOUTS: dict[str, tuple[str | _Field, ...]] = {
    "Q8_0": (_D, _Field("codes", 8, 32)),
    "Q4_0": (_D, _NIBBLES),
    "Q4_1": (_D, _M, _NIBBLES),
    "Q5_0": (_D, _FIFTH_BITS, _NIBBLES),
    "Q5_1": (_D, _M, _FIFTH_BITS, _NIBBLES),
    "Q2_K": (_Field("levels", 4, 16), _Field("codes", 2, 32), _D, _M),
    "Q3_K": (
        _Field("codes", 1, 32, shift=2),
        _Field("codes", 2, 32),
        _Field("scales", 4, 8),
        _Field("scales", 2, 4, shift=4),
        _D,
    ),
    "Q4_K": (_D, _M, _TWELVE, _Field("codes", 4, 32)),
    "Q5_K": (_D, _M, _TWELVE, _Field("codes", 1, 32, shift=4), _Field("codes", 4, 32)),
    "Q6_K": (
        _Field("codes", 4, 64),
        _Field("codes", 2, 32, shift=4),
        _Field("scales", 8, 16),
        _D,
    ),
}


def to_blocks(q: QTensor, kind: BlockType) -> Iterator[Tensor]:
    """Give the bytes of ``q`` in order, uint8, in pieces of whole blocks."""
    codes = q.codes.reshape(-1, kind.values)
    d = (q.scale if q.scales is None else q.scales.scale).reshape(-1, 1)
    parts = {"codes": codes, _D: d}
    if q.scales is not None:
        parts["scales"] = q.scales.codes.reshape(-1, kind.levels)
    if q.offsets is not None:
        parts[_M] = q.offsets.scale.reshape(-1, 1)
        parts["offsets"] = q.offsets.codes.reshape(-1, kind.levels)
    elif q.offset is not None:
        parts[_M] = -q.offset.reshape(-1, 1)
    step = max(1, PIECE // kind.values)
    for start in range(0, len(codes), step):
        some = {name: part[start : start + step] for name, part in parts.items()}
        yield _written(some, kind).reshape(-1)


def from_blocks(raw: Tensor, kind: BlockType, shape: Sequence[int], scheme: Scheme) -> QTensor:
    """Return the tensor of these bytes.

    Args:
        raw: uint8, exactly the bytes of a tensor of ``shape``.
        kind: the block type.
        shape: of the tensor; its rows are whole blocks.
        scheme: to give it, one that ``kind`` holds.

    Raises:
        WeightsError: a scale is NaN or infinite.
        SchemeError: codes are not those of the scheme.
    """
    blocks = raw.view(-1, kind.nbytes)
    step = max(1, PIECE // kind.values)
    found = [_read(blocks[i : i + step], kind) for i in range(0, max(len(blocks), 1), step)]
    parts = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    for name in parts.keys() & {_D, _M}:
        if bad := int((~torch.isfinite(parts[name])).sum()):
            raise WeightsError(f"{bad} of {len(blocks)} blocks have a {name} that is not finite")
    groups = scheme.granularity.scale_shape(shape)
    codes = parts["codes"].reshape(tuple(shape))
    zeros = torch.zeros(groups, dtype=torch.int32)
    inner, shift = scheme.scale_format, scheme.offset_format
    if not isinstance(inner, Scheme):
        offset = -parts[_M].reshape(groups) if scheme.shifted else None
        return QTensor(codes, parts[_D].reshape(groups), zeros, None, scheme, None, offset)
    scales = _level(parts["scales"], parts[_D], inner, groups)
    if not isinstance(shift, Scheme):
        return QTensor(codes, scales.dequantize(), zeros, None, scheme, scales)
    offsets = _level(parts["offsets"], parts[_M], shift, groups)
    return QTensor(
        codes, scales.dequantize(), zeros, None, scheme, scales, offsets.dequantize(), offsets
    )


def _level(codes: Tensor, d: Tensor, inner: Scheme, groups: Sequence[int]) -> QTensor:
    codes = codes.reshape(tuple(groups))
    outer = inner.granularity.scale_shape(groups)
    return QTensor(codes, d.reshape(outer), torch.zeros(outer, dtype=torch.int32), None, inner)


def _written(parts: dict[str, Tensor], kind: BlockType) -> Tensor:
    """Return the bytes ``[blocks, nbytes]``."""
    values = {"codes": _unsigned(parts["codes"], _bias(kind.scheme))}
    if isinstance(kind.scheme.scale_format, Scheme):
        values["scales"] = _unsigned(parts["scales"], _bias(kind.scheme.scale_format))
    if "offsets" in parts:
        values["levels"] = torch.cat([values["scales"], parts["offsets"]], 1)
    out = []
    for field in _LAYOUTS[kind.name]:
        if isinstance(field, _Field):
            out.append(_planes(values[field.part], field))
        elif field == _TWELVE:
            out.append(_twelve(values["levels"]))
        else:
            out.append(parts[field].to(torch.float16).view(torch.uint8))
    return torch.cat(out, 1)


def _read(blocks: Tensor, kind: BlockType) -> dict[str, Tensor]:
    """Return the parts of blocks ``[blocks, nbytes]``."""
    counts = {"codes": kind.values, "scales": kind.levels, "levels": 2 * kind.levels}
    values: dict[str, Tensor] = {}
    parts: dict[str, Tensor] = {}
    at = 0
    for field in _LAYOUTS[kind.name]:
        if isinstance(field, _Field):
            size = counts[field.part] * field.width // 8
            found = _unplaned(blocks[:, at : at + size], field)
            before = values.get(field.part)
            values[field.part] = found if before is None else before | found
        elif field == _TWELVE:
            size = 12
            values["levels"] = _untwelved(blocks[:, at : at + size])
        else:
            size = 2
            parts[field] = blocks[:, at : at + size].contiguous().view(torch.float16).float()
        at += size
    if "levels" in values:
        values["scales"], parts["offsets"] = torch.split(values["levels"], kind.levels, 1)
    parts["codes"] = _signed(values["codes"], kind.scheme)
    if isinstance(kind.scheme.scale_format, Scheme):
        parts["scales"] = _signed(values["scales"], kind.scheme.scale_format)
    return parts


def _bias(scheme: Scheme) -> int:
    """Return what is added to codes in the file: 8-bit ones are in two's complement."""
    return 0 if scheme.format.bits == 8 else -scheme.code_min


def _unsigned(codes: Tensor, bias: int) -> Tensor:
    return (codes + bias).view(torch.uint8)


def _signed(values: Tensor, scheme: Scheme) -> Tensor:
    return values.view(scheme.format.dtype) - _bias(scheme)


def _planes(values: Tensor, field: _Field) -> Tensor:
    """Return the bytes of a field: uint8 ``[blocks, values · width / 8]``."""
    part = (values >> field.shift) & ((1 << field.width) - 1)
    runs = part.reshape(len(values), -1, 8 // field.width, field.run)
    out = runs[:, :, 0]
    for i in range(1, runs.shape[2]):
        out = out | (runs[:, :, i] << (i * field.width))
    return out.flatten(1)


def _unplaned(found: Tensor, field: _Field) -> Tensor:
    """Return what a field says of each value: uint8 ``[blocks, values]``."""
    runs = found.reshape(len(found), found.shape[1] // field.run, 1, field.run)
    shifts = torch.arange(0, 8, field.width, dtype=torch.uint8)[:, None]
    part = (runs >> shifts) & ((1 << field.width) - 1)
    return (part << field.shift).flatten(1)


def _twelve(levels: Tensor) -> Tensor:
    """Return 16 numbers of 6 bits in 12 bytes: what is above the low 4 bits of numbers 4 to 7 lies
    on top of numbers 0 to 3, for scales and offsets alike.
    """
    scales, offsets = torch.split(levels, 8, 1)
    low, high = torch.split(scales, 4, 1)
    low_m, high_m = torch.split(offsets, 4, 1)
    return torch.cat(
        [
            low | (high >> 4) << 6,
            low_m | (high_m >> 4) << 6,
            (high & 15) | (high_m & 15) << 4,
        ],
        1,
    )


def _untwelved(found: Tensor) -> Tensor:
    first, second, third = torch.split(found, 4, 1)
    return torch.cat(
        [
            first & 63,
            (third & 15) | (first >> 6) << 4,
            second & 63,
            (third >> 4) | (second >> 6) << 4,
        ],
        1,
    )

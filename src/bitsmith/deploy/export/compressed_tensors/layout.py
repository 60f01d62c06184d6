"""The tensors that stand for one quantized weight ``[out, in]``, bit by bit.

``pack-quantized`` (weights alone; ``b`` bits, values stored as code + 2^(b−1) of signed formats)

=====================  =======  ==================  ==========================================
``weight_packed``      int32    [out, ⌈in·b/32⌉]    per row one bit stream, lowest bits first
``weight_scale``       float    [out, in/g]         or [out, 1] per channel, [1] per tensor
``weight_shape``       int64    [2]                 out, in
``weight_zero_point``  int32    [⌈out·b/32⌉, in/g]  asymmetric: a bit stream per column; per
                                                    tensor it is int8 [1], not packed
=====================  =======  ==================  ==========================================

``int-quantized`` (8-bit weights whose inputs are quantized on the fly): ``weight`` int8
[out, in] and ``weight_scale``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from bitsmith.errors import WeightsError
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.granularity import PerTensor
from bitsmith.numbers.packing import pack, unpack
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme

__all__ = [
    "INT",
    "PACK",
    "SCALE_DTYPES",
    "Spec",
    "from_parts",
    "from_words",
    "part_specs",
    "to_parts",
    "to_words",
]

PACK = "pack-quantized"
INT = "int-quantized"

Spec = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of a tensor in the file."""

SCALE_DTYPES = {
    None: torch.float32,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""Name of a scale format → type of the scales in the file."""


def to_words(codes: Tensor, bits: int) -> Tensor:
    """Return each row as one dense bit stream of 32-bit words, lowest bits first.

    Args:
        codes: uint8 ``[rows, n]``, in ``0 … 2^bits − 1``.
        bits: 1 to 8.

    Returns:
        int32 ``[rows, ⌈n·bits/32⌉]``; unused bits of a row's last word are 0.

    >>> words = to_words(torch.arange(16, dtype=torch.uint8).view(1, 16), 4)
    >>> [hex(word & 0xFFFFFFFF) for word in words[0].tolist()]
    ['0x76543210', '0xfedcba98']
    """
    rows, n = codes.shape
    padded = pad(codes, (0, -n % 32))  # 32 codes are whole words at every width
    words = pack(padded, bits).view(torch.int32).view(rows, padded.shape[1] * bits // 32)
    return words[:, : _words(n, bits)].contiguous()


def from_words(words: Tensor, bits: int, n: int) -> Tensor:
    """Return uint8 ``[rows, n]``, the inverse of :func:`to_words`.

    >>> from_words(to_words(torch.tensor([[5, 0, 7]], dtype=torch.uint8), 3), 3, 3).tolist()
    [[5, 0, 7]]
    """
    rows, width = words.shape
    padded = n + -n % 32
    stream = pad(words, (0, padded * bits // 32 - width)).reshape(-1).view(torch.uint8)
    return unpack(stream, bits, rows * padded, signed=False).view(rows, padded)[:, :n].contiguous()


def part_specs(scheme: Scheme, shape: Sequence[int], layout: str) -> dict[str, Spec]:
    """Return the tensors of a weight: name after the module's → type and shape."""
    out, columns = shape
    bits, per_tensor = scheme.format.bits, scheme.granularity == PerTensor()
    groups = (1,) if per_tensor else scheme.granularity.scale_shape(shape)
    inner = scheme.scale_format
    scale = (SCALE_DTYPES[inner.name if isinstance(inner, NumberFormat) else None], groups)
    if layout == INT:
        return {"weight": (torch.int8, (out, columns)), "weight_scale": scale}
    specs: dict[str, Spec] = {
        "weight_packed": (torch.int32, (out, _words(columns, bits))),
        "weight_scale": scale,
        "weight_shape": (torch.int64, (2,)),
    }
    if not scheme.symmetric:
        specs["weight_zero_point"] = (
            (torch.int8, groups) if per_tensor else (torch.int32, (_words(out, bits), groups[1]))
        )
    return specs


def to_parts(q: QTensor, layout: str) -> dict[str, Tensor]:
    """Return the tensors that :func:`part_specs` describes, holding ``q``."""
    scheme, bits = q.scheme, q.scheme.format.bits
    specs = part_specs(scheme, q.shape, layout)
    dtype, groups = specs["weight_scale"]
    parts = {"weight_scale": q.scale.to(dtype).view(groups)}
    if layout == INT:
        return {"weight": q.codes.contiguous(), **parts}
    shift = _shift(scheme)
    parts["weight_packed"] = to_words(q.codes.contiguous().view(torch.uint8) + shift, bits)
    parts["weight_shape"] = torch.tensor(q.shape, dtype=torch.int64)
    if not scheme.symmetric:
        zero_point = (q.zero_point + shift).to(torch.uint8)
        if q.zero_point.dim():
            parts["weight_zero_point"] = to_words(zero_point.T.contiguous(), bits).T.contiguous()
        else:
            signed = zero_point.to(torch.int32) - (1 << bits - 1)
            parts["weight_zero_point"] = signed.to(torch.int8).view(1)
    return {name: parts[name] for name in specs}


def from_parts(parts: Mapping[str, Tensor], scheme: Scheme, layout: str) -> QTensor:
    """Return the weight that :func:`to_parts` wrote, bit for bit.

    Raises:
        WeightsError: a part is missing, has another type or shape than the scheme says, or has
            impossible values; all are listed.
        SchemeError: the parts do not fit together, or the scheme does not divide the shape.
    """
    shape = _shape(parts, layout)
    specs = part_specs(scheme, shape, layout)
    if wrong := [*_misfits(parts, specs), *_impossible_scales(parts.get("weight_scale"))]:
        raise WeightsError("; ".join(wrong))
    bits, shift = scheme.format.bits, _shift(scheme)
    groups = scheme.granularity.scale_shape(shape)
    scale = parts["weight_scale"].to(torch.float32).view(groups)
    zero_point = torch.zeros(groups, dtype=torch.int32)
    if layout == INT:
        return QTensor(parts["weight"], scale, zero_point, None, scheme)
    stored = from_words(parts["weight_packed"], bits, shape[1])
    codes = (stored - shift).view(scheme.format.dtype)
    if not scheme.symmetric:
        points = parts["weight_zero_point"]
        if groups:
            points = from_words(points.T.contiguous(), bits, shape[0]).T
            zero_point = (points.to(torch.int32) - shift).contiguous()
        else:
            zero_point = (points.to(torch.int32) + (1 << bits - 1) - shift).view(groups)
    return QTensor(codes, scale, zero_point, None, scheme)


def _words(n: int, bits: int) -> int:
    return (n * bits + 31) // 32


def _shift(scheme: Scheme) -> int:
    """Return what is added to a code before it is stored without a sign."""
    return 1 << scheme.format.bits - 1 if scheme.format.signed else 0


def _shape(parts: Mapping[str, Tensor], layout: str) -> tuple[int, int]:
    name = "weight" if layout == INT else "weight_shape"
    part = parts.get(name)
    if part is None:
        raise WeightsError(f"{name} is missing")
    if layout == INT:
        shape = list(part.shape)
    elif part.dtype == torch.int64 and part.dim() == 1:
        shape = part.tolist()
    else:
        raise WeightsError(f"{name} is {part.dtype} with {part.dim()} axes, not int64 [2]")
    if len(shape) != 2 or min(shape) < 1:
        raise WeightsError(f"{name} gives the shape {shape}, not [out, in] of 1 or more each")
    return shape[0], shape[1]


def _misfits(parts: Mapping[str, Tensor], specs: Mapping[str, Spec]) -> list[str]:
    missing = [f"{name} is missing" for name in specs if name not in parts]
    extra = [f"{name} does not belong to this layout" for name in parts if name not in specs]
    other = [
        f"{name} is {part.dtype} of shape {tuple(part.shape)} and must be {dtype} of shape {shape}"
        for name, (dtype, shape) in specs.items()
        if (part := parts.get(name)) is not None
        and (part.dtype, tuple(part.shape)) != (dtype, shape)
    ]
    return missing + extra + other


def _impossible_scales(scale: Tensor | None) -> list[str]:
    if scale is None or not scale.is_floating_point():
        return []
    bad = int((~(torch.isfinite(scale) & (scale > 0))).sum())
    return [f"{bad} of {scale.numel()} scales are not positive and finite"] if bad else []

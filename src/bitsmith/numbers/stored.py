"""The canonical packed form of a quantized tensor: the bytes that ``QTensor.nbytes`` counts.

A few plain tensors by name, as safetensors holds them; they never depend on the machine.

========================  ======================================================================
``codes``                 uint8, the bit stream of :mod:`packing`; of 16 and 32 bits int16, int32
``scale``                 float32, or the codes of the scale format; absent without scales
``scales.codes`` …        instead of ``scale``: the scales of a two-level scheme, in this form
``zero_point``            uint8, the bit stream of the zero points; absent when symmetric, and in
                          ``scales.…`` and ``offsets.…``, where it is the lowest code
``offset``                float32, fp16 or bf16, of schemes with an offset instead of a zero point
``offsets.codes`` …       instead of ``offset``: offsets in two levels
``codebook``              like ``scale``; of learned tables only
========================  ======================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.packing import pack, unpack
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme

__all__ = ["from_stored", "to_stored"]


def to_stored(q: QTensor) -> dict[str, Tensor]:
    """Return name → tensor; their bytes sum to ``q.nbytes``.

    >>> from bitsmith.numbers.affine import quantize
    >>> from bitsmith.numbers.formats.integer import int4
    >>> parts = to_stored(quantize(torch.linspace(-1, 1, 9), Scheme(int4)))
    >>> {name: (part.dtype, tuple(part.shape)) for name, part in parts.items()}
    {'codes': (torch.uint8, (5,)), 'scale': (torch.float32, ())}
    """
    parts = _parts(q)
    if not q.scheme.symmetric and not q.scheme.shifted:
        parts["zero_point"] = _pack(q.zero_point, q.scheme.format)
    return parts


def from_stored(parts: Mapping[str, Tensor], scheme: Scheme, shape: Sequence[int]) -> QTensor:
    """Return the tensor that :func:`to_stored` wrote, bit for bit.

    Args:
        parts: name → tensor.
        scheme: how it was quantized.
        shape: of the tensor it stands for.

    Raises:
        DataError: a part is missing, unknown, or of the wrong kind or length; all are listed.
        SchemeError: the parts do not fit the scheme.
    """
    return _from_parts(parts, scheme, shape, zero_points=not scheme.symmetric)


def _parts(q: QTensor) -> dict[str, Tensor]:
    """Return all parts but the zero point."""
    scheme = q.scheme
    parts = {"codes": _pack(q.codes, scheme.format)}
    if q.scales is not None:
        parts |= {f"scales.{name}": part for name, part in _parts(q.scales).items()}
    elif scheme.scaled:
        parts["scale"] = _encoded(q.scale, scheme.scale_format)
    if q.offsets is not None:
        parts |= {f"offsets.{name}": part for name, part in _parts(q.offsets).items()}
    elif q.offset is not None:
        parts["offset"] = _encoded(q.offset, scheme.offset_format)
    if q.codebook is not None:
        parts["codebook"] = _encoded(q.codebook, scheme.scale_format)
    return parts


def _from_parts(
    parts: Mapping[str, Tensor], scheme: Scheme, shape: Sequence[int], zero_points: bool
) -> QTensor:
    """Return the tensor of these parts; without zero points they are the lowest code."""
    groups = scheme.granularity.scale_shape(shape)
    zero_points = zero_points and not scheme.shifted
    if wrong := _wrong_names(parts, scheme, zero_points):
        raise DataError(f"a stored tensor of {scheme.format.name}: {'; '.join(wrong)}")
    scale, scales = torch.ones(groups), None
    if scheme.scaled:
        scale, scales = _level(parts, "scale", scheme.scale_format, groups)
    offset, offsets = None, None
    if scheme.shifted:
        offset, offsets = _level(parts, "offset", scheme.offset_format, groups)
    zero_point = torch.zeros(groups, dtype=torch.int32)
    if zero_points:
        zero_point = _unpack("zero_point", parts["zero_point"], scheme.format, groups).int()
    elif not scheme.symmetric:
        zero_point.fill_(scheme.code_min)
    codebook, dimension = None, 1
    if isinstance(scheme.format, LearnedFormat):
        dimension = scheme.format.dimension
        vectors = (dimension,) if dimension > 1 else ()
        entries = (*groups, 1 << scheme.format.bits, *vectors)
        codebook = _decoded("codebook", parts["codebook"], entries, scheme.scale_format)
    places = (*shape[:-1], shape[-1] // dimension) if dimension > 1 else tuple(shape)
    codes = _unpack("codes", parts["codes"], scheme.format, places)
    return QTensor(codes, scale, zero_point, codebook, scheme, scales, offset, offsets)


def _level(
    parts: Mapping[str, Tensor],
    name: str,
    inner: NumberFormat | Scheme | None,
    groups: Sequence[int],
) -> tuple[Tensor, QTensor | None]:
    """Return scales or offsets, and their stored form where it has two levels."""
    if not isinstance(inner, Scheme):
        return _decoded(name, parts[name], groups, inner), None
    prefix = f"{name}s."
    own = {k.removeprefix(prefix): v for k, v in parts.items() if k.startswith(prefix)}
    stored = _from_parts(own, inner, groups, zero_points=False)
    return stored.dequantize(), stored


def _wrong_names(parts: Mapping[str, Tensor], scheme: Scheme, zero_points: bool) -> list[str]:
    levels = {"scale": scheme.scale_format} if scheme.scaled else {}
    levels |= {"offset": scheme.offset_format} if scheme.shifted else {}
    prefixes = tuple(f"{name}s." for name, inner in levels.items() if isinstance(inner, Scheme))
    expected = {"codes", *(k for k, inner in levels.items() if not isinstance(inner, Scheme))}
    expected |= {"zero_point"} if zero_points else set()
    expected |= {"codebook"} if scheme.learned else set()
    found = {k for k in parts if not k.startswith(prefixes)}
    wrong = []
    if missing := sorted(expected - found):
        wrong.append(f"{', '.join(missing)} missing")
    if unknown := sorted(found - expected):
        wrong.append(f"{', '.join(unknown)} not expected")
    return wrong


def _pack(codes: Tensor, number: NumberFormat) -> Tensor:
    if number.bits <= 8:
        return pack(codes, number.bits)
    return codes.to(torch.int16 if number.bits == 16 else torch.int32)  # uint16 wraps


def _unpack(name: str, part: Tensor, number: NumberFormat, shape: Sequence[int]) -> Tensor:
    count = torch.Size(shape).numel()
    if number.bits <= 8:
        return unpack(part, number.bits, count, number.dtype == torch.int8).reshape(tuple(shape))
    expected = torch.int16 if number.bits == 16 else torch.int32
    if part.dtype != expected or part.numel() != count:
        raise DataError(
            f"{name} of {number.name} are {count} values of {expected}, not {part.numel()} of "
            f"{part.dtype}"
        )
    wrapped = number.dtype == torch.int32 and number.bits == 16
    return (part.to(torch.int32) & 0xFFFF if wrapped else part.clone()).reshape(tuple(shape))


def _encoded(values: Tensor, inner: NumberFormat | Scheme | None) -> Tensor:
    return inner.encode(values) if isinstance(inner, NumberFormat) else values


def _decoded(
    name: str, part: Tensor, shape: Sequence[int], inner: NumberFormat | Scheme | None
) -> Tensor:
    dtype = inner.dtype if isinstance(inner, NumberFormat) else torch.float32
    if part.dtype != dtype or part.numel() != torch.Size(shape).numel():
        raise DataError(
            f"{name} is {part.dtype} of {part.numel()} values and must be {dtype} of shape "
            f"{tuple(shape)}"
        )
    values = inner.decode(part) if isinstance(inner, NumberFormat) else part
    return values.reshape(tuple(shape))

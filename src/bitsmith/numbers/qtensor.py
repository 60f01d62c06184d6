"""A quantized tensor: codes and what they mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.errors import SchemeError
from bitsmith.numbers.coding import decode, look_up
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.packing import packed_bytes
from bitsmith.numbers.scheme import Scheme

__all__ = ["QTensor", "dequantize"]


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return ``scale · (codes − zero_point)``, float32 of the shape of ``codes``.

    As ONNX DequantizeLinear: the difference is exact in int32, one float32 product rounds. Scale
    and zero point broadcast against the codes.

    >>> one = torch.tensor(1, dtype=torch.int32)
    >>> dequantize(torch.tensor([3, 1], dtype=torch.int8), torch.tensor(0.5), one).tolist()
    [1.0, 0.0]
    """
    return (codes.to(torch.int32) - zero_point).to(torch.float32) * scale


@final
@dataclass(frozen=True, eq=False)
class QTensor:
    """Codes with their scale, zero point and scheme; a plain record, not a tensor subclass.

    Codes are held one a byte (or two); packing happens where they are stored.

    Attributes:
        codes: ``scheme.format.dtype``, the shape of the tensor it stands for; of vector
            codebooks the last axis is shorter by the number of weights in an entry.
        scale: float32, of shape ``scheme.granularity.scale_shape(shape)``; all 1 where the scheme
            has no scales. Positive, except where blocks were searched for, or read from a file
            whose format allows more: then finite, 0 for a block of zeros, and with either sign.
        zero_point: int32, the shape of ``scale``; all 0 when the scheme is symmetric, or has an
            offset instead.
        codebook: the learned table, float32 ``[*scale.shape, n_values]``, or ``[*scale.shape,
            n_values, dimension]``; None for every other format.
        scheme: how it was quantized.
        scales: of two-level schemes, ``scale`` as it is stored: ``scale == scales.dequantize()``.
        offset: float32, the shape of ``scale``, of schemes with an offset format; None for others.
        offsets: of offsets in two levels, ``offset`` as it is stored.

    Raises:
        SchemeError: the parts do not fit together; the message lists every misfit.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    codebook: Tensor | None
    scheme: Scheme
    scales: QTensor | None = None
    offset: Tensor | None = None
    offsets: QTensor | None = None

    def __post_init__(self) -> None:
        if misfits := [*_shapes(self), *_values(self), *_tables(self), *_offsets(self)]:
            raise SchemeError("the parts of a QTensor do not fit: " + "; ".join(misfits))

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor it stands for."""
        shape, dimension = self.codes.shape, self._dimension
        return torch.Size((*shape[:-1], shape[-1] * dimension)) if dimension > 1 else shape

    @property
    def nbytes(self) -> int:
        """Bytes when packed: codes, scales, zero points at the codes' width, and the codebook.

        Scales and codebook entries take the bits of the scheme's scale format, offsets those of
        its offset format. A symmetric scheme stores no zero points: they are all 0. Neither do
        the scales of a two-level scheme: theirs are the lowest code.
        """
        return _nbytes(self, zero_points=not self.scheme.symmetric and not self.scheme.shifted)

    @property
    def bits_per_weight(self) -> float:
        """``8 · nbytes / values``: everything that is stored; 0 for a tensor without values."""
        count = self.codes.numel() * self._dimension
        return 8 * self.nbytes / count if count else 0.0

    def dequantize(self) -> Tensor:
        """Return float32 of ``shape``: ``scale · (code − zero_point)`` for integer formats
        or ``scale · codes − offset``, ``scale · format.decode(codes)`` for others, and a look-up
        for learned tables.
        """
        if self.codebook is not None:
            return look_up(self.codes, self.codebook, self.scale.shape, self._dimension)
        return decode(self.codes, self.scale, self.zero_point, self.scheme, self.offset)

    @property
    def _dimension(self) -> int:
        number = self.scheme.format
        return number.dimension if isinstance(number, LearnedFormat) else 1


def _nbytes(q: QTensor, zero_points: bool) -> int:
    scheme, bits = q.scheme, q.scheme.format.bits
    total = packed_bytes(q.codes.numel(), bits)
    if zero_points:
        total += packed_bytes(q.zero_point.numel(), bits)
    if q.offset is not None:
        total += _level_bytes(q.offset, q.offsets, scheme.offset_format)
    if scheme.scaled:
        return total + _level_bytes(q.scale, q.scales, scheme.scale_format)
    return total + (
        0 if q.codebook is None else _level_bytes(q.codebook, None, scheme.scale_format)
    )


def _level_bytes(
    values: Tensor, stored: QTensor | None, inner: NumberFormat | Scheme | None
) -> int:
    """Return the bytes of scales, offsets or a table in their stored form."""
    if stored is not None:
        return _nbytes(stored, zero_points=False)
    return packed_bytes(values.numel(), inner.bits if isinstance(inner, NumberFormat) else 32)


def _shapes(q: QTensor) -> Iterator[str]:
    """Give every part whose dtype or shape is not what the scheme says."""
    scheme, shape = q.scheme, q.shape
    expected = scheme.granularity.scale_shape(shape)
    for name, part, dtype in (
        ("scale", q.scale, torch.float32),
        ("zero_point", q.zero_point, torch.int32),
    ):
        if part.dtype != dtype or tuple(part.shape) != expected:
            yield (
                f"{name} is {part.dtype} of shape {tuple(part.shape)} and must be {dtype} of "
                f"shape {expected} for {scheme.granularity} on {tuple(shape)}"
            )
    if q.codes.dtype != scheme.format.dtype:
        yield f"codes of {scheme.format.name} are {scheme.format.dtype}, not {q.codes.dtype}"


def _values(q: QTensor) -> Iterator[str]:
    """Give what is wrong with codes of the right dtype."""
    scheme, number = q.scheme, q.scheme.format
    if q.codes.dtype != number.dtype or not q.codes.numel() or number.bits == 32:
        return
    low, high = (int(v) for v in torch.aminmax(q.codes))
    if scheme.affine:
        least, most = scheme.code_min, scheme.code_max
    else:
        listed = number.codes
        least, most = int(listed.min()), int(listed.max())
    if low < least or high > most:
        yield f"codes run from {low} to {high}, the scheme's from {least} to {most}"
    elif not scheme.affine and len(listed) <= most - least:
        missing = ~torch.isin(torch.unique(q.codes).cpu(), listed.to(number.dtype))
        if bool(missing.any()):
            yield f"{int(missing.sum())} codes in use stand for no number in {number.name}"


def _tables(q: QTensor) -> Iterator[str]:
    """Give what is wrong with the codebook and the stored form of the scales."""
    scheme, inner = q.scheme, q.scheme.scale_format
    if scheme.learned:
        entries = 1 << scheme.format.bits
        lead, tail = tuple(q.scale.shape), ((q._dimension,) if q._dimension > 1 else ())
        if q.codebook is None:
            yield f"{scheme.format.name} needs the codebook that was learned"
        elif q.codebook.dtype != torch.float32 or tuple(q.codebook.shape) != (
            *lead,
            entries,
            *tail,
        ):
            yield (
                f"the codebook is {q.codebook.dtype} of shape {tuple(q.codebook.shape)} and must "
                f"be float32 of shape {(*lead, entries, *tail)}"
            )
        elif not bool(torch.isfinite(q.codebook).all()):
            yield "the codebook has values that are not finite"
    elif q.codebook is not None:
        yield f"{scheme.format.name} has no codebook"
    if isinstance(inner, Scheme):
        if q.scales is None or q.scales.scheme != inner:
            yield f"two-level scales come with their stored form, in {inner}"
        else:
            yield from _stored_form("scales", q.scale, q.scales)
    elif q.scales is not None:
        yield "the scheme stores its scales in one level"
    if isinstance(inner, NumberFormat) and scheme.scaled:
        off = int((inner.decode(inner.encode(q.scale)) != q.scale).sum())
        if off:
            yield f"{off} of {q.scale.numel()} scales are not numbers of {inner.name}"


def _offsets(q: QTensor) -> Iterator[str]:
    """Give what is wrong with the offsets and their stored form."""
    inner = q.scheme.offset_format
    if inner is None or q.offset is None:
        if (inner is None) != (q.offset is None and q.offsets is None):
            yield "an offset goes with a scheme that has an offset_format, and only with one"
        return
    if q.offset.dtype != torch.float32 or q.offset.shape != q.scale.shape:
        yield (
            f"offset is {q.offset.dtype} of shape {tuple(q.offset.shape)} and must be float32 of "
            f"the scale's shape, {tuple(q.scale.shape)}"
        )
    elif not bool(torch.isfinite(q.offset).all()):
        yield f"{int((~torch.isfinite(q.offset)).sum())} offsets are not finite"
    elif isinstance(inner, Scheme):
        if q.offsets is None or q.offsets.scheme != inner:
            yield f"two-level offsets come with their stored form, in {inner}"
        else:
            yield from _stored_form("offsets", q.offset, q.offsets)
    elif off := int((inner.decode(inner.encode(q.offset)) != q.offset).sum()):
        yield f"{off} of {q.offset.numel()} offsets are not numbers of {inner.name}"
    if q.offsets is not None and not isinstance(inner, Scheme):
        yield "the scheme stores its offsets in one level"
    if bool((q.zero_point != 0).any()):
        yield "a scheme with an offset has zero point 0"


def _stored_form(name: str, values: Tensor, stored: QTensor) -> Iterator[str]:
    """Give what is wrong with the stored form of scales or offsets."""
    scheme = stored.scheme
    if not torch.equal(stored.dequantize(), values):
        yield f"the {name} differ from their stored form"
    if not scheme.symmetric and bool((stored.zero_point != scheme.code_min).any()):
        yield f"{name} are not negative, so their zero point is the lowest code, {scheme.code_min}"

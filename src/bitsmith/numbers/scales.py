"""From the range that shall be represented to scale and zero point."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from bitsmith.errors import SchemeError
from bitsmith.numbers.coding import encode
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.ranges import value_range
from bitsmith.numbers.scheme import Scheme

__all__ = ["Parameters", "scale_parameters", "scale_zero_point", "store_offsets", "store_scales"]

_FLOAT32 = torch.finfo(torch.float32)
_MANY = 1 << 17
_LARGE = 1e28  # a scale up to here times any code is a float32


@final
@dataclass(frozen=True)
class Parameters:
    """What turns codes into values; the attributes of a :class:`QTensor` of these names."""

    scale: Tensor
    zero_point: Tensor
    scales: QTensor | None = None
    offset: Tensor | None = None
    offsets: QTensor | None = None


def scale_zero_point(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the scale (float32) and zero point (int32) that represent ``[low, high]``.

    With ``b`` bits, codes ``q_min … q_max`` and ``a = max(|low|, |high|)``:

    - symmetric, narrow range: ``scale = a / (2^(b−1) − 1)``, zero point 0;
    - symmetric, full range: ``scale = 2·a / (2^b − 1)``, zero point 0;
    - asymmetric: the range is first widened to contain 0, so that 0 is exact; then
      ``scale = (high − low) / (q_max − q_min)``, ``zero_point = round(q_min − low / scale)``;
    - other formats: the smallest scale with which both ends fit, ``max(high / format.max,
      low / format.min)``; 1 for formats that take none.

    Then the scale is rounded to the scheme's scale format (the zero point is that of the rounded
    scale): to the nearest number of a float format; for ``e8m0`` to ``2^(⌊log2 a⌋ − ⌊log2
    format.max⌋)``, the rule of the OCP Microscaling specification 1.0, section 6.3, with which
    the largest values may saturate, or to the next power of two above for asymmetric schemes,
    which need the whole range; for a two-level scheme as that scheme says.

    Edges: a range that is only 0 gets scale 1 (of two levels, or without a code for 0: the
    smallest there is); the scale is never below the smallest normal float32 (runtimes may flush
    smaller ones to 0) and never so large that a code's value overflows float32. Computed in
    float64, rounded once.

    Args:
        low, high: the range, any equal shapes; the results have that shape.
        scheme: symmetry and codes.

    Raises:
        SchemeError: a bound is NaN or infinite, ``low > high``, the shapes differ, a scale is
            too large for the scale format, or the scheme has offsets in place of zero points.

    >>> from bitsmith.numbers.formats.integer import int8
    >>> s, z = scale_zero_point(torch.tensor(-7.59), torch.tensor(10.8), Scheme(int8, False))
    >>> round(1 / float(s), 3), int(z)
    (13.866, -23)
    """
    if scheme.shifted:
        raise SchemeError(
            f"{scheme.format.name} with an offset_format has no zero point but an offset: use "
            "quantize(x, scheme), search_blocks(x, scheme) or scale_parameters(low, high, scheme)"
        )
    found = scale_parameters(low, high, scheme)
    return found.scale, found.zero_point


def scale_parameters(low: Tensor, high: Tensor, scheme: Scheme) -> Parameters:
    """Return scale and zero point or offset, and their stored forms where they have two levels.

    An offset is ``−low``, rounded to its format; the scale is then ``(high + offset) / q_max``.
    Arguments and errors as :func:`scale_zero_point`.
    """
    levels = (scheme.scale_format, scheme.offset_format)
    if low.numel() > _MANY and low.shape == high.shape and not _two_levels(*levels):
        return _by_pieces(low, high, scheme)
    low, high = low.detach().to(torch.float64), high.detach().to(torch.float64)
    _check_range(low, high)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    zero_point = torch.zeros_like(low, dtype=torch.int32)
    if not scheme.scaled:
        return Parameters(torch.ones_like(low, dtype=torch.float32), zero_point)
    offset, offsets = None, None
    if scheme.shifted:
        offset, offsets = _stored_offset(-low, scheme)
        low = -offset.to(torch.float64)
    exact = _exact_scale(low, high, scheme)
    scale, stored = _stored(exact, torch.maximum(-low, high), scheme)
    if not scheme.symmetric and not scheme.shifted:
        point = torch.round(scheme.code_min - low / scale.to(torch.float64))
        zero_point = point.clamp(scheme.code_min, scheme.code_max).to(torch.int32)
    if stored is None:
        if bool((scale > _LARGE).any()):
            scale = _bounded(scale, zero_point, scheme)
        number = scheme.format
        has_zero = not number.decode(number.encode(torch.zeros(1))).any()
        scale = torch.where(exact == 0, 1.0 if has_zero else _least(scheme), scale)
    return Parameters(scale, zero_point, stored, offset, offsets)


def _two_levels(*levels: NumberFormat | Scheme | None) -> bool:
    return any(isinstance(level, Scheme) for level in levels)


def _by_pieces(low: Tensor, high: Tensor, scheme: Scheme) -> Parameters:
    """Return the parameters of many groups, some at a time: temporaries stay in the cache."""
    lows, highs = (torch.split(t.reshape(-1), _MANY) for t in (low, high))
    found = [scale_parameters(a, b, scheme) for a, b in zip(lows, highs, strict=True)]
    offsets = [p.offset for p in found if p.offset is not None]
    return Parameters(
        torch.cat([p.scale for p in found]).reshape(low.shape),
        torch.cat([p.zero_point for p in found]).reshape(low.shape),
        offset=torch.cat(offsets).reshape(low.shape) if offsets else None,
    )


def store_scales(scale: Tensor, scheme: Scheme) -> QTensor:
    """Return scales in the stored form of a two-level scheme, each at its nearest positive value.

    Args:
        scale: float32, not negative, of the shape of the scheme's granularity. A scale of 0, of a
            group of zeros, does not widen the range of the others.
        scheme: its ``scale_format`` is a scheme.
    """
    inner = scheme.scale_format
    assert isinstance(inner, Scheme)
    found = _second_level(scale, inner)
    lost = found.dequantize() == 0
    if bool(lost.any()):  # a scale is positive: take the smallest positive number instead
        least = _smallest_codes(scale, found.scale, found.zero_point, inner)
        found = replace(found, codes=torch.where(lost, least, found.codes))
    return found


def store_offsets(offset: Tensor, scheme: Scheme) -> QTensor:
    """Return offsets in the stored form of a two-level scheme, each at its nearest value.

    Args:
        offset: float32, not negative, of the shape of the scheme's granularity.
        scheme: its ``offset_format`` is a scheme.
    """
    inner = scheme.offset_format
    assert isinstance(inner, Scheme)
    return _second_level(offset, inner)


def _second_level(values: Tensor, inner: Scheme) -> QTensor:
    ends = value_range(values, inner.granularity.scale_shape(values.shape))
    found = scale_parameters(*ends, inner)
    codes, _ = encode(values, found.scale, found.zero_point, inner)
    return QTensor(codes, found.scale, found.zero_point, None, inner, found.scales)


def _stored_offset(exact: Tensor, scheme: Scheme) -> tuple[Tensor, QTensor | None]:
    """Return the offset rounded to the scheme's offset format."""
    inner = scheme.offset_format
    if isinstance(inner, Scheme):
        stored = store_offsets(exact.to(torch.float32), scheme)
        return stored.dequantize(), stored
    assert inner is not None
    if over := int((exact > inner.max).sum()):
        raise SchemeError(
            f"{over} of {exact.numel()} offsets are beyond {inner.name}, whose largest number is "
            f"{inner.max:g} (the largest offset is {float(exact.max()):g}): use an offset format "
            "with a larger range, such as bf16 or fp32"
        )
    return inner.decode(inner.encode(exact.to(torch.float32))), None


def _exact_scale(low: Tensor, high: Tensor, scheme: Scheme) -> Tensor:
    """Return the float64 scale before anything is rounded; 0 for a range that is only 0."""
    number = scheme.format
    if not scheme.affine:
        below = low / number.min if number.min < 0 else torch.zeros_like(low)
        return torch.maximum(high / number.max, below)
    # Symmetric: 2^b − 2 levels above the lowest code when narrow, 2^b − 1 when full.
    span = 2 * torch.maximum(-low, high) if scheme.symmetric else high - low
    return span / (scheme.code_max - scheme.code_min)


def _stored(exact: Tensor, absmax: Tensor, scheme: Scheme) -> tuple[Tensor, QTensor | None]:
    """Return the scale rounded to the scheme's scale format."""
    inner = scheme.scale_format
    if isinstance(inner, Scheme):
        stored = store_scales(exact.to(torch.float32), scheme)
        return stored.dequantize(), stored
    if inner is None:
        return exact.clamp(min=_FLOAT32.tiny).to(torch.float32), None
    if inner.min > 0:  # powers of two
        return _power_of_two(exact, absmax, scheme), None
    over = exact > inner.max
    if bool(over.any()):
        raise SchemeError(
            f"{int(over.sum())} of {over.numel()} scales are beyond {inner.name}, whose largest "
            f"number is {inner.max:g} (the largest scale is {float(exact.max()):g}): use a scale "
            "format with a larger range, such as bf16 or None (float32)"
        )
    return inner.decode(inner.encode(exact.to(torch.float32).clamp(min=_least(scheme)))), None


def _least(scheme: Scheme) -> float:
    """Return the smallest scale that the scale format holds and float32 has as a normal number."""
    inner = scheme.scale_format
    return max(inner.step, _FLOAT32.tiny) if isinstance(inner, NumberFormat) else _FLOAT32.tiny


def _power_of_two(exact: Tensor, absmax: Tensor, scheme: Scheme) -> Tensor:
    """Return powers of two by the MX rule; the next above ``exact`` for asymmetric schemes."""
    if scheme.symmetric:
        top = torch.tensor(scheme.format.max, dtype=torch.float64)
        exponent = torch.frexp(absmax).exponent - torch.frexp(top).exponent
    else:
        fraction, exponent = torch.frexp(exact)
        exponent = exponent - (fraction == 0.5).to(exponent.dtype)
    return _exp2(exponent)


def _exp2(exponent: Tensor) -> Tensor:
    """Return 2^exponent, exact, within the normal float32 numbers."""
    biased = exponent.to(torch.int32).clamp(-126, 127) + 127
    return (biased << 23).view(torch.float32)


def _bounded(scale: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
    """Return the scale, lowered where the value of a code would overflow float32."""
    if scheme.affine:
        reach = torch.maximum(scheme.code_max - zero_point, zero_point - scheme.code_min)
    else:
        top = max(scheme.format.max, -scheme.format.min)
        reach = torch.full_like(zero_point, 1, dtype=torch.float64) * top
    bound = (_FLOAT32.max / reach.to(torch.float64)).to(torch.float32)
    over = bound.to(torch.float64) * reach > _FLOAT32.max
    bound = torch.where(over, torch.nextafter(bound, torch.zeros_like(bound)), bound)
    inner = scheme.scale_format
    if isinstance(inner, NumberFormat):  # the largest number of the format below the bound
        if inner.min > 0:
            bound = _exp2(torch.frexp(bound).exponent - 1)
        else:
            rounded = inner.decode(inner.encode(bound))
            bound = torch.where(rounded > bound, rounded / 2, rounded)
    return torch.minimum(scale, bound)


def _smallest_codes(scale: Tensor, step: Tensor, point: Tensor, inner: Scheme) -> Tensor:
    """Return, for each scale, the code of the smallest positive number of its stored form."""
    one = torch.full_like(scale, inner.format.step)
    codes, _ = encode(one, torch.ones_like(step), point, inner)
    return codes


def _check_range(low: Tensor, high: Tensor) -> None:
    if low.shape != high.shape:
        raise SchemeError(
            f"the bounds of a range have one shape, not {tuple(low.shape)} and {tuple(high.shape)}"
        )
    span = high - low
    if bool(((span >= 0) & (span < torch.inf)).all()):
        return
    finite = torch.isfinite(low) & torch.isfinite(high)
    if bad := int((~finite).sum()):
        raise SchemeError(f"{bad} of {low.numel()} ranges have a NaN or infinite bound")
    if bad := int((low > high).sum()):
        first = int((low > high).reshape(-1).nonzero()[0])
        raise SchemeError(
            f"{bad} of {low.numel()} ranges have low > high, the first at index {first}: "
            f"{float(low.reshape(-1)[first])} > {float(high.reshape(-1)[first])}"
        )

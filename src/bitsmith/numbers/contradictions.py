"""Why a combination of format, symmetry, granularity, scales, offsets and rounding cannot exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bitsmith.numbers.formats import NumberFormat, formats
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.formats.integer import IntegerFormat
from bitsmith.numbers.granularity import Granularity, PerTensor

if TYPE_CHECKING:
    from bitsmith.numbers.scheme import Scheme

__all__ = ["contradictions", "has_own_exponent"]

_ROUNDINGS = ("half_even", "half_away", "floor", "stochastic")


def contradictions(scheme: Scheme) -> list[str]:
    """Return every reason why ``scheme`` makes no sense; none when it does."""
    if not isinstance(scheme.format, NumberFormat):
        known = ", ".join(formats)
        return [f"its format is {scheme.format!r}, not a number format; known formats: {known}"]
    return [
        *_symmetry(scheme, scheme.format),
        *_granularity(scheme, scheme.format),
        *_scale_format(scheme, scheme.format),
        *_offset_format(scheme, scheme.format),
        *_rounding(scheme, scheme.format),
    ]


def _symmetry(scheme: Scheme, number: NumberFormat) -> Iterator[str]:
    if scheme.symmetric and isinstance(number, IntegerFormat) and not number.signed:
        yield (
            f"{number} has no negative codes, so a range that mirrors around 0 cannot be "
            "written in it (use symmetric=False: data that is never negative then gets zero "
            "point 0, which is what 'unsigned symmetric' usually means)"
        )
    elif not isinstance(number, LearnedFormat) and number.min > 0:
        yield f"{number.name} has neither 0 nor negative values: it is a format of scales only"
    mirrored = not isinstance(number, IntegerFormat) or number.binary or number.narrow
    if not scheme.symmetric and mirrored:
        yield f"{number.name} has no zero point, so it cannot be asymmetric (use symmetric=True)"
    if scheme.narrow_range and mirrored:
        yield f"{number.name} has no lowest code to leave out (use narrow_range=False)"
    elif scheme.narrow_range and not scheme.symmetric:
        yield "narrow_range mirrors the codes, which an asymmetric range has no use for"


def _granularity(scheme: Scheme, number: NumberFormat) -> Iterator[str]:
    if not isinstance(scheme.granularity, Granularity):
        kinds = "PerTensor(), PerChannel(axis), PerGroup(size, axis) or PerBlock(shape)"
        yield f"granularity is {kinds}, not {scheme.granularity!r}"
    elif has_own_exponent(number) and scheme.granularity != PerTensor():
        yield f"{number.name} has an exponent in every value: no scale that values could share"


def _scale_format(scheme: Scheme, number: NumberFormat) -> Iterator[str]:
    inner = scheme.scale_format
    if inner is None:
        return
    if has_own_exponent(number):
        yield f"{number.name} takes no scale, so there is none to store"
    if isinstance(inner, NumberFormat):
        if inner.family != "minifloat":
            yield (
                f"a scale in {inner.name} needs a scale of its own: scale_format is a float "
                f"format, or a scheme such as Scheme({inner.name}, …)"
            )
    elif isinstance(inner, type(scheme)):
        if scheme.granularity == PerTensor():
            yield "one scale for the whole tensor has no second level: give it a granularity"
        if isinstance(number, LearnedFormat):
            yield "a learned table is stored in one float format, not in two levels"
        if not inner.scaled:
            yield f"scales in {inner.format.name} have no second level: scale_format={inner.format}"
        if inner.rounding != "half_even":
            yield "scales are rounded half to even"
        if inner.offset_format is not None:
            yield "scales are positive, so their own scheme needs no offset_format"
    else:
        yield f"scale_format is None, a float format or a scheme, not {inner!r}"


def _offset_format(scheme: Scheme, number: NumberFormat) -> Iterator[str]:
    inner = scheme.offset_format
    if inner is None:
        return
    if scheme.symmetric:
        yield "an offset replaces the zero point of an asymmetric range (use symmetric=False)"
    if not isinstance(number, IntegerFormat) or number.signed:
        yield f"an offset goes with an unsigned integer format such as uint4, not {number.name}"
    if isinstance(inner, NumberFormat):
        if not has_own_exponent(inner):
            yield (
                f"an offset in {inner.name} needs a scale of its own: offset_format is fp32, fp16 "
                f"or bf16, or a scheme such as Scheme({inner.name}, …)"
            )
    elif isinstance(inner, type(scheme)):
        if scheme.granularity == PerTensor():
            yield "one offset for the whole tensor has no second level: give it a granularity"
        if not inner.scaled:
            number = inner.format
            yield f"offsets in {number.name} have no second level: offset_format={number}"
        if inner.rounding != "half_even":
            yield "offsets are rounded half to even"
        if inner.offset_format is not None:
            yield "offsets are not negative, so their own scheme needs no offset_format"
    else:
        yield f"offset_format is None, fp32, fp16, bf16 or a scheme, not {inner!r}"


def _rounding(scheme: Scheme, number: NumberFormat) -> Iterator[str]:
    if scheme.rounding not in _ROUNDINGS:
        yield f"rounding is one of {', '.join(_ROUNDINGS)}, not {scheme.rounding!r}"
    elif scheme.rounding != "half_even" and not scheme.affine:
        yield f"{number.name} is rounded half to even; {scheme.rounding} needs an integer format"
    if scheme.seed and scheme.rounding != "stochastic":
        yield f"a seed ({scheme.seed}) is for stochastic rounding, not {scheme.rounding}"


def has_own_exponent(number: NumberFormat) -> bool:
    """Return whether every value has an exponent wide enough to need no scale."""
    return number.family == "minifloat" and number.bits >= 16

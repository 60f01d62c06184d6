"""What there is to say about a number format, as one flat record."""

from __future__ import annotations

from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.formats.minifloat import MinifloatFormat

__all__ = ["describe"]


def describe(number: NumberFormat) -> dict[str, str | int | float | None]:
    """Return name, family, widths in bits, range, smallest step and number of values.

    ``values`` counts different finite values: the two zeros of a float are one. ``min``, ``max``
    and ``step`` of a learned table are None, as they belong to each tensor.

    >>> from bitsmith.numbers.formats.minifloat import fp4_e2m1fn
    >>> describe(fp4_e2m1fn)  # doctest: +NORMALIZE_WHITESPACE
    {'name': 'fp4_e2m1fn', 'family': 'minifloat', 'bits': 4, 'sign_bits': 1, 'exponent_bits': 2,
     'mantissa_bits': 1, 'min': -6.0, 'max': 6.0, 'step': 0.5, 'values': 15}
    """
    sign, exponent, mantissa = number.fields
    learned = isinstance(number, LearnedFormat)
    return {
        "name": number.name,
        "family": number.family,
        "bits": number.bits,
        "sign_bits": sign,
        "exponent_bits": exponent,
        "mantissa_bits": mantissa,
        "min": None if learned else number.min,
        "max": None if learned else number.max,
        "step": None if learned else number.step,
        "values": (number.distinct if isinstance(number, MinifloatFormat) else len(number.codes)),
    }

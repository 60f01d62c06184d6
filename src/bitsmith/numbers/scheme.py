"""How one tensor is quantized: format × symmetry × granularity × rounding.

>>> from bitsmith.numbers.formats.integer import int4, int8
>>> Scheme(int8).narrow_range                              # 8-bit symmetric: −127 … 127
True
>>> s = Scheme(int4, granularity=PerChannel(0))
>>> s.code_min, s.code_max                                 # fewer bits: the full range
(-8, 7)
>>> Scheme.from_json(s.to_json()) == s
True
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, final, get_args

from bitsmith.errors import SchemeError
from bitsmith.numbers.formats import NumberFormat, formats
from bitsmith.numbers.formats.integer import IntegerFormat
from bitsmith.numbers.granularity import Granularity, PerChannel, PerTensor

__all__ = ["Granularity", "PerChannel", "PerTensor", "Rounding", "Scheme"]

Rounding = Literal["half_even", "half_away", "floor"]


@final
@dataclass(frozen=True)
class Scheme:
    """How one tensor is quantized, ``real = scale · (code − zero_point)``.

    Attributes:
        format: the numbers that codes stand for.
        symmetric: zero point 0 and a range that mirrors around 0; only for signed formats.
        granularity: which values share a scale.
        narrow_range: leave out the lowest code, so that every code has its negative. ``None``
            resolves on construction: true for a symmetric 8-bit format (every integer runtime
            expects it), false for fewer bits (a code is too valuable) and for asymmetric
            ranges (there is no mirror).
        scale_format: how scales themselves are stored; ``None`` is float32.
        rounding: ``half_even`` (nearest, ties to the even code), ``half_away`` (nearest, ties
            away from zero) or ``floor``.

    Raises:
        SchemeError: the combination cannot exist; the message lists every reason.
    """

    format: NumberFormat
    symmetric: bool = True
    granularity: Granularity = PerTensor()  # noqa: RUF009  # shared, but frozen
    narrow_range: bool | None = None
    scale_format: None = None
    rounding: Rounding = "half_even"

    def __post_init__(self) -> None:
        if not isinstance(self.format, IntegerFormat):
            raise SchemeError(
                f"a scheme needs an integer format such as int8, not {self.format!r}; "
                f"known formats: {', '.join(formats)}"
            )
        if self.narrow_range is None:
            object.__setattr__(self, "narrow_range", self.symmetric and self.format.bits == 8)
        if reasons := _contradictions(self, self.format):
            raise SchemeError("this scheme cannot exist: " + "; ".join(reasons))

    @property
    def integer(self) -> IntegerFormat:
        """The format, known to be an integer format."""
        return cast(IntegerFormat, self.format)

    @property
    def code_min(self) -> int:
        """Smallest code in use; one above the format's when the range is narrow."""
        return self.integer.code_min + bool(self.narrow_range)

    @property
    def code_max(self) -> int:
        """Largest code in use."""
        return self.integer.code_max

    def to_json(self) -> dict[str, Any]:
        """Return the scheme as plain data, the inverse of :meth:`from_json`."""
        return {
            "format": self.integer.name,
            "symmetric": self.symmetric,
            "granularity": self.granularity.to_json(),
            "narrow_range": self.narrow_range,
            "scale_format": self.scale_format,
            "rounding": self.rounding,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scheme:
        """Return the scheme that :meth:`to_json` wrote; absent keys take their defaults."""
        fields = dict(data)
        known = set(cls.__dataclass_fields__)
        if unknown := sorted(set(fields) - known):
            raise SchemeError(f"a scheme has no {', '.join(unknown)}; it has {', '.join(known)}")
        if "format" not in fields:
            raise SchemeError(f"a scheme needs a format, one of {', '.join(formats)}")
        fields["format"] = formats[fields["format"]]
        if "granularity" in fields:
            fields["granularity"] = Granularity.from_json(fields["granularity"])
        return cls(**fields)


def _contradictions(scheme: Scheme, number: IntegerFormat) -> list[str]:
    """Return every reason why the combination makes no sense."""
    reasons = []
    if scheme.symmetric and not number.signed:
        reasons.append(
            f"{number} has no negative codes, so a range that mirrors around 0 cannot be "
            "written in it (use symmetric=False: data that is never negative then gets zero "
            "point 0, which is what 'unsigned symmetric' usually means)"
        )
    if scheme.symmetric and number.signed and number.bits == 1:
        reasons.append("int1 has the codes -1 and 0 only, so no positive value (use 2 bits)")
    if scheme.narrow_range and not scheme.symmetric:
        reasons.append("narrow_range mirrors the codes, which an asymmetric range has no use for")
    if not isinstance(scheme.granularity, Granularity):
        reasons.append(
            f"granularity is a PerTensor() or PerChannel(axis), not {scheme.granularity!r}"
        )
    if scheme.scale_format is not None:
        reasons.append(f"scales are float32 (scale_format=None), not {scheme.scale_format!r}")
    if scheme.rounding not in get_args(Rounding):
        reasons.append(
            f"rounding is one of {', '.join(get_args(Rounding))}, not {scheme.rounding!r}"
        )
    return reasons

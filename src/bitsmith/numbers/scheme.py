"""How one tensor is quantized: format × symmetry × granularity × scale format × rounding.

>>> from bitsmith.numbers.formats.integer import int4, int8
>>> Scheme(int8).narrow_range                              # 8-bit symmetric: −127 … 127
True
>>> s = Scheme(int4, granularity=PerGroup(64))
>>> s.code_min, s.code_max                                 # fewer bits: the full range
(-8, 7)
>>> Scheme.from_json(s.to_json()) == s
True
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

from bitsmith.errors import SchemeError
from bitsmith.numbers.contradictions import contradictions, has_own_exponent
from bitsmith.numbers.formats import NumberFormat, formats
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.formats.integer import IntegerFormat
from bitsmith.numbers.granularity import (
    Granularity,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
)

__all__ = [
    "Granularity",
    "PerBlock",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "PerToken",
    "Rounding",
    "Scheme",
]

Rounding = Literal["half_even", "half_away", "floor", "stochastic"]


@final
@dataclass(frozen=True)
class Scheme:
    """How one tensor is quantized.

    Integer formats: ``real = scale · (code − zero_point)``, or with an offset format ``real =
    scale · code − offset``. All others: ``real = scale · format.decode(code)``. 16- and 32-bit
    floats have an exponent in every value and take no scale (it is 1); a learned table holds real
    values, which no scale multiplies.

    Attributes:
        format: the numbers that codes stand for.
        symmetric: zero point 0 and a range that mirrors around 0; false needs an integer format.
        granularity: which values share a scale.
        narrow_range: leave out the lowest code, so that every code has its negative. ``None``
            resolves on construction: true for a symmetric format of 8 or 16 bits (every integer
            runtime expects it), false for fewer bits (a code is too valuable) and for
            asymmetric ranges (there is no mirror).
        scale_format: how scales themselves are stored. ``None`` is float32; a float format such
            as ``fp16`` or ``bf16`` rounds them to it; ``e8m0`` makes them powers of two, by the
            rule of the OCP MX specification; a :class:`Scheme` quantizes the tensor of scales
            once more (two-level scales: NVFP4, super-blocks). See
            :func:`bitsmith.numbers.scales.scale_zero_point`.
        rounding: ``half_even`` (nearest, ties to the even code), ``half_away`` (nearest, ties
            away from zero), ``floor``, or ``stochastic`` (up with the probability of the
            fraction, so that the expectation is exact). Others than ``half_even`` need an
            integer format.
        seed: of stochastic rounding; the same seed gives the same codes.
        offset_format: how real-valued offsets are stored that stand in place of integer zero
            points; ``None``: the zero points are integers. ``fp32``, ``fp16`` or ``bf16``, or a
            :class:`Scheme` for two levels; needs ``symmetric=False`` and an unsigned integer
            format. An offset is a number of its own, not a multiple of the scale, so 0 need not
            be a value of the scheme: nothing that needs an exact 0 (padding, sparsity, integer
            kernels) can use it. The blocks of GGUF with a minimum are such schemes.

    Raises:
        SchemeError: the combination cannot exist; the message lists every reason.
    """

    format: NumberFormat
    symmetric: bool = True
    granularity: Granularity = PerTensor()  # noqa: RUF009  # shared, but frozen
    narrow_range: bool | None = None
    scale_format: NumberFormat | Scheme | None = None
    rounding: Rounding = "half_even"
    seed: int = 0
    offset_format: NumberFormat | Scheme | None = None

    def __post_init__(self) -> None:
        if self.narrow_range is None:
            wide = isinstance(self.format, IntegerFormat) and self.format.bits >= 8
            object.__setattr__(self, "narrow_range", self.symmetric and wide)
        if reasons := contradictions(self):
            raise SchemeError("this scheme cannot exist: " + "; ".join(reasons))

    @property
    def affine(self) -> bool:
        """True when codes are integers to calculate with: every integer format but ``int1``."""
        return isinstance(self.format, IntegerFormat) and not self.format.binary

    @property
    def scaled(self) -> bool:
        """True when values are divided by a scale before they are coded."""
        return not self.learned and not has_own_exponent(self.format)

    @property
    def shifted(self) -> bool:
        """True when a real-valued offset stands in place of the integer zero point."""
        return self.offset_format is not None

    @property
    def learned(self) -> bool:
        """True when the values of codes are a table that belongs to each tensor."""
        return isinstance(self.format, LearnedFormat)

    @property
    def integer(self) -> IntegerFormat:
        """The format, known to be an integer format to calculate with.

        Raises:
            SchemeError: it is another.
        """
        if not isinstance(self.format, IntegerFormat) or self.format.binary:
            raise SchemeError(
                f"integer arithmetic needs an integer format such as int8, not {self.format.name}"
            )
        return self.format

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
        data: dict[str, Any] = {
            "format": self.format.name,
            "symmetric": self.symmetric,
            "granularity": self.granularity.to_json(),
            "narrow_range": self.narrow_range,
            "scale_format": _to_json(self.scale_format),
            "rounding": self.rounding,
        }
        if self.rounding == "stochastic":
            data["seed"] = self.seed
        if self.shifted:
            data["offset_format"] = _to_json(self.offset_format)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scheme:
        """Return the scheme that :meth:`to_json` wrote; absent keys take their defaults."""
        fields = dict(data)
        known = set(cls.__dataclass_fields__)
        if unknown := sorted(set(fields) - known):
            raise SchemeError(f"a scheme has no {', '.join(unknown)}; it has {', '.join(known)}")
        if "format" not in fields:
            raise SchemeError(f"a scheme needs a format, one of {', '.join(formats)}")
        fields["format"] = _format(fields["format"])
        if "granularity" in fields:
            fields["granularity"] = Granularity.from_json(fields["granularity"])
        for key in ("scale_format", "offset_format"):
            inner = fields.get(key)
            if isinstance(inner, Mapping):
                fields[key] = cls.from_json(inner)
            elif inner is not None:
                fields[key] = _format(inner)
        return cls(**fields)


def _to_json(inner: NumberFormat | Scheme | None) -> dict[str, Any] | str | None:
    if isinstance(inner, Scheme):
        return inner.to_json()
    return None if inner is None else inner.name


def _format(name: str) -> NumberFormat:
    """Return a registered format, or a vector codebook: there are too many to register."""
    if vectors := re.fullmatch(r"codebook([1-8])x([2-8])", str(name)):
        return LearnedFormat(int(vectors[1]), int(vectors[2]))
    return formats[name]

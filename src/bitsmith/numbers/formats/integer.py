"""Signed and unsigned integers of 1 to 8 bits, two's complement.

>>> int4.code_min, int4.code_max
(-8, 7)
>>> uint8.encode(torch.tensor([-3.0, 2.5, 3.5, 300.0])).tolist()
[0, 2, 4, 255]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.errors import SchemeError
from bitsmith.numbers.formats import NumberFormat

__all__ = [
    "IntegerFormat",
    "int1",
    "int2",
    "int3",
    "int4",
    "int5",
    "int6",
    "int7",
    "int8",
    "integer_format",
    "uint1",
    "uint2",
    "uint3",
    "uint4",
    "uint5",
    "uint6",
    "uint7",
    "uint8",
]


@final
@dataclass(frozen=True, repr=False)
class IntegerFormat(NumberFormat):
    """Integers of ``bits`` bits; a code is the value itself.

    Unsigned: 0 … 2^b − 1. Signed: −2^(b−1) … 2^(b−1) − 1.
    """

    bits: int
    signed: bool

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise SchemeError(f"integer formats have 1 to 8 bits, not {self.bits}")

    @property
    def name(self) -> str:  # type: ignore[override]  # derived, others store it
        """``int4``, ``uint8`` …"""
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    @property
    def code_min(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def code_max(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def dtype(self) -> torch.dtype:
        """The torch type that holds one code: ``torch.int8`` or ``torch.uint8``."""
        return torch.int8 if self.signed else torch.uint8

    @property
    def codes(self) -> Tensor:
        return torch.arange(self.code_min, self.code_max + 1, dtype=torch.int32)

    def encode(self, x: Tensor) -> Tensor:
        return torch.round(x).clamp(self.code_min, self.code_max).to(self.dtype)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.to(torch.float32)

    def __repr__(self) -> str:
        return self.name


def integer_format(bits: int, signed: bool) -> IntegerFormat:
    """Return the integer format of that width and sign (1 to 8 bits).

    >>> integer_format(4, signed=True)
    int4
    """
    return IntegerFormat(bits, signed)


int1, int2, int3, int4, int5, int6, int7, int8 = (IntegerFormat(b, True) for b in range(1, 9))
uint1, uint2, uint3, uint4, uint5, uint6, uint7, uint8 = (
    IntegerFormat(b, False) for b in range(1, 9)
)

for _format in (int1, int2, int3, int4, int5, int6, int7, int8):
    NumberFormat.registry.add(_format.name, _format)
for _format in (uint1, uint2, uint3, uint4, uint5, uint6, uint7, uint8):
    NumberFormat.registry.add(_format.name, _format)

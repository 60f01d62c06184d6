"""Signed and unsigned integers of 1 to 8 and 16 bits, two's complement, and ternary and binary.

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
    "int16",
    "integer_format",
    "ternary",
    "uint1",
    "uint2",
    "uint3",
    "uint4",
    "uint5",
    "uint6",
    "uint7",
    "uint8",
    "uint16",
]


_WIDTHS = (*range(1, 9), 16)


@final
@dataclass(frozen=True, repr=False)
class IntegerFormat(NumberFormat):
    """Integers of ``bits`` bits; a code is the value itself.

    Unsigned: 0 … 2^b − 1. Signed: −2^(b−1) … 2^(b−1) − 1. Two are special. ``int1`` is {−1, +1}
    and its code a sign bit: 0 is +1, also the code of 0 (BinaryConnect, arXiv:1511.00363, eq. 1),
    and 1 is −1. ``ternary``, two bits without the lowest code, is {−1, 0, +1}.

    Attributes:
        bits: 1 to 8, or 16.
        signed: has negative values.
        narrow: the lowest code is left out for good; ``ternary`` only.

    Raises:
        SchemeError: there is no such format.
    """

    bits: int
    signed: bool
    narrow: bool = False

    def __post_init__(self) -> None:
        if self.bits not in _WIDTHS:
            raise SchemeError(f"integer formats have 1 to 8 or 16 bits, not {self.bits}")
        if self.narrow and (self.bits, self.signed) != (2, True):
            raise SchemeError("only ternary, signed with two bits, leaves out its lowest code")

    @property
    def name(self) -> str:
        """``int4``, ``uint8`` …"""
        return "ternary" if self.narrow else f"{'int' if self.signed else 'uint'}{self.bits}"

    @property
    def family(self) -> str:
        return "integer"

    @property
    def fields(self) -> tuple[int, int, int]:
        return int(self.signed), 0, self.bits - self.signed

    @property
    def binary(self) -> bool:
        """True for ``int1``, whose code is a sign bit and not the value."""
        return self.signed and self.bits == 1

    @property
    def code_min(self) -> int:
        """Smallest code."""
        return 0 if self.binary or not self.signed else self.narrow - (1 << (self.bits - 1))

    @property
    def code_max(self) -> int:
        """Largest code."""
        if self.binary:
            return 1
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def dtype(self) -> torch.dtype:
        """``torch.int8``, ``uint8``, ``int16``, or ``int32`` for uint16."""
        if self.bits == 16:  # torch.uint16 lacks arithmetic
            return torch.int16 if self.signed else torch.int32
        return torch.int8 if self.signed and not self.binary else torch.uint8

    @property
    def codes(self) -> Tensor:
        codes = torch.arange(self.code_min, self.code_max + 1, dtype=torch.int32)
        return codes.flip(0) if self.binary else codes

    @property
    def min(self) -> float:
        return -1.0 if self.binary else float(self.code_min)

    @property
    def max(self) -> float:
        return float(self.code_max)

    @property
    def step(self) -> float:
        return 2.0 if self.binary else 1.0

    def encode(self, x: Tensor) -> Tensor:
        """Return ``clamp(round(x))``; of ``int1`` the sign bit, 0 for 0 (also for −0)."""
        if self.binary:
            return (x < 0).to(self.dtype)
        return torch.round(x).clamp(self.code_min, self.code_max).to(self.dtype)

    def decode(self, codes: Tensor) -> Tensor:
        values = codes.to(torch.float32)
        return 1 - 2 * values if self.binary else values

    def __repr__(self) -> str:
        return self.name


def integer_format(bits: int, signed: bool) -> IntegerFormat:
    """Return the integer format of that width and sign (1 to 8 bits, or 16).

    >>> integer_format(4, signed=True)
    int4
    """
    return IntegerFormat(bits, signed)


int1, int2, int3, int4, int5, int6, int7, int8, int16 = (IntegerFormat(b, True) for b in _WIDTHS)
uint1, uint2, uint3, uint4, uint5, uint6, uint7, uint8, uint16 = (
    IntegerFormat(b, False) for b in _WIDTHS
)
ternary = IntegerFormat(2, True, narrow=True)

for _format in (int1, int2, int3, int4, int5, int6, int7, int8, int16, ternary):
    NumberFormat.registry.add(_format.name, _format)
for _format in (uint1, uint2, uint3, uint4, uint5, uint6, uint7, uint8, uint16):
    NumberFormat.registry.add(_format.name, _format)

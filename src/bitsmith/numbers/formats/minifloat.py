"""Floating-point numbers of 4 to 32 bits, and e8m0, the power of two that MX blocks scale with.

>>> fp8_e4m3fn.max, fp8_e4m3fn.step
(448.0, 0.001953125)
>>> fp4_e2m1fn.grid[7:].tolist()
[-0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
>>> fp4_e2m1fn.decode(fp4_e2m1fn.encode(torch.tensor([2.5, 3.5, -1e9]))).tolist()
[2.0, 4.0, -6.0]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final

import torch
from torch import Tensor

from bitsmith.errors import SchemeError
from bitsmith.numbers.formats import NumberFormat, refuse_listing
from bitsmith.numbers.lookup import look_up

__all__ = [
    "MinifloatFormat",
    "Specials",
    "bf16",
    "e8m0",
    "fp4_e2m1fn",
    "fp6_e2m3fn",
    "fp6_e3m2fn",
    "fp8_e4m3fn",
    "fp8_e5m2",
    "fp16",
    "fp32",
]

Specials = Literal["ieee", "nan", "none", "scale"]

# The layouts torch has itself: its casts round half to even, but overflow to infinity or NaN.
_NATIVE: dict[tuple[int, int, int, Specials], torch.dtype] = {
    (8, 23, 127, "ieee"): torch.float32,
    (8, 7, 127, "ieee"): torch.bfloat16,
    (5, 10, 15, "ieee"): torch.float16,
    (5, 2, 15, "ieee"): torch.float8_e5m2,
    (4, 3, 7, "nan"): torch.float8_e4m3fn,
}
_SMALLEST_NORMAL = -126  # exponent of the smallest normal float32


@final
@dataclass(frozen=True, repr=False)
class MinifloatFormat(NumberFormat):
    """Floating-point numbers: sign s, exponent field e, mantissa field m, in that order of bits.

    ``(−1)^s · 2^(e − bias) · (1 + m / 2^M)``, and where e = 0 (zero and subnormals)
    ``(−1)^s · 2^(1 − bias) · m / 2^M``.

    A code is the bit pattern: uint8 up to 8 bits; 16 and 32 bits are viewed as int16 and int32,
    so that their codes of negative values are negative. ``codes`` lists both zeros, −0 first;
    encoding keeps the sign of zero. Encoding saturates: what lies beyond the largest finite
    value, infinities included, becomes that value, also where a cast gives infinity or NaN.
    The codes of infinities and NaN decode to those. float64 is rounded to float32 first.

    Sources: IEEE 754-2019 (fp32, fp16); arXiv 2209.05433, table 1, and OCP OFP8 1.0 (fp8);
    arXiv 2310.10537, section 3, and OCP Microscaling 1.0 (fp6, fp4, e8m0).

    e8m0 rounds like all others, to the nearest value, ties to the even code; zero and negative
    numbers saturate to 2^−127. ml_dtypes and torch differ from that: their ties go up, and below
    2^−126 they round up earlier. Neither matters to the scales of MX, which are powers of two
    before they are encoded.

    Attributes:
        name: under which it is registered.
        exponent_bits, mantissa_bits: widths E and M of the fields.
        bias: of the exponent.
        signed: has a sign bit.
        specials: ``ieee``: the largest exponent holds infinities and NaN; ``nan``: only the
            largest code of either sign is NaN; ``none``: every code is a finite value;
            ``scale``: code c is 2^(c − bias) without zero and subnormals, the largest is NaN.

    Raises:
        SchemeError: there is no such format; the message lists every reason.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    signed: bool
    specials: Specials

    def __post_init__(self) -> None:
        reasons = []
        if self.specials == "scale":
            if (self.fields, self.bias) != ((0, 8, 0), 127):
                reasons.append("of scales there is one, e8m0: unsigned, 8 exponent bits, bias 127")
        elif self.specials not in ("ieee", "nan", "none"):
            reasons.append(f"specials are ieee, nan, none or scale, not {self.specials!r}")
        elif self._native is None:
            if not self.signed or self.exponent_bits < 1 or self.mantissa_bits < 1:
                reasons.append("it needs a sign and at least one bit of exponent and mantissa")
            if self.bits > 8:
                reasons.append(f"{self.bits} bits; beyond 8 bits there are fp16, bf16 and fp32")
            elif not -40 <= self.bias <= 100:
                reasons.append(f"bias {self.bias} is not in -40 … 100, where float32 is exact")
        if reasons:
            raise SchemeError(f"{self.name} cannot exist: {'; '.join(reasons)}")

    @property
    def bits(self) -> int:
        """The sum of ``fields``."""
        return sum(self.fields)

    @property
    def dtype(self) -> torch.dtype:
        """``torch.uint8``, ``int16`` or ``int32``."""
        return {16: torch.int16, 32: torch.int32}.get(self.bits, torch.uint8)

    @property
    def family(self) -> str:
        return "minifloat"

    @property
    def fields(self) -> tuple[int, int, int]:
        return int(self.signed), self.exponent_bits, self.mantissa_bits

    @property
    def codes(self) -> Tensor:
        """Codes of finite values, −0 before +0, ascending: int32 ``[n_values]``.

        Raises:
            SchemeError: fp32, which has too many to list.
        """
        if self.bits > 16:
            raise refuse_listing(self)
        positive = torch.arange(self._top + 1, dtype=torch.int32)
        if not self.signed:
            return positive
        sign = -(1 << 15) if self.bits == 16 else 1 << (self.bits - 1)
        return torch.cat([positive.flip(0) + sign, positive])

    @property
    def distinct(self) -> int:
        """Number of finite values; −0 and +0 are one."""
        return 2 * self._top + 1 if self.signed else self._top + 1

    @property
    def min(self) -> float:
        return -self.max if self.signed else self._value(0)

    @property
    def max(self) -> float:
        return self._value(self._top)

    @property
    def step(self) -> float:
        """The smallest subnormal; of e8m0 2^−127, the distance of its two smallest values."""
        return 2.0 ** (-self.bias if self.specials == "scale" else 1 - self.bias - self._m)

    def encode(self, x: Tensor) -> Tensor:
        x = x.detach().to(torch.float32)
        if self.specials == "scale":
            return _encode_scale(x)
        if self._native is None:
            return self._encode_by_addition(x)
        return self._saturate(x.to(self._native))

    def decode(self, codes: Tensor) -> Tensor:
        if self._native is not None and self.bits > 8:
            return codes.to(self.dtype).view(self._native).to(torch.float32, copy=True)
        return look_up(self._table, codes)

    def _saturate(self, cast: Tensor) -> Tensor:
        """Return the codes of a cast, whose overflow went to the code after the largest finite one.

        Of that magnitude, and of no smaller one, adding what is missing to a power of two sets
        the sign bit, which shifted down is −1.
        """
        codes = cast.view(torch.int8 if self.bits == 8 else self.dtype)
        beyond = codes & self._magnitudes
        beyond.add_(self._magnitudes - self._top).bitwise_right_shift_(self.bits - 1)
        return beyond.add_(codes).view(self.dtype)

    def _encode_by_addition(self, x: Tensor) -> Tensor:
        """Round by adding a power of two so large that float32 keeps M bits of mantissa.

        The unit in the last place of ``2^(23 − M) · 2^e`` is that of this format at exponent e,
        so the processor itself rounds the sum half to even, and subnormals only mean that e goes
        no lower. The bits of the sum are then the exponent, from bit 23, and the rounded mantissa,
        from bit 0; the exponent shifted to bit M and added gives the code but for a constant.
        Everything is wanted modulo 256.
        """
        lowest = 1 - self.bias + 127  # float32's exponent field of the smallest normal
        magnitude = x.abs().clamp_max_(self.max)
        power = (magnitude.view(torch.int32) & (0xFF << 23)).clamp_min_(lowest << 23)
        magnitude.add_(power.view(torch.float32), alpha=2.0 ** (23 - self._m))
        total = magnitude.view(torch.int32)
        torch.bitwise_right_shift(total, 23 - self._m, out=power)
        codes = power.add_(total).to(torch.uint8)
        codes.sub_(((lowest + 23 - self._m) << self._m) % 256)
        negative = x.view(torch.int32) >> 31  # 0 or −1, which is 255
        return codes.sub_(negative.to(torch.uint8), alpha=1 << (self.bits - 1))

    @property
    def _m(self) -> int:
        return self.mantissa_bits

    @property
    def _native(self) -> torch.dtype | None:
        key = (self.exponent_bits, self._m, self.bias, self.specials)
        return _NATIVE.get(key) if self.signed else None

    @property
    def _magnitudes(self) -> int:
        """The largest code without a sign, finite or not."""
        return (1 << (self.exponent_bits + self._m)) - 1

    @cached_property
    def _top(self) -> int:
        """Code of the largest finite value."""
        if self.specials == "ieee":
            return self._magnitudes - (1 << self._m)
        return self._magnitudes - (self.specials != "none")

    def _value(self, code: int) -> float:
        """Return the value of a code without a sign, exact."""
        if code > self._top:
            infinite = self.specials == "ieee" and code == self._top + 1
            return float("inf") if infinite else float("nan")
        e, m = code >> self._m, code & ((1 << self._m) - 1)
        if self.specials == "scale":
            return 2.0 ** (e - self.bias)
        leading = (1 << self._m) if e else 0
        return 2.0 ** (max(e, 1) - self.bias - self._m) * (leading + m)

    @cached_property
    def _table(self) -> Tensor:
        positive = [self._value(code) for code in range(self._magnitudes + 1)]
        negative = [-v for v in positive] if self.signed else []
        return torch.tensor(positive + negative, dtype=torch.float32)

    def __repr__(self) -> str:
        return self.name


def _encode_scale(x: Tensor) -> Tensor:
    """Return the codes of e8m0: the exponent field, rounded half to even by the mantissa.

    Adding half of a mantissa less one, and one more where the exponent is odd, carries into the
    exponent exactly where rounding goes up. 2^−127 is a subnormal of float32, without exponent:
    what is at most its midpoint with 2^−126 is cut to 0 first, and so is what is negative.
    """
    bits = torch.nn.functional.threshold(x.view(torch.int32), 0b11 << 21, 0).clamp_max_(254 << 23)
    odd = (bits >> 23).bitwise_and_(1)
    return bits.add_(odd).add_((1 << 22) - 1).bitwise_right_shift_(23).to(torch.uint8)


fp32 = MinifloatFormat("fp32", 8, 23, 127, True, "ieee")
fp16 = MinifloatFormat("fp16", 5, 10, 15, True, "ieee")
bf16 = MinifloatFormat("bf16", 8, 7, 127, True, "ieee")
fp8_e4m3fn = MinifloatFormat("fp8_e4m3fn", 4, 3, 7, True, "nan")
fp8_e5m2 = MinifloatFormat("fp8_e5m2", 5, 2, 15, True, "ieee")
fp6_e2m3fn = MinifloatFormat("fp6_e2m3fn", 2, 3, 1, True, "none")
fp6_e3m2fn = MinifloatFormat("fp6_e3m2fn", 3, 2, 3, True, "none")
fp4_e2m1fn = MinifloatFormat("fp4_e2m1fn", 2, 1, 1, True, "none")
e8m0 = MinifloatFormat("e8m0", 8, 0, 127, False, "scale")

for _format in (fp32, fp16, bf16, fp8_e4m3fn, fp8_e5m2, fp6_e2m3fn, fp6_e3m2fn, fp4_e2m1fn, e8m0):
    NumberFormat.registry.add(_format.name, _format)

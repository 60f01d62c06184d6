"""Powers of two, and sums of a few of them: multiplication by shifts and additions.

>>> pot4.grid[7:].tolist()
[0.0, 0.015625, 0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0]
>>> [round(v, 4) for v in apot4.grid[7:].tolist()]
[0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0]
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, ClassVar, final

import torch
from torch import Tensor

from bitsmith.errors import SchemeError
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.lookup import Nearest, look_up, thresholds

__all__ = [
    "ApotFormat",
    "LogarithmicFormat",
    "PowerOfTwoFormat",
    "apot3",
    "apot4",
    "apot5",
    "apot6",
    "apot7",
    "apot8",
    "pot2",
    "pot3",
    "pot4",
    "pot5",
    "pot6",
    "pot7",
    "pot8",
]


class LogarithmicFormat(NumberFormat):
    """Magnitudes from 0 to 1 and their negatives.

    A code is a sign bit and the rank of the magnitude, ``bits − 1`` bits of it. A sign on zero is
    a code to spare: it is not listed, never encoded, and decodes to 0.

    Attributes:
        prefix: of the name, before the bits.
        fewest: bits; the most are 8.
    """

    prefix: ClassVar[str]
    fewest: ClassVar[int]

    if TYPE_CHECKING:  # as in NumberFormat: a family's members store it

        @property
        @abstractmethod
        def bits(self) -> int: ...

    @property
    @abstractmethod
    def magnitudes(self) -> Tensor:
        """The values that are not negative, ascending from 0 to 1: float32 ``[2^(bits − 1)]``."""

    @abstractmethod
    def rank(self, x: Tensor) -> Tensor:
        """Return which magnitude is nearest to that of each float32 value: uint8."""

    def __post_init__(self) -> None:
        if self.bits not in range(self.fewest, 9):
            raise SchemeError(
                f"{self.prefix} formats have {self.fewest} to 8 bits, not {self.bits}"
            )

    @property
    @final
    def name(self) -> str:
        """``pot4``, ``apot4`` …"""
        return f"{self.prefix}{self.bits}"

    @property
    @final
    def signed(self) -> bool:
        """True."""
        return True

    @property
    @final
    def dtype(self) -> torch.dtype:
        return torch.uint8

    @property
    @final
    def family(self) -> str:
        return "logarithmic"

    @property
    @final
    def codes(self) -> Tensor:
        """Codes in the order of their values, one for zero."""
        positive = torch.arange(1 << (self.bits - 1), dtype=torch.int32)
        return torch.cat([positive[1:].flip(0) + (1 << (self.bits - 1)), positive])

    @property
    @final
    def min(self) -> float:
        return -1.0

    @property
    @final
    def max(self) -> float:
        return 1.0

    @property
    @final
    def step(self) -> float:
        return float(self.magnitudes.double().diff().min())

    @final
    def encode(self, x: Tensor) -> Tensor:
        x = x.detach().to(torch.float32)
        rank = self.rank(x)
        sign = (x.view(torch.int32) >> 31).to(torch.uint8)  # 0, or −1, which is 255
        sign.mul_((rank > 0).view(torch.uint8))
        return rank.sub_(sign, alpha=1 << (self.bits - 1))

    @final
    def decode(self, codes: Tensor) -> Tensor:
        return look_up(self._table, codes)

    @cached_property
    @final
    def _table(self) -> Tensor:
        """The value of every code, of zero's two as well."""
        return torch.cat([self.magnitudes, torch.zeros(1), -self.magnitudes[1:]])

    @final
    def __repr__(self) -> str:
        return self.name


@final
@dataclass(frozen=True, repr=False)
class PowerOfTwoFormat(LogarithmicFormat):
    """Zero and powers of two of either sign, from 1 downwards.

    A code is a sign bit s and an index i of ``bits − 1`` bits: index 0 is zero, every other
    stands for ``(−1)^s · 2^(i − n)`` with ``n = 2^(bits − 1) − 1``. So the ``2n + 1`` values are
    0, ±2^0, ±2^−1 … ±2^(1−n).

    Rounding goes to the nearest value, so between two powers it changes at 1.5 times the lower
    one, as in INQ (arXiv 1702.03044), which of b bits uses the 2^(b−2) largest powers of either
    sign and zero. LogQuant (arXiv 1603.01025) rounds the logarithm instead, which changes at √2.

    Attributes:
        bits: 2 to 8.

    Raises:
        SchemeError: other widths.

    >>> pot3.decode(pot3.encode(torch.tensor([0.7, 0.75, 0.125, -9.0]))).tolist()
    [0.5, 0.5, 0.0, -1.0]
    """

    prefix = "pot"
    fewest = 2

    bits: int

    @property
    def fields(self) -> tuple[int, int, int]:
        return 1, self.bits - 1, 0

    def rank(self, x: Tensor) -> Tensor:
        """Return the nearest power's index, from the exponent of float32 and a rounding carry."""
        magnitude = x.view(torch.int32) & 0x7FFFFFFF
        smallest = (128 - self._n) << 23  # the bits of 2^(1 − n)
        # Half of it goes to zero; of pot8 that is 2^−127, a subnormal.
        half = smallest - (1 << 23) if self._n < 127 else 1 << 22
        bits = magnitude.clamp(smallest, 127 << 23)
        odd = (bits >> 23).bitwise_and_(1)
        bits.add_(odd).add_((1 << 22) - 1).bitwise_right_shift_(23).sub_(127 - self._n)
        return bits.to(torch.uint8).mul_((magnitude > half).view(torch.uint8))

    @cached_property
    def magnitudes(self) -> Tensor:
        powers = [2.0 ** (i - self._n) for i in range(1, self._n + 1)]
        return torch.tensor([0.0, *powers], dtype=torch.float32)

    @property
    def _n(self) -> int:
        return (1 << (self.bits - 1)) - 1


@final
@dataclass(frozen=True, repr=False)
class ApotFormat(LogarithmicFormat):
    """Additive powers of two: every value is a sum of n powers of two, of either sign.

    arXiv 1909.13144, equation (5), with terms of k = 2 bits. The ``b = bits − 1`` bits beside
    the sign choose ``Σ pᵢ`` over i = 0 … n − 1. For even b = 2n,
    ``pᵢ ∈ {0, 2^−i, 2^−(i+n), 2^−(i+2n)}``; for odd b = 2n + 1,
    ``pᵢ ∈ {0, 2^−i, 2^−(i+n), 2^−(i+2n+1)}`` and one more term in ``{0, 2^−2n}``, as the
    authors' code has it for b = 3 and 5 (b = 7 follows the same formula). No two choices have
    the same sum, so all ``2^b`` magnitudes differ.

    The sums are divided by the largest, so that it is 1, and rounded to float32: these rounded
    values are the values of the format. A code is a sign bit and the rank of the magnitude, not
    the choices of the terms.

    Attributes:
        bits: 3 to 8; with 2 there is one term and no sum (``pot2`` is {−1, 0, 1}).

    Raises:
        SchemeError: other widths.

    >>> apot3.grid[3:].tolist()
    [0.0, 0.25, 0.5, 1.0]
    """

    prefix = "apot"
    fewest = 3

    bits: int

    @property
    def fields(self) -> tuple[int, int, int]:
        """A rank has no exponent: all but the sign counts as mantissa."""
        return 1, 0, self.bits - 1

    def rank(self, x: Tensor) -> Tensor:
        return self._nearest(x.abs())

    @cached_property
    def magnitudes(self) -> Tensor:
        n, odd = divmod(self.bits - 1, 2)
        powers = [(None, i, i + n, i + 2 * n + odd) for i in range(n)]
        terms = [*powers, (None, 2 * n)] if odd else powers
        sums = sorted(
            sum((Fraction(1, 1 << e) for e in chosen if e is not None), Fraction(0))
            for chosen in product(*terms)
        )
        return torch.tensor([float(s / sums[-1]) for s in sums], dtype=torch.float32)

    @cached_property
    def _nearest(self) -> Nearest:
        magnitudes = self.magnitudes.tolist()
        return Nearest(thresholds(magnitudes, range(len(magnitudes))))


pot2, pot3, pot4, pot5, pot6, pot7, pot8 = (PowerOfTwoFormat(b) for b in range(2, 9))
apot3, apot4, apot5, apot6, apot7, apot8 = (ApotFormat(b) for b in range(3, 9))

for _pot in (pot2, pot3, pot4, pot5, pot6, pot7, pot8):
    NumberFormat.registry.add(_pot.name, _pot)
for _apot in (apot3, apot4, apot5, apot6, apot7, apot8):
    NumberFormat.registry.add(_apot.name, _apot)

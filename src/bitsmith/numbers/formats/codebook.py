"""Values from a table: nf4, tables of one's own, and tables learned for each tensor.

>>> nf4.decode(torch.tensor([0, 7, 8, 15], dtype=torch.uint8)).tolist()
[-1.0, 0.0, 0.07958029955625534, 1.0]
>>> nf4.encode(torch.tensor([-2.0, 0.039, 0.041, 0.9])).tolist()
[0, 7, 8, 15]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import NoReturn, final

import torch
from torch import Tensor

from bitsmith.errors import SchemeError
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.lookup import Nearest, look_up, thresholds

__all__ = [
    "LearnedFormat",
    "TableFormat",
    "codebook1",
    "codebook2",
    "codebook3",
    "codebook4",
    "codebook5",
    "codebook6",
    "codebook7",
    "codebook8",
    "nf4",
    "table_format",
]


@final
@dataclass(frozen=True, repr=False)
class TableFormat(NumberFormat):
    """A table of values; a code is the index into the ascending values.

    ``decode(code) = values[code]``. ``encode`` compares with thresholds that are exact in
    float32 (:func:`bitsmith.numbers.lookup.thresholds`). Make one with :func:`table_format`,
    which takes the values in any order.

    Attributes:
        name: what it is called; nf4 is registered, a table of one's own is not.
        values: 2 to 256 float32 values, ascending.

    Raises:
        SchemeError: too few or too many values, not finite, not float32, or not ascending.
    """

    name: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        rounded = tuple(torch.tensor(self.values, dtype=torch.float32).tolist())
        if not 2 <= len(self.values) <= 256:
            raise SchemeError(f"{self.name}: a table has 2 to 256 values, not {len(self.values)}")
        if wrong := [v for v, r in zip(self.values, rounded, strict=True) if v != r]:
            raise SchemeError(
                f"{self.name}: {_listed(wrong)} not float32 values; table_format() rounds them"
            )
        steps = zip(self.values, self.values[1:], strict=False)
        if wrong := [high for low, high in steps if low >= high]:
            raise SchemeError(
                f"{self.name}: {_listed(wrong)} not above the value before; table_format() sorts"
            )
        if wrong := [v for v in self.values if not isfinite(v)]:
            raise SchemeError(f"{self.name}: {_listed(wrong)} not finite")

    @property
    def bits(self) -> int:
        """Bits of the largest index."""
        return (len(self.values) - 1).bit_length()

    @property
    def signed(self) -> bool:
        """True when a value is negative."""
        return self.values[0] < 0

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    @property
    def family(self) -> str:
        return "codebook"

    @property
    def fields(self) -> tuple[int, int, int]:
        return 0, 0, self.bits

    @property
    def codes(self) -> Tensor:
        return torch.arange(len(self.values), dtype=torch.int32)

    @property
    def min(self) -> float:
        return self.values[0]

    @property
    def max(self) -> float:
        return self.values[-1]

    @property
    def step(self) -> float:
        return min(b - a for a, b in zip(self.values, self.values[1:], strict=False))

    def encode(self, x: Tensor) -> Tensor:
        return self._nearest(x.detach().to(torch.float32))

    def decode(self, codes: Tensor) -> Tensor:
        """Return ``values[code]``; an index beyond the table is an IndexError."""
        return look_up(self._table, codes)

    @cached_property
    def _nearest(self) -> Nearest:
        return Nearest(thresholds(self.values, range(len(self.values))))

    @cached_property
    def _table(self) -> Tensor:
        return torch.tensor(self.values, dtype=torch.float32)

    def __repr__(self) -> str:
        return self.name


def table_format(name: str, values: Iterable[float]) -> TableFormat:
    """Return a format of these values, in any order; each is rounded to float32.

    Args:
        name: what to call it.
        values: 2 to 256 finite numbers, distinct in float32.

    Raises:
        SchemeError: lists what is not finite or not distinct.

    >>> table_format("thirds", [1, -1, 1 / 3, -1 / 3]).encode(torch.tensor([0.0, 0.7])).tolist()
    [2, 3]
    """
    exact = torch.tensor(sorted(float(v) for v in values), dtype=torch.float32)
    rounded = [v + 0.0 for v in exact.tolist()]  # −0 is 0
    if wrong := [v for v in rounded if not isfinite(v)]:
        raise SchemeError(f"{name}: {_listed(wrong)} not finite in float32")
    if wrong := [v for v, times in Counter(rounded).items() if times > 1]:
        raise SchemeError(f"{name}: {_listed(wrong)} in the table more than once (as float32)")
    return TableFormat(name, tuple(rounded))


def _listed(values: list[float]) -> str:
    return f"{', '.join(f'{v:g}' for v in values)} {'is' if len(values) == 1 else 'are'}"


@final
@dataclass(frozen=True, repr=False)
class LearnedFormat(NumberFormat):
    """Indices into a table that is learned for each tensor, channel or group.

    The values are in the quantized tensor (``QTensor.codebook``), not here: this format knows
    how many there are, and nothing that depends on them.

    Attributes:
        bits: of an index, 1 to 8; the table has ``2^bits`` entries.
        dimension: weights in one entry, 1 to 8. With more than one the table holds vectors
            (product quantization), and a weight takes ``bits / dimension`` bits.

    Raises:
        SchemeError: there is no such format, or it was asked for something the table knows.

    >>> codebook4, len(codebook4.codes), LearnedFormat(8, dimension=4)
    (codebook4, 16, codebook8x4)
    """

    bits: int
    dimension: int = 1

    def __post_init__(self) -> None:
        if self.bits not in range(1, 9) or self.dimension not in range(1, 9):
            raise SchemeError(
                "a learned table has indices of 1 to 8 bits and entries of 1 to 8 weights, not "
                f"{self.bits} bits and {self.dimension} weights"
            )

    @property
    def name(self) -> str:
        """``codebook4``; ``codebook8x4`` with vectors of four."""
        return f"codebook{self.bits}" + (f"x{self.dimension}" if self.dimension > 1 else "")

    @property
    def signed(self) -> bool:
        """True: a table may have negative values."""
        return True

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    @property
    def family(self) -> str:
        return "learned"

    @property
    def fields(self) -> tuple[int, int, int]:
        return 0, 0, self.bits

    @property
    def codes(self) -> Tensor:
        """All indices, ``0 … 2^bits − 1``; tables are kept in ascending order."""
        return torch.arange(1 << self.bits, dtype=torch.int32)

    @property
    def min(self) -> NoReturn:
        self._refuse("smallest value")

    @property
    def max(self) -> NoReturn:
        self._refuse("largest value")

    @property
    def step(self) -> NoReturn:
        self._refuse("smallest step")

    def encode(self, x: Tensor) -> NoReturn:
        self._refuse(f"codes for a tensor of shape {tuple(x.shape)}")

    def decode(self, codes: Tensor) -> NoReturn:
        self._refuse(f"values for codes of shape {tuple(codes.shape)}")

    def _refuse(self, what: str) -> NoReturn:
        raise SchemeError(
            f"{self.name} has no {what}: its table belongs to each quantized tensor "
            "(QTensor.codebook); quantize learns one, QTensor.dequantize reads it"
        )

    def __repr__(self) -> str:
        return self.name


# arXiv 2305.14314, appendix E, as printed there.
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
nf4 = TableFormat("nf4", _NF4)
codebook1, codebook2, codebook3, codebook4, codebook5, codebook6, codebook7, codebook8 = (
    LearnedFormat(b) for b in range(1, 9)
)

NumberFormat.registry.add(nf4.name, nf4)
for _format in (codebook1, codebook2, codebook3, codebook4):
    NumberFormat.registry.add(_format.name, _format)
for _format in (codebook5, codebook6, codebook7, codebook8):
    NumberFormat.registry.add(_format.name, _format)

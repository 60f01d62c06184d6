"""Number formats: a finite set of values, each with an integer code.

One file per family. A format is data: :class:`NumberFormat` instances register under their
name, and everything else (schemes, calibrators, exporters) asks the instance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, final

import torch
from torch import Tensor

from bitsmith.errors import SchemeError
from bitsmith.registry import Registry

__all__ = ["NumberFormat", "formats"]


class NumberFormat(ABC):
    """A finite, sorted set of representable values with one integer code each.

    The contract, tested for every registered format over all codes and all midpoints:
    ``decode(code)`` is exact in float32; ``encode(x)`` is the nearest value's code, ties to the
    even code, saturating at both ends; ``encode(decode(c)) == c``.

    Attributes:
        name: under which it is registered.
        bits: of a code; codes are held one a ``dtype``, and packed only where they are stored.
        signed: has negative values.
    """

    registry: ClassVar[Registry[NumberFormat]] = Registry("format", __name__)

    if TYPE_CHECKING:
        # A family stores each of these or derives it. Abstract for the type checker only: an
        # abstract property that is there at run time would stand in the way of a stored one.
        @property
        @abstractmethod
        def name(self) -> str: ...
        @property
        @abstractmethod
        def bits(self) -> int: ...
        @property
        @abstractmethod
        def signed(self) -> bool: ...

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The torch type that holds one code."""

    @property
    @abstractmethod
    def family(self) -> str:
        """``integer``, ``minifloat``, ``codebook``, ``learned`` or ``logarithmic``."""

    @property
    @abstractmethod
    def fields(self) -> tuple[int, int, int]:
        """Bits of sign, exponent and mantissa; they sum to ``bits``.

        What is neither sign nor exponent counts as mantissa: all of an index into a table.
        """

    @property
    @abstractmethod
    def codes(self) -> Tensor:
        """All codes of finite values, in the order of their values: int32 ``[n_values]``.

        Formats with a code for −0 list it before that of +0.

        Raises:
            SchemeError: more than 16 bits, too many to list.
        """

    @property
    @abstractmethod
    def min(self) -> float:
        """Smallest representable value."""

    @property
    @abstractmethod
    def max(self) -> float:
        """Largest representable value."""

    @property
    @abstractmethod
    def step(self) -> float:
        """Smallest positive distance between two values."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return the code of the nearest value, shape of ``x``; NaN is the caller's to refuse."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Return the exact float32 value of each code, shape of ``codes``."""

    @property
    @final
    def grid(self) -> Tensor:
        """All finite values, ascending: float32 ``[n_values]``."""
        return self.decode(self.codes.to(self.dtype))


def refuse_listing(number: NumberFormat) -> SchemeError:
    """Return the error of a format with too many codes to list."""
    return SchemeError(f"{number.name} has 2^{number.bits} codes, too many to list")


formats = NumberFormat.registry

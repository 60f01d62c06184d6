"""Number formats: a finite set of values, each with an integer code.

One file per family. A format is data: :class:`NumberFormat` instances register under their
name, and everything else (schemes, calibrators, exporters) asks the instance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from bitsmith.registry import Registry

__all__ = ["NumberFormat", "formats"]


class NumberFormat(ABC):
    """A finite, sorted set of representable values with one integer code each.

    The contract, tested for every registered format over all codes and all midpoints:
    ``decode(code)`` is exact in float32; ``encode(x)`` is the nearest value's code, ties to the
    even code, saturating at both ends; ``encode(decode(c)) == c``.
    """

    registry: ClassVar[Registry[NumberFormat]] = Registry("format", __name__)

    name: str
    bits: int

    @property
    @abstractmethod
    def codes(self) -> Tensor:
        """All codes in the order of their values: int32 ``[n_values]``."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return the code of the nearest value, shape of ``x``; NaN is the caller's to refuse."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Return the exact float32 value of each code, shape of ``codes``."""

    @property
    def grid(self) -> Tensor:
        """All values, ascending: float32 ``[n_values]``."""
        return self.decode(self.codes)

    @property
    def max(self) -> float:
        """Largest representable value."""
        return float(self.grid[-1])

    @property
    def min(self) -> float:
        """Smallest representable value."""
        return float(self.grid[0])


formats = NumberFormat.registry

"""What every statistic of the family promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor

from bitsmith.registry import Registry

__all__ = ["Statistic"]


class Statistic(ABC):
    """A summary of a stream of values; its size does not grow with the stream.

    Contract, tested for every subclass: ``a.update(x); a.update(y)`` leaves the state that
    merging a statistic of ``y`` into one of ``x`` does, in either order, bit for bit where
    :attr:`exact` is true and with a relative error of at most 1e-12 where it is not; an empty
    batch changes nothing; a batch with NaN or infinite values raises DataError and changes
    nothing; values are taken as float32, whatever floating-point type and layout they come in.

    Members can be constructed without arguments.
    """

    registry: ClassVar[Registry[type[Statistic]]] = Registry(
        "statistic", "bitsmith.numbers.statistics"
    )

    name: ClassVar[str]
    exact: ClassVar[bool]
    """True when merging is bit for bit one pass; else the state is rounded sums in float64."""

    count: int
    """Values seen."""

    def __init_subclass__(cls, *, name: str, exact: bool) -> None:
        cls.name, cls.exact = name, exact
        Statistic.registry.add(name, cls)

    @property
    def empty(self) -> bool:
        """True before the first value."""
        return self.count == 0

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """Take in a batch of floating-point values, any shape.

        Raises:
            DataError: ``x`` has NaN or infinite values, or is not floating point, or has not
                the shape that earlier batches ask for.
        """

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Take in everything that ``other`` has seen; ``other`` is not changed. Return self.

        Raises:
            DataError: the two were set up differently.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the whole state: numbers and CPU tensors, as :meth:`from_state` reads it."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return the statistic whose :meth:`state_dict` is ``state``."""

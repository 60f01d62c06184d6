"""Which values of a tensor share one scale.

A granularity means exactly one thing: the shape of the scale for a tensor's shape. That shape
broadcasts against the tensor, so nothing else needs to know which granularity it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from bitsmith.errors import SchemeError, UnknownNameError

__all__ = ["Granularity", "PerChannel", "PerTensor"]


class Granularity(ABC):
    """Which values share a scale. Members are frozen dataclasses that register by definition."""

    kinds: ClassVar[dict[str, type[Granularity]]] = {}

    name: ClassVar[str]

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Granularity.kinds[name] = cls

    @abstractmethod
    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the scale of a tensor of ``shape``; it broadcasts against it.

        Raises:
            SchemeError: a tensor of that shape cannot be divided this way.
        """

    def to_json(self) -> dict[str, Any]:
        """Return ``{"name": ..., **fields}``, the inverse of :meth:`from_json`."""
        return {"name": self.name, **vars(self)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Granularity:
        """Return the granularity that :meth:`to_json` wrote.

        >>> Granularity.from_json({"name": "per_channel", "axis": 1})
        PerChannel(axis=1)
        """
        fields = dict(data)
        name = str(fields.pop("name", None))
        if name not in Granularity.kinds:
            raise UnknownNameError("granularity", name, Granularity.kinds)
        try:
            return Granularity.kinds[name](**fields)
        except TypeError as error:
            raise SchemeError(
                f"granularity {name!r} cannot be read from {fields}: {error}"
            ) from None


@final
@dataclass(frozen=True)
class PerTensor(Granularity, name="per_tensor"):
    """One scale for the whole tensor.

    >>> PerTensor().scale_shape((16, 3, 5, 5))
    ()
    """

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return ()


@final
@dataclass(frozen=True)
class PerChannel(Granularity, name="per_channel"):
    """One scale for each index of ``axis``; a negative axis counts from the end.

    >>> PerChannel(0).scale_shape((16, 3, 5, 5))
    (16, 1, 1, 1)
    >>> PerChannel(-1).scale_shape((7, 4))
    (1, 4)
    """

    axis: int = 0

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        rank = len(shape)
        if not -rank <= self.axis < rank:
            raise SchemeError(
                f"per-channel axis {self.axis} does not exist in a tensor of shape {tuple(shape)}; "
                + (f"it is between {-rank} and {rank - 1}" if rank else "a scalar has no channels")
            )
        axis = self.axis % rank
        return tuple(size if i == axis else 1 for i, size in enumerate(shape))

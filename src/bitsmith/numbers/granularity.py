"""Which values of a tensor share one scale.

A granularity means exactly one thing: the shape of the scale for a tensor's shape. It has one
scale, or as many axes as the tensor, each cut into equal blocks; :func:`blocked` gives the shapes
in which the two broadcast, so nothing else needs to know which granularity it is.

>>> PerGroup(64).scale_shape((16, 256)), blocked((16, 256), (16, 4))
((16, 4), ((16, 4, 64), (16, 4, 1)))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from bitsmith.errors import SchemeError, UnknownNameError

__all__ = ["Granularity", "PerBlock", "PerChannel", "PerGroup", "PerTensor", "PerToken", "blocked"]


class Granularity(ABC):
    """Which values share a scale. Members are frozen dataclasses that register by definition."""

    kinds: ClassVar[dict[str, type[Granularity]]] = {}

    name: ClassVar[str]

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Granularity.kinds[name] = cls

    @abstractmethod
    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the scale of a tensor of ``shape``.

        Either ``()``, or one number per axis that divides that axis.

        Raises:
            SchemeError: a tensor of that shape cannot be divided this way.
        """

    def to_json(self) -> dict[str, Any]:
        """Return ``{"name": ..., **fields}``, the inverse of :meth:`from_json`."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return {"name": self.name, **fields}

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
            return Granularity.kinds[name](**{k: _plain(v) for k, v in fields.items()})
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
        axis = _axis("per-channel", self.axis, shape)
        return tuple(size if i == axis else 1 for i, size in enumerate(shape))


@final
@dataclass(frozen=True)
class PerGroup(Granularity, name="per_group"):
    """One scale for each ``size`` neighbours along ``axis``, every other axis kept apart.

    The groups of a linear weight ``[out, in]`` run along the last axis, the default; those of a
    convolution ``[out, in, *kernel]`` along axis 1, its reduction.

    Raises:
        SchemeError: the size is below 1, or (with a tensor) does not divide the axis.

    >>> PerGroup(64).scale_shape((16, 256)), PerGroup(8, axis=1).scale_shape((32, 16, 3, 3))
    ((16, 4), (32, 2, 3, 3))
    """

    size: int
    axis: int = -1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SchemeError(f"a group has at least one value, not {self.size}")

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        axis = _axis("per-group", self.axis, shape)
        if left := shape[axis] % self.size:
            raise SchemeError(
                f"group_size must divide axis {axis} of shape {tuple(shape)}: {shape[axis]} % "
                f"{self.size} = {left}; nearest: {_nearest_divisors(shape[axis], self.size)}"
            )
        return tuple(n // self.size if i == axis else n for i, n in enumerate(shape))


@final
@dataclass(frozen=True)
class PerToken(Granularity, name="per_token"):
    """One scale for each vector along the last axis: each token of an activation ``[..., K]``.

    >>> PerToken().scale_shape((2, 7, 384))
    (2, 7, 1)
    """

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        _axis("per-token", -1, shape)
        return (*shape[:-1], 1)


@final
@dataclass(frozen=True)
class PerBlock(Granularity, name="per_block"):
    """One scale for each block of ``shape`` of the last axes; axes before them are kept apart.

    −1 stands for the whole of an axis: ``PerBlock((8, -1))`` is eight rows at a time.

    Raises:
        SchemeError: a block without values, or (with a tensor) one that does not divide it.

    >>> PerBlock((128, 128)).scale_shape((512, 256))
    (4, 2)
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not self.shape or any(n < 1 and n != -1 for n in self.shape):
            raise SchemeError(f"a block has at least one value along each axis, not {self.shape}")

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        lead = len(shape) - len(self.shape)
        if lead < 0:
            raise SchemeError(
                f"a block of shape {self.shape} needs a tensor with at least {len(self.shape)} "
                f"axes, not {tuple(shape)}"
            )
        sizes = [
            (n, max(n, 1) if b == -1 else b) for n, b in zip(shape[lead:], self.shape, strict=True)
        ]
        misfits = [
            f"{n} % {b} = {n % b} on axis {lead + i} (nearest: {_nearest_divisors(n, b)})"
            for i, (n, b) in enumerate(sizes)
            if n % b
        ]
        if misfits:
            raise SchemeError(
                f"the block {self.shape} must divide shape {tuple(shape)}: {', '.join(misfits)}"
            )
        return (*shape[:lead], *(n // b for n, b in sizes))


def blocked(
    shape: Sequence[int], scale_shape: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of tensor and scale, of the same elements each, in which they broadcast.

    An axis of n values with s scales, 1 < s < n, becomes two: s blocks of n/s values.

    >>> blocked((16, 256), (16, 1)), blocked((6, 4), (3, 2))
    (((16, 256), (16, 1)), ((3, 2, 2, 2), (3, 1, 2, 1)))
    """
    if not scale_shape:
        return tuple(shape), ()
    wide: list[int] = []
    narrow: list[int] = []
    for n, s in zip(shape, scale_shape, strict=True):
        wide += [n] if s in (1, n) else [s, n // s]
        narrow += [s] if s in (1, n) else [s, 1]
    return tuple(wide), tuple(narrow)


def _axis(kind: str, axis: int, shape: Sequence[int]) -> int:
    rank = len(shape)
    if not -rank <= axis < rank:
        raise SchemeError(
            f"{kind} axis {axis} does not exist in a tensor of shape {tuple(shape)}; "
            + (f"it is between {-rank} and {rank - 1}" if rank else "a scalar has no channels")
        )
    return axis % rank


def _nearest_divisors(n: int, size: int) -> str:
    """Return the divisors of ``n`` next below and above ``size``."""
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    below = [d for d in divisors if d < size][-1:]
    above = [d for d in divisors if d > size][:1]
    return ", ".join(map(str, below + above))


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

"""One ATen call as plain data, and what it is lowered to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

__all__ = ["Call", "Lowered", "Lowering", "lowers"]


@final
@dataclass(frozen=True)
class Call:
    """One ATen call.

    Attributes:
        args: every argument by its name in the schema.
        shapes: of the arguments that are tensors.
        shape, dtype: of the result.
        kept: axes of the result that have the size of the first argument's axis at that place.
    """

    args: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    shape: tuple[int, ...]
    kept: frozenset[int] = frozenset()
    dtype: str = "float32"

    def spatial(self, name: str, default: Any = None) -> list[int]:
        """Return an int-or-list argument as one integer per spatial dimension."""
        rank = len(self.shape) - 2
        value = self.args.get(name)
        value = default if value is None or value == [] else value
        values = [value] if isinstance(value, int) else list(value)
        return values * rank if len(values) == 1 else values


@final
@dataclass(frozen=True)
class Lowered:
    """A word, the schema names of its tensor inputs and of its own parameters by role."""

    op: str
    inputs: Sequence[str] = ("self",)
    attrs: dict[str, Any] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)


Lowering = Callable[[Call], Lowered | None]


def lowers(table: dict[str, Lowering], *names: str) -> Callable[[Lowering], Lowering]:
    """Return a decorator that puts a lowering into ``table`` under operator names."""

    def register(function: Lowering) -> Lowering:
        table.update(dict.fromkeys(names, function))
        return function

    return register

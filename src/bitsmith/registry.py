"""Families whose members register by being defined.

A family is an abstract base class with a :class:`Registry`. Its class statement registers a
member: ``class Mse(Calibrator, name="mse")``. The files of the family's folder ("leaves") are
imported on the first look-up, so adding a member is adding one file and nothing else.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Generic, TypeVar, final

from bitsmith.errors import UnknownNameError

__all__ = ["Registry"]

T = TypeVar("T")


@final
class Registry(Generic[T]):
    """Names to members of one family, filled by importing the leaves of a package once.

    Args:
        kind: what a member is called in messages, for example ``"calibrator"``.
        package: dotted name of the package whose modules define the members.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._members: dict[str, T] = {}
        self._loaded = False

    def add(self, name: str, member: T) -> None:
        """Register ``member``; a name taken by another definition is a programming error."""
        known = self._members.get(name)
        if known is not None and getattr(known, "__module__", 0) != getattr(
            member, "__module__", 1
        ):
            raise TypeError(f"two {self.kind}s are named {name!r}: {known!r} and {member!r}")
        self._members[name] = member

    def __getitem__(self, name: str) -> T:
        """Return the member called ``name``; UnknownNameError suggests the nearest name."""
        self._load()
        if name not in self._members:
            raise UnknownNameError(self.kind, name, self._members)
        return self._members[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        self._load()
        return iter(sorted(self._members))

    def __len__(self) -> int:
        self._load()
        return len(self._members)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self._package)
        for leaf in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{leaf.name}")

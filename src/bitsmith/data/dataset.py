"""The family of data sets: a name, its splits, and how each is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from bitsmith.data.split import Split
from bitsmith.errors import UnknownNameError
from bitsmith.registry import Registry

__all__ = ["Dataset", "datasets"]


class Dataset(ABC):
    """Named splits of samples; a split is read when it is first asked for, and kept.

    A member of the family gives its name in the class statement,
    ``class Digits(Dataset, name="digits")``, and is constructed without arguments. Contract,
    tested for every registered data set: reading twice gives the same arrays.
    """

    registry: ClassVar[Registry[type[Dataset]]] = Registry("data set", "bitsmith.data")

    name: str

    def __init_subclass__(cls, *, name: str | None = None) -> None:
        if name is not None:
            cls.name = name
            Dataset.registry.add(name, cls)

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, for example ``("train", "test")``."""

    @abstractmethod
    def read(self, split: str) -> Split:
        """Read one of :attr:`splits`; called by :meth:`split`, once per name.

        Raises:
            DataError: the data is absent and cannot be fetched, or is damaged.
        """

    def split(self, name: str) -> Split:
        """Return the split called ``name``, read on first use.

        Raises:
            UnknownNameError: there is no such split; the message lists those there are.
            DataError: the data is absent and cannot be fetched, or is damaged.
        """
        if name not in self.splits:
            raise UnknownNameError(f"split of {self.name!r}", name, self.splits)
        kept: dict[str, Split] = self.__dict__.setdefault("_kept", {})
        if name not in kept:
            kept[name] = self.read(name)
        return kept[name]


datasets = Dataset.registry

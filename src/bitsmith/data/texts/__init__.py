"""The family of text data sets: a name, its splits, and how each is read.

One file per data set. They are apart from the data sets of samples (``bitsmith.data.datasets``),
because a text has no fixed shape and no class: a split is rows of token ids, or pairs of rows with
a score. The tokens are those of the model that the data set judges.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from bitsmith.data.fetch import cache_folder, data_folder
from bitsmith.data.token_rows import TokenPairs, TokenRows
from bitsmith.errors import DataError, UnknownNameError
from bitsmith.registry import Registry

__all__ = ["TextDataset", "find_text", "load_text", "texts"]


class TextDataset(ABC):
    """Named splits of texts; a split is read when it is first asked for, and kept.

    A member gives its name in the class statement, ``class Stsb(TextDataset, name="stsb")``, and
    is constructed without arguments. Contract, tested for every member: reading twice gives the
    same rows, and no row of another split is in the one that judges.
    """

    registry: ClassVar[Registry[type[TextDataset]]] = Registry("text data set", __name__)

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    """The names of the splits; the last one judges a model."""

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        TextDataset.registry.add(name, cls)

    @abstractmethod
    def read(self, split: str) -> TokenRows | TokenPairs:
        """Read one of :attr:`splits`; called by :meth:`split`, once per name.

        Raises:
            DataError: the data is absent or damaged.
            RuntimeMissingError: the tokenizer is not installed.
        """

    def split(self, name: str) -> TokenRows | TokenPairs:
        """Return the split called ``name``, read on first use.

        Raises:
            UnknownNameError: there is no such split; the message lists those there are.
            DataError, RuntimeMissingError: as :meth:`read`.
        """
        if name not in self.splits:
            raise UnknownNameError(f"split of {self.name!r}", name, self.splits)
        kept: dict[str, TokenRows | TokenPairs] = self.__dict__.setdefault("_kept", {})
        if name not in kept:
            kept[name] = self.read(name)
        return kept[name]


texts = TextDataset.registry


def load_text(name: str) -> TextDataset:
    """Return the text data set called ``name``.

    Raises:
        UnknownNameError: no text data set has that name.

    >>> load_text("stsb").splits
    ('calibration', 'dev')
    """
    return texts[name]()


def find_text(dataset: str, file: str, source: str) -> Path:
    """Return where ``file`` is: in ``$BITSMITH_DATA``, or else in the cache.

    Args:
        dataset: the text data set, for messages.
        file: its name there.
        source: where it can be had, in words.

    Raises:
        DataError: in neither.
    """
    places = [place for place in (data_folder(), cache_folder()) if place is not None]
    for place in places:
        if (place / file).is_file():
            return place / file
    unset = "" if len(places) > 1 else " (BITSMITH_DATA is not set)"
    raise DataError(
        f"text data set {dataset!r}: no {file} in {', '.join(map(str, places))}{unset}; put it "
        f"there: {source}"
    )

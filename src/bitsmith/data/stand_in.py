"""A data set, or where it is absent another one that is always there."""

from __future__ import annotations

from bitsmith.data.dataset import Dataset
from bitsmith.data.load import load_dataset
from bitsmith.errors import DataError

__all__ = ["load_or_stand_in"]

_ALWAYS_THERE = "digits"


def load_or_stand_in(name: str, usual: str | None) -> tuple[Dataset, list[str]]:
    """Return the data set ``name`` and no words; or scikit-learn's digits, and why.

    Only ``usual``, which nobody has asked for by name, is replaced.

    Args:
        name: as of :func:`~bitsmith.data.load.load_dataset`.
        usual: what is taken unless something else is asked for.

    Raises:
        DataError: ``name`` is not ``usual``, and its train split cannot be read.
        UnknownNameError: there is no such data set.

    >>> dataset, reasons = load_or_stand_in("moons", usual="mnist")
    >>> dataset.name, reasons
    ('moons', [])
    """
    found = load_dataset(name)
    try:
        found.split("train")
    except DataError as error:
        if name != usual:
            raise
        reason = f"{name}: {error}; everything here is of {_ALWAYS_THERE}"
        return load_dataset(_ALWAYS_THERE), [reason]
    return found, []

"""From what a user writes to a data set: a name, an ``.npz``, or a function."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from bitsmith.data.dataset import Dataset, datasets
from bitsmith.data.npz import npz_keys, read_npz
from bitsmith.data.split import Normalization, Split
from bitsmith.data.texts import texts
from bitsmith.errors import DataError, UnknownNameError

__all__ = ["load_dataset"]

Array = NDArray[Any]


def load_dataset(name_or_path: str, *, split: str | None = None) -> Dataset:
    """Return the data set that ``name_or_path`` means.

    - a registered name, for example ``"cifar10"``;
    - the path of an ``.npz`` with ``x_train``, ``y_train``, ``x_test``, ``y_test`` (one pair is
      enough), or with ``x`` and ``y``, which is one split that ``split`` must name. Labels may
      be missing. ``x`` is float and model-ready, or uint8 [N, C, …] with ``mean`` and ``std``
      per channel in the same file, in units of ``x / 255``;
    - ``package.module:callable``, called with ``"train"`` or ``"test"`` when that split is
      asked for. It returns ``(x, y)`` as arrays or tensors (``y`` may be None), or an iterable
      of batches ``(x, y)`` or ``x``, which is gathered into memory. ``x`` is model-ready.

    Args:
        name_or_path: see above.
        split: which split an ``.npz`` with ``x`` and ``y`` is. Other data sets know their
            splits; then it is only checked to be one of them.

    Raises:
        UnknownNameError: no data set has that name (the nearest is suggested), or no split.
        DataError: the file or the function cannot be read; an ``.npz`` with one split and no
            ``split``; a text data set.

    >>> load_dataset("moons").split("test").n
    300
    """
    dataset: Dataset
    if name_or_path in datasets:
        dataset = datasets[name_or_path]()
    elif name_or_path.endswith(".npz"):
        return NpzDataset(Path(name_or_path), split)
    elif ":" in name_or_path:
        dataset = FunctionDataset(name_or_path)
    elif name_or_path in texts:
        raise DataError(
            f"{name_or_path!r} is a text data set: its rows of token ids have no fixed shape, and "
            "samples [N, …] are needed here; bitsmith.data.texts.load_text reads it"
        )
    else:
        raise UnknownNameError("data set", name_or_path, {*datasets, *texts})
    if split is not None and split not in dataset.splits:
        raise UnknownNameError(f"split of {name_or_path!r}", split, dataset.splits)
    return dataset


@final
class NpzDataset(Dataset):
    """The splits of one ``.npz`` file; see :func:`load_dataset`."""

    def __init__(self, path: Path, only: str | None) -> None:
        self.name = str(path)
        self._path = path
        self._keys = npz_keys(path)
        named = [s for s in ("train", "test") if f"x_{s}" in self._keys]
        if "x" in self._keys and named:
            raise DataError(f"{self.name!r} holds x and x_{named[0]}; which samples are meant?")
        if "x" in self._keys:
            if only is None:
                raise DataError(
                    f"{self.name!r} holds one split (x, y) and does not say which; name it, "
                    "train or test, with --split or load_dataset(…, split=…)"
                )
            self._arrays = {only: ("x", "y")}
        elif named:
            self._arrays = {s: (f"x_{s}", f"y_{s}") for s in named}
            if only is not None and only not in named:
                raise UnknownNameError(f"split of {self.name!r}", only, named)
        else:
            raise DataError(
                f"{self.name!r} holds {', '.join(self._keys) or 'no arrays'}; it must hold "
                "x and y, or x_train, y_train, x_test and y_test"
            )

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._arrays)

    def read(self, split: str) -> Split:
        x_key, y_key = self._arrays[split]
        wanted = [k for k in (x_key, y_key, "mean", "std") if k in self._keys]
        arrays = read_npz(self._path, wanted)
        y = arrays.get(y_key)
        normalization = _normalization(self.name, arrays)
        return Split(self.name, split, arrays[x_key], y, normalization, f"file {self._path.name}")


@final
class FunctionDataset(Dataset):
    """What a function returns for each split; see :func:`load_dataset`."""

    splits = ("train", "test")

    def __init__(self, name: str) -> None:
        self.name = name
        self._function = _import(name)

    def read(self, split: str) -> Split:
        try:
            x, y = _gather(self.name, self._function(split))
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"data {self.name!r} failed for the split {split!r} with "
                f"{type(error).__name__}: {error}"
            ) from error
        return Split(self.name, split, x, y, provenance=f"function {self.name}")


def _normalization(name: str, arrays: dict[str, Array]) -> Normalization:
    """Return the file's own normalization, or none."""
    given = [key for key in ("mean", "std") if key in arrays]
    if not given:
        return Normalization()
    if len(given) == 1:
        raise DataError(f"{name!r} holds {given[0]} alone; mean and std belong together")
    mean, std = (tuple(float(v) for v in np.atleast_1d(arrays[k]).ravel()) for k in given)
    return Normalization(mean, std)


def _import(name: str) -> Callable[[str], Any]:
    """Return the callable that ``package.module:callable`` names."""
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as python -m does, so that a file beside the user is found
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise DataError(
            f"data {name!r} cannot be imported ({type(error).__name__}: {error}); write a data "
            f"set's name ({', '.join(datasets)}), an .npz file, or package.module:callable"
        ) from error
    if not callable(found):
        raise DataError(f"data {name!r} is {type(found).__name__}, which cannot be called")
    function: Callable[[str], Any] = found
    return function


def _gather(name: str, returned: Any) -> tuple[Array, Array | None]:
    """Return ``(x, y or None)`` from arrays or from an iterable of batches."""
    if _is_array(returned):
        return _array(returned), None
    if _is_pair(returned):
        return _array(returned[0]), _optional(returned[1])
    if not isinstance(returned, Iterable):
        raise DataError(
            f"data {name!r} returned {type(returned).__name__}; it must return (x, y) or an "
            "iterable of batches"
        )
    xs: list[Array] = []
    ys: list[Array] = []
    for number, batch in enumerate(returned):
        pair = (batch, None) if _is_array(batch) else batch
        if isinstance(pair, list):
            pair = tuple(pair)
        if isinstance(pair, tuple) and len(pair) == 1:
            pair = (pair[0], None)
        if not _is_pair(pair):
            raise DataError(f"data {name!r}: batch {number} is not x or (x, y) of arrays")
        xs.append(_array(pair[0]))
        label = _optional(pair[1])
        if label is not None:
            ys.append(label)
    if not xs or (ys and len(ys) != len(xs)):
        raise DataError(
            f"data {name!r} returned {len(xs)} batches, {len(ys)} of them with labels; there must "
            "be at least one batch, and labels in all or none"
        )
    shapes = sorted({a.shape[1:] for a in xs})
    if len(shapes) > 1:
        raise DataError(f"data {name!r}: samples have different shapes: {shapes}")
    return np.concatenate(xs), np.concatenate(ys) if ys else None


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor)


def _is_pair(value: Any) -> bool:
    """Return whether ``value`` is a tuple ``(x, y)`` or ``(x, None)`` of arrays."""
    if not isinstance(value, tuple) or len(value) != 2 or not _is_array(value[0]):
        return False
    return value[1] is None or _is_array(value[1])


def _array(value: Any) -> Array:
    array: Array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
    return array


def _optional(value: Any) -> Array | None:
    return None if value is None else _array(value)

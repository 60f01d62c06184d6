"""One split of a data set: raw arrays, checked, and batches made ready for a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitsmith.data.augment import Augmentation
from bitsmith.errors import DataError

__all__ = ["Batches", "Normalization", "Split"]

Array = NDArray[Any]

_CHUNK = 4096
_NONE = Augmentation()


@final
@dataclass(frozen=True)
class Normalization:
    """How raw samples become what a model expects.

    uint8 samples become ``(x / 255 − mean) / std`` per channel, in float32, channels first.
    Float samples are model-ready already and are only cast to float32.

    Attributes:
        mean, std: one number per channel, in units of ``x / 255``; empty for float samples.
        channels: where the raw samples keep their channels: ``"first"`` [N, C, …],
            ``"last"`` [N, …, C], or ``"none"`` [N, …], which gives one channel [N, 1, …].

    >>> gray = Normalization((0.5,), (0.25,), channels="none")
    >>> gray(np.full((1, 2, 2), 255, np.uint8)).tolist()
    [[[[2.0, 2.0], [2.0, 2.0]]]]
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: Literal["first", "last", "none"] = "first"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise DataError(
                f"a normalization has one mean and one std per channel, not {len(self.mean)} "
                f"means and {len(self.std)} stds"
            )
        if not np.isfinite(self.mean + self.std).all() or any(s <= 0 for s in self.std):
            raise DataError(
                f"means are finite and stds above 0, not mean {self.mean} and std {self.std}"
            )

    def shape(self, raw: tuple[int, ...]) -> tuple[int, ...]:
        """Return the model-ready shape of one sample of raw shape ``raw`` (without N)."""
        if self.channels == "none":
            return (1, *raw)
        return raw if self.channels == "first" else (raw[-1], *raw[:-1])

    @property
    def limits(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The least and the greatest model-ready value of each channel of uint8 samples.

        Raises:
            DataError: samples are float, which have no limits.
        """
        if not self.mean:
            raise DataError("float samples have no limits: this normalization has no mean and std")
        low = tuple((0 - m) / s for m, s in zip(self.mean, self.std, strict=True))
        return low, tuple((1 - m) / s for m, s in zip(self.mean, self.std, strict=True))

    def __call__(self, x: Array) -> Tensor:
        """Return the model-ready copy of ``x`` [N, …], float32 [N, C, …]."""
        batch = torch.tensor(x).to(torch.float32)  # a copy: models may work in place
        if self.channels == "none":
            batch = batch.unsqueeze(1)
        elif self.channels == "last":
            batch = batch.movedim(-1, 1).contiguous()
        if x.dtype != np.uint8:
            return batch
        per_channel = (1, -1) + (1,) * (batch.ndim - 2)
        mean = torch.tensor(self.mean, dtype=torch.float32).reshape(per_channel)
        std = torch.tensor(self.std, dtype=torch.float32).reshape(per_channel)
        return batch.div_(255).sub_(mean).div_(std)


@final
@dataclass(frozen=True, eq=False)
class Split:
    """Samples and, where there are any, their labels.

    Attributes:
        dataset: the name of the data set it is part of.
        name: the name of the split, ``"train"`` or ``"test"``.
        x: raw samples [N, …], uint8 or float32.
        y: class indices int64 [N], or None: unlabelled data is fine for calibration.
        normalization: how ``x`` becomes model-ready.
        provenance: where the samples come from, in words.
        classes: the number of classes, or None without labels.
        augmentation: what may be done to a sample in training without changing what it shows.

    Raises:
        DataError: on construction: no samples; NaN or infinity in ``x``; ``x`` of a type or
            shape that ``normalization`` does not fit; ``y`` of another length than ``x``, not
            integers, or outside [0, classes). Every fault found is in the one message.
    """

    dataset: str
    name: str
    x: Array
    y: Array | None
    normalization: Normalization = Normalization()
    provenance: str = ""
    classes: int | None = None
    augmentation: Augmentation = _NONE

    def __post_init__(self) -> None:
        faults = [*_faults_of_samples(self.x, self.normalization)]
        faults += _faults_of_labels(self.y, len(self.x) if self.x.ndim else 0, self.classes)
        if faults:
            raise DataError(f"data set {self.dataset!r}, split {self.name!r}: " + "; ".join(faults))
        if self.x.dtype not in (np.uint8, np.float32):
            object.__setattr__(self, "x", self.x.astype(np.float32))
        if self.y is None:
            object.__setattr__(self, "classes", None)
            return
        object.__setattr__(self, "y", self.y.astype(np.int64))
        if self.classes is None:
            object.__setattr__(self, "classes", int(self.y.max()) + 1)

    @property
    def n(self) -> int:
        """The number of samples."""
        return len(self.x)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The model-ready shape of one sample, for example (3, 32, 32)."""
        return self.normalization.shape(self.x.shape[1:])

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the arrays (type, shape and content of ``x``, then of ``y``), in hex."""
        digest = hashlib.sha256()
        for key, array in (("x", self.x), ("y", self.y)):
            if array is None:
                continue
            little = array.dtype.newbyteorder("<")
            digest.update(f"{key} {little.str} {array.shape}\n".encode())
            for start in range(0, len(array), _CHUNK):
                part = np.ascontiguousarray(array[start : start + _CHUNK], dtype=little)
                digest.update(part.tobytes())
        return digest.hexdigest()

    def batches(
        self, batch_size: int, *, limit: int | None = None, seed: int | None = None
    ) -> Batches:
        """Return batches that can be iterated again and again, each made when it is reached.

        Args:
            batch_size: samples per batch; the last one may be smaller.
            limit: how many samples in all; None is every sample.
            seed: None takes the first ``limit`` samples in order; a number draws them at random
                without replacement, in random order, the same for the same seed.

        Raises:
            DataError: ``batch_size`` or ``limit`` below 1, or ``limit`` above ``n``.
        """
        count = self.n if limit is None else limit
        if batch_size < 1:
            raise DataError(f"a batch has at least 1 sample, not {batch_size}")
        if not 1 <= count <= self.n:
            raise DataError(
                f"data set {self.dataset!r}, split {self.name!r} has {self.n} samples; between 1 "
                f"and {self.n} can be drawn, not {count}"
            )
        order = None if seed is None else np.random.default_rng(seed).permutation(self.n)[:count]
        return Batches(self, batch_size, count, order)


@final
class Batches:
    """A sized iterable of ``(x float32 [B, …], y int64 [B] or None)``; see `Split.batches`."""

    def __init__(self, split: Split, batch_size: int, count: int, order: Array | None) -> None:
        self.split = split
        self.batch_size = batch_size
        self.samples = count
        self._order = order

    def __len__(self) -> int:
        """Return the number of batches."""
        return (self.samples + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the batches; normalised one at a time, so that memory stays bounded."""
        for start in range(0, self.samples, self.batch_size):
            stop = min(start + self.batch_size, self.samples)
            chosen = slice(start, stop) if self._order is None else self._order[start:stop]
            y = self.split.y
            labels = None if y is None else torch.tensor(y[chosen], dtype=torch.int64)
            yield self.split.normalization(self.split.x[chosen]), labels


def _faults_of_samples(x: Array, normalization: Normalization) -> Iterator[str]:
    """Yield what is wrong with ``x``, in words."""
    if x.ndim < 2:
        yield f"x has the shape {x.shape}; it must be [samples, features, …]"
        return
    if 0 in x.shape:
        yield f"x is empty (shape {x.shape}); at least 1 sample is needed"
        return
    if x.dtype == np.uint8:
        channels = normalization.shape(x.shape[1:])[0]
        if not normalization.mean:
            yield (
                "x is uint8, but no mean and std say how to normalise it; store float32 as the "
                "model expects it, or mean and std per channel beside uint8 x [N, C, …]"
            )
        elif len(normalization.mean) != channels:
            yield (
                f"x of shape {x.shape} has {channels} channels, but there are "
                f"{len(normalization.mean)} means and stds; x must be [N, C, …]"
            )
    elif not np.issubdtype(x.dtype, np.floating):
        yield f"x has the type {x.dtype}; it must be uint8 or a float type"
    elif normalization.mean:
        yield f"x has the type {x.dtype}; with a mean and a std it must be uint8"
    else:
        with np.errstate(over="ignore"):  # what overflows float32 is counted as infinite
            bad = sum(
                int((~np.isfinite(x[i : i + _CHUNK].astype(np.float32))).sum())
                for i in range(0, len(x), _CHUNK)
            )
        if bad:
            yield f"x has {bad} values that are NaN or infinite in float32; remove or mend them"


def _faults_of_labels(y: Array | None, n: int, classes: int | None) -> Iterator[str]:
    """Yield what is wrong with ``y``, in words."""
    if y is None:
        return
    if y.ndim != 1:
        yield f"y has the shape {y.shape}; it must be one class index per sample, [{n}]"
    elif len(y) != n:
        yield f"x has {n} samples and y has {len(y)}; they must be as many"
    elif not np.issubdtype(y.dtype, np.integer):
        yield f"y has the type {y.dtype}; it must be integer class indices"
    elif n:
        low, high = int(y.min()), int(y.max())
        if low < 0 or (classes is not None and high >= classes):
            limit = "…" if classes is None else str(classes - 1)
            yield f"y runs from {low} to {high}; class indices are 0 to {limit}"

"""Training batches: always of the train split, shuffled and augmented anew in every epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from bitsmith.data.augment import Augmentation, blended, erased
from bitsmith.data.dataset import Dataset
from bitsmith.data.split import Batches, Split
from bitsmith.errors import DataError

__all__ = ["EpochBatches", "TrainingBatches", "check_training_data", "training_batches"]


def check_training_data(data: object, purpose: str = "training") -> None:
    """Refuse samples of another split than ``train``; what judges a model may not shape it.

    Args:
        data: a split, or batches of one. Anything else passes: a foreign loader does not say
            which split it is of.
        purpose: what the data was given for, for the message.

    Raises:
        DataError: ``data`` is of a split that is not called ``train``.

    >>> from bitsmith.data import load_dataset
    >>> check_training_data(load_dataset("moons").split("train").batches(8), "calibration")
    """
    batches = Batches | EpochBatches | TrainingBatches
    split = data.split if isinstance(data, batches) else data
    if isinstance(split, Split) and split.name != "train":
        raise DataError(
            f"{purpose} takes samples of the train split only, because what judges a model may "
            f"not shape it; these are of data set {split.dataset!r}, split {split.name!r}"
        )


def training_batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    erase: float = 0.0,
    blend: float = 0.0,
    labelled: bool = True,
    limit: int | None = None,
) -> TrainingBatches:
    """Return the batches of the train split of ``dataset``, for every epoch anew.

    The result is called with the index of an epoch, as :func:`bitsmith.model.train.fit` does,
    and gives that epoch's batches. The same seed and epoch give the same batches, bit for bit;
    every sample comes once in an epoch.

    Args:
        dataset: there is no way to name another split of it.
        batch_size: samples per batch; the last one of an epoch may be smaller.
        seed: of the order and of everything drawn.
        augmentation: None is the data set's own, `Split.augmentation`; ``Augmentation()`` none.
        erase: probability that a rectangle of an image is set to 0; see
            :func:`~bitsmith.data.augment.erased`.
        blend: above 0, every sample is mixed with another one of its batch by a weight from
            Beta(blend, blend); see :func:`~bitsmith.data.augment.blended`. Only without labels.
        labelled: False gives None instead of labels, for distillation.
        limit: how many samples in all, drawn at random by ``seed``, the same in every epoch;
            None is every sample.

    Raises:
        DataError: the data set has no train split; labels are asked for where there are none or
            where samples are mixed; a number out of range. All faults are in one message.

    >>> from bitsmith.data import load_dataset
    >>> batches = training_batches(load_dataset("moons"), 100)
    >>> len(batches), [list(x.shape) for x, y in batches(0)][0]
    (7, [100, 2])
    """
    if "train" not in dataset.splits:
        raise DataError(
            f"data set {dataset.name!r} has no train split to train on, only "
            f"{', '.join(dataset.splits)}; give it x_train and y_train"
        )
    return TrainingBatches(
        dataset.split("train"),
        batch_size,
        seed=seed,
        augmentation=augmentation,
        erase=erase,
        blend=blend,
        labelled=labelled,
        limit=limit,
    )


@final
class TrainingBatches:
    """From the index of an epoch to its batches; see :func:`training_batches`.

    Not iterable itself, so that a training loop has to ask for an epoch.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        erase: float = 0.0,
        blend: float = 0.0,
        labelled: bool = True,
        limit: int | None = None,
    ) -> None:
        check_training_data(split)
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = split.augmentation if augmentation is None else augmentation
        self.erase, self.blend, self.labelled = erase, blend, labelled
        self.samples = split.n if limit is None else limit
        if faults := list(self._faults()):
            raise DataError(f"training on data set {split.dataset!r}: {'; '.join(faults)}")
        whole = self.samples == split.n
        self._chosen = np.arange(split.n) if whole else self._rng().permutation(split.n)
        self._chosen = self._chosen[: self.samples]

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return math.ceil(self.samples / self.batch_size)

    def __call__(self, epoch: int) -> EpochBatches:
        """Return the batches of the epoch with this index, from 0 up."""
        if epoch < 0:
            raise DataError(f"epochs are counted from 0, there is none with index {epoch}")
        return EpochBatches(self, epoch)

    def _faults(self) -> Iterator[str]:
        """Yield what is wrong with the settings, in words."""
        split, images = self.split, len(self.split.input_shape) == 3
        if self.batch_size < 1:
            yield f"a batch has at least 1 sample, not {self.batch_size}"
        if not 1 <= self.samples <= split.n:
            yield f"between 1 and {split.n} samples can be drawn, not {self.samples}"
        if self.seed < 0:
            yield f"a seed is 0 or more, not {self.seed}"
        if not 0 <= self.erase <= 1:
            yield f"erase is a probability, not {self.erase}"
        if not (math.isfinite(self.blend) and self.blend >= 0):
            yield f"blend is 0 or the positive parameter of a Beta distribution, not {self.blend}"
        if not images and (self.augmentation or self.erase):
            yield (
                f"crop, flip and erase are for images [channels, height, width], and a sample is "
                f"{list(split.input_shape)}"
            )
        if self.labelled and split.y is None:
            yield "the train split has no labels; labelled=False trains without (distillation)"
        if self.labelled and self.blend:
            yield "a mixture of two samples has no one label; blend needs labelled=False"

    def _rng(self, *epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *epoch])

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Any]]:
        rng, split = self._rng(epoch, 1), self.split  # apart from that of ``limit``
        order = self._chosen[rng.permutation(self.samples)]
        for start in range(0, self.samples, self.batch_size):
            index = order[start : start + self.batch_size]
            raw = split.x[index]
            if self.augmentation:
                raw = self.augmentation(raw, split.normalization.channels, rng)
            x = split.normalization(raw)
            x = erased(x, self.erase, rng) if self.erase else x
            x = blended(x, self.blend, rng) if self.blend else x
            labels = split.y[index] if self.labelled and split.y is not None else None
            yield x, None if labels is None else torch.from_numpy(labels)


@final
class EpochBatches:
    """The batches ``(x float32 [B, …], y int64 [B])`` of one epoch, the same at every pass.

    ``y`` is None where the training is without labels.
    """

    def __init__(self, training: TrainingBatches, epoch: int) -> None:
        self.split, self.epoch = training.split, epoch
        self._training = training

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._training)

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:  # Any: a tensor, or None without labels
        """Yield the batches; made one at a time, so that memory stays bounded."""
        return self._training._batches(self.epoch)

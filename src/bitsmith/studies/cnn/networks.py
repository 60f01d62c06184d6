"""The float network and the images that it is trained, calibrated and judged on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.data import Batches, Dataset, Split
from bitsmith.errors import InputError
from bitsmith.insight.evaluation import Difference, Evaluation, difference
from bitsmith.insight.interval import mean_interval
from bitsmith.model.evaluate import correct, predict
from bitsmith.model.trained import Training, trained_network
from bitsmith.studies import Options
from bitsmith.zoo.models.mnist_cnn import Cnn

__all__ = ["Against", "Judged", "Subject", "trained_subject"]

#: Two convolutions and a pool leave a smaller image nothing.
_LEAST_SIZE = 6


@final
@dataclass(frozen=True, eq=False)
class Judged:
    """What one network gives on the test images.

    Attributes:
        logits: ``[N, classes]``.
        losses: cross entropy of each image, float64 ``[N]``, in nats.
        evaluation: what it gets right.
    """

    logits: Tensor
    losses: Tensor
    evaluation: Evaluation

    @property
    def loss(self) -> float:
        """Mean cross entropy in nats."""
        return float(self.losses.mean())


@final
@dataclass(frozen=True)
class Against:
    """One network less another on the same images.

    Attributes:
        accuracy: in points, with its interval, and how many predictions differ.
        loss: difference of the mean cross entropies and its 95 % interval, in nats.
        logits: largest absolute difference of a logit.
    """

    accuracy: Difference
    loss: tuple[float, float, float]
    logits: float


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """The trained network and its images.

    Attributes:
        module: float, in evaluation mode.
        train, test: what it was trained and calibrated on, and what judges it.
        calibration: training images that ranges are found from.
        judged: test images.
        compared: of them, those that every tensor of the file is compared on.
        seed: of the draw of the calibration images.
    """

    module: nn.Module
    train: Split
    test: Split
    calibration: int
    judged: int
    compared: int
    seed: int

    @property
    def layers(self) -> dict[str, nn.Conv2d | nn.Linear]:
        """The layers with a weight, in order."""
        named = self.module.named_modules()
        return {name: m for name, m in named if isinstance(m, nn.Conv2d | nn.Linear)}

    @property
    def images(self) -> Batches:
        """The calibration images."""
        return self.train.batches(256, limit=self.calibration, seed=self.seed)

    @property
    def judges(self) -> Batches:
        """The test images."""
        return self.test.batches(500, limit=self.judged)

    def judge(self, name: str, call: Callable[..., Any], runtime: str = "torch") -> Judged:
        """Return what a network gives on the test images."""
        logits, labels = predict(call, self.judges)
        assert labels is not None
        losses = F.cross_entropy(logits.double(), labels, reduction="none")
        right = correct(logits, labels)
        evaluation = Evaluation(name, runtime, None, logits.argmax(1), right, None, {})
        return Judged(logits, losses, evaluation)

    def against(self, one: Judged, base: Judged) -> Against:
        """Return ``one − base``."""
        loss = mean_interval((one.losses - base.losses).tolist())
        gap = float((one.logits - base.logits).abs().max())
        return Against(difference(one.evaluation, base.evaluation), loss, gap)


def trained_subject(dataset: Dataset, options: Options) -> Subject:
    """Return the float network of a data set of square images, trained or from the cache.

    Raises:
        InputError: the data has no labels, no train or test split, or no square images of at least
            6×6 pixels.
    """
    train, test = dataset.split("train"), dataset.split("test")
    shape, faults = train.input_shape, []
    if train.y is None or test.y is None or train.classes is None:
        faults.append("it has no labels")
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] < _LEAST_SIZE:
        faults.append(f"a sample is {list(shape)}")
    if faults:
        raise InputError(
            f"the study cnn needs labelled square images [channels, size, size] of at least "
            f"{_LEAST_SIZE}×{_LEAST_SIZE} pixels; of {dataset.name!r} {' and '.join(faults)}"
        )
    classes = max(train.classes or 0, test.classes or 0)
    module = trained_network(
        "mnist-cnn",
        lambda: _untrained(shape[0], shape[1], classes),
        train,
        _training(train.n, options),
        stage=options.stage,
    )
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # not in the stubs
    calibration, judged, compared = (128, 250, 32) if options.quick else (1024, test.n, 256)
    return Subject(
        module,
        train,
        test,
        min(train.n, calibration),
        min(test.n, judged),
        min(test.n, compared),
        options.seed,
    )


def _training(n: int, options: Options) -> Training:
    """Return how long: few passes over many images, more over few."""
    rates: dict[str, Any] = {"held_out": 0.0, "lr": 0.03, "batch_size": 32, "augment": True}
    if options.quick:
        return Training(epochs=2, limit=min(n, 800), seed=options.seed, **rates)
    return Training(epochs=max(2, 40_000 // n), seed=options.seed, **rates)


def _untrained(channels: int, size: int, classes: int) -> Cnn:
    """Return the network without dropout, which costs accuracy where training is this short.

    Its images are kept channels last while it trains: that is faster.
    """
    module = Cnn(channels, size, classes)
    module.dropout1.p = module.dropout2.p = 0.0
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs
    return module

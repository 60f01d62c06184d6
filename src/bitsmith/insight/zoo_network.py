"""A trained network of the zoo with the samples that it is calibrated and judged on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from bitsmith.data import Dataset, Split, load_dataset
from bitsmith.errors import DataError, InputError, WeightsError
from bitsmith.insight.evaluation import Evaluation, evaluate
from bitsmith.model.graph import Graph, capture, simplify
from bitsmith.model.trained import Stage, Training, trained_network
from bitsmith.zoo import load_model
from bitsmith.zoo.models import zoo_models

__all__ = ["ELSE", "ZooNetwork", "published_network", "zoo_network"]

#: In place of a network whose weights or data are not at hand: trained in seconds, on data that is
#: always there.
ELSE = "digits-cnn"
_BATCH = 250
_EPOCHS, _QUICK_EPOCHS = 12, 3


@final
@dataclass(frozen=True, eq=False)
class ZooNetwork:
    """A float network and its data.

    Attributes:
        name: in the zoo.
        module: in evaluation mode.
        train, test: splits; calibration and training see only the first.
        weights: what identifies the weights: a SHA-256, or how they were trained.
    """

    name: str
    module: nn.Module
    train: Split
    test: Split
    weights: str

    @property
    def example(self) -> Tensor:
        """Two samples, to capture the network with."""
        return torch.zeros(2, *self.train.input_shape)

    def graph(self) -> Graph:
        """Return the network as a graph, batch norms folded."""
        return simplify(capture(self.module, [self.example]))

    def calibration(self, samples: int, seed: int) -> Any:
        """Return batches of training samples, drawn at random, at most as many as there are."""
        return self.train.batches(64, limit=min(samples, self.train.n), seed=seed)

    def judge(
        self,
        name: str,
        method: str,
        call: Callable[..., Any],
        limit: int | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> Evaluation:
        """Return what ``call`` gets right of the first ``limit`` test samples; None: of all."""
        count = self.test.n if limit is None else min(limit, self.test.n)
        batches = self.test.batches(_BATCH, limit=count)
        return evaluate(
            name, call, batches, runtime="simulation", method=method, latency_repeats=0,
            advance=advance,
        )  # fmt: skip


def zoo_network(
    model: str,
    dataset: str | None,
    *,
    quick: bool = False,
    seed: int = 0,
    stage: Stage | None = None,
) -> ZooNetwork:
    """Return a network of the zoo, trained, with its data.

    One that is published comes with its weights; one that is not is trained on the first call and
    kept in the user's cache (:mod:`bitsmith.model.trained`).

    Args:
        model: name in the zoo, of a network that classifies.
        dataset: name or file; None: the one that the network is for.
        quick: train for fewer epochs.
        seed: of that training.
        stage: shows its progress.

    Raises:
        UnknownNameError: no such network or data set.
        InputError: the network is not for samples with labels, or for samples of another shape.
        DataError, WeightsError: data or weights are absent.
    """
    described = zoo_models[model]
    if described.input_shape is None:
        raise InputError(f"{model} reads text: this needs a network that classifies samples")
    data = load_dataset(dataset or described.dataset)
    train, test = data.split("train"), data.split("test")
    _check(model, described.input_shape, data, train, test)
    if described.weights_file is None:
        epochs = _QUICK_EPOCHS if quick else _EPOCHS
        training = Training(epochs=epochs, batch_size=64, seed=seed)
        shown = {} if stage is None else {"stage": stage}
        module = trained_network(model, described.build, train, training, **shown)
        return ZooNetwork(model, module, train, test, f"{training}")
    loaded = load_model(model)
    return ZooNetwork(model, loaded.module, train, test, str(loaded.weights_sha256))


def published_network(
    model: str, dataset: str | None, own: str | None, *, quick: bool, seed: int, stage: Stage
) -> tuple[ZooNetwork, list[str]]:
    """Return a network, or a small one on digits where its weights or data are not at hand.

    Args:
        model: a published network.
        dataset: that was asked for.
        own: that is used unless another is asked for; only then another network may step in.
        quick, seed, stage: as of :func:`zoo_network`.

    Returns:
        the network, and the reason why it is another.
    """
    try:
        return zoo_network(model, dataset, quick=quick, seed=seed, stage=stage), []
    except (DataError, WeightsError) as error:
        if dataset not in (None, own):
            raise
        other = zoo_network(ELSE, None, quick=quick, seed=seed, stage=stage)
        return other, [f"{model}: {error}; everything here is of {ELSE}"]


def _check(model: str, shape: tuple[int, ...], data: Dataset, train: Split, test: Split) -> None:
    faults = []
    if train.y is None or test.y is None:
        faults.append("has no labels")
    if train.input_shape != shape:
        faults.append(f"has samples of shape {train.input_shape}")
    if faults:
        raise InputError(
            f"{model} takes labelled samples of shape {shape}, and {data.name!r} "
            f"{' and '.join(faults)}"
        )

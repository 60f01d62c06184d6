"""The network in every form: float, quantized after training, finetuned, trained quantized."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import nn

from bitsmith.data import Augmentation, Dataset, Split, TrainingBatches
from bitsmith.errors import InputError
from bitsmith.insight.evaluation import Difference, Evaluation, difference, evaluate
from bitsmith.model.graph import capture, simplify
from bitsmith.model.graph.ir import Graph
from bitsmith.model.presets import make_recipe
from bitsmith.model.ptq import quantize_graph
from bitsmith.model.qat import fit
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.trained import Training, trained_network, trained_once
from bitsmith.model.tutorial import RANGES, Simulated, ranges
from bitsmith.studies import Options
from bitsmith.zoo.models.mlp import Mlp

__all__ = ["BITS", "Outcome", "Subject", "outcomes"]

BITS = (8, 4, 3, 2)
_BATCH = 256


@final
@dataclass(frozen=True)
class Effort:
    """How much work a run is.

    Attributes:
        training: of the float network.
        calibration: images that ranges are found from.
        finetune, qat: epochs.
        samples: training images of an epoch of both; None: all.
        judged: test images; None: all.
    """

    training: Training
    calibration: int
    finetune: int
    qat: int
    samples: int | None = None
    judged: int | None = None


@final
@dataclass(frozen=True, eq=False)
class Outcome:
    """One network on the test images.

    Attributes:
        method: ``float``, ``ptq``, ``ptq+finetune`` or ``qat``.
        bits: of weights and activations; 32: float.
        granularity: of the weights; None: float.
        calibrator: where ranges of activations come from; None: float.
        evaluation: what it got right.
        against: the same less float, paired; None: it is the float network.
    """

    method: str
    bits: int
    granularity: str | None
    calibrator: str | None
    evaluation: Evaluation
    against: Difference | None


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """The trained network and the samples that it is calibrated, finetuned and judged on."""

    module: nn.Module
    train: Split
    test: Split
    effort: Effort
    seed: int

    @property
    def layers(self) -> list[nn.Linear]:
        """The linear layers, in order."""
        return [m for m in self.module.modules() if isinstance(m, nn.Linear)]

    def judge(self, name: str, method: str, call: Callable[..., Any]) -> Evaluation:
        """Return what a network gets right of the test images."""
        batches = self.test.batches(1000, limit=self.effort.judged)
        return evaluate(name, call, batches, runtime="simulation", method=method, latency_repeats=0)


def trained_subject(dataset: Dataset, options: Options) -> Subject:
    """Return the float network of a data set, trained or from the cache.

    Raises:
        InputError: the data has no labels, or no train or test split.
    """
    train, test = dataset.split("train"), dataset.split("test")
    if train.y is None or test.y is None or train.classes is None:
        raise InputError(f"the study mlp needs labels, and {dataset.name!r} has none")
    features, classes = math.prod(train.input_shape), max(train.classes, test.classes or 0)
    effort = _effort(train.n, test.n, options)
    module = trained_network(
        "mlp", lambda: Mlp(features, classes=classes), train, effort.training, stage=options.stage
    )
    return Subject(module, train, test, effort, options.seed)


def _effort(n: int, judged: int, options: Options) -> Effort:
    """Return how much work a run is: more epochs where there are few samples."""
    seed = options.seed
    if options.quick:
        few = min(n, 3000)
        training = Training(epochs=_epochs(4, 12_000, few), limit=few, seed=seed)
        return Effort(training, min(n, 256), 1, 2, min(n, 2000), min(judged, 1000))
    training = Training(epochs=_epochs(15, 150_000, n), seed=seed)
    return Effort(training, min(n, 1024), _epochs(2, 20_000, n), _epochs(4, 40_000, n))


def _epochs(least: int, samples: int, n: int) -> int:
    """Return the epochs in which at least so many samples are seen."""
    return max(least, samples // n)


def outcomes(subject: Subject, options: Options) -> Iterator[Outcome]:
    """Yield the float network, then every quantized one."""
    plain = subject.judge("float32", "float", subject.module)
    yield Outcome("float", 32, None, None, plain, None)
    yield from _tutorials(subject, plain, options)
    yield from _learned(subject, plain, options)


def _tutorials(subject: Subject, plain: Evaluation, options: Options) -> Iterator[Outcome]:
    """Yield per-tensor quantization with every kind of calibration."""
    images = subject.train.batches(_BATCH, limit=subject.effort.calibration, seed=subject.seed)
    with options.stage("one scale a tensor", len(RANGES) * len(BITS)) as advance:
        for spec in RANGES:
            for bits in BITS:
                limits = ranges(subject.layers, spec, bits, images)
                call = Simulated(subject.layers, bits, limits)
                found = subject.judge(f"{spec} {bits}", "ptq", call)
                yield Outcome("ptq", bits, "per-tensor", spec, found, difference(found, plain))
                advance(1)


def _learned(subject: Subject, plain: Evaluation, options: Options) -> Iterator[Outcome]:
    """Yield per-channel quantization, finetuned, and trained, through the integers."""
    graph = simplify(capture(subject.module, [torch.zeros(2, *subject.train.input_shape)]))
    for bits in BITS:
        quantized = _quantized(graph, bits, subject)
        forms: list[tuple[str, Callable[[], Any]]] = [
            ("ptq", partial(_as_it_is, quantized)),
            ("ptq+finetune", partial(_trained, quantized, subject, options, labels=False)),
            ("qat", partial(_trained, quantized, subject, options, labels=True)),
        ]
        for method, make in forms:
            found = subject.judge(f"{method} {bits}", method, make())
            yield Outcome(
                method, bits, "per-channel", quantized.provenance["calibrator"], found,
                difference(found, plain),
            )  # fmt: skip


def _as_it_is(quantized: QuantizedModel) -> QuantizedModel:
    return quantized


def _quantized(graph: Graph, bits: int, subject: Subject) -> QuantizedModel:
    images = subject.train.batches(_BATCH, limit=subject.effort.calibration, seed=subject.seed)
    return quantize_graph(graph, make_recipe(f"W{bits}A{bits}"), images)


def _trained(
    quantized: QuantizedModel, subject: Subject, options: Options, *, labels: bool
) -> QuantizedModel:
    """Return the integers after training on them: with labels, or after the float network."""
    effort = subject.effort
    model = TrainableModel(quantized, learn_edges=True)
    batches = TrainingBatches(
        subject.train, _BATCH, seed=subject.seed, augmentation=Augmentation(), labelled=labels,
        limit=effort.samples,
    )  # fmt: skip
    epochs = effort.qat if labels else effort.finetune
    rates: dict[str, Any] = {"lr": 1e-2, "scale_lr": 5e-3}
    if labels:
        rates = {"lr": 2e-2, "scale_lr": 1e-2}
    what = "qat" if labels else "finetune"
    decides = {
        "data": subject.train.sha256, "samples": effort.samples, "batch": _BATCH,
        "epochs": epochs, "labels": labels, "seed": subject.seed, **rates,
    }  # fmt: skip

    def train() -> None:
        with options.stage(f"{what} {quantized.recipe.name}", epochs * len(batches)) as advance:
            fit(
                model, batches, epochs=epochs, labels=labels, seed=subject.seed,
                on_step=lambda _: advance(1), progress=False, **rates,
            )  # fmt: skip

    trained_once(f"mlp-{what}-{quantized.recipe.name.lower()}", model, decides, train)
    return model.converted()

"""One network, one set of rounded weights, and the ranges of activations in three ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.data import Dataset, Split
from bitsmith.errors import InputError
from bitsmith.insight.evaluation import Difference, Evaluation, difference, evaluate
from bitsmith.model.trained import Training, trained_network
from bitsmith.model.tutorial import ranges
from bitsmith.numbers.affine import fake_quantize, scale_zero_point
from bitsmith.numbers.calibrators import make_calibrator
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.scheme import PerChannel, PerToken, Scheme
from bitsmith.studies import Options
from bitsmith.studies.static_dynamic.drift import Drift, Levels, drifted, drifts
from bitsmith.zoo.models.mlp import Mlp

__all__ = ["BITS", "FORMS", "Outcome", "Rounded", "Subject", "Use", "outcomes", "trained_subject"]

BITS = (8, 4)
#: Where ranges of activations come from: of the calibration set, of each sample itself, of a
#: calibration set that has drifted too.
FORMS = ("static", "dynamic", "static, calibrated anew")
Limits = list[tuple[Tensor, Tensor]]


@final
@dataclass(frozen=True)
class Use:
    """What the inputs of one layer make of its static range.

    Attributes:
        layer: its number, from 1.
        clipped: share of the values beyond the range.
        spanned: share of the range between a sample's smallest and largest value, on average.
    """

    layer: int
    clipped: float
    spanned: float


@final
@dataclass(frozen=True, eq=False)
class Outcome:
    """One network on the drifted test images.

    Attributes:
        drift: of the images.
        form: ``float``, or one of :data:`FORMS`.
        bits: of weights and activations; 32: float.
        evaluation: what it got right.
        against: less float under the same drift, paired; None: it is the float network.
        uses: of a static network: what activations make of its ranges, layer by layer.
    """

    drift: Drift
    form: str
    bits: int
    evaluation: Evaluation
    against: Difference | None
    uses: tuple[Use, ...] = ()


@final
class Rounded(nn.Module):
    """Linear layers with ReLU between them; weights and inputs are rounded, sums are in float.

    Weights: symmetric, nearest, a scale an output channel. Inputs: unsigned codes with a zero
    point.

    Args:
        layers: of the float network, not changed.
        bits: of weights and inputs.
        limits: smallest and largest input of each layer; None: those of each sample itself.
    """

    def __init__(self, layers: list[nn.Linear], bits: int, limits: Limits | None) -> None:
        super().__init__()
        weights = Scheme(integer_format(bits, signed=True), granularity=PerChannel(0))
        whole = Scheme(integer_format(bits, signed=False), symmetric=False)
        self._inputs = whole if limits is not None else replace(whole, granularity=PerToken())
        self._layers = [(fake_quantize(n.weight.detach(), weights), n.bias) for n in layers]
        self._encodings: list[tuple[Any, ...]] = [() for _ in layers]
        if limits is not None:
            self._encodings = [scale_zero_point(*ends, whole) for ends in limits]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, classes]`` of ``x`` ``[batch, …]``."""
        x = x.flatten(1)
        for i, ((weight, bias), encoding) in enumerate(
            zip(self._layers, self._encodings, strict=True)
        ):
            x = F.relu(x) if i else x
            x = F.linear(fake_quantize(x, self._inputs, *encoding), weight, bias)
        return x


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """The trained network and its samples.

    Attributes:
        module: float.
        train, test: what it was trained and calibrated on, and what judges it.
        levels: black and white.
        calibrator: that chooses the static ranges.
        calibration: training images that it chooses them from.
        judged: test images; None: all.
        seed: of the draw of the calibration images.
    """

    module: nn.Module
    train: Split
    test: Split
    levels: Levels
    calibrator: str
    calibration: int
    judged: int | None
    seed: int

    @property
    def layers(self) -> list[nn.Linear]:
        """The linear layers, in order."""
        return [m for m in self.module.modules() if isinstance(m, nn.Linear)]

    def limits(self, drift: Drift, bits: int) -> Limits:
        """Return the ranges that training images under a drift give."""
        images = drifted(
            self.train, drift, self.levels, limit=self.calibration, seed=self.seed, size=256
        )
        return ranges(self.layers, self.calibrator, bits, images)

    def judge(self, name: str, call: Callable[..., Any], drift: Drift) -> Evaluation:
        """Return what a network gets right of the test images under a drift."""
        images = drifted(self.test, drift, self.levels, limit=self.judged)
        return evaluate(name, call, images, runtime="simulation", latency_repeats=0)

    @torch.no_grad()
    def uses(self, limits: Limits, drift: Drift) -> tuple[Use, ...]:
        """Return what the float network's own activations make of static ranges."""
        n, clipped, spanned = 0, [0.0] * len(limits), [0.0] * len(limits)
        values = [0] * len(limits)
        for x, _ in drifted(self.test, drift, self.levels, limit=self.judged):
            x, n = x.flatten(1), n + len(x)
            for i, (layer, (low, high)) in enumerate(zip(self.layers, limits, strict=True)):
                x = F.relu(x) if i else x
                clipped[i] += float(((x < low) | (x > high)).sum())
                spanned[i] += float((x.amax(1) - x.amin(1)).sum() / (high - low).clamp(min=1e-30))
                values[i] += x.numel()
                x = layer(x)
        return tuple(
            Use(i + 1, c / v, s / n)
            for i, (c, s, v) in enumerate(zip(clipped, spanned, values, strict=True))
        )


def trained_subject(dataset: Dataset, options: Options) -> Subject:
    """Return the float network of a data set of images, trained or from the cache.

    Raises:
        InputError: the data has no labels.
        DataError: its samples are no images.
        UnknownNameError: no such calibrator.
    """
    calibrator = make_calibrator(str(options.settings["calibrator"])).spec
    train, test = dataset.split("train"), dataset.split("test")
    if train.y is None or test.y is None or train.classes is None:
        raise InputError(f"the study static-dynamic needs labels, and {dataset.name!r} has none")
    levels = Levels.of(train)
    features, classes = math.prod(train.input_shape), max(train.classes, test.classes or 0)
    few = min(train.n, 3000)
    training = (
        Training(epochs=max(4, 12_000 // few), limit=few, seed=options.seed)
        if options.quick
        else Training(epochs=max(15, 150_000 // train.n), seed=options.seed)
    )
    module = trained_network(
        "mlp", lambda: Mlp(features, classes=classes), train, training, stage=options.stage
    )
    calibration = min(train.n, 256 if options.quick else 1024)
    judged = min(test.n, 1000) if options.quick else None
    return Subject(module, train, test, levels, calibrator, calibration, judged, options.seed)


def outcomes(subject: Subject, options: Options) -> Iterator[Outcome]:
    """Yield for each drift the float network, then every form at every width."""
    chosen, layers = drifts(quick=options.quick), subject.layers
    still = next(d for d in chosen if d.none)
    fixed = {bits: subject.limits(still, bits) for bits in BITS}
    kept = {bits: Rounded(layers, bits, fixed[bits]) for bits in BITS}
    own = {bits: Rounded(layers, bits, None) for bits in BITS}
    with options.stage("drifts", len(chosen)) as advance:
        for drift in chosen:
            plain = subject.judge("float32", subject.module, drift)
            yield Outcome(drift, "float", 32, plain, None)
            for bits in BITS:
                anew = Rounded(layers, bits, subject.limits(drift, bits))
                for form, call in zip(FORMS, (kept[bits], own[bits], anew), strict=True):
                    found = subject.judge(f"{form} {bits}", call, drift)
                    uses = subject.uses(fixed[bits], drift) if form == FORMS[0] else ()
                    yield Outcome(drift, form, bits, found, difference(found, plain), uses)
            advance(1)

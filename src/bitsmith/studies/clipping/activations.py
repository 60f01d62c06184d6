"""The same calibrators on what flows between the blocks of a trained network."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from bitsmith.data.split import Split
from bitsmith.errors import DataError
from bitsmith.numbers.affine import fake_quantize, scale_zero_point
from bitsmith.numbers.statistics import Histogram
from bitsmith.studies.clipping.errors import BITS, Statistics, scheme_of, specs

__all__ = ["MODEL", "Activation", "LayerOutcome", "block_outputs", "compare"]

MODEL = "cifar-resnet20"
_BATCH = 64

See = Callable[[str, Tensor], None]


@final
@dataclass(frozen=True)
class LayerOutcome:
    """One activation, one calibrator: its range, and the SQNR of other samples in dB."""

    layer: str
    calibrator: str
    bits: int
    low: float
    high: float
    sqnr: float


@final
@dataclass(frozen=True, eq=False)
class Activation:
    """What was measured of the outputs of blocks.

    Attributes:
        outcomes: of every block, width and calibrator.
        histograms: what the calibrators saw of each block.
        images: how many calibrated; as many others judged.
    """

    outcomes: tuple[LayerOutcome, ...]
    histograms: dict[str, Histogram]
    images: int


def compare(module: nn.Module, split: Split, images: int, seed: int) -> Activation:
    """Calibrate on some images, measure the signal-to-quantization-noise ratio on others.

    Args:
        module: a residual network whose stages are ``layer1``, ``layer2``, ….
        split: images that fit it.
        images: to calibrate with; as many others to judge, fewer where the split has no more.

    Raises:
        DataError: the split has fewer than 16 images.
    """
    images = min(images, split.n // 2)
    if images < 8:
        raise DataError(f"{split.dataset}: 16 images are needed, {split.n} are there")
    inputs = torch.cat([x for x, _ in split.batches(_BATCH, limit=2 * images, seed=seed)])
    names = [n for n, _ in module.named_modules() if re.fullmatch(r"layer\d+\.\d+", n)]
    seen = {name: Statistics() for name in names}
    block_outputs(module, names, inputs[:images], lambda name, x: seen[name].update(x))
    judge = _Judge(seen)
    block_outputs(module, names, inputs[images:], judge)
    histograms = {name: statistics.histogram for name, statistics in seen.items()}
    return Activation(tuple(judge.outcomes()), histograms, images)


def block_outputs(module: nn.Module, names: Iterable[str], inputs: Tensor, see: See) -> None:
    """Run ``inputs`` through the module and show ``see(name, x)`` every named output."""

    def hook(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda block, args, x: see(name, x)

    handles = [module.get_submodule(n).register_forward_hook(hook(n)) for n in names]
    try:
        with torch.no_grad():
            for batch in torch.split(inputs, _BATCH):
                module(batch)
    finally:
        for handle in handles:
            handle.remove()


@final
class _Judge:
    """Sums signal and noise of each way to quantize a tensor, batch by batch."""

    def __init__(self, seen: dict[str, Statistics]) -> None:
        self._limits = {
            (name, bits, spec): statistics.limits(spec, scheme_of(bits, signed=False))
            for name, statistics in seen.items()
            for bits in BITS
            for spec in specs()
        }
        self._noise = dict.fromkeys(self._limits, 0.0)
        self._signal = dict.fromkeys(seen, 0.0)

    def __call__(self, name: str, x: Tensor) -> None:
        self._signal[name] += float(x.double().square().sum())
        for key, limits in self._limits.items():
            if key[0] == name:
                scheme = scheme_of(key[1], signed=False)
                there = fake_quantize(x, scheme, *scale_zero_point(*limits, scheme))
                self._noise[key] += float((there - x).double().square().sum())

    def outcomes(self) -> Iterable[LayerOutcome]:
        for (name, bits, spec), (low, high) in self._limits.items():
            ratio = self._signal[name] / self._noise[name, bits, spec]
            yield LayerOutcome(
                name, spec, bits, float(low), float(high), 10 * math.log10(ratio)
            )  # fmt: skip

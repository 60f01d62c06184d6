"""How near a model that trains is to the float one: which stage of an effort is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.model.graph.operators import run_float
from bitsmith.model.qat.fit import TEMPERATURE, distillation
from bitsmith.model.qat.mixtures import mixed
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.quantized import QuantizedModel

__all__ = ["Found", "Judge"]

_LEAST = 1e-6
"""Nats below which a divergence is none."""
_MIXTURES = 2048
"""In all, about, and up to eight of a sample: a few of them decide a mean of fewer."""
_TOGETHER = 32
"""Samples that are mixed with one another: those of images have one rectangle."""


@final
@dataclass(frozen=True)
class Found:
    """How far a model's outputs are from the float ones.

    Attributes:
        distance: at T = 1, or the mean squared difference; of mixtures of samples, of samples
            themselves where they are no floats.
        softened: at T = 4: also where the float model is so sure that nothing shows at T = 1, as on
            synthesised samples.
        agreement: of samples, in percent; None for outputs that are no logits.
    """

    distance: float
    softened: float
    agreement: float | None

    @property
    def shown(self) -> tuple[float, float | None]:
        """What a rung tells."""
        return self.distance, self.agreement

    @property
    def order(self) -> tuple[float, float]:
        """The smaller one is nearer."""
        return round(self.distance, 6), self.softened


@final
class Judge:
    """Distance from the float model, on mixtures of two samples that nothing learns from.

    See :func:`bitsmith.model.qat.mixtures.mixed`. Of samples that it was trained on the float model
    is sure, and the one or two of which a quantized model is not decide their mean; of mixtures it
    is as unsure as of new samples. They are the same ones for every model.
    """

    def __init__(self, quantized: QuantizedModel, samples: Tensor) -> None:
        self._samples = samples
        graph = quantized.program.graph
        with torch.no_grad():
            self._float = [run_float(graph, [x])[0] for x in self._parts()]

    def _parts(self) -> Iterator[Tensor]:
        """Give the samples, and mixtures of them, some at a time."""
        samples, count = self._samples, len(self._samples)
        yield from torch.split(samples, 128)
        if not samples.is_floating_point() or count < 2:
            return
        for time in range(min(max(_MIXTURES // count, 1), 8)):
            with torch.random.fork_rng([]):
                torch.manual_seed(time)
                mixtures = [mixed(part) for part in torch.split(samples, _TOGETHER)]
            yield from torch.split(torch.cat(mixtures), 128)

    @torch.no_grad()
    def __call__(self, model: TrainableModel) -> Found:
        """Judge the integers that ``model`` stands for."""
        was, model.drop = model.training, 0.0
        model.train()  # the same integers, faster
        out = torch.cat([torch.as_tensor(model(x)) for x in self._parts()]).double()
        model.train(was)
        wanted = torch.cat(self._float).double()
        agreement = None
        if out.dim() == 2 and out.shape[1] > 1:
            same = out.argmax(1) == wanted.argmax(1)
            agreement = 100 * float(same[: len(self._samples)].double().mean())
        count = len(self._samples)
        told = slice(count if len(out) > count else 0, None)
        return Found(
            self._distance(out[told], wanted[told]),
            float(distillation(out, wanted, TEMPERATURE)),
            agreement,
        )

    @staticmethod
    def _distance(out: Tensor, wanted: Tensor) -> float:
        found = float(distillation(out, wanted, 1.0))
        logits = out.dim() == 2 and out.shape[1] > 1
        return max(found, _LEAST) if logits else found

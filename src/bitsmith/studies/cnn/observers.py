"""A float network from which the observers and the rounding of quantization were not removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.numbers.encoding import Encoding
from bitsmith.studies.cnn.networks import Judged, Subject
from bitsmith.studies.cnn.static import Static, judged_file

__all__ = ["Carried", "Range", "carried"]


@final
@dataclass(frozen=True)
class Range:
    """The range of one tensor before and after test images have passed its observer."""

    name: str
    before: Encoding
    after: Encoding

    @property
    def change(self) -> float:
        """By how much the range is longer afterwards, in per cent."""
        one, other = (e.high - e.low for e in (self.before, self.after))
        return 100 * (other / one - 1)


@final
@dataclass(frozen=True, eq=False)
class Carried:
    """What a float network gives that still carries what quantization has put into it.

    Attributes:
        rounding: on the test images, its values rounded, observers off.
        observing: the same with observers on: every batch moves the ranges that round the next.
        ranges: before and after that pass.
        file: what the integers that are made of it after that pass give in ONNX Runtime.
    """

    rounding: Judged
    observing: Judged
    ranges: tuple[Range, ...]
    file: Judged


def carried(subject: Subject, integers: Static) -> Carried:
    """Return what the network gives as training leaves it: rounding, and with ranges that follow.

    It is the float network with its values rounded where the file rounds them, and with moving
    averages of the extremes of every batch (arXiv:1712.05877, section 3.1), as it is prepared for
    quantization-aware training.
    """
    model = TrainableModel(integers.quantized, ranges="moving_average")
    before = {name: r.encoding() for name, r in model.own_ranges().items()}
    model.train()
    rounding = subject.judge("rounding", _call(model, observe=False))
    observing = subject.judge("observing", _call(model, observe=True))
    inputs = {i.name for i in integers.quantized.program.graph.inputs}
    ranges = tuple(
        Range("input" if n in inputs else n, before[n], r.encoding())
        for n, r in model.own_ranges().items()
    )
    return Carried(rounding, observing, ranges, judged_file(subject, model.converted()))


def _call(model: TrainableModel, *, observe: bool) -> Callable[[Tensor], Tensor]:
    """Return the training-mode pass; it observes where gradients are on."""

    def call(x: Tensor) -> Tensor:
        with torch.set_grad_enabled(observe):
            result = model(x)
        assert isinstance(result, Tensor)
        return result.detach()

    return call

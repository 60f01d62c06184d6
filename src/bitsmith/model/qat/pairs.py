"""What a step of training learns from: inputs, and the labels or the teacher's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import length_hint
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.errors import DataError, InputError
from bitsmith.model.calibrate import as_inputs
from bitsmith.model.qat.mixtures import mixed
from bitsmith.model.train import Batches

__all__ = ["labelled", "taught"]


@final
@dataclass(frozen=True)
class _Pairs:
    """Batches as ``(x, target)``, made when they are reached."""

    batches: Iterable[Any]
    pair: Callable[[Any], tuple[Tensor, Tensor]]

    def __length_hint__(self) -> int:
        return length_hint(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self.pair, self.batches)


def taught(batches: Any, teacher: Callable[[Tensor], Tensor], mix: bool) -> Batches:
    """Return batches ``(x, what the teacher gives)``; ``mix``: of mixtures of two samples."""

    def pair(batch: Any) -> tuple[Tensor, Tensor]:
        x = _one_input(batch)
        x = mixed(x) if mix else x
        with torch.no_grad():
            given = teacher(x)
        if not isinstance(given, Tensor):
            raise InputError(
                f"one output is learned, and the teacher gives a {type(given).__name__}: choose "
                "one, teacher=lambda x: model(x)[0]"
            )
        return x, given.detach()

    return _mapped(batches, pair)


def labelled(batches: Any) -> Batches:
    """Return batches ``(x, labels)``; those without labels are refused when they are reached."""

    def pair(batch: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or batch[1] is None:
            raise DataError(
                "labels=True needs batches (x, y), and these have no labels; without labels the "
                "float model is the teacher"
            )
        return _one_input(batch), torch.as_tensor(batch[1])

    return _mapped(batches, pair)


def _mapped(batches: Any, pair: Callable[[Any], tuple[Tensor, Tensor]]) -> Batches:
    if isinstance(batches, Iterator):  # and still one that can be read only once
        return iter(_Pairs(batches, pair))
    if isinstance(batches, Iterable):
        return _Pairs(batches, pair)
    return lambda epoch: _Pairs(batches(epoch), pair)


def _one_input(batch: Any) -> Tensor:
    """Return ``x`` of ``x`` or ``(x, y)``."""
    inputs = as_inputs(batch)
    parts = len(batch) if isinstance(batch, tuple | list) else 1
    nested = parts and isinstance(batch, tuple | list) and isinstance(batch[0], tuple | list)
    if parts > 2 or (nested and len(inputs) > 1):
        raise DataError(
            f"a batch is x or (x, y), and this one has {len(inputs) if nested else parts} parts: "
            "fit gives a model one input; use a loop of your own for several"
        )
    return inputs[0]

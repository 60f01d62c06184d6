"""Synthesised samples, batch by batch, and how each batch came out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from bitsmith.errors import InputError

__all__ = ["Synthesis", "SyntheticBatches"]


@final
@dataclass(frozen=True)
class Synthesis:
    """How one batch came out.

    The distance is that of the objective; the share and the confidence are None without classes.
    """

    start_distance: float
    """Of the noise that it began with."""
    distance: float
    agreement: float | None
    """Share of the samples that the network takes for the class they were made for."""
    confidence: float | None
    """Mean probability that the network gives to that class."""
    seconds: float = field(compare=False)


@final
class SyntheticBatches:
    """Batches ``(x float32 [B, …], y int64 [B] or None)`` that can be iterated again and again.

    ``y`` is the class that a sample was made for. Handed to :func:`synthesize` as ``into``, it
    grows by every batch that is finished, so that it can be used after an interruption, and a
    second call goes on from there.

    Attributes:
        runs: how each batch came out.
    """

    def __init__(self) -> None:
        self.runs: list[Synthesis] = []
        self._batches: list[tuple[Tensor, Tensor | None]] = []
        self._settings: dict[str, object] = {}

    @property
    def samples(self) -> int:
        """The number of samples that are finished."""
        return sum(len(x) for x, _ in self._batches)

    def __len__(self) -> int:
        """Return the number of batches that are finished."""
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield copies of the batches, as float32: models may work in place."""
        for x, y in self._batches:
            yield x.to(torch.float32, copy=True), None if y is None else y.clone()

    def begin(self, settings: dict[str, object]) -> None:
        """Refuse to go on with other settings than it was begun with."""
        changed = [
            f"{name} {self._settings[name]} (now {value})"
            for name, value in settings.items()
            if self._settings and self._settings[name] != value
        ]
        if changed:
            raise InputError(
                f"these batches were begun with {', '.join(changed)}; go on with the same model "
                "and settings, or into new SyntheticBatches()"
            )
        self._settings = settings

    def add(self, x: Tensor, y: Tensor | None, run: Synthesis) -> None:
        self._batches.append((x, y))
        self.runs.append(run)

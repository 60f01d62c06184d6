"""What decides how samples are synthesised, apart from the model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from bitsmith.model.calibrate import MIN_SAMPLES

__all__ = ["Limit", "Plan"]

Limit = float | tuple[float, ...]


@final
@dataclass(frozen=True)
class Plan:
    """Everything that decides what comes out, apart from the model."""

    shape: tuple[int, ...]
    samples: int
    batch_size: int
    steps: int
    lr: float
    seed: int
    smoothness: float
    class_weight: float
    temperature: float
    input_weight: float
    limits: tuple[Limit, Limit] | None
    half: bool

    def sizes(self) -> list[int]:
        """Return the sizes of the batches: as even as can be, so that none shows little."""
        count = math.ceil(self.samples / self.batch_size)
        return [(self.samples + i) // count for i in range(count)]

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the settings, in words."""
        if not self.shape or any(side < 1 for side in self.shape):
            yield f"shape is that of one sample, like (3, 32, 32), not {self.shape}"
        if self.samples < MIN_SAMPLES or self.batch_size < MIN_SAMPLES:
            yield (
                f"samples ({self.samples}) and batch_size ({self.batch_size}) are at least "
                f"{MIN_SAMPLES}: fewer show no statistics"
            )
        if self.steps < 1 or self.seed < 0:
            yield f"steps ({self.steps}) is at least 1 and seed ({self.seed}) at least 0"
        for name in ("lr", "temperature"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                yield f"{name} is positive and finite, not {getattr(self, name)}"
        for name in ("smoothness", "class_weight", "input_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                yield f"{name} is finite and at least 0, not {getattr(self, name)}"
        if self.limits is not None and self.shape:
            sizes = {np.size(limit) for limit in self.limits}
            if sizes - {1, self.shape[0]}:
                yield f"limits are numbers or {self.shape[0]} per channel each, not {self.limits}"
            elif not np.all(np.less(*self.limits)):
                yield f"the least value is below the greatest, not {self.limits}"

"""Images that become darker, brighter, flatter or harder than those of the calibration set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from bitsmith.data import Split
from bitsmith.errors import DataError

__all__ = ["Drift", "Levels", "drifted", "drifts"]

Kind = Literal["brightness", "contrast"]
#: What is added to every pixel, in units of white less black; the same for a quick run.
_BRIGHTNESS = (-0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
_BRIGHTNESS_QUICK = (-0.4, 0.0, 0.4)
#: By what the distance of every pixel to the mean of its image is multiplied.
_CONTRAST = tuple(2.0 ** (k / 2) for k in range(-6, 5))
_CONTRAST_QUICK = (0.25, 1.0, 2.0)


@final
@dataclass(frozen=True)
class Levels:
    """Black and white in model-ready numbers, ``[C, 1, 1]`` each."""

    black: Tensor
    white: Tensor

    @classmethod
    def of(cls, split: Split) -> Levels:
        """Return what the normalization of 0 and 255 gives, of float images their extremes.

        Raises:
            DataError: samples that are no images, or all pixels alike.
        """
        if len(split.input_shape) != 3:
            raise DataError(
                f"brightness and contrast are of images [channels, height, width], and a sample of "
                f"{split.dataset!r} is {list(split.input_shape)}"
            )
        if split.x.dtype == np.uint8:
            return cls(*(torch.tensor(v).reshape(-1, 1, 1) for v in split.normalization.limits))
        low, high = float(split.x.min()), float(split.x.max())
        if low == high:
            raise DataError(
                f"data set {split.dataset!r}: every pixel is {low:g}, so that there is neither "
                "black nor white to measure brightness by"
            )
        return cls(torch.full((1, 1, 1), low), torch.full((1, 1, 1), high))


@final
@dataclass(frozen=True)
class Drift:
    """One change of all images.

    Attributes:
        kind: what changes.
        amount: brightness: what is added to a pixel, 1 being white less black; contrast: by what
            its distance to the mean of the image is multiplied.

    >>> levels = Levels(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    >>> x = torch.tensor([0.0, 0.5, 1.0, 0.5]).reshape(1, 1, 2, 2)
    >>> Drift("brightness", 0.25)(x, levels).flatten().tolist()
    [0.25, 0.75, 1.0, 0.75]
    >>> Drift("contrast", 0.5)(x, levels).flatten().tolist()
    [0.25, 0.5, 0.75, 0.5]
    """

    kind: Kind
    amount: float

    @property
    def none(self) -> bool:
        """Whether it leaves images as they are."""
        return self.amount == (0.0 if self.kind == "brightness" else 1.0)

    @property
    def label(self) -> str:
        """The amount in a few characters."""
        if self.kind == "contrast":
            return f"×{self.amount:.3g}"
        return f"{self.amount:+.1f}".replace("-", "−") if self.amount else "±0"

    def __call__(self, x: Tensor, levels: Levels) -> Tensor:
        """Return the changed images ``[B, C, H, W]``, cut off at black and white as a camera does.

        The definitions of ImageNet-C (arXiv:1903.12261), with brightness added to every channel.
        """
        if self.none:
            return x
        span = levels.white - levels.black
        pixels = (x - levels.black) / span
        if self.kind == "brightness":
            pixels = pixels + self.amount
        else:
            mean = pixels.mean((1, 2, 3), keepdim=True)
            pixels = (pixels - mean) * self.amount + mean
        return pixels.clamp(0.0, 1.0) * span + levels.black


@final
@dataclass(frozen=True, eq=False)
class Drifted:
    """Batches of a split under a drift; can be iterated again and again."""

    split: Split
    drift: Drift
    levels: Levels
    size: int
    limit: int | None
    seed: int | None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for x, y in self.split.batches(self.size, limit=self.limit, seed=self.seed):
            yield self.drift(x, self.levels), y


def drifted(
    split: Split,
    drift: Drift,
    levels: Levels,
    *,
    limit: int | None = None,
    seed: int | None = None,
    size: int = 1000,
) -> Drifted:
    """Return batches ``(x, y)`` of ``size`` under a drift; others as of ``Split.batches``."""
    return Drifted(split, drift, levels, size, limit, seed)


def drifts(*, quick: bool) -> list[Drift]:
    """Return the changes in order, of each kind one that is none."""
    bright, contrast = (_BRIGHTNESS_QUICK, _CONTRAST_QUICK) if quick else (_BRIGHTNESS, _CONTRAST)
    kinds: tuple[tuple[Kind, tuple[float, ...]], ...]
    kinds = (("brightness", bright), ("contrast", contrast))
    return [Drift(kind, amount) for kind, amounts in kinds for amount in amounts]

"""Changes to training images: those that leave their meaning, and those that hide or mix it.

All are drawn for a whole batch at once, from a generator that is handed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitsmith.errors import DataError

__all__ = ["Augmentation", "blended", "erased"]

Array = NDArray[Any]

#: Share of an image's area, and the ratio of the sides, that arXiv:1708.04896 sets.
_ERASED_AREA = (0.02, 0.4)
_ERASED_RATIO = (0.3, 1 / 0.3)


@final
@dataclass(frozen=True)
class Augmentation:
    """What may be done to a raw training image without changing what it shows.

    A data set says which suits it: a photograph may be mirrored, a digit may not.

    Attributes:
        crop: pixels of zeros (black) put around an image, out of which a random window of the
            image's own size is cut; 0 leaves it where it is (arXiv:1512.03385, section 4.2).
        flip: whether every second image, at random, is mirrored left to right.

    Raises:
        DataError: on construction: ``crop`` is not a whole number of at least 0.

    >>> rng = np.random.default_rng(0)
    >>> Augmentation(crop=1)(np.ones((1, 2, 2), np.uint8), "none", rng).tolist()
    [[[1, 1], [0, 0]]]
    """

    crop: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.crop, bool) or not isinstance(self.crop, int) or self.crop < 0:
            raise DataError(f"crop is a number of pixels, 0 or more, not {self.crop!r}")

    def __bool__(self) -> bool:
        """Return whether it changes anything."""
        return self.crop > 0 or self.flip

    def __call__(
        self, x: Array, channels: Literal["first", "last", "none"], rng: np.random.Generator
    ) -> Array:
        """Return the changed copy of raw images, in their own type and shape.

        Args:
            x: [B, C, H, W], [B, H, W, C] or [B, H, W], as ``channels`` says.
            channels: where ``x`` keeps its channels.
            rng: what the windows and the mirrored images are drawn from.
        """
        images = {"first": x, "last": np.moveaxis(x, -1, 1), "none": x[:, None]}[channels]
        images = self._cropped(images, rng) if self.crop else images.copy()
        if self.flip:
            mirrored = rng.random(len(images)) < 0.5
            images[mirrored] = images[mirrored][..., ::-1]
        if channels == "first":
            return images
        return np.moveaxis(images, 1, -1) if channels == "last" else images[:, 0]

    def _cropped(self, images: Array, rng: np.random.Generator) -> Array:
        side = (self.crop, self.crop)
        padded = np.pad(images, ((0, 0), (0, 0), side, side))
        windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[2:], axis=(2, 3))
        top, left = rng.integers(0, 2 * self.crop + 1, (2, len(images)))
        # windows is [B, C, 2·crop + 1, 2·crop + 1, H, W]; the indexed axes come first
        chosen: Array = windows[np.arange(len(images)), :, top, left]  # [B, C, H, W]
        return chosen


def erased(x: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Return images with a random rectangle set to 0 in about ``share`` of them.

    Random erasing (arXiv:1708.04896, algorithm 1) with the area between 2 % and 40 % of the
    image, and sides cut to the image's where they do not fit. 0 is the mean of normalised data.

    Args:
        x: model-ready images [B, C, H, W]; not changed.
        share: probability that an image is changed.
        rng: what images, places and sizes are drawn from.
    """
    b, _, h, w = x.shape
    area = h * w * rng.uniform(*_ERASED_AREA, b)
    ratio = np.exp(rng.uniform(math.log(_ERASED_RATIO[0]), math.log(_ERASED_RATIO[1]), b))
    height = np.clip(np.rint(np.sqrt(area * ratio)), 1, h).astype(np.int64)
    width = np.clip(np.rint(np.sqrt(area / ratio)), 1, w).astype(np.int64)
    top, left = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
    hit = rng.random(b) < share
    row, column = np.arange(h), np.arange(w)
    rows = (row >= top[:, None]) & (row < (top + height)[:, None]) & hit[:, None]  # [B, H]
    columns = (column >= left[:, None]) & (column < (left + width)[:, None])  # [B, W]
    hidden = torch.from_numpy(rows[:, None, :, None] & columns[:, None, None, :])
    return x.masked_fill(hidden, 0.0)


def blended(x: Tensor, alpha: float, rng: np.random.Generator) -> Tensor:
    """Return every sample mixed with another one of its batch, ``w · x_i + (1 − w) · x_j``.

    The inputs of mixup (arXiv:1710.09412, equation 1), without its labels: for distillation,
    where the teacher says what the mixture is. Sample i stays the heavier part, w ≥ 1/2.

    Args:
        x: model-ready samples [B, …]; not changed.
        alpha: w is drawn from Beta(alpha, alpha); small values leave most samples alone, 1 is
            uniform.
        rng: what weights and partners are drawn from.
    """
    share = rng.beta(alpha, alpha, len(x))
    heavier = torch.from_numpy(np.maximum(share, 1 - share).astype(np.float32))
    weight = heavier.reshape(-1, *(1,) * (x.ndim - 1))
    partner = torch.from_numpy(rng.permutation(len(x)))
    return weight * x + (1 - weight) * x[partner]

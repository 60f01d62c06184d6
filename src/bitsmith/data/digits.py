"""The 8×8 handwritten digits that scikit-learn carries: no file, no download."""

from __future__ import annotations

from typing import final

import numpy as np

from bitsmith.data.augment import Augmentation
from bitsmith.data.dataset import Dataset
from bitsmith.data.split import Split

__all__ = ["Digits"]


@final
class Digits(Dataset, name="digits"):
    """1,797 grey 8×8 digits, float32 [N, 1, 8, 8] in [0, 1]; 1,257 to train, 540 to test.

    The split is stratified and fixed (scikit-learn's ``train_test_split``, seed 42).
    """

    splits = ("train", "test")

    def read(self, split: str) -> Split:
        from sklearn.datasets import load_digits  # takes a second to import
        from sklearn.model_selection import train_test_split

        source = load_digits()
        x = (source.images / 16).astype(np.float32)[:, None]  # [1797, 1, 8, 8]
        parts = train_test_split(
            x, source.target, test_size=540, random_state=42, stratify=source.target
        )
        at = self.splits.index(split)
        origin = "scikit-learn load_digits (UCI optdigits test set), fixed stratified split"
        return Split(
            self.name,
            split,
            parts[at],
            parts[2 + at],
            provenance=origin,
            classes=10,
            augmentation=Augmentation(crop=1),  # a mirrored digit is another sign, or none
        )

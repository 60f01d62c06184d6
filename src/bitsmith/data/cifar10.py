"""CIFAR-10: 60,000 colour photographs of 32×32 pixels in 10 classes (Krizhevsky 2009)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

from numpy.typing import NDArray

from bitsmith.data.archives import cifar10_arrays
from bitsmith.data.augment import Augmentation
from bitsmith.data.dataset import Dataset
from bitsmith.data.fetch import Source, obtain
from bitsmith.data.npz import read_npz
from bitsmith.data.split import Normalization, Split

__all__ = ["Cifar10"]

_ARCHIVE = "cifar-10-binary.tar.gz"
_FILES = {
    "train": ("cifar10-train.npz", "cifar10-train5k.npz"),
    "test": ("cifar10-test.npz",),
}


@final
class Cifar10(Dataset, name="cifar10"):
    """RGB 32×32 photographs, 50,000 to train and 10,000 to test, model-ready [N, 3, 32, 32].

    Normalised by mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225), as the pretrained
    CIFAR ResNets expect. ``cifar10-train.npz`` (or ``cifar10-train5k.npz``, a subset for
    calibration) and ``cifar10-test.npz`` hold uint8 ``x`` [N, 32, 32, 3] and ``y`` [N].
    """

    splits = ("train", "test")

    # The address and checksum stand on https://www.cs.toronto.edu/~kriz/cifar.html.
    source: ClassVar[Source] = Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        {_ARCHIVE: "c32a1d4ab5d03f1284b67883e8d87530"},
    )

    def read(self, split: str) -> Split:
        path = obtain(self.name, _FILES[split], self.source, _convert)
        arrays = read_npz(path, ("x", "y"), sample_shape=(32, 32, 3))
        n, whole = len(arrays["x"]), {"train": 50_000, "test": 10_000}[split]
        part = "" if n == whole else f", {n:,} of its {whole:,} images ({path.name})"
        return Split(
            self.name,
            split,
            arrays["x"],
            arrays["y"],
            Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), channels="last"),
            f"CIFAR-10, official {split} split{part}",
            classes=10,
            augmentation=Augmentation(crop=4, flip=True),
        )


def _convert(folder: Path) -> Mapping[str, Mapping[str, NDArray[Any]]]:
    """Return the files to write: one per split."""
    arrays = cifar10_arrays(folder / _ARCHIVE)
    return {
        _FILES[split][0]: {"x": arrays[f"x_{split}"], "y": arrays[f"y_{split}"]}
        for split in ("train", "test")
    }

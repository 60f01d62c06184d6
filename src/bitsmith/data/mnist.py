"""MNIST: 70,000 handwritten digits (LeCun, Cortes, Burges)."""

from __future__ import annotations

from typing import ClassVar, final

from bitsmith.data.archives import IDX_FILES, idx_arrays
from bitsmith.data.augment import Augmentation
from bitsmith.data.dataset import Dataset
from bitsmith.data.fetch import Source, obtain
from bitsmith.data.npz import npz_shape, read_npz
from bitsmith.data.split import Normalization, Split

__all__ = ["Mnist"]

_FILE = "mnist.npz"


@final
class Mnist(Dataset, name="mnist"):
    """Grey 28×28 digits, 60,000 to train and 10,000 to test, model-ready [N, 1, 28, 28].

    Normalised by mean 0.1307 and std 0.3081. ``mnist.npz`` holds uint8 ``x_train``
    [N, 28, 28], ``y_train`` [N], ``x_test``, ``y_test``.
    """

    splits = ("train", "test")

    # The addresses and checksums are those of torchvision.datasets.MNIST.
    source: ClassVar[Source] = Source(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        {
            IDX_FILES["x_train"]: "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            IDX_FILES["y_train"]: "d53e105ee54ea40749a09fcbcd1e9432",
            IDX_FILES["x_test"]: "9fb629c4189551a2d022fa330f9573f3",
            IDX_FILES["y_test"]: "ec29112dd5afa0611ce80d1b7f02629c",
        },
        most_bytes=2**26,
    )

    def read(self, split: str) -> Split:
        path = obtain(self.name, (_FILE,), self.source, lambda folder: {_FILE: idx_arrays(folder)})
        arrays = read_npz(path, (f"x_{split}", f"y_{split}"), sample_shape=(28, 28))
        official = npz_shape(path, f"x_{split}")[0] == {"train": 60_000, "test": 10_000}[split]
        return Split(
            self.name,
            split,
            arrays[f"x_{split}"],
            arrays[f"y_{split}"],
            Normalization((0.1307,), (0.3081,), channels="none"),
            "MNIST, official split" if official else f"{path.name}, not the size of the official",
            classes=10,
            augmentation=Augmentation(crop=2),  # a mirrored digit is another sign, or none
        )

"""Fashion-MNIST: 70,000 pictures of clothes in the form of MNIST (arXiv:1708.07747)."""

from __future__ import annotations

from typing import ClassVar, final

from bitsmith.data.archives import IDX_FILES, idx_arrays
from bitsmith.data.augment import Augmentation
from bitsmith.data.dataset import Dataset
from bitsmith.data.fetch import Source, obtain
from bitsmith.data.npz import npz_shape, read_npz
from bitsmith.data.split import Normalization, Split

__all__ = ["FashionMnist"]

_FILE = "fashion_mnist.npz"


@final
class FashionMnist(Dataset, name="fashion-mnist"):
    """Grey 28×28 clothes in 10 classes, model-ready [N, 1, 28, 28].

    Normalised by mean 0.2860 and std 0.3530. ``fashion_mnist.npz`` holds uint8 ``x_train``
    [N, 28, 28], ``y_train`` [N], ``x_test``, ``y_test``. The official split has 60,000 and
    10,000; a file with another number to train holds another split, and `Split.provenance`
    says so.
    """

    splits = ("train", "test")

    # The checksums are those of torchvision.datasets.FashionMNIST, and of the publisher's page,
    # https://github.com/zalandoresearch/fashion-mnist.
    source: ClassVar[Source] = Source(
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        {
            IDX_FILES["x_train"]: "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            IDX_FILES["y_train"]: "25c81989df183df01b3e8a0aad5dffbe",
            IDX_FILES["x_test"]: "bef4ecab320f06d8554ea6380940ec79",
            IDX_FILES["y_test"]: "bb300cfdad3c16e7a12a480ee83cd310",
        },
        most_bytes=2**26,
    )

    def read(self, split: str) -> Split:
        path = obtain(self.name, (_FILE,), self.source, lambda folder: {_FILE: idx_arrays(folder)})
        arrays = read_npz(path, (f"x_{split}", f"y_{split}"), sample_shape=(28, 28))
        train, test = npz_shape(path, "x_train")[0], npz_shape(path, "x_test")[0]
        if (train, test) == (60_000, 10_000):
            origin = "Fashion-MNIST, official split"
        else:
            origin = (
                f"Fashion-MNIST, not the official split: {train:,} to train and {test:,} to test, "
                "drawn from the 70,000 official images taken together"
            )
        return Split(
            self.name,
            split,
            arrays[f"x_{split}"],
            arrays[f"y_{split}"],
            Normalization((0.2860,), (0.3530,), channels="none"),
            origin,
            classes=10,
            augmentation=Augmentation(crop=2, flip=True),
        )

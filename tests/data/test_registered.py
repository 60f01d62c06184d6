"""Every registered data set: conformance, and what is known of each from elsewhere."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from bitsmith.data import Dataset, Split, datasets, load_dataset
from bitsmith.errors import DataError

FILES = {
    "cifar10": ("cifar10-test.npz",),
    "fashion-mnist": ("fashion_mnist.npz",),
    "mnist": ("mnist.npz",),
}
SHAPES = {
    "cifar10": (3, 32, 32),
    "digits": (1, 8, 8),
    "fashion-mnist": (1, 28, 28),
    "mnist": (1, 28, 28),
    "moons": (2,),
}


def present(name: str) -> Dataset:
    """Return the data set; skip where its files are not in BITSMITH_DATA."""
    folder = os.environ.get("BITSMITH_DATA")
    for file in FILES.get(name, ()):
        if not folder or not (Path(folder) / file).is_file():
            pytest.skip(f"{file} is not in BITSMITH_DATA ({folder})")
    return load_dataset(name)


@pytest.mark.parametrize("name", sorted(datasets))
@pytest.mark.parametrize("which", ["train", "test"])
def test_conformance(name: str, which: str) -> None:
    dataset = present(name)
    if name == "cifar10" and which == "train":
        folder = Path(os.environ["BITSMITH_DATA"])
        if not any((folder / f"cifar10-{t}.npz").is_file() for t in ("train", "train5k")):
            pytest.skip("neither cifar10-train.npz nor cifar10-train5k.npz is in BITSMITH_DATA")
    assert dataset.name == name
    assert dataset.splits == ("train", "test")
    split = dataset.split(which)
    assert (split.dataset, split.name) == (name, which)
    assert split.provenance
    assert split.input_shape == SHAPES.get(name, split.input_shape)
    x, y = next(iter(split.batches(256, limit=256, seed=0)))
    assert x.dtype == torch.float32
    assert x.shape == (256, *split.input_shape)
    assert y is not None
    assert y.dtype == torch.int64
    assert split.y is not None
    assert split.classes is not None
    assert set(np.unique(split.y)) == set(range(split.classes))
    again = load_dataset(name).read(which)
    assert again.sha256 == split.sha256


@pytest.mark.parametrize("name", ["cifar10", "digits", "moons"])
def test_train_and_test_share_no_sample(name: str) -> None:
    dataset = present(name)

    def samples(split: Split) -> set[bytes]:
        return {hashlib.sha256(row.tobytes()).digest() for row in split.x}

    assert not samples(dataset.split("train")) & samples(dataset.split("test"))


def test_digits_are_scikit_learns_and_stratified() -> None:
    from sklearn.datasets import load_digits

    source, dataset = load_digits(), load_dataset("digits")
    train, test = dataset.split("train"), dataset.split("test")
    assert (train.n, test.n) == (1257, 540)
    both = np.concatenate([train.x, test.x])[:, 0].reshape(-1, 64) * 16
    order = np.lexsort(both.T), np.lexsort(source.data.T)
    np.testing.assert_array_equal(both[order[0]], source.data[order[1]])
    labels = np.concatenate([train.y, test.y])
    np.testing.assert_array_equal(labels[order[0]], source.target[order[1]])
    shares = np.bincount(test.y) / np.bincount(source.target)
    np.testing.assert_allclose(shares, 540 / 1797, atol=0.01)


def test_moons() -> None:
    from sklearn.datasets import make_moons

    dataset = load_dataset("moons")
    train, test = dataset.split("train"), dataset.split("test")
    assert (train.n, test.n) == (700, 300)
    assert np.bincount(test.y).tolist() == [150, 150]
    x, _ = make_moons(1000, noise=0.25, random_state=42)
    both = np.concatenate([train.x, test.x])
    np.testing.assert_array_equal(np.sort(both, 0), np.sort(x.astype(np.float32), 0))


# MD5 of the uncompressed files of LeCun's page, as many projects state them.
OFFICIAL_MNIST = {
    ("x", "train"): "6bbc9ace898e44ae57da46a324031adb",
    ("y", "train"): "a25bea736e30d166cdddb491f175f624",
    ("x", "test"): "2646ac647ad5339dbf082846283269ea",
    ("y", "test"): "27ae3e4e09519cfbb04c329615203637",
}


@pytest.mark.parametrize(("key", "which"), sorted(OFFICIAL_MNIST))
def test_mnist_is_the_official_one_bit_for_bit(key: str, which: str) -> None:
    split = present("mnist").split(which)
    array = np.asarray(getattr(split, key), np.uint8)
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    assert hashlib.md5(header + array.tobytes()).hexdigest() == OFFICIAL_MNIST[key, which]
    assert "official" in split.provenance


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_normalization_is_of_this_data(name: str) -> None:
    split = present(name).split("test")
    total, squares, count = 0.0, 0.0, 0
    for x, _ in split.batches(500, limit=4000, seed=0):
        total += float(x.double().sum())
        squares += float(x.double().square().sum())
        count += x.numel()
    mean = total / count
    # CIFAR-10 is normalised with ImageNet's numbers, as its weights expect.
    assert abs(mean) < (0.15 if name == "cifar10" else 0.05)
    assert abs((squares / count - mean**2) ** 0.5 - 1) < (0.15 if name == "cifar10" else 0.05)


def test_fashion_mnist_says_when_its_split_is_not_the_official() -> None:
    split = present("fashion-mnist").split("test")
    official = load_dataset("fashion-mnist").split("train").n == 60_000
    assert ("not the official" in split.provenance) != official


def test_folder_with_files_of_another_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITSMITH_DATA", str(tmp_path))
    np.savez(tmp_path / "cifar10-test.npz", x=np.zeros((3, 3, 32, 32), np.uint8), y=np.zeros(3))
    np.savez(tmp_path / "mnist.npz", x_test=np.zeros((3, 28, 28)), y_test=np.zeros(3, np.uint8))
    np.savez(tmp_path / "fashion_mnist.npz", x_test=np.zeros((3, 28, 28), np.uint8))
    with pytest.raises(DataError, match=r"must be uint8 \[samples, 32, 32, 3\]"):
        load_dataset("cifar10").split("test")
    with pytest.raises(DataError, match="x_test is float64"):
        load_dataset("mnist").split("test")
    with pytest.raises(DataError, match="lacks the arrays y_test"):
        load_dataset("fashion-mnist").split("test")

"""Training batches: reproducible, complete, and of the train split only."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitsmith.data import (
    Augmentation,
    Normalization,
    Split,
    TrainingBatches,
    check_training_data,
    load_dataset,
    training_batches,
)
from bitsmith.errors import DataError
from bitsmith.model.train import fit
from bitsmith.zoo.models.mlp import Mlp


def numbered(n: int, name: str = "train", labels: bool = True) -> Split:
    """Images that show their own number, which is their label too."""
    x = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 4, 5, 3)).copy()
    plain = Normalization((0.0,) * 3, (1 / 255,) * 3, channels="last")
    return Split("numbers", name, x, np.arange(n) if labels else None, plain)


def both(batches: TrainingBatches, epoch: int) -> tuple[Tensor, Tensor]:
    parts = list(batches(epoch))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


@given(
    n=st.integers(1, 40), size=st.integers(1, 50), seed=st.integers(0, 9), epoch=st.integers(0, 9),
    data=st.data(),
)  # fmt: skip
def test_every_sample_once_an_epoch_with_its_label(
    n: int, size: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    limit = data.draw(st.none() | st.integers(1, n))
    batches = TrainingBatches(numbered(n), size, seed=seed, limit=limit)
    x, y = both(batches, epoch)
    assert len(batches) == len(batches(epoch)) == len(list(batches(epoch)))
    assert all(len(part) == size for part, _ in list(batches(epoch))[:-1])
    assert len(set(y.tolist())) == len(y) == (n if limit is None else limit)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    torch.testing.assert_close(x, y[:, None, None, None].float().expand(-1, 3, 4, 5))
    # The same samples in every epoch, also where some are drawn.
    assert sorted(both(batches, epoch + 1)[1].tolist()) == sorted(y.tolist())


@given(
    seed=st.integers(0, 5), epoch=st.integers(0, 5), crop=st.integers(0, 2), flip=st.booleans(),
    erase=st.sampled_from([0.0, 0.5]), blend=st.sampled_from([0.0, 1.0]),
)  # fmt: skip
def test_same_seed_and_epoch_same_batches(
    seed: int, epoch: int, crop: int, flip: bool, erase: float, blend: float
) -> None:
    def made() -> TrainingBatches:
        return TrainingBatches(
            numbered(30),
            8,
            seed=seed,
            augmentation=Augmentation(crop, flip),
            erase=erase,
            blend=blend,
            labelled=blend == 0,
        )

    one = made()
    opened = one(epoch)
    first = [x for x, _ in opened]
    for again in (opened, one(epoch), made()(epoch)):
        assert all(torch.equal(a, b) for a, (b, _) in zip(first, again, strict=True))
    assert not torch.equal(torch.cat(first), torch.cat([x for x, _ in one(epoch + 1)]))


def test_two_passes_at_once_do_not_disturb_each_other() -> None:
    batches = TrainingBatches(numbered(30), 4, augmentation=Augmentation(crop=1, flip=True))
    alone = [x for x, _ in batches(0)]
    pairs = list(zip(batches(0), batches(0), strict=True))
    for expected, ((a, _), (b, _)) in zip(alone, pairs, strict=True):
        assert torch.equal(a, expected)
        assert torch.equal(b, expected)


def test_neither_numpys_nor_pytorchs_random_state_is_used() -> None:
    batches = TrainingBatches(numbered(30), 4, erase=0.5, blend=1.0, labelled=False)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # the global state is what is looked at
    first = torch.cat([x for x, _ in batches(0)])
    state = torch.get_rng_state()
    np.random.seed(2)  # noqa: NPY002  # as above
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.cat([x for x, _ in batches(0)]), first)


def test_a_data_sets_own_augmentation_unless_another_is_given() -> None:
    digits = load_dataset("digits")
    assert training_batches(digits, 64).augmentation == Augmentation(crop=1)
    x = torch.cat([x for x, _ in training_batches(digits, 64, augmentation=Augmentation())(0)])
    assert torch.equal(x.sum(0), torch.from_numpy(digits.split("train").x).sum(0))


def test_cifar10_is_mirrored_and_mnist_is_not() -> None:
    folder = os.environ.get("BITSMITH_DATA")
    files = ("cifar10-train5k.npz", "mnist.npz", "fashion_mnist.npz")
    if not folder or not all((Path(folder) / f).is_file() for f in files):
        pytest.skip(f"{', '.join(files)} are not in BITSMITH_DATA ({folder})")
    own = {n: load_dataset(n).split("train").augmentation for n in ("cifar10", "mnist")}
    assert own == {"cifar10": Augmentation(4, True), "mnist": Augmentation(2, False)}
    assert load_dataset("fashion-mnist").split("train").augmentation.flip
    batches = training_batches(load_dataset("cifar10"), 128, limit=256)
    x, y = next(iter(batches(0)))
    assert x.shape == (128, 3, 32, 32)
    # What the crop puts in is black, as it was when the networks were trained.
    black = -0.485 / 0.229
    assert float(x[:, 0].min()) == pytest.approx(black, rel=1e-5)
    assert y.dtype == torch.int64


@pytest.mark.parametrize("name", ["test", "valid"])
def test_another_split_is_refused(name: str) -> None:
    other = numbered(20, name)
    message = f"training takes samples of the train split only.*'numbers', split '{name}'"
    with pytest.raises(DataError, match=message):
        TrainingBatches(other, 4)
    for data in (other, other.batches(4)):
        with pytest.raises(DataError, match="calibration takes samples of the train split only"):
            check_training_data(data, "calibration")
    train = numbered(20)
    for fine in (train, train.batches(4), TrainingBatches(train, 4), [torch.zeros(2)], None):
        check_training_data(fine)


def test_a_data_set_without_a_train_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x_test=np.zeros((9, 2), np.float32), y_test=np.zeros(9, int))
    with pytest.raises(DataError, match="has no train split to train on, only test"):
        training_batches(load_dataset(str(tmp_path / "d.npz")), 4)


def test_all_faults_are_in_one_message() -> None:
    flat = Split("flat", "train", np.zeros((9, 2), np.float32), None)
    with pytest.raises(DataError) as caught:
        TrainingBatches(
            flat, 0, seed=-1, augmentation=Augmentation(flip=True), erase=2, blend=-1, limit=10
        )
    for part in (
        "at least 1 sample, not 0",
        "between 1 and 9 samples can be drawn, not 10",
        "a seed is 0 or more, not -1",
        "erase is a probability, not 2",
        "not -1",
        r"a sample is [2]",
        "labelled=False trains without",
        "blend needs labelled=False",
    ):
        assert part in str(caught.value)
    with pytest.raises(DataError, match="not nan"):
        TrainingBatches(numbered(4), 2, blend=float("nan"), labelled=False)
    with pytest.raises(DataError, match="none with index -1"):
        TrainingBatches(numbered(4), 2)(-1)


def test_without_labels() -> None:
    (_, y), *_ = TrainingBatches(numbered(8, labels=False), 4, labelled=False)(0)
    assert y is None


def test_fit_takes_them_and_asks_for_every_epoch() -> None:
    torch.manual_seed(0)
    batches = training_batches(load_dataset("digits"), 64, augmentation=Augmentation())
    run = fit(Mlp(in_features=64), batches, epochs=4, lr=0.1, progress=False)
    assert [epoch.samples for epoch in run.history] == [1257] * 4
    assert run.history[-1].loss < 0.5 * run.history[0].loss

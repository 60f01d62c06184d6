"""Splits, normalization and batches, against plain numpy and torch."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
import torch

from bitsmith.data import Normalization, Split
from bitsmith.errors import DataError, UnknownNameError


def floats(n: int = 10) -> Split:
    x = np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3)
    return Split("set", "train", x, np.arange(n) % 3)


def test_colour_images_become_channels_first_and_normalised() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    split = Split("set", "train", x, None, Normalization(mean, std, channels="last"))
    ((batch, labels),) = split.batches(5)
    expected = (x.astype(np.float64).transpose(0, 3, 1, 2) / 255 - np.reshape(mean, (3, 1, 1))) / (
        np.reshape(std, (3, 1, 1))
    )
    assert labels is None
    assert split.classes is None
    assert split.input_shape == (3, 4, 6)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous()
    np.testing.assert_allclose(batch.numpy(), expected, rtol=0, atol=1e-6)


def test_grey_images_get_a_channel() -> None:
    x = np.array([[[0, 255]], [[51, 102]]], np.uint8)
    split = Split("set", "test", x, None, Normalization((0.2,), (0.5,), channels="none"))
    ((batch, _),) = split.batches(2)
    assert batch.shape == (2, 1, 1, 2)
    assert split.input_shape == (1, 1, 2)
    torch.testing.assert_close(batch.flatten(), torch.tensor([-0.4, 1.6, 0.0, 0.4]))


def test_batches_are_sized_reiterable_and_in_order() -> None:
    split = floats()
    batches = split.batches(4, limit=9)
    assert len(batches) == 3
    for _ in range(2):
        pairs = list(batches)
        assert [len(x) for x, _ in pairs] == [4, 4, 1]
        np.testing.assert_array_equal(torch.cat([x for x, _ in pairs]).numpy(), split.x[:9])
        labels = torch.cat([y for _, y in pairs if y is not None])
        assert labels.dtype == torch.int64
        assert labels.tolist() == [i % 3 for i in range(9)]


def test_a_seed_draws_without_replacement_and_keeps_labels_with_their_samples() -> None:
    split = floats(100)
    draws = []
    for seed in (0, 0, 1):
        x = torch.cat([x for x, _ in split.batches(8, limit=30, seed=seed)])
        y = torch.cat([y for _, y in split.batches(8, limit=30, seed=seed) if y is not None])
        rows = (x[:, 0, 0] / 6).long()
        assert len(set(rows.tolist())) == 30
        assert torch.equal(rows % 3, y)
        draws.append(rows.tolist())
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] != sorted(draws[0])
    everything = torch.cat([x for x, _ in split.batches(7, seed=3)])
    assert sorted((everything[:, 0, 0] / 6).tolist()) == list(range(100))


def test_a_batch_is_a_copy() -> None:
    split = floats()
    before = split.x.copy()
    for x, y in split.batches(5):
        x.zero_()
        assert y is not None
        y.zero_()
    np.testing.assert_array_equal(split.x, before)


def test_normalising_takes_memory_for_one_batch_only() -> None:
    x = np.zeros((4096, 32, 32, 3), np.uint8)
    split = Split("set", "train", x, None, Normalization((0.5,) * 3, (0.2,) * 3, channels="last"))
    tracemalloc.start()
    for _ in split.batches(16, seed=0):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000  # of 12.6 MB of uint8 and 50 MB of float32


def test_sha256_depends_on_content_type_shape_and_labels_only() -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    y = np.array([0, 1, 0, 1])
    digest = Split("a", "train", x, y).sha256
    assert digest == Split("b", "test", x.copy(), y.astype(np.uint8)).sha256
    assert digest == Split("a", "train", np.asfortranarray(x), y).sha256
    assert digest == Split("a", "train", x.astype(">f4"), y).sha256
    others = [
        Split("a", "train", x + 1, y),
        Split("a", "train", x.reshape(4, 3, 1), y),
        Split("a", "train", x, None),
        Split("a", "train", x, 1 - y),
    ]
    assert len({digest, *(o.sha256 for o in others)}) == 5
    by_hand = hashlib.sha256(b"x <f4 (4, 3)\n" + x.tobytes() + b"y <i8 (4,)\n" + y.tobytes())
    assert digest == by_hand.hexdigest()


def test_sha256_does_not_depend_on_how_it_is_read_in_parts() -> None:
    x = np.random.default_rng(0).normal(size=(5000, 2)).astype(np.float32)
    by_hand = hashlib.sha256(b"x <f4 (5000, 2)\n" + x.tobytes()).hexdigest()
    assert Split("a", "train", x, None).sha256 == by_hand


GOOD = np.zeros((4, 2), np.float32)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((0, 2), np.float32), None, "empty"),
        (np.zeros(4, np.float32), None, r"shape \(4,\)"),
        (np.float32(1).reshape(()), None, r"shape \(\)"),
        (np.array([[1.0, np.nan], [np.inf, 0.0]]), None, "2 values that are NaN or infinite"),
        (np.full((1, 2), 1e300), None, "2 values that are NaN or infinite in float32"),
        (np.zeros((4, 2), np.int32), None, "int32"),
        (np.zeros((4, 2), np.complex64), None, "complex64"),
        (np.array([["a"]]), None, "<U1"),
        (np.zeros((4, 2), np.uint8), None, "no mean and std"),
        (GOOD, np.zeros(3, int), "4 samples and y has 3"),
        (GOOD, np.zeros((4, 1), int), r"y has the shape \(4, 1\)"),
        (GOOD, np.zeros(4), "float64"),
        (GOOD, np.array([0, 1, 2, -1]), "from -1 to 2"),
    ],
)
def test_bad_samples_and_labels(x: np.ndarray, y: np.ndarray | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Split("set", "train", x, y)


def test_every_fault_is_in_one_message() -> None:
    with pytest.raises(DataError, match=r"'set'.*'test'.*NaN.*4 samples and y has 2"):
        Split("set", "test", GOOD * np.nan, np.zeros(2, int))


def test_labels_beyond_the_classes() -> None:
    with pytest.raises(DataError, match="0 to 1"):
        Split("set", "train", GOOD, np.array([0, 1, 2, 0]), classes=2)


def test_channels_that_do_not_fit_the_normalization() -> None:
    x = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(DataError, match="8 channels, but there are 3"):
        Split("set", "train", x, None, Normalization((0.5,) * 3, (0.5,) * 3))


@pytest.mark.parametrize(("mean", "std"), [((0.5,), ()), ((0.5,), (0.0,)), ((np.nan,), (1.0,))])
def test_impossible_normalizations(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(DataError):
        Normalization(mean, std)


@pytest.mark.parametrize(
    ("size", "limit", "message"),
    [(0, None, "at least 1"), (4, 0, "not 0"), (4, 11, "has 10 samples.*not 11"), (4, -1, "-1")],
)
def test_draws_that_cannot_be_made(size: int, limit: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        floats().batches(size, limit=limit)


def test_unknown_split_lists_those_there_are() -> None:
    from bitsmith.data import load_dataset

    with pytest.raises(UnknownNameError, match=r"'val'.*known: test, train"):
        load_dataset("moons").split("val")

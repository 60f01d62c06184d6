"""Changes to training images, against plain loops over single images."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsmith.data import Augmentation, load_dataset
from bitsmith.data.augment import blended, erased
from bitsmith.errors import DataError

Layout = Literal["first", "last", "none"]
LAYOUTS: tuple[Layout, ...] = ("first", "last", "none")


def images(layout: Layout, n: int, h: int, w: int) -> np.ndarray:
    shape = {"first": (n, 3, h, w), "last": (n, h, w, 3), "none": (n, h, w)}[layout]
    return np.random.default_rng(7).integers(1, 256, shape).astype(np.uint8)


def planes(x: np.ndarray, layout: Layout) -> np.ndarray:
    """Return [N, C, H, W]."""
    return {"first": x, "last": x.transpose(0, 3, 1, 2) if x.ndim == 4 else x, "none": x[:, None]}[
        layout
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    crop=st.integers(0, 3), flip=st.booleans(), h=st.integers(1, 6), w=st.integers(1, 6),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_every_image_is_a_window_of_the_padded_one_perhaps_mirrored(
    layout: Layout, crop: int, flip: bool, h: int, w: int, seed: int
) -> None:
    x = images(layout, 5, h, w)
    before = x.copy()
    changed = Augmentation(crop, flip)(x, layout, np.random.default_rng(seed))
    assert changed.shape == x.shape
    assert changed.dtype == x.dtype
    assert np.array_equal(x, before)
    assert not np.shares_memory(x, changed)
    for one, other in zip(planes(x, layout), planes(changed, layout), strict=True):
        padded = np.pad(one, ((0, 0), (crop, crop), (crop, crop)))
        possible = [
            padded[:, top : top + h, left : left + w]
            for top in range(2 * crop + 1)
            for left in range(2 * crop + 1)
        ]
        possible += [p[..., ::-1] for p in possible] if flip else []
        assert any(np.array_equal(other, p) for p in possible)


def test_windows_and_mirrors_are_drawn_evenly() -> None:
    x = np.zeros((20_000, 3, 3), np.uint8)
    x[:, 1, 1] = 1
    changed = Augmentation(crop=1)(x, "none", np.random.default_rng(0))
    np.testing.assert_allclose(changed.mean(0), 1 / 9, atol=0.01)
    x = np.tile(np.array([[1, 0]], np.uint8), (20_000, 1, 1))
    changed = Augmentation(flip=True)(x, "none", np.random.default_rng(0))
    assert changed.mean(0)[0, 0] == pytest.approx(0.5, abs=0.02)


def test_nothing_asked_for_nothing_changed() -> None:
    x = images("last", 4, 5, 6)
    assert not Augmentation()
    assert np.array_equal(Augmentation()(x, "last", np.random.default_rng(0)), x)


@pytest.mark.parametrize("crop", [-1, 1.5, True])
def test_crop_is_a_number_of_pixels(crop: int) -> None:
    with pytest.raises(DataError, match="crop is a number of pixels"):
        Augmentation(crop=crop)


@given(
    h=st.integers(1, 12), w=st.integers(1, 12), seed=st.integers(0, 99), share=st.floats(0, 1)
)  # fmt: skip
def test_what_is_erased_is_one_rectangle_in_all_channels(
    h: int, w: int, seed: int, share: float
) -> None:
    x = torch.ones(6, 2, h, w)
    y = erased(x, share, np.random.default_rng(seed))
    assert bool((x == 1).all())
    for image in y:
        hidden = image == 0
        assert bool(((image == 0) | (image == 1)).all())
        assert torch.equal(hidden[0], hidden[1])
        rows, columns = hidden[0].any(1), hidden[0].any(0)
        assert torch.equal(hidden[0], rows[:, None] & columns[None])
        for side in (rows, columns):
            at = side.nonzero().flatten()
            assert len(at) == 0 or int(at[-1] - at[0]) + 1 == len(at)


def test_share_and_area_of_what_is_erased() -> None:
    x = torch.ones(4000, 1, 32, 32)
    hidden = (erased(x, 0.5, np.random.default_rng(0)) == 0).float().mean((1, 2, 3))
    hit = hidden > 0
    assert float(hit.float().mean()) == pytest.approx(0.5, abs=0.03)
    # Uniform between 2 % and 40 %; the longest sides are cut to the image's.
    assert float(hidden[hit].mean()) == pytest.approx(0.21, abs=0.02)
    assert 0.01 < float(hidden[hit].min()) < 0.03
    assert 0.35 < float(hidden.max()) < 0.43
    assert torch.equal(erased(x[:9], 0.0, np.random.default_rng(0)), x[:9])


@given(alpha=st.floats(0.05, 5), n=st.integers(1, 9), seed=st.integers(0, 99))
def test_blends_are_of_two_samples_of_the_batch(alpha: float, n: int, seed: int) -> None:
    x = torch.eye(n)  # row i of the result shows the weights
    y = blended(x, alpha, np.random.default_rng(seed))
    torch.testing.assert_close(y.sum(1), torch.ones(n))
    assert bool((y.diagonal() >= 0.5 - 1e-6).all())
    assert bool(((y > 0).sum(1) <= 2).all())
    assert bool(((y > 0).sum(0) <= 2).all())  # every sample is partner once


def test_what_suits_a_data_set_is_what_it_says() -> None:
    for name in ("digits", "moons"):
        assert not load_dataset(name).split("train").augmentation.flip
    assert not load_dataset("moons").split("train").augmentation

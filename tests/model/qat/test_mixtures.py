"""Mixtures of two samples: images by rectangles, other floats by weights, tokens not at all."""

from __future__ import annotations

import pytest
import torch

from bitsmith.model.qat.mixtures import mixed


@pytest.mark.parametrize("shape", [(8, 3, 6, 5), (5, 1, 1, 9), (1, 2, 4, 4), (4, 2, 1, 1)])
def test_an_image_has_one_rectangle_of_another(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.arange(1.0, shape[0] + 1)[:, None, None, None].expand(shape).contiguous()
    given, shares = x.clone(), []
    for _ in range(200):
        out = mixed(x)
        foreign = out != x
        rows = foreign.any(0).any(0).any(1).nonzero()
        columns = foreign.any(0).any(0).any(0).nonzero()
        for image, inside in zip(out, foreign, strict=True):
            assert len(image.unique()) <= 2
            assert inside.sum() in (0, shape[1] * len(rows) * len(columns))
        shares.append(len(rows) * len(columns) / (shape[2] * shape[3]))
        if len(rows):
            assert int(rows[-1] - rows[0]) == len(rows) - 1
            assert int(columns[-1] - columns[0]) == len(columns) - 1
    assert torch.equal(x, given)
    if shape[0] > 1 and shape[2] > 1:
        assert min(shares) < 0.1
        assert max(shares) > 0.6


def test_other_floats_are_weighted_and_the_heavier_one_is_in_its_place() -> None:
    for x in (torch.eye(12), torch.eye(12, dtype=torch.float64), torch.eye(12)[:, None]):
        out = mixed(x)
        rows = out.flatten(1)
        assert out.dtype == x.dtype
        torch.testing.assert_close(rows.sum(1), torch.ones(12, dtype=x.dtype))
        assert bool((rows.diagonal() >= 0.5).all())
        assert int((rows > 0).sum(1).max()) == 2


def test_what_is_drawn_is_of_the_random_state() -> None:
    x = torch.randn(6, 3, 8, 8)
    torch.manual_seed(3)
    first = mixed(x)
    torch.manual_seed(3)
    assert torch.equal(mixed(x), first)
    assert not torch.equal(mixed(x), first)

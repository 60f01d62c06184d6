"""Granularities: which values share a scale, against a loop over indices."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsmith.errors import SchemeError
from bitsmith.numbers.granularity import (
    Granularity,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    blocked,
)
from bitsmith.numbers.pieces import in_blocks, pieces


@pytest.mark.parametrize(
    ("granularity", "shape", "expected"),
    [
        (PerTensor(), (16, 3, 5, 5), ()),
        (PerTensor(), (), ()),
        (PerChannel(0), (16, 3, 5, 5), (16, 1, 1, 1)),
        (PerChannel(-1), (2, 3, 7), (1, 1, 7)),
        (PerChannel(-2), (2, 3, 7), (1, 3, 1)),
        (PerChannel(0), (0, 3), (0, 1)),
        (PerGroup(64), (16, 256), (16, 4)),
        (PerGroup(8, axis=1), (32, 16, 3, 3), (32, 2, 3, 3)),
        (PerGroup(5), (5,), (1,)),
        (PerGroup(1), (2, 3), (2, 3)),
        (PerGroup(4), (3, 0), (3, 0)),
        (PerBlock((2, 4)), (3, 6, 8), (3, 3, 2)),
        (PerBlock((3,)), (2, 6), (2, 2)),
        (PerBlock((2, -1)), (6, 10), (3, 1)),
        (PerBlock((2, -1)), (6, 0), (3, 0)),
        (PerToken(), (2, 7, 384), (2, 7, 1)),
        (PerToken(), (5,), (1,)),
    ],
)
def test_shapes_of_scales(granularity: Granularity, shape: tuple, expected: tuple) -> None:
    assert granularity.scale_shape(shape) == expected
    assert Granularity.from_json(granularity.to_json()) == granularity


GRANULARITIES = st.sampled_from(
    [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(2), PerGroup(3, axis=0), PerBlock((3, 2))]
)
SHAPES = st.tuples(st.sampled_from([3, 6]), st.integers(1, 4), st.sampled_from([2, 4]))


@given(GRANULARITIES, SHAPES, st.integers(1, 40))
def test_pieces_bring_each_value_together_with_its_own_scale(granularity, shape, size) -> None:
    if isinstance(granularity, PerBlock):
        shape = (*shape[1:2], shape[0], shape[2])
    scale_shape = granularity.scale_shape(shape)
    scale = torch.arange(torch.Size(scale_shape).numel(), dtype=torch.float32).reshape(scale_shape)
    x, seen = torch.rand(shape), torch.full(shape, -1.0)
    parts = in_blocks(shape, x, seen, scale, scale_shape=scale_shape)
    for values, out, own in pieces(*parts, size=size):
        assert values.numel() <= max(size, 1)
        out.copy_(own.expand_as(values))
    for index in itertools.product(*map(range, shape)):
        steps = [n // s for n, s in zip(shape, scale_shape, strict=bool(scale_shape))]
        place = tuple(i // step for i, step in zip(index, steps, strict=False)) if steps else ()
        assert seen[index] == scale[place]


def test_blocked_shapes_hold_the_same_elements_and_broadcast() -> None:
    for shape, scales in (((6, 8), (3, 2)), ((6, 8), (6, 1)), ((4,), ()), ((0, 8), (0, 4))):
        wide, narrow = blocked(shape, scales)
        assert torch.Size(wide).numel() == torch.Size(shape).numel()
        assert torch.Size(narrow).numel() == torch.Size(scales).numel()
        assert torch.broadcast_shapes(wide, narrow) == wide


@pytest.mark.parametrize(("axis", "shape"), [(2, (3, 4)), (-3, (3, 4)), (0, ())])
@pytest.mark.parametrize("kind", [PerChannel, lambda axis: PerGroup(1, axis)])
def test_an_axis_that_is_not_there_is_refused(kind, axis: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(SchemeError, match=f"axis {axis} does not exist"):
        kind(axis).scale_shape(shape)


def test_what_does_not_divide_is_refused_with_the_nearest_that_does() -> None:
    message = (
        r"group_size must divide axis 1 of shape \(8, 4096\): 4096 % 96 = 64; nearest: 64, 128"
    )
    with pytest.raises(SchemeError, match=message):
        PerGroup(96).scale_shape((8, 4096))
    with pytest.raises(SchemeError, match="172 % 32 = 12; nearest: 4, 43"):
        PerGroup(32).scale_shape((172,))
    message = r"5 % 2 = 1 on axis 1 \(nearest: 1, 5\), 6 % 4 = 2 on axis 2 \(nearest: 3, 6\)"
    with pytest.raises(SchemeError, match=message):
        PerBlock((2, 4)).scale_shape((3, 5, 6))
    with pytest.raises(SchemeError, match="at least 2 axes"):
        PerBlock((2, 4)).scale_shape((8,))


def test_groups_without_values_are_refused() -> None:
    with pytest.raises(SchemeError, match="at least one value, not 0"):
        PerGroup(0)
    with pytest.raises(SchemeError, match="at least one value along each axis"):
        PerBlock((2, 0))
    with pytest.raises(SchemeError, match="at least one value along each axis"):
        PerBlock(())

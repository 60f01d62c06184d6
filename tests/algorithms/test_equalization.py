"""Scales that make channels equal, against their definition and the float function."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from bitsmith.algorithms.equalization import (
    absorb_bias,
    absorbable_bias,
    equalizing_scales,
    input_ranges,
    output_ranges,
    range_ratio,
    scale_inputs,
    scale_outputs,
)
from bitsmith.errors import DataError, InputError


@given(seed=st.integers(0, 999), layers=st.integers(2, 5))
def test_all_ranges_of_a_chain_become_the_geometric_mean(seed, layers):
    g = torch.Generator().manual_seed(seed)
    ranges = [torch.rand(6, generator=g) * 10 ** torch.randn(6, generator=g) for _ in range(layers)]
    ones = torch.ones(6, dtype=torch.float64)
    scales = [ones, *equalizing_scales(ranges), ones]
    after = [r.double() * scales[k] / scales[k + 1] for k, r in enumerate(ranges)]
    mean = torch.stack(ranges).double().prod(0) ** (1 / layers)
    for r in after:
        assert torch.allclose(r, mean, rtol=1e-9)


def test_two_layers_are_the_published_formula():
    r1, r2 = torch.tensor([4.0, 0.5, 9.0]), torch.tensor([1.0, 2.0, 0.25])
    (s,) = equalizing_scales([r1, r2])
    # s = (1/r2)·√(r1·r2): the paper divides the first layer by it and multiplies the second.
    assert torch.allclose(s, ((r1 * r2).sqrt() / r2).double())


def test_dead_channels_stay():
    (s,) = equalizing_scales([torch.tensor([0.0, 4.0, 1.0]), torch.tensor([3.0, 1.0, 0.0])])
    assert s.tolist() == [1.0, 2.0, 1.0]


def test_a_tiny_and_a_huge_range_keep_finite_scales():
    (s,) = equalizing_scales([torch.tensor([1e-38]), torch.tensor([1e38])])
    assert s.item() == pytest.approx(1e-38, rel=1e-6)


@pytest.mark.parametrize(
    "ranges",
    [
        [torch.ones(3)],
        [torch.ones(3), torch.ones(4)],
        [torch.ones(3), -torch.ones(3)],
        [torch.ones(3), torch.tensor([1.0, 2.0, float("inf")])],
    ],
)
def test_ranges_that_are_refused(ranges):
    with pytest.raises(DataError):
        equalizing_scales(ranges)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_ranges_per_input_against_a_loop(groups):
    w = torch.randn(8, 8 // groups, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(8)
    for o in range(8):
        for i in range(8 // groups):
            at = o // (8 // groups) * (8 // groups) + i
            expected[at] = max(expected[at], w[o, i].abs().max())
    assert torch.equal(input_ranges(w, groups), expected.double())
    assert torch.equal(output_ranges(w), w.abs().flatten(1).amax(1).double())


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("padding", [0, 1])
def test_the_function_of_two_convolutions_stays(groups, padding):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 8, generator=g)
    one, b = torch.randn(6, 3, 3, 3, generator=g), torch.randn(6, generator=g)
    two = torch.randn(6, 6 // groups, 3, 3, generator=g)
    s = 10 ** torch.randn(6, generator=g).double()

    def run(one: torch.Tensor, b: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        y = functional.conv2d(x.double(), one.double(), b.double()).relu()
        return functional.conv2d(y, two.double(), padding=padding, groups=groups)

    scaled, bias = scale_outputs(one, b, s)
    assert bias is not None
    expected = run(one, b, two)
    found = run(scaled, bias, scale_inputs(two, s, groups))
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_a_linear_layer_reads_a_channel_several_times():
    w = torch.randn(5, 4 * 9, generator=torch.Generator().manual_seed(0))
    s = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert torch.allclose(scale_inputs(w, s, repeat=9), w * s.repeat_interleave(9))
    expected = w.abs().reshape(5, 4, 9).amax((0, 2)).double()
    assert torch.equal(input_ranges(w, repeat=9), expected)
    with pytest.raises(DataError, match="no 1 groups of inputs that come 5 to a channel"):
        input_ranges(w, repeat=5)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_absorbing_keeps_the_function_where_all_values_exceed(groups):
    g = torch.Generator().manual_seed(0)
    z = torch.rand(2, 6, 8, 8, generator=g) + torch.tensor([0.0, 1, 2, 3, 4, 5]).view(-1, 1, 1)
    c = z.amin((0, 2, 3)) - 1e-3
    c = c.clamp(min=0)
    w = torch.randn(6, 6 // groups, 3, 3, generator=g)
    b, after = torch.zeros(6), torch.randn(6, generator=g)
    lower, moved = absorb_bias(b, w, after, c, groups)
    expected = functional.conv2d(z.relu(), w, after, groups=groups)
    found = functional.conv2d((z + lower.view(-1, 1, 1)).relu(), w, moved, groups=groups)
    assert torch.allclose(found, expected, atol=1e-4)
    assert (lower <= b).all()
    assert torch.allclose(absorb_bias(b, w, None, c, groups)[1], moved - after, atol=1e-5)


def test_what_can_be_absorbed():
    found = absorbable_bias(torch.tensor([7.0, 1.0, -3.0]), torch.tensor([2.0, 1.0, 0.0]))
    assert found.tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(InputError):
        absorbable_bias(torch.ones(1), torch.ones(1), deviations=float("nan"))


def test_ratio_of_ranges():
    assert range_ratio(torch.tensor([0.0, 2.0, 2.0, 16.0])) == 8.0
    assert range_ratio(torch.zeros(3)) == 1.0

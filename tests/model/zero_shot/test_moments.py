"""Mean and variance, and their gradients, against PyTorch's own in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsmith.model.zero_shot.moments import moments


@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5), seed=st.integers(0, 99),
    offset=st.floats(-3, 3),
)  # fmt: skip
def test_as_var_mean_in_both_directions(shape: list[int], seed: int, offset: float) -> None:
    random = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=random) + offset).requires_grad_()
    exact = x.detach().double().requires_grad_()
    axes = [0, *range(2, len(shape))]
    variance, mean = torch.var_mean(exact, axes, correction=0)
    weights = torch.randn(2, shape[1], generator=random)
    found_mean, found_variance = moments(x)
    torch.testing.assert_close(found_mean.double(), mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_variance.double(), variance, atol=1e-4, rtol=1e-4)
    ((mean * weights[0]).sum() + (variance * weights[1]).sum()).backward()
    ((found_mean * weights[0]).sum() + (found_variance * weights[1]).sum()).backward()
    assert x.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, atol=1e-4, rtol=1e-4)


def test_gradient_of_either_alone_is_that_of_finite_differences() -> None:
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: moments(v)[0], x)
    assert torch.autograd.gradcheck(lambda v: moments(v)[1], x)
    assert torch.autograd.gradcheck(moments, x)


@pytest.mark.parametrize("value", [0.0, 1e4, -3.3])
def test_a_constant_channel_has_no_negative_variance(value: float) -> None:
    mean, variance = moments(torch.full((7, 2, 5, 5), value))
    torch.testing.assert_close(mean, torch.full((2,), value))
    assert bool((variance >= 0).all())
    assert float(variance.max()) <= 1e-6 * max(value**2, 1)


def test_other_layouts_in_memory() -> None:
    x = torch.randn(4, 3, 5, 6)
    expected = moments(x)
    for other in (x.to(memory_format=torch.channels_last), x.transpose(0, 1).contiguous().mT.mT):
        other = other if other.shape == x.shape else other.transpose(0, 1)
        for a, b in zip(moments(other), expected, strict=True):
            torch.testing.assert_close(a, b)

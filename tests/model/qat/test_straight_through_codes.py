"""Gradients of the operators on codes: those of the same function without its rounding."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitsmith.model.qat import straight_through as through
from bitsmith.model.qat.products import convolve, linear, matmul
from bitsmith.numbers import integer
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import uint8

GENERATOR = torch.Generator().manual_seed(0)


def leaf(*shape: int, low: float = -4.0, high: float = 4.0) -> Tensor:
    return (torch.rand(shape, generator=GENERATOR) * (high - low) + low).requires_grad_()


def whole(*shape: int, low: int = -8, high: int = 8) -> Tensor:
    return torch.randint(low, high, shape, generator=GENERATOR).float().requires_grad_()


def smooth(v: Tensor, low: float, high: float) -> Tensor:
    """The value of rounding and the gradient of clamping."""
    clamped = v.clamp(low, high)
    return clamped + (clamped.round() - clamped).detach()


def gradients(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(value.shape, generator=generator)
    return list(torch.autograd.grad((value * weights).sum(), inputs))


def same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scales", [(), (3,)])
def test_quantize_real(scales: tuple[int, ...]):
    x, s = leaf(3, 5), leaf(*scales, low=0.3, high=0.6)
    ours = through.quantize_real(x, s, -4.0, 3.0)
    theirs = smooth(x / (s if not scales else s.reshape(3, 1)), -4.0, 3.0)
    assert torch.equal(ours, theirs)
    same(gradients(ours, x, s), gradients(theirs, x, s))


def test_the_step_of_lsq():
    """∂(s·q)/∂s is q − v inside the range and q outside: arXiv 1902.08153, equation 3."""
    x = torch.tensor([0.3, 0.9, 5.0, -9.0])
    s = torch.tensor(0.5, requires_grad=True)
    for i, expected in enumerate((1 - 0.6, 1.0, 1.0, -2.0)):
        value = s * through.quantize_real(x, s, -2.0, 1.0)[i]
        assert float(torch.autograd.grad(value, s)[0]) == pytest.approx(expected)


def test_the_clip_of_pact():
    """With α = 3s, ∂y/∂α is 1 where x saturates, else 0: arXiv 1805.06085, equation 3."""
    x = torch.tensor([0.3, 0.7, 1.3, 5.0])
    for i, expected in enumerate((0.0, 0.0, 0.0, 1.0)):
        alpha = torch.tensor(1.5, requires_grad=True)
        s = alpha / 3
        value = s * through.quantize_real(x, s, 0.0, 3.0, clip=True)[i]
        assert float(torch.autograd.grad(value, alpha)[0]) == pytest.approx(expected, abs=1e-6)
        step = torch.tensor(0.25)
        sums = torch.round(x / step)
        s = alpha / 3
        codes = through.requantize(sums, step / s.detach(), 0.0, 3.0, clip=s)
        assert float(torch.autograd.grad(s * codes[i], alpha)[0]) == pytest.approx(
            expected, abs=1e-6
        )


def test_the_offset_of_lsq_plus():
    """∂y/∂β is 1 where x saturates, else 0: arXiv 2004.09576, equation 4; here β = −s·z."""
    s, low, high = torch.tensor(0.5), -3.0, 12.0
    x = torch.tensor([-9.0, -0.4, 0.2, 9.0])
    for i, expected in enumerate((1.0, 0.0, 0.0, 1.0)):
        beta = torch.tensor(-1.5, requires_grad=True)
        value = s * through.quantize_real(x, s, low, high, zero=-beta / s)[i]
        assert float(torch.autograd.grad(value, beta)[0]) == pytest.approx(expected)
        beta = torch.tensor(-1.5, requires_grad=True)
        other = s * through.requantize(x * 4, 0.25 / s, low, high, zero=-beta / s)[i]
        assert float(torch.autograd.grad(other, beta)[0]) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(), (1, 3, 1)])
def test_requantize(shape: tuple[int, ...]):
    sums, ratio = whole(2, 3, 4, low=-90, high=90), leaf(*shape, low=0.05, high=0.2)
    ours, theirs = through.requantize(sums, ratio, -7.0, 8.0), smooth(sums * ratio, -7.0, 8.0)
    assert torch.equal(ours, theirs)
    same(gradients(ours, sums, ratio), gradients(theirs, sums, ratio))


def test_add():
    a, b = whole(2, 3, 4), whole(2, 3, 1)
    ratios = (leaf(low=0.3, high=0.7), leaf(low=0.3, high=0.7))
    ours = through.add(a, b, ratios, (3, 4, 5), 4.0)
    theirs = smooth(a * ratios[0] + b * ratios[1], -5.0, 4.0)
    assert torch.equal(ours, theirs)
    same(gradients(ours, a, b, *ratios), gradients(theirs, a, b, *ratios))


@pytest.mark.parametrize("seed", range(4))
def test_add_rounds_as_the_integers_do(seed: int):
    """Every pair of codes, with scales that make many sums fall on or next to a tie."""
    draw = random.Random(seed)
    found = [
        Encoding(draw.choice((1.0, 3.0, 5.0)) * draw.choice((0.1, 0.05, 0.25)), draw.randrange(256),
                 uint8)
        for _ in range(3)
    ]  # fmt: skip
    one, other, made = (e if e.scale < 1 else Encoding(0.1, e.zero_point, uint8) for e in found)
    codes = torch.arange(256)
    a, b = codes.reshape(1, -1, 1).expand(1, 256, 256), codes.expand(1, 256, 256)
    a, b = a.to(torch.uint8).contiguous(), b.to(torch.uint8).contiguous()
    expected = integer.add(a, one, b, other, made)
    scales = [torch.tensor(e.scale) for e in (one, other, made)]
    ours = through.add(
        a.float() - one.zero_point,
        b.float() - other.zero_point,
        (scales[0] / scales[2], scales[1] / scales[2]),
        (one.zero_point, other.zero_point, made.zero_point),
        255.0 - made.zero_point,
    )
    assert torch.equal(ours + made.zero_point, expected.float())


def test_a_bound_lets_gradients_lead_back():
    x = torch.tensor([2.0, 2.0, -2.0, 0.5], requires_grad=True)
    y = through.bounded(x, -1.0, 1.0)
    assert y.tolist() == [1.0, 1.0, -1.0, 0.5]
    (found,) = torch.autograd.grad(y, x, torch.tensor([1.0, -1.0, 1.0, -1.0]))
    assert found.tolist() == [1.0, 0.0, 0.0, -1.0]


@pytest.mark.parametrize("groups", [1, 2])
def test_convolve(groups: int):
    x, w = whole(2, 4, 6, 5), whole(6, 4 // groups, 3, 3)
    bias = whole(6).double().detach().requires_grad_()
    attrs = {"stride": [2, 1], "padding": [1, 1], "dilation": [1, 1], "groups": groups}
    ours = convolve(x, w, bias, attrs, 8.0)
    theirs = F.conv2d(x, w, bias.float(), (2, 1), 1, 1, groups)
    assert torch.equal(ours, theirs)
    same(gradients(ours, x, w, bias), gradients(theirs, x, w, bias))


def test_sums_past_float32_are_rounded_once():
    x, w = whole(3, 5000, low=200, high=255), whole(2, 5000, low=100, high=127)
    exact = x.long() @ w.long().t()
    assert exact.max() > 2**24
    bias = torch.tensor([1.0, 3.0], dtype=torch.float64)
    ours = linear(x, w, bias, 255.0)
    assert torch.equal(ours, (exact + bias.long()).float())
    assert torch.equal(matmul(x, w.t(), 255.0 * 127), exact.float())
    steps = {"stride": [1], "padding": [0], "dilation": [1], "groups": 1}
    convolved = convolve(x.unsqueeze(-1), w.unsqueeze(-1), bias, steps, 255.0)
    assert torch.equal(convolved.squeeze(-1), ours)
    same(gradients(ours, x, w), gradients(x @ w.t(), x, w))
    (to_x,) = torch.autograd.grad(convolved.sum(), x)
    assert torch.allclose(to_x, w.sum(0).expand_as(x))


def test_a_bias_alone_may_pass_float32():
    x, w = whole(2, 4), whole(3, 4)
    bias = torch.tensor([2.0**26 + 1, 5.0, -(2.0**25) - 3], dtype=torch.float64)
    exact = x.long() @ w.long().t() + bias.long()
    assert torch.equal(linear(x, w, bias, 8.0), exact.float())

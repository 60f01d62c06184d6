"""Gradients of rounding against the formulas of the papers, and against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsmith.numbers.affine import quantize
from bitsmith.numbers.formats.codebook import nf4
from bitsmith.numbers.formats.integer import int1, int4, ternary, uint3, uint4
from bitsmith.numbers.formats.minifloat import fp4_e2m1fn
from bitsmith.numbers.scheme import PerChannel, Scheme
from bitsmith.numbers.straight_through import (
    gradient_factor,
    learned_grid,
    learned_step,
    learned_step_offset,
    pact,
    round_through,
    scaled_gradient,
    sign_through,
    straight_through,
)

numbers = st.floats(-20, 20, width=32)
steps = st.floats(0.0625, 4, width=32)
levels = st.sampled_from([(-1, 1), (-8, 7), (-7, 7), (0, 15), (-2, 1)])


def gradients(function, *inputs: float) -> tuple[float, list[float]]:
    leaves = [torch.tensor(v, requires_grad=True) for v in inputs]
    value = function(*leaves)
    value.backward()
    return float(value.detach()), [float(leaf.grad) for leaf in leaves]


@given(numbers, steps, levels)
def test_learned_step_is_the_formula_of_the_paper(x, s, ends):
    low, high = ends
    value, (dx, ds) = gradients(lambda a, b: learned_step(a, b, low, high), x, s)
    v = torch.tensor(x) / torch.tensor(s)
    clipped = float(v.clamp(low, high).round())
    assert value == float(torch.tensor(clipped) * torch.tensor(s))
    if low < float(v) < high:
        assert (dx, ds) == (1.0, clipped - float(v))
    else:
        assert (dx, ds) == (0.0, float(low if float(v) <= low else high))


@given(numbers, steps, levels)
def test_step_gradient_is_a_derivative_where_it_is_smooth(x, s, ends):
    """Saturated, the value is linear in the step; inside, with the rounding error held."""
    low, high = ends
    _, (dx, ds) = gradients(lambda a, b: learned_step(a, b, low, high), x, s)
    v, h = float(torch.tensor(x) / torch.tensor(s)), 1e-4
    error = round(v) - v

    def smooth(x: float, s: float) -> float:
        if low < v < high:
            return s * (x / s + error)
        return s * (low if v <= low else high)

    assert ds == pytest.approx((smooth(x, s + h) - smooth(x, s - h)) / (2 * h), abs=1e-3)
    assert dx == pytest.approx((smooth(x + h, s) - smooth(x - h, s)) / (2 * h), abs=1e-3)


@given(numbers, steps, st.floats(-8, 8, width=32), st.sampled_from([(0, 15), (0, 3), (-8, 7)]))
def test_offset_has_the_gradients_of_lsq_plus(x, s, beta, ends):
    low, high = ends
    value, (dx, ds, db) = gradients(
        lambda a, b, c: learned_step_offset(a, b, c, low, high, integer_zero=False), x, s, beta
    )
    v = (torch.tensor(x) - beta) / torch.tensor(s)
    code = float(v.round().clamp(low, high))
    assert value == float(torch.tensor(code) * s + torch.tensor(beta))
    inside = low < float(v) < high
    assert (dx, db) == ((1.0, 0.0) if inside else (0.0, 1.0))
    assert ds == (float(torch.tensor(code) - v) if inside else code)
    h = 1e-3
    if not inside and not low - 1 < float(v) < high + 1:  # smooth: code · s + β

        def at(s: float, beta: float) -> float:
            return float(learned_step_offset(
                torch.tensor(x, dtype=torch.float64), torch.tensor(s, dtype=torch.float64),
                torch.tensor(beta, dtype=torch.float64), low, high, integer_zero=False,
            ))  # fmt: skip

        assert ds == pytest.approx((at(s + h, beta) - at(s - h, beta)) / (2 * h), abs=1e-2)
        assert db == pytest.approx((at(s, beta + h) - at(s, beta - h)) / (2 * h), abs=1e-2)


@given(numbers, steps, st.floats(-8, 8, width=32))
def test_integer_zero_points_are_what_quantize_does(x, s, beta):
    """0 stays exact, and the values are those of ONNX's linear quantization."""
    scale, offset = torch.tensor(s), torch.tensor(beta)
    both = torch.tensor([x, 0.0])
    value = learned_step_offset(both, scale, offset, 0, 15)
    z = torch.round(-offset / scale).clamp(0, 15).to(torch.int32)
    expected = quantize(both, Scheme(uint4, False), scale, z).dequantize()
    assert torch.equal(value, expected)
    assert float(value[1]) == 0


@given(numbers, st.floats(0.5, 8, width=32), st.integers(1, 8))
def test_pact_is_the_formula_of_the_paper(x, alpha, bits):
    value, (dx, da) = gradients(lambda a, b: pact(a, b, bits), x, alpha)
    top = 2**bits - 1
    y = 0.5 * (abs(x) - abs(x - alpha) + alpha)  # equation 1
    assert value == pytest.approx(round(y * top / alpha) * alpha / top, rel=1e-5, abs=alpha / top)
    assert da == (1.0 if x >= alpha else 0.0)
    assert dx == (1.0 if 0 <= x < alpha else 0.0)
    if abs(x - alpha) > 0.1 and x > alpha:
        h = 1e-2
        at = [float(pact(torch.tensor(x), torch.tensor(alpha + d), bits)) for d in (h, -h)]
        assert (at[0] - at[1]) / (2 * h) == pytest.approx(da, abs=1e-2)


@pytest.mark.parametrize("number", [int1, ternary, nf4, fp4_e2m1fn], ids=str)
def test_grids_have_the_values_of_their_format_and_the_gradients_of_lsq(number):
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    scheme = Scheme(number, granularity=PerChannel(0))
    scale = torch.linspace(0.1, 1.1, 6)[:, None].requires_grad_()
    w = x.clone().requires_grad_()
    value = learned_grid(w, scale, number)
    expected = quantize(x, scheme, scale.detach(), torch.zeros(6, 1, dtype=torch.int32))
    assert torch.equal(value, expected.dequantize())
    g = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    value.backward(g)
    v = x / scale.detach()
    q = number.grid.double()[(v.double()[..., None] - number.grid.double()).abs().argmin(-1)]
    inside = (v > number.min) & (v < number.max)
    assert torch.equal(w.grad, torch.where(inside, g, 0.0))
    slope = torch.where(inside, q - v, q)
    assert torch.allclose(scale.grad.double(), (g * slope).sum(1, keepdim=True), atol=1e-4)


def test_a_step_of_many_values_gets_the_sum():
    x = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0))
    scale = torch.full((4, 1, 1), 0.3, requires_grad=True)
    learned_step(x, scale, -8, 7).sum().backward()
    alone = [torch.tensor(0.3, requires_grad=True) for _ in range(4)]
    for part, one in zip(x, alone, strict=True):
        learned_step(part, one, -8, 7).sum().backward()
    assert torch.allclose(scale.grad.reshape(-1), torch.stack([one.grad for one in alone]))


def test_the_step_of_least_error_is_where_its_gradient_vanishes():
    """LSQ descends the squared error of the weight: its own minimum is a fixed point."""
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor(1.0, requires_grad=True)
    for _ in range(300):
        (gradient,) = torch.autograd.grad(
            (learned_step(x, scale, -8, 7) - x).square().mean() / 2, scale
        )
        scale = (scale - 0.05 * gradient).detach().requires_grad_()
    tried = torch.linspace(0.1, 1, 181)
    errors = [float((learned_step(x, t, -8, 7) - x).square().mean()) for t in tried]
    best = float(tried[errors.index(min(errors))])
    assert float(scale) == pytest.approx(best, rel=0.05)


def test_identities_change_gradients_only():
    x = torch.tensor([-1.6, 0.5, 2.5], requires_grad=True)
    y = round_through(x)
    y.sum().backward()
    assert y.tolist() == [-2.0, 0.0, 2.0]
    assert x.grad.tolist() == [1.0, 1.0, 1.0]
    x.grad = None
    scaled_gradient(x, 0.25).sum().backward()
    assert x.grad.tolist() == [0.25] * 3
    value = (2 * x.detach()).requires_grad_()
    x.grad = None
    straight_through(value, x, torch.tensor([True, False, True])).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 1.0]
    assert value.grad.tolist() == [1.0] * 3
    assert gradient_factor(64, 7) == pytest.approx(1 / math.sqrt(64 * 7))
    assert gradient_factor(0, 1) == 1


def test_codes_have_no_sign_of_zero():
    small = torch.tensor([-0.01, 0.01])
    for value in (
        learned_step(small, torch.tensor(1.0), -8, 7),
        learned_step_offset(small, torch.tensor(1.0), torch.tensor(-3.0), 0, 15),
        pact(small, torch.tensor(4.0), 2),
    ):
        assert value.tolist() == [0.0, 0.0]
        assert not torch.signbit(value).any()


@pytest.mark.parametrize("bad", [math.nan])
def test_nan_stays_nan(bad):
    one, x = torch.tensor(1.0), torch.tensor([bad, 1.0])
    for value in (
        learned_step(x, one, -8, 7),
        learned_step(torch.ones(2), x, -8, 7),
        learned_grid(x, one, nf4),
        learned_grid(torch.ones(2), x, int1),
        learned_step_offset(x, one, one, 0, 15),
        sign_through(x),
        pact(x, one, 4),
    ):
        assert value.isnan().tolist() == [True, False]


def test_functional_transforms_and_compilation_see_the_same_gradients():
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))

    def loss(scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return learned_step(x, scale, -2, 1).square().sum()

    scale = torch.tensor(0.4, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(scale, x), scale)
    assert torch.equal(torch.func.grad(loss)(scale, x), expected)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(scale, x)
    assert torch.allclose(each.sum(), expected, rtol=1e-5)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (traced,) = torch.autograd.grad(compiled(scale, x), scale)
    assert torch.equal(traced, expected)


def test_a_range_that_does_not_hold_zero_is_widened_to_it():
    value = learned_step_offset(
        torch.tensor([5.0, 9.0]), torch.tensor(1.0), torch.tensor(4.0), 0, uint3.code_max
    )
    assert value.tolist() == [5.0, 7.0]
    assert int4.code_max == 7

"""The contract of every correction; the empirical and the analytic shift against sampled means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch.nn import functional

from bitsmith.algorithms import Analytic, Correction, Empirical, NormalInputs, OutputMeans
from bitsmith.algorithms.corrections.analytic import clipped_normal_mean
from bitsmith.errors import DataError
from bitsmith.numbers import PerChannel, Scheme, fake_quantize, int3

CORRECTIONS = {name: Correction.registry[name] for name in Correction.registry}
ALL = pytest.mark.parametrize("name", list(CORRECTIONS))


def evidence(name: str, channels: int, seed: int = 0) -> object:
    g = torch.Generator().manual_seed(seed)
    if name == "empirical":
        return OutputMeans(torch.randn(channels, generator=g), torch.randn(channels, generator=g))
    w = torch.randn(channels, 6, generator=g)
    rounded = fake_quantize(w, Scheme(int3, granularity=PerChannel(0)))
    mean, std = torch.randn(6, generator=g), torch.rand(6, generator=g)
    return NormalInputs(w, rounded, mean, std)


@ALL
@settings(max_examples=30)
@given(seed=st.integers(0, 999), step=st.sampled_from([None, 1e-3, 0.3, 50.0, 1e-12]))
def test_no_channel_gets_worse(name, seed, step):
    e = evidence(name, 5, seed)
    kind = CORRECTIONS[name]()
    shift = kind.shift(e)
    bias = torch.randn(5, generator=torch.Generator().manual_seed(seed))
    steps = None if step is None else torch.full((5,), step)
    if steps is not None:
        bias = (bias / steps).round() * steps
    done = kind(bias, e, step=steps)
    left = shift + done.bias.double() - bias.double()
    assert (left.abs() <= shift.abs() * (1 + 1e-12)).all()
    assert done.error <= done.error_before
    assert done.error == pytest.approx(float(left.square().mean()), rel=1e-5, abs=1e-13)
    assert done.changed == int((done.bias != bias).sum())
    if steps is not None:  # what it returns can be stored: whole steps inside int32
        codes = done.bias.double() / steps.double()
        moved = done.bias != bias
        assert (codes[moved].abs() <= 2**30).all()
        assert torch.allclose(codes[moved], codes[moved].round(), rtol=1e-6, atol=1e-6)
    if step is None or step == 1e-3:
        assert left.abs().max() <= 1e-6 * (1 + bias.abs().max()) + (step or 0) / 2


@ALL
def test_nothing_changes_where_no_step_is_better(name):
    bias = torch.zeros(5)
    done = CORRECTIONS[name]()(bias, evidence(name, 5), step=torch.tensor([1e6]))
    assert done.kept
    assert done.error == done.error_before
    assert torch.equal(done.bias, bias)


@ALL
def test_bad_input(name):
    kind = CORRECTIONS[name]()
    good, bias = evidence(name, 5), torch.zeros(5)
    for wrong in (torch.zeros(4), torch.zeros(5, 1), torch.full((5,), float("nan"))):
        with pytest.raises(DataError, match="bias"):
            kind(wrong, good)
    with pytest.raises(DataError, match=f"{name} reads"):
        kind(bias, torch.zeros(5))
    for step in (torch.zeros(5), torch.ones(3), torch.tensor([float("inf")])):
        with pytest.raises(DataError, match="steps"):
            kind(bias, good, step=step)


def test_empirical_takes_back_a_sampled_shift():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(4000, 12, generator=g)
    w, b = torch.randn(7, 12, generator=g), torch.randn(7, generator=g)
    q = fake_quantize(w, Scheme(int3, granularity=PerChannel(0)))
    y, found = x @ w.T + b, x @ q.T + b
    done = Empirical()(b, OutputMeans(y.mean(0), found.mean(0)))
    assert ((x @ q.T + done.bias - y).mean(0)).abs().max() < 1e-5
    assert ((found - y).mean(0)).abs().max() > 0.05


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_analytic_agrees_with_sampled_inputs(groups):
    """Of a convolution without padding, on normal pre-activations."""
    g = torch.Generator().manual_seed(0)
    mean, std = torch.randn(6, generator=g), torch.rand(6, generator=g) + 0.1
    w = torch.randn(6, 6 // groups, 3, 3, generator=g)
    q = fake_quantize(w, Scheme(int3, granularity=PerChannel(0)))
    z = torch.randn(40, 6, 40, 40, generator=g) * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    x = z.clamp(0, 6)
    sampled = functional.conv2d(x, q - w, groups=groups).mean((0, 2, 3)).double()
    shift = Analytic().shift(NormalInputs(w, q, mean, std, 0.0, 6.0))
    assert torch.allclose(shift, sampled, atol=0.02 * float(shift.abs().max()))


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, None), (0.0, 6.0), (None, None), (-1.0, 1.0), (None, 2.0)]
)
@pytest.mark.parametrize(
    ("mu", "sigma"), [(0.0, 1.0), (3.0, 0.5), (-4.0, 2.0), (5.5, 3.0), (2.0, 0.0)]
)
def test_clipped_normal_mean_is_the_integral(low, high, mu, sigma):
    found = clipped_normal_mean(torch.tensor([mu]), torch.tensor([sigma]), low, high)

    def clamp(v: float) -> float:
        return min(max(v, -1e9 if low is None else low), 1e9 if high is None else high)

    if sigma == 0:
        expected = clamp(mu)
    else:
        ends = [e for e in (low, high) if e is not None and abs(e - mu) < 12 * sigma]
        expected, _ = integrate.quad(
            lambda v: clamp(v) * stats.norm.pdf(v, mu, sigma),
            mu - 12 * sigma,
            mu + 12 * sigma,
            points=ends or None,
        )
    assert found.item() == pytest.approx(expected, abs=1e-9)


def test_clipped_normal_mean_refuses():
    one = torch.ones(2)
    for mean, std, low, high in [
        (one, torch.ones(3), 0.0, None),
        (one, -one, 0.0, None),
        (one * float("nan"), one, 0.0, None),
        (one, one, 1.0, 0.0),
    ]:
        with pytest.raises(DataError):
            clipped_normal_mean(mean, std, low, high)
    with pytest.raises(DataError, match="does not meet"):
        Analytic().shift(NormalInputs(torch.ones(4, 3), torch.ones(4, 3), torch.ones(4), one))

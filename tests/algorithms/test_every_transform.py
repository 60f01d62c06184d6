"""The contract of every transform, SmoothQuant's formula, and AWQ against every exponent."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsmith.algorithms import AWQ, Searched, SmoothQuant, Transform
from bitsmith.algorithms.transforms.smoothquant import smoothquant_scales
from bitsmith.errors import DataError, InputError, SchemeError
from bitsmith.numbers import (
    Extrema,
    Gram,
    Moments,
    PerChannel,
    PerGroup,
    Scheme,
    Statistic,
    codebook2,
    fake_quantize,
    int3,
    int8,
)

TRANSFORMS = {name: Transform.registry[name] for name in Transform.registry}
ALL = pytest.mark.parametrize("name", list(TRANSFORMS))
W3 = Scheme(int3, granularity=PerGroup(8))


def seen(kind: type[Transform], x: torch.Tensor) -> Statistic:
    statistic = Extrema(axis=-1) if kind.needs is Extrema else kind.needs()
    statistic.update(x)
    return statistic


def data(seed: int, kind: str = "outliers") -> tuple[list[torch.Tensor], torch.Tensor]:
    """Two weights that share 16 inputs, and those inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 16, generator=generator)
    if kind == "outliers":
        x[:, [3, 7]] *= 40
    if kind == "dead":
        x[:, [0, 9]] = 0
    if kind == "tiny":
        x *= 1e-30
    return [torch.randn(n, 16, generator=generator) for n in (5, 8)], x


@ALL
@settings(max_examples=25)
@given(seed=st.integers(0, 999), kind=st.sampled_from(["outliers", "dead", "tiny", "plain"]))
def test_the_function_stays(name, seed, kind):
    weights, x = data(seed, kind)
    done = TRANSFORMS[name]()(weights, W3, seen(TRANSFORMS[name], x))
    assert done.scales.dtype == torch.float32
    assert (done.scales > 0).all()
    for old, new in zip(weights, done.weights, strict=True):
        before, after = x.double() @ old.double().T, (x / done.scales).double() @ new.double().T
        size = x.double().abs() @ old.double().abs().T
        assert ((after - before).abs() <= 4e-7 * size).all()
    if kind == "dead":
        assert done.scales[[0, 9]].tolist() == [1.0, 1.0]
    if done.objective is not None:
        assert done.objective <= done.identity_objective
    again = TRANSFORMS[name]()(weights, W3, seen(TRANSFORMS[name], x))
    assert torch.equal(again.scales, done.scales)


@ALL
def test_refusals(name):
    transform = TRANSFORMS[name]()
    weights, x = data(0)
    statistic = seen(TRANSFORMS[name], x)
    with pytest.raises(DataError, match=r"share their in, not \[\]"):
        transform([], W3, statistic)
    with pytest.raises(DataError, match=r"share their in, not \[\(5, 16\), \(8, 8\)\]"):
        transform([weights[0], weights[1][:, :8]], W3, statistic)
    with pytest.raises(DataError, match="1 NaN"):
        transform(
            [torch.full((1, 16), 1.0).index_fill(1, torch.tensor([2]), torch.nan)], W3, statistic
        )
    with pytest.raises(DataError, match="not Moments"):
        transform(weights, W3, Moments())
    with pytest.raises(DataError, match="seen no input"):
        transform(weights, W3, TRANSFORMS[name].needs())
    with pytest.raises(DataError, match=r"16 inputs|of 12"):
        transform(weights, W3, seen(TRANSFORMS[name], x[:, :12]))


def test_smoothquant_is_its_formula():
    weights, x = data(3)
    largest = torch.cat(weights).abs().amax(0)
    for alpha in (0.0, 0.3, 0.5, 1.0):
        done = SmoothQuant(alpha)(weights, W3, seen(SmoothQuant, x))
        expected = x.abs().amax(0) ** alpha / largest ** (1 - alpha)
        torch.testing.assert_close(done.scales, expected)
        assert done.objective is None
    # At one half both sides have the same range: max|X_j / s_j| = max|W_j · s_j|.
    done = SmoothQuant()(weights, W3, seen(SmoothQuant, x))
    torch.testing.assert_close(
        (x / done.scales).abs().amax(0), torch.cat(done.weights).abs().amax(0)
    )
    unused = [w.index_fill(1, torch.tensor([4]), 0.0) for w in weights]
    assert smoothquant_scales(unused, x.abs().amax(0))[4] == 1
    with pytest.raises(InputError, match="alpha is between 0 and 1"):
        SmoothQuant(1.5)


def test_smoothquant_makes_int8_activations_better():
    """What it is for: per-tensor 8-bit activations with outliers, per-channel 8-bit weights."""
    weights, x = data(1)
    done = SmoothQuant()(weights, W3, seen(SmoothQuant, x))
    channel = Scheme(int8, granularity=PerChannel(0))

    def error(x: torch.Tensor, ws: list[torch.Tensor]) -> float:
        y = [fake_quantize(x, Scheme(int8)) @ fake_quantize(w, channel).T for w in ws]
        exact = [data(1)[1] @ w.T for w in weights]
        return float(sum((a - b).square().mean() for a, b in zip(y, exact, strict=True)))

    assert error(x / done.scales, list(done.weights)) < 0.3 * error(x, weights)


def test_smoothquant_refuses_scales_that_float32_cannot_hold():
    weights = [torch.full((2, 4), 1e38)]
    largest = torch.full((3, 4), 1e30)
    with pytest.raises(DataError, match="change the function"):
        SmoothQuant(1.0)(weights, Scheme(int8), seen(SmoothQuant, largest))


def test_awq_on_uniform_inputs_leaves_them():
    weights, _ = data(0)
    x = torch.sign(torch.randn(40, 16, generator=torch.Generator().manual_seed(1)))
    done = AWQ()(weights, W3, seen(AWQ, x))
    assert done.kept_identity
    assert done.scales.tolist() == [1.0] * 16
    assert done.objective == done.identity_objective
    assert all(torch.equal(a, b) for a, b in zip(done.weights, weights, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_awq_is_the_best_exponent(seed):
    """Every exponent again, on the raw inputs instead of their Gram matrix."""
    weights, x = data(seed)
    done = AWQ()(weights, W3, seen(AWQ, x))
    m = x.double().square().mean(0).sqrt()
    errors = []
    for k in range(20):
        s = m ** (k / 20)
        s = (s / (s.max() * s.min()).sqrt()).float()
        errors.append(
            sum(
                float((x.double() @ (w - fake_quantize(w * s, W3) / s).double().T).square().mean())
                for w in weights
            )
        )
    assert done.objective == pytest.approx(min(errors), rel=1e-5)
    assert done.identity_objective == pytest.approx(errors[0], rel=1e-5)
    assert done.objective < 0.95 * done.identity_objective


def test_awq_with_searched_ranges_and_what_follows():
    """The Gram statistic of the scaled inputs is what the rounding afterwards reads."""
    weights, x = data(2)
    gram = seen(AWQ, x)
    plain, clipped = AWQ()(weights, W3, gram), AWQ(clip_steps=24)(weights, W3, gram)
    assert clipped.objective < plain.objective
    scaled = clipped.gram(gram)
    torch.testing.assert_close(
        scaled.sums, seen(AWQ, x / clipped.scales).sums, rtol=1e-5, atol=1e-2
    )
    after = [Searched(24)(w, W3, statistic=scaled) for w in clipped.weights]
    before = [Searched(24)(w, W3, statistic=gram) for w in weights]
    assert sum(r.objective for r in after) == pytest.approx(clipped.objective, rel=1e-4)
    assert sum(r.objective for r in before) == pytest.approx(clipped.identity_objective, rel=1e-4)
    diagonal = Gram(diagonal=True)
    diagonal.update(x)
    torch.testing.assert_close(clipped.gram(diagonal).sums, scaled.sums.diagonal())
    with pytest.raises(DataError, match="16 input scales do not apply"):
        clipped.gram(seen(AWQ, x[:, :5]))


def test_awq_for_convolutions():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, 9, 9, generator=generator) * torch.tensor([1.0, 30, 1, 3])[:, None, None]
    w = torch.randn(6, 4, 3, 3, generator=generator)
    gram = Gram()
    gram.update(torch.nn.functional.unfold(x, 3).transpose(1, 2))
    done = AWQ()([w], Scheme(int3, granularity=PerChannel(0)), gram)
    exact = torch.nn.functional.conv2d(x, w)
    same = torch.nn.functional.conv2d(x / done.scales[:, None, None], done.weights[0])
    torch.testing.assert_close(same, exact, rtol=1e-4, atol=1e-3)
    assert done.scales.shape == (4,)
    assert done.objective < done.identity_objective


def test_awq_options():
    with pytest.raises(InputError, match="grid is at least 1"):
        AWQ(grid=0)
    weights, x = data(0)
    with pytest.raises(SchemeError, match="learned"):
        AWQ()(weights, Scheme(codebook2), seen(AWQ, x))

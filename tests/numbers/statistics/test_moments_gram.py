"""Moments against scipy in exact-enough arithmetic, Gram matrices against exact integers."""

from __future__ import annotations

from fractions import Fraction

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsmith.errors import DataError
from bitsmith.numbers.statistics import Gram, Moments

G = torch.Generator().manual_seed(0)
NORMAL = torch.randn(40_000, 4, generator=G)


def of(kind, *batches: torch.Tensor):
    for x in batches:
        kind.update(x)
    return kind


@pytest.mark.parametrize(
    "x",
    [NORMAL, NORMAL.exp(), NORMAL.exp() + 1000, NORMAL.relu(), NORMAL**3 * 1e30, NORMAL * 1e-30],
    ids=["normal", "log-normal", "far", "relu", "huge", "tiny"],
)
def test_moments_are_those_of_scipy(x: torch.Tensor) -> None:
    y = x.double().numpy().ravel()
    m = of(Moments(), *x.split(7001))
    assert float(m.mean) == pytest.approx(y.mean(), rel=1e-12)
    assert float(m.variance) == pytest.approx(y.var(), rel=1e-12)
    # A skewness near 0 is a difference of large sums: what counts is its error, not its share.
    assert float(m.skewness) == pytest.approx(scipy.stats.skew(y), rel=1e-12, abs=1e-13)
    assert float(m.kurtosis) == pytest.approx(scipy.stats.kurtosis(y, fisher=False), rel=1e-12)
    assert (float(m.low), float(m.high), m.n) == (float(x.min()), float(x.max()), x.numel())


@given(
    st.lists(st.integers(-1000, 1000), min_size=1, max_size=30),
    st.lists(st.integers(-1000, 1000), min_size=1, max_size=30),
    st.sampled_from([0, 4_000_000]),
)
def test_joining_two_parts_is_exact_arithmetic(one, other, shift) -> None:
    one, other = ([float(v + shift) for v in part] for part in (one, other))
    m = of(Moments(), torch.tensor(one)).merge(of(Moments(), torch.tensor(other)))
    values = [Fraction(v) for v in (*one, *other)]
    mean = sum(values) / len(values)
    spread = float(sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    for p, found in zip((2, 3, 4), m.sums.tolist(), strict=True):
        exact = float(sum((v - mean) ** p for v in values))
        assert found == pytest.approx(exact, rel=1e-12, abs=1e-13 * len(values) * spread**p)
    assert float(m.mean) == pytest.approx(float(mean), rel=1e-14, abs=1e-13 * spread)


def test_moments_of_channels_are_those_of_each_channel() -> None:
    x = NORMAL.view(50, 16, 200)
    m = of(Moments(axis=1), *x.split(9))
    assert m.mean.shape == m.kurtosis.shape == m.low.shape == (1, 16, 1)
    for c in range(16):
        one = of(Moments(), x[:, c])
        for name in ("mean", "variance", "skewness", "kurtosis", "low", "high"):
            found, expected = getattr(m, name)[0, c, 0], getattr(one, name)
            assert float(found) == pytest.approx(float(expected), rel=1e-11)
    assert (m.n, m.count) == (10_000, 160_000)


def test_kurtosis_tells_distributions_apart_and_constants_have_none() -> None:
    uniform = of(Moments(), torch.rand(200_000, generator=G))
    assert float(uniform.kurtosis) == pytest.approx(1.8, abs=0.01)
    assert float(of(Moments(), NORMAL).kurtosis) == pytest.approx(3.0, abs=0.05)
    constant = of(Moments(), torch.full((7,), 3.0))
    assert (float(constant.mean), float(constant.variance)) == (3.0, 0.0)
    assert constant.skewness.isnan()
    assert constant.kurtosis.isnan()
    assert Moments().mean.isnan()


def test_gram_is_exact_where_float64_is() -> None:
    x = torch.randint(-2000, 2000, (6, 500, 16), generator=G)
    rows = x.reshape(-1, 16)
    g, d = of(Gram(), *x.float()), of(Gram(diagonal=True), *x.float())
    assert torch.equal(g.sums, (rows.T @ rows).double())
    assert torch.equal(d.sums, g.sums.diagonal())
    assert g.rows == d.rows == 3000
    assert torch.equal(g.second_moment, rows.double().square().mean(0))
    assert torch.equal(d.second_moment, g.second_moment)
    assert torch.equal(of(Gram(), x[0, 0].float()).sums, torch.outer(x[0, 0], x[0, 0]).double())


def test_gram_error_is_small_against_the_features_norms() -> None:
    x = torch.randn(5000, 64, generator=G) * torch.logspace(-20, 15, 64)
    whole = of(Gram(), x).sums
    norms = whole.diagonal().sqrt()
    parts = of(Gram(), *x.flip(0).split(333)).sums
    error = (parts - whole).abs() / torch.outer(norms, norms)
    # two sums of n terms, each within n · 2⁻⁵³ of ‖x‖ ‖y‖ in any order (Higham, Accuracy and
    # Stability, section 4.2); independent roundings make about √n of n, here twice that is allowed
    assert float(error.max()) < 2 * 2**-52 * 5000**0.5


def test_a_scalar_has_no_features() -> None:
    with pytest.raises(DataError, match="a scalar has none"):
        Gram().update(torch.tensor(1.0))

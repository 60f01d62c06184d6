"""Spearman against scipy, the interval against brute force, and its coverage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from bitsmith.errors import DataError
from bitsmith.insight.bootstrap import loss_difference, spearman, spearman_difference

values = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=30)


@given(values)
def test_spearman_is_scipys_ties_included(pairs: list[tuple[int, int]]) -> None:
    x, y = torch.tensor(pairs, dtype=torch.float64).T
    found = spearman(x, y)
    if len(set(x.tolist())) == 1 or len(set(y.tolist())) == 1:
        assert found == 0
    else:
        assert found == pytest.approx(100 * spearmanr(x, y).statistic, abs=1e-9)


def sample(seed: int, n: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two judges of one truth, the first with less noise."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 26, (n,), generator=generator) / 5
    shared = torch.randn(n, generator=generator)
    a = truth + shared + 0.2 * torch.randn(n, generator=generator)
    b = truth + shared + 0.6 * torch.randn(n, generator=generator)
    return a, b, truth


def test_the_interval_is_that_of_drawing_samples_one_by_one() -> None:
    a, b, truth = sample(0)
    delta, low, high = spearman_difference(a, b, truth, resamples=1000)
    assert delta == pytest.approx(spearman(a, truth) - spearman(b, truth))
    generator, found = np.random.default_rng(1), []
    for _ in range(1000):
        i = generator.integers(0, 200, 200)
        found.append(
            100 * (spearmanr(a[i], truth[i]).statistic - spearmanr(b[i], truth[i]).statistic)
        )
    expected = np.quantile(found, (0.025, 0.975))
    np.testing.assert_allclose((low, high), expected, atol=0.12 * (high - low))


def test_the_weights_of_a_draw_are_ranks_of_what_was_drawn() -> None:
    """The same seed drawn by hand gives the same interval to rounding."""
    a, b, truth = sample(3, n=30)
    _, low, high = spearman_difference(a, b, truth, resamples=100, seed=9)
    generator, found = np.random.default_rng(9), []
    for draws in (64, 36):
        for i in generator.integers(0, 30, (draws, 30)):
            found.append(spearman(a[i], truth[i]) - spearman(b[i], truth[i]))
    np.testing.assert_allclose((low, high), np.quantile(found, (0.025, 0.975)), atol=1e-9)


def test_it_holds_the_true_difference_about_as_often_as_it_says() -> None:
    big = sample(0, n=200_000)
    true = spearman(big[0], big[2]) - spearman(big[1], big[2])
    held = 0
    for seed in range(1, 101):
        _, low, high = spearman_difference(*sample(seed, n=150), resamples=300)
        held += low <= true <= high
    assert held >= 88  # of 95 expected; 95 of 100 fall below 88 in fewer than 1 of 300 cases


def test_a_model_against_itself() -> None:
    a, _, truth = sample(0)
    assert spearman_difference(a, a.clone(), truth) == (0.0, 0.0, 0.0)
    assert loss_difference(truth, truth.clone(), truth + 1) == (0.0, 0.0, 0.0)


def test_loss_is_per_token_and_drawn_by_text() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(10, 500, (300,), generator=generator)
    b = counts * 1.5
    each = 0.1 + 0.3 * torch.randn(300, generator=generator)
    a = b + counts * each
    delta, low, high = loss_difference(a, b, counts)
    assert delta == pytest.approx(float((counts * each).sum() / counts.sum()), abs=1e-5)
    # Linearised variance of a ratio of sums over independent texts.
    error = float((counts * (each - delta)).square().sum().sqrt() / counts.sum())
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert loss_difference(a, b, counts, seed=1)[1] != low


@pytest.mark.parametrize(
    ("a", "truth", "message"),
    [
        ([1.0], [1.0], r"2 or more samples \[N\]"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], r"a \(2,\), b \(2,\), scores \(3,\)"),
        ([[1.0, 2.0]], [[1.0, 2.0]], r"2 or more samples"),
        ([1.0, float("nan")], [1.0, 2.0], "1 of a, 1 of b"),
        ([1.0, 2.0], [float("inf"), 2.0], "1 of scores"),
    ],
)
def test_what_has_no_rank(a: list[float], truth: list[float], message: str) -> None:
    one = torch.tensor(a)
    with pytest.raises(DataError, match=message):
        spearman_difference(one, one, torch.tensor(truth))


def test_bad_counts_and_too_few_draws() -> None:
    one = torch.ones(3)
    with pytest.raises(DataError, match="the least is 0"):
        loss_difference(one, one, torch.tensor([1, 0, 2]))
    with pytest.raises(DataError, match="at least 100 resamples, not 99"):
        loss_difference(one, one, one, resamples=99)

"""The interval of a mean, against scipy."""

import numpy as np
import pytest
from scipy import stats

from bitsmith.errors import DataError
from bitsmith.insight.interval import mean_interval


@pytest.mark.parametrize("n", [5, 6, 12, 40, 500])
def test_equals_students_interval(n):
    values = np.random.default_rng(n).normal(3, 2, n)
    mean, low, high = mean_interval(values.tolist())
    expected = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert mean == pytest.approx(values.mean())
    # The series for Student's quantile is 0.03 % short at 5 values, and less beyond.
    half = (expected[1] - expected[0]) / 2
    assert (low, high) == pytest.approx(expected, abs=4e-4 * half)


def test_covers_the_true_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(1, 1, (2000, 6))
    inside = sum(low <= 1 <= high for _, low, high in map(mean_interval, draws.tolist()))
    assert stats.binomtest(inside, 2000, 0.95).pvalue > 0.01


def test_repeats_that_agree_have_no_width():
    assert mean_interval([2.0] * 5) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("values", [[1.0] * 4, [], [1.0, 2.0, 3.0, 4.0, float("nan")]])
def test_refuses_too_few_and_not_finite(values):
    with pytest.raises(DataError, match="at least 5 finite"):
        mean_interval(values)

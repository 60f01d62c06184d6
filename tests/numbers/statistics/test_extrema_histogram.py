"""Extrema and histograms: any values at all merge exactly; counts against brute force."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsmith.errors import DataError
from bitsmith.numbers.statistics import Extrema, Histogram, Samples, Statistic

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
EXACT = pytest.mark.parametrize(
    "make", [Extrema, lambda: Extrema(1), Histogram, lambda: Histogram(16), lambda: Samples(5)]
)


def same(a: Statistic, b: Statistic) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(
        torch.equal(one[k], two[k]) if isinstance(one[k], torch.Tensor) else one[k] == two[k]
        for k in one
    )


def of(make, *batches: torch.Tensor) -> Statistic:
    statistic = make()
    for x in batches:
        statistic.update(x)
    return statistic


@EXACT
@settings(deadline=None)
@given(st.lists(st.lists(FLOATS, min_size=2, max_size=6), min_size=1, max_size=6), st.randoms())
def test_any_split_in_any_order_is_one_pass(make, batches, random) -> None:
    parts = [torch.tensor(b[: len(b) // 2 * 2], dtype=torch.float32).view(-1, 2) for b in batches]
    whole = of(make, torch.cat(parts))
    random.shuffle(parts)
    assert same(of(make, *parts), whole)
    cut = random.randint(0, len(parts))
    left, right = of(make, *parts[:cut]), of(make, *parts[cut:])
    before = right.state_dict()
    assert left.merge(right) is left
    assert same(left, whole)
    assert same(type(right).from_state(before), right)  # the other is untouched
    assert same(right.merge(of(make, *parts[:cut])), whole)


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=50), st.integers(4, 40))
def test_histogram_counts_are_those_of_exact_arithmetic(values, max_bins) -> None:
    h = Histogram(max_bins)
    h.update(torch.tensor(values, dtype=torch.float32))
    assert (h.low, h.high, h.count) == (min(values), max(values), len(values))
    assert len(h.counts) <= max_bins
    exact = Counter(math.trunc(math.ldexp(v, -h.exponent)) for v in values)
    assert {h.first + i: int(c) for i, c in enumerate(h.counts) if c} == dict(exact)
    if h.exponent > Histogram.MIN_EXPONENT:  # half the width would be too many bins
        first = math.trunc(math.ldexp(min(h.low, 0), 1 - h.exponent))
        last = math.trunc(math.ldexp(max(h.high, 0), 1 - h.exponent))
        assert last - first >= max_bins


def test_a_large_stream_against_numpy() -> None:
    x = torch.randn(300_000, generator=torch.Generator().manual_seed(0)) * 3 + 1
    h = Histogram()
    for part in x.split(70_001):
        h.update(part.view(1, -1))
    index = np.trunc(x.double().numpy() / h.width).astype(np.int64) - h.first
    assert np.array_equal(h.counts.numpy(), np.bincount(index))
    assert 2048 < len(h.counts) <= 4096
    nearest = torch.from_numpy(index)
    assert float((h.centres[nearest] - x).abs().max()) <= h.width
    inner = x.abs() >= h.width
    assert float((h.centres[nearest] - x)[inner].abs().max()) <= h.width / 2


def test_extrema_along_an_axis_have_the_scales_shape() -> None:
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(3))
    e = of(lambda: Extrema(-2), x, x + 1)
    assert e.low.shape == (1, 5, 1)
    assert torch.equal(e.low.view(-1), x.amin((0, 2)))
    assert torch.equal(e.high.view(-1), (x + 1).amax((0, 2)))
    assert e.count == 240
    with pytest.raises(DataError, match="same channels"):
        e.update(torch.ones(4, 7, 6))


def test_the_state_is_bounded() -> None:
    h = Histogram(64)
    for k in range(-40, 38):
        h.update(torch.tensor([10.0**k, -(10.0**k)]))
        assert len(h.counts) <= 64
    assert h.count == int(h.counts.sum()) == 156


def test_a_histogram_has_a_sensible_number_of_bins() -> None:
    with pytest.raises(DataError, match="between 4 and"):
        Histogram(3)

"""Statistics: merging parts is exactly one pass; counts against brute force."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsmith.errors import DataError
from bitsmith.numbers.statistics import Extrema, Histogram, Statistic

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
MAKERS = pytest.mark.parametrize(
    "make", [Extrema, lambda: Extrema(axis=1), Histogram, lambda: Histogram(max_bins=16)]
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


@MAKERS
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


@MAKERS
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_batch_that_is_not_finite_changes_nothing(make, bad: float) -> None:
    a, b = of(make, torch.ones(2, 3)), of(make, torch.ones(2, 3))
    with pytest.raises(DataError, match=r"of 6 values"):
        a.update(torch.tensor([[1.0, 9, 9], [9, 9, bad]]))
    assert same(a, b)


@MAKERS
def test_empty_batches_other_dtypes_and_layouts(make) -> None:
    a = make()
    assert a.empty
    a.update(torch.empty(0, 3))
    assert a.empty
    assert same(a.merge(make()), make())
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(2)).half()
    whole = of(make, x.float())
    assert not whole.empty
    assert same(of(make, x), whole)
    assert same(of(make, x.double()), whole)
    assert same(of(make, x.float().T.contiguous().T), whole)
    assert same(type(whole).from_state(whole.state_dict()), whole)
    with pytest.raises(DataError, match=r"floating-point tensor, not torch.int64"):
        a.update(torch.ones(2, 3).long())


def test_a_float64_beyond_float32_is_not_finite() -> None:
    with pytest.raises(DataError, match="1 infinite of 1"):
        Histogram().update(torch.tensor([1e300], dtype=torch.float64))


def test_extrema_along_an_axis_have_the_scales_shape() -> None:
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(3))
    e = of(lambda: Extrema(-2), x, x + 1)
    assert e.low.shape == (1, 5, 1)
    assert torch.equal(e.low.view(-1), x.amin((0, 2)))
    assert torch.equal(e.high.view(-1), (x + 1).amax((0, 2)))
    assert e.count == 240
    with pytest.raises(DataError, match="same channels"):
        e.update(torch.ones(4, 7, 6))


def test_statistics_that_were_set_up_differently_do_not_merge() -> None:
    with pytest.raises(DataError, match="axis 0 and axis None"):
        Extrema(0).merge(Extrema())
    with pytest.raises(DataError, match="16 and 4096 bins"):
        Histogram(16).merge(Histogram())
    with pytest.raises(DataError, match="between 4 and"):
        Histogram(3)


def test_the_state_is_bounded() -> None:
    h = Histogram(64)
    for k in range(-40, 38):
        h.update(torch.tensor([10.0**k, -(10.0**k)]))
        assert len(h.counts) <= 64
    assert h.count == int(h.counts.sum()) == 156

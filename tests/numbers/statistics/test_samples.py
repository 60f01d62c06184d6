"""Samples: exact counts, no hash collisions, and estimates within their standard error."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from bitsmith.errors import DataError
from bitsmith.numbers.statistics import Samples
from bitsmith.numbers.statistics.samples import _hash

MASK = (1 << 64) - 1
G = torch.Generator().manual_seed(0)


def of(statistic: Samples, *batches: torch.Tensor) -> Samples:
    for x in batches:
        statistic.update(x)
    return statistic


def splitmix64(bits: int) -> int:
    """The published finalizer, in Python's integers."""
    z = (bits + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_hash_is_splitmix64() -> None:
    x = torch.cat([torch.randn(50, generator=G), torch.tensor([0.0, -1e-45, 3.4e38])])
    bits = x.view(torch.int32).tolist()
    assert [h & MASK for h in _hash(x).tolist()] == [splitmix64(b & MASK) for b in bits]


@pytest.mark.parametrize("rows", [False, True])
def test_what_is_kept_has_the_smallest_hashes_and_exact_counts(rows: bool) -> None:
    x = torch.randint(-40, 40, (30_000, 2), generator=G).float() / 8
    s = of(Samples(25, rows=rows), *x.split(777))
    items = [tuple(r) for r in x.tolist()] if rows else x.flatten().tolist()
    exact = Counter(items)
    ordered = sorted(
        exact,
        key=lambda v: int(
            _hash(torch.tensor(v if rows else [v]).reshape((1, 2) if rows else (1,)))
        ),
    )
    kept = [tuple(v) for v in s.values.tolist()] if rows else s.values.tolist()
    assert kept == ordered[:25]
    assert s.counts.tolist() == [exact[v] for v in kept]
    assert s.count == 60_000


def test_zeros_are_one_value_and_rows_keep_their_order() -> None:
    s = of(Samples(5), torch.tensor([0.0, -0.0, 1e-45, -1e-45]))
    assert dict(zip(s.values.tolist(), s.counts.tolist(), strict=True))[0.0] == 2
    assert s.distinct == 3
    pairs = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [-0.0, 1.0], [0.0, 1.0]])
    r = of(Samples(9, rows=True), pairs)
    assert (r.distinct, sorted(r.counts.tolist())) == (3, [1, 2, 2])


def test_estimates_are_exact_until_something_is_left_out_then_within_error() -> None:
    x = torch.randn(50_000, generator=G)
    few = of(Samples(101), x[:100].repeat(3))
    assert few.distinct == 100
    assert float(few.weights @ few.values.double()) == pytest.approx(
        float(x[:100].double().sum()) * 3
    )
    values = torch.unique(x)
    repeats = torch.randint(1, 9, values.shape, generator=G)
    many = of(Samples(4096), values.repeat_interleave(repeats))
    assert many.distinct == pytest.approx(len(values), rel=4 / 4096**0.5)
    square = float(many.weights @ many.values.double().square())
    exact = float(repeats.double() @ values.double().square())
    assert square == pytest.approx(exact, rel=4 * 3**0.5 / 4096**0.5)
    assert float(many.weights.sum()) == pytest.approx(float(repeats.sum()), rel=0.1)


def test_the_estimates_are_unbiased() -> None:
    """Over many sets: the mean error is far below the error of one (1/√(k − 2))."""
    estimates = []
    for seed in range(200):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(seed))
        s = of(Samples(30), x)
        estimates.append((s.distinct / len(torch.unique(x)), float(s.weights.sum()) / 1000))
    mean = torch.tensor(estimates).mean(0)
    assert float((mean - 1).abs().max()) < 3 / (28**0.5 * 200**0.5)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(DataError, match="at least 2"):
        Samples(1)
    with pytest.raises(DataError, match="a scalar has none"):
        Samples(rows=True).update(torch.tensor(1.0))
    rows = of(Samples(rows=True), torch.ones(2, 3))
    with pytest.raises(DataError, match="rows of 3 cannot take in rows of 4"):
        rows.update(torch.ones(2, 4))
    with pytest.raises(DataError, match="rows of 3 cannot take in rows of 4"):
        rows.merge(of(Samples(rows=True), torch.ones(2, 4)))
    assert rows.count == 6

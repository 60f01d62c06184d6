"""Exact thresholds, and finding the nearest value by cells."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsmith.numbers.lookup import Nearest, look_up, thresholds

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
tables = st.lists(finite, min_size=2, max_size=40, unique=True).map(sorted)


def brute_force(values: list[float], x: float) -> int:
    """Return the index of the nearest value in exact arithmetic, ties to the even index."""
    distance = [abs(Fraction(v) - Fraction(x)) for v in values]
    best = min(distance)
    return min((i % 2, i) for i, d in enumerate(distance) if d == best)[1]


@settings(max_examples=80, deadline=None)
@given(tables, st.lists(finite, min_size=1, max_size=20))
def test_nearest_is_exact_for_any_table(values: list[float], x: list[float]) -> None:
    nearest = Nearest(thresholds(values, range(len(values))))
    found = nearest(torch.tensor(x, dtype=torch.float32)).tolist()
    assert found == [brute_force(values, v) for v in x]


@settings(max_examples=80, deadline=None)
@given(tables)
def test_a_threshold_is_the_smallest_float_that_goes_up(values: list[float]) -> None:
    bounds = thresholds(values, range(len(values))).numpy()
    below = np.nextafter(bounds, np.float32(-np.inf))
    for i, (first, last) in enumerate(zip(bounds.tolist(), below.tolist(), strict=True)):
        pair = values[i : i + 2]
        middle = (Fraction(pair[0]) + Fraction(pair[1])) / 2
        assert Fraction(first) > middle or (Fraction(first) == middle and i % 2 == 1)
        assert Fraction(last) < middle or (Fraction(last) == middle and i % 2 == 0)


@pytest.mark.parametrize(
    ("codes", "bound"), [((0, 1), 0.0), ((1, 2), 0.0), ((-1, 1), 0.0), ((-2, 0), 0.0)]
)
def test_ties_go_to_the_even_code_or_up(codes: tuple[int, int], bound: float) -> None:
    found = float(thresholds([-1.0, 1.0], codes))
    assert (found > bound) == (codes == (0, 1))
    assert found in (0.0, float(np.float32(1e-45)))


def bounds_of(values: torch.Tensor) -> torch.Tensor:
    return thresholds(values.tolist(), range(len(values)))


def test_cells_and_bisection_find_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(64, generator=generator).sort().values
    crowded = torch.cat([values, 9 + 1e-6 * torch.arange(1, 9)])  # too narrow for cells
    for table, bisects in ((values, False), (crowded, True)):
        bounds = bounds_of(table)
        nearest = Nearest(bounds)
        assert nearest.bisects == bisects
        near = [bounds.nextafter(torch.tensor(end)) for end in (-torch.inf, torch.inf)]
        x = torch.cat([4 * torch.randn(50_000, generator=generator), bounds, *near])
        assert torch.equal(nearest(x), torch.bucketize(x, bounds, right=True).byte())


@pytest.mark.parametrize("values", [[0.0, 1e-45, 3e-45], [-3.4e38, 0.0, 3.4e38], [1.0, 2.0]])
def test_extreme_tables_are_searched_exactly(values: list[float]) -> None:
    values = torch.tensor(values).tolist()
    nearest = Nearest(thresholds(values, range(len(values))))
    x = [-torch.inf, -3.4e38, -1.7e38, -1e-45, 0.0, 1e-45, 3e-45, 1.5, 1.8e38, 3.4e38]
    x = torch.tensor(x).tolist()
    assert nearest(torch.tensor(x)).tolist() == [0] + [brute_force(values, v) for v in x[1:]]


def test_nan_is_not_near_to_anything() -> None:
    nearest = Nearest(thresholds([0.0, 1.0, 5.0], range(3)))
    with pytest.raises(IndexError):
        nearest(torch.tensor([torch.nan]))


def test_infinities_go_to_the_ends_and_shapes_are_kept() -> None:
    nearest = Nearest(thresholds([0.0, 1.0, 5.0], range(3)))
    x = torch.tensor([[-torch.inf, torch.inf], [0.5, 3.0]])
    assert nearest(x).tolist() == [[0, 2], [0, 2]]
    assert nearest(x[:0]).shape == (0, 2)
    assert nearest(x[0, 0]).shape == ()


def test_looking_up_beyond_the_table_is_an_error() -> None:
    table = torch.tensor([1.0, 2.0])
    assert look_up(table, torch.tensor([[1], [0]], dtype=torch.uint8)).tolist() == [[2.0], [1.0]]
    with pytest.raises(IndexError):
        look_up(table, torch.tensor([2], dtype=torch.uint8))

"""How much an error counts, relative to where it counts most."""

from __future__ import annotations

import math

import pytest
import torch

from bitsmith.errors import DataError
from bitsmith.numbers.ranges import relative_importance

X = torch.zeros(3, 4)


@pytest.mark.parametrize("size", [1e-45, 1e-30, 1.0, 3e38])
def test_the_largest_counts_1_and_the_rest_in_proportion(size: float) -> None:
    given = torch.tensor([0.0, 1.0, 0.5, 0.25], dtype=torch.float64) * size
    found = relative_importance(given, X)
    assert found.shape == X.shape
    assert found.dtype == torch.float32
    single = given.float().double()
    torch.testing.assert_close(found.double(), (single / single.max()).expand(3, 4))


def test_zeros_stay_zeros() -> None:
    assert not relative_importance(torch.zeros(3, 1), X).any()


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (torch.ones(0), r"of shape \(0,\) has no values"),
        (torch.tensor([1.0, -1.0, math.nan, math.inf]), "3 of 4 importances are negative, NaN or"),
        (torch.ones(3), r"of shape \(3,\) does not broadcast to values of shape \(3, 4\)"),
        (torch.full((4,), 1e300, dtype=torch.float64), "4 of 4 importances"),
        (torch.ones(4).long(), "torch.int64"),
    ],
)
def test_what_cannot_weigh(importance: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        relative_importance(importance, X)

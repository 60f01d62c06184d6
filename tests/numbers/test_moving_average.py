"""The moving average: the recursion of the literature; parts in order are one pass."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch

from bitsmith.errors import DataError
from bitsmith.numbers.moving_average import MovingAverage

BATCHES = torch.randn(60, 5, 4, generator=torch.Generator().manual_seed(0))


def of(average: MovingAverage, batches) -> MovingAverage:
    for x in batches:
        average.update(x)
    return average


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99, 0.99999])
def test_it_is_the_bias_corrected_recursion(momentum: float) -> None:
    state = 0.0
    average = MovingAverage(momentum)
    for t, x in enumerate(BATCHES, 1):
        average.update(x)
        state = momentum * state + (1 - momentum) * float(x.max())
        assert float(average.high) == pytest.approx(state / (1 - momentum**t), rel=1e-6)
    first = of(MovingAverage(momentum), BATCHES[:1])
    assert (float(first.low), float(first.high)) == (
        float(BATCHES[0].min()),
        float(BATCHES[0].max()),
    )


@pytest.mark.parametrize("axis", [None, 0, -1])
def test_consecutive_parts_in_order_are_one_pass(axis: int | None) -> None:
    whole, choose = of(MovingAverage(0.9, axis), BATCHES), random.Random(0)
    for _ in range(50):
        cuts = [0, *sorted(choose.sample(range(61), choose.randint(0, 6))), 60]
        parts = [of(MovingAverage(0.9, axis), BATCHES[a:b]) for a, b in pairwise(cuts)]
        while len(parts) > 1:  # neighbours in any order
            i = choose.randrange(len(parts) - 1)
            parts[i].merge(parts.pop(i + 1))
        assert parts[0].steps == 60
        for name in ("_low", "_high"):
            found, expected = getattr(parts[0], name), getattr(whole, name)
            assert float((found - expected).abs().max()) <= 1e-14 * float(expected.abs().max())
    assert whole.low.shape == {None: (), 0: (5, 1), -1: (1, 4)}[axis]


def test_order_matters_and_the_average_lies_inside() -> None:
    forward, back = of(MovingAverage(0.8), BATCHES), of(MovingAverage(0.8), BATCHES.flip(0))
    assert float(forward.high) != float(back.high)
    tops = BATCHES.amax((1, 2))
    assert float(tops.min()) <= float(forward.high) <= float(tops.max())


def test_the_mean_across_ranks_is_that_of_the_steps_extremes() -> None:
    ranks = [of(MovingAverage(0.9, 0), BATCHES[r::3]) for r in range(3)]
    before = [rank.state_dict() for rank in ranks]
    mean = MovingAverage.average(ranks)
    assert torch.allclose(mean.high, torch.stack([r.high for r in ranks]).mean(0), rtol=1e-6)
    assert (mean.steps, mean.axis) == (20, 0)
    assert repr(before) == repr([rank.state_dict() for rank in ranks])
    ranks[1].update(BATCHES[0])
    with pytest.raises(DataError, match=r"\[20, 21\] steps"):
        MovingAverage.average(ranks)
    with pytest.raises(DataError, match="no moving averages"):
        MovingAverage.average([])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_and_empty_batches_change_nothing(bad: float) -> None:
    average, twin = (of(MovingAverage(axis=1), BATCHES[:3]) for _ in range(2))
    average.update(torch.empty(0, 4))
    with pytest.raises(DataError, match="of 8 values"):
        average.update(torch.tensor([[1.0, 9, 9, 9], [9, 9, 9, bad]]))
    with pytest.raises(DataError, match="same channels"):
        average.update(torch.ones(4, 7))
    with pytest.raises(DataError, match=r"not torch.int64"):
        average.update(torch.ones(4, 4).long())
    assert repr(average.state_dict()) == repr(twin.state_dict())


def test_dtypes_layouts_and_round_trip() -> None:
    x = BATCHES[0].half()
    whole = of(MovingAverage(axis=0), [x.float()])
    for other in (x, x.double(), x.float().T.contiguous().T):
        assert repr(of(MovingAverage(axis=0), [other]).state_dict()) == repr(whole.state_dict())
    back = MovingAverage.from_state(whole.state_dict())
    back.update(x)
    assert (back.steps, whole.steps) == (2, 1)


def test_what_does_not_combine_is_refused() -> None:
    with pytest.raises(DataError, match=r"below 1, not 1.0"):
        MovingAverage(1.0)
    with pytest.raises(DataError, match="do not combine"):
        MovingAverage(0.9).merge(MovingAverage(0.8))
    with pytest.raises(DataError, match="same channels"):
        of(MovingAverage(axis=0), [torch.ones(3)]).merge(of(MovingAverage(axis=0), [torch.ones(4)]))
    with pytest.raises(DataError, match="has no range"):
        _ = MovingAverage().low
    assert MovingAverage().merge(MovingAverage()).empty

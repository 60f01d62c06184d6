"""The contract of every registered statistic: parts in any order are one pass."""

from __future__ import annotations

import io
import math
import random

import pytest
import torch

from bitsmith.errors import DataError, UnknownNameError
from bitsmith.numbers.statistics import (
    Extrema,
    Gram,
    Histogram,
    Moments,
    Samples,
    Statistic,
    statistics,
)

MAKERS = {name: statistics[name] for name in statistics} | {
    "extrema of columns": lambda: Extrema(axis=1),
    "histogram of 16 bins": lambda: Histogram(max_bins=16),
    "moments of columns": lambda: Moments(axis=-1),
    "diagonal gram": lambda: Gram(diagonal=True),
    "7 samples": lambda: Samples(size=7),
    "samples of rows": lambda: Samples(size=200, rows=True),
}
ALL = pytest.mark.parametrize("make", list(MAKERS.values()), ids=list(MAKERS))


def differences(a: Statistic, b: Statistic) -> float:
    """Return the largest relative difference between two states; inf where one must not be."""
    one, two = a.state_dict(), b.state_dict()
    assert one.keys() == two.keys()
    worst = 0.0
    for key, x in one.items():
        y = two[key]
        if isinstance(x, torch.Tensor) and x.dtype == torch.float64 and not a.exact:
            if key == "mean":  # the two parts of the mean
                x, y = x.sum(0), y.sum(0)
            error = (x - y).abs() / y.abs()
            worst = max(worst, float(torch.where(x == y, 0.0, error).max())) if y.numel() else worst
        elif not (torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y):
            return math.inf
    return worst


def of(make, *batches: torch.Tensor) -> Statistic:
    statistic = make()
    for x in batches:
        statistic.update(x)
    return statistic


def stream(kind: str) -> torch.Tensor:
    x = torch.randn(1500, 3, generator=torch.Generator().manual_seed(0))
    return {
        "normal": x * torch.tensor([1.0, 20.0, 1e-3]),
        "activations": torch.nn.functional.gelu(2 * x) + x[:, :1].abs(),
        "far from 0": x.exp() + 1000,
        "few values": torch.round(2 * x),
    }[kind]


@ALL
@pytest.mark.parametrize("kind", ["normal", "activations", "far from 0", "few values"])
def test_300_random_splits_and_orders_are_one_pass(make, kind: str) -> None:
    x, choose = stream(kind), random.Random(kind)
    whole, worst = of(make, x), 0.0
    for _ in range(300 if kind == "activations" else 30):
        cuts = sorted(choose.sample(range(1, len(x)), choose.randint(1, 9)))
        rows = torch.randperm(
            len(x), generator=torch.Generator().manual_seed(choose.randint(0, 99))
        )
        parts = list(x[rows].tensor_split(cuts))
        gathered = [of(make, part) for part in parts]
        gathered[0].update(x[:0])
        choose.shuffle(gathered)
        while len(gathered) > 1:  # as a tree of any shape
            taken = gathered.pop(choose.randrange(len(gathered)))
            gathered[choose.randrange(len(gathered))].merge(taken)
        worst = max(worst, differences(gathered[0], whole), differences(of(make, *parts), whole))
    assert worst <= (0.0 if whole.exact else 1e-12)


@ALL
def test_merging_leaves_the_other_as_it_was(make) -> None:
    x = stream("activations")
    left, right = of(make, x[:100]), of(make, x[100:])
    twin = type(right).from_state(right.state_dict())
    assert left.merge(right) is left
    left.update(x)
    assert differences(right, twin) == 0.0


@ALL
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_batch_that_is_not_finite_changes_nothing(make, bad: float) -> None:
    a, b = of(make, torch.ones(2, 3)), of(make, torch.ones(2, 3))
    with pytest.raises(DataError, match=r"of 6 values"):
        a.update(torch.tensor([[1.0, 9, 9], [9, 9, bad]]))
    assert differences(a, b) == 0.0
    with pytest.raises(DataError, match="1 infinite of 3"):
        a.update(torch.tensor([[1.0, 2, 1e300]], dtype=torch.float64))
    assert differences(a, b) == 0.0


@ALL
def test_empty_batches_other_dtypes_and_layouts(make) -> None:
    a = make()
    assert a.empty
    a.update(torch.empty(0, 3))
    a.update(torch.empty(2, 0, 3))
    assert a.empty
    assert differences(a.merge(make()), make()) == 0.0
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(2)).bfloat16()
    whole = of(make, x.float())
    assert (whole.empty, whole.count) == (False, 18)
    for other in (x, x.half(), x.double(), x.float().T.contiguous().T):
        assert differences(of(make, other), whole) <= (0.0 if whole.exact else 1e-15)
    assert differences(make().merge(whole), whole) == 0.0
    assert differences(whole.merge(make()), of(make, x)) == 0.0
    with pytest.raises(DataError, match=r"floating-point tensor, not torch.int64"):
        a.update(torch.ones(2, 3).long())


@ALL
def test_the_state_is_plain_data_and_round_trips(make) -> None:
    whole = of(make, stream("activations"))
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    back = type(whole).from_state(torch.load(file, weights_only=True))
    assert differences(back, whole) == 0.0
    back.update(stream("normal"))  # shares no memory
    assert differences(whole, of(make, stream("activations"))) == 0.0


def size(statistic: Statistic) -> int:
    """Return the bytes of the tensors of the state."""
    parts = [v for v in statistic.state_dict().values() if isinstance(v, torch.Tensor)]
    return sum(part.numel() * part.element_size() for part in parts)


@ALL
def test_the_size_does_not_grow_with_the_stream(make) -> None:
    generator, sizes, statistic = torch.Generator().manual_seed(1), {}, make()
    for batch in range(1, 101):
        # The range is that of the first batch, for histograms have as many bins as it asks for.
        statistic.update(torch.randn(2000, 3, generator=generator).clamp(-2, 2))
        sizes[batch] = size(statistic)
    assert sizes[100] == sizes[10]
    assert statistic.count == 600_000


@ALL
@pytest.mark.parametrize("value", [0.0, -3.0, 1e-45, 3.4028234663852886e38])
def test_constant_denormal_and_huge_values(make, value: float) -> None:
    statistic = of(make, torch.full((5, 3), value), torch.full((2, 3), value))
    assert statistic.count == 21
    for part in statistic.state_dict().values():
        assert not isinstance(part, torch.Tensor) or bool(torch.isfinite(part).all())


def test_the_family_is_found_by_name() -> None:
    assert list(statistics) == ["extrema", "fisher", "gram", "histogram", "moments", "samples"]
    assert all(statistics[name].name == name for name in statistics)
    with pytest.raises(UnknownNameError, match="did you mean 'histogram'"):
        statistics["histogramm"]


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (Extrema(0), Extrema(), "axis 0 and axis None"),
        (Histogram(16), Histogram(), "16 and 4096 bins"),
        (Moments(0), Moments(), "axis 0 and axis None"),
        (Gram(), Gram(diagonal=True), "diagonal"),
        (Samples(3), Samples(4), "3 values and of 4 values"),
        (Samples(3), Samples(3, rows=True), "3 values and of 3 rows"),
    ],
)
def test_statistics_that_were_set_up_differently_do_not_merge(one, other, message) -> None:
    with pytest.raises(DataError, match=message):
        one.merge(other)


@pytest.mark.parametrize("kind", [lambda: Extrema(1), lambda: Moments(1), Gram])
def test_other_channels_are_refused_and_change_nothing(kind) -> None:
    a = of(kind, torch.ones(4, 3))
    with pytest.raises(DataError, match="cannot take in"):
        a.update(torch.ones(4, 7))
    with pytest.raises(DataError, match="cannot take in"):
        a.merge(of(kind, torch.ones(4, 7)))
    assert differences(a, of(kind, torch.ones(4, 3))) == 0.0

"""Calibration data is gone through again and again, and never kept."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from bitsmith.errors import DataError, UnknownNameError
from bitsmith.model.weights import quantize_weights


class Stream:
    """Batches made when they are asked for; counts passes, and how many are alive at once."""

    def __init__(self, batches: int, passes: int = 1000) -> None:
        self._batches, self._left = batches, passes
        self.passes = self.most_alive = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.passes, self._left = self.passes + 1, self._left - 1
        generator = torch.Generator().manual_seed(0)
        alive: list[weakref.ref[torch.Tensor]] = []
        for _ in range(self._batches if self._left >= 0 else 0):
            batch = torch.randn(16, 32, generator=generator)
            alive.append(weakref.ref(batch))
            self.most_alive = max(self.most_alive, sum(r() is not None for r in alive))
            yield batch


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    parts = (nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    return nn.Sequential(*parts).eval()


@pytest.mark.parametrize(("transform", "passes"), [(None, 3), ("awq", 3), ("smoothquant", 6)])
def test_no_more_than_two_batches_are_alive(net, transform, passes) -> None:
    data = Stream(20)
    found = quantize_weights(net, "W4G32", data, transform=transform)
    assert data.passes == passes + 1  # one more batch is looked at first
    assert data.most_alive <= 2
    expected = quantize_weights(net, "W4G32", list(Stream(20)), transform=transform)
    x = torch.randn(4, 32)
    assert torch.equal(found(x), expected(x))


def test_an_iterator_is_refused_where_it_would_have_to_start_again(net) -> None:
    advanced: list[int] = []
    expected = r"an iterator, which gives its batches once, .* 'W4G32' goes through them 3 times"
    with pytest.raises(DataError, match=expected):
        quantize_weights(net, "W4G32", iter(Stream(4)), advance=advanced.append)
    assert not advanced  # before anything is done
    with pytest.raises(DataError, match="goes through them 6 times"):
        quantize_weights(net, "W4G32", (b for b in Stream(4)), transform="smoothquant")


def test_an_iterator_does_for_one_block() -> None:
    torch.manual_seed(0)
    net = nn.Linear(32, 8)
    x = torch.randn(4, 32)
    whole = quantize_weights(net, "W3", list(Stream(4)))
    assert torch.equal(quantize_weights(net, "W3", iter(Stream(4)))(x), whole(x))
    assert not torch.equal(quantize_weights(net, "W3", iter(Stream(1)))(x), whole(x))
    with pytest.raises(DataError, match="goes through them 2 times"):
        quantize_weights(net, "W3", iter(Stream(4)), transform="smoothquant")


def test_data_that_runs_dry_is_noticed(net) -> None:
    with pytest.raises(DataError, match="gave no batch when it was gone through again"):
        quantize_weights(net, "W4G32", Stream(4, passes=2))
    with pytest.raises(DataError, match="the calibration data is empty"):
        quantize_weights(net, "W4G32", Stream(0))


def test_an_unknown_rounding_is_refused_before_any_pass(net) -> None:
    data = Stream(4)
    with pytest.raises(UnknownNameError, match="gtpq"):
        quantize_weights(net, "W4G32", data, rounding="gtpq")
    assert data.passes <= 1

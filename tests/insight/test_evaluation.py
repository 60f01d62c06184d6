"""Evaluation, paired difference and layer measures against counting by hand."""

import math

import pytest
import torch
from torch import nn

from bitsmith.errors import DataError
from bitsmith.insight.evaluation import difference, evaluate
from bitsmith.insight.measure import paired_difference, wilson_interval


def labelled(n: int, classes: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, classes, generator=generator)
    y = torch.randint(0, classes, (n,), generator=generator)
    return [(x[i : i + 7], y[i : i + 7]) for i in range(0, n, 7)]


def test_counts_what_is_right():
    batches = labelled(50)
    seen: list[int] = []
    found = evaluate(
        "a", nn.Identity(), batches, runtime="torch", latency_repeats=0, advance=seen.append
    )
    right = sum(int((x.argmax(1) == y).sum()) for x, y in batches)
    assert found.accuracy == pytest.approx(100 * right / 50)
    assert found.interval == wilson_interval(right, 50)
    assert (found.n, sum(seen), found.latencies) == (50, 50, {})


def test_latency_is_timed_at_the_batch_sizes_it_says():
    sizes: list[int] = []

    def call(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return x

    found = evaluate("a", call, labelled(20), runtime="torch", latency_repeats=5)
    assert set(found.latencies) == {1, 128}
    assert sizes.count(1) == sizes.count(128) == 5 + 3
    assert found.latencies[1].low_ms <= found.latencies[1].median_ms


def test_difference_is_paired():
    batches = labelled(60)
    first = evaluate("a", nn.Identity(), batches, runtime="t", latency_repeats=0)
    second = evaluate("b", lambda x: x.roll(1, 1), batches, runtime="t", latency_repeats=0)
    found = difference(second, first)
    assert (found.delta, found.low, found.high) == paired_difference(second.right, first.right)
    assert found.changed == 60
    assert found.agreement == 0
    same = difference(first, first)
    assert (same.delta, same.changed, same.agreement) == (0, 0, 100)


def test_without_labels_only_agreement():
    batches = [x for x, _ in labelled(30)]
    found = evaluate("a", nn.Identity(), batches, runtime="t", latency_repeats=0)
    assert found.accuracy is None
    assert found.interval is None
    assert difference(found, found).delta is None


def test_refuses_what_is_no_classification():
    with pytest.raises(DataError, match="logits"):
        evaluate("a", lambda x: x[:, :, None], labelled(8), runtime="t", latency_repeats=0)
    first = evaluate("a", nn.Identity(), labelled(8), runtime="t", latency_repeats=0)
    second = evaluate("a", nn.Identity(), labelled(9), runtime="t", latency_repeats=0)
    with pytest.raises(DataError, match="8 and 9"):
        difference(first, second)
    assert math.isfinite(first.accuracy)

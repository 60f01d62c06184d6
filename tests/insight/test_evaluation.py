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


def tokens(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [n, 5]; text i has its id i, and i % 4 + 1 tokens."""
    ids = torch.arange(n).unsqueeze(1).expand(n, 5).contiguous()
    return ids, (torch.arange(5) <= torch.arange(n).unsqueeze(1) % 4).long()


def count_tokens(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits whose largest is at the number of tokens."""
    assert ids.shape == mask.shape
    assert torch.equal(mask.sum(1), ids[:, 0] % 4 + 1), "rows of ids and mask belong together"
    return nn.functional.one_hot(mask.sum(1), 5).float()


@pytest.mark.parametrize("kind", ["tuple", "list", "arrays", "dictionary"])
@pytest.mark.parametrize("labels", [True, False])
def test_several_inputs_are_counted_and_timed_by_their_samples(kind: str, labels: bool):
    sizes: list[int] = []
    seen: list[int] = []

    def call(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids))
        return count_tokens(ids, mask)

    def batch(n: int) -> object:
        ids, mask = tokens(n)
        x = {
            "tuple": (ids, mask),
            "list": [ids, mask],
            "arrays": (ids.numpy(), mask.numpy()),
            "dictionary": {"mask": mask, "ids": ids},
        }[kind]
        return (x, mask.sum(1)) if labels else (x,)

    batches = [batch(7), batch(6)]
    found = evaluate("a", call, batches, runtime="t", latency_repeats=3, advance=seen.append)
    assert seen == [7, 6]
    assert found.n == 13
    assert found.predictions.tolist() == [i % 4 + 1 for i in (*range(7), *range(6))]
    assert found.accuracy == (100 if labels else None)
    assert sizes[:2] == [7, 6]
    assert set(sizes[2:]) == {1, 128}


def test_a_dictionary_alone_is_inputs():
    ids, mask = tokens(9)
    batches = [{"ids": ids, "mask": mask}]
    found = evaluate("a", count_tokens, batches, runtime="t", latency_repeats=0)
    assert (found.n, found.right) == (9, None)


def test_timing_keeps_a_module_in_evaluation_mode():
    norm = nn.BatchNorm1d(4).train()
    before = norm.running_mean.clone()
    evaluate("a", norm, labelled(20), runtime="torch", latency_repeats=3)
    assert torch.equal(norm.running_mean, before)
    assert norm.training


def test_nothing_left_to_time_is_said():
    with pytest.raises(DataError, match="an iterator is used up"):
        evaluate("a", nn.Identity(), iter(labelled(20)), runtime="t", latency_repeats=3)


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

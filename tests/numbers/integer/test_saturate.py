"""Saturating accumulators against a loop over pairs; the runtime itself is in the other files."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsmith.errors import DataError
from bitsmith.numbers.integer import (
    conv_accumulate,
    conv_accumulate_saturating,
    linear_accumulate_saturating,
    max_pair_sum,
)


def slow_sum(taps: list[int], weights: list[int]) -> tuple[int, int]:
    """vpmaddubsw, one pair after the other."""
    total = saturated = 0
    for i in range(0, len(taps), 2):
        pair = sum(t * w for t, w in zip(taps[i : i + 2], weights[i : i + 2], strict=True))
        total += min(max(pair, -32768), 32767)
        saturated += not -32768 <= pair <= 32767
    return total, saturated


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 255), st.integers(0, 2**32))
def test_linear(inputs, zero_point, seed):
    rng = np.random.default_rng(seed)
    x = rng.choice([0, 128, 200, 255], (3, inputs)).astype(np.uint8)
    weight = rng.choice([-128, -127, -64, 1, 100, 127], (4, inputs)).astype(np.int8)
    found, count = linear_accumulate_saturating(
        torch.from_numpy(x), zero_point, torch.from_numpy(weight)
    )
    expected = 0
    for row, out in itertools.product(range(3), range(4)):
        raw, saturated = slow_sum(x[row].tolist(), weight[out].tolist())
        assert found[row, out] == raw - zero_point * int(weight[out].sum(dtype=np.int64))
        expected += saturated
    assert count == expected


@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_pairs_in_the_given_order(order, groups):
    rng = np.random.default_rng(groups)
    x = rng.choice([0, 200, 255], (2, 6, 5, 4)).astype(np.uint8)
    weight = rng.choice([-127, -100, 3, 90, 127], (4, 6 // groups, 3, 2)).astype(np.int8)
    found, count = conv_accumulate_saturating(
        torch.from_numpy(x),
        9,
        torch.from_numpy(weight),
        None,
        (1, 2),
        (1, 0),
        (1, 1),
        groups,
        order,
    )
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (0, 0)], constant_values=9)
    expected = 0
    axes = (1, 2, 0) if order == "channels_last" else (0, 1, 2)
    for n, o, r, c in np.ndindex(*found.shape):
        first = o // (4 // groups) * (6 // groups)
        window = padded[n, first : first + 6 // groups, r : r + 3, 2 * c : 2 * c + 2]
        taps, weights = (t.transpose(axes).ravel().tolist() for t in (window, weight[o]))
        raw, saturated = slow_sum(taps, weights)
        assert found[n, o, r, c] == raw - 9 * sum(weights)
        expected += saturated
    assert count == expected > 0


def test_depthwise_is_exact():
    x = torch.full((1, 8, 5, 5), 255, dtype=torch.uint8)
    weight = torch.full((8, 1, 3, 3), 127, dtype=torch.int8)
    acc, count = conv_accumulate_saturating(x, 0, weight, None, (1,), (1,), (1,), 8)
    assert count == 0
    assert torch.equal(acc, conv_accumulate(x, 0, weight, None, (1,), (1,), (1,), 8))


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**32), st.sampled_from([40, 64, 100, 128]))
def test_a_pair_bound_of_128_is_exactly_freedom_from_saturation(inputs, seed, largest):
    """For the worst codes: saturation happens if and only if some pair sum exceeds 128."""
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.integers(-largest, largest, (1, inputs)).astype(np.int8))
    positive = (weight > 0).to(torch.uint8) * 255
    worst = torch.cat([positive, 255 - positive])
    _, count = linear_accumulate_saturating(worst, 0, weight)
    bound = max_pair_sum(weight).item()
    assert (count > 0) == (bound > 128)
    assert max_pair_sum(weight, "any").item() >= bound


def test_max_pair_sum_by_brute_force():
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 128, (7, 3, 3, 3)).astype(np.int8)
    for order, axes in (("channels_last", (1, 2, 0)), ("channels_first", (0, 1, 2))):
        found = max_pair_sum(torch.from_numpy(weight), order)
        for o in range(7):
            flat = [int(v) for v in weight[o].transpose(axes).ravel()]
            pairs = [flat[i : i + 2] for i in range(0, len(flat), 2)]
            same = [abs(sum(p)) for p in pairs if len(p) == 2 and p[0] * p[1] >= 0]
            assert found[o] == max([*same, *(abs(v) for v in flat)])
    anywhere = max_pair_sum(torch.from_numpy(weight), "any")
    for o in range(7):
        flat = [int(v) for v in weight[o].ravel()]
        pairs = itertools.combinations(flat, 2)
        assert anywhere[o] == max(abs(a + b) for a, b in pairs if a * b >= 0)


def test_max_pair_sum_of_single_weights():
    weight = torch.tensor([[-128], [127]], dtype=torch.int8)
    assert max_pair_sum(weight).tolist() == max_pair_sum(weight, "any").tolist() == [128, 127]


def test_unknown_order():
    with pytest.raises(DataError, match="'channels_last', 'channels_first' or 'any', not 'rows'"):
        max_pair_sum(torch.zeros(1, 2, dtype=torch.int8), "rows")

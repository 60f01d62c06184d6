"""KL-divergence ranges: every candidate in plain Python, by the definition, gives the same."""

from __future__ import annotations

import math
import time

import pytest
import torch

from bitsmith.errors import SchemeError
from bitsmith.numbers.calibrators.entropy import Entropy, divergences
from bitsmith.numbers.formats import formats
from bitsmith.numbers.formats.integer import int8, integer_format, uint8
from bitsmith.numbers.scheme import PerChannel, Scheme
from bitsmith.numbers.statistics import Histogram

NORMAL = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
STREAMS = {
    "normal": NORMAL,
    "outlier": torch.cat([NORMAL, torch.tensor([30.0])]),
    "two outliers": torch.cat([NORMAL, torch.tensor([9.0, -14.0])]),
    "relu": NORMAL.relu(),
    "negative": -(NORMAL.abs() ** 2),
    "gelu": torch.nn.functional.gelu(2 * NORMAL),
    "heavy": NORMAL**3,
    "shifted": NORMAL + 40,
    "sparse": torch.tensor([0.0, 0.5, 0.5, 0.5, -0.25, 3.0, 100.0, 7.0]),
    "constant": torch.full((9,), -2.5),
    "zero": torch.zeros(3),
}


def histogram(x: torch.Tensor, bins: int) -> Histogram:
    h = Histogram(bins)
    h.update(x)
    return h


def reference_divergence(counts: list[int], a: int, b: int, n: int) -> float:
    """KL(P‖Q) of the range of bins a … b by its definition, bin by bin."""
    m, inside = b - a + 1, counts[a : b + 1]
    p = [float(c) for c in inside]
    p[0] += sum(counts[:a])
    p[-1] += sum(counts[b + 1 :])
    q = [0.0] * m
    for j in range(n):
        members = [i for i in range(j * m // n, (j + 1) * m // n) if p[i] > 0]
        for i in members:
            q[i] = sum(inside[j * m // n : (j + 1) * m // n]) / len(members)
    total, kept, support = sum(p), sum(inside), sum(v > 0 for v in p)
    divergence = 0.0
    for pi, qi in zip(p, q, strict=True):
        if pi > 0:
            smooth = (1 - 1e-4) * (qi / kept if kept else 0.0) + 1e-4 / support
            divergence += pi / total * math.log(pi / total / smooth)
    return divergence


def reference_end(counts: list[int], a: int, n: int, at_least: int) -> int:
    ends = range(max(a + n, at_least) - 1, len(counts))
    found = {b: reference_divergence(counts, a, b, n) for b in ends}
    if not found:
        return len(counts) - 1
    least = min(found.values())
    return max(b for b, d in found.items() if d <= least + 1e-9)


def reference_limits(h: Histogram, scheme: Scheme) -> tuple[float, float]:
    counts, zero = h.counts.tolist(), -h.first
    if scheme.symmetric:
        both: dict[int, int] = {}
        for i, c in enumerate(counts):
            both[abs(i - zero)] = both.get(abs(i - zero), 0) + c
        counts, zero = [both.get(i, 0) for i in range(max(both) + 1)], 0
    if len(counts) > 1:
        beside = sum(counts[i] for i in (zero - 1, zero + 1) if 0 <= i < len(counts))
        counts[zero] = min(counts[zero], beside)
    if scheme.symmetric:
        b = reference_end(counts, 0, scheme.code_max + 1, 1)
        bound = min(max(-h.low, h.high), (b + 1) * h.width)
        return -bound, bound
    n, first, last, top = scheme.code_max - scheme.code_min + 1, 0, len(counts) - 1, len(counts) - 1
    for _ in range(2):
        if h.high > 0:
            last = reference_end(counts, first, n, zero + 1)
        if h.low < 0:
            first = top - reference_end(counts[::-1], top - last, n, top - zero + 1)
    return max(h.low, (first - zero - 1) * h.width), min(h.high, (last - zero + 1) * h.width)


SCHEMES = [Scheme(integer_format(b, True)) for b in (2, 3, 4, 6, 8)]
SCHEMES += [Scheme(integer_format(b, False), symmetric=False) for b in (1, 2, 3, 4, 6, 8)]


@pytest.mark.parametrize("stream", list(STREAMS))
@pytest.mark.parametrize("bins", [16, 301])
def test_thresholds_equal_a_brute_force_reference(stream: str, bins: int) -> None:
    h = histogram(STREAMS[stream], bins)
    for scheme in SCHEMES:
        low, high = Entropy().limits(h, scheme)
        expected = torch.tensor(reference_limits(h, scheme), dtype=torch.float32)
        assert [float(low), float(high)] == expected.tolist(), scheme


@pytest.mark.parametrize("levels", [2, 5, 16, 37])
def test_divergences_equal_the_definition(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    counts = torch.randint(0, 5, (60,), generator=generator)
    counts[torch.randint(0, 60, (25,), generator=generator)] = 0
    for start in (0, 3, 20):
        ends = torch.arange(start + levels - 1, 60)
        found = divergences(counts, start, ends, levels)
        for b, d in zip(ends.tolist(), found.tolist(), strict=True):
            exact = reference_divergence(counts.tolist(), start, b, levels)
            assert d == pytest.approx(exact, rel=1e-10, abs=1e-12)


def test_outliers_are_clipped_from_either_end_and_zeros_do_not_count() -> None:
    x = torch.cat([NORMAL, torch.tensor([60.0, -40.0])])
    low, high = Entropy().limits(histogram(x, 4096), Scheme(uint8, symmetric=False))
    assert -7 < float(low) < -2 < 2 < float(high) < 7
    sparse = torch.cat([NORMAL.relu(), torch.zeros(200_000)])
    few = Entropy().limits(histogram(sparse, 4096), Scheme(uint8, symmetric=False))
    same = Entropy().limits(histogram(NORMAL.relu(), 4096), Scheme(uint8, symmetric=False))
    assert few == same


def test_few_bins_keep_the_whole_range() -> None:
    h = histogram(NORMAL, 200)
    low, high = Entropy().limits(h, Scheme(uint8, symmetric=False))
    assert (float(low), float(high)) == (h.low, h.high)


def test_8_bits_of_4096_bins_take_a_moment() -> None:
    x = torch.cat([NORMAL, torch.tensor([1.9999 * 4, -1.9999 * 4])])
    h = histogram(x, 4096)
    assert len(h.counts) > 4000
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        Entropy().limits(h, Scheme(uint8, symmetric=False))
        Entropy().limits(h, Scheme(int8))
        best = min(best, time.perf_counter() - start)
    assert best < 0.6


def test_codes_that_are_not_evenly_spaced_are_refused() -> None:
    h = histogram(NORMAL, 4096)
    with pytest.raises(SchemeError, match=r"evenly spaced .* use mse"):
        Entropy().limits(h, Scheme(formats["fp4_e2m1fn"]))
    with pytest.raises(SchemeError, match="gives no scales"):
        Entropy().limits(h, Scheme(int8, granularity=PerChannel(0)))

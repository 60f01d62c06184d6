"""Intervals against enumeration, bootstrap and brute force; records; latency; the machine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsmith.errors import DataError, InputError
from bitsmith.insight import measure
from bitsmith.insight.measure import (
    Record,
    envelope,
    latency,
    machine,
    paired_difference,
    peak_rss_mb,
    wilson_interval,
)

Z = 1.959963984540054


def judged(b: int, c: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two judgements of n samples: b right only in the first, c only in the second."""
    first = torch.tensor([True] * b + [False] * c + [True] * (n - b - c))
    second = torch.tensor([False] * b + [True] * c + [True] * (n - b - c))
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return first[shuffled], second[shuffled]


def interval(b: int, c: int, n: int) -> tuple[float, float, float]:
    return paired_difference(*judged(b, c, n))


def counts(most: int = 60) -> st.SearchStrategy[tuple[int, int, int]]:
    return st.integers(1, most).flatmap(
        lambda n: st.integers(0, n).flatmap(
            lambda b: st.tuples(st.just(b), st.integers(0, n - b), st.just(n))
        )
    )


@given(counts())
def test_interval_holds_the_difference_and_mirrors(bcn: tuple[int, int, int]) -> None:
    b, c, n = bcn
    delta, low, high = interval(b, c, n)
    assert delta == pytest.approx(100 * (b - c) / n)
    assert -100 <= low <= delta + 1e-9
    assert delta - 1e-9 <= high <= 100
    assert low < high
    assert interval(c, b, n) == pytest.approx((-delta, -high, -low))


@given(counts())
def test_zero_is_inside_exactly_when_mcnemar_does_not_reject(bcn: tuple[int, int, int]) -> None:
    b, c, n = bcn
    _, low, high = interval(b, c, n)
    rejects = b + c > 0 and (b - c) ** 2 / (b + c) > Z * Z
    assert (low <= 1e-9 and high >= -1e-9) != rejects


def brute_force_score(b: int, c: int, n: int, delta: float) -> float:
    """The score statistic with the nuisance share found by search over its likelihood."""
    grid = np.linspace(max(0.0, -delta), (1 - delta) / 2, 200_001)[1:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = (n - b - c) * np.log1p(-(2 * grid + delta)) if n > b + c else 0 * grid
        likelihood = likelihood + (b * np.log(grid + delta) if b else 0)
        likelihood = likelihood + (c * np.log(grid) if c else 0)
    q = float(grid[np.nanargmax(likelihood)])
    return float((b - c - n * delta) / math.sqrt(n * (2 * q + delta - delta**2)))


@pytest.mark.parametrize(
    ("b", "c", "n"), [(3, 1, 20), (1, 3, 100), (12, 30, 200), (0, 5, 50), (5, 0, 50), (9, 9, 18)]
)
def test_ends_are_where_a_score_test_begins_to_reject(b: int, c: int, n: int) -> None:
    _, low, high = interval(b, c, n)
    assert brute_force_score(b, c, n, low / 100) == pytest.approx(Z, abs=2e-3)
    assert brute_force_score(b, c, n, high / 100) == pytest.approx(-Z, abs=2e-3)


@pytest.mark.parametrize(("p", "q"), [(0.1, 0.1), (0.2, 0.1), (0.05, 0.02), (0.3, 0.05)])
def test_coverage_by_enumerating_every_outcome(p: float, q: float) -> None:
    n, covered, total = 30, 0.0, 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            ways = math.comb(n, b) * math.comb(n - b, c)
            chance = ways * p**b * q**c * (1 - p - q) ** (n - b - c)
            total += chance
            if chance > 1e-9:
                low = -measure._upper_limit(c, b, n)
                high = measure._upper_limit(b, c, n)
                covered += chance * (low <= p - q <= high)
    assert total == pytest.approx(1)
    assert 0.93 < covered < 0.99


def test_against_a_bootstrap_where_there_are_many_samples() -> None:
    b, c, n = 180, 230, 10_000
    rng = np.random.default_rng(0)
    draws = rng.multinomial(n, [b / n, c / n, 1 - (b + c) / n], size=40_000)
    ends = np.percentile(100 * (draws[:, 0] - draws[:, 1]) / n, [2.5, 97.5])
    _, low, high = interval(b, c, n)
    np.testing.assert_allclose([low, high], ends, atol=0.02)


def test_never_disagreeing_is_not_certainty() -> None:
    delta, low, high = interval(0, 0, 10_000)
    assert delta == 0
    # Closed form for no disagreement: ± z² / (n + z²).
    assert high == pytest.approx(100 * Z * Z / (10_000 + Z * Z))
    assert low == pytest.approx(-high)


def test_paired_is_narrower_than_two_separate_intervals() -> None:
    _, low, high = interval(20, 25, 10_000)
    alone = wilson_interval(9173, 10_000)
    assert high - low < 0.4 * (alone[1] - alone[0])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool)),
        (torch.ones(3), torch.ones(3)),
        (torch.ones(0, dtype=torch.bool), torch.ones(0, dtype=torch.bool)),
        (torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)),
    ],
)
def test_pairs_that_are_none(a: torch.Tensor, b: torch.Tensor) -> None:
    with pytest.raises(DataError, match="two bool tensors"):
        paired_difference(a, b)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_solve_the_score_equation(kn: tuple[int, int]) -> None:
    k, n = kn
    low, high = (v / 100 for v in wilson_interval(k, n))
    assert 0 <= low <= k / n <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            score = abs(k / n - end) / math.sqrt(end * (1 - end) / n)
            assert score == pytest.approx(Z, rel=1e-6)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_shares_that_are_none(k: int, n: int) -> None:
    with pytest.raises(DataError):
        wilson_interval(k, n)


KEYS = (
    "study model dataset split data_sha256 seed recipe effort method weight_bits activation_bits "
    "granularity calibrator algorithm target machine_target runtime layer op outcome reason "
    "macs_share cause isolated metric value reference delta delta_low delta_high n bytes "
    "bits_per_weight latency_ms quantize_seconds"
)


def test_record_has_exactly_the_published_keys() -> None:
    assert list(Record.__dataclass_fields__) == KEYS.split()


def test_keys_that_do_not_apply_are_absent_and_zeros_are_not() -> None:
    record = Record(model="m", seed=0, isolated=False, metric="mae", value=0.0, method="ptq")
    assert record.to_json() == {
        "model": "m",
        "seed": 0,
        "method": "ptq",
        "isolated": False,
        "metric": "mae",
        "value": 0.0,
    }
    assert Record().to_json() == {}
    assert json.loads(json.dumps(record.to_json())) == record.to_json()


def test_records_that_cannot_be_written() -> None:
    with pytest.raises(InputError, match=r"value is nan.*delta is inf.*method is 'magic'") as error:
        Record(metric="mse", value=math.nan, delta=math.inf, method="magic")
    assert "codebook" in str(error.value)
    with pytest.raises(InputError, match="without a metric"):
        Record(value=1.0)


def test_latency_of_a_known_sleep() -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        time.sleep(0.005)

    found = latency(call, repeats=9, warmup=2)
    assert len(calls) == 11
    assert found.n == 9
    assert 5 <= found.low_ms <= found.median_ms <= found.high_ms < 500


def test_latency_quartiles_against_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = [7, 1, 5, 3, 20, 2, 11]
    ticks = iter(np.cumsum([v for d in durations for v in (1, d)]) * 1_000_000)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: int(next(ticks)))
    found = latency(lambda: None, repeats=7, warmup=0)
    expected = np.percentile(durations, [25, 50, 75])
    np.testing.assert_allclose([found.low_ms, found.median_ms, found.high_ms], expected)


def test_latency_stops_when_its_time_is_up() -> None:
    assert latency(lambda: time.sleep(0.01), repeats=1000, warmup=0, seconds=0).n == 3
    with pytest.raises(InputError):
        latency(lambda: None, repeats=2)
    with pytest.raises(InputError):
        latency(lambda: None, warmup=-1)


def test_machine_says_what_timings_depend_on() -> None:
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["memory_mb"] > 100
    assert found["torch"] == torch.__version__
    import onnxruntime

    assert found["onnxruntime"] == onnxruntime.__version__
    assert found["instruction_sets"] == sorted(found["instruction_sets"])


GROWING = """
import numpy as np
from bitsmith.insight.host import peak_rss_mb
before = peak_rss_mb()
block = np.ones(2**25)  # 256 MiB
during = peak_rss_mb()
del block
print(before, during, peak_rss_mb())
"""


def test_peak_memory_grows_with_what_is_touched_and_does_not_begin_with_the_parents() -> None:
    here = np.ones(700 * 2**20 // 8)
    child = subprocess.run(
        [sys.executable, "-c", GROWING], capture_output=True, text=True, check=True
    )
    before, during, after = map(float, child.stdout.split())
    assert during - before == pytest.approx(256, abs=8)
    assert after == pytest.approx(during, abs=2)
    assert peak_rss_mb() > here.nbytes / 2**20
    if sys.platform.startswith("linux"):
        assert before < 650


def test_envelope() -> None:
    started = time.perf_counter() - 1.5
    found = envelope("evaluate", [Record(model="m"), Record()], started)
    assert list(found) == ["bitsmith", "command", "machine", "seconds", "peak_rss_mb", "records"]
    assert found["command"] == "evaluate"
    assert 1.5 <= found["seconds"] < 10
    assert found["records"] == [{"model": "m"}, {}]
    assert found["peak_rss_mb"] > 10
    json.dumps(found, allow_nan=False)

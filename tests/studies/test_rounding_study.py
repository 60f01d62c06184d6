"""Rounding: the ten weights, bias against theory, sums against other implementations."""

import ml_dtypes
import numpy as np
import pytest

from bitsmith.studies import Options, studies
from bitsmith.studies.rounding import MODES
from bitsmith.studies.rounding.spread import QUARTERS, SMOOTH, spread
from bitsmith.studies.rounding.sums import FLOATS, accumulate, float_sum

DTYPES = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
}


@pytest.fixture(scope="module")
def result():
    return studies["rounding"]().run(Options(quick=True))


def test_ten_weights(result):
    rows = result.tables[0].rows[:-1]
    assert [int(row[2]) for row in rows] == [-3, 7, 3, 3, -7, 7, -2, 1, -5, 2]
    assert [row[2] for row in rows] == [row[3] for row in rows]
    floors = [np.floor(float(row[0]) / 0.2) for row in rows]
    assert [int(row[4]) for row in rows] == floors
    assert all(0 <= int(row[5]) - low <= 1 for row, low in zip(rows, floors, strict=True))


@pytest.mark.parametrize(
    ("mode", "values", "bias", "rms"),
    [
        # Fractions are uniform: U(−½, ½) to nearest, U(−1, 0) for floor.
        ("half_even", SMOOTH, 0, 1 / 12**0.5),
        ("half_away", SMOOTH, 0, 1 / 12**0.5),
        ("floor", SMOOTH, -0.5, 1 / 3**0.5),
        ("stochastic", SMOOTH, 0, 1 / 6**0.5),
        # Fractions 0, ¼, ½, ¾: errors 0, −¼, ±½ or +½, +¼.
        ("half_even", QUARTERS, 0, (0.375 / 4) ** 0.5),
        ("half_away", QUARTERS, 0.125, (0.375 / 4) ** 0.5),
        ("floor", QUARTERS, -0.375, (0.875 / 4) ** 0.5),
        ("stochastic", QUARTERS, 0, (0.625 / 4) ** 0.5),
    ],
)
def test_bias_and_spread_are_those_of_theory(mode, values, bias, rms):
    found = spread(mode, values, repeats=20, n=10_000, seed=1)
    assert found.bias[0] == pytest.approx(bias, abs=0.004)
    assert found.rms == pytest.approx(rms, rel=0.01)
    assert found.biased is (bias != 0)


def test_a_wide_interval_decides_nothing():
    assert spread("stochastic", SMOOTH, repeats=5, n=50, seed=0).biased is None


def test_nearest_stalls_and_stochastic_keeps_the_expectation():
    paths = accumulate(repeats=40, additions=500, seed=3)
    for mode in ("half_even", "half_away", "floor"):
        assert not paths.rounded[mode].any()
    exact = float(paths.exact[:, -1].mean())
    mean, low, high = paths.final("stochastic")
    assert low < exact < high
    # A sum of 500 Bernoulli numbers with p around 0.3.
    assert float(paths.rounded["stochastic"][:, -1].std()) == pytest.approx(
        (500 * 0.3 * 0.7) ** 0.5, rel=0.4
    )
    assert mean == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("name", FLOATS)
def test_float_sums_are_those_of_the_reference(name):
    total, dtype, expected = np.float32(0), DTYPES[name], []
    for _ in range(500):
        total = np.float32(total + np.float32(0.01)).astype(dtype).astype(np.float32)
        expected.append(float(total))
    assert float_sum(name, 500).tolist() == expected


def test_findings_name_every_rounding(result):
    for finding in result.findings[:2]:
        assert all(mode in finding for mode in MODES)
    assert "A bf16 accumulator stands still at 4 after" in " ".join(result.findings)


def test_another_seed_draws_other_numbers(result):
    other = studies["rounding"]().run(Options(seed=1, quick=True))
    biases = [[r.value for r in x.records if r.metric == "bias_lsb"] for x in (result, other)]
    assert biases[0] != biases[1]
    assert {r.seed for r in other.records} == {1}

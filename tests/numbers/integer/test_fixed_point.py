"""Fixed-point requantization against published values and big-integer arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bitsmith.errors import DataError
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import int8, int16, uint8
from bitsmith.numbers.integer import (
    fixed_point_multiplier,
    requantize,
    requantize_fixed_point,
    rounding_divide_by_power_of_two,
    saturating_rounding_doubling_high_multiply,
)

LOW, HIGH = -(2**31), 2**31 - 1
INT32 = st.one_of(st.integers(LOW, HIGH), st.sampled_from([LOW, LOW + 1, -1, 0, 1, HIGH]))
MANTISSA = st.one_of(st.integers(2**30, HIGH), st.sampled_from([2**30, HIGH]))


def i32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


# --- the reference, in gemmlowp's terms with Python's integers --------------------------------


def wrap(x: int) -> int:
    return (x - LOW) % 2**32 + LOW


def doubling_high(a: int, b: int) -> int:
    if a == b == LOW:
        return HIGH
    nudged = a * b + (2**30 if a * b >= 0 else 1 - 2**30)
    return abs(nudged) // 2**31 * (1 if nudged >= 0 else -1)  # toward zero, as C divides


def divide(x: int, exponent: int) -> int:
    mask = 2**exponent - 1
    return (x >> exponent) + ((x & mask) > (mask >> 1) + (x < 0))


def requantized(x: int, mantissa: int, shift: int, rounding: str, y: Encoding) -> int:
    if rounding == "double":
        high = doubling_high(wrap(x << max(shift, 0)), mantissa)
        result = divide(high, max(-shift, 0))
    else:
        result = wrap((x * mantissa + (1 << (30 - shift))) >> (31 - shift))
    code = wrap(result + y.zero_point)
    return min(max(code, y.format.code_min), y.format.code_max)


# --- published values -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("real", "mantissa", "shift"),
    [
        # TensorFlow Lite, quantization_util_test.cc: QuantizeMultiplierSmallerThanOneExp
        (0.25, 1073741824, -1),
        (0.50 - 5e-9, 2147483627, -1),
        (0.50 - 1e-10, 1073741824, 0),
        (0.50, 1073741824, 0),
        (0.75, 1610612736, 0),
        (1 - 1e-9, 2147483646, 0),
        # QuantizeMultiplierGreaterThanOne
        (1 + 1e-11, 1073741824, 1),
        (1.25, 1342177280, 1),
        (1.50, 1610612736, 1),
        (1.75, 1879048192, 1),
        (2 - 1e-9, 2147483647, 1),
        (2 - 1e-11, 1073741824, 2),
        (2.0, 1073741824, 2),
        # QuantizeMultiplierUnderflow
        (2.0**-31, 1073741824, -30),
        (2.0**-32, 1073741824, -31),
        (0.99 * 2.0**-32, 0, 0),
        (2.0**-33, 0, 0),
        # QuantizeMultiplierArray, its values that are not negative
        (0.0, 0, 0),
        (0.125, 1073741824, -2),
        (1.0, 1073741824, 1),
        (4.0, 1073741824, 3),
        # IntegerFrExp
        (123.45, 2071147315, 7),
    ],
)
def test_multipliers_of_tensorflow_lite(real: float, mantissa: int, shift: int) -> None:
    found = fixed_point_multiplier(real)
    assert [t.item() for t in found] == [mantissa, shift]
    assert all(t.dtype == torch.int32 and t.shape == () for t in found)


@pytest.mark.parametrize("rounding", ["double", "single"])
@pytest.mark.parametrize(
    ("x", "real", "result"),
    [
        # TensorFlow Lite, quantization_util_test.cc: MultiplyByQuantizedMultiplierInt32
        (0, 0.1, 0),
        (1, 0.0, 0),
        (10_000, 0.00097656, 10),
        (-10_000, 0.00097656, -10),
        (LOW, 0.00001, -21475),
        (HIGH, 0.00001, 21475),
    ],
)
def test_products_of_tensorflow_lite(x: int, real: float, result: int, rounding: str) -> None:
    wide = Encoding(1.0, 0, int16)  # wide enough for these results
    found = requantize_fixed_point(i32(x), *fixed_point_multiplier(real), wide, 0, rounding)
    assert found.item() == result


def test_the_largest_product_of_tensorflow_lite() -> None:
    # The same test: x = multiplier = 2^31 − 1 and shift −3 give ±round(x · x / 2^34).
    expected = round(HIGH * HIGH / 2**34)
    high = saturating_rounding_doubling_high_multiply(i32(HIGH, -HIGH), i32(HIGH))
    assert rounding_divide_by_power_of_two(high, 3).tolist() == [expected, -expected]


def test_the_paper_divides_minus_twelve_by_eight() -> None:
    # arXiv 1712.05877, appendix B: −12 / 2^3 is −2; Arm's RSHL alone gives −1.
    assert rounding_divide_by_power_of_two(i32(-12), 3).item() == -2


def test_only_the_most_negative_square_saturates() -> None:
    a = i32(LOW, LOW, LOW + 1, HIGH)
    b = i32(LOW, LOW + 1, LOW + 1, HIGH)
    found = saturating_rounding_doubling_high_multiply(a, b).tolist()
    assert found == [HIGH, HIGH, HIGH - 1, HIGH - 1]


# --- against the reference --------------------------------------------------------------------


@given(st.lists(st.tuples(INT32, INT32), min_size=1, max_size=20))
@example([(LOW, LOW), (LOW, HIGH), (-1, 2**30), (1, 2**30), (-3, 2**30)])
def test_doubling_high_multiply(pairs: list[tuple[int, int]]) -> None:
    a, b = (i32(*column) for column in zip(*pairs, strict=True))
    found = saturating_rounding_doubling_high_multiply(a, b)
    assert found.dtype == torch.int32
    assert found.tolist() == [doubling_high(*pair) for pair in pairs]


@given(st.lists(st.tuples(INT32, st.integers(0, 31)), min_size=1, max_size=20))
@example([(LOW, 31), (HIGH, 31), (LOW, 0), (2**30, 31), (-(2**30), 31)])
def test_rounding_divide(pairs: list[tuple[int, int]]) -> None:
    x, exponent = (i32(*column) for column in zip(*pairs, strict=True))
    found = rounding_divide_by_power_of_two(x, exponent)
    assert found.tolist() == [divide(*pair) for pair in pairs]
    halves = [Fraction(v, 2**e) for v, e in pairs]
    away = [int(math.copysign(math.floor(abs(h) + Fraction(1, 2)), h)) for h in halves]
    assert found.tolist() == away


@settings(deadline=None)
@given(
    st.lists(INT32, min_size=1, max_size=20),
    MANTISSA,
    st.integers(-31, 30),
    st.sampled_from(["double", "single"]),
    st.sampled_from([Encoding(1.0, -128, int8), Encoding(1.0, 100, uint8), Encoding(1, 7, int16)]),
)
@example([LOW, HIGH, -1, 1], HIGH, -31, "double", Encoding(1.0, 0, int8))
@example([LOW, HIGH, -1, 1], HIGH, 30, "double", Encoding(1.0, 0, int8))
@example([LOW, HIGH, -1, 1], HIGH, 30, "single", Encoding(1.0, 0, int8))
@example([LOW, HIGH, -1, 1], 2**30, -31, "single", Encoding(1.0, 0, int8))
def test_requantization(sums, mantissa, shift, rounding, y) -> None:
    found = requantize_fixed_point(i32(*sums), i32(mantissa), i32(shift), y, 0, rounding)
    assert found.dtype == y.format.dtype
    assert found.tolist() == [requantized(x, mantissa, shift, rounding, y) for x in sums]


@given(st.floats(2.0**-32, 2.0**29))
def test_the_multiplier_is_the_nearest_of_31_bits(real: float) -> None:
    mantissa, shift = (int(t) for t in fixed_point_multiplier(real))
    assert 2**30 <= mantissa < 2**31
    step = Fraction(2) ** (shift - 31)
    assert abs(mantissa * step - Fraction(real)) <= step / 2
    assert abs(mantissa * step - Fraction(real)) <= Fraction(real) / 2**31


# --- in the usual range -----------------------------------------------------------------------


def usual(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums as layers of 30 to 5,000 products have them, and multipliers that fit 8 bits."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.logspace(-14, -6, 64, 2, dtype=torch.float64)
    real *= 1 + torch.rand(64, generator=generator, dtype=torch.float64)
    noise = torch.randn(4000, 64, generator=generator, dtype=torch.float64)
    return (noise * 70 / real).to(torch.int32), real


@pytest.mark.parametrize("rounding", ["double", "single"])
@pytest.mark.parametrize("y", [Encoding(1.0, -3, int8), Encoding(1.0, 120, uint8)], ids=str)
def test_at_most_one_step_from_float32(y: Encoding, rounding: str) -> None:
    acc, real = usual(1)
    theirs = requantize(acc, real.float(), y, 1).int()
    mine = requantize_fixed_point(acc, *fixed_point_multiplier(real), y, 1, rounding).int()
    difference = (mine - theirs).abs()
    assert difference.max() <= 1
    # The first of two roundings, to 2^-n of a step (n is 6 to 13), turns near-ties into ties; a
    # single rounding and float32 part only where float32 itself is off, some 1e-6 of a step.
    share = difference.double().mean()
    assert 0.0003 < share < 0.003 if rounding == "double" else share < 0.00003
    exact = acc.double() * real
    tie = (exact - exact.floor() - 0.5).abs()
    assert (tie[difference > 0] < 2.0**-6).all()


@pytest.mark.parametrize("rounding", ["double", "single"])
def test_at_most_one_step_from_float32_at_the_ends_and_at_ties(rounding: str) -> None:
    real = 2.0 ** torch.arange(-31, 0, dtype=torch.float64)
    ends = torch.tensor([LOW, LOW + 1, HIGH - 1, HIGH])
    ties = ((2 * torch.arange(-300, 300)[:, None] + 1) / (2 * real)).clamp(LOW, HIGH).long()
    acc = torch.cat([ends[:, None].expand(-1, 31), ties, ties + 1, ties - 1]).clamp(LOW, HIGH)
    acc, y = acc.to(torch.int32), Encoding(1.0, 0, int8)
    theirs = requantize(acc, real.float(), y, 1).int()
    mine = requantize_fixed_point(acc, *fixed_point_multiplier(real), y, 1, rounding).int()
    assert (mine - theirs).abs().max() == 1


def test_channels_run_along_the_axis_of_any_layout() -> None:
    acc, real = usual(2)
    acc, real = acc[:60, :6].reshape(3, 4, 5, 6).permute(0, 3, 1, 2), real[:6]  # [3, 6, 4, 5]
    y, m = Encoding(1.0, 0, int8), fixed_point_multiplier(real)
    found = requantize_fixed_point(acc, *m, y, 1)
    assert found.shape == acc.shape
    for i in range(6):
        one = requantize_fixed_point(acc[:, i], m[0][i], m[1][i], y, 0)
        assert torch.equal(found[:, i], one)
    assert torch.equal(found, requantize_fixed_point(acc, *m, y, -3))
    last = requantize_fixed_point(acc.movedim(1, -1), *m, y, -1)
    assert torch.equal(last, found.movedim(1, -1))


# --- bad and unusual input --------------------------------------------------------------------


@pytest.mark.parametrize("real", [-0.1, float("nan"), float("inf"), 2.0**30, 1e300])
def test_multipliers_that_do_not_exist(real: float) -> None:
    with pytest.raises(DataError, match=r"1 of 2 multipliers are negative, not finite or not"):
        fixed_point_multiplier(torch.tensor([0.5, real], dtype=torch.float64))


def test_arguments_of_another_kind_are_refused() -> None:
    y, m = Encoding(1.0, 0, int8), fixed_point_multiplier(torch.tensor([0.5, 0.25]))
    acc = torch.zeros(3, 2, dtype=torch.int32)
    with pytest.raises(DataError, match=r"accumulators are int32, not torch.int64"):
        requantize_fixed_point(acc.long(), *m, y, 1)
    with pytest.raises(DataError, match=r"index of axis 0 of \[3, 2\], not \[2\]"):
        requantize_fixed_point(acc, *m, y, 0)
    with pytest.raises(DataError, match=r"index of axis 5"):
        requantize_fixed_point(acc, *m, y, 5)
    with pytest.raises(DataError, match=r"factors are integers, not torch.float32"):
        requantize_fixed_point(acc, m[0].float(), m[1], y, 1)
    with pytest.raises(DataError, match="'double' or 'single', not 'half_even'"):
        requantize_fixed_point(acc, *m, y, 1, "half_even")
    with pytest.raises(DataError, match="shift is from -31 to 30, not -32 to -32"):
        requantize_fixed_point(acc, m[0], torch.tensor(-32), y, 1)
    with pytest.raises(DataError, match="mantissa is from 0 to 2147483647, not -1 to -1"):
        requantize_fixed_point(acc, torch.tensor(-1), m[1], y, 1)
    with pytest.raises(DataError, match=r"takes int32, not torch.int64"):
        saturating_rounding_doubling_high_multiply(acc, acc.long())
    with pytest.raises(DataError, match=r"takes int32, not torch.float32"):
        rounding_divide_by_power_of_two(acc.float(), 3)
    for exponent in (-1, 32, 1.5):
        with pytest.raises(DataError, match=f"from 0 to 31, not {exponent}"):
            rounding_divide_by_power_of_two(acc, exponent)


def test_no_sums_give_no_codes() -> None:
    y, m = Encoding(1.0, 0, int8), fixed_point_multiplier(torch.tensor([0.5, 0.25]))
    for shape in ((0, 2), (0, 2, 5), (4, 2, 0)):
        acc = torch.zeros(shape, dtype=torch.int32)
        assert requantize_fixed_point(acc, *m, y, 1).shape == shape
    nothing = torch.zeros(0)
    assert requantize_fixed_point(
        torch.zeros(3, 0, dtype=torch.int32), *fixed_point_multiplier(nothing), y, 1
    ).shape == (3, 0)
    assert requantize_fixed_point(i32(7)[0], m[0][0], m[1][0], y, 0).item() == 4  # 3.5, a scalar

"""Dyadic requantization against exact fractions, and where it is the fixed-point way."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsmith.errors import DataError
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import int8, int16, uint8
from bitsmith.numbers.integer import (
    dyadic_multiplier,
    fixed_point_multiplier,
    requantize,
    requantize_dyadic,
    requantize_fixed_point,
    rescale,
)

LOW, HIGH = -(2**31), 2**31 - 1
HALF = Fraction(1, 2)


@given(st.floats(2.0**-32, 0.999), st.integers(1, 31))
def test_the_nearest_of_its_width(real: float, bits: int) -> None:
    b, c = (int(t) for t in dyadic_multiplier(real, bits))
    assert 2 ** (bits - 1) <= b < 2**bits
    assert 0 <= c <= bits + 31
    error = abs(Fraction(b, 2**c) - Fraction(real))
    assert error <= Fraction(real) / 2**bits
    for other in (b - 1, b + 1):
        assert error <= abs(Fraction(other, 2**c) - Fraction(real))


@settings(deadline=None)
@given(
    st.lists(st.integers(LOW, HIGH), min_size=1, max_size=9),
    st.floats(0.0, 3.0),
    st.integers(2, 31),
    st.sampled_from([Encoding(1.0, -9, int8), Encoding(1.0, 255, uint8), Encoding(1, 0, int16)]),
)
def test_one_rounding_of_the_exact_product(sums, real, bits, y) -> None:
    sums = [LOW, HIGH, -1, 1, *sums]
    b, c = dyadic_multiplier(real, bits)
    found = requantize_dyadic(torch.tensor(sums, dtype=torch.int32), b, c, y, 0).tolist()
    for x, code in zip(sums, found, strict=True):
        product = Fraction(x * int(b), 2 ** int(c))
        expected = math.floor(product + HALF) + y.zero_point
        assert code == min(max(expected, y.format.code_min), y.format.code_max)
        # The stated bound, on codes that were not clamped.
        if code == expected:
            exact = Fraction(x) * Fraction(real)
            assert abs(code - y.zero_point - exact) <= HALF + abs(exact) / 2**bits


def test_with_31_bits_it_is_fixed_point_with_a_single_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.logspace(-31, 0, 90, 2, dtype=torch.float64)
    acc = torch.randint(LOW, HIGH, (500, 90), generator=generator, dtype=torch.int32)
    acc >>= torch.randint(0, 31, (500, 90), generator=generator, dtype=torch.int32)
    y = Encoding(1.0, 5, int8)
    b, c = dyadic_multiplier(real, 31)
    mantissa, shift = fixed_point_multiplier(real)
    assert torch.equal(b, mantissa)
    assert torch.equal(c, 31 - shift)
    single = requantize_fixed_point(acc, mantissa, shift, y, 1, "single")
    assert torch.equal(requantize_dyadic(acc, b, c, y, 1), single)
    assert single.unique().numel() == 256


@pytest.mark.parametrize(
    ("bits", "least", "most"), [(8, 0.02, 0.15), (16, 0.0001, 0.0006), (24, 0, 0.00002)]
)
def test_width_decides_how_often_float32_differs(bits: int, least: float, most: float) -> None:
    generator = torch.Generator().manual_seed(1)
    real = 0.001 + 0.01 * torch.rand(64, generator=generator, dtype=torch.float64)
    noise = torch.randn(4000, 64, generator=generator, dtype=torch.float64)
    acc, y = (noise * 40 / real).to(torch.int32), Encoding(1.0, 0, int8)
    theirs = requantize(acc, real.float(), y, 1).int()
    mine = requantize_dyadic(acc, *dyadic_multiplier(real, bits), y, 1).int()
    assert (mine - theirs).abs().max() <= 1
    assert least <= (mine != theirs).double().mean() < most


def test_zero_and_what_no_accumulator_reaches() -> None:
    b, c = dyadic_multiplier(torch.tensor([0.0, 2.0**-33, 2.0**-32], dtype=torch.float64), 16)
    assert b.tolist() == [0, 0, 1 << 15]
    assert c.tolist() == [0, 0, 47]
    acc = torch.tensor([[LOW] * 3, [HIGH] * 3], dtype=torch.int32)
    codes = requantize_dyadic(acc, b, c, Encoding(1.0, 7, uint8), 1)
    assert codes.tolist() == [[7, 7, 7], [7, 7, 7]]  # −0.5 goes up


def test_a_sum_in_pieces_is_the_sum_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    y = Encoding(1.0, 0, int8)
    b, c = dyadic_multiplier(0.003 * torch.rand(5, generator=generator) + 1e-4)
    for shape in ((7, 5, 3), (2, 5, 40), (1, 5), (1, 5, 1, 33)):
        acc = torch.randint(-40_000, 40_000, shape, generator=generator, dtype=torch.int32)
        whole = requantize_dyadic(acc, b, c, y, 1)
        for piece in (1, 8, 30):
            monkeypatch.setattr(rescale, "PIECE", piece)
            assert torch.equal(requantize_dyadic(acc, b, c, y, 1), whole)
            assert torch.equal(requantize_dyadic(acc, b[0], c[0], y, 0)[:, 0], whole[:, 0])
        monkeypatch.undo()


def test_bad_input() -> None:
    with pytest.raises(DataError, match="1 to 31 bits, not 32"):
        dyadic_multiplier(0.5, 32)
    with pytest.raises(DataError, match=r"not below 2\^4, the first 16.0"):
        dyadic_multiplier(16.0, 4)
    assert [int(t) for t in dyadic_multiplier(15.0, 4)] == [15, 0]
    y, acc = Encoding(1.0, 0, int8), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(DataError, match="c from 0 to 62, not 63 to 63"):
        requantize_dyadic(acc, torch.tensor(1), torch.tensor(63), y, 0)
    with pytest.raises(DataError, match="b from 0 to 2147483647, not -2 to 1"):
        requantize_dyadic(acc, torch.tensor([1, -2]), torch.tensor(3), y, 0)

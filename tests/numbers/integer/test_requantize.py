"""Requantization against exact rational arithmetic; the real runtime is in the other files."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.integer import dequantize_accumulator, multiplier, requantize


@settings(deadline=None)
@given(
    st.integers(-(2**31), 2**31 - 1),
    st.floats(2.0**-40, 4.0, width=32),
    st.integers(0, 255),
)
def test_one_rounding_to_float32_then_half_to_even(acc, ratio, zero_point):
    product = Fraction(float(np.float32(acc))) * Fraction(ratio)
    rounded = Fraction(float(np.float32(np.float64(np.float32(acc)) * np.float64(ratio))))
    assert abs(rounded - product) <= abs(product) * Fraction(1, 2**24)
    expected = min(max(round(rounded) + zero_point, 0), 255)  # Python rounds half to even
    y = Encoding(1.0, zero_point, integer_format(8, signed=False))
    codes = requantize(torch.tensor([acc], dtype=torch.int32), torch.tensor(ratio), y, 0)
    assert codes.item() == expected


def test_ties_go_to_even_before_the_zero_point():
    y = Encoding(1.0, 1, integer_format(8, signed=True))
    acc = torch.tensor([-5, -3, -1, 1, 3, 5], dtype=torch.int32)
    assert requantize(acc, torch.tensor(0.5), y, 0).tolist() == [-1, -1, 1, 1, 3, 3]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_channels_run_along_the_axis(axis):
    acc = torch.full((3, 3, 3), 10, dtype=torch.int32)
    y = Encoding(1.0, 0, integer_format(8, signed=False))
    ratio = torch.tensor([0.1, 1.0, 2.0])
    codes = requantize(acc, ratio, y, axis)
    assert [codes.select(axis, i).unique().item() for i in range(3)] == [1, 10, 20]
    real = dequantize_accumulator(acc, ratio, axis)
    assert [real.select(axis, i).unique().item() for i in range(3)] == [1.0, 10.0, 20.0]


def test_multiplier_rounds_twice_in_float32():
    rng = np.random.default_rng(0)
    x, w, y = rng.uniform(1e-4, 1, (3, 10_000)).astype(np.float32)
    expected = (x * w) / y
    found = [
        multiplier(float(a), torch.tensor(b), float(c)) for a, b, c in zip(x, w, y, strict=True)
    ]
    assert (torch.stack(found).numpy() == expected).all()
    assert (x * (w / y) != expected).any()


def test_narrow_output_formats_saturate_at_their_own_ends():
    y = Encoding(1.0, 3, integer_format(4, signed=False))
    acc = torch.tensor([-100, 0, 5, 100], dtype=torch.int32)
    assert requantize(acc, torch.tensor(1.0), y, 0).tolist() == [0, 3, 8, 15]

"""Minifloats, bit for bit against ml_dtypes and numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bitsmith.errors import SchemeError
from bitsmith.numbers.formats.minifloat import (
    MinifloatFormat,
    bf16,
    e8m0,
    fp4_e2m1fn,
    fp6_e2m3fn,
    fp6_e3m2fn,
    fp8_e4m3fn,
    fp8_e5m2,
    fp16,
    fp32,
)

PEERS = [
    (fp16, np.float16),
    (bf16, ml_dtypes.bfloat16),
    (fp8_e4m3fn, ml_dtypes.float8_e4m3fn),
    (fp8_e5m2, ml_dtypes.float8_e5m2),
    (fp6_e2m3fn, ml_dtypes.float6_e2m3fn),
    (fp6_e3m2fn, ml_dtypes.float6_e3m2fn),
    (fp4_e2m1fn, ml_dtypes.float4_e2m1fn),
    (MinifloatFormat("e3m4", 3, 4, 3, True, "ieee"), ml_dtypes.float8_e3m4),
    (MinifloatFormat("e4m3", 4, 3, 7, True, "ieee"), ml_dtypes.float8_e4m3),
]
each = pytest.mark.parametrize(("number", "peer"), PEERS, ids=[p[0].name for p in PEERS])


def peer_codes(x: NDArray[np.float32], peer: type) -> NDArray[np.int32]:
    """Return the bit patterns of a cast of the peer's, one byte (or int16) each."""
    cast = x.astype(peer)
    return cast.view(np.uint8 if cast.itemsize == 1 else np.int16).astype(np.int32)


def points(number: MinifloatFormat) -> NDArray[np.float32]:
    """Return all values, all midpoints, and the float neighbours of both, within the range."""
    grid = number.grid.double().numpy()
    x = np.concatenate([grid, (grid[1:] + grid[:-1]) / 2]).astype(np.float32)
    with np.errstate(over="ignore"):
        sides = [np.nextafter(x, np.float32(end)) for end in (-np.inf, np.inf)]
    x = np.concatenate([x, *sides])
    return x[(x >= number.min) & (x <= number.max)]


def encode(number: MinifloatFormat, x: NDArray[np.float32]) -> NDArray[np.int32]:
    return number.encode(torch.from_numpy(x)).int().numpy()


@each
def test_every_code_has_the_value_of_ml_dtypes(number: MinifloatFormat, peer: type) -> None:
    """Infinities and NaN included."""
    held = np.uint8 if number.bits <= 8 else np.int16
    codes = np.arange(2**number.bits).astype(held)
    values = codes.view(peer).astype(np.float32)
    mine = number.decode(torch.from_numpy(codes)).numpy()
    assert np.array_equal(mine, values, equal_nan=True)
    assert np.array_equal(np.signbit(mine[values == 0]), np.signbit(values[values == 0]))
    finite = codes[np.isfinite(values)].astype(np.int32)
    assert sorted(number.codes.tolist()) == sorted(finite.tolist())
    assert number.distinct == len(finite) - 1
    info = ml_dtypes.finfo(peer)
    assert (number.max, number.step) == (float(info.max), float(info.smallest_subnormal))


@each
def test_values_midpoints_and_neighbours_encode_as_ml_dtypes(
    number: MinifloatFormat, peer: type
) -> None:
    x = points(number)
    assert np.array_equal(encode(number, x), peer_codes(x, peer))


@each
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_float_in_range_encodes_as_ml_dtypes(
    number: MinifloatFormat, peer: type, data: st.DataObject
) -> None:
    within = st.floats(number.min, number.max, width=32)
    x = np.array(data.draw(st.lists(within, min_size=1, max_size=30)), np.float32)
    assert np.array_equal(encode(number, x), peer_codes(x, peer))


@pytest.mark.parametrize("number", [p[0] for p in PEERS], ids=str)
def test_beyond_the_range_every_format_saturates(number: MinifloatFormat) -> None:
    x = number.max * torch.tensor([1.0, 1.0001, 1.001, 1.07, 1.5, 2.0, 1e30, float("inf")])
    assert number.decode(number.encode(x)).tolist() == [number.max] * 8
    assert number.decode(number.encode(-x)).tolist() == [-number.max] * 8


def test_fp32_is_the_bit_pattern_and_saturates() -> None:
    rng = np.random.default_rng(0)
    bits = torch.from_numpy(rng.integers(-(1 << 31), 1 << 31, 100_000).astype(np.int32))
    bits = bits[bits.view(torch.float32).isfinite()]
    assert torch.equal(fp32.encode(bits.view(torch.float32)), bits)
    assert torch.equal(fp32.decode(bits).view(torch.int32), bits)
    infinite = torch.tensor([float("inf"), -float("inf")])
    largest = float(np.finfo(np.float32).max)
    assert fp32.decode(fp32.encode(infinite)).tolist() == [largest, -largest]
    assert (fp32.min, fp32.max, fp32.step) == (-largest, largest, 2.0**-149)
    with pytest.raises(SchemeError, match="too many to list"):
        _ = fp32.codes
    with pytest.raises(SchemeError, match="too many to list"):
        _ = fp32.grid


def test_fp32_codes_share_no_memory_with_values() -> None:
    x = torch.ones(3)
    codes = fp32.encode(x)
    fp32.decode(codes).zero_()
    assert codes.tolist() == [127 << 23] * 3
    codes.zero_()
    assert x.tolist() == [1.0, 1.0, 1.0]


def test_both_zeros_are_listed_and_kept() -> None:
    assert fp4_e2m1fn.codes.tolist() == [15, 14, 13, 12, 11, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7]
    zeros = torch.tensor([-0.0, 0.0, -1e-45, 1e-45])
    assert fp4_e2m1fn.encode(zeros).tolist() == [8, 0, 8, 0]
    assert fp16.encode(zeros).tolist() == [-32768, 0, -32768, 0]
    assert bf16.encode(zeros).tolist() == [-32768, 0, -32768, 0]


def test_e8m0_holds_the_values_of_ml_dtypes() -> None:
    codes = np.arange(256, dtype=np.uint8)
    values = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    mine = e8m0.decode(torch.from_numpy(codes)).numpy()
    assert np.array_equal(mine, values, equal_nan=True)
    assert np.isnan(values).nonzero()[0].tolist() == [255]
    assert (e8m0.min, e8m0.max, e8m0.signed, e8m0.bits) == (2.0**-127, 2.0**127, False, 8)
    assert e8m0.fields == (0, 8, 0)


def test_e8m0_differs_from_ml_dtypes_only_at_ties_and_below_its_normal_numbers() -> None:
    """ml_dtypes sends ties up, and below 2^−126 all that is above 2^−127."""
    x = points(e8m0)
    differ = encode(e8m0, x) != peer_codes(x, ml_dtypes.float8_e8m0fnu)
    lowest = np.float32(2.0**-127)
    ties_to_lower = {1.5 * 2.0 ** (code - 127) for code in range(2, 254, 2)}
    early = {float(v) for v in x if lowest < v <= 1.5 * lowest}
    assert {float(v) for v in x[differ]} == ties_to_lower | early
    middle = np.linspace(lowest, 2 * lowest, 1000, dtype=np.float32)[1:]
    assert set(peer_codes(middle, ml_dtypes.float8_e8m0fnu)) == {1}


@pytest.mark.parametrize("value", [0.0, -0.0, -1.0, -3e38, 1e-45, -float("inf")])
def test_e8m0_saturates_what_is_not_positive(value: float) -> None:
    assert e8m0.encode(torch.tensor([value, 3.4e38, float("inf")])).tolist() == [0, 254, 254]


@pytest.mark.parametrize(
    ("fields", "reasons"),
    [
        ((4, 3, 7, False, "nan"), "needs a sign"),
        ((0, 3, 7, True, "nan"), "at least one bit of exponent and mantissa"),
        ((5, 0, 7, True, "none"), "at least one bit of exponent and mantissa"),
        ((6, 9, 31, True, "ieee"), "16 bits; beyond 8 bits there are fp16, bf16 and fp32"),
        ((5, 9, 15, False, "ieee"), "needs a sign.*; 14 bits"),
        ((4, 3, 101, True, "nan"), r"bias 101 is not in -40 … 100"),
        ((4, 3, 7, True, "fnuz"), "specials are ieee, nan, none or scale, not 'fnuz'"),
        ((5, 0, 15, False, "scale"), "there is one, e8m0"),
    ],
)
def test_what_cannot_exist_says_why(fields: tuple[int, int, int, bool, str], reasons: str) -> None:
    with pytest.raises(SchemeError, match=f"odd cannot exist: .*{reasons}"):
        MinifloatFormat("odd", *fields)  # type: ignore[arg-type]  # on purpose

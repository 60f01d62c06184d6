"""The contract of NumberFormat, for every registered format and a few that are made here."""

from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bitsmith.errors import UnknownNameError
from bitsmith.numbers.formats import NumberFormat, formats
from bitsmith.numbers.formats.codebook import LearnedFormat, table_format
from bitsmith.numbers.formats.minifloat import MinifloatFormat, fp32
from bitsmith.numbers.lookup import thresholds

Floats = NDArray[np.float32]

REGISTERED = [formats[name] for name in formats]
MADE = [
    MinifloatFormat("e1m2", 1, 2, 0, True, "none"),
    MinifloatFormat("e1m6", 1, 6, 1, True, "none"),
    MinifloatFormat("e3m4", 3, 4, 3, True, "ieee"),
    MinifloatFormat("e6m1", 6, 1, 31, True, "nan"),
    MinifloatFormat("e5m1_low", 5, 1, 100, True, "none"),
    MinifloatFormat("e6m1_high", 6, 1, -40, True, "none"),
    table_format("even", np.linspace(-3, 5, 13)),
    table_format("two", [0.25, -7.0]),
    table_format("full", np.random.default_rng(3).standard_cauchy(256)),
]
WITH_VALUES = [n for n in [*REGISTERED, *MADE] if not isinstance(n, LearnedFormat) and n != fp32]
SHORT = [n for n in WITH_VALUES if n.bits <= 8]
FLUSHED = [n for n in WITH_VALUES if n.family in ("minifloat", "logarithmic")]
each_with_values = pytest.mark.parametrize("number", WITH_VALUES, ids=str)
each_short = pytest.mark.parametrize("number", SHORT, ids=str)


def distinct(number: NumberFormat) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Return the different values, ascending, and the code of each (of +0 where there are two)."""
    grid, codes = number.grid.double().numpy(), number.codes.numpy()
    last = np.append(np.diff(grid) > 0, True)
    return grid[last], codes[last]


def midpoints(number: NumberFormat) -> NDArray[np.float64]:
    """Return the midpoints of neighbours in float64, which holds each of them exactly."""
    values, _ = distinct(number)
    middle = values[1:] / 2 + values[:-1] / 2
    if number.bits <= 8:
        for low, high, m in zip(values, values[1:], middle, strict=False):
            assert Fraction(low) + Fraction(high) == 2 * Fraction(m)
    return middle


def nearest(number: NumberFormat, x: Floats) -> NDArray[np.int32]:
    """Return the code of the nearest value, ties to the even code, from the exact midpoints."""
    _, codes = distinct(number)
    wide, middle = x.astype(np.float64), midpoints(number)
    index = np.searchsorted(middle, wide, side="left")
    tie = np.append(middle, np.nan)[index] == wide
    index = index + (tie & (codes[index] % 2 == 1))
    found = codes[index]
    listed, grid = number.codes.numpy(), number.grid.numpy()
    negative_zero = listed[(grid == 0) & np.signbit(grid)]
    if len(negative_zero):
        found = np.where((found == 0) & np.signbit(x), negative_zero[0], found)
    return found


def around(points: NDArray[np.float64]) -> Floats:
    """Return the nearest float32 of each point and its two neighbours on either side."""
    with np.errstate(over="ignore"):
        x = points.astype(np.float32)
        up, down = (np.nextafter(x, np.float32(e)) for e in (np.inf, -np.inf))
        up2, down2 = np.nextafter(up, np.float32(np.inf)), np.nextafter(down, np.float32(-np.inf))
    return np.concatenate([x, up, down, up2, down2])


def far_and_small(number: NumberFormat) -> Floats:
    ends = np.array([number.min, number.max, 1.0])
    with np.errstate(over="ignore"):
        beyond = np.concatenate([ends * s for s in (0.9999, 1, 1.0001, 1.5, 2, -1, -2)])
        beyond = beyond.astype(np.float32)
    tiny = [0.0, 1e-45, 3e-45, 1e-40, 2.0**-127, 2.0**-126, 2.0**-125, 1.5 * 2.0**-127]
    special = np.array([*tiny, 1e9, 3.4e38, np.inf], np.float32)
    return np.concatenate([beyond, around(np.array(tiny)), special, -special])


def random_floats(seed: int, n: int = 20_000) -> Floats:
    """Return floats of every exponent, without NaN."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 1 << 32, n, dtype=np.uint32).view(np.float32)
    near = rng.standard_normal(n) * np.exp2(rng.integers(-9, 9, n))
    return np.concatenate([x[~np.isnan(x)], near.astype(np.float32)])


def encode(number: NumberFormat, x: Floats) -> NDArray[np.int32]:
    codes = number.encode(torch.from_numpy(x))
    assert codes.dtype == number.dtype
    return codes.int().numpy()


@each_with_values
def test_every_listed_code_round_trips_and_the_grid_ascends(number: NumberFormat) -> None:
    codes, grid = number.codes, number.grid
    assert codes.dtype == torch.int32
    assert grid.dtype == torch.float32
    assert bool(grid.isfinite().all())
    assert torch.equal(number.encode(number.decode(codes.to(number.dtype))).int(), codes)
    assert torch.equal(number.decode(codes), grid)
    assert len(codes.unique()) == len(codes)
    twice = grid[1:] == grid[:-1]
    assert bool((grid.diff() >= 0).all())
    assert grid[1:][twice].tolist() in ([], [0.0])
    assert bool(grid[:-1][twice].signbit().all())
    assert not bool(grid[1:][twice].signbit().any())


@each_with_values
def test_a_format_describes_its_grid(number: NumberFormat) -> None:
    values, _ = distinct(number)
    assert (number.min, number.max) == (values[0], values[-1])
    assert number.step == np.diff(values).min()
    assert number.signed == (values[0] < 0)
    assert sum(number.fields) == number.bits
    assert len(number.codes) <= 2**number.bits
    assert len(values) > 2 ** (number.bits - 1)
    assert repr(number) == number.name


@each_with_values
def test_encoding_is_nearest_at_values_midpoints_and_their_neighbours(
    number: NumberFormat,
) -> None:
    values, _ = distinct(number)
    x = around(np.concatenate([values, midpoints(number)]))
    assert np.array_equal(encode(number, x), nearest(number, x))


@each_with_values
def test_encoding_saturates_and_is_nearest_for_tiny_numbers(number: NumberFormat) -> None:
    x = far_and_small(number)
    assert np.array_equal(encode(number, x), nearest(number, x))


@each_with_values
def test_encoding_is_nearest_for_floats_of_every_exponent(number: NumberFormat) -> None:
    x = random_floats(number.bits)
    assert np.array_equal(encode(number, x), nearest(number, x))


@each_short
@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30))
def test_encoding_is_nearest_for_any_floats(number: NumberFormat, drawn: list[float]) -> None:
    x = np.array(drawn, np.float32)
    assert np.array_equal(encode(number, x), nearest(number, x))


@each_short
def test_encoding_changes_exactly_at_the_thresholds(number: NumberFormat) -> None:
    values, codes = distinct(number)
    bounds = thresholds(values.tolist(), codes.tolist()).numpy()
    below = np.nextafter(bounds, np.float32(-np.inf))
    # Comparing values, as zero has two codes.
    decoded = [
        number.decode(number.encode(torch.from_numpy(x))).double().numpy() for x in (below, bounds)
    ]
    assert np.array_equal(decoded[0], values[:-1])
    assert np.array_equal(decoded[1], values[1:])


@pytest.mark.parametrize("number", FLUSHED, ids=str)
def test_a_processor_that_flushes_denormals_changes_no_code(number: NumberFormat) -> None:
    """Comparisons then take them for zero, which tables and int1 cannot help."""
    x = far_and_small(number)
    expected = nearest(number, x)
    given_x = torch.from_numpy(x)
    try:
        torch.set_flush_denormal(True)
        codes = number.encode(given_x)
    finally:
        torch.set_flush_denormal(False)
    assert np.array_equal(codes.int().numpy(), expected)


@each_with_values
def test_any_layout_and_float_type_gives_the_same_codes(number: NumberFormat) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    expected = number.encode(x)
    kept = x.clone()
    wide = torch.stack([x, -x], dim=-1)
    assert torch.equal(number.encode(x.t()), expected.t())
    assert torch.equal(number.encode(wide[..., 0]), expected)
    assert torch.equal(number.encode(x[:1].expand(5, 4)), expected[:1].expand(5, 4))
    assert torch.equal(number.encode(x.double()), expected)
    assert torch.equal(number.encode(x.bfloat16()), expected)
    assert torch.equal(number.encode(x[0, 0]), expected[0, 0])
    trained = number.encode(x.clone().requires_grad_())
    assert torch.equal(trained, expected)
    assert not trained.requires_grad
    assert torch.equal(x, kept)
    assert number.encode(x[:0]).shape == (0, 4)
    assert torch.equal(number.decode(expected.t()), number.decode(expected).t())
    assert number.decode(expected[:0]).shape == (0, 4)
    assert number.decode(expected[0, 0]).shape == ()


@pytest.mark.parametrize("number", REGISTERED, ids=str)
def test_registered_formats_are_data(number: NumberFormat) -> None:
    if number.bits <= 8 and not isinstance(number, LearnedFormat):
        number.encode(torch.zeros(1))  # what it computed once is not part of it
    same = pickle.loads(pickle.dumps(number))
    assert same == number
    assert hash(same) == hash(number)
    assert {number: 1}[same] == 1
    assert formats[number.name] is number
    assert [n for n in REGISTERED if n == number] == [number]


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown format 'itn4'; did you mean 'int4'"):
        formats["itn4"]

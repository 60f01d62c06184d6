"""Every registered format against brute force over its sorted grid."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from bitsmith.errors import SchemeError, UnknownNameError
from bitsmith.numbers.formats import NumberFormat, formats
from bitsmith.numbers.formats.integer import IntegerFormat, integer_format

ALL = pytest.mark.parametrize("number", [formats[name] for name in formats], ids=str)


def nearest(number: NumberFormat, x: np.ndarray) -> np.ndarray:
    """Return the code of the nearest value, ties to the even code, by exhaustive search."""
    grid, codes = number.grid.double().numpy(), number.codes.numpy()
    # Nothing beyond ±1000 changes the answer, and there every distance is exact in float64.
    distance = np.abs(x.astype(np.float64).clip(-1000, 1000)[:, None] - grid[None, :])
    best = distance.min(1, keepdims=True)
    even_first = np.where(distance == best, codes[None, :] % 2, 2)
    return codes[even_first.argmin(1)]


@ALL
def test_the_grid_is_sorted_and_each_code_round_trips(number: NumberFormat) -> None:
    assert len(number.codes) == 2**number.bits
    assert bool((number.grid.diff() > 0).all())
    assert (number.min, number.max) == (float(number.grid[0]), float(number.grid[-1]))
    assert torch.equal(number.encode(number.decode(number.codes)).int(), number.codes)


@ALL
def test_encoding_is_nearest_at_midpoints_neighbours_and_far_out(number: NumberFormat) -> None:
    grid = number.grid.numpy()
    middle = (grid[1:] + grid[:-1]) / 2
    special = np.concatenate([grid, middle])
    inf = np.float32(np.inf)
    far = np.array([1e9, -1e9, 3e38, -3e38, 1e-45, -1e-45, 0.0, -0.0], np.float32)
    x = np.concatenate(
        [special, np.nextafter(special, inf), np.nextafter(special, -inf), far]
    ).astype(np.float32)
    assert np.array_equal(number.encode(torch.from_numpy(x)).int().numpy(), nearest(number, x))


@pytest.mark.parametrize("name", ["int2", "int4", "uint2", "uint4"])
def test_integer_formats_hold_the_values_of_ml_dtypes(name: str) -> None:
    info = ml_dtypes.iinfo(getattr(ml_dtypes, name))
    assert (formats[name].min, formats[name].max) == (info.min, info.max)
    codes = formats[name].codes.numpy()
    reference = codes.astype(getattr(ml_dtypes, name)).astype(np.float32)
    assert np.array_equal(formats[name].grid.numpy(), reference)


def test_every_width_is_registered_under_its_name() -> None:
    for bits in range(1, 9):
        for signed in (False, True):
            number = integer_format(bits, signed)
            assert isinstance(number, IntegerFormat)
            assert formats[number.name] == number
            assert repr(number) == number.name
            assert number.dtype == (torch.int8 if signed else torch.uint8)


@pytest.mark.parametrize("bits", [0, 9, -1, 16])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(SchemeError, match=f"1 to 8 bits, not {bits}"):
        integer_format(bits, signed=True)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown format 'itn4'; did you mean 'int4'"):
        formats["itn4"]

"""Integer formats: names, values of ml_dtypes, and what cannot exist."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from bitsmith.errors import SchemeError
from bitsmith.numbers.formats import formats
from bitsmith.numbers.formats.integer import IntegerFormat, integer_format, ternary


@pytest.mark.parametrize("name", ["int2", "int4", "uint2", "uint4"])
def test_integer_formats_hold_the_values_of_ml_dtypes(name: str) -> None:
    info = ml_dtypes.iinfo(getattr(ml_dtypes, name))
    assert (formats[name].min, formats[name].max) == (info.min, info.max)
    codes = formats[name].codes.numpy()
    reference = codes.astype(getattr(ml_dtypes, name)).astype(np.float32)
    assert np.array_equal(formats[name].grid.numpy(), reference)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [*range(1, 9), 16])
def test_every_width_is_registered_under_its_name(bits: int, signed: bool) -> None:
    number = integer_format(bits, signed)
    assert isinstance(number, IntegerFormat)
    assert formats[number.name] == number
    assert number.grid.tolist() == ([-1, 1] if number.binary else number.codes.tolist())
    if bits <= 8:
        assert number.dtype == (torch.int8 if signed and bits > 1 else torch.uint8)


def test_binary_and_ternary() -> None:
    assert formats["int1"].grid.tolist() == [-1.0, 1.0]
    assert formats["int1"].encode(torch.tensor([-0.1, 0.0, 0.1])).tolist() == [1, 0, 0]
    assert formats["uint1"].grid.tolist() == [0.0, 1.0]
    assert ternary.grid.tolist() == [-1.0, 0.0, 1.0]
    assert ternary.encode(torch.tensor([-9.0, -0.5, 0.51])).tolist() == [-1, 0, 1]


@pytest.mark.parametrize("bits", [0, 9, -1, 15, 32])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(SchemeError, match=f"1 to 8 or 16 bits, not {bits}"):
        integer_format(bits, signed=True)


def test_only_ternary_leaves_out_its_lowest_code() -> None:
    with pytest.raises(SchemeError, match="only ternary"):
        IntegerFormat(4, signed=True, narrow=True)

"""Every registered format says what it is."""

from __future__ import annotations

import json

import pytest

from bitsmith.numbers.description import describe
from bitsmith.numbers.formats import formats
from bitsmith.numbers.formats.codebook import LearnedFormat


@pytest.mark.parametrize("name", list(formats))
def test_every_registered_format_is_described(name: str) -> None:
    number = formats[name]
    described = describe(number)
    assert list(described) == [
        "name", "family", "bits", "sign_bits", "exponent_bits", "mantissa_bits",
        "min", "max", "step", "values",
    ]  # fmt: skip
    assert json.loads(json.dumps(described)) == described
    parts = [described[f"{part}_bits"] for part in ("sign", "exponent", "mantissa")]
    assert sum(part for part in parts if isinstance(part, int)) == described["bits"]
    if isinstance(number, LearnedFormat):
        assert (described["min"], described["max"], described["step"]) == (None, None, None)
        assert described["values"] == 2**number.bits
    elif number.bits <= 16:
        assert described["values"] == len(number.grid.unique())


def test_fp32_counts_its_values_without_listing_them() -> None:
    finite_codes = 2 * 255 * 2**23  # every exponent but the largest, both signs
    assert describe(formats["fp32"])["values"] == finite_codes - 1

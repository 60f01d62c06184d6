"""Bits and values of numbers in float formats, against struct and ml_dtypes."""

import struct

import ml_dtypes
import numpy as np
import pytest

from bitsmith.numbers.formats import formats
from bitsmith.studies import Options, studies
from bitsmith.studies.numbers import FLOATS, NUMBERS, store

DTYPES = {
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp6_e2m3fn": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2fn": ml_dtypes.float6_e3m2fn,
    "fp4_e2m1fn": ml_dtypes.float4_e2m1fn,
}


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("number", [*NUMBERS.values(), -0.1, -3.7, 1.0, 5e-8, 0.0625])
def test_bits_are_those_of_the_reference(name, number):
    dtype = DTYPES[name]
    largest = float(ml_dtypes.finfo(dtype).max)
    expected = np.array(np.clip(np.float32(number), -largest, largest)).astype(dtype)
    found = store(number, formats[name])
    width = sum(map(len, found.bits))
    raw = int.from_bytes(expected.tobytes(), "little")
    assert "".join(found.bits) == f"{raw:0{width}b}"[-width:]
    assert tuple(map(len, found.bits)) == formats[name].fields
    assert found.value == float(expected.astype(np.float64))


def test_fields_of_a_tenth_in_single_precision():
    (raw,) = struct.unpack(">I", struct.pack(">f", 0.1))
    assert "".join(store(0.1, formats["fp32"]).bits) == f"{raw:032b}"


def test_errors():
    found = store(448.5, formats["fp8_e4m3fn"])
    assert (found.value, found.error, found.relative) == (448.0, -0.5, 0.5 / 448.5)


def test_lists_every_format():
    result = studies["numbers"]().run(Options())
    assert {row[0] for row in result.tables[1].rows} == set(formats)
    largest = {r.recipe: r.value for r in result.records if r.metric == "max"}
    assert largest["fp8_e4m3fn"] == 448
    assert largest["fp16"] == 65504
    assert largest["fp4_e2m1fn"] == 6
    assert "fp8_e4m3fn (448)" in result.findings[1]
    assert "fp16" not in result.findings[1]

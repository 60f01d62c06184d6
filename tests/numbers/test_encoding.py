"""The frozen numbers on an edge agree with the affine functions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bitsmith.errors import SchemeError, UnknownNameError
from bitsmith.numbers.affine import dequantize, quantize_codes
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import int8, uint4, uint8
from bitsmith.numbers.scheme import Scheme


@pytest.mark.parametrize("number", [uint8, int8, uint4], ids=str)
def test_an_encoding_computes_what_affine_computes(number) -> None:
    e = Encoding(0.1, 3, number)
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(1)) * 10
    scale, zero_point = torch.tensor(e.scale), torch.tensor(3, dtype=torch.int32)
    codes = quantize_codes(x, scale, zero_point, Scheme(number, symmetric=False))
    assert torch.equal(e.quantize(x), codes)
    assert torch.equal(e.dequantize(codes), dequantize(codes, scale, zero_point))
    assert (e.low, e.high) == (
        e.scale * (number.code_min - 3),
        e.scale * (number.code_max - 3),
    )


def test_the_scale_is_a_float32_and_json_keeps_it() -> None:
    e = Encoding(0.1, 7, uint8)
    assert e.scale == float(np.float32(0.1))
    assert Encoding.from_json(json.loads(json.dumps(e.to_json()))) == e


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e-60])
def test_impossible_scales_are_refused(scale: float) -> None:
    with pytest.raises(SchemeError, match="a scale is positive and finite"):
        Encoding(scale, 0, uint8)


def test_bad_json_and_zero_points_are_refused() -> None:
    with pytest.raises(SchemeError, match="zero_point 256 is not a code of uint8"):
        Encoding(1.0, 256, uint8)
    with pytest.raises(SchemeError, match="needs format, scale"):
        Encoding.from_json({"zero_point": 1})
    with pytest.raises(UnknownNameError):
        Encoding.from_json({"scale": 1.0, "zero_point": 1, "format": "uint88"})

"""The record of a quantized tensor: what it costs, and what cannot be put together."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bitsmith.errors import SchemeError
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.formats.integer import int4, int8, integer_format, uint4
from bitsmith.numbers.packing import pack
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import PerChannel, Scheme

W = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", range(2, 9))
def test_size_counts_packed_codes_and_scales(bits: int) -> None:
    q = quantize(W, Scheme(integer_format(bits, True), granularity=PerChannel(0)))
    assert q.shape == W.shape
    assert q.nbytes == len(pack(q.codes, bits)) + 8 * 4
    assert q.bits_per_weight == pytest.approx(bits + 32 / 24)


def test_asymmetric_schemes_also_store_zero_points() -> None:
    q = quantize(W, Scheme(uint4, False, PerChannel(0)))
    assert q.nbytes == len(pack(q.codes, 4)) + 8 * 4 + len(pack(q.zero_point, 4))


def test_a_tensor_without_values_has_no_bits() -> None:
    one = torch.tensor(1.0), torch.tensor(0, dtype=torch.int32)
    q = quantize(torch.empty(0, 3), Scheme(int8), *one)
    assert q.bits_per_weight == 0
    assert q.dequantize().shape == (0, 3)


def test_every_misfit_is_listed() -> None:
    q = quantize(W, Scheme(int4))
    parts = {f.name: getattr(q, f.name) for f in dataclasses.fields(q)}
    with pytest.raises(SchemeError, match=r"scale is torch.float64.*zero_point is torch.int64"):
        QTensor(**{**parts, "scale": q.scale.double(), "zero_point": q.zero_point.long()})
    with pytest.raises(SchemeError, match=r"codes of int4 are torch.int8, not torch.uint8"):
        QTensor(**{**parts, "codes": q.codes.to(torch.uint8)})
    with pytest.raises(SchemeError, match="codes run from 9 to 9, the scheme's from -8 to 7"):
        QTensor(**{**parts, "codes": torch.full_like(q.codes, 9)})
    with pytest.raises(SchemeError, match="has no codebook"):
        QTensor(**{**parts, "codebook": torch.zeros(4)})
    with pytest.raises(SchemeError, match=r"shape \(8, 1\)"):
        QTensor(**{**parts, "scheme": Scheme(int4, granularity=PerChannel(0))})
    with pytest.raises(dataclasses.FrozenInstanceError):
        q.scale = q.scale

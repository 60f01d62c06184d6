"""The packed form: every scheme goes through it bit for bit, in the bytes that are reported."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from bitsmith.errors import DataError, SchemeError
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.codebooks import cluster
from bitsmith.numbers.formats import formats
from bitsmith.numbers.formats.codebook import LearnedFormat, codebook3
from bitsmith.numbers.formats.integer import int4, int8, uint4, uint16
from bitsmith.numbers.formats.minifloat import bf16, e8m0, fp8_e4m3fn, fp16
from bitsmith.numbers.named_schemes import NAMED_SCHEMES
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import PerBlock, PerChannel, PerGroup, Scheme
from bitsmith.numbers.stored import from_stored, to_stored

PLAIN = [
    Scheme(formats[name], not name.startswith("uint"))
    for name in formats
    if name != "e8m0" and not name.startswith("codebook")
]
SCHEMES = [
    *PLAIN,
    *NAMED_SCHEMES.values(),
    Scheme(uint4, False, PerGroup(32), scale_format=fp16),
    Scheme(uint16, False, PerChannel(0)),
    Scheme(int4, True, PerBlock((2, 64)), scale_format=bf16),
    Scheme(int8, True, PerChannel(0), scale_format=e8m0),
    Scheme(uint4, False, PerGroup(32), scale_format=Scheme(fp8_e4m3fn)),
    *(Scheme(formats[f"codebook{b}"], granularity=PerChannel(0)) for b in range(1, 9)),
    Scheme(codebook3, granularity=PerGroup(64), scale_format=fp16),
    Scheme(LearnedFormat(4, dimension=4), granularity=PerChannel(0)),
]
X = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))


def quantized(scheme: Scheme) -> QTensor:
    return cluster(X, scheme, method="lloyd") if scheme.learned else quantize(X, scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_round_trip_through_safetensors_in_the_reported_bytes(scheme: Scheme) -> None:
    q = quantized(scheme)
    parts = to_stored(q)
    assert sum(part.nbytes for part in parts.values()) == q.nbytes
    back = from_stored(load(save(parts)), scheme, q.shape)
    for name in ("codes", "scale", "zero_point", "codebook"):
        mine, theirs = getattr(q, name), getattr(back, name)
        assert (mine is None and theirs is None) or torch.equal(mine, theirs)
    assert torch.equal(back.dequantize(), q.dequantize())


def test_what_is_missing_too_much_or_of_the_wrong_size_is_refused() -> None:
    q = quantized(Scheme(uint4, False, PerGroup(32)))
    parts = to_stored(q)
    without = {k: v for k, v in parts.items() if k != "scale"}
    with pytest.raises(DataError, match="scale missing; extra not expected"):
        from_stored({**without, "extra": X}, q.scheme, q.shape)
    with pytest.raises(DataError, match=r"1536 codes of 4 bits are uint8 of shape \(768,\)"):
        from_stored({**parts, "codes": parts["codes"][:-1]}, q.scheme, q.shape)
    with pytest.raises(DataError, match=r"scale is torch.float16 .* must be torch.float32"):
        from_stored({**parts, "scale": parts["scale"].half()}, q.scheme, q.shape)
    with pytest.raises(SchemeError, match="group_size must divide"):
        from_stored(parts, q.scheme, (6, 250))
    wide = quantized(Scheme(uint16, False))
    with pytest.raises(DataError, match=r"codes of uint16 are 1536 values of torch\.int16"):
        from_stored({**to_stored(wide), "codes": X}, wide.scheme, wide.shape)

"""Offsets in place of zero points: the formula, the stored form, and what makes no sense."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsmith.errors import DataError, SchemeError
from bitsmith.numbers.affine import fake_quantize, quantize, quantize_codes
from bitsmith.numbers.formats.integer import int4, int8, integer_format, uint4, uint6, uint8
from bitsmith.numbers.formats.minifloat import bf16, e8m0, fp8_e4m3fn, fp16, fp32
from bitsmith.numbers.named_schemes import GGUF_SCHEMES, named_scheme
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.range_search import search_range
from bitsmith.numbers.scales import scale_parameters, scale_zero_point, store_offsets
from bitsmith.numbers.scheme import PerChannel, PerGroup, PerTensor, Scheme
from bitsmith.numbers.stored import from_stored, to_stored

UINT6 = Scheme(uint6, False, PerGroup(8), scale_format=fp16)
SCHEMES = [
    Scheme(uint4, False, offset_format=fp32),
    Scheme(uint8, False, PerChannel(0), offset_format=bf16),
    Scheme(uint4, False, PerGroup(32), scale_format=fp16, offset_format=fp16),
    Scheme(uint4, False, PerGroup(32), scale_format=UINT6, offset_format=UINT6),
    Scheme(uint4, False, PerGroup(32), scale_format=fp16, offset_format=UINT6),
    Scheme(uint4, False, PerGroup(32), rounding="half_away", offset_format=fp32),
]
EACH = pytest.mark.parametrize("scheme", SCHEMES, ids=str)
X = torch.randn(6, 256, generator=torch.Generator().manual_seed(0)) + 0.2


def spread(part: torch.Tensor) -> torch.Tensor:
    """A scale's shape to that of X."""
    if not part.dim():
        return part.expand(X.shape)
    return part.repeat_interleave(256 // part.shape[1], 1).expand(X.shape)


@EACH
def test_codes_and_values_are_the_formula(scheme: Scheme) -> None:
    q = quantize(X, scheme)
    scale, offset = spread(q.scale), spread(q.offset)
    codes = torch.round((X + offset) / scale).clamp(0, scheme.code_max)  # no ties in X
    assert torch.equal(q.codes.float(), codes)
    product = codes * scale
    assert torch.equal(q.dequantize(), product - offset)
    assert bool((q.offset >= 0).all())
    assert not q.zero_point.any()
    assert torch.equal(fake_quantize(X, scheme), q.dequantize())
    assert torch.equal(quantize_codes(X, q.scale, None, scheme, q.offset), q.codes)
    again = quantize(X, scheme, q.scale, offset=q.offset)
    assert torch.equal(again.codes, q.codes)


@EACH
def test_the_range_is_covered_and_its_error_is_half_a_step(scheme: Scheme) -> None:
    q = quantize(X, scheme)
    error = (q.dequantize() - X).abs()
    # Two levels of 6 bits move the ends by up to a 126th of the largest scale and offset.
    slack = 0 if q.offsets is None else float(q.offsets.scale.max()) / 2
    slack += 0 if q.scales is None else float(q.scales.scale.max()) * 15 / 2
    ulps = X.abs() * 2**-7  # of bf16 offsets
    assert bool((error <= spread(q.scale) / 2 + slack + ulps).all())


@EACH
def test_stored_form_and_json_round_trip_in_the_reported_bytes(scheme: Scheme) -> None:
    assert Scheme.from_json(json.loads(json.dumps(scheme.to_json()))) == scheme
    q = quantize(X, scheme)
    parts = to_stored(q)
    assert sum(part.nbytes for part in parts.values()) == q.nbytes
    assert not any("zero_point" in name for name in parts)
    back = from_stored(parts, scheme, X.shape)
    for name in ("codes", "scale", "zero_point", "offset"):
        assert torch.equal(getattr(back, name), getattr(q, name))
    assert torch.equal(back.dequantize(), q.dequantize())
    for name in parts:
        without = {k: v for k, v in parts.items() if k != name}
        with pytest.raises(DataError, match=f"{name.rpartition('.')[2]} missing"):
            from_stored(without, scheme, X.shape)


def test_schemes_without_an_offset_say_nothing_of_it() -> None:
    assert "offset_format" not in Scheme(int8).to_json()
    assert quantize(X, Scheme(int8)).offset is None


def test_the_bits_of_super_blocks_are_those_of_their_files() -> None:
    sizes = {"Q4_1": 5, "Q5_1": 6, "Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q6_K": 6.5625}
    for name, bits in sizes.items():
        assert quantize(X, GGUF_SCHEMES[name]).bits_per_weight == bits
    turned = quantize(X.T.contiguous(), named_scheme("Q4_K", axis=0))
    assert torch.equal(turned.dequantize().T, quantize(X, GGUF_SCHEMES["Q4_K"]).dequantize())


def test_zero_need_not_be_a_value() -> None:
    x = torch.tensor([-0.25, 0.0, 0.5])
    scheme = Scheme(integer_format(2, False), False, offset_format=fp32)
    assert quantize(x, scheme).dequantize().tolist() == [-0.25, 0.0, 0.5]  # here it is
    x = torch.tensor([-0.3, 0.0, 0.5])
    assert 0.0 not in quantize(x, scheme).dequantize().tolist()


def test_gradient_passes_where_nothing_saturates() -> None:
    scheme = Scheme(uint4, False, offset_format=fp32)
    x = torch.tensor([-2.0, -1.0, 0.3, 1.9, 9.0], requires_grad=True)
    fake_quantize(x, scheme, torch.tensor(0.2), offset=torch.tensor(1.0)).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


@given(
    low=st.floats(-1e30, 1e30),
    span=st.floats(0, 1e30),
    bits=st.integers(1, 8),
)
def test_any_range(low: float, span: float, bits: int) -> None:
    x = torch.linspace(0, 1, 9) * span + low
    scheme = Scheme(integer_format(bits, False), False, offset_format=fp32)
    q = quantize(x, scheme)
    assert bool(torch.isfinite(q.dequantize()).all())
    top = max(0.0, -float(x.min())) + max(0.0, float(x.max()))
    worst = float((q.dequantize().double() - x.double()).abs().max())
    assert worst <= float(q.scale) * 0.5 + top * 2**-20 + 1e-37


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"symmetric": True, "format": int4}, "an offset replaces the zero point"),
        ({"format": int4}, "goes with an unsigned integer format such as uint4, not int4"),
        ({"offset_format": e8m0}, "an offset in e8m0 needs a scale of its own"),
        ({"offset_format": fp8_e4m3fn}, "offset_format is fp32, fp16 or bf16, or a scheme"),
        ({"offset_format": "fp16"}, "offset_format is None, fp32, fp16, bf16 or a scheme"),
        ({"offset_format": UINT6, "granularity": PerTensor()}, "one offset for the whole tensor"),
        ({"offset_format": Scheme(fp16)}, "offsets in fp16 have no second level"),
        ({"offset_format": Scheme(int8, rounding="floor")}, "offsets are rounded half to even"),
        ({"offset_format": SCHEMES[0]}, "offsets are not negative"),
        ({"scale_format": SCHEMES[0]}, "scales are positive, so their own scheme needs no"),
    ],
)
def test_what_cannot_exist_is_refused(arguments: dict, reason: str) -> None:
    whole = {"format": uint4, "symmetric": False, "granularity": PerGroup(8), "offset_format": fp16}
    with pytest.raises(SchemeError, match=reason):
        Scheme(**{**whole, **arguments})


def test_parameters_that_do_not_fit_are_refused() -> None:
    scheme = SCHEMES[2]
    q = quantize(X, scheme)
    with pytest.raises(SchemeError, match="scale and offset are given together"):
        quantize(X, scheme, q.scale)
    with pytest.raises(SchemeError, match="an offset goes with a scheme that has"):
        quantize(X, Scheme(int8), torch.tensor(1.0), torch.tensor(0).int(), torch.tensor(0.0))
    with pytest.raises(SchemeError, match="48 of 48 offsets are negative or not finite"):
        quantize(X, scheme, q.scale, offset=-q.offset)
    with pytest.raises(SchemeError, match="a scheme with an offset has zero point 0"):
        quantize(X, scheme, q.scale, q.zero_point + 1, q.offset)
    with pytest.raises(SchemeError, match=r"offset is torch.float64 of shape \(6, 8\)"):
        quantize(X, scheme, q.scale, offset=q.offset.double())
    two = quantize(X, SCHEMES[3])
    with pytest.raises(SchemeError, match="the offsets given are not numbers of the stored form"):
        quantize(X, SCHEMES[3], two.scale, offset=two.offset * 1.1)
    stored = store_offsets(two.offset * 1.1, SCHEMES[3]).dequantize()
    assert torch.equal(quantize(X, SCHEMES[3], two.scale, offset=stored).offset, stored)
    with pytest.raises(SchemeError, match="offsets are beyond fp16"):
        quantize(X * 1e6, scheme)
    with pytest.raises(SchemeError, match="1 of 1 ranges have a NaN or infinite bound"):
        scale_parameters(torch.tensor(float("nan")), torch.tensor(1.0), SCHEMES[0])
    with pytest.raises(SchemeError, match="has no zero point but an offset: use quantize"):
        scale_zero_point(torch.tensor(-1.0), torch.tensor(1.0), SCHEMES[0])
    with pytest.raises(SchemeError, match="has no zero point but an offset: use quantize"):
        search_range(X, scheme)


def test_parts_that_do_not_fit_are_refused() -> None:
    q, two = quantize(X, SCHEMES[2]), quantize(X, SCHEMES[3])
    for base, change, reason in (
        (q, {"offset": None}, "an offset goes with a scheme that has an offset_format"),
        (quantize(X, Scheme(int8)), {"offset": torch.tensor(0.0)}, "and only with one"),
        (q, {"offset": q.offset[:1]}, "must be float32 of the scale's shape"),
        (q, {"offset": q.offset / 0}, "48 offsets are not finite"),
        (q, {"offset": q.offset * 1.001}, "offsets are not numbers of fp16"),
        (q, {"offsets": two.offsets}, "stores its offsets in one level"),
        (q, {"zero_point": q.zero_point + 1}, "a scheme with an offset has zero point 0"),
        (two, {"offsets": None}, "two-level offsets come with their stored form"),
        (two, {"offset": two.offset * 2}, "the offsets differ from their stored form"),
    ):
        with pytest.raises(SchemeError, match=reason):
            QTensor(**{**vars(base), **change})
    moved = QTensor(**{**vars(two.scales), "zero_point": two.scales.zero_point + 1})
    with pytest.raises(SchemeError, match="their zero point is the lowest code, 0"):
        QTensor(**{**vars(two), "scales": moved, "scale": moved.dequantize()})

"""How scales are stored: MX, NVFP4, super-blocks and float formats, against the specifications."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsmith.errors import SchemeError, UnknownNameError
from bitsmith.numbers.affine import fake_quantize, quantize
from bitsmith.numbers.formats.integer import int1, int4, int8, uint8
from bitsmith.numbers.formats.minifloat import bf16, e8m0, fp8_e4m3fn, fp16
from bitsmith.numbers.named_schemes import NAMED_SCHEMES, named_scheme
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scales import scale_zero_point, store_scales
from bitsmith.numbers.scheme import PerChannel, PerGroup, Scheme

ELEMENTS = {  # name → type, largest value, exponent of the largest value
    "mxfp8_e4m3": (ml_dtypes.float8_e4m3fn, 448.0, 8),
    "mxfp8_e5m2": (ml_dtypes.float8_e5m2, 57344.0, 15),
    "mxfp6_e2m3": (ml_dtypes.float6_e2m3fn, 7.5, 2),
    "mxfp6_e3m2": (ml_dtypes.float6_e3m2fn, 28.0, 4),
    "mxfp4": (ml_dtypes.float4_e2m1fn, 6.0, 2),
}


def values(seed: int, rows: int = 8, columns: int = 64) -> torch.Tensor:
    """Normal values whose rows differ by many orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    return x * torch.exp2(torch.randint(-40, 40, (rows, 1), generator=generator).float())


# --- MX: OCP Microscaling Formats 1.0, section 6.3 ---------------------------------------------


def microscaled(x: np.ndarray, kind: type, largest: float, emax: int) -> np.ndarray:
    """The specification, a block at a time, with ml_dtypes' elements."""
    out = np.empty_like(x)
    for row in range(len(x)):
        for at in range(0, x.shape[1], 32):
            block = x[row, at : at + 32]
            top = float(np.abs(block).max())
            shared = 2.0 ** (math.floor(math.log2(top)) - emax) if top else 1.0
            elements = np.clip(block / np.float32(shared), -largest, largest).astype(kind)
            out[row, at : at + 32] = elements.astype(np.float32) * np.float32(shared)
    return out


@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("seed", range(3))
def test_microscaling_is_the_specification(name: str, seed: int) -> None:
    x = values(seed)
    x[2] = 0
    q = quantize(x, named_scheme(name))
    assert np.array_equal(q.dequantize().numpy(), microscaled(x.numpy(), *ELEMENTS[name]))
    assert q.scale.shape == (8, 2)


def test_mxint8_is_the_specification() -> None:
    """Elements are k / 64 with k from −127 to 127; the shared scale 2^⌊log2 max⌋."""
    x = values(5)
    got = quantize(x, named_scheme("mxint8")).dequantize()
    for row in range(len(x)):
        for at in (0, 32):
            block = x[row, at : at + 32].double()
            shared = 2.0 ** math.floor(math.log2(float(block.abs().max())))
            k = torch.round(block / shared * 64).clamp(-127, 127)
            assert torch.equal(got[row, at : at + 32].double(), k / 64 * shared)


def test_nvfp4_is_its_recipe() -> None:
    """One float32 scale of all block scales, which are fp8 e4m3."""
    x = values(6) * 0 + torch.randn(8, 64, generator=torch.Generator().manual_seed(6))
    q = quantize(x, named_scheme("nvfp4"))
    block = x.view(8, 4, 16).abs().amax(-1).double().numpy() / 6
    whole = np.float32(block.astype(np.float32).max().astype(np.float64) / 448)
    codes = (block.astype(np.float32) / whole).astype(ml_dtypes.float8_e4m3fn)
    scale = codes.astype(np.float32) * whole
    assert np.array_equal(q.scale.numpy(), scale)
    assert np.array_equal(q.scales.codes.numpy(), codes.view(np.uint8))
    elements = (x.view(8, 4, 16).numpy() / scale[..., None]).clip(-6, 6)
    expected = elements.astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale[..., None]
    assert np.array_equal(q.dequantize().numpy(), expected.reshape(8, 64))


@pytest.mark.parametrize("name", NAMED_SCHEMES)
def test_bits_per_weight_of_the_table(name: str) -> None:
    said = {
        line.split()[0]: float(line.split()[-1])
        for line in named_scheme.__doc__.splitlines()
        if line.strip().startswith(("mx", "nv", "super"))
    }
    q = quantize(values(0, 64, 1024).clamp(-1e3, 1e3), named_scheme(name))
    assert q.bits_per_weight == pytest.approx(said[name], abs=32 / 64 / 1024 + 1e-9)


@pytest.mark.parametrize("name", NAMED_SCHEMES)
def test_blocks_run_along_any_axis(name: str) -> None:
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
    along = quantize(x, named_scheme(name)).dequantize()
    assert torch.equal(quantize(x.T, named_scheme(name, axis=0)).dequantize().T, along)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mxfp4'"):
        named_scheme("mxfp5")


# --- two levels ---------------------------------------------------------------------------------


def test_a_group_of_zeros_does_not_widen_its_super_block() -> None:
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(2)) * 1e-3
    plain = quantize(x, named_scheme("superblock_int4"))
    x[1, 32:64] = 0
    q = quantize(x, named_scheme("superblock_int4"))
    assert torch.equal(q.scale[0], plain.scale[0])
    assert float(q.scale.max()) < 1e-2
    assert not q.dequantize()[1, 32:64].any()
    assert bool((q.scale > 0).all())


@pytest.mark.parametrize("name", ["nvfp4", "superblock_int6", "superblock_int4"])
def test_scales_are_what_their_stored_form_says(name: str) -> None:
    q = quantize(values(7, 4, 512).clamp(-1e3, 1e3), named_scheme(name))
    assert q.scales is not None
    assert torch.equal(q.scales.dequantize(), q.scale)
    with pytest.raises(SchemeError, match="differ from their stored form"):
        QTensor(q.codes, q.scale * 2, q.zero_point, None, q.scheme, q.scales)
    with pytest.raises(SchemeError, match="two-level scales come with their stored form"):
        QTensor(q.codes, q.scale, q.zero_point, None, q.scheme)


def test_given_scales_of_two_levels_must_be_storable() -> None:
    scheme, x = named_scheme("superblock_int4"), torch.randn(2, 256)
    scale, zero_point = quantize(x, scheme).scale, torch.zeros(2, 8, dtype=torch.int32)
    storable = store_scales(scale * 1.1, scheme).dequantize()
    assert quantize(x, scheme, storable, zero_point).scale.equal(storable)
    with pytest.raises(SchemeError, match="not numbers of the stored form"):
        quantize(x, scheme, torch.rand(2, 8) + 0.1, zero_point)


# --- one level ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "kind"), [(fp16, np.float16), (bf16, ml_dtypes.bfloat16)])
def test_scales_round_to_their_format(number, kind) -> None:
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(3))
    q = quantize(x, Scheme(int8, granularity=PerChannel(0), scale_format=number))
    exact = (x.abs().amax(1, keepdim=True).double() / 127).float()
    assert np.array_equal(q.scale.numpy(), exact.numpy().astype(kind).astype(np.float32))
    assert q.nbytes == x.numel() + 2 * 32
    off = q.scale.clone()
    off[3] *= 1 + 1e-5
    with pytest.raises(SchemeError, match=f"1 of 32 scales are not numbers of {number}"):
        QTensor(q.codes, off, q.zero_point, None, q.scheme)


def test_the_zero_point_is_that_of_the_rounded_scale() -> None:
    scheme = Scheme(uint8, symmetric=False, scale_format=bf16)
    low, high = torch.tensor(-1.0), torch.tensor(3.0)
    scale, zero_point = scale_zero_point(low, high, scheme)
    assert int(zero_point) == round(1.0 / float(scale))


@given(
    st.floats(-(2.0**99), 0, width=32).filter(lambda v: v == 0 or v < -1e-30),
    st.floats(2.0**-90, 2.0**99, width=32),
)
def test_asymmetric_powers_of_two_hold_the_whole_range(low: float, high: float) -> None:
    scheme = Scheme(uint8, symmetric=False, scale_format=e8m0)
    scale, zero_point = scale_zero_point(torch.tensor(low), torch.tensor(high), scheme)
    fraction, _ = math.frexp(float(scale))
    assert fraction == 0.5
    assert float(scale) >= (high - low) / 255 > float(scale) / 2
    ends = torch.tensor([low, high])
    error = (fake_quantize(ends, scheme, scale, zero_point) - ends).abs()
    assert float(error.max()) <= float(scale)


def test_a_scale_beyond_its_format_is_refused() -> None:
    x = torch.tensor([[1e9], [1.0]])
    scheme = Scheme(int8, granularity=PerChannel(0), scale_format=fp16)
    with pytest.raises(SchemeError, match=r"1 of 2 scales are beyond fp16.*65504.*7\.87402e\+06"):
        quantize(x, scheme)


@settings(max_examples=60)
@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from([*NAMED_SCHEMES])
)
def test_one_value_of_any_size_survives(value: float, name: str) -> None:
    """Denormal, huge or zero: the scale is positive, the result finite and near."""
    x = torch.zeros(1, 256)
    x[0, 5] = value
    if name.startswith("superblock") and abs(value) > 1e7:
        with pytest.raises(SchemeError, match="beyond fp16"):
            quantize(x, named_scheme(name))
        return
    q = quantize(x, named_scheme(name))
    assert bool((q.scale > 0).all())
    got = q.dequantize()
    assert bool(torch.isfinite(got).all())
    if abs(value) > (1.0 if name.startswith("superblock") else 1e-34):
        assert abs(float(got[0, 5]) - value) <= 0.26 * abs(value)


def test_extremes_of_every_scale_format() -> None:
    for inner in (None, e8m0, bf16):
        for number, symmetric in ((int8, True), (int4, True), (uint8, False), (fp8_e4m3fn, True)):
            scheme = Scheme(number, symmetric, PerGroup(2), scale_format=inner)
            x = torch.tensor([[3.4e38, -3.4e38], [1e-45, 0.0], [0.0, 0.0], [1e-38, -2e-38]])
            got = quantize(x, scheme).dequantize()
            assert bool(torch.isfinite(got).all()), scheme
            assert got[2].tolist() == [0.0, 0.0]
            assert float(got[0, 0]) >= 1.4e38, scheme  # −8 · 2^125 is beyond float32, so 2^124


@pytest.mark.parametrize("inner", [None, fp16, bf16, e8m0, fp8_e4m3fn])
def test_zeros_without_a_code_for_zero_get_the_least_scale(inner) -> None:
    """±s cannot be 0: s is the least number that the scale format holds."""
    x = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    q = quantize(x, Scheme(int1, granularity=PerChannel(0), scale_format=inner))
    tiny = torch.finfo(torch.float32).tiny
    assert float(q.scale[0]) == max(tiny, 0.0 if inner is None else inner.step)
    assert q.dequantize().abs()[0].tolist() == [float(q.scale[0])] * 2
    assert q.dequantize()[1].tolist() == [1.0, -1.0]

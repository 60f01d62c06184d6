"""Every format, granularity and rounding through quantize, against plain formulas."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bitsmith.errors import DataError, SchemeError
from bitsmith.numbers.affine import dequantize, fake_quantize, quantize, quantize_codes
from bitsmith.numbers.coding import round_to_integer
from bitsmith.numbers.formats import formats
from bitsmith.numbers.formats.codebook import codebook4, nf4
from bitsmith.numbers.formats.integer import int1, int4, int8, int16, ternary, uint8, uint16
from bitsmith.numbers.formats.minifloat import bf16, e8m0, fp8_e4m3fn, fp16, fp32
from bitsmith.numbers.granularity import blocked
from bitsmith.numbers.packing import packed_bytes
from bitsmith.numbers.pieces import PIECE
from bitsmith.numbers.ranges import mirrored_range, value_range
from bitsmith.numbers.scheme import PerBlock, PerChannel, PerGroup, PerTensor, Scheme

GRANULARITIES = [
    PerTensor(),
    PerChannel(0),
    PerChannel(1),
    PerGroup(4),
    PerGroup(2, axis=0),
    PerBlock((3, 4)),
]
ELEMENTS = [f for f in formats if f != "e8m0" and not f.startswith("codebook")]


def symmetric(name: str) -> bool:
    return not name.startswith("uint")


def expand(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    wide, narrow = blocked(shape, scale.shape)
    return scale.reshape(narrow).expand(wide).reshape(shape)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("name", ELEMENTS)
def test_codes_and_values_are_the_formula(name: str, granularity) -> None:
    number = formats[name]
    if number.bits >= 16 and number.family == "minifloat" and granularity != PerTensor():
        with pytest.raises(SchemeError, match="exponent in every value"):
            Scheme(number, symmetric(name), granularity)
        return
    scheme = Scheme(number, symmetric(name), granularity)
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)) * 5
    q = quantize(x, scheme)
    scale, point = expand(q.scale, x.shape), expand(q.zero_point, x.shape)
    if scheme.affine:
        raw = torch.round(x / scale) + point
        codes = raw.clamp(scheme.code_min, scheme.code_max)
        expected, inside = (codes - point) * scale, raw == codes
    else:
        codes = number.encode(x / scale)
        expected = number.decode(codes) * scale
        inside = (x / scale >= number.min) & (x / scale <= number.max)
    assert torch.equal(q.codes.long(), codes.long())
    assert torch.equal(q.dequantize(), expected)
    y = x.clone().requires_grad_()
    out = fake_quantize(y, scheme, q.scale, q.zero_point)
    assert torch.equal(out, expected)
    out.sum().backward()
    assert torch.equal(y.grad, inside.float())
    assert torch.equal(fake_quantize(x, scheme), expected)
    assert torch.equal(quantize_codes(x, q.scale, q.zero_point, scheme), q.codes)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_ranges_are_those_of_each_block(granularity) -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    shape = granularity.scale_shape(x.shape)
    low, high = value_range(x, shape)
    for index in itertools.product(*map(range, shape)):
        own = torch.zeros(shape, dtype=torch.int64)
        own[index] = 1
        block = x[expand(own, x.shape) == 1]
        assert (low[index], high[index]) == (block.min(), block.max())


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_a_mirrored_range_holds_both_ends(granularity) -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    shape = granularity.scale_shape(x.shape)
    low, high = value_range(x, shape)
    least, most = mirrored_range(x, shape)
    if shape:
        assert torch.equal(most, torch.maximum(-low, high))
        assert torch.equal(least, -most)
    else:
        assert (least, most) == (low, high)  # one reduction gives both
    x[3, 1] = float("nan")
    x[2, 0] = -float("inf")
    with pytest.raises(DataError, match="1 NaN and 1 infinite"):
        mirrored_range(x, shape)


@pytest.mark.parametrize(
    "shape", [(3 * PIECE + 5,), (5, PIECE // 2 + 3), (2, 3, PIECE), (PIECE // 3, 7)]
)
def test_large_tensors_are_their_small_parts(shape: tuple[int, ...]) -> None:
    """Pieces change nothing: quantized whole, and a slice at a time."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    for scheme in (Scheme(int8), Scheme(uint8, False, PerChannel(0)), Scheme(fp8_e4m3fn)):
        if scheme.granularity == PerChannel(0) and len(shape) == 1:
            continue
        q = quantize(x, scheme)
        scale, point = expand(q.scale, x.shape), expand(q.zero_point, x.shape)
        if scheme.affine:
            codes = torch.round(x / scale) + point
            codes = codes.clamp(scheme.code_min, scheme.code_max)
            values = dequantize(codes.int(), scale, point)
        else:
            codes = scheme.format.encode(x / scale)
            values = scheme.format.decode(codes) * scale
        assert torch.equal(q.codes.long(), codes.long())
        assert torch.equal(q.dequantize(), values)
        assert torch.equal(fake_quantize(x, scheme), values)


# --- formats without a scale, with one bit, with sixteen ---------------------------------------


def test_floats_with_their_own_exponent_take_no_scale() -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(3)) * 1e3
    for number, dtype in ((fp16, torch.float16), (bf16, torch.bfloat16), (fp32, torch.float32)):
        q = quantize(x, Scheme(number))
        assert torch.equal(q.dequantize(), x.to(dtype).float())
        assert q.bits_per_weight == number.bits
        with pytest.raises(SchemeError, match="takes no scale"):
            quantize(x, Scheme(number), torch.tensor(2.0), torch.tensor(0, dtype=torch.int32))


def test_binary_keeps_the_sign_and_ternary_the_zero() -> None:
    x = torch.tensor([-3.0, -0.0, 0.0, 0.4, 2.0])
    q = quantize(x, Scheme(int1))
    assert q.dequantize().tolist() == [-3.0, 3.0, 3.0, 3.0, 3.0]
    assert q.bits_per_weight == 8 * (packed_bytes(5, 1) + 4) / 5
    q = quantize(x, Scheme(ternary))
    assert q.codes.tolist() == [-1, 0, 0, 0, 1]
    assert q.dequantize().tolist() == [-3.0, 0.0, 0.0, 0.0, 3.0]
    y = x.clone().requires_grad_()
    one = torch.tensor(1.0), torch.tensor(0, dtype=torch.int32)
    fake_quantize(y, Scheme(int1), *one).sum().backward()
    assert y.grad.tolist() == [0, 1, 1, 1, 0]  # the hard-tanh rule of arXiv 1602.02830, eq. 4


@pytest.mark.parametrize("scheme", [Scheme(int16), Scheme(uint16, False)], ids=str)
def test_sixteen_bits(scheme: Scheme) -> None:
    x = torch.randn(9999, generator=torch.Generator().manual_seed(4))
    q = quantize(x, scheme)
    assert float((q.dequantize() - x).abs().max()) <= 0.51 * float(q.scale)
    assert q.nbytes == 2 * 9999 + 4 + (0 if scheme.symmetric else 2)


def test_a_learned_table_is_not_chosen_by_a_range() -> None:
    for act in (quantize, fake_quantize):
        with pytest.raises(SchemeError, match="codebook4 is learned from the tensor: use cluster"):
            act(torch.ones(4), Scheme(codebook4))


# --- rounding -----------------------------------------------------------------------------------


def test_stochastic_rounding_keeps_the_expectation() -> None:
    """Binomial: with n draws the share of roundings up is within 5 standard errors."""
    n = 200_000
    generator = torch.Generator().manual_seed(0)
    for x in (-1.75, -0.5, 0.1, 0.999, 3.0, 1e6 + 0.25):
        rounded = round_to_integer(torch.full((n,), x), "stochastic", generator)
        low = math.floor(x)
        assert set(rounded.tolist()) <= {low, low + 1}
        p = x - low
        error = 5 * math.sqrt(p * (1 - p) / n)
        assert abs(float((rounded - low).mean()) - p) <= error
    whole = torch.arange(-(2**20), 2**20).float()
    assert torch.equal(round_to_integer(whole, "stochastic", generator), whole)


def test_stochastic_rounding_follows_its_seed_whatever_the_pieces() -> None:
    x = torch.randn(2 * PIECE + 77, generator=torch.Generator().manual_seed(5))
    first = Scheme(int4, rounding="stochastic", seed=1)
    q = quantize(x, first)
    assert torch.equal(quantize(x, first).codes, q.codes)
    assert torch.equal(fake_quantize(x, first), q.dequantize())
    other = quantize(x, Scheme(int4, rounding="stochastic", seed=2))
    assert 0.1 < float((other.codes != q.codes).float().mean()) < 0.9
    assert float((q.dequantize() - x).abs().max()) < 1.001 * float(q.scale)
    assert abs(float((q.dequantize() - x).mean())) < 3e-3 * float(q.scale)
    before = torch.get_rng_state()
    quantize(x, first)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is not touched


# --- against torch, per channel -----------------------------------------------------------------


def test_per_channel_torch_differs_only_at_listed_ties() -> None:
    """torch multiplies by 1/scale: each value that differs has a quotient next to a tie."""
    generator = torch.Generator().manual_seed(6)
    scale = torch.rand(64, 1, generator=generator) * 0.2 + 0.001
    ties = (torch.arange(-120, 120) + 0.5) * scale  # [64, 240]
    x = torch.cat([ties, torch.randn(64, 1000, generator=generator) * 20 * scale], 1)
    scheme = Scheme(int8, granularity=PerChannel(0))
    zero = torch.zeros(64, 1, dtype=torch.int32)
    mine = quantize_codes(x, scale, zero, scheme).long()
    theirs = torch.fake_quantize_per_channel_affine(
        x, scale.flatten(), zero.flatten(), 0, -127, 127
    )
    theirs = torch.round(theirs.double() / scale).long()
    listed = [(float(x[i, j]), float(scale[i, 0])) for i, j in (mine != theirs).nonzero().tolist()]
    assert 0 < len(listed) < 0.25 * ties.numel()
    for value, step in listed:
        quotient = value / step  # float64: exact enough to see a tie of float32
        assert abs(abs(quotient) % 1 - 0.5) < 1e-5, (value, step)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme",
    [Scheme(nf4, granularity=PerGroup(4)), Scheme(fp16), Scheme(int4, True, PerBlock((2, 2)))],
)
def test_what_is_not_finite_is_refused_everywhere(scheme: Scheme) -> None:
    x = torch.ones(4, 4)
    x[3, 1] = float("nan")
    for act in (quantize, fake_quantize):
        with pytest.raises(DataError, match="1 NaN and 0 infinite of 16 values"):
            act(x, scheme)


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(SchemeError, match="10 % 4 = 2; nearest: 2, 5"):
        quantize(torch.ones(2, 10), Scheme(int4, granularity=PerGroup(4)))


@pytest.mark.parametrize("name", ELEMENTS)
def test_constants_zeros_and_denormals(name: str) -> None:
    scheme = Scheme(formats[name], symmetric(name))
    for value in (0.0, 1e-45, 3.0, 1e38):
        got = quantize(torch.full((3,), value), scheme).dequantize()
        assert bool(torch.isfinite(got).all())
        saturates = value > 65504 and name == "fp16"
        assert saturates or float((got - value).abs().max()) <= max(1.2e-38, 0.34 * value)
        if value == 0:
            assert float(got.abs().max()) <= (1.2e-38 if name == "int1" else 0)


def test_e8m0_is_no_format_of_elements() -> None:
    with pytest.raises(SchemeError, match="scales only"):
        quantize(torch.ones(3), Scheme(e8m0))

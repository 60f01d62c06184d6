"""Affine quantization against ONNX Runtime, torch and exact arithmetic."""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from bitsmith.errors import DataError, SchemeError
from bitsmith.numbers.affine import (
    dequantize,
    fake_quantize,
    quantize,
    quantize_codes,
    round_to_integer,
    scale_zero_point,
)
from bitsmith.numbers.formats.integer import int2, int4, int8, integer_format, uint8
from bitsmith.numbers.scheme import PerChannel, Scheme

U8 = Scheme(uint8, symmetric=False)
S8 = Scheme(int8, symmetric=False)
SCHEMES = [Scheme(integer_format(b, True), narrow_range=n) for b in range(2, 9) for n in (0, 1)]
SCHEMES += [Scheme(integer_format(b, False), False) for b in range(1, 9)]
SCHEMES += [Scheme(integer_format(b, True), False) for b in range(2, 9)]
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SCALES = st.floats(2.0**-40, 2.0**40, width=32)


def point(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int32)


# --- scale and zero point ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "scheme", "scale", "zero_point"),
    [
        (-10.8, 3.0, Scheme(int8), 10.8 / 127, 0),
        (2.0, 4.0, U8, 4 / 255, 0),  # widened to contain 0
        (-4.0, -2.0, U8, 4 / 255, 255),
        (0.0, 0.0, U8, 1.0, 0),
        (0.0, 0.0, Scheme(int8), 1.0, 0),
        (-3.0, 1.0, Scheme(int2, narrow_range=True), 3.0, 0),
    ],
)
def test_scale_and_zero_point_of_a_range(low, high, scheme, scale, zero_point) -> None:
    s, z = scale_zero_point(torch.tensor(low), torch.tensor(high), scheme)
    assert (s.dtype, z.dtype, s.shape) == (torch.float32, torch.int32, ())
    assert float(s) == pytest.approx(scale, rel=1e-5)
    assert int(z) == zero_point


@given(FLOATS, FLOATS, st.sampled_from(SCHEMES))
def test_every_range_has_a_usable_scale(a: float, b: float, scheme: Scheme) -> None:
    low, high = torch.tensor(min(a, b)), torch.tensor(max(a, b))
    scale, zero_point = scale_zero_point(low, high, scheme)
    assert float(scale) >= torch.finfo(torch.float32).tiny
    codes = torch.arange(scheme.code_min, scheme.code_max + 1, dtype=torch.int32)
    values = dequantize(codes, scale, zero_point)
    assert bool(torch.isfinite(values).all())
    assert bool((values == 0).any())  # 0 is exact
    if scheme.symmetric:
        assert int(zero_point) == 0
    ends = torch.stack([low, high])
    error = (fake_quantize(ends, scheme, scale, zero_point).double() - ends.double()).abs()
    # Half a step at each end and half a step for the rounded zero point; full symmetric ranges
    # and the cap against overflow lose up to half a step and one part in 2^bits more.
    assert float(error.max()) <= float(scale) * 1.01


@given(FLOATS.filter(lambda v: abs(v) > 1e-30), st.integers(2, 8), st.booleans())
def test_symmetric_scales_are_the_formula_correctly_rounded(a, bits, narrow) -> None:
    scheme = Scheme(integer_format(bits, True), narrow_range=narrow)
    if abs(a) > 1e38:
        return  # capped
    scale, _ = scale_zero_point(torch.tensor(-abs(a)), torch.tensor(0.0), scheme)
    top = 2 ** (bits - 1) - 1 if narrow else Fraction(2**bits - 1, 2)
    exact = Fraction(abs(a)) / top
    neighbours = np.nextafter(np.float32(float(scale)), np.float32([0, np.inf]))
    mine = abs(Fraction(float(scale)) - exact)
    assert all(mine <= abs(Fraction(float(n)) - exact) for n in neighbours)


def test_ranges_of_channels_are_independent() -> None:
    low, high = torch.tensor([[-1.0], [0.0], [-3.0]]), torch.tensor([[1.0], [0.0], [5.0]])
    scale, zero_point = scale_zero_point(low, high, U8)
    assert scale.shape == zero_point.shape == (3, 1)
    for i in range(3):
        one = scale_zero_point(low[i, 0], high[i, 0], U8)
        assert (float(scale[i]), int(zero_point[i])) == (float(one[0]), int(one[1]))


def test_ranges_that_make_no_sense_are_refused() -> None:
    t = torch.tensor
    with pytest.raises(SchemeError, match=r"2 of 3 ranges have a NaN or infinite bound"):
        scale_zero_point(t([0.0, float("nan"), 0.0]), t([1.0, 1.0, float("inf")]), U8)
    with pytest.raises(SchemeError, match=r"1 of 2 ranges have low > high.*index 1: 3.0 > 2.0"):
        scale_zero_point(t([0.0, 3.0]), t([1.0, 2.0]), U8)
    with pytest.raises(SchemeError, match="one shape"):
        scale_zero_point(t([0.0]), t(1.0), U8)


# --- against ONNX Runtime ---------------------------------------------------------------------


@functools.cache
def session(signed: bool, axis: int | None) -> onnxruntime.InferenceSession:
    """One model: x → codes → values, scale and zero point as inputs."""
    kind = TensorProto.INT8 if signed else TensorProto.UINT8
    shape = [] if axis is None else ["c"]
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "qdq",
        [
            value("x", TensorProto.FLOAT, ["n", "c"]),
            value("s", TensorProto.FLOAT, shape),
            value("z", kind, shape),
        ],
        [value("q", kind, ["n", "c"]), value("y", TensorProto.FLOAT, ["n", "c"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def runtime(x: np.ndarray, s: np.ndarray, z: np.ndarray, axis: int | None = None):
    return session(z.dtype == np.int8, axis).run(["q", "y"], {"x": x, "s": s, "z": z})


def near_ties(scale: float, seed: int) -> np.ndarray:
    """Values on, just below and just above every decision threshold, and random ones."""
    ties = ((np.arange(-300, 300) + 0.5) * scale).astype(np.float32)
    inf = np.float32(np.inf)
    noise = np.random.default_rng(seed).normal(0, 100 * scale, 999).astype(np.float32)
    return np.concatenate([ties, np.nextafter(ties, inf), np.nextafter(ties, -inf), noise])


@pytest.mark.parametrize("scheme", [U8, S8], ids=["u8", "s8"])
@settings(deadline=None, max_examples=60)
@given(SCALES, st.integers(0, 255), st.lists(FLOATS, max_size=9))
def test_per_tensor_is_bit_for_bit_onnx_runtime(scheme, scale, code, extra) -> None:
    x = np.concatenate([near_ties(scale, code), np.float32(extra)])[None, :]
    z = code + scheme.code_min
    number = np.int8 if scheme.integer.signed else np.uint8
    q, y = runtime(x, np.array(scale, np.float32), np.array(z, number))
    s = torch.tensor(scale)
    codes = quantize_codes(torch.from_numpy(x), s, point(z), scheme)
    assert np.array_equal(codes.numpy(), q)
    assert np.array_equal(dequantize(codes, s, point(z)).numpy(), y)
    assert np.array_equal(fake_quantize(torch.from_numpy(x), scheme, s, point(z)).numpy(), y)


@settings(deadline=None, max_examples=40)
@given(st.lists(SCALES, min_size=1, max_size=5), st.integers(0, 1000))
def test_per_channel_s8_is_bit_for_bit_onnx_runtime(scales, seed) -> None:
    x = np.stack([near_ties(s, seed + i) for i, s in enumerate(scales)], 1)  # [n, c]
    s = np.float32(scales)
    scheme = Scheme(int8, narrow_range=False, granularity=PerChannel(1))
    q, y = runtime(x, s, np.zeros(len(s), np.int8), axis=1)
    zero = torch.zeros(1, len(s), dtype=torch.int32)
    quantized = quantize(torch.from_numpy(x), scheme, torch.from_numpy(s)[None], zero)
    assert np.array_equal(quantized.codes.numpy(), q)
    assert np.array_equal(quantized.dequantize().numpy(), y)


# --- against torch ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(SCALES, st.integers(0, 255))
def test_torch_differs_only_where_the_reciprocal_crosses_a_tie(scale: float, code: int) -> None:
    x = torch.from_numpy(near_ties(scale, code))
    mine = quantize_codes(x, torch.tensor(scale), point(code), U8).int()
    theirs = torch.fake_quantize_per_tensor_affine(x, scale, code, 0, 255)
    theirs = torch.round(theirs.double() / scale + code).int()
    for i in (mine != theirs).nonzero().flatten().tolist():
        assert abs(int(mine[i]) - int(theirs[i])) == 1
        # The exact quotient is within one float32 rounding of a half: only there may they part.
        quotient = Fraction(float(x[i])) / Fraction(scale)
        distance = abs((quotient % 1) - Fraction(1, 2))
        assert distance <= abs(quotient) * Fraction(1, 2**22)


def test_on_random_values_torch_almost_never_differs() -> None:
    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)) * 3
    scale = float(np.float32(0.037))
    mine = fake_quantize(x, U8, torch.tensor(scale), point(128))
    theirs = torch.fake_quantize_per_tensor_affine(x, scale, 128, 0, 255)
    assert int(((mine - theirs).abs() > scale / 2).sum()) <= 5


@pytest.mark.parametrize("scheme", [U8, S8, Scheme(int4), Scheme(int8)], ids=str)
def test_the_gradient_is_that_of_torch(scheme: Scheme) -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 9
    s, z = torch.tensor(0.05), point(0 if scheme.symmetric else scheme.code_min + 100)
    weight = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    (fake_quantize(a, scheme, s, z) * weight).sum().backward()
    theirs = torch.fake_quantize_per_tensor_affine(b, s, z, scheme.code_min, scheme.code_max)
    (theirs * weight).sum().backward()
    assert torch.equal(a.grad, b.grad)
    assert 0 < int((a.grad == 0).sum()) < 5000


# --- quantize ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_no_value_moves_more_than_half_a_step(scheme: Scheme) -> None:
    x = torch.randn(4, 999, generator=torch.Generator().manual_seed(3)) + 0.5
    for axis in (None, 0, -1):
        s = (
            scheme
            if axis is None
            else Scheme(scheme.format, scheme.symmetric, PerChannel(axis), scheme.narrow_range)
        )
        q = quantize(x, s)
        ends = (q.scale * (s.code_min - q.zero_point), q.scale * (s.code_max - q.zero_point))
        inside = (x >= ends[0]) & (x <= ends[1])
        error = (q.dequantize() - x).abs() / q.scale
        assert float(error[inside].max()) <= 0.5001
        assert float(error.max()) <= 1.0001


def test_roundings() -> None:
    x = torch.tensor([-2.5, -1.5, -0.5, -0.3, 0.49999997, 0.5, 1.5, 2.5, 8388609.0, -2.6])
    assert round_to_integer(x, "half_even").tolist() == [-2, -2, 0, 0, 0, 0, 2, 2, 8388609, -3]
    assert round_to_integer(x, "half_away").tolist() == [-3, -2, -1, 0, 0, 1, 2, 3, 8388609, -3]
    assert round_to_integer(x, "floor").tolist() == [-3, -2, -1, -1, 0, 0, 1, 2, 8388609, -3]
    scheme = Scheme(int8, rounding="floor")
    codes = quantize_codes(torch.tensor([-0.1, 0.9]), torch.tensor(1.0), point(0), scheme)
    assert codes.tolist() == [-1, 0]


# --- bad and unusual input --------------------------------------------------------------------


@pytest.mark.parametrize("act", [quantize, fake_quantize])
@pytest.mark.parametrize("scheme", [U8, Scheme(int8, granularity=PerChannel(0))], ids=str)
def test_values_that_are_not_finite_are_counted_and_refused(act, scheme) -> None:
    x = torch.ones(3, 4)
    x[0, 0] = x[2, 1] = float("nan")
    x[1, 2] = -float("inf")
    with pytest.raises(DataError, match=r"2 NaN and 1 infinite of 12 values \(shape \(3, 4\)\)"):
        act(x, scheme)
    shape = scheme.granularity.scale_shape(x.shape)
    given = torch.ones(shape), torch.zeros(shape, dtype=torch.int32)
    with pytest.raises(DataError, match="2 NaN and 1 infinite"):
        act(x, scheme, *given)
    with pytest.raises(DataError, match="1 infinite"):
        act(torch.full((3, 1), 1e300, dtype=torch.float64)[:1], scheme)


@pytest.mark.parametrize("act", [quantize, fake_quantize])
def test_no_values_have_no_range_but_can_be_quantized(act) -> None:
    for shape in ((0,), (0, 3), (3, 0)):
        with pytest.raises(DataError, match="has no values"):
            act(torch.empty(shape), U8)
        assert tuple(act(torch.empty(shape), U8, torch.tensor(1.0), point(0)).shape) == shape
    with pytest.raises(DataError, match="has no values"):
        act(torch.empty(3, 0), Scheme(int8, granularity=PerChannel(0)))


@pytest.mark.parametrize(
    ("scale", "zero_point", "message"),
    [
        (-1.0, 0, "1 of 1 scales are not positive"),
        (0.0, 0, "not positive"),
        (float("nan"), 0, "not positive and finite"),
        (float("inf"), 0, "not positive and finite"),
        (1.0, 256, "1 of 1 zero points are not codes of the scheme, 0 to 255"),
        (1.0, -1, "zero points are not codes"),
    ],
)
def test_impossible_parameters_are_refused(scale, zero_point, message) -> None:
    for act in (quantize, fake_quantize):
        with pytest.raises(SchemeError, match=message):
            act(torch.ones(2), U8, torch.tensor(scale), point(zero_point))


def test_parameters_of_the_wrong_shape_kind_or_number_are_refused() -> None:
    x, one = torch.ones(2, 3), torch.ones(())
    with pytest.raises(SchemeError, match="together or not at all"):
        quantize(x, U8, one)
    with pytest.raises(SchemeError, match=r"scale is .* shape \(\) and must be .* shape \(2, 1\)"):
        quantize(x, Scheme(int8, granularity=PerChannel(0)), one, point(0))
    with pytest.raises(SchemeError, match=r"scale is torch.float64.*zero_point is torch.int64"):
        quantize(x, U8, one.double(), torch.tensor(0))
    with pytest.raises(SchemeError, match="a symmetric scheme has zero point 0"):
        quantize(x, Scheme(int8), one, point(3))
    with pytest.raises(DataError, match=r"floating-point tensor, not torch.int64"):
        quantize(torch.ones(2).long(), U8)
    with pytest.raises(DataError, match="floating-point tensor, not list"):
        quantize([1.0], U8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_compute_in_float32_and_come_back(dtype: torch.dtype) -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(4)).to(dtype).requires_grad_()
    y = fake_quantize(x, S8)
    assert y.dtype == dtype
    assert torch.equal(y, fake_quantize(x.detach().float(), S8).to(dtype))
    y.sum().backward()
    assert x.grad.dtype == dtype
    assert torch.equal(quantize(x, S8).codes, quantize(x.float(), S8).codes)


def test_layout_does_not_matter() -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(5))
    for view in (x.T, x[::2, 1:], x.expand(3, 6, 8)):
        for scheme in (S8, Scheme(int8, granularity=PerChannel(-1))):
            mine, theirs = quantize(view, scheme), quantize(view.contiguous(), scheme)
            assert torch.equal(mine.codes, theirs.codes)
            assert torch.equal(mine.scale, theirs.scale)


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1.2e-38, 1e38, 3.4028234e38])
def test_denormal_and_huge_values_stay_finite(size: float) -> None:
    x = torch.tensor([-size, 0.0, size / 2, size])
    for scheme in SCHEMES:
        q = quantize(x, scheme)
        back = q.dequantize()
        assert bool(torch.isfinite(back).all())
        assert float(back[1]) == 0
        assert float(((back.double() - x.double()) / q.scale.double()).abs().max()) <= 1.01


def test_the_input_and_its_gradient_history_are_left_alone() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(6)).requires_grad_()
    before = x.detach().clone()
    q = quantize(x, S8)
    assert not q.scale.requires_grad
    assert not q.dequantize().requires_grad
    assert torch.equal(x.detach(), before)


def test_a_saturated_value_stops_even_an_infinite_gradient() -> None:
    x = torch.tensor([100.0, 1.0], requires_grad=True)
    y = fake_quantize(x, Scheme(int4), torch.tensor(1.0), point(0))
    y.backward(torch.tensor([float("inf"), 2.0]))
    assert x.grad.tolist() == [0.0, 2.0]

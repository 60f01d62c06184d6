"""Exact accumulators against brute force in arbitrary-precision integers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsmith.errors import DataError
from bitsmith.numbers.integer import conv_accumulate, linear_accumulate, matmul_accumulate
from bitsmith.numbers.integer.accumulate import _exact_dtype


def slow_conv(x, zero_point, weight, stride, padding, dilation, groups):
    """Direct sum over every output of a 2-D convolution, in Python integers."""
    n, _, height, width = x.shape
    out, per_group, kh, kw = weight.shape
    x = np.pad(
        x.astype(object) - zero_point, [(0, 0), (0, 0), (padding, padding), (padding, padding)]
    )
    rows = (height + 2 * padding - dilation * (kh - 1) - 1) // stride + 1
    columns = (width + 2 * padding - dilation * (kw - 1) - 1) // stride + 1
    y = np.zeros((n, out, rows, columns), dtype=object)
    for i, o, r, c in itertools.product(range(n), range(out), range(rows), range(columns)):
        first = o // (out // groups) * per_group
        for j, u, v in itertools.product(range(per_group), range(kh), range(kw)):
            pixel = x[i, first + j, r * stride + u * dilation, c * stride + v * dilation]
            y[i, o, r, c] += pixel * int(weight[o, j, u, v])
    return y


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_convolution_is_the_integer_sum(data):
    draw = data.draw
    groups = draw(st.sampled_from([1, 2, 3]))
    channels, out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    stride, padding, dilation = (draw(st.integers(low, 2)) for low in (1, 0, 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    signed = draw(st.booleans())
    x = (
        rng.integers(0, 256, (2, channels, 6, 5))
        .astype(np.uint8)
        .view(np.int8 if signed else np.uint8)
    )
    weight = rng.integers(-128, 128, (out, channels // groups, *kernel)).astype(np.int8)
    zero_point = int(x.flat[0])
    bias = rng.integers(-(2**30), 2**30, out, dtype=np.int32)
    expected = slow_conv(x, zero_point, weight, stride, padding, dilation, groups)
    found = conv_accumulate(
        torch.from_numpy(x), zero_point, torch.from_numpy(weight), torch.from_numpy(bias),
        (stride,), (padding,), (dilation,), groups,
    )  # fmt: skip
    assert found.dtype == torch.int32
    assert (found.numpy() == (expected + bias[:, None, None]).astype(np.int64)).all()


@pytest.mark.parametrize("inputs", [518, 519, 4096])
def test_sums_on_both_sides_of_the_float32_bound(inputs):
    """127·255·518 < 2^24 < 127·255·519: float32 below, float64 above, the same integers."""
    rng = np.random.default_rng(inputs)
    x = rng.integers(0, 256, (64, inputs), dtype=np.uint8)
    x[0] = 255
    weight = rng.integers(-127, 128, (8, inputs), dtype=np.int8)
    weight[0], weight[1] = 127, -127
    exact = x.astype(np.int64) @ weight.T.astype(np.int64)
    tensors = torch.from_numpy(x), torch.from_numpy(weight)
    expected = torch.float32 if inputs == 518 else torch.float64
    assert _exact_dtype(tensors[0], 0, tensors[1]) == expected
    assert (linear_accumulate(tensors[0], 0, tensors[1]).numpy() == exact).all()
    maps, kernels = tensors[0].view(64, inputs, 1), tensors[1].view(8, inputs, 1)
    assert (conv_accumulate(maps, 0, kernels).numpy()[..., 0] == exact).all()


def test_small_codes_keep_a_heavy_layer_in_float32():
    x = torch.full((1, 4096), 3, dtype=torch.uint8)
    weight = torch.full((1, 4096), -128, dtype=torch.int8)
    assert _exact_dtype(x, 0, weight) == torch.float32
    assert linear_accumulate(x, 0, weight).item() == -128 * 3 * 4096


def test_the_bias_wraps_like_the_runtime():
    x, weight = torch.ones(1, 1, dtype=torch.uint8), torch.ones(1, 1, dtype=torch.int8)
    bias = torch.tensor([2**31 - 1], dtype=torch.int32)
    assert linear_accumulate(x, 0, weight, bias).item() == -(2**31)


@pytest.mark.parametrize("inner", [40, 3000])
def test_matmul_of_two_activations(inner):
    rng = np.random.default_rng(inner)
    a = rng.integers(0, 256, (2, 1, 5, inner), dtype=np.uint8)
    b = rng.integers(0, 256, (3, inner, 4), dtype=np.uint8)
    a[0, 0, 0], b[0, :, 0] = 255, 255
    exact = (a.astype(np.int64) - 7) @ (b.astype(np.int64) - 0)
    found = matmul_accumulate(torch.from_numpy(a), 7, torch.from_numpy(b), 0)
    assert (found.numpy() == exact).all()


def test_every_unsuitable_argument_is_listed():
    x, weight = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"not torch.float32; weight .* torch.uint8; bias .*int64"):
        conv_accumulate(x, 0, weight, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(DataError, match="1 or 2 spatial axes"):
        conv_accumulate(
            torch.zeros(1, 2, dtype=torch.uint8), 0, torch.zeros(1, 2, dtype=torch.int8)
        )

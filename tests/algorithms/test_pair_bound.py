"""Weights that no pair of neighbouring products can saturate: the bound, its cost, its edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsmith.algorithms import Nearest, PairBound
from bitsmith.errors import DataError, SchemeError
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.formats.integer import int4, int8
from bitsmith.numbers.integer import (
    conv_accumulate,
    conv_accumulate_saturating,
    linear_accumulate,
    linear_accumulate_saturating,
    max_pair_sum,
)
from bitsmith.numbers.scheme import PerChannel, PerTensor, Scheme

W8 = Scheme(int8, granularity=PerChannel(0))
ORDERS = ("channels_last", "channels_first", "any")

shapes = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 5)),
    st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3)),
)


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    """Gaussian, heavy-tailed, constant or one-signed weights; some rows zero, some tiny."""
    shape = draw(shapes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    w = torch.randn(shape, generator=generator)
    kind = draw(st.sampled_from(["gaussian", "heavy", "constant", "positive", "two-valued"]))
    if kind == "heavy":
        w = w**5
    if kind == "constant":
        w = torch.ones(shape) * draw(st.sampled_from([1.0, -1.0, 0.3]))
    if kind == "positive":
        w = w.abs()
    if kind == "two-valued":
        w = torch.sign(w)
    for row in draw(st.lists(st.integers(0, shape[0] - 1), max_size=2)):
        w[row] *= draw(st.sampled_from([0.0, 1e-30, 1e6]))
    return w


def crude(w: torch.Tensor) -> torch.Tensor:
    """What everybody does: the range ±63 or ±64 for every weight; the better of the two."""
    errors = []
    for top in (63, 64):
        largest = w.flatten(1).abs().amax(1).double()
        scale = (largest / top).reshape(-1, *[1] * (w.dim() - 1)).clamp(min=1e-37)
        codes = torch.round(w / scale).clamp(-top, top)
        errors.append((w - codes * scale).square().flatten(1).sum(1))
    return torch.minimum(*errors)


@given(w=weights(), order=st.sampled_from(ORDERS))
def test_the_bound_holds(w, order):
    q = PairBound(order)(w, W8).qtensor
    assert q.codes.dtype == torch.int8
    assert int(max_pair_sum(q.codes, order).max()) <= 128


@given(w=weights(), order=st.sampled_from(ORDERS))
def test_it_is_never_worse_than_halving_the_range(w, order):
    q = PairBound(order)(w, W8).qtensor
    error = (w.double() - q.dequantize()).square().flatten(1).sum(1)
    # float32 rounding of scale · code
    slack = 1e-6 * w.double().square().flatten(1).sum(1)
    assert (error <= crude(w.double()) + slack).all()


@given(w=weights(), order=st.sampled_from(ORDERS), factor=st.floats(0.01, 30))
def test_scales_are_at_least_what_is_asked_for(w, order, factor):
    plain = quantize(w, W8)
    least = (plain.scale * factor).clamp(min=1e-30)
    rounded = PairBound(order)(w, W8, min_scale=least)
    assert (rounded.qtensor.scale >= least).all()
    assert int(max_pair_sum(rounded.qtensor.codes, order).max()) <= 128


@pytest.mark.parametrize("order", ORDERS)
def test_weights_that_need_no_bound_lose_nothing(order):
    w = torch.tensor([[1.0, -0.5, 0.004, -0.3, 0.007], [0.2, -1.0, 0.001, -0.003, 0.3]])
    assert int(max_pair_sum(Nearest()(w, W8).qtensor.codes, "any").max()) <= 128
    rounded = PairBound(order)(w, W8)
    assert rounded.error <= rounded.nearest_error


def test_any_pair_is_stricter_than_neighbours():
    w = torch.tensor([[1.0, -0.1, 0.9, -0.1]])
    neighbours, anywhere = PairBound()(w, W8), PairBound("any")(w, W8)
    assert neighbours.error < anywhere.error
    assert neighbours.error == neighbours.nearest_error
    assert int(max_pair_sum(neighbours.qtensor.codes, "any")) > 128


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 1, 1, 1), (4, 1, 3, 3), (2, 3, 1)])
def test_one_element_and_odd_rows(order, shape):
    w = torch.ones(shape)
    q = PairBound(order)(w, W8).qtensor
    assert int(max_pair_sum(q.codes, order).max()) <= 128
    torch.testing.assert_close(q.dequantize(), w, rtol=0.01, atol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_all_zero_rows(order):
    w = torch.zeros(3, 5)
    w[1] = 1.0
    q = PairBound(order)(w, W8).qtensor
    assert q.codes[[0, 2]].abs().sum() == 0
    assert (q.scale > 0).all()


def test_order_is_that_of_the_runtime():
    """Neighbours along the input channels, which lie innermost in the runtime."""
    channels, kernel = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    channels[0, :, 0, 0], kernel[0, 0, 0, :] = 1.0, 1.0
    assert PairBound("channels_last")(channels, W8).qtensor.codes.max() == 64
    assert PairBound("channels_last")(kernel, W8).qtensor.codes.max() == 127
    assert PairBound("channels_first")(channels, W8).qtensor.codes.max() == 127
    assert PairBound("channels_first")(kernel, W8).qtensor.codes.max() == 64


@given(w=weights())
def test_no_sum_saturates_on_the_worst_codes(w):
    q = PairBound()(w, W8).qtensor
    if w.dim() == 2:
        for code in (0, 255):
            x = torch.where(q.codes > 0, 255, code).to(torch.uint8)
            saturating, pairs = linear_accumulate_saturating(x, 0, q.codes)
            assert pairs == 0
            assert torch.equal(saturating, linear_accumulate(x, 0, q.codes))
        return
    x = torch.full((1, *w.shape[1:]), 255, dtype=torch.uint8)
    saturating, pairs = conv_accumulate_saturating(x, 7, q.codes)
    assert pairs == 0
    assert torch.equal(saturating, conv_accumulate(x, 7, q.codes))


@given(w=weights(), order=st.sampled_from(["channels_last", "channels_first", "any"]))
def test_one_scale_for_all_channels(w, order):
    """Bounded like each channel alone, and never worse than half the range."""
    one = Scheme(int8, granularity=PerTensor())
    q = PairBound(order)(w, one).qtensor
    assert q.scale.shape == ()
    assert int(max_pair_sum(q.codes, order).amax()) <= 128
    half = (w.abs().amax() / 64).clamp(min=torch.finfo(torch.float32).tiny)
    halved = (w / half).round().clamp(-64, 64) * half
    unit = w.double().abs().amax().clamp(min=1e-45)
    error, other = (
        float(((x - w).double() / unit).square().sum()) for x in (q.dequantize(), halved)
    )
    assert error <= other * (1 + 1e-5) + 1e-12
    row = w[:1]
    alone = PairBound(order)(row, Scheme(int8, granularity=PerChannel(0))).qtensor
    together = PairBound(order)(row, one).qtensor
    assert torch.equal(alone.codes, together.codes)
    assert torch.equal(alone.scale.reshape(()), together.scale)


def test_nearest_would_saturate():
    q = Nearest()(torch.ones(1, 8), W8).qtensor
    x = torch.full((1, 8), 255, dtype=torch.uint8)
    assert linear_accumulate_saturating(x, 0, q.codes)[1] == 4


def test_fewer_bits_need_no_bound():
    w = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    scheme = Scheme(int4, granularity=PerChannel(0))
    assert torch.equal(PairBound()(w, scheme).qtensor.codes, Nearest()(w, scheme).qtensor.codes)


def test_refusals():
    w = torch.ones(2, 2)
    with pytest.raises(SchemeError, match="per channel of axis 0 or per tensor"):
        PairBound()(w, Scheme(int8, granularity=PerChannel(1)))
    with pytest.raises(SchemeError, match="symmetric"):
        PairBound()(w, Scheme(int8, symmetric=False, granularity=PerChannel(0)))
    w[0, 1] = torch.nan
    with pytest.raises(DataError, match="1 of 4 weights are NaN or infinite"):
        PairBound()(w, W8)

"""The search of ranges: every candidate by brute force, group by group, and never a worse one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsmith.errors import DataError, InputError, SchemeError
from bitsmith.numbers.affine import fake_quantize, quantize, scale_zero_point
from bitsmith.numbers.formats import formats
from bitsmith.numbers.formats.integer import int2, int3, int4, int8, uint2, uint4
from bitsmith.numbers.granularity import PerBlock, PerChannel, PerGroup, PerTensor
from bitsmith.numbers.range_search import search_range
from bitsmith.numbers.ranges import value_range
from bitsmith.numbers.scheme import Scheme

G = torch.Generator().manual_seed(0)
X = torch.randn(6, 32, generator=G) ** 3 * torch.logspace(-3, 3, 6).unsqueeze(1)
SCHEMES = [
    Scheme(int3),
    Scheme(int4, granularity=PerChannel(0)),
    Scheme(int2, granularity=PerChannel(1)),
    Scheme(int2, granularity=PerGroup(8)),
    Scheme(int4, granularity=PerBlock((3, 16))),
    Scheme(formats["nf4"], granularity=PerGroup(16)),
    Scheme(formats["fp4_e2m1fn"], granularity=PerGroup(16), scale_format=formats["fp16"]),
    Scheme(uint2, False, PerChannel(0)),
    Scheme(uint4, False, PerGroup(16, axis=1)),
]
EACH = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.format}-{s.granularity.name}")


def groups(x: torch.Tensor, scheme: Scheme) -> list[torch.Tensor]:
    """Return a mask for each group that shares a scale."""
    shape = scheme.granularity.scale_shape(x.shape)
    if not shape:
        return [torch.ones(x.shape, dtype=torch.bool)]
    label = torch.arange(math.prod(shape)).view(shape)
    for axis, (n, s) in enumerate(zip(x.shape, shape, strict=True)):
        label = label.repeat_interleave(n // s, axis)
    return [label == i for i in range(math.prod(shape))]


def loss(x, scheme, scale, zero_point, importance, norm) -> torch.Tensor:
    """Return the loss of each group, float64."""
    error = (fake_quantize(x, scheme, scale, zero_point) - x).double().abs() ** norm * importance
    return torch.stack([error[mask].sum() for mask in groups(x, scheme)])


def candidates(x: torch.Tensor, scheme: Scheme, factors: list[float], pairs) -> torch.Tensor:
    """Return ``(scale, zero_point)`` for the same pair of factors in every group."""
    low, high = value_range(x, scheme.granularity.scale_shape(x.shape))
    for a, b in pairs(factors):
        yield scale_zero_point(low * a, high * b, scheme)


@EACH
@pytest.mark.parametrize("norm", [2.0, 2.4, 1.0])
def test_every_group_gets_the_best_of_the_candidates(scheme: Scheme, norm: float) -> None:
    importance = torch.rand(32, generator=torch.Generator().manual_seed(1))
    scale, zero_point = search_range(X, scheme, importance, steps=9, smallest=0.2, norm=norm)
    found = loss(X, scheme, scale, zero_point, importance, norm)
    top = {int2: 3 / 2, int3: 7 / 6, int4: 15 / 14}.get(scheme.format, 1.0)
    factors = [1.0, *torch.linspace(top, 0.2, 9, dtype=torch.float64).tolist()]
    joint = torch.stack(
        [
            loss(X, scheme, *c, importance, norm)
            for c in candidates(X, scheme, factors, lambda f: zip(f, f, strict=True))
        ]
    )
    if scheme.symmetric:
        assert torch.allclose(found, joint.amin(0), rtol=1e-5)
        return
    every = torch.stack(
        [
            loss(X, scheme, *c, importance, norm)
            for c in candidates(X, scheme, factors, lambda f: itertools.product(f, f))
        ]
    )
    assert bool((found <= joint.amin(0) * 1.00001).all())
    assert bool((found >= every.amin(0) * 0.99999).all())
    assert bool((found < joint[0]).any())


@EACH
def test_large_tensors_in_slabs_are_the_same(scheme: Scheme, monkeypatch) -> None:
    importance = torch.rand(6, 32, generator=torch.Generator().manual_seed(1))
    whole = search_range(X, scheme, importance, steps=7)
    monkeypatch.setattr("bitsmith.numbers.range_search._SLAB", 32)
    parts = search_range(X, scheme, importance, steps=7)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    st.lists(FLOATS, min_size=8, max_size=8),
    st.lists(st.floats(0, 100, width=32), min_size=4, max_size=4),
    st.sampled_from(
        [
            Scheme(int2),
            Scheme(int8, granularity=PerChannel(1)),
            Scheme(uint2, False, PerGroup(2)),
            Scheme(formats["fp4_e2m1fn"], granularity=PerGroup(4), scale_format=formats["e8m0"]),
            Scheme(formats["nf4"], granularity=PerTensor()),
        ]
    ),
)
def test_never_worse_than_min_max(values, importance, scheme) -> None:
    x, weight = torch.tensor(values).view(2, 4), torch.tensor(importance)
    found = search_range(x, scheme, weight, steps=5)
    plain = quantize(x, scheme)
    size = x.abs().amax().double().clamp(min=1e-30)
    small = (x.double() / size, weight.double())

    def error(scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
        back = fake_quantize(x, scheme, scale, zero_point).double() / size
        lost = (back - small[0]).square() * small[1]
        return torch.stack([lost[mask].sum() for mask in groups(x, scheme)])

    ours, theirs = error(*found), error(plain.scale, plain.zero_point)
    assert bool((ours <= theirs * 1.0001 + 1e-12 * float(weight.max())).all())


def test_two_level_scales_are_never_worse_over_the_whole_tensor() -> None:
    inner = Scheme(formats["fp8_e4m3fn"], granularity=PerTensor())
    scheme = Scheme(formats["fp4_e2m1fn"], granularity=PerGroup(16), scale_format=inner)
    for seed in range(5):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)) ** 3
        scale, zero_point = search_range(x, scheme, steps=16)
        plain = fake_quantize(x, scheme)
        found = fake_quantize(x, scheme, scale, zero_point)
        assert float((found - x).square().sum()) <= float((plain - x).square().sum())


def test_mx_blocks_may_take_the_scale_above_or_below() -> None:
    scheme = Scheme(formats["fp4_e2m1fn"], granularity=PerGroup(32), scale_format=formats["e8m0"])
    x = torch.full((1, 32), 7.9)  # the MX rule gives scale 1, and 7.9 saturates at 6
    scale, _ = search_range(x, scheme)
    assert float(scale) == 2.0
    x = torch.cat([torch.full((1, 31), 0.26), torch.tensor([[4.1]])], 1)
    scale, _ = search_range(x, scheme, smallest=0.1)
    assert float(scale) < 1.0


def test_importance_moves_the_range_to_what_matters() -> None:
    w = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    w[:, 5] = 12.0  # one input with large weights
    scheme = Scheme(int3, granularity=PerChannel(0))
    for second_moment in (1e-4, 1.0, 1e4):
        importance = torch.ones(64)
        importance[5] = second_moment
        scale, point = search_range(w, scheme, importance)
        plain, _ = search_range(w, scheme)
        mine = loss(w, scheme, scale, point, importance, 2)
        assert bool((mine <= loss(w, scheme, plain, point, importance, 2) * 1.0001).all())
        if second_moment < 1:
            assert bool((scale < 0.6 * plain).any())
        if second_moment > 1:
            assert bool((scale >= 0.95 * plain).all())
    nothing = search_range(w, scheme, torch.zeros(64))
    assert torch.equal(nothing[0], scale_zero_point(*value_range(w, (8, 1)), scheme)[0])


def test_clipping_beats_min_max_on_normal_weights() -> None:
    w = torch.randn(16, 1024, generator=G)
    for number, gain in ((int2, 0.6), (int4, 0.9)):
        scheme = Scheme(number, granularity=PerChannel(0))
        clipped = fake_quantize(w, scheme, *search_range(w, scheme))
        ratio = (clipped - w).square().sum() / (fake_quantize(w, scheme) - w).square().sum()
        assert float(ratio) < gain


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-45, 3.4e38])
def test_constant_denormal_and_huge_tensors(value: float) -> None:
    x = torch.full((2, 4), value)
    for scheme in (Scheme(int4), Scheme(int4, granularity=PerGroup(2)), Scheme(uint4, False)):
        scale, zero_point = search_range(x, scheme)
        back = fake_quantize(x, scheme, scale, zero_point)
        assert float((back - x).abs().max()) <= float((fake_quantize(x, scheme) - x).abs().max())


def test_scalars_other_dtypes_layouts_and_formats_without_a_scale() -> None:
    assert search_range(torch.tensor(3.0), Scheme(int4))[0].shape == ()
    scheme = Scheme(int4, granularity=PerChannel(0))
    expected = search_range(X.half().float(), scheme)
    for other in (X.half(), X.half().double(), X.half().float().T.contiguous().T):
        assert all(
            torch.equal(a, b) for a, b in zip(search_range(other, scheme), expected, strict=True)
        )
    assert float(search_range(X, Scheme(formats["fp16"]))[0]) == 1.0


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match=r"steps .* not 0; smallest .* not 0; norm .* not 9"):
        search_range(X, Scheme(int4), steps=0, smallest=0, norm=9)
    for bad, message in (
        (-torch.ones(32), "32 of 32 importances are negative"),
        (torch.tensor([1.0, math.nan]), "1 of 2 importances"),
        (torch.ones(5), r"\(5,\) does not broadcast"),
        (torch.ones(0), "no values"),
        (torch.ones(32).long(), r"not torch.int64"),
    ):
        with pytest.raises(DataError, match=message):
            search_range(X, Scheme(int4), bad)
    with pytest.raises(DataError, match="1 NaN"):
        search_range(torch.tensor([1.0, math.nan]), Scheme(int4))
    with pytest.raises(DataError, match="no values"):
        search_range(torch.empty(0, 4), Scheme(int4))
    with pytest.raises(SchemeError, match="must divide"):
        search_range(X, Scheme(int4, granularity=PerGroup(5)))

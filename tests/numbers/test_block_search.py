"""Searched blocks: never behind the published search, and refused where they make no sense."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from bitsmith.errors import DataError, SchemeError
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.block_search import search_blocks
from bitsmith.numbers.formats.integer import int4, int8, uint4, uint6
from bitsmith.numbers.formats.minifloat import bf16, e8m0, fp4_e2m1fn, fp16, fp32
from bitsmith.numbers.named_schemes import GGUF_SCHEMES
from bitsmith.numbers.scheme import PerChannel, PerGroup, Scheme
from bitsmith.numbers.stored import from_stored, to_stored
from numbers_reference.published_blocks import WEIGHTS, published

NAMES = pytest.mark.parametrize("name", GGUF_SCHEMES)


def made(kind: str) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 256, generator=g)
    if kind == "laplace":
        return x.abs().mul(torch.randn(300, 256, generator=g)) * 0.02
    if kind == "shifted":
        return x * 0.3 + 0.5
    return x * 0.05


def real() -> torch.Tensor:
    path = Path(os.environ.get("BITSMITH_DATA", "")) / "stories260k.safetensors"
    if not path.is_file():
        pytest.skip("no stories260k.safetensors in BITSMITH_DATA")
    weights = [w.float().flatten() for w in load_file(path).values() if w.dim() == 2]
    flat = torch.cat(weights)
    return flat[: len(flat) // 256 * 256].view(-1, 256)[:400]


@NAMES
@pytest.mark.parametrize("kind", ["gauss", "laplace", "shifted", "real"])
def test_at_least_as_good_as_the_published_search(name: str, kind: str) -> None:
    x = real() if kind == "real" else made(kind)
    exact = x.double().numpy()
    theirs = (published(exact, name) - exact) ** 2
    w = WEIGHTS[name](exact)
    plain = (search_blocks(x, GGUF_SCHEMES[name]).dequantize().double().numpy() - exact) ** 2
    importance = torch.from_numpy(w).float()
    ours = search_blocks(x, GGUF_SCHEMES[name], importance).dequantize().double().numpy() - exact
    assert plain.mean() <= theirs.mean()
    assert (w * ours**2).mean() <= (w * theirs).mean()


@NAMES
def test_better_than_the_range_and_a_whole_tensor(name: str) -> None:
    x, scheme = made("laplace"), GGUF_SCHEMES[name]
    q = search_blocks(x, scheme)
    assert (q.dequantize() - x).norm() < (quantize(x, scheme).dequantize() - x).norm()
    back = from_stored(to_stored(q), scheme, x.shape)
    assert torch.equal(back.dequantize(), q.dequantize())
    assert sum(part.nbytes for part in to_stored(q).values()) == q.nbytes


@NAMES
def test_codes_are_the_nearest_ones(name: str) -> None:
    x = made("gauss")[:20]
    q = search_blocks(x, GGUF_SCHEMES[name])
    error = (q.dequantize() - x).abs()
    for step in (-1, 1):
        moved = (q.codes.int() + step).clamp(q.scheme.code_min, q.scheme.code_max)
        other = type(q)(**{**vars(q), "codes": moved.to(q.codes.dtype)}).dequantize()
        assert bool((error <= (other - x).abs() * (1 + 1e-5) + 1e-9).all())


@NAMES
def test_blocks_do_not_depend_on_what_lies_beside_them(name: str) -> None:
    x, scheme = made("gauss"), GGUF_SCHEMES[name]
    whole = search_blocks(x.reshape(5, 60, 256), scheme).dequantize().reshape(300, 256)
    assert torch.equal(whole[7:9], search_blocks(x[7:9], scheme).dequantize())


@NAMES
def test_zeros_constants_denormals_and_large_values(name: str) -> None:
    x, scheme = torch.zeros(6, 512), GGUF_SCHEMES[name]
    x[1] = 0.25
    x[2] = -3.0
    x[3] = 1e-42
    x[4, ::2] = 5000.0
    x[5, 7] = 1.0
    back = search_blocks(x, scheme).dequantize()
    assert torch.equal(back[0], x[0])
    assert (back - x)[[1, 2, 4, 5]].abs().amax(1).le(x[[1, 2, 4, 5]].abs().amax(1) * 0.05).all()
    assert float(back[3].abs().max()) < 1e-6
    with pytest.raises(SchemeError, match="beyond fp16, whose largest number is 65504"):
        search_blocks(x * 1e20, scheme)


def test_a_sign_is_worth_a_code() -> None:
    x = torch.linspace(-7, 8, 16).repeat(2, 2)
    q = search_blocks(x, GGUF_SCHEMES["Q4_0"])
    assert torch.equal(q.dequantize(), x)
    assert bool((q.scale == -1).all())


def test_an_offset_with_a_sign_spends_no_codes_on_zero() -> None:
    x = 100 + torch.arange(16.0).repeat(1, 2)
    q = search_blocks(x, GGUF_SCHEMES["Q4_1"])
    assert torch.equal(q.dequantize(), x)
    assert bool((q.offset == -100).all())


def test_importance_decides_whose_error_counts() -> None:
    x = made("gauss")
    x[:, 5] = 1.0
    ignored = torch.ones(256)
    ignored[5] = 0
    kept = torch.arange(256) != 5
    plain, weighted = (
        search_blocks(x, GGUF_SCHEMES["Q4_0"], w).dequantize() for w in (None, ignored)
    )
    assert (weighted - x)[:, kept].norm() < (plain - x)[:, kept].norm()


def test_other_formats_of_scales_and_two_levels_of_one() -> None:
    x = made("gauss")
    for scheme in (
        Scheme(int4, granularity=PerGroup(64)),
        Scheme(int8, granularity=PerGroup(32), scale_format=bf16),
        Scheme(uint4, False, PerGroup(32), offset_format=fp32),
        Scheme(int4, granularity=PerGroup(32), scale_format=Scheme(int8, True, PerGroup(8))),
    ):
        q = search_blocks(x, scheme)
        assert (q.dequantize() - x).norm() < (quantize(x, scheme).dequantize() - x).norm()
    assert torch.isfinite(search_blocks(x * 1e37, Scheme(int4, True, PerGroup(64))).scale).all()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 999),
    exponent=st.floats(-6, 3),
    power=st.integers(1, 5),
    shift=st.floats(-2, 2),
    zeros=st.sampled_from([0.0, 0.5, 0.98]),
)
@NAMES
def test_never_worse_than_the_range(
    name: str, seed: int, exponent: float, power: int, shift: float, zeros: float
) -> None:
    """Down to where scales are denormal in fp16; blocks of heavy tails, few values, one sign."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 256, generator=g)
    x = (x.abs().pow(power) * x.sign() + shift) * (torch.rand(2, 256, generator=g) >= zeros)
    x = x / x.abs().amax().clamp(min=1e-3) * 10**exponent
    scheme = GGUF_SCHEMES[name]
    size = 32 if "_K" not in name else 256
    searched, plain = (
        (f(x, scheme).dequantize() - x).reshape(-1, size).norm(dim=1)
        for f in (search_blocks, quantize)
    )
    assert bool((searched <= plain * 1.0001).all())


UINT6 = Scheme(uint6, False, PerGroup(8), scale_format=fp16)


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        (Scheme(uint4, False, PerGroup(32)), "use search_range"),
        (Scheme(fp4_e2m1fn, granularity=PerGroup(32)), "when it is an integer format"),
        (Scheme(int4), r"groups along the last axis, PerGroup\(size\), not PerTensor"),
        (Scheme(int4, True, PerGroup(4, axis=0)), "along the last axis"),
        (Scheme(int4, True, PerGroup(32), rounding="floor"), "not by floor"),
        (Scheme(int4, True, PerGroup(32), scale_format=e8m0), "a float format with a sign"),
        (
            Scheme(int4, True, PerGroup(32), scale_format=Scheme(int8, True, PerChannel(0))),
            "integers in groups along the last axis",
        ),
        (Scheme(uint4, False, PerGroup(32), offset_format=UINT6), "have the same levels"),
        (
            Scheme(int4, True, PerGroup(32), scale_format=Scheme(int8, False, PerGroup(8))),
            "have no zero point",
        ),
    ],
)
def test_schemes_that_are_not_searched_are_refused(scheme: Scheme, reason: str) -> None:
    with pytest.raises(SchemeError, match=reason):
        search_blocks(made("gauss"), scheme)


def test_bad_values_are_refused() -> None:
    scheme, x = GGUF_SCHEMES["Q4_0"], made("gauss")
    for bad, reason in (
        (x / 0, "infinite"),
        (x[:0], "has no values"),
        (torch.arange(32), "floating-point tensor"),
    ):
        with pytest.raises(DataError, match=reason):
            search_blocks(bad, scheme)
    with pytest.raises(SchemeError, match="group_size must divide"):
        search_blocks(x[:, :100], scheme)
    for bad, reason in (
        (-torch.ones(256), "256 of 256 importances are negative"),
        (torch.ones(7), "does not broadcast"),
        (torch.ones(0), "no values"),
    ):
        with pytest.raises(DataError, match=reason):
            search_blocks(x, scheme, bad)


def test_float64_and_turned_tensors() -> None:
    x = made("gauss")
    expected = search_blocks(x, GGUF_SCHEMES["Q6_K"]).dequantize()
    assert torch.equal(search_blocks(x.double(), GGUF_SCHEMES["Q6_K"]).dequantize(), expected)
    turned = x.T.contiguous().T
    assert torch.equal(search_blocks(turned, GGUF_SCHEMES["Q6_K"]).dequantize(), expected)
    assert np.isfinite(expected.numpy()).all()

"""GPTQ against a plain sequential reference, brute force, nearest rounding, and its edges."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from bitsmith.algorithms import GPTQ, Searched
from bitsmith.algorithms.objective import output_error
from bitsmith.algorithms.roundings.gptq import gptq_codes
from bitsmith.errors import DataError, InputError, SchemeError
from bitsmith.numbers import (
    Gram,
    PerChannel,
    PerGroup,
    PerTensor,
    Scheme,
    codebook2,
    int2,
    int3,
    int4,
    named_scheme,
    nf4,
    quantize,
    search_range,
    uint2,
    uint3,
)


def layer(seed: int, out: int, features: int, rows: int = 0) -> tuple[torch.Tensor, Gram]:
    """Random weights and correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows or 4 * features, features, generator=generator)
    x = x @ torch.randn(features, features, generator=generator)
    x *= torch.rand(features, generator=generator) * 3
    gram = Gram()
    gram.update(x)
    return torch.randn(out, features, generator=generator), gram


def one_by_one(
    w: list[list[float]],
    h: list[list[float]],
    order: list[int],
    scale: list[list[float]],
    zero: list[list[float]],
    low: int,
    high: int,
) -> list[list[float]]:
    """Optimal brain quantization in a given order, with the inverse updated after each weight
    (arXiv 2208.11580, eqs. 2 and 4): plain Python, no Cholesky, no blocks.
    """
    n = len(h)
    inverse = torch.linalg.inv(torch.tensor(h, dtype=torch.float64)).tolist()
    codes = [[0.0] * n for _ in w]
    w = [row[:] for row in w]
    for i in order:
        for r, row in enumerate(w):
            code = min(max(round(row[i] / scale[r][i]) + zero[r][i], low), high)
            codes[r][i] = code
            error = (row[i] - (code - zero[r][i]) * scale[r][i]) / inverse[i][i]
            for j in range(n):
                row[j] -= error * inverse[i][j]
        pivot = inverse[i][:]
        for a in range(n):
            factor = pivot[a] / pivot[i]
            for b in range(n):
                inverse[a][b] -= factor * pivot[b]
        for a in range(n):
            inverse[a][i] = inverse[i][a] = 0.0
    return codes


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(int3, granularity=PerChannel(0)),
        Scheme(uint3, False, granularity=PerChannel(0)),
        Scheme(int2, granularity=PerTensor()),
        Scheme(int3, granularity=PerGroup(4)),
        Scheme(uint2, False, granularity=PerGroup(12)),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_sequential_optimal_brain_quantization(scheme, act_order, seed):
    """Also with groups whose range is that of the weights as they are when the group begins."""
    w, gram = layer(seed, 3, 12)
    damping = 0.02
    q = gptq_codes(w, gram.sums, scheme, damping=damping, act_order=act_order)
    diagonal = gram.sums.diagonal()
    damped = gram.sums + damping * diagonal.mean() * torch.eye(12)
    order = sorted(range(12), key=lambda i: -float(diagonal[i])) if act_order else list(range(12))
    repeat = (
        3 // (q.scale.shape[0] if q.scale.dim() else 1),
        12 // (q.scale.shape[1] if q.scale.dim() else 1),
    )
    grid = [part.reshape(q.scale.shape or (1, 1)).double() for part in (q.scale, q.zero_point)]
    scale, zero = (p.repeat_interleave(repeat[0], 0).repeat_interleave(repeat[1], 1) for p in grid)
    expected = one_by_one(
        w.double().tolist(), damped.tolist(), order, scale.tolist(), zero.tolist(),
        scheme.code_min, scheme.code_max,
    )  # fmt: skip
    assert q.codes.tolist() == expected


def test_blocks_change_nothing():
    """300 inputs take three blocks; the reference has none."""
    w, gram = layer(0, 2, 300)
    scheme = Scheme(int3, granularity=PerChannel(0))
    q = gptq_codes(w, gram.sums, scheme, damping=0.1)
    damped = gram.sums + 0.1 * gram.sums.diagonal().mean() * torch.eye(300)
    h = damped / damped.diagonal().mean()
    order = torch.argsort(h.diagonal(), descending=True).tolist()
    left, inverse, codes = w.double(), torch.linalg.inv(h), torch.zeros(2, 300)
    for i in order:
        codes[:, i] = (left[:, i] / q.scale[:, 0]).round().clamp(-4, 3)
        error = (left[:, i] - codes[:, i] * q.scale[:, 0]) / inverse[i, i]
        left = left - error[:, None] * inverse[i]
        inverse = inverse - inverse[:, i : i + 1] * inverse[i : i + 1] / inverse[i, i]
    assert torch.equal(codes, q.codes.float())


def test_groups_follow_the_weights_as_they_are():
    w, gram = layer(3, 4, 32)
    scheme = Scheme(int3, granularity=PerGroup(8))
    q = gptq_codes(w, gram.sums, scheme, act_order=False)
    importance = gram.sums.diagonal() / gram.sums.diagonal().mean() + 0.01
    static, _ = search_range(w, scheme, importance.float())
    assert torch.equal(q.scale[:, 0], static[:, 0])
    assert (q.scale[:, 1:] != static[:, 1:]).any()
    assert torch.equal(gptq_codes(w, gram.sums, scheme).scale, static)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), scheme=st.sampled_from([int2, int3, uint2]))
def test_between_the_optimum_and_nearest(seed, scheme):
    """The optimum is found by trying both neighbours of every weight, 2^8 each row.

    Codes outside the two neighbours may be better still, so the bound has the codes of GPTQ too.
    """
    w, gram = layer(seed, 2, 8, rows=12)
    full = Scheme(scheme, symmetric=scheme is not uint2, granularity=PerChannel(0))
    q = gptq_codes(w, gram.sums, full)
    found = output_error(w, q.dequantize(), gram)
    searched = quantize(w, full, q.scale, q.zero_point)
    below = torch.floor(w / q.scale) + q.zero_point
    choices = torch.tensor(list(itertools.product([0, 1], repeat=8)))  # [256, 8]
    best = 0.0
    for row in range(2):
        codes = (below[row] + choices).clamp(full.code_min, full.code_max)
        d = (w[row] - (codes - q.zero_point[row]) * q.scale[row]).double()
        best += float(((d @ gram.sums) * d).sum(1).min()) / (2 * gram.rows)
    assert best <= output_error(w, searched.dequantize(), gram) + 1e-12
    rounded = GPTQ()(w, full, statistic=gram)
    assert rounded.objective <= rounded.nearest_objective
    # Greedy, not optimal: within a factor of the best that nearest is far from.
    assert found <= 20 * best + 1e-9


def test_on_average_it_is_near_the_optimum_and_nearest_is_not():
    found = nearest = best = 0.0
    scheme = Scheme(int3, granularity=PerChannel(0))
    choices = torch.tensor(list(itertools.product([0, 1], repeat=8)))
    for seed in range(20):
        w, gram = layer(seed, 1, 8, rows=12)
        q = gptq_codes(w, gram.sums, scheme)
        codes = (torch.floor(w / q.scale) + choices).clamp(-4, 3)
        d = (w - codes * q.scale).double()
        scored = float(((d @ gram.sums) * d).sum(1).min()) / gram.rows
        best += 1.0
        found += output_error(w, q.dequantize(), gram) / scored
        nearest += (
            output_error(w, quantize(w, scheme, q.scale, q.zero_point).dequantize(), gram) / scored
        )
    assert found / best < 1.7
    assert nearest / best > 2.2


@settings(max_examples=12)
@given(
    seed=st.integers(0, 1000),
    scheme=st.sampled_from(
        [
            Scheme(int3, granularity=PerChannel(0)),
            Scheme(uint3, False, granularity=PerGroup(4)),
            Scheme(nf4, granularity=PerGroup(8)),
            Scheme(int4, granularity=PerGroup(8), rounding="half_away"),
        ]
    ),
    act_order=st.booleans(),
)
def test_uncorrelated_inputs_leave_nearest_rounding(seed, scheme, act_order):
    w = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed))
    q = gptq_codes(w, torch.eye(16, dtype=torch.float64) * 7, scheme, act_order=act_order)
    plain = quantize(w, scheme, *search_range(w, scheme))
    assert torch.equal(q.codes, plain.codes)
    assert torch.equal(q.scale, plain.scale)
    assert torch.equal(q.zero_point, plain.zero_point)


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(int3, granularity=PerChannel(0)),
        Scheme(int3, granularity=PerGroup(4, axis=1)),
        Scheme(uint3, False, granularity=PerTensor()),
    ],
    ids=str,
)
def test_convolutions(scheme):
    """The error it lowers is that of the convolution itself."""
    generator = torch.Generator().manual_seed(0)
    x = functional.avg_pool2d(torch.randn(16, 4, 10, 10, generator=generator), 3, 1)
    w = torch.randn(6, 4, 3, 3, generator=generator)
    gram = Gram()
    gram.update(functional.unfold(x, 3, padding=1).transpose(1, 2))
    rounded = GPTQ()(w, scheme, statistic=gram)
    exact = functional.conv2d(x, w, padding=1).double()
    error = (functional.conv2d(x, rounded.qtensor.dequantize(), padding=1) - exact).square().mean()
    assert rounded.objective == pytest.approx(float(error), rel=1e-4)
    assert rounded.objective < 0.6 * rounded.nearest_objective


@pytest.mark.parametrize(
    ("scheme", "factor"),
    [
        (Scheme(int3, granularity=PerGroup(32)), 0.5),
        (Scheme(uint3, False, granularity=PerGroup(32)), 0.5),
        (Scheme(int4, granularity=PerChannel(0)), 0.4),
        (Scheme(nf4, granularity=PerGroup(32)), 0.5),
        (named_scheme("nvfp4"), 0.6),
        (named_scheme("mxfp4"), 0.6),
    ],
    ids=str,
)
@pytest.mark.parametrize("act_order", [True, False])
def test_correlated_inputs_lower_the_output_error(scheme, factor, act_order):
    """Spectrum ∝ 1/k², about that of hidden states; below searched ranges by the factor, too."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(128, 128, generator=generator))
    x = torch.randn(512, 128, generator=generator) / torch.arange(1, 129) @ basis
    gram = Gram()
    gram.update(x)
    w = torch.randn(64, 128, generator=generator)
    rounded = GPTQ(act_order=act_order)(w, scheme, statistic=gram)
    assert rounded.objective < factor * rounded.nearest_objective
    assert rounded.objective < factor * Searched()(w, scheme, statistic=gram).objective * 1.3


def test_inputs_that_were_always_zero_are_rounded_to_nearest():
    w, gram = layer(1, 4, 16)
    dead = [0, 5, 6]
    gram.sums[dead] = 0
    gram.sums[:, dead] = 0
    q = gptq_codes(w, gram.sums, Scheme(int3, granularity=PerChannel(0)))
    plain = quantize(w, q.scheme, q.scale, q.zero_point)
    assert torch.equal(q.codes[:, dead], plain.codes[:, dead])
    assert (q.codes != plain.codes).any()


def test_fewer_rows_than_features_take_the_damping():
    w, gram = layer(0, 4, 32, rows=3)
    for damping in (0.0, 0.01):
        rounded = GPTQ(damping=damping)(w, Scheme(int3, granularity=PerChannel(0)), statistic=gram)
        assert rounded.objective < 0.1 * rounded.nearest_objective


def test_refusals():
    w, gram = layer(0, 2, 4)
    scheme = Scheme(int3, granularity=PerChannel(0))
    with pytest.raises(DataError, match="gptq needs data: the gram statistic"):
        GPTQ()(w, scheme)
    with pytest.raises(SchemeError, match="codebook2 here has a learned table: use kmeans"):
        gptq_codes(w, gram.sums, Scheme(codebook2))
    with pytest.raises(InputError, match="damping is 0 or more, not -1"):
        gptq_codes(w, gram.sums, scheme, damping=-1)
    with pytest.raises(DataError, match=r"4 inputs, not one of shape \(3, 3\)"):
        gptq_codes(w, gram.sums[:3, :3], scheme)
    bad = gram.sums.clone()
    bad[0, 1] = torch.inf
    with pytest.raises(DataError, match="1 of 16 entries"):
        gptq_codes(w, bad, scheme)
    swapped = torch.tensor([[1.0, 30.0], [30.0, 1.0]], dtype=torch.float64)
    with pytest.raises(DataError, match="not positive definite"):
        gptq_codes(w[:, :2], swapped, scheme)

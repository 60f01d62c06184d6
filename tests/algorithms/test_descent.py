"""Coordinate descent and learned rounding: against brute force, and against where they start."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from bitsmith.algorithms import GPTQ, AdaRound, Coordinate, Searched
from bitsmith.algorithms.descent import descend, hessian
from bitsmith.algorithms.objective import output_error
from bitsmith.algorithms.scale_refit import refit_scales
from bitsmith.errors import DataError, InputError, SchemeError
from bitsmith.numbers import (
    Gram,
    PerChannel,
    PerGroup,
    PerTensor,
    Scheme,
    codebook2,
    fp16,
    int2,
    int3,
    int8,
    nf4,
    quantize,
    search_range,
    uint2,
)

CHANNELS = PerChannel(0)


def layer(seed: int, out: int, features: int) -> tuple[torch.Tensor, Gram]:
    """Random weights and correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6 * features, features, generator=generator)
    x = x @ torch.randn(features, features, generator=generator)
    x *= torch.rand(features, generator=generator) * 3
    gram = Gram()
    gram.update(x)
    return torch.randn(out, features, generator=generator), gram


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trace(w: torch.Tensor, q, h: torch.Tensor) -> float:
    d = (q.dequantize() - w).flatten(1).double()
    return float((d @ h @ d.T).trace())


@settings(max_examples=20)
@given(seed=st.integers(0, 9999), scheme=st.sampled_from([
    Scheme(int2, granularity=CHANNELS), Scheme(uint2, False, granularity=PerGroup(3)),
    Scheme(int3), Scheme(nf4, granularity=CHANNELS),
]))  # fmt: skip
def test_where_a_descent_ends_no_single_code_is_better(seed, scheme):
    """Every other code of every weight, tried one by one with the error computed anew."""
    w, gram = layer(seed, 2, 6)
    h = hessian(gram, w, 0.01)
    start = quantize(w, scheme, *search_range(w, scheme))
    found = descend(w, start, h, sweeps=100)
    least = trace(w, found, h)
    assert least <= trace(w, start, h)
    assert torch.equal(found.scale, start.scale)
    codes = range(scheme.code_min, scheme.code_max + 1) if scheme.affine else range(16)
    for r, k, code in itertools.product(range(2), range(6), codes):
        other = found.codes.clone()
        other[r, k] = code
        changed = type(found)(other, found.scale, found.zero_point, None, scheme)
        assert trace(w, changed, h) >= least * (1 - 1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 9999))
def test_codes_of_some_levels_end_where_none_of_them_is_better(seed):
    w, gram = layer(seed, 2, 6)
    h, levels = hessian(gram, w, 0.01), torch.tensor([-90, -20, 5, 127], dtype=torch.int8)
    whole = quantize(w, Scheme(int8, granularity=CHANNELS))
    start = replace(whole, codes=levels[torch.randint(4, (2, 6), generator=seeded(seed))])
    found = descend(w, start, h, sweeps=100, levels=levels)
    least = trace(w, found, h)
    assert least <= trace(w, start, h)
    assert set(found.codes.flatten().tolist()) <= set(levels.tolist())
    for r, k, code in itertools.product(range(2), range(6), levels.tolist()):
        other = found.codes.clone()
        other[r, k] = code
        assert trace(w, replace(found, codes=other), h) >= least * (1 - 1e-6)


def test_a_sweep_of_little_gain_is_the_last():
    w, gram = layer(0, 16, 64)
    h = hessian(gram, w, 0.01)
    start = quantize(w, Scheme(int2, granularity=CHANNELS))
    errors = [trace(w, descend(w, start, h, sweeps=n), h) for n in (1, 2, 3, 50)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < errors[2]
    first_gain = 1 - errors[0] / trace(w, start, h)
    assert trace(w, descend(w, start, h, gain=0.999 * first_gain + 0.001), h) == errors[0]
    share = 1 - errors[1] / errors[0]
    assert trace(w, descend(w, start, h, gain=1.001 * share), h) == errors[1]


def test_both_come_close_to_the_optimum():
    """All 4^6 rows of codes of one range; the descent from the same range, and the training."""
    sums = [sum(part) for part in zip(*map(against_brute_force, range(6)), strict=True)]
    assert sums[0] <= sums[1] <= 1.15 * sums[0]
    assert sums[0] <= sums[2] <= 1.3 * sums[0]


def against_brute_force(seed: int) -> tuple[float, float, float]:
    w, gram = layer(seed, 4, 6)
    scheme = Scheme(int2, granularity=CHANNELS)
    trained = AdaRound(refits=0, iterations=300)(w, scheme, statistic=gram)
    moved = Coordinate(refits=0)(w, scheme, statistic=gram)
    assert torch.equal(trained.qtensor.scale, moved.qtensor.scale)
    codes = torch.tensor(list(itertools.product(range(-2, 2), repeat=6))).float()
    best = 0.0
    for row, scale in zip(w, moved.qtensor.scale, strict=True):
        d = (codes * scale - row).double()
        best += float(((d @ gram.sums) * d).sum(1).min()) / (4 * gram.rows)
    return best, trained.objective, moved.objective


def test_better_than_gptq_and_searched_on_correlated_inputs():
    """As sums over layers: single layers may fall out either way."""
    for scheme in (
        Scheme(int3, granularity=CHANNELS),
        Scheme(uint2, False, granularity=PerGroup(16)),
    ):
        sums = dict.fromkeys(("searched", "gptq", "coordinate", "adaround"), 0.0)
        for seed in range(3):
            w, gram = layer(seed, 16, 48)
            for way in (Searched(), GPTQ(), Coordinate(), AdaRound(iterations=300)):
                sums[way.name] += way(w, scheme, statistic=gram).objective
        assert sums["adaround"] < sums["coordinate"] < sums["gptq"] < sums["searched"]


def test_the_training_helps_beyond_the_descents_around_it():
    plain = trained = 0.0
    for seed in range(4):
        w, gram = layer(seed, 8, 32)
        scheme = Scheme(int2, granularity=CHANNELS)
        plain += AdaRound(iterations=0)(w, scheme, statistic=gram).objective
        trained += AdaRound(iterations=400)(w, scheme, statistic=gram).objective
    assert trained < 0.97 * plain
    one = AdaRound(iterations=0)(w, scheme, statistic=gram).qtensor
    other = Coordinate()(w, scheme, statistic=gram).qtensor
    assert torch.equal(one.codes, other.codes)


@pytest.mark.parametrize("way", [Coordinate(), AdaRound(iterations=100)], ids=lambda w: w.name)
def test_convolutions_meet_their_inputs_as_unfold_lays_them_out(way):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 9, 9, generator=generator).cumsum(2).cumsum(3)  # neighbours are alike
    w = torch.randn(8, 3, 3, 3, generator=generator)
    gram = Gram()
    gram.update(functional.unfold(x, 3, padding=1).mT)
    scheme = Scheme(int3, granularity=CHANNELS)
    found = way(w, scheme, statistic=gram)
    exact = functional.conv2d(x, w, padding=1)

    def error(q) -> float:
        return float((functional.conv2d(x, q.dequantize(), padding=1) - exact).square().mean())

    assert error(found.qtensor) == pytest.approx(found.objective, rel=1e-3)
    assert error(found.qtensor) < error(GPTQ()(w, scheme, statistic=gram).qtensor)


@pytest.mark.parametrize("scheme", [
    Scheme(int2, granularity=CHANNELS), Scheme(uint2, False, granularity=PerGroup(8)),
    Scheme(int3, granularity=PerGroup(8), scale_format=fp16), Scheme(nf4, granularity=CHANNELS),
], ids=str)  # fmt: skip
def test_refitted_scales_are_least_squares(scheme):
    """For one group, torch's solver on the Cholesky factor; with more, the error only falls."""
    w, gram = layer(1, 4, 16)
    h = hessian(gram, w, 0.01)
    q = quantize(w, scheme)
    found = refit_scales(w, q, h, torch.zeros_like(q.scale))
    assert torch.equal(found.codes, q.codes)
    assert trace(w, found, h) < trace(w, q, h)
    stored = found.scale.half().float() if scheme.scale_format == fp16 else found.scale
    assert torch.equal(stored, found.scale)
    if scheme.granularity == CHANNELS:
        root = torch.linalg.cholesky(h).T
        levels = q.dequantize().double() / q.scale
        for row, level, scale in zip(w, levels, found.scale, strict=True):
            wanted = torch.linalg.lstsq(root @ level[:, None], root @ row[:, None].double())
            assert float(scale) == pytest.approx(float(wanted.solution), rel=1e-5)
    floor = torch.full_like(q.scale, 2.0)
    assert torch.equal(refit_scales(w, q, h, floor).scale[q.scale < 2], q.scale[q.scale < 2])
    whole = quantize(w, Scheme(int2))
    assert refit_scales(w, whole, h, torch.zeros(())) is whole


def test_inputs_that_were_always_0_keep_their_nearest_codes():
    w, _ = layer(2, 4, 12)
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(3)).cumsum(1)
    x[:, [2, 7]] = 0
    gram = Gram()
    gram.update(x)
    for way in (Coordinate(refits=0), AdaRound(refits=0, iterations=100)):
        q = way(w, Scheme(int3), statistic=gram).qtensor
        again = quantize(w, Scheme(int3), q.scale, q.zero_point)
        assert torch.equal(q.codes[:, [2, 7]], again.codes[:, [2, 7]])


def test_the_same_result_whatever_the_size_of_weights_and_inputs():
    w, gram = layer(5, 4, 16)
    scheme = Scheme(int3, granularity=PerTensor())
    state = gram.state_dict()
    for way in (Coordinate(), AdaRound(iterations=60)):
        codes = way(w, scheme, statistic=gram).qtensor.codes
        scaled = Gram.from_state({**state, "sums": gram.sums * 2.0**40})
        assert torch.equal(way(w * 2.0**-60, scheme, statistic=scaled).qtensor.codes, codes)


def test_refusals_and_options():
    w, gram = layer(0, 2, 4)
    for kind in (Coordinate, AdaRound):
        with pytest.raises(SchemeError, match="learned table: use kmeans"):
            Coordinate()(w, Scheme(codebook2), statistic=gram)
        with pytest.raises(InputError, match="starts from gptq, searched or nearest, not 'hqq'"):
            kind(start="hqq")(w, Scheme(int2), statistic=gram)
        with pytest.raises(InputError, match="sweeps"):
            kind(sweeps=0)
        with pytest.raises(InputError, match="refits"):
            kind(refits=-1)
        with pytest.raises(InputError, match="damping is 0 or more, not -1"):
            kind(damping=-1.0)(w, Scheme(int2), statistic=gram)
        with pytest.raises(DataError, match="needs data"):
            kind()(w, Scheme(int2))
        for start in ("searched", "nearest"):
            found = kind(start=start)(w, Scheme(int2), statistic=gram)
            assert found.objective <= output_error(
                w, Searched()(w, Scheme(int2)).qtensor.dequantize(), gram
            ) or found.objective < found.nearest_objective  # fmt: skip
    with pytest.raises(SchemeError, match="table of values: use coordinate"):
        AdaRound()(w, Scheme(nf4), statistic=gram)
    for bad in ({"rate": 0.0}, {"regularization": -1.0}, {"rate": float("inf")}):
        with pytest.raises(InputError, match="rate is above 0"):
            AdaRound(**bad)

"""Descent in groups against brute force, against each group alone, and at its edges."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from bitsmith.algorithms.grouped_descent import descend_groups
from bitsmith.errors import DataError, SchemeError
from bitsmith.numbers import PerChannel, PerGroup, QTensor, Scheme, int2, int4, quantize

ROWS = Scheme(int4, granularity=PerChannel(0))


def problem(seed: int, groups: int, out: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 3 * k, k, generator=g) @ torch.randn(groups, k, k, generator=g)
    gram = (x.transpose(1, 2) @ x).double()
    return torch.randn(groups * out, k, generator=g), gram


def error(w: torch.Tensor, q: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    d = (w - q).double().reshape(len(gram), -1, w.shape[1])
    return ((d @ gram) * d).sum(2).reshape(-1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scheme", [ROWS, Scheme(int4), Scheme(int2, granularity=PerChannel(0))])
def test_the_error_falls(seed, scheme):
    w, gram = problem(seed, 8, 3, 9)
    start = quantize(w, scheme)
    done = descend_groups(w, start, gram)
    before = float(error(w, start.dequantize(), gram).sum())
    after = float(error(w, done.dequantize(), gram).sum())
    assert after < 0.8 * before
    assert done.scheme == scheme
    assert scheme.code_min <= int(done.codes.min()) <= int(done.codes.max()) <= scheme.code_max


def test_groups_do_not_see_each_other():
    w, gram = problem(0, 6, 2, 5)
    start = quantize(w, ROWS)
    together = descend_groups(w, start, gram)
    for g in range(6):
        rows = slice(2 * g, 2 * g + 2)
        own = QTensor(start.codes[rows], start.scale[rows], start.zero_point[rows], None, ROWS)
        alone = descend_groups(w[rows], own, gram[g : g + 1])
        assert torch.equal(alone.codes, together.codes[rows])
        assert torch.allclose(alone.scale, together.scale[rows])


def test_one_sweep_leaves_no_better_single_code():
    """After convergence every other value of every code is no better, by trying them all."""
    w, gram = problem(3, 4, 2, 4)
    done = descend_groups(w, quantize(w, ROWS), gram, sweeps=50)
    scale = done.scale.reshape(-1, 1)
    best = error(w, done.codes * scale, gram)
    for row, k, code in itertools.product(range(8), range(4), range(-8, 8)):
        codes = done.codes.clone()
        codes[row, k] = code
        assert error(w, codes * scale, gram)[row] >= best[row] * (1 - 1e-9)


def test_codes_of_some_levels():
    """Among a few levels every single other one is no better, by trying them all."""
    w, gram = problem(4, 4, 2, 4)
    levels = torch.tensor([-7, -2, 0, 5], dtype=torch.int8)
    whole = quantize(w, ROWS)
    start = replace(whole, codes=levels[whole.codes.long() % 4])
    done = descend_groups(w, start, gram, sweeps=50, levels=levels)
    assert set(done.codes.flatten().tolist()) <= set(levels.tolist())
    best = error(w, done.dequantize(), gram)
    assert (best <= error(w, start.dequantize(), gram)).all()
    for row, k, code in itertools.product(range(8), range(4), levels.tolist()):
        codes = done.codes.clone()
        codes[row, k] = code
        assert error(w, codes * done.scale.reshape(-1, 1), gram)[row] >= best[row] * (1 - 1e-6)


def test_a_diagonal_matrix_leaves_nearest_codes():
    w, _ = problem(1, 4, 3, 9)
    start = quantize(w, ROWS)
    found = descend_groups(w, start, torch.eye(9).double().expand(4, 9, 9), sweeps=1)
    real = w / start.scale
    tie = (real - real.floor() - 0.5).abs() < 1e-5  # the end of the full range is one
    assert torch.equal(found.codes[~tie], start.codes[~tie])


def test_dead_inputs_and_smallest_scales():
    w, gram = problem(2, 4, 3, 9)
    gram[:, 2] = 0
    gram[:, :, 2] = 0
    start = quantize(w, ROWS)
    done = descend_groups(w, start, gram, min_scale=start.scale)
    assert torch.equal(done.codes[:, 2], start.codes[:, 2])
    assert (done.scale >= start.scale).all()
    nothing = descend_groups(w, start, torch.zeros_like(gram))
    assert torch.equal(nothing.codes, start.codes)
    assert torch.equal(nothing.scale, start.scale)


def test_refusals():
    w, gram = problem(2, 4, 3, 9)
    with pytest.raises(DataError, match="Gram matrices"):
        descend_groups(w, quantize(w, ROWS), gram[:, :8, :8])
    with pytest.raises(DataError, match="Gram matrices"):
        descend_groups(w, quantize(w, ROWS), gram[:1].expand(5, 9, 9))
    by_three = Scheme(int4, granularity=PerGroup(3))
    with pytest.raises(SchemeError, match="per tensor or output channel"):
        descend_groups(w, quantize(w, by_three), gram)

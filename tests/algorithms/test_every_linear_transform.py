"""The contract of every linear transform, the published rules of splitting, and rotations."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitsmith.algorithms import LinearTransform, Mapped, OutlierSplit, Rotation
from bitsmith.algorithms.linear_transform import map_inputs
from bitsmith.algorithms.transforms.rotation import orthogonal
from bitsmith.errors import DataError, InputError, SchemeError
from bitsmith.numbers import (
    Gram,
    PerChannel,
    PerGroup,
    PerTensor,
    Scheme,
    fake_quantize,
    int4,
    int8,
    quantize,
    uint4,
)

TRANSFORMS = {name: LinearTransform.registry[name] for name in LinearTransform.registry}
ALL = pytest.mark.parametrize("name", list(TRANSFORMS))
SCHEMES = [
    Scheme(int4),
    Scheme(int4, granularity=PerChannel(0)),
    Scheme(uint4, False, granularity=PerChannel(0)),
]


def outliers(seed: int, *shape: int, by: float = 8.0) -> Tensor:
    """Random weights with one input of which all are large, and another with a single one."""
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    w[:, 3] *= by
    w[0, 5] = 1.5 * by
    return w


def test_the_family():
    assert list(TRANSFORMS) == ["outlier-split", "rotation"]


@ALL
@settings(max_examples=20)
@given(
    seed=st.integers(0, 99),
    scheme=st.sampled_from(SCHEMES),
    size=st.sampled_from([1.0, 1e-30, 1e30]),
    inputs=st.sampled_from([6, 16, 24]),
)
def test_the_function_stays(name, seed, scheme, size, inputs):
    weights = [outliers(seed, n, inputs, *k) * size for n, k in ((5, ()), (8, (3, 3)))]
    done = TRANSFORMS[name]()(weights, scheme)
    new = done.matrix.shape[1]
    for old, w in zip(weights, done.weights, strict=True):
        assert w.shape == (len(old), new, *old.shape[2:])
        x = torch.randn(7, inputs, *old.shape[2:], generator=torch.Generator().manual_seed(seed))
        mapped = torch.einsum("ni...,ij->nj...", x.double(), done.matrix.double())
        before = x.flatten(1).double() @ old.flatten(1).double().T
        after = mapped.flatten(1) @ w.flatten(1).double().T
        bound = 1e-5 * x.flatten(1).abs().double() @ old.flatten(1).abs().double().T
        bound = bound.max()  # a rotation mixes large with small
        assert ((after - before).abs() <= bound).all()
    assert done.kept_identity == torch.equal(done.matrix, torch.eye(inputs))
    if TRANSFORMS[name].lowers_error:
        assert done.objective <= done.identity_objective
    again = TRANSFORMS[name]()(weights, scheme)
    assert torch.equal(again.matrix, done.matrix)


@ALL
def test_the_objective_is_true(name):
    w, scheme = outliers(1, 6, 16), SCHEMES[1]
    x = torch.randn(60, 16, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.1, 3, 16)
    gram = Gram()
    gram.update(x)
    for seen in (None, gram):
        done = TRANSFORMS[name]()([w], scheme, gram=seen)
        pairs = ((w, torch.eye(16)), (done.weights[0], done.matrix))
        found = []
        for new, matrix in pairs:
            d = fake_quantize(new, scheme).double() @ matrix.double().T - w
            found.append(float((d if seen is None else x.double() @ d.T).square().mean()))
        assert [done.identity_objective, done.objective] == pytest.approx(found, rel=1e-5)
        assert done.objective < 0.7 * done.identity_objective


@ALL
def test_refusals(name):
    transform = TRANSFORMS[name]()
    with pytest.raises(DataError, match=r"share their in, not \[\]"):
        transform([], SCHEMES[0])
    with pytest.raises(DataError, match=r"share their in, not \[\(2, 4\), \(2, 5\)\]"):
        transform([torch.ones(2, 4), torch.ones(2, 5)], SCHEMES[0])
    with pytest.raises(DataError, match="1 NaN"):
        transform([torch.tensor([[1.0, torch.nan]])], SCHEMES[0])
    with pytest.raises(DataError):
        transform([torch.ones(0, 4)], SCHEMES[0])
    zero = transform([torch.zeros(4, 8)], SCHEMES[0])
    assert zero.objective == 0


def test_a_map_that_changes_the_function_is_caught():
    class Halved(LinearTransform, name="halved for this test"):
        def map(self, weights: Sequence[Tensor], scheme: Scheme) -> tuple[Tensor, list[Tensor]]:
            return torch.eye(weights[0].shape[1]), [w / 2 for w in weights]

    try:
        with pytest.raises(DataError, match="changes the function of a weight of shape"):
            Halved()([torch.ones(2, 4)], SCHEMES[0])
    finally:
        del LinearTransform.registry._members["halved for this test"]


def test_splits_of_one_scale_take_the_input_of_the_largest_weight():
    """The published rule, step by step."""
    w = outliers(4, 6, 40, by=5.0)
    done = OutlierSplit(0.1)([w], Scheme(int4))
    wide, source = w.clone(), list(range(40))
    for _ in range(4):
        at = int(wide.abs().amax(0).argmax())
        same = [i for i, s in enumerate(source) if s == source[at]]
        source.append(source[at])
        share = w[:, source[at]] / (len(same) + 1)
        wide = torch.cat([wide, share[:, None]], 1)
        wide[:, same] = share[:, None]
    assert sorted(done.copies.tolist()) == sorted(source)
    assert float(done.weights[0].abs().max()) < 0.6 * float(w.abs().max())


@settings(max_examples=20)
@given(seed=st.integers(0, 999), splits=st.integers(1, 6), scheme=st.sampled_from(SCHEMES[:2]))
def test_the_codes_of_the_parts_add_up(seed, splits, scheme):
    """The reason for the shift of the parts: with the same scale, no rounding error is doubled."""
    w = outliers(seed, 4, 12).double().round(decimals=3).float()
    done = OutlierSplit(splits / 12)([w], scheme)
    if done.kept_identity:
        return
    copies, new = done.copies, done.weights[0].double()
    plain = torch.zeros(4, 12, dtype=torch.float64).index_add_(1, copies, new)
    shares = w[:, copies] / torch.bincount(copies)[copies]
    scale = quantize(shares, scheme).scale.double()
    codes = torch.round(new / scale)
    total = torch.zeros(4, 12, dtype=torch.float64).index_add_(1, copies, codes)
    away = (plain / scale - torch.round(plain / scale)).abs()
    clear = (away - 0.5).abs() > 1e-4  # ties go either way
    assert (total - torch.round(plain / scale))[clear & (w != 0)].abs().max() == 0


def test_splitting_lowers_the_error_of_4_bits_as_the_range_shrinks():
    for scheme in SCHEMES:
        w = outliers(7, 32, 64)
        done = OutlierSplit(0.05)([w], scheme)
        assert done.objective < 0.75 * done.identity_objective
        assert done.matrix.shape == (64, 68)
        assert int((done.copies == 3).sum()) > 1
    flat = torch.sign(outliers(0, 8, 16))
    assert OutlierSplit()([flat], SCHEMES[1]).kept_identity


def test_options_of_the_split():
    for expand in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="expand is above 0 and at most 1"):
            OutlierSplit(expand)
    with pytest.raises(SchemeError, match="per tensor or per channel of axis 0"):
        OutlierSplit()([torch.ones(2, 8)], Scheme(int4, granularity=PerGroup(4)))
    with pytest.raises(SchemeError, match="per tensor or per channel"):
        OutlierSplit()([torch.ones(2, 8)], Scheme(int4, granularity=PerChannel(1)))
    assert Mapped(torch.tensor([[1.0, 0.5]]), (), 0.0, 0.0, False).copies is None


@pytest.mark.parametrize("size", [1, 2, 12, 64, 63])
def test_rotations_are_orthogonal_and_random(size):
    r = orthogonal(size, 1)
    torch.testing.assert_close(r @ r.T, torch.eye(size, dtype=torch.float64))
    assert torch.equal(r, orthogonal(size, 1))
    assert size < 3 or not torch.equal(r, orthogonal(size, 2))
    if size in (2, 64):
        torch.testing.assert_close(r.abs(), torch.full_like(r, size**-0.5))


def test_a_rotation_spreads_outliers_of_weights_and_inputs():
    w = outliers(3, 32, 64, by=20.0)
    x = outliers(4, 100, 64, by=20.0)
    done = Rotation(5)([w], Scheme(int4, granularity=PerTensor()))
    assert done.copies is None
    assert float(done.weights[0].abs().max()) < 0.6 * float(w.abs().max())
    rotated = map_inputs(x, done.matrix)
    a8 = Scheme(int8)
    exact, new = (
        x @ w.T,
        fake_quantize(rotated, a8) @ fake_quantize(done.weights[0], Scheme(int4)).T,
    )
    old = fake_quantize(x, a8) @ fake_quantize(w, Scheme(int4)).T
    assert float((new - exact).square().mean()) < 0.3 * float((old - exact).square().mean())
    with pytest.raises(InputError, match="a seed is a whole number"):
        Rotation(-1)

"""The contract of every registered rounding: never worse than nearest, repeatable, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsmith.algorithms import HQQ, FisherKMeans, KMeans, Nearest, PairBound, Rounding, Searched
from bitsmith.algorithms.baseline import nearest
from bitsmith.algorithms.objective import loss_error, loss_importance
from bitsmith.errors import DataError, InputError, SchemeError
from bitsmith.numbers import (
    Gram,
    LearnedFormat,
    Moments,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    Scheme,
    bf16,
    codebook1,
    codebook2,
    fp16,
    int2,
    int3,
    int8,
    named_scheme,
    nf4,
    quantize,
    ternary,
    uint1,
    uint2,
    uint3,
    uint4,
)
from bitsmith.numbers.statistics import Fisher, Statistic

ROUNDINGS = {name: Rounding.registry[name] for name in Rounding.registry}
ALL = pytest.mark.parametrize("name", list(ROUNDINGS))
LEARNED = ("kmeans", "fisher-kmeans")
#: Settings under which the contract is checked often, where the ordinary ones take long.
QUICK = {
    "adaround": {"iterations": 30, "sweeps": 2, "refits": 1},
    "coordinate": {"sweeps": 2, "refits": 1},
}


def make(name: str) -> Rounding:
    return ROUNDINGS[name](**QUICK.get(name, {}))


def statistic_of(rounding: Rounding, w: torch.Tensor, gram: Gram | None) -> Statistic | None:
    """Return ``gram``, or for a rounding that reads gradients such ones of w's shape."""
    if rounding.needs is not Fisher:
        return gram
    squared = Fisher()
    generator = torch.Generator().manual_seed(11)
    squared.update(torch.randn(3, *w.shape, generator=generator) ** 3)
    return squared


GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(4), PerGroup(4, 0)]
SCHEMES = [
    *(Scheme(int2, granularity=g) for g in GRANULARITIES),
    *(Scheme(uint2, False, granularity=g) for g in GRANULARITIES),
    Scheme(int8, granularity=PerChannel(0)),
    Scheme(uint1, False, granularity=PerChannel(0)),
    Scheme(ternary, granularity=PerBlock((2, 4))),
    Scheme(int3, granularity=PerGroup(4), rounding="stochastic", seed=3),
    Scheme(uint4, False, granularity=PerGroup(8), scale_format=fp16),
    Scheme(nf4, granularity=PerGroup(8), scale_format=bf16),
    named_scheme("superblock_int4"),
    named_scheme("nvfp4"),
    named_scheme("mxfp4"),
    Scheme(codebook2, granularity=PerChannel(0)),
    Scheme(codebook2, granularity=PerGroup(8), scale_format=fp16),
    Scheme(LearnedFormat(4, dimension=2), granularity=PerTensor()),
]


def inputs(seed: int, features: int, kind: str = "correlated", diagonal: bool = False) -> Gram:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * features, features, generator=generator)
    if kind == "correlated":
        x = x[:, : max(1, features // 4)] @ x[: max(1, features // 4)]
    if kind == "outliers":
        x[:, :: max(1, features // 3)] *= 30
    if kind == "some dead":
        x[:, ::3] = 0
    if kind == "few rows":
        x = x[:2]
    gram = Gram(diagonal)
    gram.update(x)
    return gram


def weight(seed: int, *shape: int, kind: str = "normal") -> torch.Tensor:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if kind == "heavy":
        w = w**5
    if kind == "constant":
        w = torch.full(shape, 0.3)
    if kind == "zero":
        w = torch.zeros(shape)
    if kind == "tiny":
        w = w * 1e-38
    if kind == "huge":
        w = w * 1e37
    if kind == "positive":
        w = w.abs()
    return w


def supports(rounding: Rounding, scheme: Scheme, w: torch.Tensor) -> bool:
    """Return false where the rounding refuses the scheme, with a SchemeError that names why."""
    gram = inputs(0, w[0].numel()) if rounding.needs else None
    try:
        rounding(w, scheme, statistic=statistic_of(rounding, w, gram))
    except SchemeError:
        return False
    return True


def test_what_each_can_follow():
    """A rounding that suddenly refuses a scheme would pass every other test of this file."""
    refused = {
        name: [s for s in SCHEMES if not supports(make(name), s, torch.randn(4, 256))]
        for name in ROUNDINGS
    }
    learned = [s for s in SCHEMES if s.learned]
    assert refused.pop("nearest") == []
    assert refused.pop("searched") == refused.pop("gptq") == learned
    assert refused.pop("coordinate") == learned
    assert refused.pop("adaround") == [s for s in SCHEMES if not s.affine]
    assert refused.pop("kmeans") == [s for s in SCHEMES if not s.learned]
    assert refused.pop("fisher-kmeans") == [s for s in SCHEMES if not s.learned]
    two_level = [named_scheme("superblock_int4"), named_scheme("nvfp4")]
    assert refused.pop("hqq") == [s for s in SCHEMES if s.learned or s in two_level]
    assert len(refused.pop("pair-bound")) > 10
    assert len(refused.pop("shared-table")) > 10
    assert refused == {}


@ALL
@settings(max_examples=25)
@given(data=st.data())
def test_never_worse_than_nearest_on_its_own_objective(name, data):
    rounding = make(name)
    shape = data.draw(st.sampled_from([(4, 256), (2, 8, 2, 1), (8, 16)]))
    kind = data.draw(
        st.sampled_from(["normal", "heavy", "constant", "zero", "tiny", "huge", "positive"])
    )
    w = weight(data.draw(st.integers(0, 999)), *shape, kind=kind)
    scheme = data.draw(st.sampled_from(SCHEMES))
    wanted = rounding.needs or rounding.takes
    gram = None
    if wanted and (rounding.needs or data.draw(st.booleans())):
        pattern = data.draw(
            st.sampled_from(["correlated", "white", "outliers", "some dead", "few rows"])
        )
        diagonal = rounding.diagonal and data.draw(st.booleans())
        gram = inputs(data.draw(st.integers(0, 99)), w[0].numel(), pattern, diagonal)
        gram = statistic_of(rounding, w, gram)
    try:
        rounded = rounding(w, scheme, statistic=gram)
    except SchemeError:
        return
    assert math.isfinite(rounded.objective)
    assert rounded.qtensor.dequantize().isfinite().all()
    assert rounded.qtensor.scheme == scheme
    if rounding.lowers_error:
        assert rounded.objective <= rounded.nearest_objective
        assert rounded.kept_nearest == (rounded.objective == rounded.nearest_objective)
    again = rounding(w, scheme, statistic=gram)
    assert torch.equal(again.qtensor.codes, rounded.qtensor.codes)
    assert torch.equal(again.qtensor.scale, rounded.qtensor.scale)
    assert again.objective == rounded.objective


@ALL
def test_what_is_reported_is_true(name):
    """Errors and objective, calculated here in another way, from the codes and from raw inputs."""
    rounding = make(name)
    w = weight(1, 8, 16)
    scheme = Scheme(codebook2 if name in LEARNED else int3, granularity=PerChannel(0))
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.1, 3, 16)
    statistic = None
    if rounding.needs or rounding.takes:
        statistic = Gram()
        statistic.update(x)
        statistic = statistic_of(rounding, w, statistic)
    rounded = rounding(w, scheme, statistic=statistic)
    plain = nearest(w, scheme, torch.zeros(8, 1))
    for q, error, objective in (
        (rounded.qtensor, rounded.error, rounded.objective),
        (plain, rounded.nearest_error, rounded.nearest_objective),
    ):
        d = w.double() - q.dequantize().double()
        assert error == pytest.approx(float(d.square().mean()), rel=1e-9)
        expected = float(d.abs().pow(rounding.norm).mean())
        if isinstance(statistic, Fisher):
            expected = float((d.square() * statistic.mean_square).sum())
        elif statistic is not None:
            expected = float((x.double() @ d.T).square().mean())
        assert objective == pytest.approx(expected, rel=1e-9)


@ALL
def test_a_smallest_scale_is_obeyed(name):
    rounding = make(name)
    w, scheme = weight(5, 4, 16), Scheme(int3, granularity=PerChannel(0))
    gram = inputs(1, 16) if rounding.needs else None
    floor = torch.tensor([[0.0], [10.0], [0.3], [1e-9]])
    if name in LEARNED:
        learned = Scheme(codebook2, granularity=PerChannel(0))
        with pytest.raises(SchemeError, match="no scale that a minimum could bound"):
            rounding(w, learned, min_scale=floor, statistic=statistic_of(rounding, w, gram))
        return
    rounded = rounding(w, scheme, min_scale=floor, statistic=gram)
    assert (rounded.qtensor.scale >= floor).all()


@ALL
def test_bad_weights(name):
    rounding = make(name)
    scheme = Scheme(codebook2 if name in LEARNED else int8, granularity=PerChannel(0))
    w = weight(0, 2, 4)
    gram = statistic_of(rounding, w, inputs(1, 4)) if rounding.needs else None
    for bad in (torch.nan, torch.inf):
        broken = w.clone()
        broken[0, 1] = bad
        with pytest.raises(DataError, match="1 of 8 weights are NaN or infinite"):
            rounding(broken, scheme, statistic=gram)
    with pytest.raises(DataError, match="no values"):
        rounding(torch.zeros(0, 4), scheme, statistic=gram)
    with pytest.raises(DataError, match="floating-point"):
        rounding(torch.ones(2, 4, dtype=torch.int32), scheme, statistic=gram)
    exact = rounding(w, scheme, statistic=gram)
    strided = w.T.contiguous().T
    for same in (w.double(), strided, w.clone().requires_grad_()):
        assert torch.equal(
            rounding(same, scheme, statistic=gram).qtensor.codes, exact.qtensor.codes
        )


@ALL
def test_bad_statistics(name):
    rounding = make(name)
    w = weight(0, 2, 4)
    scheme = Scheme(codebook2 if name in LEARNED else int8, granularity=PerChannel(0))
    if rounding.needs is None and rounding.takes is None:
        with pytest.raises(DataError, match="uses no statistic, and was given Gram"):
            rounding(w, scheme, statistic=inputs(0, 4))
        return
    if rounding.needs is Fisher:
        return  # its own are below
    moments = Moments()
    moments.update(w)
    with pytest.raises(DataError, match="gram statistic, and was given Moments"):
        rounding(w, scheme, statistic=moments)
    with pytest.raises(DataError, match="seen no input"):
        rounding(w, scheme, statistic=Gram())
    with pytest.raises(DataError, match=r"meets 4 inputs .* the Gram statistic is of 5"):
        rounding(w, scheme, statistic=inputs(0, 5))
    if name != "shared-table":  # a row alone has no output channels, which is refused first
        with pytest.raises(DataError, match="not of shape"):
            rounding(w[0], Scheme(scheme.format), statistic=inputs(0, 4))
    for value, message in ((torch.nan, "1 of 16 sums .* NaN"), (-1.0, "1 of 4 .* negative")):
        gram = inputs(0, 4)
        gram.sums[1, 1] = value
        with pytest.raises(DataError, match=message):
            rounding(w, scheme, statistic=gram)
    gram = inputs(0, 4)
    gram.sums[0, 1] += 1
    with pytest.raises(DataError, match="not symmetric"):
        rounding(w, scheme, statistic=gram)
    if not rounding.diagonal:
        with pytest.raises(DataError, match="the whole Gram matrix"):
            rounding(w, scheme, statistic=inputs(0, 4, diagonal=True))


def test_nothing_is_searched_for_the_weights_that_no_input_reaches():
    """Inputs that were always 0 leave the objective 0 for everything: nearest is kept."""
    dead = Gram()
    dead.update(torch.zeros(5, 16))
    for name, kind in ROUNDINGS.items():
        if not (kind.needs or kind.takes) or name in LEARNED or not kind.lowers_error:
            continue
        scheme = Scheme(int3, granularity=PerGroup(8))
        rounded = make(name)(weight(3, 4, 16), scheme, statistic=dead)
        assert rounded.kept_nearest
        assert rounded.objective == 0
        assert torch.equal(rounded.qtensor.codes, quantize(weight(3, 4, 16), scheme).codes)


def test_a_bound_is_kept_though_it_costs():
    rounded = PairBound()(
        torch.ones(1, 3) * torch.tensor([1.0, 0.99, 0.3]), Scheme(int8, granularity=PerChannel(0))
    )
    assert rounded.objective > rounded.nearest_objective
    assert not rounded.kept_nearest


def test_searched_ranges_lower_the_error_by_what_is_known_of_normal_weights():
    """2 bits: the optimal uniform quantizer of a normal distribution has an error of 0.1188
    (Max 1960, table II); min–max over 1024 values has several times that.
    """
    w = weight(0, 16, 1024)
    rounded = Searched()(w, Scheme(int2, granularity=PerChannel(0), narrow_range=False))
    half_open = Searched()(w, Scheme(uint2, False, granularity=PerChannel(0)))
    assert rounded.error < 0.4 * rounded.nearest_error
    assert min(rounded.error, half_open.error) > 0.1188
    assert half_open.error < 0.16


def test_data_moves_the_ranges_to_what_matters():
    w = weight(2, 8, 64, kind="heavy")
    gram = inputs(0, 64, "outliers")
    scheme = Scheme(int3, granularity=PerGroup(32))
    blind, seeing = Searched()(w, scheme), Searched()(w, scheme, statistic=gram)
    assert seeing.objective < Nearest()(w, scheme, statistic=gram).objective
    assert seeing.error > blind.error


def test_kmeans_beats_evenly_spaced_tables_and_data_moves_it():
    w, scheme = weight(2, 4, 64, kind="heavy"), Scheme(codebook2, granularity=PerChannel(0))
    gram = inputs(0, 64, "outliers", diagonal=True)
    plain, seeing = KMeans()(w, scheme), KMeans()(w, scheme, statistic=gram)
    assert plain.error < 0.5 * plain.nearest_error
    assert seeing.error > plain.error
    even = nearest(w, scheme, torch.zeros(4, 1))
    assert torch.equal(even.codebook[:, 0, 0], w.amin(1))
    assert torch.equal(even.codebook[:, 0, -1], w.amax(1))
    found = (w[:, :, None] - even.codebook).abs().amin(-1)
    torch.testing.assert_close((w - even.dequantize()).abs(), found)


@pytest.mark.parametrize(("bits", "dimension"), [(4, 2), (5, 2), (2, 4)])
def test_even_tables_of_vectors_are_grids(bits, dimension):
    w = weight(1, 4, 16)
    q = nearest(w, Scheme(LearnedFormat(bits, dimension=dimension)), torch.zeros(()))
    levels = 1 << (bits // dimension)
    low, high = w.min(), w.max()
    even = (
        torch.linspace(0, 1, levels) * (high - low) + low if levels > 1 else (low + high)[None] / 2
    )
    assert q.codebook.shape == (1 << bits, dimension)
    closest = even[(w[..., None] - even).abs().argmin(-1)]
    torch.testing.assert_close(q.dequantize(), closest)


def test_hqq_counts_large_errors_less():
    """One outlier in a group of 64: squared error keeps it, the 0.7th power lets it go."""
    w = weight(0, 32, 64) * 0.1
    w[:, 7] = 0.8
    scheme = Scheme(uint3, False, granularity=PerGroup(64))
    found = HQQ(iterations=60)(w, scheme)
    assert found.objective < 0.85 * found.nearest_objective
    assert found.error > 1.1 * found.nearest_error
    more = HQQ(iterations=5)(w, scheme)
    assert found.objective <= more.objective  # every turn is kept only where it is better
    assert HQQ(iterations=0)(w, scheme).kept_nearest


def test_hqq_is_never_better_than_all_ranges():
    """Brute force over scales and zero points of one small group, which HQQ comes close to."""
    w = weight(4, 1, 12)
    scheme = Scheme(uint2, False, granularity=PerChannel(0))
    found = HQQ(iterations=40)(w, scheme)
    scales = torch.linspace(0.01, 1, 4000) * float(w.max() - w.min())
    best = math.inf
    for z in range(4):
        codes = (w / scales[:, None]).round().add(z).clamp(0, 3)
        loss = (w - (codes - z) * scales[:, None]).abs().pow(0.7).mean(1)
        best = min(best, float(loss.min()))
    assert best - 1e-3 <= found.objective <= 1.5 * best


def test_hqq_options():
    with pytest.raises(InputError, match="beta above 0"):
        HQQ(beta=0.0)
    with pytest.raises(InputError, match="kappa"):
        HQQ(kappa=0.5)


def test_fisher_kmeans_is_the_best_table_for_what_the_loss_feels():
    """Brute force: every split of the sorted values into two neighbourhoods."""
    w, scheme = weight(6, 1, 9), Scheme(codebook1, granularity=PerChannel(0))
    squared = Fisher()
    squared.update(torch.randn(4, 1, 9, generator=torch.Generator().manual_seed(1)) ** 3)
    found = FisherKMeans()(w, scheme, statistic=squared)
    values, order = w[0].double().sort()
    f = squared.mean_square[0][order]
    best = math.inf
    for cut in range(1, 9):
        loss = 0.0
        for part in (slice(0, cut), slice(cut, 9)):
            centre = (f[part] * values[part]).sum() / f[part].sum()
            loss += float((f[part] * (values[part] - centre).square()).sum())
        best = min(best, loss)
    assert found.objective == pytest.approx(best, rel=1e-5)
    assert found.error > KMeans()(w, scheme).error
    assert found.objective < loss_error(w, KMeans()(w, scheme).qtensor.dequantize(), squared)


def test_fisher_kmeans_refuses_other_gradients():
    w, scheme = weight(6, 2, 4), Scheme(codebook1)
    with pytest.raises(DataError, match="fisher statistic of the layer's gradients"):
        FisherKMeans()(w, scheme)
    with pytest.raises(DataError, match="fisher statistic, and was given Gram"):
        FisherKMeans()(w, scheme, statistic=inputs(0, 4))
    with pytest.raises(DataError, match="seen no input"):
        FisherKMeans()(w, scheme, statistic=Fisher())
    other = Fisher()
    other.update(torch.ones(1, 4, 2))
    with pytest.raises(DataError, match=r"shape \(2, 4\) needs .* is of shape \(4, 2\)"):
        FisherKMeans()(w, scheme, statistic=other)
    unfelt = Fisher()
    unfelt.update(torch.zeros(3, 2, 4))
    assert FisherKMeans()(w, scheme, statistic=unfelt).kept_nearest
    with pytest.raises(DataError, match="not"):
        loss_importance(inputs(0, 4), w)
    broken = statistic_of(FisherKMeans(), w, None)
    broken.sums[0, 0] = -1.0
    with pytest.raises(DataError, match="1 of 8 mean squared gradients"):
        FisherKMeans()(w, scheme, statistic=broken)

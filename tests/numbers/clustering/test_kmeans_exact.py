"""Exact k-means against brute force, plain dynamic programming and scikit-learn."""

from __future__ import annotations

import itertools
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn.cluster import KMeans

from bitsmith.errors import DataError, SchemeError
from bitsmith.numbers.clustering import exact, kmeans_exact, kmeans_lloyd

FOLDER = Path(os.environ.get("BITSMITH_DATA", "missing"))
RESNET = FOLDER / "cifar10-resnet20.safetensors"


def rounding(values: torch.Tensor, weights: torch.Tensor | None = None) -> float:
    """What rounding centres to float32 and sums to float64 can add to the objective."""
    x = values.double()
    w = torch.ones_like(x) if weights is None else weights.double()
    entry = float((w.sum(-1) * (x.abs().amax(-1) * 2.0**-24).square()).max())
    spread = float((w * (x - x.mean()).square()).sum())
    return entry + 1e-12 * spread


def brute_force(values: torch.Tensor, k: int, weights: torch.Tensor) -> float:
    """The least objective over every way to cut the sorted values into at most k runs."""
    x, order = values.double().sort()
    w = weights.double()[order]
    best = np.inf
    for cuts in itertools.combinations_with_replacement(range(len(x) + 1), k - 1):
        loss = 0.0
        for a, b in itertools.pairwise((0, *cuts, len(x))):
            if float(w[a:b].sum()) > 0:
                mean = (w[a:b] * x[a:b]).sum() / w[a:b].sum()
                loss += float((w[a:b] * (x[a:b] - mean) ** 2).sum())
        best = min(best, loss)
    return best


def sklearn_objective(values: torch.Tensor, k: int, weights: torch.Tensor | None) -> float:
    x = values.double().numpy()
    w = None if weights is None else weights.double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct values than clusters
        fit = KMeans(k, n_init=50, random_state=0, tol=0).fit(x[:, None], sample_weight=w)
    loss = (x[:, None] - fit.cluster_centers_[:, 0]) ** 2
    return float((loss.min(1) * (1 if w is None else w)).sum())


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8),
    st.integers(1, 4),
    st.lists(st.sampled_from([0.0, 1e-3, 0.5, 1.0, 7.0]), min_size=8, max_size=8),
)
def test_equals_brute_force_over_all_partitions(values, k, weights):
    x, w = torch.tensor(values), torch.tensor(weights[: len(values)])
    if not w.any():
        w = torch.ones_like(w)
    found = kmeans_exact(x, k, w)
    best = brute_force(x, k, w)
    assert abs(float(found.objective) - best) <= rounding(x, w) + 1e-9 * best
    row = kmeans_exact(torch.stack([x, x.flip(0)]), k, torch.stack([w, w.flip(0)]))
    tolerance = rounding(x, w) + 1e-9 * best
    torch.testing.assert_close(
        row.objective, torch.full((2,), best, dtype=torch.float64), atol=tolerance, rtol=0
    )


def dense_dynamic_program(values: torch.Tensor, k: int, weights: torch.Tensor) -> float:
    """O(k·n²) over all clusters, whose losses come from running means, not from prefix sums."""
    order = values.double().argsort()
    x, w = (v.double()[order].numpy() for v in (values, weights))
    x, w = x[w > 0], w[w > 0]
    n = len(x)
    loss = np.full((n + 1, n + 1), np.inf)  # [begin, end]
    loss[np.arange(n + 1), np.arange(n + 1)] = 0
    mean, total, moment = np.zeros(n), np.zeros(n), np.zeros(n)
    for end in range(n):
        begun = slice(0, end + 1)
        before, away = total[begun].copy(), x[end] - mean[begun]
        total[begun] += w[end]
        mean[begun] += away * w[end] / total[begun]
        moment[begun] += away**2 * before * w[end] / total[begun]
        loss[begun, end + 1] = moment[begun]
    best = loss[0]
    for _ in range(k - 1):
        best = (best[:, None] + loss).min(0)
    return float(best[-1])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32),
    st.integers(1, 9),
    st.floats(0, 4),
    st.floats(0, 30),
    st.booleans(),
)
def test_equals_a_dense_dynamic_program(seed, k, tail, skew, coarse):
    """Also with weights so unlike that most vanish beside the sum of the others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(150, generator=generator)
    x = x.sign() * x.abs() ** tail
    x = (x * 20).round() if coarse else x
    w = torch.rand(150, generator=generator, dtype=torch.float64) ** skew
    best = dense_dynamic_program(x, k, w)
    slack = 1e-9 * best + rounding(x, w)
    assert abs(float(kmeans_exact(x, k, w).objective) - best) <= slack
    both = kmeans_exact(torch.stack([x, -x]), k, torch.stack([w, w])).objective
    assert (both - best).abs().max() <= slack


def distribution(name: str, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(n, generator=generator)
    other = torch.randn(n, generator=generator)
    return {
        "gaussian": normal,
        "laplace": normal.sign() * -torch.rand(n, generator=generator).clamp(min=1e-7).log(),
        "bimodal": normal * 0.3 + other.sign(),
        "apart": normal * 1e-2 + 1e3 * other.sign(),
        "heavy": normal / other.abs().clamp(min=1e-6),
        "duplicates": (normal * 8).round(),
        "offset": normal * 1e-3 + 50,
        "bfloat16": normal.bfloat16().float(),
    }[name]


NAMES = ["gaussian", "laplace", "bimodal", "apart", "heavy", "duplicates", "offset", "bfloat16"]


@pytest.mark.parametrize("k", [2, 7, 16])
@pytest.mark.parametrize("name", NAMES)
def test_never_worse_than_scikit_learn_with_50_restarts(name, k):
    """Up to the rounding of the codebook to float32, which scikit-learn's is spared."""
    x = distribution(name, 1000)
    found = kmeans_exact(x, k)
    assert float(found.objective) <= sklearn_objective(x, k, None) * (1 + 1e-9) + rounding(x)


def test_never_worse_than_scikit_learn_when_weighted():
    x = distribution("gaussian", 1000)
    w = torch.rand(1000, generator=torch.Generator().manual_seed(5)) ** 6
    found = kmeans_exact(x, 8, w)
    assert float(found.objective) <= sklearn_objective(x, 8, w) * (1 + 1e-9) + rounding(x, w)


@pytest.mark.skipif(not RESNET.is_file(), reason="no cifar10-resnet20.safetensors in BITSMITH_DATA")
def test_never_worse_than_scikit_learn_on_trained_convolutions():
    tensors = {k: v for k, v in load_file(RESNET).items() if v.ndim == 4}
    assert len(tensors) == 19
    for name, weight in list(tensors.items())[:8:3]:
        x = weight.reshape(-1)
        found = kmeans_exact(x, 16)
        assert float(found.objective) <= sklearn_objective(x, 16, None) * (1 + 1e-9), name
    every = torch.cat([t.reshape(-1) for t in tensors.values()])
    lloyd = kmeans_lloyd(every, 16, restarts=50)
    assert float(kmeans_exact(every, 16).objective) <= float(lloyd.objective)


@pytest.mark.parametrize("name", [*NAMES, "ties"])
def test_branch_and_bound_equals_plain_dynamic_programming(name, monkeypatch):
    n = 20_000
    x = torch.arange(n) % 5000.0 if name == "ties" else distribution(name, n)
    w = torch.rand(n, generator=torch.Generator().manual_seed(6)) + 0.01
    for heavy in (None, w):
        bounded = kmeans_exact(x, 6, heavy).objective
        with monkeypatch.context() as patched:
            patched.setattr(exact, "_SHORT", n)
            plain = kmeans_exact(x, 6, heavy).objective
        assert abs(float(bounded - plain)) <= 1e-12 * float(plain) + rounding(x, heavy)


def test_weights_too_small_for_the_sums_do_not_mislead_them():
    """Prefix sums lose weights of 1e-20 beside 1, and must then lose their moments too."""
    generator = torch.Generator().manual_seed(8)
    x = (torch.randn(2, 4950, generator=generator) * 20).round()
    w = torch.rand(2, 4950, generator=generator) ** 30
    found = kmeans_exact(x, 23, w)
    lloyd = kmeans_lloyd(x, 23, w, restarts=20)
    assert (found.objective <= lloyd.objective * (1 + 1e-9)).all()
    for row in range(2):
        merged = kmeans_exact(x[row], 23, w[row]).objective
        torch.testing.assert_close(merged, found.objective[row], rtol=1e-9, atol=0)


def test_branch_and_bound_excludes_nearly_everything_and_keeps_the_optimum(monkeypatch):
    """The bounds do their work (the path is not vacuous), in several rounds and rows at once."""
    monkeypatch.setattr(exact, "_FEW", 0)
    x = torch.stack([distribution(name, 20_000) for name in ("gaussian", "heavy", "offset")])
    rows = exact.sort_rows(x, None)
    cells = exact._narrowed(rows, exact.Sums.of(rows), 6)
    assert cells.candidates() < 0.01 * 5 * x.numel()
    best = exact._bounds(rows, 6) + torch.arange(3)[:, None].numpy() * 20_001
    monkeypatch.setattr(exact, "_SHORT", 20_000)
    plain = exact._bounds(rows, 6) + torch.arange(3)[:, None].numpy() * 20_001
    sums = exact.Sums.of(rows)
    losses = [sums.loss(b[:, :-1], b[:, 1:]).sum(1) for b in (best, plain)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-11)


@pytest.mark.parametrize("n", [1, 30, 576, 3000])
def test_rows_together_equal_row_by_row(n):
    x = distribution("laplace", 5 * n).reshape(5, n)
    w = torch.rand(5, n, generator=torch.Generator().manual_seed(1))
    together = kmeans_exact(x, 4, w)
    for row in range(5):
        alone = kmeans_exact(x[row], 4, w[row])
        torch.testing.assert_close(alone.objective, together.objective[row], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(alone.codebook, together.codebook[row])
    assert together.exact
    assert together.restarts == 0
    assert together.codes.shape == x.shape


def test_lloyd_is_never_better_than_exact():
    x = torch.stack([distribution(name, 400) for name in NAMES])
    best = kmeans_exact(x, 5).objective
    slack = torch.tensor([rounding(row) for row in x])
    assert (kmeans_lloyd(x, 5, restarts=20).objective >= best - slack).all()


def test_the_record_says_what_it_means():
    x, w = distribution("gaussian", 5000), torch.rand(5000)
    found = kmeans_exact(x, 9, w)
    assert found.codebook.dtype == torch.float32
    assert (found.codebook.diff() > 0).all()
    assert found.codes.dtype == torch.uint8
    distance = (x.double()[:, None] - found.codebook.double()).abs()
    assert torch.equal(found.codes.long(), distance.argmin(1))
    loss = (w.double() * distance.amin(1).square()).sum()
    torch.testing.assert_close(found.objective, loss, rtol=1e-12, atol=0)


def test_fewer_values_than_entries_repeat_the_last():
    found = kmeans_exact(torch.tensor([3.0, 1.0, 3.0, 2.0]), 5)
    assert found.codebook.tolist() == [1, 2, 3, 3, 3]
    assert found.codes.tolist() == [2, 0, 2, 1]
    assert found.objective == 0
    constant = kmeans_exact(torch.full((2, 7), -0.25), 3)
    assert constant.codebook.tolist() == [[-0.25] * 3] * 2
    assert not constant.codes.any()
    mixed = kmeans_exact(torch.tensor([[1.0, 1, 2, 2], [1, 2, 3, 4]]), 2)
    assert mixed.codebook.tolist() == [[1, 2], [1.5, 3.5]]


def test_few_values_are_met_exactly_however_close():
    """Prefix sums of squares up to 1e12 cannot tell 0 from 1e-3; counting values can."""
    five = torch.tensor([-1e6, 0.0, 1e-3, 2e-3, 1e6])
    x = torch.stack([five.repeat(200), five.flip(0).repeat(200)])
    found = kmeans_exact(x, 5)
    assert torch.equal(found.codebook, five.expand(2, 5))
    assert not found.objective.any()


def test_values_without_weight_are_not_represented():
    x, w = torch.tensor([0.0, 1.0, 10.0, 50.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    for found in (kmeans_exact(x, 2, w), kmeans_exact(x.expand(2, 4), 2, w)):
        assert found.codebook.reshape(-1, 2)[0].tolist() == [0.5, 10.0]
        assert found.codes.reshape(-1, 4)[0].tolist() == [0, 0, 1, 1]
    unweighted = kmeans_exact(x, 2)
    assert torch.equal(kmeans_exact(x, 2, torch.zeros(4)).codebook, unweighted.codebook)
    assert kmeans_exact(x, 2, torch.zeros(4)).objective == unweighted.objective > 0


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([1e-45, 3e-45, 1e-40, 1.1e-40]),  # denormal
        torch.tensor([-3e38, -2.9e38, 3e38, 3.1e38]),  # huge
        torch.tensor([1.0, 1.5, 1e30, 2e30], dtype=torch.float64),
        torch.arange(16.0).reshape(4, 4).T[0],  # not contiguous
        torch.arange(4).half(),
        torch.arange(4).bfloat16(),
    ],
    ids=["denormal", "huge", "float64", "strided", "half", "bfloat16"],
)
def test_unusual_floats(values):
    found = kmeans_exact(values, 2)
    best = brute_force(values, 2, torch.ones(4))
    assert found.codebook.isfinite().all()
    assert float(found.objective) <= best * (1 + 1e-9) + 4 * rounding(values) + 1e-88


@pytest.mark.parametrize(
    ("values", "k", "weights", "message"),
    [
        ([1.0, float("nan")], 1, None, "1 of 2 values are NaN or infinite"),
        ([1.0, float("inf"), -float("inf")], 1, None, "2 of 3 values"),
        ([], 1, None, "empty"),
        ([[]], 1, None, "empty"),
        ([[[1.0]]], 1, None, r"\[n\] or \[rows, n\]"),
        ([1, 2], 1, None, "floating-point"),
        ([1.0, 2.0], 1, [1.0], "trailing axes"),
        ([1.0, 2.0], 1, [1.0, -1.0], "1 are negative"),
        ([1.0, 2.0], 1, [float("nan"), 1.0], "1 are NaN"),
        ([1.0, 2.0], 1, [1, 1], "floating-point"),
    ],
)
def test_bad_input_is_refused(values, k, weights, message):
    heavy = None if weights is None else torch.tensor(weights)
    for cluster in (kmeans_exact, kmeans_lloyd):
        with pytest.raises(DataError, match=message):
            cluster(torch.tensor(values), k, heavy)


def test_values_beyond_float32_and_codes_beyond_a_byte_are_refused():
    with pytest.raises(DataError, match="float32"):
        kmeans_exact(torch.tensor([1e300], dtype=torch.float64), 1)
    with pytest.raises(DataError, match="exceed float32"):
        kmeans_exact(torch.ones(1), 1, torch.tensor([1e300], dtype=torch.float64))
    for k in (0, 257):
        with pytest.raises(SchemeError, match="1 to 256"):
            kmeans_exact(torch.ones(3), k)

"""k-means of vectors against scikit-learn and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from bitsmith.errors import DataError, InputError, SchemeError
from bitsmith.numbers.clustering import assign_vectors, kmeans_exact, kmeans_vectors, vectors


def sample(n: int, dims: int) -> torch.Tensor:
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(4)) ** 3


def loss(x, codebook, codes, h):
    return float((h * (x.double() - codebook.double()[codes.long()]).square()).sum())


@pytest.mark.parametrize("dims", [1, 2, 4, 8])
def test_as_good_as_scikit_learn(dims):
    x = sample(1500, dims)
    found = kmeans_vectors(x, 16, restarts=10, iterations=300)
    fit = KMeans(16, n_init=10, random_state=0, tol=0).fit(x.double().numpy())
    assert float(found.objective) <= 1.03 * fit.inertia_
    # A fixed point: scikit-learn finds nothing to improve on from there.
    start = found.codebook.double().numpy()
    settled = KMeans(16, init=start, n_init=1, tol=0).fit(x.double().numpy())
    np.testing.assert_allclose(settled.inertia_, float(found.objective), rtol=1e-6)


def test_weighted_vectors_agree_with_scikit_learn_on_a_fixed_point():
    x, h = sample(800, 3), torch.rand(800, generator=torch.Generator().manual_seed(1))
    found = kmeans_vectors(x, 8, h, iterations=300)
    fit = KMeans(8, init=found.codebook.double().numpy(), n_init=1, tol=0)
    fit.fit(x.double().numpy(), sample_weight=h.double().numpy())
    np.testing.assert_allclose(fit.inertia_, float(found.objective), rtol=1e-6)
    assert float(found.objective) == pytest.approx(
        loss(x, found.codebook, found.codes, h[:, None].double()), rel=1e-9
    )


def test_coordinates_have_their_own_weights():
    """Against brute force over all assignments: the mean of each coordinate by its weights."""
    x, h = sample(7, 2), torch.rand(7, 2, generator=torch.Generator().manual_seed(2)) + 0.01
    best = torch.inf
    for codes in itertools.product(range(2), repeat=7):
        index = torch.tensor(codes)
        total = 0.0
        for j in range(2):
            part, weight = x[index == j].double(), h[index == j].double()
            if len(part):
                mean = (part * weight).sum(0) / weight.sum(0)
                total += float((weight * (part - mean).square()).sum())
        best = min(best, total)
    found = kmeans_vectors(x, 2, h, restarts=40)
    assert float(found.objective) == pytest.approx(best, rel=1e-6)
    assert loss(x, found.codebook, found.codes, h.double()) == pytest.approx(best, rel=1e-6)
    assert torch.equal(assign_vectors(x, found.codebook, h), found.codes)


def test_not_better_than_exact_in_one_dimension():
    x = sample(600, 1)
    best = float(kmeans_exact(x[:, 0], 6).objective)
    assert best * (1 - 1e-9) <= float(kmeans_vectors(x, 6, restarts=20).objective) <= best * 1.01


def test_the_loss_never_rises_and_empty_centres_move():
    x = (sample(500, 2) - sample(500, 2).mean(0)).double()
    h = torch.rand(500, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    centres = torch.full((8, 2), 1e3, dtype=torch.float64)
    centres[0] = 0
    losses = []
    for _ in range(30):
        codes, lost = vectors._look_up(x, h, centres)
        losses.append(float(lost.sum()))
        centres = vectors._move(x, h, centres, codes, lost)
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(losses))
    assert len(codes.unique()) == 8


def test_seeds_pieces_and_order(monkeypatch):
    x = sample(400, 4)
    one = kmeans_vectors(x, 32, seed=1)
    assert not torch.equal(one.codebook, kmeans_vectors(x, 32, seed=2).codebook)
    monkeypatch.setattr(vectors, "_PIECE", 1000)
    again = kmeans_vectors(x, 32, seed=1)
    torch.testing.assert_close(again.codebook, one.codebook)
    assert torch.equal(again.codes, one.codes)
    assert one.codebook.dtype == torch.float32
    assert one.codes.dtype == torch.uint8
    assert (one.codebook[:, 0].diff() >= 0).all()
    assert one.restarts == 4
    assert not one.exact


def test_few_distinct_vectors_and_zero_weights():
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 5.0]])
    found = kmeans_vectors(x, 4)
    assert found.codebook.tolist() == [[0, 5], [1, 2], [1, 2], [1, 2]]
    assert found.codes.tolist() == [1, 1, 0]
    assert found.objective == 0
    y = sample(50, 2)
    for shape in ((50,), (50, 2)):
        silent = kmeans_vectors(y, 3, torch.zeros(shape))
        assert torch.equal(silent.codebook, kmeans_vectors(y, 3).codebook)
    half = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # the second coordinate is of no weight
    assert kmeans_vectors(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), 1, half).codebook.tolist() == [
        [1, 2]
    ]


@pytest.mark.parametrize(
    ("x", "weights", "message"),
    [
        (torch.ones(3), None, "n, dims"),
        (torch.ones(0, 2), None, "empty"),
        (torch.ones(2, 0), None, "empty"),
        (torch.tensor([[float("nan")]]), None, "1 of 1 vectors are NaN"),
        (torch.ones(3, 2), torch.ones(2), r"\[n\] or \[n, dims\]"),
        (torch.ones(3, 2), -torch.ones(3), "3 are negative"),
        (torch.ones(3, 2).int(), None, "floating"),
    ],
)
def test_bad_input_is_refused(x, weights, message):
    with pytest.raises(DataError, match=message):
        kmeans_vectors(x, 1, weights)
    with pytest.raises(DataError, match=message):
        assign_vectors(x, torch.ones(1, 2), weights)


def test_bad_counts_are_refused():
    with pytest.raises(SchemeError):
        kmeans_vectors(torch.ones(2, 2), 300)
    with pytest.raises(InputError, match="restarts=0"):
        kmeans_vectors(torch.ones(2, 2), 1, restarts=0)
    with pytest.raises(DataError, match="same dims"):
        assign_vectors(torch.ones(2, 2), torch.ones(4, 3))

"""Lloyd's iterations in one dimension, their starts, and nearest codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsmith.errors import DataError, InputError, SchemeError
from bitsmith.numbers.clustering import assign, kmeans_lloyd
from bitsmith.numbers.clustering.lloyd import descend
from bitsmith.numbers.clustering.rows import sort_rows
from bitsmith.numbers.clustering.seeding import plus_plus, quantiles


def sample(rows: int, n: int) -> torch.Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(11)) ** 3


def test_the_loss_never_rises():
    x, w = sample(6, 500), torch.rand(6, 500, generator=torch.Generator().manual_seed(2))
    rows = sort_rows(x, w)
    uniform = torch.rand(5, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    start = torch.cat([quantiles(rows, 12), plus_plus(rows, 12, uniform)], 1)
    start[:, 2] = 100.0  # all but one centre lose their values
    bounds = rows.runs(start)
    losses = [rows.loss(bounds)]
    for _ in range(40):
        bounds = descend(rows, bounds, 1)
        losses.append(rows.loss(bounds))
    steps = torch.stack(losses).diff(dim=0)
    assert (steps <= 1e-12 * losses[0]).all()
    assert (steps.sum(0) < 0).all()
    assert (bounds.diff(dim=-1) > 0).all(), "a centre without values was not re-seeded"


def test_more_iterations_or_restarts_are_not_worse():
    x = sample(4, 700)
    few = [kmeans_lloyd(x, 8, iterations=i, restarts=1).objective for i in (1, 3, 10, 100)]
    assert (torch.stack(few).diff(dim=0) <= 1e-6 * few[0]).all()
    one, many = (kmeans_lloyd(x, 8, restarts=r).objective for r in (1, 30))
    assert (many <= one * (1 + 1e-6)).all()
    assert (many < one).any()


def test_rows_together_equal_row_by_row_and_seeds_decide():
    x = sample(5, 300)
    together = kmeans_lloyd(x, 16, restarts=4, seed=9)
    for row in range(5):
        alone = kmeans_lloyd(x[row], 16, restarts=4, seed=9)
        torch.testing.assert_close(alone.codebook, together.codebook[row], rtol=1e-6, atol=0)
        assert torch.equal(alone.codes, together.codes[row])
    again, other = (kmeans_lloyd(x, 16, restarts=4, seed=s) for s in (9, 10))
    assert torch.equal(again.codebook, together.codebook)
    assert not torch.equal(other.codebook, together.codebook)
    assert not together.exact
    assert together.restarts == 4


def test_kmeans_plus_plus_draws_in_proportion_to_the_squared_distance():
    """After 0 as the first centre: w·D² of 1, 2, 4 is 1, 4·½, 16 → shares 1/19, 2/19, 16/19."""
    rows = sort_rows(torch.tensor([[0.0, 1.0, 2.0, 4.0]]), torch.tensor([[1.0, 1.0, 0.5, 1.0]]))
    second = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = plus_plus(rows, 2, torch.stack([torch.zeros(20_000), second], 1)) + rows.mean
    assert (drawn[0, :, 0] == 0).all()
    for value, share in ((1.0, 1 / 19), (2.0, 2 / 19), (4.0, 16 / 19)):
        found = (drawn[0, :, 1] - value).abs() < 1e-9
        assert abs(float(found.double().mean()) - share) < 4 * (share / 20_000) ** 0.5
    first = plus_plus(rows, 1, second[:, None]) + rows.mean
    assert abs(float((first == 2).double().mean()) - 0.5 / 3.5) < 0.01


def test_weights_pull_entries():
    x, w = torch.tensor([0.0, 1.0, 9.0]), torch.tensor([3.0, 1.0, 1.0])
    found = kmeans_lloyd(x, 2, w)
    assert found.codebook.tolist() == [0.25, 9.0]
    assert float(found.objective) == 0.75
    shared = kmeans_lloyd(x.expand(2, 3), 2, w)
    assert shared.codebook.tolist() == [[0.25, 9.0]] * 2
    assert torch.equal(kmeans_lloyd(x, 2, torch.zeros(3)).codebook, kmeans_lloyd(x, 2).codebook)


def test_fewer_values_than_entries():
    found = kmeans_lloyd(torch.tensor([[2.0, 1.0, 2.0], [5.0, 5.0, 5.0]]), 4)
    assert found.codebook.tolist() == [[1, 2, 2, 2], [5, 5, 5, 5]]
    assert found.codes.tolist() == [[1, 0, 1], [0, 0, 0]]


def test_counts_are_checked():
    with pytest.raises(InputError, match="restarts=0, iterations=-1"):
        kmeans_lloyd(torch.ones(3), 1, restarts=0, iterations=-1)


@settings(deadline=None)
@given(
    st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=6),
    st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=20),
)
def test_codes_are_nearest_with_ties_to_the_lower_index(book, values):
    codebook, x = torch.tensor(book).sort().values, torch.tensor(values)
    distance = (x.double()[:, None] - codebook.double()).abs()
    expected = (distance == distance.amin(1, keepdim=True)).int().argmax(1)  # the first
    assert torch.equal(assign(x, codebook).long(), expected)
    rows = assign(x.expand(2, -1), torch.stack([codebook, codebook + 1]))
    assert torch.equal(rows[0], assign(x, codebook))
    assert torch.equal(rows[1], assign(x, codebook + 1))


def test_assign_in_pieces_and_shapes(monkeypatch):
    from bitsmith.numbers.clustering import clusters

    x, book = sample(8, 100).reshape(2, 4, 100), torch.linspace(-2, 2, 256)
    whole = assign(x, book)
    monkeypatch.setattr(clusters, "_PIECE", 7)
    assert torch.equal(assign(x, book), whole)
    assert whole.shape == x.shape
    assert assign(torch.zeros(0, 3), book).shape == (0, 3)


@pytest.mark.parametrize(
    ("values", "book", "message"),
    [
        ([1.0], [2.0, 1.0], "ascending"),
        ([1.0], [float("nan")], "finite"),
        ([float("nan")], [1.0], "NaN"),
        ([1.0], [[1.0]], r"\[rows, k\]"),
        ([[1.0]], [[1.0], [2.0]], r"\[rows, k\]"),
        ([1.0], [1], "floating"),
    ],
)
def test_assign_refuses(values, book, message):
    with pytest.raises(DataError, match=message):
        assign(torch.tensor(values), torch.tensor(book))
    with pytest.raises(SchemeError):
        assign(torch.ones(1), torch.arange(257.0))

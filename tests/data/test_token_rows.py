"""Rows of token ids and pairs of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsmith.data.token_rows import TokenPairs, TokenRows
from bitsmith.errors import DataError

lists = st.lists(
    st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=9), min_size=1, max_size=9
)


def rows(*given: list[int]) -> TokenRows:
    return TokenRows.of(given or [[1, 5], [1], [1, 7, 8, 9]], "mine", "dev", "made here")


@given(lists, st.integers(1, 4))
def test_every_row_comes_back_from_groups_once(given: list[list[int]], size: int) -> None:
    made = rows(*given)
    assert made.n == len(given)
    assert made.lengths.tolist() == list(map(len, given))
    groups = made.groups(size)
    assert sorted(int(i) for g in groups for i in g) == list(range(made.n))
    assert all(len(g) <= size for g in groups)
    lengths = [made.lengths[i] for g in groups for i in g]
    assert lengths == sorted(lengths)
    for group, batch in zip(groups, made.batches(size), strict=True):
        ids, mask = made.padded(group)
        assert torch.equal(ids, batch)
        for i, row, kept in zip(group, ids, mask.bool(), strict=True):
            assert row[kept].tolist() == given[i]
            assert not row[~kept].any()


def test_padding_to_a_fixed_length() -> None:
    ids, mask = rows().padded([1, 0], length=3)
    assert ids.tolist() == [[1, 0, 0], [1, 5, 0]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 0]]
    assert ids.dtype == mask.dtype == torch.int64
    with pytest.raises(DataError, match="a row of 4 tokens does not fit 3"):
        rows().padded([2], length=3)


def test_take_cut_and_sample() -> None:
    made = rows()
    assert [made.take([2, 0]).row(i).tolist() for i in range(2)] == [[1, 7, 8, 9], [1, 5]]
    assert made.cut(2).lengths.tolist() == [2, 1, 2]
    many = rows(*[[1, i] for i in range(100)])
    drawn = many.sample(20, seed=3)
    assert drawn.sha256 == many.sample(20, seed=3).sha256 != many.sample(20, seed=4).sha256
    assert len({int(drawn.row(i)[1]) for i in range(20)}) == 20
    assert (drawn.dataset, drawn.name, drawn.provenance) == ("mine", "dev", "made here")


def test_the_hash_tells_rows_apart_that_hold_the_same_ids() -> None:
    assert rows([1, 2], [3]).sha256 != rows([1], [2, 3]).sha256
    assert rows([1, 2]).sha256 == rows([1, 2]).sha256


@pytest.mark.parametrize(
    ("ids", "offsets", "message"),
    [
        ([], [0], "there are no rows"),
        ([1, 2], [0, 1], "rise from 0 to 2"),
        ([1, 2], [0, 3, 2], "rise from 0 to 2"),
        ([1, 2], [1, 2], "rise from 0 to 2"),
        ([1, 2], [0, 0, 2], "1 of 2 rows are empty"),
        ([1, -2], [0, 2], "ids run from -2 to 1"),
        ([1, 2**31], [0, 2], "ids run from 0 to 2147483648"),
        ([1.0, 2.0], [0, 2], "ids must be integers"),
        ([[1], [2]], [0, 2], "ids must be integers"),
    ],
)
def test_what_rows_cannot_be(ids: list[float], offsets: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TokenRows("mine", "dev", np.array(ids, None if ids else int), np.array(offsets))


def test_numbers_below_one() -> None:
    for call in (rows().groups, rows().cut):
        with pytest.raises(DataError, match="at least 1, not 0"):
            call(0)
    for wrong in (0, 4):
        with pytest.raises(DataError, match=f"between 1 and 3 can be drawn, not {wrong}"):
            rows().sample(wrong)


def test_pairs() -> None:
    pairs = TokenPairs(rows(), rows(), np.array([0, 5, 2]))
    assert (pairs.n, pairs.dataset, pairs.name, pairs.provenance) == (3, "mine", "dev", "made here")
    assert pairs.take([2, 0]).scores.tolist() == [2.0, 0.0]
    assert pairs.take([2, 0]).second.row(0).tolist() == [1, 7, 8, 9]
    assert pairs.sha256 != TokenPairs(rows(), rows(), np.array([0, 5, 3])).sha256
    with pytest.raises(DataError, match=r"3 first texts, 1 second and scores of shape \(3,\)"):
        TokenPairs(rows(), rows([1]), np.zeros(3))
    with pytest.raises(DataError, match="1 scores that are NaN"):
        TokenPairs(rows(), rows(), np.array([0, np.nan, 1]))

"""Texts as rows of token ids, each of its own length; pairs of them with a score."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitsmith.errors import DataError

__all__ = ["PADDING", "TokenPairs", "TokenRows"]

Array = NDArray[Any]

#: The id that fills rows up: [PAD] of BERT; in a causal model its place at the end has no effect.
PADDING = 0


@final
@dataclass(frozen=True, eq=False)
class TokenRows:
    """N rows of token ids: row i is ``ids[offsets[i]:offsets[i + 1]]``.

    Attributes:
        dataset: the name of the text data set it is part of.
        name: the name of the split.
        ids: token ids of all rows, one after the other; integers from 0 to 2³¹ − 1.
        offsets: where each row begins, and the end of the last: [N + 1], from 0 to ``len(ids)``.
        provenance: where the texts come from, in words.

    Raises:
        DataError: on construction: no rows, an empty row, offsets or ids outside their range.

    >>> rows = TokenRows.of([[1, 7], [1, 8, 9]], "mine", "train")
    >>> rows.padded([0, 1])[0].tolist()
    [[1, 7, 0], [1, 8, 9]]
    """

    dataset: str
    name: str
    ids: Array
    offsets: Array
    provenance: str = ""

    def __post_init__(self) -> None:
        faults = _faults(self.ids, self.offsets)
        if faults:
            raise DataError(f"texts {self.dataset!r}, split {self.name!r}: " + "; ".join(faults))
        object.__setattr__(self, "ids", self.ids.astype(np.int32))
        object.__setattr__(self, "offsets", self.offsets.astype(np.int64))

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[int] | Array],
        dataset: str,
        name: str,
        provenance: str = "",
    ) -> TokenRows:
        """Return the rows given one by one."""
        ids = np.concatenate([np.asarray(row, np.int64) for row in rows] or [np.zeros(0, int)])
        offsets = np.cumsum([0, *(len(row) for row in rows)])
        return cls(dataset, name, ids, offsets, provenance)

    @property
    def n(self) -> int:
        """The number of rows."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Array:
        """Tokens in each row, int64 [N]."""
        return np.diff(self.offsets)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of ids and offsets, in hex."""
        digest = hashlib.sha256(f"{self.ids.shape} {self.offsets.shape}\n".encode())
        digest.update(self.ids.astype("<i4").tobytes())
        digest.update(self.offsets.astype("<i8").tobytes())
        return digest.hexdigest()

    def row(self, i: int) -> Array:
        """Return the ids of row ``i``, 0 to N − 1."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def take(self, index: Sequence[int] | Array) -> TokenRows:
        """Return the rows ``index``, in its order."""
        rows = [self.row(int(i)) for i in index]
        return TokenRows.of(rows, self.dataset, self.name, self.provenance)

    def cut(self, length: int) -> TokenRows:
        """Return the rows, each cut to its first ``length`` tokens."""
        _at_least_one("length", length)
        rows = [self.row(i)[:length] for i in range(self.n)]
        return TokenRows.of(rows, self.dataset, self.name, self.provenance)

    def sample(self, n: int, *, seed: int = 0) -> TokenRows:
        """Return ``n`` rows drawn at random without replacement, the same for the same seed.

        Raises:
            DataError: ``n`` below 1 or above the number of rows.
        """
        if not 1 <= n <= self.n:
            raise DataError(
                f"texts {self.dataset!r}, split {self.name!r} has {self.n} rows; between 1 and "
                f"{self.n} can be drawn, not {n}"
            )
        return self.take(np.random.default_rng(seed).permutation(self.n)[:n])

    def groups(self, batch_size: int) -> list[Array]:
        """Return indices [≤ batch_size] of rows of like length; every row once, short ones first.

        Raises:
            DataError: ``batch_size`` below 1.
        """
        _at_least_one("batch_size", batch_size)
        order = np.argsort(self.lengths, kind="stable")
        return [order[i : i + batch_size] for i in range(0, self.n, batch_size)]

    def padded(
        self, index: Sequence[int] | Array, length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ids and mask of the rows ``index``, int64 [B, T] each, filled up with id 0.

        The mask is 1 on tokens and 0 on what was filled up.

        Args:
            index: of the rows.
            length: T; None: that of the longest of the rows.

        Raises:
            DataError: a row is longer than ``length``.
        """
        rows = [self.row(int(i)) for i in index]
        longest = max((len(row) for row in rows), default=0)
        width = longest if length is None else length
        if longest > width:
            raise DataError(f"a row of {longest} tokens does not fit {width}; cut the rows first")
        ids = np.full((len(rows), width), PADDING, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def batches(self, batch_size: int, length: int | None = None) -> list[Tensor]:
        """Return all rows as padded ids, int64 [B, T] each; rows of like length together.

        Raises:
            DataError: as :meth:`groups` and :meth:`padded`.
        """
        return [self.padded(index, length)[0] for index in self.groups(batch_size)]


@final
@dataclass(frozen=True, eq=False)
class TokenPairs:
    """N pairs of texts and a number that says how much each pair has in common.

    Attributes:
        first, second: the texts of each pair.
        scores: float64 [N].

    Raises:
        DataError: on construction: not as many of each, or scores that are not finite.
    """

    first: TokenRows
    second: TokenRows
    scores: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", np.asarray(self.scores, np.float64))
        counts = self.first.n, self.second.n, self.scores.size
        if self.scores.ndim != 1 or len(set(counts)) != 1:
            raise DataError(
                f"pairs {self.dataset!r} have {counts[0]} first texts, {counts[1]} second and "
                f"scores of shape {self.scores.shape}; there must be one of each per pair"
            )
        bad = int((~np.isfinite(self.scores)).sum())
        if bad:
            raise DataError(f"pairs {self.dataset!r} have {bad} scores that are NaN or infinite")

    @property
    def dataset(self) -> str:
        """The name of the text data set it is part of."""
        return self.first.dataset

    @property
    def name(self) -> str:
        """The name of the split."""
        return self.first.name

    @property
    def provenance(self) -> str:
        """Where the texts come from, in words."""
        return self.first.provenance

    @property
    def n(self) -> int:
        """The number of pairs."""
        return self.first.n

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the texts' ids and the scores, in hex."""
        digest = hashlib.sha256(f"{self.first.sha256} {self.second.sha256}\n".encode())
        digest.update(self.scores.astype("<f8").tobytes())
        return digest.hexdigest()

    def take(self, index: Sequence[int] | Array) -> TokenPairs:
        """Return the pairs ``index``, in its order."""
        chosen = np.asarray(index)
        return TokenPairs(self.first.take(chosen), self.second.take(chosen), self.scores[chosen])


def _at_least_one(what: str, value: int) -> None:
    if value < 1:
        raise DataError(f"{what} is at least 1, not {value}")


def _faults(ids: Array, offsets: Array) -> list[str]:
    """Return what is wrong with the arrays of `TokenRows`, in words."""
    faults = []
    for name, array in (("ids", ids), ("offsets", offsets)):
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            faults.append(f"{name} must be integers [n], not {array.dtype} {array.shape}")
    if faults:
        return faults
    if len(offsets) < 2:
        return ["there are no rows; at least 1 is needed"]
    lengths = np.diff(offsets.astype(np.int64))
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(ids) or (lengths < 0).any():
        return [
            f"offsets run from {int(offsets[0])} to {int(offsets[-1])}; they must rise from 0 to "
            f"{len(ids)}, the number of ids"
        ]
    if (lengths == 0).any():
        faults.append(f"{int((lengths == 0).sum())} of {len(lengths)} rows are empty")
    low, high = int(ids.min(initial=0)), int(ids.max(initial=0))
    if low < 0 or high > 2**31 - 1:
        faults.append(f"ids run from {low} to {high}; they must be 0 to 2147483647")
    return faults

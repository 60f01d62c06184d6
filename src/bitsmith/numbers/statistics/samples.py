"""A sample of the distinct values that does not depend on the order in which they came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.ranges import as_float32, value_range
from bitsmith.numbers.statistics.statistic import Statistic

__all__ = ["Samples"]

_PIECE = 1 << 18  # values hashed at a time


@final
class Samples(Statistic, name="samples", exact=True):
    """The ``size`` distinct values with the smallest hash, and how often each was seen.

    The hash is a fixed function of a value's float32 bits (−0 counts as 0), so what is kept
    depends on the set of values alone, not on their order or on how they were split: a bottom-k
    sketch (Cohen and Kaplan 2007). A value that is among the smallest at the end was among the
    smallest all along, in every part, so it was never dropped and its count is exact.

    What is kept is a uniform random sample of the *distinct* values. To estimate a sum over all
    values seen, weight it: ``Σ weights · f(values)`` is unbiased for ``Σ f(x)``.

    Args:
        size: distinct values to keep, at least 2.
        rows: keep distinct rows along the last axis, which all batches have in common, instead
            of values. Two rows with the same 64-bit hash would count as one: the probability is
            m²/2^65 among m distinct rows. Two values never have the same hash.

    Attributes:
        values: float32 ``[m]``, or ``[m, K]`` for rows; m ≤ size, by ascending hash.
        counts: int64 ``[m]``, how often each was seen.
        hashes: int64 ``[m]``, ascending; the hash minus 2^63.

    >>> s = Samples(size=100)
    >>> s.update(torch.tensor([1.0, 2.0, 1.0, 0.0, -0.0]))
    >>> sorted(zip(s.values.tolist(), s.counts.tolist())), s.distinct
    ([(0.0, 2), (1.0, 2), (2.0, 1)], 3.0)
    """

    def __init__(self, size: int = 4096, rows: bool = False) -> None:
        if size < 2:
            raise DataError(f"a sample keeps at least 2 values, not {size}")
        self.size, self.rows = size, rows
        self.values = torch.zeros((0, 0) if rows else 0)
        self.hashes, self.counts = torch.zeros(2, 0, dtype=torch.int64).unbind()
        self.count = 0

    @property
    def full(self) -> bool:
        """True when values may have been left out."""
        return len(self.hashes) == self.size

    @property
    def distinct(self) -> float:
        """Distinct values (or rows) seen: exact below ``size``, else an unbiased estimate.

        ``(k − 1) / h_k`` with h_k the k-th smallest hash as a fraction of all, k = size; its
        standard error is about 1/√(k − 2) (Bar-Yossef et al., RANDOM 2002; Beyer et al. 2007).
        """
        return (self.size - 1) / self._reach if self.full else float(len(self.hashes))

    @property
    def weights(self) -> Tensor:
        """For how many of the values seen each kept value stands: float64 ``[m]``.

        Its count while nothing was left out; else its count divided by h_k, the probability with
        which a distinct value falls below the k-th smallest hash, and 0 for the k-th itself.
        """
        weights = self.counts.to(torch.float64)
        if self.full:
            weights = weights / self._reach
            weights[-1] = 0.0
        return weights

    def update(self, x: Tensor) -> None:
        x = as_float32(x)
        if x.numel() == 0:
            return
        if self.rows and x.dim() == 0:
            raise DataError("rows need a last axis; a scalar has none")
        value_range(x)  # refuses what is not finite
        items = x.reshape(-1, x.shape[-1]) if self.rows else x.reshape(-1)
        self._check(items)
        for part in torch.split(items, max(1, _PIECE // (items.shape[1] if self.rows else 1))):
            part = part.cpu() + 0.0  # makes −0 a 0
            hashes = _hash(part)
            if self.full:  # what lies above the largest hash kept will never be kept
                low = hashes <= self.hashes[-1]
                part, hashes = part[low], hashes[low]
            self._add(part, hashes, torch.ones_like(hashes))
        self.count += x.numel()

    def merge(self, other: Samples) -> Samples:
        if (self.size, self.rows) != (other.size, other.rows):
            raise DataError(
                f"samples of {self._kind} and of {other._kind} do not merge: set both up alike"
            )
        if not other.empty:
            self._check(other.values)
            self._add(other.values, other.hashes, other.counts)
            self.count += other.count
        return self

    def state_dict(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "rows": self.rows,
            "values": self.values.clone(),
            "hashes": self.hashes.clone(),
            "counts": self.counts.clone(),
            "count": self.count,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Samples:
        samples = cls(state["size"], state["rows"])
        for name in ("values", "hashes", "counts"):
            setattr(samples, name, state[name].clone())
        samples.count = state["count"]
        return samples

    @property
    def _kind(self) -> str:
        return f"{self.size} {'rows' if self.rows else 'values'}"

    @property
    def _reach(self) -> float:
        """The largest hash kept, as a fraction of all hashes."""
        return (int(self.hashes[-1]) + 2**63 + 1) / 2**64

    def _check(self, items: Tensor) -> None:
        if self.rows and not self.empty and items.shape[1] != self.values.shape[1]:
            raise DataError(
                f"samples of rows of {self.values.shape[1]} cannot take in rows of {items.shape[1]}"
            )

    def _add(self, values: Tensor, hashes: Tensor, counts: Tensor) -> None:
        if self.empty and not len(self.hashes):
            self.values = values[:0]
        hashes = torch.cat([self.hashes, hashes])
        smallest, place = torch.unique(hashes, return_inverse=True)  # ascending
        total = torch.zeros_like(smallest).index_add_(0, place, torch.cat([self.counts, counts]))
        member = torch.zeros_like(smallest).index_copy_(0, place, torch.arange(len(place)))
        keep = slice(self.size)
        self.values = torch.cat([self.values, values])[member[keep]]
        self.hashes, self.counts = smallest[keep].clone(), total[keep].clone()


def _hash(items: Tensor) -> Tensor:
    """Return the hash minus 2^63 of float32 values ``[n]`` or rows ``[n, K]``: int64 ``[n]``.

    Values: the finalizer of SplitMix64 (Steele, Lea and Flood 2014), a bijection of the bits.
    Rows: the same of the sum over the axis of the hash of each value mixed with its place.
    """
    bits = items.contiguous().view(torch.int32).to(torch.int64)
    if items.dim() == 2:
        place = torch.arange(1, items.shape[1] + 1) << 32
        bits = _mixed(bits + place).sum(1)  # wraps around 2^64
    return _mixed(bits)


def _mixed(bits: Tensor) -> Tensor:
    bits = bits + _signed(0x9E3779B97F4A7C15)
    bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros, as of unsigned integers."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >> 63 else constant

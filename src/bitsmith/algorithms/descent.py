"""Coordinate descent on the codes of a layer: every weight in turn takes the code that is best.

The output error of a layer, ``tr(D·H·Dᵀ)`` with ``D = Q − W`` and H the Gram matrix of its
inputs, is a quadratic in which the rows of W are independent. For one input k and all rows at
once the best value is known exactly, ``q_k − (D·H)_k / H_kk``, and so is its nearest code. The
change of the error is ``δ·(2·(D·H)_k + δ·H_kk)``, δ being that of the value; only a fall is taken,
so that the error never rises and the descent ends where no single code can lower it.

QuantEase (arXiv 2309.01885, section 3) descends so from nearest rounding; here from any start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor

from bitsmith.algorithms.objective import gram_of
from bitsmith.algorithms.rounding import Rounding
from bitsmith.algorithms.scale_refit import blocked_like, refit_scales
from bitsmith.errors import InputError, SchemeError
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Gram, Statistic

__all__ = [
    "Start",
    "better_rows",
    "check_turns",
    "descend",
    "descend_with_scales",
    "hessian",
    "nearest_level",
    "started",
]

#: Roundings whose codes a descent may start from.
Start = Literal["gptq", "searched", "nearest"]

_BLOCK = 64
"""Inputs whose gradients are brought up to date one by one; all others follow once per block."""


def check_turns(sweeps: int, refits: int, gain: float) -> None:
    """Refuse numbers of turns with which :func:`descend_with_scales` cannot work.

    Raises:
        InputError: fewer than one sweep, negative refits, a gain that is no share below 1.
    """
    if sweeps < 1 or refits < 0:
        raise InputError(f"sweeps is at least 1 and refits at least 0, not {sweeps} and {refits}")
    if not 0 <= gain < 1:
        raise InputError(f"gain is a share, 0 or more and below 1, not {gain}")


def hessian(statistic: Statistic, weight: Tensor, damping: float) -> Tensor:
    """Return the damped Gram matrix of the inputs of ``weight``, float64 ``[K, K]``.

    Its mean diagonal is 1 before ``damping`` is added to the diagonal; inputs that were always 0
    have 1 there too, so that their weights are rounded to nearest.

    Raises:
        DataError: the statistic is no Gram matrix of this layer's inputs.
        InputError: a damping that is negative or not finite.
    """
    if not 0 <= damping < float("inf"):
        raise InputError(f"damping is 0 or more, not {damping}")
    sums = gram_of(statistic, weight)
    dead = sums.diagonal() == 0
    alive = int((~dead).sum())
    h = sums * (alive / float(sums.diagonal().sum()) if alive else 1.0)
    h[dead, dead] = 1.0
    h.diagonal().add_(damping)
    return h


def started(
    start: Start, by: str, weight: Tensor, scheme: Scheme, min_scale: Tensor, gram: Gram
) -> QTensor:
    """Return the codes of the rounding named ``start``, whose range a descent keeps.

    Args:
        start: name of the rounding.
        by: the rounding that asks, for the message.
        weight, scheme, min_scale, gram: as :meth:`Rounding.round` takes them.

    Raises:
        InputError: no such start.
        SchemeError: the scheme has a learned table or offsets.
    """
    if start not in ("gptq", "searched", "nearest"):
        raise InputError(f"{by} starts from gptq, searched or nearest, not {start!r}")
    if scheme.learned or scheme.offset_format is not None:
        has = "a learned table: use kmeans" if scheme.learned else "offsets: use nearest"
        raise SchemeError(
            f"{by} moves codes of numbers that scale and zero point give, and {scheme.format.name} "
            f"here has {has}"
        )
    return Rounding.registry[start]().round(weight, scheme, min_scale, gram)


def descend(
    weight: Tensor,
    start: QTensor,
    h: Tensor,
    *,
    sweeps: int = 20,
    gain: float = 0.0,
    levels: Tensor | None = None,
) -> QTensor:
    """Return ``start`` with other codes of the same range, of no larger ``tr(D·H·Dᵀ)``.

    All rows at once, input by input from the largest diagonal entry to the smallest, until a
    sweep changes nothing.

    Args:
        weight: float32 ``[out, in, *kernel]``.
        start: of its shape, of a scheme without a learned table and without offsets.
        h: float64 ``[K, K]``, symmetric, with a positive diagonal.
        sweeps: passes over all inputs, at most.
        gain: a sweep that lowers the error by a smaller share is the last.
        levels: the codes of an integer scheme to choose from, in ascending order; None: all.

    >>> from bitsmith.numbers.affine import quantize
    >>> from bitsmith.numbers.formats.integer import int4
    >>> w = torch.tensor([[0.4, 0.4, 7.0]])
    >>> h = torch.tensor([[1.0, 0.9, 0], [0.9, 1.0, 0], [0, 0, 1.0]], dtype=torch.float64)
    >>> q = quantize(w, Scheme(int4), torch.tensor(1.0), torch.tensor(0, dtype=torch.int32))
    >>> q.codes.tolist(), descend(w, q, h).codes.tolist()  # the two errors of 0.4 add up
    ([[0, 0, 7]], [[1, 0, 7]])
    """
    order = torch.argsort(h.diagonal(), descending=True, stable=True)
    h = h[order][:, order]
    grid = _Grid.of(start, order, levels)
    w = weight.flatten(1).to(torch.float64).T[order]
    codes = start.codes.flatten(1).T[order].contiguous()
    values = grid.values(codes, slice(None))
    gradient = h @ (values - w)
    error = _inner(values - w, gradient)
    for _ in range(sweeps):
        before, was = codes.clone(), error
        for first in range(0, len(w), _BLOCK):
            block = slice(first, first + _BLOCK)
            change = _sweep(codes[block], values[block], gradient[block], h[block, block], grid,
                            first)  # fmt: skip
            gradient.addmm_(h[:, block], change)
        error = _inner(values - w, gradient)
        if torch.equal(codes, before) or was - error < gain * was:
            break
    rows = torch.empty_like(codes).index_copy_(0, order, codes).T
    return replace(start, codes=rows.reshape(start.codes.shape).contiguous())


def _inner(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum())


def _sweep(
    codes: Tensor, values: Tensor, gradient: Tensor, h: Tensor, grid: _Grid, first: int
) -> Tensor:
    """Give each input of a block its best codes, in place; return the change of the values."""
    gradient = gradient.clone()
    before = values.clone()
    for i, curve in enumerate(h.diagonal().tolist()):
        best, value = grid.nearest(values[i] - gradient[i] / curve, first + i)
        delta = value - values[i]
        # Below this a fall may be the rounding of the sums.
        falls = delta * (2 * gradient[i] + delta * curve) < -1e-9 * curve * delta.square()
        delta = torch.where(falls, delta, 0.0)
        codes[i] = torch.where(falls, best, codes[i])
        values[i] += delta
        gradient[i + 1 :].addr_(h[i, i + 1 :], delta)
    return values - before


def descend_with_scales(
    weight: Tensor,
    q: QTensor,
    h: Tensor,
    min_scale: Tensor,
    *,
    sweeps: int,
    refits: int,
    gain: float = 0.0,
    levels: Tensor | None = None,
) -> QTensor:
    """Return ``q`` after a descent, and ``refits`` turns of refitted scales and another one."""
    q = descend(weight, q, h, sweeps=sweeps, gain=gain, levels=levels)
    for _ in range(refits):
        again = refit_scales(weight, q, h, min_scale)
        if again is q or torch.equal(again.scale, q.scale):
            break
        q = descend(weight, again, h, sweeps=sweeps, gain=gain, levels=levels)
    return q


def better_rows(weight: Tensor, one: QTensor, other: QTensor, h: Tensor) -> QTensor:
    """Return ``one`` with the codes of ``other``, of the same range, in the rows they improve."""

    def errors(q: QTensor) -> Tensor:
        d = q.dequantize().flatten(1).double() - weight.flatten(1).double()
        return ((d @ h) * d).sum(1)

    better = (errors(other) < errors(one)).reshape(-1, *[1] * (weight.dim() - 1))
    return replace(one, codes=torch.where(better, other.codes, one.codes))


def nearest_level(codes: Tensor, levels: Tensor) -> Tensor:
    """Return the nearest of the ascending ``levels`` to each; in the middle the higher."""
    between = (levels[1:] + levels[:-1]) / 2
    return levels[torch.bucketize(codes.contiguous(), between, right=True)]


@final
@dataclass(frozen=True)
class _Grid:
    """The values that the codes of each weight can take; inputs first, ``[K, out]``."""

    scheme: Scheme
    scale: Tensor
    zero: Tensor
    levels: Tensor | None

    @staticmethod
    def of(q: QTensor, order: Tensor, levels: Tensor | None) -> _Grid:
        scale, zero = (
            blocked_like(part, q.shape).T[order].to(torch.float64).contiguous()
            for part in (q.scale, q.zero_point)
        )
        return _Grid(q.scheme, scale, zero, None if levels is None else levels.double())

    def values(self, codes: Tensor, at: slice | int) -> Tensor:
        if not self.scheme.affine:
            return self.scheme.format.decode(codes).double() * self.scale[at]
        return (codes.double() - self.zero[at]) * self.scale[at]

    def nearest(self, wanted: Tensor, at: int) -> tuple[Tensor, Tensor]:
        """Return the codes nearest to the ``wanted`` values of one input, and their values."""
        real = wanted / self.scale[at]
        if not self.scheme.affine:
            codes = self.scheme.format.encode(real.float())
            return codes, self.scheme.format.decode(codes).double() * self.scale[at]
        if self.levels is None:
            whole = real.round_().add_(self.zero[at])
            whole.clamp_(self.scheme.code_min, self.scheme.code_max)
        else:
            whole = nearest_level(real.add_(self.zero[at]), self.levels)
        return whole.to(self.scheme.format.dtype), (whole - self.zero[at]) * self.scale[at]

"""Round column by column, each error made up for by the columns that are still to come: GPTQ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.algorithms.objective import gram_of
from bitsmith.algorithms.rounding import Rounding
from bitsmith.errors import DataError, InputError, SchemeError
from bitsmith.numbers.coding import round_to_integer
from bitsmith.numbers.granularity import PerGroup, blocked
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.range_search import search_range
from bitsmith.numbers.scales import store_scales
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Gram, Statistic

__all__ = ["GPTQ", "gptq_codes"]

_BLOCK = 128
"""Columns that are brought up to date one by one; all later ones follow once per block."""


@final
@dataclass(frozen=True)
class GPTQ(Rounding, name="gptq"):
    """GPTQ (arXiv 2210.17323, algorithm 1): the layer's output error, greedily made small.

    See :func:`gptq_codes`.

    Attributes:
        damping: share of the mean diagonal that is added to the diagonal.
        act_order: round the inputs of largest second moment first.
        steps: ranges tried per end and group.

    >>> from bitsmith.numbers.formats.integer import int2
    >>> seeded = torch.Generator().manual_seed(0)
    >>> x = torch.randn(64, 2, generator=seeded) @ torch.randn(2, 8, generator=seeded)
    >>> gram = Gram()
    >>> gram.update(x)
    >>> rounded = GPTQ()(torch.randn(4, 8, generator=seeded), Scheme(int2), statistic=gram)
    >>> rounded.objective < 0.1 * rounded.nearest_objective
    True
    """

    needs = Gram

    damping: float = 0.01
    act_order: bool = True
    steps: int = 64

    def round(
        self, weight: Tensor, scheme: Scheme, min_scale: Tensor, statistic: Statistic | None
    ) -> QTensor:
        assert isinstance(statistic, Gram)
        return gptq_codes(
            weight,
            gram_of(statistic, weight),
            scheme,
            min_scale=min_scale,
            damping=self.damping,
            act_order=self.act_order,
            steps=self.steps,
        )


def gptq_codes(
    weight: Tensor,
    gram: Tensor,
    scheme: Scheme,
    *,
    min_scale: Tensor | None = None,
    damping: float = 0.01,
    act_order: bool = True,
    steps: int = 64,
) -> QTensor:
    """Return ``weight`` with codes that make ``tr((W − Q)·H·(W − Q)ᵀ)`` small.

    arXiv 2210.17323, algorithm 1, for every row at once: with ``U`` the upper Cholesky factor of
    ``H⁻¹`` (``H⁻¹ = Uᵀ·U``, ``H`` the damped Gram matrix), column i becomes its nearest code, and
    its error ``e = (w_i − q_i) / U_ii`` changes the columns to come: ``w_j ← w_j − e·U_ij``. All
    float64, but for the values that are coded, which are rounded to float32 first: with a
    diagonal ``H`` the codes are those of nearest rounding.

    Ranges come from :func:`search_range` with the damped diagonal as importance: of the original
    weights, or, for groups along the inputs of a linear weight taken in their own order
    (``act_order=False``), of the weights as they are when a group begins.

    Inputs that were always 0 take no part: their weights are rounded to nearest (the published
    code sets them to 0), as what they meet elsewhere is unknown.

    Args:
        weight: float32, ``[out, in, *kernel]``.
        gram: float64 ``[K, K]``, ``XᵀX`` of the inputs, K = in · kernel in the order of
            ``weight.flatten(1)``; any positive factor.
        scheme: any but one with a learned table or with offsets.
        min_scale: no scale is smaller; float32, the scale's shape.
        damping: times the mean of the diagonal is added to the diagonal; ten times as much, up
            to three times over, where the matrix is not positive definite.
        act_order: from the largest diagonal entry to the smallest.
        steps: of :func:`search_range`.

    Raises:
        DataError: the matrix has another size, is not finite or not positive definite.
        InputError: a damping below 0.
        SchemeError: the scheme has a learned table or offsets, or does not fit the weight.
    """
    if scheme.learned or scheme.offset_format is not None:
        raise SchemeError(
            f"gptq rounds to numbers that scale and zero point give, and {scheme.format.name} here "
            f"has {'a learned table: use kmeans' if scheme.learned else 'offsets: use nearest'}"
        )
    if not (math.isfinite(damping) and damping >= 0):
        raise InputError(f"damping is 0 or more, not {damping}")
    hessian = _hessian(gram, weight)
    importance = (hessian.diagonal() + max(damping, 1e-8)).to(torch.float32)
    order = torch.arange(len(hessian))
    if act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    factor = _inverse_factor(hessian[order][:, order], damping)
    shape = scheme.granularity.scale_shape(weight.shape)
    floor = torch.zeros(shape) if min_scale is None else min_scale
    size = 0 if act_order else _group_size(weight, scheme)
    work = weight.flatten(1).to(torch.float64).T[order].contiguous()  # [K, out]
    if size:
        codes, scale, point = _by_groups(work, factor, scheme, size, importance, floor, steps)
    else:
        spread = importance.reshape(1, *weight.shape[1:])
        scale, point = search_range(weight, scheme, spread, steps=steps)
        scale = torch.maximum(scale, floor)
        step, zero = (_per_input(part, weight.shape)[order] for part in (scale, point))
        codes = torch.empty(work.shape, dtype=scheme.format.dtype)
        for start in range(0, len(work), _BLOCK):
            block = slice(start, start + _BLOCK)
            codes[block] = _round_block(work, factor, scheme, block, step[block], zero[block])
    rows = torch.empty_like(codes).index_copy_(0, order, codes).T
    stored = store_scales(scale, scheme) if isinstance(scheme.scale_format, Scheme) else None
    return QTensor(rows.reshape(weight.shape).contiguous(), scale, point, None, scheme, stored)


def _by_groups(
    work: Tensor,
    factor: Tensor,
    scheme: Scheme,
    size: int,
    importance: Tensor,
    floor: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes ``[K, out]``, scale and zero point ``[out, groups]``, found group by group."""
    codes = torch.empty(work.shape, dtype=scheme.format.dtype)
    scales, points = [], []
    for group, start in enumerate(range(0, len(work), size)):
        block = slice(start, start + size)
        now = work[block].T.to(torch.float32)  # as the groups before have left it
        scale, point = search_range(now, scheme, importance[block], steps=steps)
        scale = torch.maximum(scale, floor[:, group : group + 1])
        scales.append(scale)
        points.append(point)
        step, zero = scale.T.expand(size, -1), point.T.expand(size, -1)
        codes[block] = _round_block(work, factor, scheme, block, step, zero)
    return codes, torch.cat(scales, 1), torch.cat(points, 1)


def _round_block(
    work: Tensor, factor: Tensor, scheme: Scheme, block: slice, step: Tensor, zero: Tensor
) -> Tensor:
    """Return the codes of a block of inputs; ``work`` after it makes up for their errors.

    Args:
        work: ``[K, out]``, changed in place.
        factor: U, upper ``[K, K]``.
        block: the inputs to round now.
        step, zero: scale and zero point of each of their weights, ``[block, out]``.
    """
    now, own = work[block], factor[block, block]
    errors = torch.empty_like(now)
    codes = torch.empty(now.shape, dtype=scheme.format.dtype)
    generator = torch.Generator().manual_seed(scheme.seed + block.start)
    for i, column in enumerate(now):
        codes[i], value = _nearest(column.to(torch.float32), scheme, step[i], zero[i], generator)
        torch.div(column - value, own[i, i], out=errors[i])
        now[i + 1 :].addr_(own[i, i + 1 :], errors[i], alpha=-1)
    after = block.start + len(now)
    work[after:].addmm_(factor[block, after:].T, errors, alpha=-1)
    return codes


def _nearest(
    column: Tensor, scheme: Scheme, step: Tensor, zero: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the codes of one input's weights ``[out]`` and the values that they stand for."""
    if not scheme.affine:
        codes = scheme.format.encode(column / step)
        return codes, scheme.format.decode(codes) * step
    whole = round_to_integer(column / step, scheme.rounding, generator).add_(zero)
    whole.clamp_(scheme.code_min, scheme.code_max)
    return whole, (whole - zero) * step


def _hessian(gram: Tensor, weight: Tensor) -> Tensor:
    """Return the Gram matrix with a mean diagonal of 1, and 1 for inputs that were always 0."""
    features = weight[0].numel()
    if tuple(gram.shape) != (features, features):
        raise DataError(
            f"a weight of shape {tuple(weight.shape)} needs the Gram matrix of its {features} "
            f"inputs, not one of shape {tuple(gram.shape)}"
        )
    if bad := int((~torch.isfinite(gram)).sum()):
        raise DataError(f"{bad} of {gram.numel()} entries of the Gram matrix are NaN or infinite")
    dead = gram.diagonal() == 0
    alive = int((~dead).sum())
    hessian = gram.to(torch.float64) * (alive / float(gram.diagonal().sum()) if alive else 1.0)
    hessian[dead, dead] = 1.0
    return hessian


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Return U, upper triangular, with ``Uᵀ·U`` the inverse of the damped matrix.

    With the rows and columns in reverse order ``H = L·Lᵀ``; the reverse of ``L⁻¹`` is U. One
    factorization and one triangular inverse, and no inverse of H.
    """
    reverse = hessian.flip(0, 1)
    for more in (1, 10, 100, 1000):
        added = damping if more == 1 else max(damping, 1e-6) * more
        damped = reverse + added * torch.eye(len(reverse), dtype=reverse.dtype)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            unit = torch.eye(len(lower), dtype=lower.dtype)
            inverse: Tensor = torch.linalg.solve_triangular(lower, unit, upper=False)
            return inverse.flip(0, 1)
    raise DataError(
        f"the Gram matrix is not positive definite, not even with {added:g} times its mean "
        "diagonal added: a sum of squares of real inputs always is"
    )


def _group_size(weight: Tensor, scheme: Scheme) -> int:
    """Return the size of groups along the inputs of a linear weight, 0 for other granularities."""
    by = scheme.granularity
    along = isinstance(by, PerGroup) and weight.dim() == 2 and by.axis in (1, -1)
    together = isinstance(scheme.scale_format, Scheme)  # two-level scales need all groups at once
    return by.size if isinstance(by, PerGroup) and along and not together else 0


def _per_input(part: Tensor, shape: torch.Size) -> Tensor:
    """Return the scale or zero point of each weight, ``[K, out]``."""
    wide, narrow = blocked(shape, part.shape)
    return part.reshape(narrow).expand(wide).reshape(shape).flatten(1).T

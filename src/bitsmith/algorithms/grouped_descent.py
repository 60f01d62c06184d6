"""Codes of a grouped convolution that its own inputs make better: all groups at once.

Each group of a depthwise or grouped convolution meets inputs of its own. Such groups are many
and small, so that one after the other would take long; and one scale may span them all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitsmith.algorithms.descent import nearest_level
from bitsmith.errors import DataError, SchemeError
from bitsmith.numbers.granularity import PerChannel, PerTensor
from bitsmith.numbers.qtensor import QTensor

__all__ = ["descend_groups"]


def descend_groups(
    weight: Tensor,
    start: QTensor,
    gram: Tensor,
    *,
    sweeps: int = 3,
    min_scale: Tensor | None = None,
    levels: Tensor | None = None,
) -> QTensor:
    """Return codes and scales with ``Σ (w − q)·H·(w − q)ᵀ`` at most that of ``start``.

    Coordinate descent (arXiv 2309.01885, section 3): given all other codes of a row, the best
    code of input k is the nearest to ``w_k + Σ_{j≠k} (w_j − q_j)·H_jk / H_kk``; the inputs are
    taken in turn. After each sweep a scale becomes the best for its codes, ``z·H·wᵀ / z·H·zᵀ``
    with z the codes less the zero point. Neither raises the sum. An input that was always 0
    keeps its codes.

    Args:
        weight: float32 ``[O, I/groups, *kernel]``.
        start: its codes, in an integer scheme with one scale or one for each output channel.
        gram: float64 ``[groups, K, K]``, sums of products of the inputs of each group, K =
            I/groups · kernel; any positive factor.
        sweeps: over all inputs.
        min_scale: no scale is smaller; of the scale's shape.
        levels: the codes to choose from, in ascending order; None: all of the scheme.

    Raises:
        DataError: the matrices have another shape.
        SchemeError: another scheme.

    >>> from bitsmith.numbers import Scheme, int4, quantize
    >>> w = torch.tensor([[0.4, 0.4, 7.0]])
    >>> h = torch.tensor([[[1.0, 0.9, 0], [0.9, 1.0, 0], [0, 0, 1.0]]], dtype=torch.float64)
    >>> q = quantize(w, Scheme(int4), torch.tensor(1.0), torch.tensor(0, dtype=torch.int32))
    >>> descend_groups(w, q, h).codes.tolist()  # the two errors of 0.4 would add up
    [[1, 0, 7]]
    """
    scheme = start.scheme
    if not scheme.affine or scheme.granularity not in (PerTensor(), PerChannel(0)):
        raise SchemeError(
            f"descent takes integer codes with scales per tensor or output channel, not {scheme}"
        )
    features, groups = weight[0].numel(), len(gram)
    if tuple(gram.shape) != (groups, features, features) or len(weight) % max(1, groups):
        raise DataError(
            f"a weight of shape {tuple(weight.shape)} needs Gram matrices [groups, {features}, "
            f"{features}], not {tuple(gram.shape)}"
        )
    rows = (groups, len(weight) // groups)
    w = weight.reshape(*rows, features).to(torch.float64)
    zero = _per_row(start.zero_point, weight).reshape(rows)
    z = start.codes.reshape(*rows, features).to(torch.float64) - zero.unsqueeze(2)
    scale = start.scale
    table = None if levels is None else levels.to(torch.float64)

    def nearest(wanted: Tensor) -> Tensor:
        """The code less its zero point that is nearest to each ``wanted`` one."""
        if table is not None:
            return nearest_level(wanted + zero, table) - zero
        return wanted.round().add_(zero).clamp_(scheme.code_min, scheme.code_max) - zero

    for _ in range(sweeps):
        _sweep(w, z, _per_row(scale, weight).reshape(rows), gram, nearest)
        scale = _refitted(w, z, scale, gram, min_scale)
    codes = (z + zero.unsqueeze(2)).to(start.codes.dtype).reshape(weight.shape)
    return QTensor(codes, scale, start.zero_point, start.codebook, scheme)


def _per_row(part: Tensor, weight: Tensor) -> Tensor:
    return part.reshape(-1).expand(len(weight)).to(torch.float64)


def _sweep(
    w: Tensor, z: Tensor, step: Tensor, gram: Tensor, nearest: Callable[[Tensor], Tensor]
) -> None:
    """Give each input's codes their best values in turn; ``z`` ``[G, O/G, K]`` changes in place."""
    slope = (w - step.unsqueeze(2) * z) @ gram  # Σ_j (w_j − q_j)·H_jk
    squares = gram.diagonal(dim1=1, dim2=2)  # [G, K]
    for k in range(w.shape[2]):
        own = squares[:, k : k + 1]  # [G, 1]
        alive = own > 0
        wanted = z[..., k] + slope[..., k] / (step * torch.where(alive, own, 1.0))
        new = torch.where(alive, nearest(wanted), z[..., k])
        change = step * (new - z[..., k])
        slope.baddbmm_(change.unsqueeze(2), gram[:, k : k + 1], alpha=-1)
        z[..., k] = new


def _refitted(
    w: Tensor, z: Tensor, scale: Tensor, gram: Tensor, min_scale: Tensor | None
) -> Tensor:
    """Return the best scales for the codes, float32; the old one where there is no better."""
    along = z @ gram
    square, product = (along * z).sum(2).reshape(-1), (along * w).sum(2).reshape(-1)
    if scale.numel() == 1:
        square, product = square.sum().reshape(1), product.sum().reshape(1)
    best = (product / torch.where(square > 0, square, 1.0)).to(torch.float32).reshape(scale.shape)
    usable = (square > 0).reshape(scale.shape) & (best > torch.finfo(torch.float32).tiny)
    if min_scale is not None:
        usable &= best >= min_scale
    return torch.where(usable & torch.isfinite(best), best, scale)

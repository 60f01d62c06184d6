"""Integer factors in place of a real multiplier: how one is split, and how sums pass through it.

What :mod:`~bitsmith.numbers.integer.fixed_point` and :mod:`~bitsmith.numbers.integer.dyadic`
share. Everything is int64 inside, in pieces, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.pieces import PIECE, pieces

__all__ = ["rescale", "significand"]

#: ``real < 2^-32`` moves no int32 by half a code.
_LOWEST_EXPONENT = -31


def significand(real: Tensor | float, bits: int, highest: int) -> tuple[Tensor, Tensor]:
    """Return ``(q, e)`` with ``real ≈ q · 2^(e − bits)`` and ``2^(bits−1) <= q < 2^bits``.

    ``q`` is rounded half away from zero; a ``q`` that rounds up to ``2^bits`` is halved and ``e``
    grows by one. A ``real`` of 0, or with ``e < −31`` (below 2^−32, which no int32 multiplies to
    half a code), gives ``(0, 0)``.

    Args:
        real: not negative, any shape; computed in float64.
        bits: width of ``q``, 1 to 31.
        highest: the largest ``e`` allowed.

    Returns:
        int64 ``q`` and ``e``, the shape of ``real``.

    Raises:
        DataError: ``bits`` is out of range; a value is negative, NaN, infinite or too large.

    >>> q, e = significand(0.3, 4, 30)
    >>> q.item(), e.item(), q.item() * 2.0 ** (e.item() - 4)
    (10, -1, 0.3125)
    """
    if not 1 <= bits <= 31:
        raise DataError(f"an integer factor has 1 to 31 bits, not {bits}")
    wide = torch.as_tensor(real, dtype=torch.float64)
    fraction, exponent = torch.frexp(wide)
    # At most 53 bits: adding a half is exact below 2^bits and lands there otherwise.
    q = torch.floor(fraction * 2.0**bits + 0.5)
    carry = q == 2.0**bits
    q = torch.where(carry, 2.0 ** (bits - 1), q)
    exponent = exponent.long() + carry
    wrong = ~torch.isfinite(wide) | (wide < 0) | (exponent > highest)
    if bool(wrong.any()):
        raise DataError(
            f"{int(wrong.sum())} of {wide.numel()} multipliers are negative, not finite or not "
            f"below 2^{highest}, the first {float(wide[wrong][0])}; a multiplier is "
            "s_x · s_w / s_y: check these three scales"
        )
    kept = (q > 0) & (exponent >= _LOWEST_EXPONENT)
    return torch.where(kept, q, 0.0).long(), torch.where(kept, exponent, 0)


def rescale(
    acc: Tensor,
    factors: tuple[Tensor, Tensor],
    y: Encoding,
    channel_axis: int,
    kernel: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Return ``clamp(kernel(acc, *factors))`` as codes of ``y.format``.

    Args:
        acc: int32 accumulators.
        factors: two integer tensors ``[]``, or ``[C]`` along ``channel_axis`` of ``acc``.
        y: encoding of the output.
        channel_axis: the axis of ``acc`` that the factors run along.
        kernel: maps int64 sums and int64 factors of a shape that broadcasts to int64 codes, the
            zero point added, the clamp not done.

    Raises:
        DataError: ``acc`` is not int32, or a factor has another shape or a float type.
    """
    _check(acc, factors, channel_axis)
    codes = torch.empty(acc.shape, dtype=y.format.dtype, device=acc.device)
    along = [1] * acc.ndim
    if acc.ndim:
        along[channel_axis] = -1
    first, second = (
        f.to(acc.device).long().reshape(() if f.numel() == 1 else along) for f in factors
    )
    for part, out, a, b in pieces(acc, codes, first, second, size=PIECE):
        result = kernel(part.long(), a, b)
        out.copy_(result.clamp_(y.format.code_min, y.format.code_max))
    return codes


def _check(acc: Tensor, factors: tuple[Tensor, Tensor], axis: int) -> None:
    wrong = []
    if acc.dtype != torch.int32:
        wrong.append(f"accumulators are int32, not {acc.dtype}")
    for factor in factors:
        if factor.dtype.is_floating_point or factor.dtype.is_complex:
            wrong.append(f"factors are integers, not {factor.dtype}")
        if factor.numel() == 1:
            continue
        if not -acc.ndim <= axis < acc.ndim or list(factor.shape) != [acc.shape[axis]]:
            wrong.append(
                f"a factor is [] or has one value per index of axis {axis} of "
                f"{list(acc.shape)}, not {list(factor.shape)}"
            )
    if wrong:
        raise DataError(f"cannot requantize: {'; '.join(dict.fromkeys(wrong))}")

"""Requantization by a dyadic number b / 2^c: one integer product and one rounding shift.

HAWQ-V3 (arXiv 2011.10680, section 3.1, equation (5)) replaces ``s_x · s_w / s_y`` by b / 2^c with
integers b and c, so that no float and no division is left. The width of b is a choice: the wider,
the closer to the real multiplier, and the wider the product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.integer.rescale import rescale, significand

__all__ = ["dyadic_multiplier", "requantize_dyadic"]


def dyadic_multiplier(real: Tensor | float, bits: int = 16) -> tuple[Tensor, Tensor]:
    """Return ``(b, c)``, the nearest ``b / 2^c`` to ``real`` whose ``b`` has ``bits`` bits.

    ``2^(bits−1) <= b < 2^bits`` and ``|b / 2^c − real| <= 2^−bits · real``. So the product with an
    accumulator is off by at most ``2^−bits`` of itself: with 8-bit codes, whose products stay
    below 2^9, at most ``2^(9−bits)`` steps, and a code can change only where the exact product is
    that close to a tie. A ``real`` below 2^−32, which no int32 multiplies to half a code, gives
    ``(0, 0)``. HAWQ-V3's own program takes 31 bits; 16 keep a product with an int32 within 48.

    Args:
        real: ``s_x · s_w / s_y``, ``[]`` or ``[C]``; computed in float64.
        bits: width of ``b``, 1 to 31.

    Returns:
        int32 ``b`` and ``c``, the shape of ``real``; ``0 <= c <= bits + 31``.

    Raises:
        DataError: a multiplier is negative, NaN, infinite or not below 2^bits.

    >>> b, c = dyadic_multiplier(0.3, bits=8)
    >>> b.item(), c.item(), b.item() / 2 ** c.item()
    (154, 9, 0.30078125)
    """
    q, exponent = significand(real, bits, highest=bits)
    return q.to(torch.int32), torch.where(q > 0, bits - exponent, 0).to(torch.int32)


def requantize_dyadic(acc: Tensor, b: Tensor, c: Tensor, y: Encoding, channel_axis: int) -> Tensor:
    """Return output codes ``clamp(((acc · b + 2^(c−1)) >> c) + zero_point)``.

    The product has 64 bits, the shift rounds to nearest with ties up (toward +∞), then the zero
    point is added and the sum clamped to ``y.format``. With ``b`` of 31 bits this is the
    single-rounding fixed-point way.

    Args:
        acc: int32 accumulators.
        b, c: of :func:`dyadic_multiplier`, ``[]`` or ``[C]`` along ``channel_axis``;
            ``0 <= b < 2^31`` and ``0 <= c <= 62``.
        y: encoding of the output.
        channel_axis: the axis of ``acc`` that ``b`` and ``c`` run along.

    Returns:
        codes of ``y.format``, the shape of ``acc``.

    Raises:
        DataError: ``acc`` is not int32; ``b`` or ``c`` has another shape or is out of range.

    >>> from bitsmith.numbers.formats.integer import int8
    >>> acc = torch.tensor([-4, 8, 1000], dtype=torch.int32)
    >>> requantize_dyadic(acc, *dyadic_multiplier(0.3), Encoding(1.0, 3, int8), 0).tolist()
    [2, 5, 127]
    """
    for name, factor, top in (("b", b, (1 << 31) - 1), ("c", c, 62)):
        if factor.numel() and not 0 <= int(factor.min()) <= int(factor.max()) <= top:
            span = f"{int(factor.min())} to {int(factor.max())}"
            raise DataError(f"a dyadic multiplier has {name} from 0 to {top}, not {span}")

    def kernel(sums: Tensor, b: Tensor, c: Tensor) -> Tensor:
        half = torch.bitwise_left_shift(torch.ones_like(c), c) >> 1
        return sums.mul(b).add_(half).bitwise_right_shift_(c).add_(y.zero_point)

    return rescale(acc, (b, c), y, channel_axis, kernel)

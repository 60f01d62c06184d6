"""Requantization with a 31-bit fixed-point multiplier and a rounding shift: TFLite and CMSIS-NN.

A real multiplier ``M = s_x · s_w / s_y`` (arXiv 1712.05877, equation (5)) becomes
``M = mantissa · 2^(shift − 31)`` with ``mantissa`` in [2^30, 2^31): equation (6) with
``M_0 = mantissa / 2^31`` and ``n = −shift``. Two ways to apply it exist.

``"double"``, the default of gemmlowp, TFLite (``MultiplyByQuantizedMultiplier``) and CMSIS-NN
(``arm_nn_requantize``), rounds twice, in this order:

1. ``acc · 2^shift`` where ``shift > 0``, modulo 2^32;
2. the doubling high product ``(acc · mantissa + 2^30) >> 31``: ties go up, as Arm's SQRDMULH does;
3. where ``shift < 0``, a division by ``2^−shift``: ties go away from zero. The paper's appendix B
   says why: Arm's RSHL, whose ties go up, biases every layer upward;
4. the zero point is added, then the sum is clamped to the range of codes.

``"single"``, built with ``TFLITE_SINGLE_ROUNDING`` or ``CMSIS_NN_USE_SINGLE_ROUNDING``, replaces
1 to 3 by one 64-bit ``(acc · mantissa + 2^(30−shift)) >> (31 − shift)``: ties go up.

Where a result leaves int32 (a multiplier far above 1) it wraps, as in release builds of both.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.integer.rescale import rescale, significand

__all__ = [
    "FixedPointRounding",
    "fixed_point_multiplier",
    "requantize_fixed_point",
    "rounding_divide_by_power_of_two",
    "saturating_rounding_doubling_high_multiply",
]

FixedPointRounding = Literal["double", "single"]

_INT32_MAX = (1 << 31) - 1
_INT32_MIN = -(1 << 31)


def fixed_point_multiplier(real: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return ``(mantissa, shift)`` with ``real ≈ mantissa · 2^(shift − 31)``.

    TFLite's ``QuantizeMultiplier``: ``mantissa`` is rounded half away from zero and lies in
    [2^30, 2^31); one that rounds up to 2^31 is halved and ``shift`` grows by one. A ``real`` of 0
    or below 2^−32 (``shift < −31``) gives ``(0, 0)``. The relative error is at most 2^−31.

    Args:
        real: ``s_x · s_w / s_y``, ``[]`` or ``[C]``. TFLite multiplies and divides the float32
            scales in float64: so do the callers here.

    Returns:
        int32 ``mantissa`` and ``shift``, the shape of ``real``; ``−31 <= shift <= 30``.

    Raises:
        DataError: a multiplier is negative, NaN, infinite or not below 2^30.

    >>> mantissa, shift = fixed_point_multiplier(torch.tensor([0.75, 0.25, 3.0]))
    >>> mantissa.tolist(), shift.tolist()
    ([1610612736, 1073741824, 1610612736], [0, -1, 2])
    """
    mantissa, shift = significand(real, 31, highest=30)
    return mantissa.to(torch.int32), shift.to(torch.int32)


def saturating_rounding_doubling_high_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Return ``round(a · b / 2^31)`` with ties up: the product of two numbers of 31 binary places.

    gemmlowp's ``SaturatingRoundingDoublingHighMul``, Arm's SQRDMULH. The one product that does not
    fit, ``a = b = −2^31``, saturates to ``2^31 − 1``. (gemmlowp adds a nudge of 2^30, or of
    1 − 2^30 to a negative product, and divides toward zero: the same number.)

    Args:
        a, b: int32; shapes broadcast.

    Returns:
        int32.

    Raises:
        DataError: an operand is not int32.

    >>> half = torch.tensor(1 << 30, dtype=torch.int32)
    >>> x = torch.tensor([-3, -1, 1, 3], dtype=torch.int32)
    >>> saturating_rounding_doubling_high_multiply(x, half).tolist()
    [-1, 0, 1, 2]
    """
    _require_int32("saturating_rounding_doubling_high_multiply", a, b)
    return _doubling_high(a.long(), b.long()).clamp_(max=_INT32_MAX).to(torch.int32)


def rounding_divide_by_power_of_two(x: Tensor, exponent: Tensor | int) -> Tensor:
    """Return ``round(x / 2^exponent)`` with ties away from zero.

    gemmlowp's ``RoundingDivideByPOT``, CMSIS-NN's ``arm_nn_divide_by_power_of_two``.

    Args:
        x: int32.
        exponent: 0 to 31, a number or an integer tensor of a shape that broadcasts.

    Returns:
        int32.

    Raises:
        DataError: ``x`` is not int32, or an exponent is out of range.

    >>> x = torch.tensor([-12, -11, 11, 12], dtype=torch.int32)
    >>> rounding_divide_by_power_of_two(x, 3).tolist()
    [-2, -1, 1, 2]
    """
    _require_int32("rounding_divide_by_power_of_two", x)
    by = torch.as_tensor(exponent, device=x.device)
    if by.is_floating_point() or (by.numel() and not 0 <= int(by.min()) <= int(by.max()) <= 31):
        raise DataError(f"an exponent is an integer from 0 to 31, not {exponent}")
    return _divide(x.long(), by.long()).to(torch.int32)


def requantize_fixed_point(
    acc: Tensor,
    mantissa: Tensor,
    shift: Tensor,
    y: Encoding,
    channel_axis: int,
    rounding: FixedPointRounding = "double",
) -> Tensor:
    """Return output codes of int32 sums, as TFLite and CMSIS-NN compute them.

    The module's text states the steps of both roundings. As long as no result leaves int32, a code
    is at most 1 away from :func:`~bitsmith.numbers.integer.requantize.requantize`'s.

    Args:
        acc: int32 accumulators, bias added.
        mantissa, shift: of :func:`fixed_point_multiplier`, ``[]`` or ``[C]`` along
            ``channel_axis``; ``0 <= mantissa < 2^31`` and ``−31 <= shift <= 30``.
        y: encoding of the output; its format's range clamps.
        channel_axis: the axis of ``acc`` that the multiplier runs along.
        rounding: ``"double"`` or ``"single"``.

    Returns:
        codes of ``y.format``, the shape of ``acc``.

    Raises:
        DataError: an unknown rounding; ``acc`` is not int32; a multiplier has another shape or is
            out of range.

    Three ways to round −1.5, −0.5, 0.5 and 1.5, the last ONNX Runtime's:

    >>> from bitsmith.numbers.formats.integer import int8
    >>> from bitsmith.numbers.integer.requantize import requantize
    >>> y, acc = Encoding(1.0, 0, int8), torch.tensor([-6, -2, 2, 6], dtype=torch.int32)
    >>> m = fixed_point_multiplier(0.25)
    >>> requantize_fixed_point(acc, *m, y, 0).tolist()
    [-2, -1, 1, 2]
    >>> requantize_fixed_point(acc, *m, y, 0, "single").tolist()
    [-1, 0, 1, 2]
    >>> requantize(acc, torch.tensor(0.25), y, 0).tolist()
    [-2, 0, 0, 2]
    """
    if rounding not in get_args(FixedPointRounding):
        raise DataError(f"rounding is 'double' or 'single', not {rounding!r}")
    for name, factor, low, high in (
        ("mantissa", mantissa, 0, _INT32_MAX),
        ("shift", shift, -31, 30),
    ):
        if factor.numel() and not low <= int(factor.min()) <= int(factor.max()) <= high:
            span = f"{int(factor.min())} to {int(factor.max())}"
            raise DataError(f"a fixed-point {name} is from {low} to {high}, not {span}")
    multiply = _twice if rounding == "double" else _once

    def kernel(sums: Tensor, mantissa: Tensor, shift: Tensor) -> Tensor:
        return _wrapped(multiply(sums, mantissa, shift).add_(y.zero_point))

    return rescale(acc, (mantissa, shift), y, channel_axis, kernel)


def _twice(x: Tensor, mantissa: Tensor, shift: Tensor) -> Tensor:
    """``MultiplyByQuantizedMultiplier`` with two roundings, on int64 that hold int32 values."""
    # A positive shift is rare (a multiplier of 1 or more): most layers skip that pass.
    if bool((shift > 0).any()):
        x = _wrapped(x << shift.clamp(min=0))
    high = _doubling_high(x, mantissa)
    return _divide(high, (-shift).clamp(min=0))


def _once(x: Tensor, mantissa: Tensor, shift: Tensor) -> Tensor:
    """``MultiplyByQuantizedMultiplier`` with one rounding, on int64 that hold int32 values."""
    right = 31 - shift
    half = torch.ones_like(right) << (right - 1)
    return _wrapped((x * mantissa).add_(half).bitwise_right_shift_(right))


def _doubling_high(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).add_(1 << 30).bitwise_right_shift_(31)


def _divide(x: Tensor, exponent: Tensor) -> Tensor:
    half = (torch.ones_like(exponent) << exponent) >> 1
    return x.abs().add_(half).bitwise_right_shift_(exponent).mul_(x.sign())


def _wrapped(x: Tensor) -> Tensor:
    return x.to(torch.int32).long()


def _require_int32(name: str, *operands: Tensor) -> None:
    wrong = [str(t.dtype) for t in operands if t.dtype != torch.int32]
    if wrong:
        raise DataError(f"{name} takes int32, not {', '.join(wrong)}")

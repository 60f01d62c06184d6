"""From an int32 accumulator to output codes or real values, in ONNX Runtime's order.

The runtime multiplies in float32 by ``(s_x · s_w) / s_y``, clamps to the output range minus its
zero point, rounds half to even, and adds the zero point. A product that is exactly half-way
after the float32 multiplication is common, so the order matters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitsmith.numbers.encoding import Encoding

__all__ = ["dequantize_accumulator", "multiplier", "requantize"]


def multiplier(x_scale: float, w_scale: Tensor, y_scale: float) -> Tensor:
    """Return ``(x_scale · w_scale) / y_scale`` with two float32 roundings.

    Args:
        x_scale, y_scale: scales of the input and the output (float32 values).
        w_scale: float32 ``[]`` or ``[C]``.

    Returns:
        float32, the shape of ``w_scale``.

    >>> multiplier(0.5, torch.tensor([0.25, 0.5]), 2.0).tolist()
    [0.0625, 0.125]
    """
    x, y = (torch.tensor(s, dtype=torch.float32) for s in (x_scale, y_scale))
    return (x * w_scale.to(torch.float32)) / y


def requantize(acc: Tensor, multiplier: Tensor, y: Encoding, channel_axis: int) -> Tensor:
    """Return output codes ``round(clamp(float32(acc) · multiplier)) + zero_point``.

    Args:
        acc: int32 accumulators.
        multiplier: float32 ``[]``, or ``[C]`` along ``channel_axis`` of ``acc``.
        y: encoding of the output.
        channel_axis: the axis of ``acc`` that ``multiplier`` runs along.

    Returns:
        codes of ``y.format``, the shape of ``acc``. Ties go to the even integer before the zero
        point is added.

    >>> from bitsmith.numbers.formats.integer import integer_format
    >>> y = Encoding(1.0, 3, integer_format(8, signed=False))
    >>> requantize(torch.tensor([1, 3, 900], dtype=torch.int32), torch.tensor(0.5), y, 0).tolist()
    [3, 5, 255]
    """
    scaled = acc.to(torch.float32).mul_(_along(multiplier, acc.ndim, channel_axis))
    low, high = y.format.code_min - y.zero_point, y.format.code_max - y.zero_point
    return scaled.clamp_(low, high).round_().add_(y.zero_point).to(y.format.dtype)


def dequantize_accumulator(acc: Tensor, scale: Tensor, channel_axis: int = -1) -> Tensor:
    """Return ``float32(acc) · scale``, the float output of QGemm and MatMulIntegerToFloat.

    Args:
        acc: int32 accumulators, with QGemm's int32 bias already added.
        scale: float32 ``s_x · s_w`` (one float32 product), ``[]`` or ``[C]`` along
            ``channel_axis``.
    """
    return acc.to(torch.float32).mul_(_along(scale, acc.ndim, channel_axis))


def _along(scale: Tensor, rank: int, axis: int) -> Tensor:
    if scale.numel() == 1:
        return scale.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return scale.reshape(shape)

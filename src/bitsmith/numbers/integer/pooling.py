"""QLinearGlobalAveragePool and QLinearAveragePool of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from bitsmith.errors import DataError
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.integer.requantize import requantize

__all__ = ["average_pool", "global_average_pool"]


def global_average_pool(x: Tensor, ex: Encoding, ey: Encoding) -> Tensor:
    """Return the codes of the mean over all spatial axes.

    The runtime sums codes in int32, ``Σ (x − z_x)``, and requantizes the sum with
    ``s_x / (s_y · float32(count))``; the layout (channels first or last) changes nothing.

    Args:
        x: codes ``[N, C, *spatial]`` with at least one spatial axis.
        ex, ey: encodings of the input and the output.

    Returns:
        codes ``[N, C, 1, …]``.

    >>> from bitsmith.numbers.formats.integer import integer_format
    >>> e = Encoding(0.5, 0, integer_format(8, signed=False))
    >>> global_average_pool(torch.tensor([[[1, 2, 6]]], dtype=torch.uint8), e, e).tolist()
    [[[3]]]
    """
    if x.ndim < 3:
        raise DataError(f"global_average_pool takes [N, C, *spatial], not {list(x.shape)}")
    axes = tuple(range(2, x.ndim))
    count = x[0, 0].numel()
    sums = x.sum(axes, keepdim=True, dtype=torch.int32) - ex.zero_point * count
    scale_y = torch.tensor(ey.scale, dtype=torch.float32)
    ratio = torch.tensor(ex.scale, dtype=torch.float32) / (scale_y * float(count))
    return requantize(sums, ratio, ey, 1)


def average_pool(
    x: Tensor,
    ex: Encoding,
    ey: Encoding,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0,),
    count_include_pad: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Return the codes of a windowed mean.

    The runtime dequantizes to float32, adds the window row by row, divides by the number of
    elements, divides by ``s_y``, adds ``z_y`` and only then rounds half to even: each step is
    one float32 rounding, and ties depend on ``z_y``.

    Args:
        x: codes ``[N, C, *spatial]`` with one or two spatial axes.
        ex, ey: encodings of the input and the output.
        kernel, stride: one number per spatial axis.
        padding: one number, or one per spatial axis, on both sides.
        count_include_pad: divide by the whole kernel instead of the elements inside the input.
        ceil_mode: keep a last window that starts inside and ends outside.

    Returns:
        codes ``[N, C, *out]``.
    """
    rank = x.ndim - 2
    kernel, stride, padding = (_per_axis(v, rank) for v in (kernel, stride, padding))
    sizes = [
        _output_size(n, k, s, p, ceil_mode)
        for n, k, s, p in zip(x.shape[2:], kernel, stride, padding, strict=True)
    ]
    total = _window_sums(ex.dequantize(x), sizes, kernel, stride, padding)
    inside = torch.ones(1, 1, *x.shape[2:])
    count = _window_sums(inside, sizes, kernel, stride, padding)
    if count_include_pad:
        count = torch.full_like(count, float(torch.tensor(kernel).prod()))
    scale = torch.tensor(ey.scale, dtype=torch.float32)
    codes = (total / count / scale + ey.zero_point).round_()
    return codes.clamp_(ey.format.code_min, ey.format.code_max).to(ey.format.dtype)


def _window_sums(
    values: Tensor,
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Float32 sums over windows, one kernel position after the other in row order."""
    # Zeros outside the input leave a float32 sum as it is.
    pads: list[int] = []
    for n, k, s, p, out in zip(
        reversed(values.shape[2:]),
        *(reversed(v) for v in (kernel, stride, padding, sizes)),
        strict=True,
    ):
        pads += [p, max((out - 1) * s + k - n - p, 0)]
    padded = functional.pad(values, pads)
    total = torch.zeros(*values.shape[:2], *sizes)
    for position in torch.cartesian_prod(*(torch.arange(k) for k in kernel)).view(-1, len(kernel)):
        window = [slice(None), slice(None)]
        for offset, s, out in zip(position.tolist(), stride, sizes, strict=True):
            window.append(slice(offset, offset + (out - 1) * s + 1, s))
        total += padded[tuple(window)]
    return total


def _output_size(n: int, k: int, s: int, p: int, ceil_mode: bool) -> int:
    steps = n + 2 * p - k
    size = (steps + s - 1 if ceil_mode else steps) // s + 1
    # A window that would start in the right padding is dropped.
    return size - 1 if ceil_mode and (size - 1) * s >= n + p else size


def _per_axis(value: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple(value) * rank if len(value) == 1 else tuple(value)

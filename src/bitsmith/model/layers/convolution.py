"""Convolutions of few positions, as rows that native kernels multiply with the packed weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsmith.model.kernels import operators
from bitsmith.model.kernels.library import instructions
from bitsmith.model.layers.packed import PackedWeight

__all__ = ["as_rows", "convolved", "most_positions", "multiplies"]

_FEW, _MANY = 49, 256
_SMALL = 1 << 16
"""Weights up to which there is nothing to win."""

_Weights = Mapping[str, PackedWeight]


def most_positions() -> int:
    """Return up to how many to decode the weight for a call takes longer than to multiply with it.

    As ``benchmarks/convolutions.py`` measured it: 256 with AMX, the 49 of a 7×7 map with less.
    """
    return _MANY if instructions() == "amx" else _FEW


def multiplies(inner: nn.Module, weights: _Weights) -> TypeGuard[nn.Conv2d]:
    """Whether native kernels multiply with the packed weight where the output is small."""
    if (
        set(weights) != {"weight"}
        or type(inner) is not nn.Conv2d
        or inner.groups != 1
        or isinstance(inner.padding, str)
    ):
        return False
    return inner.padding_mode == "zeros" and weights["weight"].shape.numel() >= _SMALL


def as_rows(inner: nn.Module, weights: _Weights, x: object) -> bool:
    """Whether :func:`convolved` computes ``inner(x)``, and it pays.

    Args:
        inner: any module.
        weights: its packed weights by their names in it.
        x: its only argument.
    """
    if not operators.takes(x) or not multiplies(inner, weights) or x.dim() != 4:
        return False
    if x.dtype != inner.weight.dtype or torch.is_autocast_enabled("cpu"):
        return False
    high, wide = _size(inner, x)
    few = min(high, wide) > 0 and 0 < len(x) * high * wide <= most_positions()
    return few and x.shape[1] == inner.in_channels and weights["weight"].ready()


def convolved(inner: nn.Module, weights: _Weights, x: Tensor) -> Tensor:
    """Return ``inner(x)``: for each position of the output the inputs that it sees are a row.

    Args:
        inner: a convolution, and
        weights: its packed weight ``[out, in, *kernel]``, of which :func:`as_rows` says so.
        x: ``[N, in, H, W]``.
    """
    assert isinstance(inner, nn.Conv2d)
    weight = weights["weight"]
    high, wide = _size(inner, x)
    if inner.kernel_size == (1, 1) and inner.padding == (0, 0):
        down, across = inner.stride
        rows = x[:, :, ::down, ::across].permute(0, 2, 3, 1).flatten(0, 2)
    else:
        seen = functional.unfold(
            x,
            inner.kernel_size,
            dilation=inner.dilation,
            padding=cast(tuple[int, int], inner.padding),
            stride=inner.stride,
        )
        rows = seen.transpose(1, 2).flatten(0, 1)  # [N · positions, in · kernel]
    padding = weight.stored_shape[1] - rows.shape[1]
    if padding:
        rows = functional.pad(rows, (0, padding))
    bias = None if inner.bias is None else inner.bias.float()
    out = operators.linear(rows, cast(Tensor, weight.machine), weight.form, bias)
    out = out.view(len(x), high, wide, -1).permute(0, 3, 1, 2)
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return out.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _size(inner: nn.Conv2d, x: Tensor) -> tuple[int, int]:
    """Return the height and width of the output."""
    padding = cast(tuple[int, int], inner.padding)
    high, wide = (
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, dilation, kernel, stride in zip(
            x.shape[2:], padding, inner.dilation, inner.kernel_size, inner.stride, strict=True
        )
    )
    return high, wide

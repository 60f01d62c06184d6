"""The accumulators of x86 machines without VNNI, where pairs of products saturate.

AVX2 and AVX-512 without VNNI multiply unsigned by signed bytes with ``vpmaddubsw``, which adds
two neighbouring products in int16 with saturation: ``clamp(x_i·w_i + x_j·w_j, −32768, 32767)``.
The pair sums are then added exactly in int32. Neighbours are the weights ``2i`` and ``2i + 1``
of each group's reduction; ONNX Runtime's convolution reduces in (kernel rows, kernel columns,
input channels) order ("channels_last"), whatever layout the model has, and a linear layer along
its input features. A last odd weight stands alone. Depthwise convolutions are exact.

When is a file exact on such a machine? Codes are at most 255, so a pair of weights of one sign
reaches ``255 · |w_i + w_j|``; weights of opposite sign reach at most ``255 · max(|w|)`` =
``255 · 128 = 32640``. ``255 · 128 = 32640 ≤ 32767`` but ``255 · 129 = 32895 > 32767`` (and
``−255 · 128 ≥ −32768``, ``−255 · 129 < −32768``): exactly when ``|w_i + w_j| ≤ 128`` for every
pair of one sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from bitsmith.errors import DataError
from bitsmith.numbers.integer.accumulate import conv_accumulate, linear_accumulate

__all__ = [
    "Order",
    "conv_accumulate_saturating",
    "linear_accumulate_saturating",
    "max_pair_sum",
]

Order = Literal["channels_last", "channels_first"]

_CHUNK = 1 << 24
"""Pair sums held at a time."""


def max_pair_sum(weight: Tensor, order: Order | Literal["any"] = "channels_last") -> Tensor:
    """Return the largest ``|w_i + w_j|`` of same-sign neighbours, per output channel.

    A weight without a same-sign partner counts alone, so the result is also at least
    ``max |w|``. The layer is exact on every u8×s8 machine when this is at most 128: see the
    arithmetic in the module's text. Depthwise convolutions need no bound in ONNX Runtime.

    Args:
        weight: int8 ``[O, I, *kernel]`` or ``[O, K]``.
        order: which weights are neighbours. ``"channels_last"``: (kernel, input channel) order,
            ONNX Runtime's; ``"channels_first"``: (input channel, kernel) order; ``"any"``: any
            two weights of the channel may meet, whatever the runtime's layout.

    Returns:
        int32 ``[O]``.

    >>> w = torch.tensor([[100, 20, -90, 30, -5]], dtype=torch.int8)
    >>> max_pair_sum(w).tolist(), max_pair_sum(w, "any").tolist()
    ([120], [130])
    """
    if order == "any":
        flat = weight.flatten(1).to(torch.int32)
        flat = functional.pad(flat, (0, max(2 - flat.shape[1], 0)))
        signs = torch.stack([flat.clamp(min=0), (-flat).clamp(min=0)])
        return signs.topk(2, dim=-1).values.sum(-1).amax(0).to(torch.int32)
    first, second = _pairs(weight, order)
    same = (first * second) >= 0
    together = torch.where(same, (first + second).abs(), torch.maximum(first.abs(), second.abs()))
    return together.amax(1).to(torch.int32)


def conv_accumulate_saturating(
    x: Tensor,
    x_zero_point: int,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
    order: Order = "channels_last",
) -> tuple[Tensor, int]:
    """Return the accumulators a machine without VNNI computes, and how many pairs saturated.

    Arguments as :func:`~bitsmith.numbers.integer.accumulate.conv_accumulate`; ``x`` is uint8.
    Saturation acts on the raw codes: the zero point is taken off afterwards, padding is the
    code ``x_zero_point``. A depthwise convolution (one input and one output channel per group)
    is exact.

    Returns:
        int32 ``[N, O, *out]`` and the number of pair sums that left int16.
    """
    exact = conv_accumulate(x, x_zero_point, weight, bias, stride, padding, dilation, groups)
    out_channels, group_in = weight.shape[:2]
    if out_channels == groups and group_in == 1:
        return exact, 0
    rank = weight.ndim - 2
    steps = [tuple(v) * rank if len(v) == 1 else tuple(v) for v in (stride, padding, dilation)]
    images = x.to(torch.float32)
    kernel = tuple(weight.shape[2:])
    if rank == 1:
        images, kernel = images.unsqueeze(2), (1, *kernel)
        steps = [(default, *v) for default, v in zip((1, 0, 1), steps, strict=True)]
    (stride_h, stride_w), (pad_h, pad_w), steps_d = steps
    images = functional.pad(images, (pad_w, pad_w, pad_h, pad_h), value=float(x_zero_point))
    saturated = 0
    result = exact.flatten(2).clone()
    per_group = out_channels // groups
    for image in range(x.shape[0]):
        columns = functional.unfold(
            images[image : image + 1], kernel, dilation=steps_d, stride=(stride_h, stride_w)
        )[0]
        for group in range(groups):
            rows = slice(group * per_group, (group + 1) * per_group)
            taps = columns.view(groups, -1, columns.shape[-1])[group]
            taps = taps.view(group_in, -1, taps.shape[-1])
            if order == "channels_last":
                taps = taps.transpose(0, 1)
            change, count = _corrections(taps.flatten(0, 1), weight[rows], order)
            result[image, rows] += change
            saturated += count
    return result.view(exact.shape), saturated


def linear_accumulate_saturating(
    x: Tensor, x_zero_point: int, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, int]:
    """Return the accumulators a machine without VNNI computes, and how many pairs saturated.

    Arguments as :func:`~bitsmith.numbers.integer.accumulate.linear_accumulate`; ``x`` is uint8.

    >>> x = torch.full((1, 256), 255, dtype=torch.uint8)
    >>> acc, pairs = linear_accumulate_saturating(x, 0, torch.full((1, 256), 127, dtype=torch.int8))
    >>> acc.item(), pairs
    (4194176, 128)
    """
    exact = linear_accumulate(x, x_zero_point, weight, bias)
    taps = x.reshape(-1, x.shape[-1]).T.to(torch.float32)
    change, saturated = _corrections(taps, weight, "channels_last")
    return exact + change.T.reshape(exact.shape), saturated


def _pairs(weight: Tensor, order: Order) -> tuple[Tensor, Tensor]:
    """Both neighbours of every pair: int32 ``[O, ceil(K / 2)]`` each, zero where there is none."""
    if order not in ("channels_last", "channels_first"):
        raise DataError(f"order is 'channels_last', 'channels_first' or 'any', not {order!r}")
    wide = weight.to(torch.int32)
    if order == "channels_last" and weight.ndim > 2:
        wide = wide.movedim(1, -1)
    wide = wide.flatten(1)
    wide = functional.pad(wide, (0, wide.shape[1] % 2))
    return wide[:, 0::2], wide[:, 1::2]


def _corrections(taps: Tensor, weight: Tensor, order: Order) -> tuple[Tensor, int]:
    """What saturation adds to exact sums: int32 ``[O, L]`` for raw codes ``taps [K, L]``."""
    first, second = _pairs(weight, order)
    change = torch.zeros(weight.shape[0], taps.shape[1], dtype=torch.int32)
    # Only a pair that can leave int16 at the largest code present is looked at.
    highest = int(taps.max()) if taps.numel() else 0
    up = (first.clamp(min=0) + second.clamp(min=0)) * highest > 32767
    down = (first.clamp(max=0) + second.clamp(max=0)) * highest < -32768
    rows, pairs = (up | down).nonzero(as_tuple=True)
    if not rows.numel():
        return change, 0
    taps = functional.pad(taps, (0, 0, 0, taps.shape[0] % 2))
    saturated = 0
    step = max(_CHUNK // taps.shape[1], 1)
    for at in range(0, rows.numel(), step):
        row, pair = rows[at : at + step], pairs[at : at + step]
        sums = (
            taps[2 * pair] * first[row, pair, None] + taps[2 * pair + 1] * second[row, pair, None]
        )
        excess = sums.clamp(-32768, 32767) - sums
        saturated += int((excess != 0).sum())
        change.index_add_(0, row, excess.to(torch.int32))
    return change, saturated

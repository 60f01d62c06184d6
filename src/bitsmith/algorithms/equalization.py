"""Cross-layer equalization: channels of one range for layers that follow each other.

Between two layers, output channel i of the first may be divided by any positive ``s_i`` if what
the second reads of it is multiplied by ``s_i``: relu, pools and moves let the factor pass
(arXiv 1906.04721, section 4.1). With scales for a whole tensor, channels of small range
lose most; equal ranges lose least. All scales are float64, weights stay float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitsmith.errors import DataError, InputError

__all__ = [
    "absorb_bias",
    "absorbable_bias",
    "equalizing_scales",
    "input_ranges",
    "output_ranges",
    "range_ratio",
    "scale_inputs",
    "scale_outputs",
]


def output_ranges(weight: Tensor) -> Tensor:
    """Return ``max |w|`` of each output channel of ``[O, I, *kernel]``: float64 ``[O]``."""
    return weight.to(torch.float64).abs().flatten(1).amax(1)


def input_ranges(weight: Tensor, groups: int = 1, repeat: int = 1) -> Tensor:
    """Return ``max |w|`` of what meets each input channel, over all outputs: float64 ``[I]``.

    Args:
        weight: ``[O, I/groups, *kernel]``, or linear ``[O, I · repeat]``.
        groups: of the convolution.
        repeat: inputs per channel of a linear layer that reads a flattened image.

    >>> input_ranges(torch.tensor([[1.0, -2.0], [3.0, 0.5]])).tolist()
    [3.0, 2.0]
    """
    return _by_input(weight.to(torch.float64).abs(), groups, repeat).amax((1, 3)).reshape(-1)


def _by_input(weight: Tensor, groups: int, repeat: int) -> Tensor:
    """View as ``[groups, O/groups, I/groups, kernel]``; a channel's ``repeat`` inputs count as
    its kernel.
    """
    if len(weight) % groups or weight.shape[1] % repeat:
        raise DataError(
            f"a weight of shape {tuple(weight.shape)} has no {groups} groups of inputs that come "
            f"{repeat} to a channel"
        )
    return weight.reshape(groups, len(weight) // groups, weight.shape[1] // repeat, -1)


def equalizing_scales(ranges: Sequence[Tensor]) -> list[Tensor]:
    """Return the divisors of the outputs of every layer of a chain but the last: float64 ``[C]``.

    A chain is two layers, or more with depthwise ones between, of ``C`` channels each. Where the
    output of layer k is divided by ``s_k`` its range becomes ``r_k · s_{k−1} / s_k``; with
    ``s_k = s_{k−1} · r_k / (Π r)^(1/n)`` all n are the geometric mean. For two layers
    ``s = √(r_1 / r_2)`` (arXiv 1906.04721, section 4.1.1, as ``r_1 / √(r_1·r_2)``). A channel
    that has range 0 in a layer has nothing to share: 1.

    Args:
        ranges: of each channel, one tensor a layer: outputs of the first, of the depthwise layers,
            inputs of the last.

    Raises:
        DataError: fewer than two layers, or of different numbers of channels; ranges that are
            negative or not finite.

    >>> (s,) = equalizing_scales([torch.tensor([8.0, 1.0]), torch.tensor([2.0, 4.0])])
    >>> [round(x, 6) for x in s.tolist()]
    [2.0, 0.5]
    """
    shapes = {tuple(r.shape) for r in ranges}
    if len(ranges) < 2 or len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise DataError(
            "a chain is two layers or more that hand on the same number of channels, not "
            f"{[tuple(r.shape) for r in ranges]}"
        )
    r = torch.stack([x.to(torch.float64) for x in ranges])  # [n, C]
    if not bool((torch.isfinite(r) & (r >= 0)).all()):
        raise DataError("ranges of channels are finite and not negative")
    alive = (r > 0).all(0)
    logs = torch.where(alive, r, 1.0).log()
    steps = (logs - logs.mean(0)).cumsum(0)[:-1]
    return [torch.where(alive, step.exp(), 1.0) for step in steps]


def scale_outputs(
    weight: Tensor, bias: Tensor | None, scale: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return weight ``[O, …]`` and bias ``[O]`` with output channels divided by ``scale``."""
    divided = weight.to(torch.float64) / scale.reshape(-1, *[1] * (weight.dim() - 1))
    shifted = None if bias is None else (bias.to(torch.float64) / scale).to(torch.float32)
    return divided.to(torch.float32), shifted


def scale_inputs(weight: Tensor, scale: Tensor, groups: int = 1, repeat: int = 1) -> Tensor:
    """Return the weight with what meets input channel i multiplied by ``scale[i]``.

    Args:
        weight, groups, repeat: as :func:`input_ranges`.
        scale: ``[I]``.
    """
    wide = _by_input(weight.to(torch.float64), groups, repeat)
    factor = scale.to(torch.float64).reshape(groups, 1, -1, 1)
    return (wide * factor).reshape(weight.shape).to(torch.float32)


def absorbable_bias(mean: Tensor, std: Tensor, deviations: float = 3.0) -> Tensor:
    """Return ``max(0, μ − 3σ)`` of the values before a relu: float64, their shape.

    What nearly all values exceed (99.865 % of normal ones) takes no part in what the relu
    decides, and can move into the next layer's bias (arXiv 1906.04721, section 4.1.3).

    >>> absorbable_bias(torch.tensor([7.0, 1.0]), torch.tensor([1.0, 1.0])).tolist()
    [4.0, 0.0]
    """
    if not deviations >= 0:
        raise InputError(f"deviations are 0 or more, not {deviations}")
    return (mean.to(torch.float64) - deviations * std.to(torch.float64)).clamp(min=0)


def absorb_bias(
    bias: Tensor,
    weight: Tensor,
    after: Tensor | None,
    amount: Tensor,
    groups: int = 1,
    repeat: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return ``(b_1 − c, b_2 + W_2·c)``, float32; arXiv 1906.04721, section 4.1.3.

    The same function where every value before the relu is at least ``c`` and the second layer
    pads nothing.

    Args:
        bias: of the first layer, ``[I]``.
        weight: of the second, as :func:`input_ranges`.
        after: its bias ``[O]``; None: 0.
        amount: c, ``[I]``.
    """
    c = amount.to(torch.float64)
    total = _by_input(weight.to(torch.float64), groups, repeat).sum(3)  # [groups, O/g, I/g]
    moved = (total @ c.reshape(groups, -1, 1)).reshape(-1)
    second = moved if after is None else after.to(torch.float64) + moved
    return (bias.to(torch.float64) - c).to(torch.float32), second.to(torch.float32)


def range_ratio(ranges: Tensor) -> float:
    """Return the largest range over the median of those above 0: 1 where all are equal.

    About how many times too coarse one scale for all is for the ordinary channel.

    >>> range_ratio(torch.tensor([0.0, 1.0, 1.0, 8.0]))
    8.0
    """
    alive = ranges[ranges > 0]
    return float(alive.max() / alive.median()) if alive.numel() else 1.0

"""What is asked of values to quantize: finite ones, their range, and how much an error counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.pieces import PIECE, in_blocks, pieces

__all__ = [
    "as_float32",
    "mirrored_range",
    "refuse_not_finite",
    "relative_importance",
    "value_range",
]


def as_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32, detached; all arithmetic on values starts there.

    float16 and bfloat16 convert exactly, float64 rounds to nearest (and what exceeds float32
    becomes infinite, which :func:`value_range` refuses).

    Raises:
        DataError: ``x`` is not a floating-point tensor.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise DataError(f"values to quantize are a floating-point tensor, not {kind}")
    return x.detach().to(torch.float32)


def value_range(x: Tensor, scale_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Return the exact smallest and largest values, float32, each of shape ``scale_shape``.

    Args:
        x: float32, any shape, not empty.
        scale_shape: what :meth:`Granularity.scale_shape` gives for ``x.shape``.

    Raises:
        DataError: ``x`` is empty, or has NaN or infinite values (the message counts them).

    >>> low, high = value_range(torch.tensor([[1.0, -2.0], [3.0, 4.0]]), (2, 1))
    >>> low.tolist(), high.tolist()
    ([[-2.0], [3.0]], [[1.0], [4.0]])
    """
    if x.numel() == 0:
        raise DataError(f"a tensor of shape {tuple(x.shape)} has no values, so it has no range")
    low, high = torch.aminmax(x) if len(scale_shape) == 0 else _block_ranges(x, scale_shape)
    # Both reductions propagate NaN, so looking at their results looks at every value.
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        refuse_not_finite(x)
    return low, high


def mirrored_range(x: Tensor, scale_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Return −a and a of shape ``scale_shape``, ``a = max|x|``: all that a symmetric scale asks.

    One reduction instead of two; arguments and errors as :func:`value_range`.
    """
    if not len(scale_shape) or x.numel() == 0:
        return value_range(x, scale_shape)
    top = torch.zeros(tuple(scale_shape), device=x.device)
    scratch = torch.empty(min(x.numel(), PIECE), device=x.device)
    for values, most in pieces(*in_blocks(x.shape, x, top, scale_shape=scale_shape)):
        room = scratch[: values.numel()].view(values.shape)
        torch.abs(values, out=room)
        shared = [i for i, n in enumerate(most.shape) if n == 1]
        torch.maximum(most, room.amax(shared, keepdim=True) if shared else room, out=most)
    if not bool(torch.isfinite(top).all()):
        refuse_not_finite(x)
    return -top, top


def refuse_not_finite(x: Tensor) -> NoReturn:
    """Raise the DataError of a tensor with NaN or infinite values, which it counts."""
    nan, inf = int(torch.isnan(x).sum()), int(torch.isinf(x).sum())
    raise DataError(
        f"{nan} NaN and {inf} infinite of {x.numel()} values (shape {tuple(x.shape)}); only "
        "finite float32 values can be quantized: find the layer or sample that produces them"
    )


def relative_importance(importance: Tensor, x: Tensor) -> Tensor:
    """Return how much an error counts, in units of the largest: float32 0 … 1, shape of ``x``.

    Args:
        importance: finite, not negative; broadcasts to ``x``. All zeros stay zeros.
        x: the values that are quantized.

    Raises:
        DataError: no values, negative, NaN or infinite ones (the message counts them), or a shape
            that does not broadcast.

    >>> relative_importance(torch.tensor([1.0, 4.0]), torch.zeros(2, 2)).tolist()
    [[0.25, 1.0], [0.25, 1.0]]
    """
    importance = as_float32(importance).to(x.device)
    if importance.numel() == 0:
        raise DataError(f"importance of shape {tuple(importance.shape)} has no values")
    bad = int((~(torch.isfinite(importance) & (importance >= 0))).sum())
    if bad:
        raise DataError(
            f"{bad} of {importance.numel()} importances are negative, NaN or infinite; an error "
            "counts 0 or more"
        )
    try:
        return (importance / max(float(importance.max()), 1e-45)).expand(x.shape)
    except RuntimeError:
        raise DataError(
            f"importance of shape {tuple(importance.shape)} does not broadcast to values of shape "
            f"{tuple(x.shape)}"
        ) from None


def _block_ranges(x: Tensor, scale_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the extremes of each block; both come from one pass through memory."""
    low = torch.full(tuple(scale_shape), torch.inf, device=x.device)
    high = torch.full(tuple(scale_shape), -torch.inf, device=x.device)
    for values, least, most in pieces(*in_blocks(x.shape, x, low, high, scale_shape=scale_shape)):
        shared = [i for i, n in enumerate(least.shape) if n == 1]
        down = values.amin(shared, keepdim=True) if shared else values
        up = values.amax(shared, keepdim=True) if shared else values
        torch.minimum(least, down, out=least)
        torch.maximum(most, up, out=most)
    return low, high

"""The smallest and the largest value of a tensor, refusing what is not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitsmith.errors import DataError

__all__ = ["as_float32", "value_range"]


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
    if len(scale_shape) == 0:
        low, high = torch.aminmax(x)
    elif other := [d for d, size in enumerate(scale_shape) if size == 1]:
        low, high = x.amin(other, keepdim=True), x.amax(other, keepdim=True)
    else:
        low, high = x.clone(), x.clone()
    # Both reductions propagate NaN, so looking at their results looks at every value.
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        nan, inf = int(torch.isnan(x).sum()), int(torch.isinf(x).sum())
        raise DataError(
            f"{nan} NaN and {inf} infinite of {x.numel()} values (shape {tuple(x.shape)}); only "
            "finite float32 values can be quantized: find the layer or sample that produces them"
        )
    return low, high

"""Mean and variance of every channel, with a gradient that costs one pass over the data."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

__all__ = ["moments"]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean [C] and (biased) variance [C] of ``x`` [B, C, …] over all axes but C.

    The same as ``torch.var_mean(x, …, correction=0)``, whose two directions are several times as
    slow on CPU. The variance is E[x²] − E[x]², so it loses digits where the mean is hundreds of
    times the standard deviation, and is never below 0.

    >>> mean, variance = moments(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    >>> mean.tolist(), variance.tolist()
    ([2.0, 0.0], [1.0, 0.0])
    """
    mean, variance = _Moments.apply(x)  # type: ignore[no-untyped-call]  # PyTorch's
    return mean, variance


@final
class _Moments(torch.autograd.Function):
    """d mean / dx = 1 / n, d variance / dx = 2 (x − mean) / n."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)  # [B, C, positions]
        mean = flat.mean(2).mean(0)
        squares = torch.linalg.vector_norm(flat, dim=2).square().mean(0) / flat.shape[2]
        ctx.save_for_backward(x, mean)
        return mean, (squares - mean.square()).clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        n = x.numel() / x.shape[1]
        factor = 2 * grad_variance / n
        offset = grad_mean / n - factor * mean
        shape = (1, -1, *(1,) * (x.dim() - 2))
        return torch.addcmul(offset.view(shape), x, factor.view(shape))

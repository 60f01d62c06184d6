"""Whole sums of products of centred codes, exact, with gradients.

A float32 holds every whole number up to 2²⁴. Where ``Σ|w| · max|x| + |bias|`` of every output stays
at or below that, each partial sum is one, in whatever order a kernel adds; past it the sums are
taken in float64, and rounded to float32 as the runtime rounds its int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from bitsmith.numbers.integer.accumulate import sums_of_products

__all__ = ["convolve", "linear", "matmul"]

_FLOAT32_INTEGERS = float(1 << 24)
#: No |code| of a weight is larger.
_LARGEST = 128.0


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    attrs: dict[str, Any],
    reach: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the whole sums of a convolution of centred codes.

    Args:
        x: ``[N, I, *in]``; weight: ``[O, I/groups, *k]``.
        bias: whole numbers ``[O]`` in float64, or None.
        attrs: stride, padding, dilation, groups of the node.
        reach: no ``|x|`` is larger.
        dtype: of the gradients' products; None: float32.
    """
    steps = tuple(tuple(attrs[k]) for k in ("stride", "padding", "dilation"))
    wide = _needs_float64(weight, bias, reach)
    if bias is not None and not wide:
        bias = bias.float()
    apply = cast(Any, _Convolve).apply
    return cast(Tensor, apply(x, weight, bias, *steps, attrs["groups"], wide, dtype))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, reach: float) -> Tensor:
    """Return the whole sums ``x · weightᵀ + bias``; arguments as of :func:`convolve`."""
    if _needs_float64(weight, bias, reach):
        x, weight = x.double(), weight.double()
    sums = torch.matmul(x, weight.t())
    return (sums if bias is None else sums + bias.to(sums.dtype)).float()


def matmul(a: Tensor, b: Tensor, reach: float) -> Tensor:
    """Return the whole sums ``a · b`` of two activations; no ``|a| · |b|`` is above ``reach``."""
    if a.shape[-1] * reach > _FLOAT32_INTEGERS:
        return torch.matmul(a.double(), b.double()).float()
    return torch.matmul(a, b)


@torch.no_grad()
def _needs_float64(weight: Tensor, bias: Tensor | None, reach: float) -> bool:
    least = 0.0 if bias is None else float(bias.detach().abs().max())
    if weight[0].numel() * _LARGEST * reach + least <= _FLOAT32_INTEGERS:
        return False
    most = weight.detach().abs().flatten(1).sum(1).double() * reach
    if bias is not None:
        most = most + bias.detach().abs()
    return not bool((most <= _FLOAT32_INTEGERS).all())


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        wide: bool,
        dtype: torch.dtype | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.steps = (stride, padding, dilation, groups)
        ctx.bias = None if bias is None else bias.dtype
        ctx.dtype = dtype
        if wide:
            x, weight = x.double(), weight.double()
        nothing = [0] * len(stride)
        with sums_of_products():
            return torch.convolution(
                x, weight, bias, stride, padding, dilation, False, nothing, groups
            ).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight = ctx.saved_tensors
        gradient = gradients[0]
        if ctx.dtype is not None:
            x, weight, gradient = (t.to(ctx.dtype) for t in (x, weight, gradient))
        stride, padding, dilation, groups = ctx.steps
        to_x, to_weight, to_bias = torch.ops.aten.convolution_backward(
            gradient,
            x,
            weight,
            None if ctx.bias is None else [len(weight)],
            stride,
            padding,
            dilation,
            False,
            [0] * len(stride),
            groups,
            [ctx.needs_input_grad[i] for i in range(3)],
        )
        to_x, to_weight = (None if t is None else t.float() for t in (to_x, to_weight))
        to_bias = None if to_bias is None else to_bias.to(ctx.bias)
        return to_x, to_weight, to_bias, *[None] * 6

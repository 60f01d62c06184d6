"""Linear layers whose inputs are quantized too: trained on the integers that they will compute."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from bitsmith.numbers.affine import quantize
from bitsmith.numbers.integer.accumulate import linear_accumulate
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.straight_through import straight_through

__all__ = ["integer_linear", "through_codes"]


def integer_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, q: QTensor, activation: Scheme
) -> Tensor:
    """Return what a ``QuantLinear`` of ``q`` returns for ``x``, bit for bit, with a gradient.

    The gradient is that of ``x · weightᵀ + bias`` at the quantized inputs: straight through both
    roundings. No input saturates, as each token has a range of its own.

    Args:
        x: ``[..., in]``.
        weight: ``[out, in]``, the values of ``q``; its gradient goes on to the float weight.
        bias: ``[out]``, or None.
        q: the quantized weight, symmetric integers with one scale a row.
        activation: scheme of ``x``, one scale a token.

    Raises:
        DataError: ``x`` has NaN or infinite values.
    """
    if not x.numel():
        return x.new_zeros(*x.shape[:-1], weight.shape[0])
    taken = quantize(x, activation)
    apply = cast(Any, _IntegerLinear).apply
    return cast(Tensor, apply(x, weight, bias, taken, q))


def through_codes(x: Tensor, activation: Scheme) -> Tensor:
    """Return ``x`` after quantizing and dequantizing, each token alone, straight through."""
    if not x.numel():
        return x
    return straight_through(quantize(x, activation).dequantize().to(x.dtype), x)


class _IntegerLinear(torch.autograd.Function):
    """Exact integer sums forward, the products of the dequantized values backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, taken: QTensor, q: QTensor
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.taken, ctx.bias = taken, None if bias is None else bias.dtype
        sums = linear_accumulate(taken.codes, 0, q.codes).to(torch.float32)
        out = sums * taken.scale * q.scale.reshape(-1)
        return (out if bias is None else out + bias.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        given = gradients[0]
        gradient = given.float()
        rows = gradient.reshape(-1, gradient.shape[-1])
        for_x = for_weight = for_bias = None
        with torch.autocast(given.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                for_x = functional.linear(gradient, weight.float().T).to(given.dtype)
            if ctx.needs_input_grad[1]:
                inputs = ctx.taken.dequantize()
                for_weight = (rows.T @ inputs.reshape(-1, inputs.shape[-1])).to(weight.dtype)
            if ctx.bias is not None and ctx.needs_input_grad[2]:
                for_bias = rows.sum(0).to(ctx.bias)
        return for_x, for_weight, for_bias, None, None

"""A linear layer with a packed weight."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsmith.model.layers.packed import PackedWeight
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.integer.accumulate import linear_accumulate
from bitsmith.numbers.scheme import Scheme

__all__ = ["QuantLinear"]


@final
class QuantLinear(nn.Module):
    """``y = x · dequantize(W)ᵀ + b``, or in integers when activations are quantized too.

    With an activation scheme each token ``x_t`` becomes int8 codes with a scale of its own, and
    ``y_t = (codes_t · W_codesᵀ) · s_t · s_w + b``: the sums are exact int32, the two products and
    the sum float32, in that order.

    Attributes:
        packed: the weight ``[out, in]``.
        bias: float ``[out]``, or None.
        activation: scheme of the input, one scale per token; None: it stays float.
        input_scale: float32 ``[in]``; the input is divided by it first, and the packed weight is
            that of the layer times it. Set by transforms; None without.
    """

    bias: nn.Parameter | None
    input_scale: Tensor | None

    def __init__(
        self, packed: PackedWeight, bias: nn.Parameter | None, activation: Scheme | None = None
    ) -> None:
        super().__init__()
        self.packed = packed
        self.activation = activation
        self.out_features, self.in_features = packed.shape
        self.register_parameter("bias", bias)
        self.register_buffer("input_scale", None)

    @property
    def weight(self) -> Tensor:
        """The dequantized weight in the bias's type; computed anew at every look."""
        dtype = torch.float32 if self.bias is None else self.bias.dtype
        weight = self.packed.dequantize(dtype)
        return weight if self.input_scale is None else weight / self.input_scale.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.input_scale is not None:
            x = x / self.input_scale.to(x.dtype)
        if self.activation is not None:
            return self._integers(x, self.activation)
        weight = self.packed.dequantize(x.dtype)
        return functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

    def _integers(self, x: Tensor, scheme: Scheme) -> Tensor:
        if not x.numel():
            return x.new_zeros(*x.shape[:-1], self.out_features)
        q, w = quantize(x, scheme), self.packed.qtensor()
        sums = linear_accumulate(q.codes, 0, w.codes).to(torch.float32)
        out = sums * q.scale * w.scale.reshape(-1)
        return (out if self.bias is None else out + self.bias.float()).to(x.dtype)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        tail = "" if self.activation is None else f", activations {self.activation.format.name}"
        return f"{self.in_features} → {self.out_features}, bias={self.bias is not None}{tail}"

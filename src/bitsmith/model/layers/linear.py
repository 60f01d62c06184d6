"""A linear layer with a packed weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsmith.errors import DataError
from bitsmith.model.kernels import operators
from bitsmith.model.kernels.library import TYPES
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.formats.integer import int8
from bitsmith.numbers.integer.accumulate import linear_accumulate
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import PerToken, Scheme

__all__ = ["QuantLinear"]

_INT8_ROWS = Scheme(int8, granularity=PerToken())
"""What native kernels turn rows into."""


@final
class QuantLinear(nn.Module):
    """``y = x · dequantize(W)ᵀ + b``, or in integers when activations are quantized too.

    With an activation scheme each token ``x_t`` becomes int8 codes with a scale of its own. The
    sums of products of codes are exact integers, and with one scale a row ``y_t = (sum · s_t) ·
    s_w + b`` in float32, in that order. With groups ``y_t = (Σ_g sum_g · s_wg) · s_t + b``.

    Native kernels run it where there are any: on the CPU, in float32, float16 and bfloat16. Then
    the sums of float products are near those of PyTorch, and the results with int8 activations
    and one scale a row are the same, bit for bit.

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
        self._width = torch.Size([self.in_features])
        self._padding = packed.stored_shape[1] - self.in_features
        self._rows = "float" if activation is None else "int8"
        self._unsuited = _unsuited(packed.scheme, activation)
        packed.used_for(self._rows)
        self.register_parameter("bias", bias)
        self.register_buffer("input_scale", None)

    @property
    def weight(self) -> Tensor:
        """The dequantized weight in the bias's type; computed anew at every look."""
        dtype = torch.float32 if self.bias is None else self.bias.dtype
        weight = self.packed.dequantize(dtype)
        return weight if self.input_scale is None else weight / self.input_scale.to(dtype)

    @property
    def kernel(self) -> str:
        """What runs it on the CPU of this machine: ``native avx2, int8 rows``, ``torch: why``."""
        if self._unsuited:
            return f"torch: {self._unsuited}"
        return self.packed.kernel(f"{self._rows} rows")

    def forward(self, x: Tensor) -> Tensor:
        # Attributes of a module are slow to look up: that is a third of a small layer's time.
        scale: Any = self._buffers["input_scale"]
        bias: Any = self._parameters["bias"]
        packed: Any = self._modules["packed"]
        if scale is not None:
            x = x / scale.to(x.dtype)
        suited = x.is_cpu and x.dtype in TYPES and x.shape[-1:] == self._width
        if not suited or self._unsuited or not packed.ready():
            return self._by_torch(x)
        if self.activation is None and torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        if self._padding:
            x = functional.pad(x, (0, self._padding))
        if bias is not None and bias.dtype != torch.float32:
            bias = bias.float()
        machine: Any = packed._buffers["machine"]
        return operators.linear(x, machine, packed.form, bias, self._rows)

    def _by_torch(self, x: Tensor) -> Tensor:
        if self.activation is not None:
            return self._integers(x, self.activation)
        weight = self.packed.dequantize(x.dtype if x.is_floating_point() else torch.float32)
        return functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

    def _integers(self, x: Tensor, scheme: Scheme) -> Tensor:
        if not x.numel():
            return x.new_zeros(*x.shape[:-1], self.out_features)
        q, w = quantize(x, scheme), self.packed.qtensor()
        codes = functional.pad(q.codes, (0, self._padding)) if self._padding else q.codes
        if w.scheme.granularity.scale_shape(w.shape)[1:] in ((), (1,)):
            ((sums, scale),) = _group_sums(codes, w)
            out = sums * q.scale * scale
        else:
            out = q.scale.new_zeros(())
            for sums, scale in _group_sums(codes, w):
                out = out + sums * scale
            out = out * q.scale
        return (out if self.bias is None else out + self.bias.float()).to(x.dtype)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        tail = "" if self.activation is None else f", activations {self.activation.format.name}"
        return f"{self.in_features} → {self.out_features}, bias={self.bias is not None}{tail}"


def _unsuited(weight: Scheme, activation: Scheme | None) -> str:
    """Return why native kernels do not have this arithmetic; empty if they do."""
    if activation is None:
        return ""
    if not weight.affine:
        return f"int8 rows times {weight.format.name}"
    return "" if activation == _INT8_ROWS else f"activations in {activation.format.name}"


def _group_sums(codes: Tensor, w: QTensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Give, group after group, ``Σ codes · (u − zero)`` rounded once to float32, and its scales.

    Args:
        codes: int8 ``[..., k]``.
        w: integers ``[n, k]``.

    Returns:
        Pairs of ``[..., n]`` and ``[n]``.
    """
    if not w.scheme.affine or w.scheme.shifted:
        raise DataError(
            f"quantized activations are multiplied by integer weights with zero points, not by "
            f"{w.scheme.format.name}: take a W<bits> recipe"
        )
    n, k = w.shape
    _, groups = w.scheme.granularity.scale_shape(w.shape) or (1, 1)
    scale = _each_row(w.scale, n, groups)
    if w.scheme.symmetric:
        for i, (x, u) in enumerate(_split(codes, w.codes, k // groups)):
            yield linear_accumulate(x, 0, u).to(torch.float32), scale[:, i]
        return
    zero = _each_row(w.zero_point, n, groups)
    for i, (x, u) in enumerate(_split(codes, w.codes, k // groups)):
        centred = u.to(torch.float64) - zero[:, i, None]  # products and sums are exact
        yield functional.linear(x.to(torch.float64), centred).to(torch.float32), scale[:, i]


def _split(codes: Tensor, weight: Tensor, group: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(codes, group, -1), torch.split(weight, group, -1), strict=True)


def _each_row(values: Tensor, n: int, groups: int) -> Tensor:
    """Return ``[n, groups]`` of values that rows may share."""
    wide = values.reshape(-1, groups)
    return wide.repeat_interleave(n // len(wide), 0)

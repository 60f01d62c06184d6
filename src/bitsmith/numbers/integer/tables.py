"""Operators that ONNX Runtime computes by a table of 256 codes: activations, Concat, Softmax."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.integer.elementwise import fused_multiply_add

__all__ = ["concat", "leaky_relu", "logistic", "lookup", "softmax"]


def lookup(x: Tensor, ex: Encoding, ey: Encoding, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the codes of ``function`` applied to every element, by a table of all codes.

    The table is ``ey.quantize(function(ex.dequantize(code)))``. With :func:`logistic` this is
    QLinearSigmoid, with ``leaky_relu(alpha)`` QLinearLeakyRelu.

    Args:
        x: codes of ``ex.format``, any shape.
        ex, ey: encodings of the input and the output.
        function: element by element on float32.

    >>> from bitsmith.numbers.formats.integer import integer_format
    >>> u8 = integer_format(8, signed=False)
    >>> x = torch.tensor([0, 128, 255], dtype=torch.uint8)
    >>> lookup(x, Encoding(0.1, 128, u8), Encoding(1 / 256, 0, u8), logistic).tolist()
    [0, 128, 255]
    """
    table = ey.quantize(function(ex.dequantize(ex.format.codes)))
    return table[x.long() - ex.format.code_min]


def concat(
    codes: Sequence[Tensor], encodings: Sequence[Encoding], ey: Encoding, axis: int
) -> Tensor:
    """Return QLinearConcat's codes: every input requantized to ``ey`` by a table, then joined.

    An input that already has the output's encoding is copied.

    Args:
        codes: code tensors that agree in every axis but ``axis``.
        encodings: one per tensor.
        ey: encoding of the output.
        axis: the axis to join along.

    >>> from bitsmith.numbers.formats.integer import integer_format
    >>> u8 = integer_format(8, signed=False)
    >>> half, one = Encoding(0.5, 0, u8), Encoding(1.0, 0, u8)
    >>> x = torch.tensor([4, 6], dtype=torch.uint8)
    >>> concat([x, x], [half, one], one, 0).tolist()
    [2, 3, 4, 6]
    """
    if len(codes) != len(encodings):
        raise DataError(f"concat: {len(codes)} tensors but {len(encodings)} encodings")
    parts = [
        x if e == ey else lookup(x, e, ey, lambda real: real)
        for x, e in zip(codes, encodings, strict=True)
    ]
    return torch.cat(parts, axis)


def softmax(x: Tensor, ex: Encoding, ey: Encoding, axis: int = -1) -> Tensor:
    """Return QLinearSoftmax's codes along ``axis``.

    The runtime tabulates exponentials scaled up so far that D of them still fit float32,
    ``E[i] = float32(exp((i − 255 + shift) · s_x))`` with ``shift = (log(max / D) − 5) / s_x``,
    aligns each row's largest code with 255, adds the row one element after the other in
    float32, and returns ``round(E · floor(1 / s_y) / Σ) + z_y`` cut at the largest code.
    The ``floor`` makes ``1 / s_y`` an integer: choose ``s_y = 1 / 256``; with ``s_y = 1 / 255``
    rounded up in float32 the factor is 254.

    Args:
        x: codes of ``ex.format``.
        ex, ey: encodings of the input and the output, unsigned both.
        axis: the axis that sums to one.
    """
    if ex.format.signed or ey.format.signed or ex.format.bits != 8 or ey.format.bits != 8:
        raise DataError(f"softmax takes uint8 codes, not {ex.format} to {ey.format}")
    rows = x.movedim(axis, -1)
    exponentials = _exponentials(ex.scale, rows.shape[-1])
    aligned = rows.long() + (255 - rows.long().amax(-1, keepdim=True))
    terms = exponentials[aligned]
    # numpy accumulates from left to right in float32, as the runtime does.
    sums = np.add.accumulate(terms.numpy(), axis=-1, dtype=np.float32)[..., -1:]
    factor = torch.floor(torch.tensor(1.0) / torch.tensor(ey.scale, dtype=torch.float32))
    scaled = terms * factor / torch.from_numpy(sums)
    codes = (scaled.round() + ey.zero_point).clamp(max=255).to(torch.uint8)
    return codes.movedim(-1, axis)


@functools.lru_cache(maxsize=64)
def _exponentials(scale: float, length: int) -> Tensor:
    largest = np.finfo(np.float32).max / np.float32(length)
    shift = max(0.0, math.log(largest) - 5) / scale
    table = [math.exp((i - 255 + shift) * scale) for i in range(256)]
    return torch.tensor(np.array(table, np.float32))


def leaky_relu(alpha: float = 0.01) -> Callable[[Tensor], Tensor]:
    """Return the function ``x if x >= 0 else alpha · x`` in float32."""
    slope = torch.tensor(alpha, dtype=torch.float32)
    return lambda x: torch.where(x >= 0, x, slope * x)


# Coefficients of the rational approximation x · P(x²) / Q(x²) + 1/2 on [−18, 18].
_ODD = (4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03,
        2.48287947061529e-01)  # fmt: skip
_EVEN = (6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03,
         1.16817656904453e-01, 9.93151921023180e-01)  # fmt: skip


def logistic(x: Tensor) -> Tensor:
    """Return ``1 / (1 + exp(−x))`` of float32 as ONNX Runtime approximates it on x86.

    A rational function of x², Eigen's coefficients, evaluated with fused multiply-adds; it is
    within 1e-6 of the true value, and can differ from it across a rounding tie of a table.

    >>> logistic(torch.tensor([0.0, 100.0])).tolist()
    [0.5, 1.0]
    """
    value = x.to(torch.float32).clamp(-18.0, 18.0)
    square = value * value
    ratio = _horner(square, _ODD) * value / _horner(square, _EVEN)
    return (ratio + 0.5).clamp(min=0.0)


def _horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    constants = [torch.full_like(x, c) for c in coefficients]
    return functools.reduce(lambda total, c: fused_multiply_add(total, x, c), constants)

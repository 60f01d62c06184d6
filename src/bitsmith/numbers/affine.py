"""Quantize, dequantize, and both with a gradient.

Integer formats: ``code = clamp(round(x / scale) + zero_point)`` and ``real = scale · (code −
zero_point)``, in float32 and bit for bit as ONNX QuantizeLinear and DequantizeLinear: quantizing
*divides* by the scale (torch's fake-quantize multiplies by 1/scale, which differs where the
product rounds across a tie). Other formats: ``code = format.encode(x / scale)``.

>>> from bitsmith.numbers.formats.integer import int4
>>> q = quantize(torch.tensor([-1.5, 0.0, 1.39399302, 1.5]), Scheme(int4))
>>> round(float(q.scale), 6), q.codes.tolist()
(0.2, [-8, 0, 7, 7])
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from bitsmith.errors import SchemeError
from bitsmith.numbers.coding import encode, fake, masked, round_to_integer
from bitsmith.numbers.qtensor import QTensor, dequantize
from bitsmith.numbers.ranges import as_float32, mirrored_range, refuse_not_finite, value_range
from bitsmith.numbers.scales import (
    Parameters,
    scale_parameters,
    scale_zero_point,
    store_offsets,
    store_scales,
)
from bitsmith.numbers.scheme import Scheme

__all__ = [
    "dequantize",
    "fake_quantize",
    "quantize",
    "quantize_codes",
    "round_to_integer",
    "scale_zero_point",
]


def quantize_codes(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    scheme: Scheme,
    offset: Tensor | None = None,
) -> Tensor:
    """Return the codes of ``x`` in the format's dtype, the shape of ``x``.

    ``clamp(round(x / scale) + zero_point)`` for integer formats, ``clamp(round((x + offset) /
    scale))`` where they have an offset, ``format.encode(x / scale)`` for others.

    Args:
        x: floating-point values, any shape; float64 is rounded to float32 first.
        scale: float32, positive, of shape ``scheme.granularity.scale_shape(x.shape)``; all 1 where
            the scheme has no scales.
        zero_point: int32, the shape of ``scale``, codes of the scheme; None with an offset.
        scheme: codes and rounding.
        offset: float32, the shape of ``scale``, of schemes with an offset format; else None.

    Raises:
        DataError: ``x`` has NaN or infinite values, or is not floating point.
        SchemeError: scale or zero point is impossible for this tensor and scheme.
    """
    return _quantized(x, scheme, scale, zero_point, offset).codes


def quantize(
    x: Tensor,
    scheme: Scheme,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    offset: Tensor | None = None,
) -> QTensor:
    """Return ``x`` quantized: codes, scale, zero point and scheme.

    Args:
        x: floating-point values, any shape.
        scheme: how to quantize.
        scale, zero_point: given together, or both None: then they come from the exact
            smallest and largest value of each group that shares a scale. Of a two-level scheme
            they are given as :func:`scale_zero_point` makes them, already in the stored form.
        offset: in place of ``zero_point``, of schemes with an offset format.

    Raises:
        DataError: ``x`` has NaN or infinite values, or has no values to take a range of.
        SchemeError: scale or zero point is impossible for this tensor and scheme.

    >>> from bitsmith.numbers.formats.integer import int4
    >>> from bitsmith.numbers.scheme import PerGroup
    >>> q = quantize(torch.linspace(-1, 1, 256).view(2, 128), Scheme(int4, True, PerGroup(64)))
    >>> tuple(q.scale.shape), q.bits_per_weight
    ((2, 2), 4.5)
    """
    return _quantized(x, scheme, scale, zero_point, offset)


def fake_quantize(
    x: Tensor,
    scheme: Scheme,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Return what is left of ``x`` after quantizing and dequantizing, with a gradient for ``x``.

    The value is ``dequantize(quantize(x))`` in the shape and dtype of ``x``. The gradient is the
    straight-through estimator (arXiv:1308.3432): that of the identity where ``x / scale`` is
    within the format (for integers: where ``round(x / scale) + zero_point`` is a code of the
    scheme), and 0 where it saturates. Scale and zero point get no gradient. Arguments and errors
    as :func:`quantize`.

    >>> from bitsmith.numbers.formats.integer import int4
    >>> w = torch.tensor([0.31, 9.0], requires_grad=True)
    >>> y = fake_quantize(w, Scheme(int4), torch.tensor(0.2), torch.tensor(0, dtype=torch.int32))
    >>> y.sum().backward()
    >>> [round(v, 4) for v in y.tolist()], w.grad.tolist()
    ([0.4, 1.4], [1.0, 0.0])
    """
    p = _parameters(as_float32(x), scheme, scale, zero_point, offset)
    apply = cast(Any, _FakeQuantize).apply
    return cast(Tensor, apply(x, p.scale, p.zero_point, p.offset, scheme))


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize; the gradient passes where the code did not saturate."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        offset: Tensor | None,
        scheme: Scheme,
    ) -> Tensor:
        values, inside, finite = fake(as_float32(x), scale, zero_point, scheme, offset)
        if not finite:
            refuse_not_finite(x)
        ctx.save_for_backward(inside)
        return values.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, None, None]:
        (inside,) = ctx.saved_tensors
        return masked(gradients[0], inside), None, None, None, None


def _quantized(
    x: Tensor,
    scheme: Scheme,
    scale: Tensor | None,
    zero_point: Tensor | None,
    offset: Tensor | None,
) -> QTensor:
    x = as_float32(x)
    p = _parameters(x, scheme, scale, zero_point, offset)
    known = scale is None  # a range was taken of it, which looks at every value
    codes, finite = encode(x, p.scale, p.zero_point, scheme, p.offset, finite=known)
    if not finite:
        refuse_not_finite(x)
    return QTensor(codes, p.scale, p.zero_point, None, scheme, p.scales, p.offset, p.offsets)


def _parameters(
    x: Tensor,
    scheme: Scheme,
    scale: Tensor | None,
    zero_point: Tensor | None,
    offset: Tensor | None,
) -> Parameters:
    """Return scale and zero point or offset, checked if given, else from the range of ``x``."""
    if scheme.learned:
        raise SchemeError(
            f"the table of {scheme.format.name} is learned from the tensor: use cluster(x, scheme)"
        )
    if scheme.shifted:
        if (scale is None) != (offset is None):
            raise SchemeError("scale and offset are given together or not at all")
        if scale is not None and zero_point is None:
            zero_point = torch.zeros_like(scale, dtype=torch.int32)
    elif (scale is None) != (zero_point is None):
        raise SchemeError("scale and zero_point are given together or not at all")
    elif offset is not None:
        raise SchemeError("an offset goes with a scheme that has an offset_format")
    if scale is None or zero_point is None:
        mirrored = scheme.affine and scheme.symmetric
        ends = (mirrored_range if mirrored else value_range)(
            x, scheme.granularity.scale_shape(x.shape)
        )
        return scale_parameters(*ends, scheme)
    if reasons := list(_misfits(scale, zero_point, offset, scheme, x)):
        raise SchemeError("; ".join(reasons))
    scale, scales, offsets = scale.detach(), None, None
    if isinstance(scheme.scale_format, Scheme):
        scales = store_scales(scale, scheme)
        _check_stored(scale, scales, "scales")
    if offset is not None:
        offset = offset.detach()
        if isinstance(scheme.offset_format, Scheme):
            offsets = store_offsets(offset, scheme)
            _check_stored(offset, offsets, "offsets")
    return Parameters(scale, zero_point, scales, offset, offsets)


def _check_stored(values: Tensor, stored: QTensor, name: str) -> None:
    if not torch.equal(stored.dequantize(), values):
        raise SchemeError(
            f"the {name} given are not numbers of the stored form {stored.scheme}: take "
            f"them from store_{name}({name.removesuffix('s')}, scheme).dequantize()"
        )


def _misfits(
    scale: Tensor, zero_point: Tensor, offset: Tensor | None, scheme: Scheme, x: Tensor
) -> Iterator[str]:
    """Give every reason why scale, zero point and offset are impossible for ``x``."""
    expected = scheme.granularity.scale_shape(x.shape)
    parts = [("scale", scale, torch.float32), ("zero_point", zero_point, torch.int32)]
    if offset is not None:
        parts.append(("offset", offset, torch.float32))
        if bad := int((~(torch.isfinite(offset) & (offset >= 0))).sum()):
            yield f"{bad} of {offset.numel()} offsets are negative or not finite"
    for name, part, dtype in parts:
        if part.dtype != dtype or tuple(part.shape) != expected:
            yield (
                f"{name} is {part.dtype} of shape {tuple(part.shape)} and must be {dtype} of "
                f"shape {expected} for {scheme.granularity} on {tuple(x.shape)}"
            )
    if bad := int((~(torch.isfinite(scale) & (scale > 0))).sum()):
        yield f"{bad} of {scale.numel()} scales are not positive and finite"
    if not scheme.scaled and bool((scale != 1).any()):
        yield f"{scheme.format.name} takes no scale, so every scale is 1"
    if scheme.symmetric or scheme.shifted:
        if bool((zero_point != 0).any()):
            kind = "symmetric scheme" if scheme.symmetric else "scheme with an offset"
            yield f"a {kind} has zero point 0"
        return
    outside = (zero_point < scheme.code_min) | (zero_point > scheme.code_max)
    if bad := int(outside.sum()):
        yield (
            f"{bad} of {zero_point.numel()} zero points are not codes of the scheme, "
            f"{scheme.code_min} to {scheme.code_max}"
        )

"""Scale and zero point, and the two directions between real values and integer codes.

``code = clamp(round(x / scale) + zero_point)`` and ``real = scale · (code − zero_point)``, in
float32 and bit for bit as ONNX QuantizeLinear and DequantizeLinear: quantizing *divides* by the
scale (torch's fake-quantize multiplies by 1/scale, which differs where the product rounds
across a tie).

>>> from bitsmith.numbers.formats.integer import int4
>>> q = quantize(torch.tensor([-1.5, 0.0, 1.39399302, 1.5]), Scheme(int4))
>>> round(float(q.scale), 6), q.codes.tolist()
(0.2, [-8, 0, 7, 7])
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from bitsmith.errors import SchemeError
from bitsmith.numbers.qtensor import QTensor, dequantize
from bitsmith.numbers.ranges import as_float32, value_range
from bitsmith.numbers.scheme import Rounding, Scheme

__all__ = [
    "dequantize",
    "fake_quantize",
    "quantize",
    "quantize_codes",
    "round_to_integer",
    "scale_zero_point",
]

_FLOAT32 = torch.finfo(torch.float32)


def scale_zero_point(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the scale (float32) and zero point (int32) that represent ``[low, high]``.

    With ``b`` bits, codes ``q_min … q_max`` and ``a = max(|low|, |high|)``:

    - symmetric, narrow range: ``scale = a / (2^(b−1) − 1)``, zero point 0;
    - symmetric, full range: ``scale = 2·a / (2^b − 1)``, zero point 0;
    - asymmetric: the range is first widened to contain 0, so that 0 is exact; then
      ``scale = (high − low) / (q_max − q_min)``, ``zero_point = round(q_min − low / scale)``.

    Edges: a range that is only 0 gets scale 1; the scale is never below the smallest normal
    float32 (runtimes may flush smaller ones to 0) and never so large that a code's value
    overflows float32. Computed in float64, rounded once.

    Args:
        low, high: the range, any equal shapes; the results have that shape.
        scheme: symmetry and codes.

    Raises:
        SchemeError: a bound is NaN or infinite, ``low > high``, or the shapes differ.

    >>> from bitsmith.numbers.formats.integer import int8
    >>> s, z = scale_zero_point(torch.tensor(-7.59), torch.tensor(10.8), Scheme(int8, False))
    >>> round(1 / float(s), 3), int(z)
    (13.866, -23)
    """
    low, high = low.detach().to(torch.float64), high.detach().to(torch.float64)
    _check_range(low, high)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    levels = scheme.code_max - scheme.code_min
    # Symmetric: 2^b − 2 levels above the lowest code when narrow, 2^b − 1 when full.
    span = 2 * torch.maximum(-low, high) if scheme.symmetric else high - low
    scale = span / levels
    empty = scale == 0
    scale = scale.clamp(min=_FLOAT32.tiny).to(torch.float32)
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    if not scheme.symmetric:
        point = torch.round(scheme.code_min - low / scale.to(torch.float64))
        zero_point = point.clamp(scheme.code_min, scheme.code_max).to(torch.int32)
    reach = torch.maximum(scheme.code_max - zero_point, zero_point - scheme.code_min)
    scale = torch.minimum(scale, _largest_scale(reach))
    return torch.where(empty, 1.0, scale), zero_point


def quantize_codes(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
    """Return ``clamp(round(x / scale) + zero_point)``, the shape of ``x``, in the codes' dtype.

    Args:
        x: floating-point values, any shape.
        scale: float32, positive, of shape ``scheme.granularity.scale_shape(x.shape)``.
        zero_point: int32, the shape of ``scale``, codes of the scheme.
        scheme: codes and rounding.

    Raises:
        DataError: ``x`` has NaN or infinite values, or is not floating point.
        SchemeError: scale or zero point is impossible for this tensor and scheme.
    """
    x = as_float32(x)
    _parameters(x, scheme, scale, zero_point)
    return _codes(x, scale, zero_point, scheme)


def quantize(
    x: Tensor, scheme: Scheme, scale: Tensor | None = None, zero_point: Tensor | None = None
) -> QTensor:
    """Return ``x`` quantized: codes, scale, zero point and scheme.

    Args:
        x: floating-point values, any shape.
        scheme: how to quantize.
        scale, zero_point: given together, or both None: then they come from the exact
            smallest and largest value of each group that shares a scale.

    Raises:
        DataError: ``x`` has NaN or infinite values, or has no values to take a range of.
        SchemeError: scale or zero point is impossible for this tensor and scheme.
    """
    x = as_float32(x)
    scale, zero_point = _parameters(x, scheme, scale, zero_point)
    return QTensor(_codes(x, scale, zero_point, scheme), scale, zero_point, None, scheme)


def fake_quantize(
    x: Tensor, scheme: Scheme, scale: Tensor | None = None, zero_point: Tensor | None = None
) -> Tensor:
    """Return what is left of ``x`` after quantizing and dequantizing, with a gradient for ``x``.

    The value is ``dequantize(quantize(x))`` in the shape and dtype of ``x``. The gradient is the
    straight-through estimator (arXiv:1308.3432): that of the identity where ``round(x / scale)
    + zero_point`` is a code of the scheme, and 0 where it saturates. Scale and zero point get no
    gradient. Arguments and errors as :func:`quantize`.

    >>> from bitsmith.numbers.formats.integer import int4
    >>> w = torch.tensor([0.31, 9.0], requires_grad=True)
    >>> y = fake_quantize(w, Scheme(int4), torch.tensor(0.2), torch.tensor(0, dtype=torch.int32))
    >>> y.sum().backward()
    >>> [round(v, 4) for v in y.tolist()], w.grad.tolist()
    ([0.4, 1.4], [1.0, 0.0])
    """
    scale, zero_point = _parameters(as_float32(x), scheme, scale, zero_point)
    return cast(Tensor, cast(Any, _FakeQuantize).apply(x, scale, zero_point, scheme))


def round_to_integer(x: Tensor, rounding: Rounding) -> Tensor:
    """Return ``x`` rounded to integers in the given way, in the dtype of ``x``.

    >>> t = torch.tensor([-2.5, -0.5, 0.5, 1.5])
    >>> round_to_integer(t, "half_even").tolist(), round_to_integer(t, "half_away").tolist()
    ([-2.0, -0.0, 0.0, 2.0], [-3.0, -1.0, 1.0, 2.0])
    """
    if rounding == "half_even":
        return torch.round(x)
    if rounding == "floor":
        return torch.floor(x)
    # floor(x + 0.5) would round the float just below 0.5 up; the fraction x − trunc(x) is exact.
    whole = torch.trunc(x)
    return whole + torch.where((x - whole).abs() >= 0.5, torch.sign(x), 0.0)


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize; the gradient passes where the code did not saturate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
        raw = round_to_integer(x.to(torch.float32) / scale, scheme.rounding) + zero_point
        codes = raw.clamp(scheme.code_min, scheme.code_max)
        ctx.save_for_backward(raw == codes)
        return ((codes - zero_point) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0].masked_fill(~inside, 0), None, None, None


def _largest_scale(reach: Tensor) -> Tensor:
    """Return the largest float32 scale with ``scale · reach`` finite in float32."""
    bound = (_FLOAT32.max / reach.to(torch.float64)).to(torch.float32)
    over = bound.to(torch.float64) * reach > _FLOAT32.max
    return torch.where(over, torch.nextafter(bound, torch.zeros_like(bound)), bound)


def _parameters(
    x: Tensor, scheme: Scheme, scale: Tensor | None, zero_point: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, checked if given, else from the range of finite ``x``."""
    if (scale is None) != (zero_point is None):
        raise SchemeError("scale and zero_point are given together or not at all")
    if scale is None or zero_point is None:
        return scale_zero_point(*value_range(x, scheme.granularity.scale_shape(x.shape)), scheme)
    if x.numel():
        value_range(x)  # refuses what is not finite
    _check_parameters(scale, zero_point, scheme, x)
    return scale.detach(), zero_point


def _codes(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
    codes = round_to_integer(x / scale, scheme.rounding) + zero_point
    return codes.clamp_(scheme.code_min, scheme.code_max).to(scheme.integer.dtype)


def _check_range(low: Tensor, high: Tensor) -> None:
    if low.shape != high.shape:
        raise SchemeError(
            f"the bounds of a range have one shape, not {tuple(low.shape)} and {tuple(high.shape)}"
        )
    finite = torch.isfinite(low) & torch.isfinite(high)
    if bad := int((~finite).sum()):
        raise SchemeError(f"{bad} of {low.numel()} ranges have a NaN or infinite bound")
    if bad := int((low > high).sum()):
        first = int((low > high).reshape(-1).nonzero()[0])
        raise SchemeError(
            f"{bad} of {low.numel()} ranges have low > high, the first at index {first}: "
            f"{float(low.reshape(-1)[first])} > {float(high.reshape(-1)[first])}"
        )


def _check_parameters(scale: Tensor, zero_point: Tensor, scheme: Scheme, x: Tensor) -> None:
    expected, reasons = scheme.granularity.scale_shape(x.shape), []
    for name, part, dtype in (
        ("scale", scale, torch.float32),
        ("zero_point", zero_point, torch.int32),
    ):
        if part.dtype != dtype or tuple(part.shape) != expected:
            reasons.append(
                f"{name} is {part.dtype} of shape {tuple(part.shape)} and must be {dtype} of "
                f"shape {expected} for {scheme.granularity} on {tuple(x.shape)}"
            )
    if bad := int((~(torch.isfinite(scale) & (scale > 0))).sum()):
        reasons.append(f"{bad} of {scale.numel()} scales are not positive and finite")
    outside = (zero_point < scheme.code_min) | (zero_point > scheme.code_max)
    if bad := int(outside.sum()):
        reasons.append(
            f"{bad} of {zero_point.numel()} zero points are not codes of the scheme, "
            f"{scheme.code_min} to {scheme.code_max}"
        )
    if scheme.symmetric and bool((zero_point != 0).any()):
        reasons.append("a symmetric scheme has zero point 0")
    if reasons:
        raise SchemeError("; ".join(reasons))

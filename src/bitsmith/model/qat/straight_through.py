"""Operators on codes with straight-through gradients: what training computes is the integers.

Every function here takes and returns *centred codes*: float32 tensors that hold the integers
``code − zero_point`` exactly. Its forward pass does, in the runtime's order of float32 roundings,
what :mod:`bitsmith.numbers.integer` does on integers; its backward pass is that of the same
function without ``round``, zero where the code saturates (arXiv 1308.3432). A scale gets its
gradient through the ratio of scales that it is part of: for ``q = round(v)``, ``v = x / s``, the
sum over readers of ``s·q`` is that of learned step sizes, ``∂(s·q)/∂s = q − v`` inside the range
and ``q`` outside (arXiv 1902.08153, equation 3).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from bitsmith.numbers.integer.elementwise import fused_multiply_add

__all__ = [
    "add",
    "bounded",
    "damped",
    "quantize_real",
    "requantize",
    "round_through",
]

#: Sums of two products that lie this near a tie are rounded again by exact arithmetic.
_TIE = 1e-3


def round_through(x: Tensor) -> Tensor:
    """Return ``x`` rounded half to even; the gradient passes as if it were not."""
    return cast(Tensor, _apply(_Round, x))


def damped(x: Tensor, factor: float) -> Tensor:
    """Return ``x``; its gradient is multiplied by ``factor``."""
    return cast(Tensor, _apply(_Damped, x, factor))


def bounded(x: Tensor, low: float, high: float) -> Tensor:
    """Return ``x`` clamped; a gradient passes unless descending it would lead further out."""
    return cast(Tensor, _apply(_Bounded, x, low, high))


def quantize_real(
    x: Tensor,
    scale: Tensor,
    low: float,
    high: float,
    codes: Tensor | None = None,
    *,
    zero: Tensor | None = None,
    clip: bool = False,
) -> Tensor:
    """Return the centred codes ``clamp(round(x / scale), low, high)``, as QuantizeLinear.

    Args:
        x: real values; of a weight ``[O, …]``.
        scale: float32 ``[]``, or ``[O]`` of a weight.
        low, high: smallest and largest code minus the zero point.
        codes: the result, where a kernel rounds in another way than ``x`` says.
        zero: zero point that is learned: saturated values move it (arXiv 2004.09576, equation 4).
        clip: only saturated values move the scale (arXiv 1805.06085, equation 3).
    """
    wide = scale if scale.dim() == 0 else scale.reshape(-1, *[1] * (x.dim() - 1))
    return cast(Tensor, _apply(_QuantizeReal, x, wide, low, high, codes, zero, clip))


def requantize(
    sums: Tensor,
    ratio: Tensor,
    low: float,
    high: float,
    drop: float = 0.0,
    *,
    zero: Tensor | None = None,
    clip: Tensor | None = None,
) -> Tensor:
    """Return ``round(clamp(sums · ratio, low, high))`` of whole sums.

    Args:
        sums: float32 with integer values, ``[N, C, …]``.
        ratio: ``s_x · s_w / s_y``; float32 ``[]`` or broadcastable to ``sums``.
        low, high: smallest and largest code of the output minus its zero point.
        drop: this share, at random, is clamped and not rounded.
        zero: as of :func:`quantize_real`.
        clip: scale of the output where only saturated values move it; ``ratio`` then has no
            gradient for it.
    """
    return cast(Tensor, _apply(_Requantize, sums, ratio, low, high, drop, zero, clip))


def add(
    a: Tensor,
    b: Tensor,
    ratios: tuple[Tensor, Tensor],
    zeros: tuple[int, int, int],
    high: float,
    *,
    zero: Tensor | None = None,
    clip: Tensor | None = None,
) -> Tensor:
    """Return QLinearAdd's centred codes of ``a + b``; see :func:`bitsmith.numbers.integer.add`.

    Args:
        a, b: centred codes; where one repeats along the innermost axis it is ``b``.
        ratios: ``s_a / s_y`` and ``s_b / s_y``, float32 ``[]``.
        zeros: zero points of a, b and the result.
        high: largest code of the result minus its zero point; the smallest code is 0.
        zero, clip: as of :func:`requantize`.
    """
    return cast(Tensor, _apply(_Add, a, b, *ratios, zeros, high, zero, clip))


def _apply(function: Any, *arguments: Any) -> Any:
    return function.apply(*arguments)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


class _Damped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.factor, None


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.ends = (low, high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        gradient, (low, high) = gradients[0], ctx.ends
        outward = ((x >= high) & (gradient < 0)) | ((x <= low) & (gradient > 0))
        return torch.where(outward, 0.0, gradient), None, None


class _QuantizeReal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        low: float,
        high: float,
        codes: Tensor | None,
        zero: Tensor | None,
        clip: bool,
    ) -> Tensor:
        v = x / scale
        ctx.save_for_backward(v, scale)
        ctx.ends, ctx.clip = (low, high), clip
        return torch.round(v).clamp_(low, high) if codes is None else codes

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        v, scale = ctx.saved_tensors
        inside = _passed(gradients[0], v, *ctx.ends)
        to_x = inside / scale if ctx.needs_input_grad[0] else None
        to_scale = None
        if ctx.needs_input_grad[1]:
            to_scale = -_sum_to(inside * (v.round() if ctx.clip else v), scale) / scale
        to_zero = _moved_by(gradients[0], inside) if ctx.needs_input_grad[5] else None
        return to_x, to_scale, None, None, None, to_zero, None


class _Requantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sums: Tensor,
        ratio: Tensor,
        low: float,
        high: float,
        drop: float,
        zero: Tensor | None,
        clip: Tensor | None,
    ) -> Tensor:
        v = sums * ratio
        ctx.save_for_backward(v, ratio, clip)
        ctx.ends = (low, high)
        clamped = v.clamp(low, high)
        if not drop:
            return clamped.round_()
        return torch.where(torch.rand_like(v) < drop, clamped, clamped.round())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        v, ratio, clip = ctx.saved_tensors
        inside = _passed(gradients[0], v, *ctx.ends)
        to_ratio = _sum_to(inside * v, ratio) / ratio if ctx.needs_input_grad[1] else None
        to_zero = _moved_by(gradients[0], inside) if ctx.needs_input_grad[5] else None
        to_clip = _unrounded(inside, v, clip) if ctx.needs_input_grad[6] else None
        return inside.mul_(ratio), to_ratio, None, None, None, to_zero, to_clip


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        ratio_a: Tensor,
        ratio_b: Tensor,
        zeros: tuple[int, int, int],
        high: float,
        zero: Tensor | None,
        clip: Tensor | None,
    ) -> Tensor:
        v = a * ratio_a + b * ratio_b
        ctx.save_for_backward(a, b, ratio_a, ratio_b, v, clip)
        ctx.ends = (-float(zeros[2]), high)
        q = torch.round(v)
        ties = ((v - q).abs_() > 0.5 - _TIE).nonzero(as_tuple=True)
        if len(ties[0]):
            first, second = (t.expand_as(q)[ties] for t in (a, b))
            q[ties] = _exact_sum(first, second, ratio_a, ratio_b, zeros)
        return q.clamp_(*ctx.ends)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        a, b, ratio_a, ratio_b, v, clip = ctx.saved_tensors
        inside = _passed(gradients[0], v, *ctx.ends)
        to = [
            _sum_to(inside * r, t) if ctx.needs_input_grad[i] else None
            for i, (t, r) in enumerate(((a, ratio_a), (b, ratio_b)))
        ]
        ratios = [
            (inside * t).sum() if ctx.needs_input_grad[2 + i] else None
            for i, t in enumerate((a, b))
        ]
        to_zero = _moved_by(gradients[0], inside) if ctx.needs_input_grad[6] else None
        to_clip = _unrounded(inside, v, clip) if ctx.needs_input_grad[7] else None
        return *to, *ratios, None, None, to_zero, to_clip


def _exact_sum(
    a: Tensor, b: Tensor, ratio_a: Tensor, ratio_b: Tensor, zeros: tuple[int, int, int]
) -> Tensor:
    """Round sums as the runtime does, with fused multiply-adds of the codes."""
    za, zb, zy = (torch.tensor(float(z), device=a.device) for z in zeros)
    fixed = zy - fused_multiply_add(ratio_a, za, ratio_b * zb)
    inner = fused_multiply_add(b + zb, ratio_b, fixed)
    return torch.round(fused_multiply_add(a + za, ratio_a, inner)) - zy


def _passed(gradient: Tensor, v: Tensor, low: float, high: float) -> Tensor:
    """Return a new tensor: the gradient where ``v`` lies inside the range, else 0."""
    passed: Tensor = torch.ops.aten.hardtanh_backward(gradient, v, low, high)  # one pass
    return passed


def _moved_by(gradient: Tensor, inside: Tensor) -> Tensor:
    """Gradient of the zero point: a code that saturates goes down as it goes up."""
    return inside.sum() - gradient.sum()


def _unrounded(inside: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    """Gradient of a scale that takes back, inside the range, what its readers give it."""
    return -(inside * v.round()).sum() / scale


def _sum_to(x: Tensor, like: Tensor) -> Tensor:
    return x.sum_to_size(like.shape)

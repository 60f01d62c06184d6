"""Gradients of rounding: the straight-through estimator, learned steps, and learned clipping.

Rounding is flat almost everywhere, so training replaces its derivative. Every function here
computes the quantized value exactly as it is deployed, and differs from plain arithmetic in its
gradient only, which is that of the paper it names.

>>> x, s = torch.tensor([0.3, 0.9, 5.0]), torch.tensor(0.5, requires_grad=True)
>>> y = learned_step(x, s, -2, 1)
>>> y.sum().backward()
>>> y.tolist(), round(float(s.grad), 4)  # (1 − 0.6) + 1 + 1
([0.5, 0.5, 0.5], 2.4)
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from bitsmith.numbers.formats import NumberFormat

__all__ = [
    "clip_mask",
    "gradient_factor",
    "learned_grid",
    "learned_step",
    "learned_step_offset",
    "pact",
    "round_through",
    "scaled_gradient",
    "sign_through",
    "straight_through",
    "zero_code",
]


def straight_through(value: Tensor, x: Tensor, inside: Tensor | None = None) -> Tensor:
    """Return ``value``, exactly; its gradient goes to ``value`` and, unchanged, to ``x``.

    Args:
        value: what ``x`` became; any function of it, of its shape.
        x: gets the gradient where ``inside``, as if ``value`` were ``x`` (arXiv:1308.3432).
        inside: bool, where the gradient passes; None: everywhere.

    >>> w = torch.tensor([0.2, 0.7], requires_grad=True)
    >>> straight_through(torch.round(w.detach()), w).sum().backward()
    >>> w.grad.tolist()
    [1.0, 1.0]
    """
    return _estimate(value, x, inside)


def round_through(x: Tensor) -> Tensor:
    """Return ``x`` rounded, ties to even; its gradient is that of the identity."""
    return _estimate(torch.round(x.detach()), x)


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """Return ``x``; its gradient is multiplied by ``factor`` (arXiv:1902.08153, appendix A)."""
    return cast(Tensor, cast(Any, _ScaledGradient).apply(x, factor))


def gradient_factor(count: int, top: float) -> float:
    """Return ``1 / √(N · Q_P)``: what keeps a step's gradient in proportion to its weights'.

    arXiv:1902.08153, section 2.2.

    Args:
        count: N, values that share the step; at least 1.
        top: Q_P, the largest level.

    >>> gradient_factor(100, 4)
    0.05
    """
    return float((max(count, 1) * top) ** -0.5)


def clip_mask(v: Tensor, low: float, high: float) -> Tensor:
    """Return where ``low < v < high``: where clipping to the two has derivative 1."""
    return (v > low) & (v < high)


def learned_step(x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """Return ``scale · clamp(round(x / scale), low, high)`` with the gradients of LSQ.

    With ``v = x / scale`` (arXiv:1902.08153, equations 1 to 3 and 5): for x it is 1 where ``low <
    v < high``, else 0; for the scale it is ``round(v) − v`` there, ``low`` at and below ``low``,
    ``high`` at and above ``high``, summed over the values that share it.

    Args:
        x: float32.
        scale: float32, positive, broadcasts to ``x``.
        low, high: −Q_N and Q_P, the smallest and the largest level.
    """
    v = x.detach() / scale.detach()
    levels = torch.round(v).clamp(low, high) + 0.0  # −0 becomes 0, as a code has no sign of zero
    return _on_levels(x, scale, levels, v, clip_mask(v, low, high))


def learned_grid(x: Tensor, scale: Tensor, number: NumberFormat) -> Tensor:
    """Return ``scale · decode(encode(x / scale))`` with the gradients of LSQ.

    Those of :func:`learned_step` with the nearest value of the format in place of the nearest
    integer. NaN stays NaN.
    """
    v = x.detach() / scale.detach()
    known = torch.isfinite(v)
    levels = number.decode(number.encode(torch.where(known, v, 0.0)))
    levels = torch.where(known, levels, v)
    return _on_levels(x, scale, levels, v, clip_mask(v, number.min, number.max))


def learned_step_offset(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    low: float,
    high: float,
    *,
    integer_zero: bool = True,
) -> Tensor:
    """Return ``scale · code + offset`` with the gradients of LSQ+.

    With ``v = (x − offset) / scale`` and ``code = clamp(round(v), low, high)`` (arXiv:2004.09576,
    equations 3 and 4): for x it is 1 where ``low < v < high``, else 0; for the scale ``code − v``
    there, else ``code``; for the offset 0 there, else 1.

    Args:
        x: float32.
        scale: float32, positive, broadcasts to ``x``.
        offset: β, float32, broadcasts to ``x``: the value of code 0.
        low, high: smallest and largest code.
        integer_zero: β is deployed as the nearest multiple of the scale ``−scale · z`` whose z is
            a code, so that 0 is exact: the value is ``scale · (clamp(round(x / scale) + z) − z)``.
            False: as a number of its own.
    """
    step, start = scale.detach(), offset.detach()
    if integer_zero:
        z = zero_code(step, start, low, high)
        ratio = x.detach() / step
        codes = (torch.round(ratio) + z).clamp(low, high)
        v, value = ratio + z, (codes - z) * step
    else:
        v = (x.detach() - start) / step
        codes = torch.round(v).clamp(low, high) + 0.0
        value = codes * step + start
    inside = clip_mask(v, low, high)
    slope = torch.where(inside, codes - v, codes)
    return _estimate(value, x, inside, scale, slope, offset)


def zero_code(scale: Tensor, offset: Tensor, low: float, high: float) -> Tensor:
    """Return the code that stands for 0: ``clamp(round(−offset / scale), low, high)``, float32."""
    return torch.round(-offset / scale).clamp(low, high) + 0.0


def sign_through(x: Tensor, reach: float = 1.0) -> Tensor:
    """Return −1 where ``x < 0``, else 1; the gradient passes where ``|x| ≤ reach``.

    arXiv:1603.05279, section 3.1: ``∂sign(w)/∂w = 1 where |w| ≤ 1``. NaN stays NaN.

    >>> w = torch.tensor([-0.5, 0.0, 2.0], requires_grad=True)
    >>> y = sign_through(w)
    >>> y.sum().backward()
    >>> y.tolist(), w.grad.tolist()
    ([-1.0, 1.0, 1.0], [1.0, 1.0, 0.0])
    """
    known = x.detach()
    value = torch.where(known < 0, -1.0, 1.0)
    return _estimate(torch.where(torch.isnan(known), known, value), x, known.abs() <= reach)


def pact(x: Tensor, alpha: Tensor, bits: int) -> Tensor:
    """Return ``round(clamp(x, 0, α) · (2^bits − 1) / α) · α / (2^bits − 1)``, gradients of PACT.

    arXiv:1805.06085, equations 1 to 3: for x it is 1 where ``0 ≤ x < α``, else 0; for α it is 1
    where ``x ≥ α``, else 0.

    Args:
        x: float32.
        alpha: float32, positive, broadcasts to ``x``.
        bits: of the unsigned codes, at least 1.

    >>> a = torch.tensor(1.5, requires_grad=True)
    >>> y = pact(torch.tensor([-1.0, 0.6, 9.0]), a, 2)
    >>> y.sum().backward()
    >>> y.tolist(), float(a.grad)
    ([0.0, 0.5, 1.5], 1.0)
    """
    top = float((1 << bits) - 1)
    step = alpha.detach() / top
    given = x.detach()
    codes = torch.round(given / step).clamp(0.0, top) + 0.0
    above = given >= alpha.detach()
    slope = torch.where(above, 1.0, 0.0)
    return _estimate(codes * step, x, (given >= 0) & ~above, alpha, slope)


def _on_levels(x: Tensor, scale: Tensor, levels: Tensor, v: Tensor, inside: Tensor) -> Tensor:
    slope = torch.where(inside, levels - v, levels)
    return _estimate(levels * scale.detach(), x, inside, scale, slope)


def _estimate(
    value: Tensor,
    x: Tensor,
    inside: Tensor | None = None,
    scale: Tensor | None = None,
    slope: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Return ``value``; gradients: itself, x where inside, scale by slope, offset where outside."""
    apply = cast(Any, _Estimate).apply
    return cast(Tensor, apply(value, x, inside, scale, slope, offset))


class _Estimate(torch.autograd.Function):
    """A value whose derivatives are given."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        value: Tensor,
        x: Tensor,
        inside: Tensor | None,
        scale: Tensor | None,
        slope: Tensor | None,
        offset: Tensor | None,
    ) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, x, inside, scale, slope, offset = inputs
        ctx.x_shape = x.shape
        ctx.scale_shape = None if scale is None else scale.shape
        ctx.offset_shape = None if offset is None else offset.shape
        ctx.save_for_backward(inside, slope)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inside, slope = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        for_x = for_scale = for_offset = None
        if wanted[1]:
            for_x = gradient if inside is None else torch.where(inside, gradient, 0.0)
            for_x = for_x.sum_to_size(ctx.x_shape)
        if wanted[3]:
            for_scale = (gradient * slope).sum_to_size(ctx.scale_shape)
        if wanted[5]:
            for_offset = torch.where(inside, 0.0, gradient).sum_to_size(ctx.offset_shape)
        return gradient if wanted[0] else None, for_x, None, for_scale, None, for_offset


class _ScaledGradient(torch.autograd.Function):
    """The identity; its gradient is multiplied by a number."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None

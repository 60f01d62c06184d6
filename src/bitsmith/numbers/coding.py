"""The two directions between real values and codes, for a given scale and zero point.

No range is chosen and nothing is checked here: that is :mod:`scales`' and :mod:`affine`'s. Every
function goes once through memory, in pieces that stay in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitsmith.numbers.pieces import PIECE, fresh, in_blocks, pieces
from bitsmith.numbers.scheme import Rounding, Scheme

__all__ = ["decode", "encode", "fake", "look_up", "masked", "round_to_integer"]


def encode(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    scheme: Scheme,
    offset: Tensor | None = None,
    *,
    finite: bool = False,
) -> tuple[Tensor, bool]:
    """Return the codes of float32 ``x``, and whether all of ``x`` was finite.

    Integer formats: ``clamp(round(x / scale) + zero_point)``, or ``clamp(round((x + offset) /
    scale))`` where the scheme has an offset. Others: ``format.encode(x / scale)``,
    or ``format.encode(x)`` where no scale applies. ``finite``: it is known to be.
    """
    codes = fresh(x.shape, scheme.format.dtype, x.device)
    wide = in_blocks(
        x.shape, x, codes, scale.to(x.device), _point(zero_point, offset, x),
        scale_shape=scale.shape,
    )  # fmt: skip
    generator = torch.Generator(x.device).manual_seed(scheme.seed)
    scratch = torch.empty(min(x.numel(), PIECE), device=x.device)
    ends: list[Tensor] = []
    for values, out, step, point in pieces(*wide):
        if not values.numel():
            continue
        if not finite:
            ends += torch.aminmax(values)
        room = _room(scratch, values)
        if scheme.affine:
            _to_codes(values, step, point, scheme, generator, room)
            out.copy_(room)
        elif scheme.scaled:
            out.copy_(scheme.format.encode(torch.div(values, step, out=room)))
        else:
            out.copy_(scheme.format.encode(values))
    return codes, not ends or bool(torch.isfinite(torch.stack(ends)).all())


def decode(
    codes: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, offset: Tensor | None = None
) -> Tensor:
    """Return the float32 values of codes.

    Integer formats: ``scale · (code − zero_point)``, the difference exact and one float32 product
    that rounds, as ONNX DequantizeLinear. With an offset: ``scale · code − offset``, the product
    rounds and then the difference. Others: ``scale · format.decode(code)``.
    """
    values = fresh(codes.shape, torch.float32, codes.device)
    wide = in_blocks(
        codes.shape,
        codes,
        values,
        scale.to(codes.device),
        _point(zero_point, offset, codes),
        scale_shape=scale.shape,
    )
    for code, out, step, point in pieces(*wide):
        if scheme.affine:
            out.copy_(code)  # at most 16 bits, so the difference is exact in float32
            _to_values_(out, step, point, scheme)
        else:
            out.copy_(scheme.format.decode(code))
            if scheme.scaled:
                out.mul_(step)
    return values


def look_up(codes: Tensor, codebook: Tensor, scale_shape: torch.Size, dimension: int) -> Tensor:
    """Return the entries of a learned table: float32 of the tensor's shape.

    Args:
        codes: ``[..., N / dimension]``.
        codebook: ``[*scale_shape, n_values]``, or ``[*scale_shape, n_values, dimension]``.
        scale_shape: which codes share a table.
        dimension: weights in an entry.
    """
    entries = codebook.shape[len(scale_shape)]
    table = codebook.reshape(-1, *([dimension] if dimension > 1 else []))
    first = torch.arange(0, len(table), entries, device=codes.device).reshape(scale_shape)
    wide, start = in_blocks(codes.shape, codes, first, scale_shape=scale_shape)
    found = table[(wide.to(torch.int64) + start).reshape(codes.shape)]
    return found.flatten(-2) if dimension > 1 else found


def fake(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    scheme: Scheme,
    offset: Tensor | None = None,
    *,
    finite: bool = False,
) -> tuple[Tensor, Tensor, bool]:
    """Return values after both directions, where they did not saturate, and whether all is finite.

    Args:
        x: float32.
        finite: all of it is known to be.

    Returns:
        float32, bool of the shape of ``x``, and a flag.
    """
    values = fresh(x.shape, torch.float32, x.device)
    inside = fresh(x.shape, torch.bool, x.device)
    wide = in_blocks(
        x.shape, x, values, inside, scale.to(x.device), _point(zero_point, offset, x),
        scale_shape=scale.shape,
    )  # fmt: skip
    generator = torch.Generator(x.device).manual_seed(scheme.seed)
    scratch = torch.empty(min(x.numel(), PIECE), device=x.device)
    ends: list[Tensor] = []
    for given, out, kept, step, point in pieces(*wide):
        if not given.numel():
            continue
        if not finite:
            ends += torch.aminmax(given)
        room = _room(scratch, given)
        if scheme.affine:
            _round_to_points(given, step, point, scheme, generator, room)
            torch.clamp(room, scheme.code_min, scheme.code_max, out=out)
            torch.eq(room, out, out=kept)
            _to_values_(out, step, point, scheme)
        else:
            unit = torch.div(given, step, out=room) if scheme.scaled else given
            out.copy_(scheme.format.decode(scheme.format.encode(unit)))
            kept.copy_((unit >= scheme.format.min) & (unit <= scheme.format.max))
            if scheme.scaled:
                out.mul_(step)
    return values, inside, not ends or bool(torch.isfinite(torch.stack(ends)).all())


def masked(gradient: Tensor, inside: Tensor) -> Tensor:
    """Return the gradient where ``inside``, else 0, even where it is infinite."""
    if torch.is_grad_enabled() or gradient.dtype != torch.float32:  # of a gradient's gradient
        return torch.where(inside, gradient, 0.0)
    result = fresh(gradient.shape, gradient.dtype, gradient.device)
    zero = torch.zeros((), device=gradient.device)
    flat = (result.view(-1), gradient.reshape(-1), inside.reshape(-1))
    for out, value, kept in pieces(*flat):
        torch.where(kept, value, zero, out=out)
    return result


def round_to_integer(
    x: Tensor, rounding: Rounding, generator: torch.Generator | None = None
) -> Tensor:
    """Return ``x`` rounded to integers in the given way, in the dtype of ``x``.

    >>> t = torch.tensor([-2.5, -0.5, 0.5, 1.5])
    >>> round_to_integer(t, "half_even").tolist(), round_to_integer(t, "half_away").tolist()
    ([-2.0, -0.0, 0.0, 2.0], [-3.0, -1.0, 1.0, 2.0])
    """
    return _round_(x.clone(), rounding, generator)


def _round_(x: Tensor, rounding: Rounding, generator: torch.Generator | None) -> Tensor:
    if rounding == "half_even":
        return x.round_()
    if rounding == "floor":
        return x.floor_()
    if rounding == "stochastic":
        # The fraction is exact; floor(x + u) would round a large whole x up now and then.
        whole = torch.floor(x)
        chance = torch.empty_like(x).uniform_(generator=generator)
        return whole.add_(chance < x.sub_(whole))
    # floor(x + 0.5) would round the float just below 0.5 up; the fraction x − trunc(x) is exact.
    whole = torch.trunc(x)
    return whole + torch.where((x - whole).abs() >= 0.5, torch.sign(x), 0.0)


def _round_to_points(
    x: Tensor,
    scale: Tensor,
    point: Tensor,
    scheme: Scheme,
    generator: torch.Generator,
    room: Tensor,
) -> None:
    if scheme.shifted:
        torch.add(x, point, out=room).div_(scale)
    else:
        torch.div(x, scale, out=room)
    if scheme.rounding == "half_even":
        room.round_()
    else:
        room.copy_(_round_(room, scheme.rounding, generator))
    if not scheme.symmetric and not scheme.shifted:
        room.add_(point)


def _to_values_(codes: Tensor, scale: Tensor, point: Tensor, scheme: Scheme) -> None:
    """Turn float32 codes of an integer format into the values they stand for, in place."""
    if scheme.shifted:
        codes.mul_(scale).sub_(point)
    elif scheme.symmetric:
        codes.mul_(scale)
    else:
        codes.sub_(point).mul_(scale)


def _to_codes(
    x: Tensor,
    scale: Tensor,
    point: Tensor,
    scheme: Scheme,
    generator: torch.Generator,
    room: Tensor,
) -> None:
    _round_to_points(x, scale, point, scheme, generator, room)
    room.clamp_(scheme.code_min, scheme.code_max)


def _room(scratch: Tensor, like: Tensor) -> Tensor:
    return scratch[: like.numel()].view(like.shape)


def _point(zero_point: Tensor, offset: Tensor | None, like: Tensor) -> Tensor:
    """Return what is subtracted: the offset of schemes that have one, else the zero point."""
    return (zero_point if offset is None else offset).to(like.device, torch.float32)

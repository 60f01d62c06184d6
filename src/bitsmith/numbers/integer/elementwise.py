"""QLinearAdd and QLinearMul: what ONNX Runtime computes for a sum or product of two activations.

The runtime adds and multiplies in float32, on x86 with fused multiply-adds where AVX2 has them.
Codes have 8 bits, so the whole operator is a table of 65,536 entries: it is built once per set
of encodings with slow exact arithmetic and then looked up.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.encoding import Encoding

__all__ = ["add", "fused_multiply_add", "mul"]

_INT32_LIMIT = float(1 << 31)


def add(a: Tensor, ea: Encoding, b: Tensor, eb: Encoding, ey: Encoding) -> Tensor:
    """Return QLinearAdd's codes of ``a + b``.

    With ``r_a = s_a / s_y``, ``r_b = s_b / s_y`` in float32 and
    ``fixed = z_y − fma(r_a, z_a, r_b · z_b)``, the runtime computes
    ``fma(a, r_a, fma(b, r_b, fixed))``, rounds half to even and saturates. Where ``a`` is the
    operand that repeats along the innermost axis, it changes places with ``b``. The runtime may
    move channels innermost first, so write a broadcast operand second: then both agree.

    Args:
        a, b: codes of the formats of ``ea`` and ``eb``; shapes broadcast.
        ea, eb, ey: encodings of the inputs and the output, all with the same format sign.

    Returns:
        codes of ``ey.format``.

    >>> from bitsmith.numbers.formats.integer import integer_format
    >>> e = Encoding(0.5, 10, integer_format(8, signed=False))
    >>> add(torch.tensor([12], dtype=torch.uint8), e, torch.tensor([9], dtype=torch.uint8), e, e)
    tensor([11], dtype=torch.uint8)
    """
    if _repeats_innermost(a, b):
        return _look_up(_add_table(eb, ea, ey), b, eb, a, ea)
    return _look_up(_add_table(ea, eb, ey), a, ea, b, eb)


def mul(a: Tensor, ea: Encoding, b: Tensor, eb: Encoding, ey: Encoding) -> Tensor:
    """Return QLinearMul's codes of ``a · b``.

    The runtime computes ``float32((a − z_a)(b − z_b)) · ((s_a · s_b) / s_y) + z_y`` with each
    step rounded to float32, then rounds half to even and saturates: ties depend on ``z_y``.

    Args:
        a, b: codes of the formats of ``ea`` and ``eb``; shapes broadcast.
        ea, eb, ey: encodings of the inputs and the output, all with the same format sign.

    Returns:
        codes of ``ey.format``.

    >>> from bitsmith.numbers.formats.integer import integer_format
    >>> e = Encoding(0.5, 10, integer_format(8, signed=False))
    >>> mul(torch.tensor([14], dtype=torch.uint8), e, torch.tensor([16], dtype=torch.uint8), e, e)
    tensor([22], dtype=torch.uint8)
    """
    return _look_up(_mul_table(ea, eb, ey), a, ea, b, eb)


def fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return ``a · b + c`` of float32 tensors with a single rounding, element by element.

    The product of two float32 is exact in float64. The float64 sum is rounded to odd (the
    neighbour with an odd last bit when inexact), after which rounding to float32 cannot round
    twice the wrong way (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums",
    IEEE Trans. Computers 57(4), 2008).
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    # The exact error of the sum (Knuth's two-sum).
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)
    is_even = (total.view(torch.int64) & 1) == 0
    toward = torch.where(error > 0, torch.inf, -torch.inf).to(torch.float64)
    odd = torch.where((error != 0) & is_even, torch.nextafter(total, toward), total)
    return odd.to(torch.float32)


def _repeats_innermost(a: Tensor, b: Tensor) -> bool:
    """Whether ``a`` has one element along the innermost axis that is not 1 in both."""
    for i in range(1, max(a.ndim, b.ndim) + 1):
        size_a = a.shape[-i] if i <= a.ndim else 1
        size_b = b.shape[-i] if i <= b.ndim else 1
        if size_a != 1 or size_b != 1:
            return size_a == 1
    return False


@functools.lru_cache(maxsize=256)
def _add_table(ea: Encoding, eb: Encoding, ey: Encoding) -> Tensor:
    """Codes of the sum of every pair of codes: ``[2^bits_a · 2^bits_b]``."""
    sa, sb, sy = (torch.tensor(e.scale, dtype=torch.float32) for e in (ea, eb, ey))
    ra, rb = sa / sy, sb / sy
    za, zb, zy = (torch.tensor(float(e.zero_point)) for e in (ea, eb, ey))
    fixed = zy - fused_multiply_add(ra, za, rb * zb)
    a, b = _code_grid(ea, eb)
    inner = fused_multiply_add(b, rb, fixed)
    return _saturate(fused_multiply_add(a, ra, inner), ey).flatten()


@functools.lru_cache(maxsize=256)
def _mul_table(ea: Encoding, eb: Encoding, ey: Encoding) -> Tensor:
    """Codes of the product of every pair of codes: ``[2^bits_a · 2^bits_b]``."""
    sa, sb, sy = (torch.tensor(e.scale, dtype=torch.float32) for e in (ea, eb, ey))
    ratio = sa * sb / sy
    a, b = _code_grid(ea, eb)
    product = (a - ea.zero_point) * (b - eb.zero_point)
    return _saturate(product * ratio + ey.zero_point, ey).flatten()


def _code_grid(ea: Encoding, eb: Encoding) -> tuple[Tensor, Tensor]:
    """All codes of ``a`` as a column and of ``b`` as a row, in float32."""
    a, b = (e.format.codes.to(torch.float32) for e in (ea, eb))
    return a[:, None].expand(-1, b.numel()), b[None, :].expand(a.numel(), -1)


def _saturate(v: Tensor, ey: Encoding) -> Tensor:
    # cvtps2dq gives −2^31 for anything that is no int32, which saturates to the lowest code.
    v = torch.where(v.abs() < _INT32_LIMIT, v, -_INT32_LIMIT)
    return v.round().clamp(ey.format.code_min, ey.format.code_max).to(ey.format.dtype)


def _look_up(table: Tensor, a: Tensor, ea: Encoding, b: Tensor, eb: Encoding) -> Tensor:
    wrong = [
        f"{name} holds {t.dtype}, its encoding {e.format}"
        for name, t, e in (("a", a, ea), ("b", b, eb))
        if t.dtype != e.format.dtype
    ]
    if wrong:
        raise DataError(f"codes and encodings disagree: {'; '.join(wrong)}")
    row = (a.to(torch.int32) - ea.format.code_min) << eb.format.bits
    index = row + (b.to(torch.int32) - eb.format.code_min)
    return table.index_select(0, index.flatten()).view(index.shape)

"""Lossless dense packing of 1- to 8-bit codes.

One little-endian bit stream: code ``i`` occupies bits ``[i·b, (i+1)·b)`` of the stream, bit
``j`` of the stream is bit ``j mod 8`` of byte ``j // 8``; unused bits of the last byte are 0.
Signed codes are stored in two's complement.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitsmith.errors import DataError, SchemeError

__all__ = ["pack", "packed_bytes", "unpack"]


def packed_bytes(n: int, bits: int) -> int:
    """Return the bytes that ``n`` codes of ``bits`` bits take: ``ceil(n·bits / 8)``.

    >>> packed_bytes(3, 3)
    2
    """
    if not 1 <= bits <= 8:
        raise SchemeError(f"codes of 1 to 8 bits can be packed, not {bits}")
    return (n * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return ``codes`` as a dense bit stream, uint8 ``[ceil(n·bits / 8)]``.

    Args:
        codes: integers of any integer dtype and shape, in row-major order; either all in
            ``0 … 2^bits − 1`` or all in ``−2^(bits−1) … 2^(bits−1) − 1``.
        bits: 1 to 8.

    Raises:
        DataError: ``codes`` are not integers, or some do not fit.

    >>> pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist()
    [33, 3]
    """
    n_bytes = packed_bytes(codes.numel(), bits)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise DataError(f"codes to pack are integers, not {codes.dtype}")
    if codes.numel() == 0:
        return torch.zeros(0, dtype=torch.uint8, device=codes.device)
    low, high = (int(v) for v in torch.aminmax(codes))
    fits = high < 1 << bits if low >= 0 else low >= -(1 << bits - 1) and high < 1 << bits - 1
    if not fits:
        raise DataError(f"codes from {low} to {high} do not fit in {bits} bits")
    flat = codes.reshape(-1)
    if bits == 8:
        return flat.to(torch.uint8).clone()
    groups = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).reshape(-1, 8)  # [G, 8]
    word = torch.zeros(len(groups), dtype=torch.int64, device=codes.device)  # bits·8 ≤ 56 bits
    for i in range(8):
        word |= (groups[:, i].to(torch.int64) & ((1 << bits) - 1)) << (bits * i)
    columns = [(word >> (8 * k)).to(torch.uint8) for k in range(bits)]
    return torch.stack(columns, 1).reshape(-1)[:n_bytes]  # [G, bits] → [n_bytes]


def unpack(packed: Tensor, bits: int, n: int, signed: bool) -> Tensor:
    """Return the ``n`` codes of a bit stream, int8 or uint8 ``[n]``, the inverse of :func:`pack`.

    Raises:
        DataError: ``packed`` is not uint8 or not exactly the bytes of ``n`` codes.

    >>> unpack(torch.tensor([33, 3], dtype=torch.uint8), 4, 3, signed=False).tolist()
    [1, 2, 3]
    """
    if packed.dtype != torch.uint8 or packed.shape != (packed_bytes(n, bits),):
        raise DataError(
            f"{n} codes of {bits} bits are uint8 of shape ({packed_bytes(n, bits)},), "
            f"not {packed.dtype} of shape {tuple(packed.shape)}"
        )
    if bits == 8:
        return packed.view(torch.int8).clone() if signed else packed.clone()
    columns = torch.nn.functional.pad(packed, (0, -packed.numel() % bits)).reshape(-1, bits)
    word = torch.zeros(len(columns), dtype=torch.int64, device=packed.device)
    for k in range(bits):
        word |= columns[:, k].to(torch.int64) << (8 * k)
    mask, sign = (1 << bits) - 1, (1 << (bits - 1)) if signed else 0
    dtype = torch.int8 if signed else torch.uint8
    codes = [((((word >> (bits * i)) & mask) ^ sign) - sign).to(dtype) for i in range(8)]
    return torch.stack(codes, 1).reshape(-1)[:n]

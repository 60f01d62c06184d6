"""Lossless dense packing of 1- to 8-bit codes.

One little-endian bit stream: code ``i`` occupies bits ``[i·b, (i+1)·b)`` of the stream, bit
``j`` of the stream is bit ``j mod 8`` of byte ``j // 8``; unused bits of the last byte are 0.
Signed codes are stored in two's complement.

Eight codes of a byte each are one 64-bit word. Three times, neighbouring fields of the word move
together, to pairs, to fours, to all eight; the low ``b`` bytes are then the stream.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from bitsmith.errors import DataError, SchemeError
from bitsmith.numbers.pieces import PIECE, fresh

__all__ = ["pack", "packed_bytes", "unpack"]

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""Widths at which the low bytes of a word are a number of their own."""


def packed_bytes(n: int, bits: int) -> int:
    """Return the bytes that ``n`` codes of ``bits`` bits take: ``ceil(n·bits / 8)``.

    >>> packed_bytes(3, 3)
    2
    """
    if not 1 <= bits <= 32:
        raise SchemeError(f"codes have 1 to 32 bits, not {bits}")
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
    _check_bits(bits)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise DataError(f"codes to pack are integers, not {codes.dtype}")
    flat = codes.reshape(-1)
    packed = fresh((packed_bytes(len(flat), bits),), torch.uint8, codes.device)
    if not len(flat):
        return packed
    low, high = (int(v) for v in torch.aminmax(flat))
    fits = high < 1 << bits if low >= 0 else low >= -(1 << bits - 1) and high < 1 << bits - 1
    if not fits:
        raise DataError(f"codes from {low} to {high} do not fit in {bits} bits")
    if bits == 8:
        return packed.copy_(flat)
    for given, stream in _octets(flat, packed, bits):
        given = given.to(torch.int8)
        if bits == 4:  # the width that most weights have: pairs, without the way to eight
            stream.copy_(_nibbles(given.view(torch.int16)))
        else:
            stream.copy_(_low_bytes(_gather(given.view(torch.int64), bits), bits))
    if rest := len(flat) % 8:
        last = torch.nn.functional.pad(flat[-rest:].to(torch.int8), (0, 8 - rest))
        octet = _low_bytes(_gather(last.view(torch.int64), bits), bits)
        packed[len(flat) // 8 * bits :] = octet[: packed_bytes(rest, bits)]
    return packed


def unpack(packed: Tensor, bits: int, n: int, signed: bool) -> Tensor:
    """Return the ``n`` codes of a bit stream, int8 or uint8 ``[n]``, the inverse of :func:`pack`.

    Raises:
        DataError: ``packed`` is not uint8 or not exactly the bytes of ``n`` codes.

    >>> unpack(torch.tensor([33, 3], dtype=torch.uint8), 4, 3, signed=False).tolist()
    [1, 2, 3]
    """
    _check_bits(bits)
    if packed.dtype != torch.uint8 or packed.shape != (packed_bytes(n, bits),):
        raise DataError(
            f"{n} codes of {bits} bits are uint8 of shape ({packed_bytes(n, bits)},), "
            f"not {packed.dtype} of shape {tuple(packed.shape)}"
        )
    dtype = torch.int8 if signed else torch.uint8
    if bits == 8:
        return packed.view(dtype).clone()
    codes = fresh((n,), dtype, packed.device)
    for out, stream in _octets(codes, packed, bits):
        out.copy_(_codes(_words(stream, bits), bits, signed).view(dtype))
    if rest := n % 8:
        last = packed[n // 8 * bits :]
        octet = torch.nn.functional.pad(last, (0, bits - len(last)))
        codes[n - rest :] = _codes(_words(octet, bits), bits, signed).view(dtype)[:rest]
    return codes


def _octets(codes: Tensor, packed: Tensor, bits: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Give pieces of whole groups of eight codes, each with its part of the stream."""
    whole = len(codes) // 8 * 8
    for start in range(0, whole, PIECE):
        end = min(start + PIECE, whole)
        yield codes[start:end], packed[start // 8 * bits : end // 8 * bits]


def _gather(words: Tensor, bits: int) -> Tensor:
    """Move eight fields of ``bits`` bits, one a byte, to the low end of their int64."""
    for lane, width in ((8, bits), (16, 2 * bits), (32, 4 * bits)):
        even = _mask(width, 2 * lane)
        odd = (words >> (lane - width)).bitwise_and_(even << width)
        words = (words & even).bitwise_or_(odd)
    return words


def _nibbles(pairs: Tensor) -> Tensor:
    """Return two codes of four bits, a byte each of an int16, in its low byte."""
    return (pairs >> 4).bitwise_and_(0xF0).bitwise_or_(pairs & 0x0F)


def _codes(words: Tensor, bits: int, signed: bool) -> Tensor:
    """Move eight fields from the low end to a byte each: int8, with the sign extended or not."""
    for lane, width in ((32, 4 * bits), (16, 2 * bits), (8, bits)):
        even = _mask(width, 2 * lane)
        odd = (words << (lane - width)).bitwise_and_(even << lane)
        words = (words & even).bitwise_or_(odd)
    codes = words.view(torch.int8)
    if not signed:
        return codes
    sign = 1 << (bits - 1)
    return codes.bitwise_xor_(sign).sub_(sign)


def _low_bytes(words: Tensor, bits: int) -> Tensor:
    if bits in _WHOLE:
        return words.to(_WHOLE[bits]).view(torch.uint8)
    return words.view(torch.uint8).view(-1, 8)[:, :bits].reshape(-1)


def _words(stream: Tensor, bits: int) -> Tensor:
    """Return the int64 words whose low ``bits`` bytes are ``stream``; what is above may be set."""
    if bits in _WHOLE and stream.storage_offset() % bits == 0:
        return stream.view(_WHOLE[bits]).to(torch.int64)
    wide = torch.zeros(len(stream) // bits, 8, dtype=torch.uint8, device=stream.device)
    wide[:, :bits] = stream.view(-1, bits)
    return wide.view(-1).view(torch.int64)


def _mask(width: int, lane: int) -> int:
    """Return the int64 with the low ``width`` bits of each ``lane`` bits set."""
    return sum(((1 << width) - 1) << at for at in range(0, 64, lane))


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise SchemeError(f"codes of 1 to 8 bits can be packed, not {bits}")
    if sys.byteorder != "little":
        raise SchemeError("packing reads bytes as little-endian words, which this machine is not")

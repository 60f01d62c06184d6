"""Lossless entropy coding of codes: canonical, length-limited Huffman, decoded in lockstep.

Layout: the code words of the symbols in order, each with its most significant bit first, bit j of
the stream being bit ``7 − j mod 8`` of byte ``j // 8``; unused bits of the last byte are 0. Code
words are canonical: ordered by length, then by symbol, so the lengths say it all. Every
4096 symbols make a block whose bits are counted, so that blocks are decoded side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bitsmith.errors import DataError, SchemeError

__all__ = ["HuffmanStream", "entropy_bits", "huffman_decode", "huffman_encode", "huffman_lengths"]

Array = npt.NDArray[Any]

_LONGEST = 16  # bits of a code word: a table of 65,536 entries decodes
_BLOCK = 4096  # symbols
_PIECE = 256  # blocks coded at a time, about a million symbols


@final
@dataclass(frozen=True)
class HuffmanStream:
    """Codes in as few bits as whole-bit code words allow; everything that is stored.

    Attributes:
        lengths: bits of each symbol's code word, uint8 ``[n_symbols]``, 0 for unused symbols. A
            symbol that is alone has length 1 and takes no bits in the stream.
        block_bits: bits of each block of 4096 symbols, int32 ``[ceil(count / 4096)]``.
        stream: uint8 ``[ceil(sum(block_bits) / 8)]``.
        count: number of symbols.
    """

    lengths: Tensor
    block_bits: Tensor
    stream: Tensor
    count: int

    @property
    def nbytes(self) -> int:
        """Return the bytes of lengths, block sizes, stream and an 8-byte count."""
        return self.lengths.numel() + 4 * self.block_bits.numel() + self.stream.numel() + 8


def entropy_bits(codes: Tensor, n_symbols: int) -> float:
    """Return Shannon's bound ``−Σ p·log2 p`` in bits per symbol; 0 for no codes.

    Raises:
        DataError: codes are not integers in 0 … n_symbols − 1.
        SchemeError: n_symbols is not 1 to 256.

    >>> entropy_bits(torch.tensor([0, 0, 1, 2]), 3)
    1.5
    """
    counts = _counts(codes, n_symbols).double()
    p = counts[counts > 0] / max(1, codes.numel())
    return max(0.0, float(-(p * p.log2()).sum()))


def huffman_lengths(counts: Tensor) -> Tensor:
    """Return the code lengths, at most 16 bits, of least total size; uint8 ``[n_symbols]``.

    Package-merge (Larmore & Hirschberg 1990): optimal among prefix codes of limited length, equal
    to Huffman's (1952) where that stays within the limit. Ties are broken by symbol, so that the
    lengths depend on the counts alone. ``Σ 2^−length = 1``, except that a symbol that is alone
    has length 1; unused symbols have length 0.

    Args:
        counts: how often each symbol occurs, integers ≥ 0, ``[n_symbols]``.

    Raises:
        DataError: counts are not a vector of integers ≥ 0.
        SchemeError: not 1 to 256 symbols.

    >>> huffman_lengths(torch.tensor([5, 1, 1, 0])).tolist()
    [1, 2, 2, 0]
    """
    if counts.ndim != 1 or not _is_integer(counts) or (counts < 0).any():
        raise DataError(f"counts are integers >= 0 [n_symbols], not {counts.dtype} or negative")
    _check_symbols(counts.numel())
    lengths = [0] * counts.numel()
    leaves = sorted((c, s, True) for s, c in enumerate(counts.tolist()) if c > 0)
    if len(leaves) == 1:
        lengths[leaves[0][1]] = 1
        leaves = []
    levels, packages = [], list[tuple[int, int, bool]]()
    for _ in range(_LONGEST):
        merged = sorted(leaves + packages)
        levels.append([leaf for _, _, leaf in merged])
        pairs = zip(merged[::2], merged[1::2], strict=False)
        packages = [(a[0] + b[0], len(lengths), False) for a, b in pairs]
    taken = max(0, 2 * len(leaves) - 2)
    for level in reversed(levels):  # the cheapest items; a package stands for two one level down
        cheap = sum(level[:taken])
        for _, symbol, _ in leaves[:cheap]:
            lengths[symbol] += 1
        taken = 2 * (taken - cheap)
    return torch.tensor(lengths, dtype=torch.uint8)


def huffman_encode(codes: Tensor, n_symbols: int) -> HuffmanStream:
    """Return ``codes``, in row-major order, as a stream (Deep Compression, arXiv 1510.00149, 4).

    Between :func:`entropy_bits` and one bit more per symbol, plus the stored lengths and block
    sizes. On the CPU.

    Args:
        codes: integers 0 … n_symbols − 1 of any integer dtype and shape, also empty.
        n_symbols: 1 to 256.

    Raises:
        DataError: codes are not integers in that range.
        SchemeError: n_symbols out of range.

    >>> s = huffman_encode(torch.tensor([2, 0, 0, 1], dtype=torch.uint8), 3)
    >>> s.lengths.tolist(), s.stream.tolist()      # 0 → 0, 1 → 10, 2 → 11
    ([1, 2, 2], [200])
    """
    lengths = huffman_lengths(_counts(codes, n_symbols))
    flat = codes.detach().reshape(-1).cpu()
    bits = lengths.long() * int(int((lengths > 0).sum()) > 1)  # a lone symbol takes none
    words = _code_words(lengths)
    sizes, stream, start = [], [], 0
    carry = 0  # the byte that the last piece left unfinished
    for piece in torch.split(flat, _PIECE * _BLOCK) if len(flat) else ():
        symbol = piece.long()
        length = bits[symbol]
        ends = start + length.cumsum(0)
        blocks = torch.nn.functional.pad(length, (0, -len(length) % _BLOCK)).view(-1, _BLOCK)
        sizes.append(blocks.sum(1).to(torch.int32))
        packed = _place(words[symbol], length, ends)
        packed[0] += carry
        end = int(ends[-1])
        whole, start = end // 8, end % 8
        stream.append(packed[:whole].to(torch.uint8))
        carry = int(packed[whole])
    if start:
        stream.append(torch.tensor([carry], dtype=torch.uint8))
    empty = torch.zeros(0, dtype=torch.uint8)
    block_bits = torch.cat([empty.to(torch.int32), *sizes])
    return HuffmanStream(lengths, block_bits, torch.cat([empty, *stream]), len(flat))


def huffman_decode(stream: HuffmanStream) -> Tensor:
    """Return the codes, uint8 ``[count]``, the inverse of :func:`huffman_encode`.

    A table look-up a symbol, all blocks at once. A stream whose parts do not fit together is
    refused; bits that were changed without changing any block's size cannot be noticed.

    Raises:
        DataError: the stream is damaged: wrong types or sizes, lengths that are no complete
            prefix code, blocks that are too long or too short, or that end inside a code word.

    >>> huffman_decode(huffman_encode(torch.tensor([7, 7, 3]), 8)).tolist()
    [7, 7, 3]
    """
    _check_stream(stream)
    used = (stream.lengths > 0).nonzero()[:, 0]
    if len(used) <= 1:
        return used.to(torch.uint8).expand(stream.count).clone()
    longest = int(stream.lengths.max())
    table = _table(stream.lengths, longest)
    codes = np.empty((len(stream.block_bits), _BLOCK), np.uint8)
    ends = np.cumsum(stream.block_bits.numpy(), dtype=np.int64)
    starts = ends - stream.block_bits.numpy()
    for first in range(0, len(starts), _PIECE):
        part = slice(first, first + _PIECE)
        last = stream.count - (len(starts) - 1) * _BLOCK if part.stop >= len(starts) else _BLOCK
        begin = int(starts[first]) // 8
        window = _windows(stream.stream[begin : int(ends[part][-1] + 7) // 8].numpy())
        place = starts[part] - 8 * begin
        decoded, stopped = _lockstep(window, place, table, longest, last)
        if bad := int((stopped != ends[part] - 8 * begin).sum()):
            raise DataError(
                f"damaged Huffman stream: {bad} of the blocks {first} to "
                f"{first + len(place) - 1} do not end with a code word; restore the file"
            )
        codes[part] = decoded
    return torch.from_numpy(codes.reshape(-1)[: stream.count].copy())


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _check_symbols(n_symbols: int) -> None:
    if not 1 <= n_symbols <= 256:
        raise SchemeError(f"an alphabet has 1 to 256 symbols, not {n_symbols}")


def _counts(codes: Tensor, n_symbols: int) -> Tensor:
    """Return how often each symbol occurs, int64 ``[n_symbols]``, after checking the codes."""
    _check_symbols(n_symbols)
    if not _is_integer(codes):
        raise DataError(f"codes to encode are integers, not {codes.dtype}")
    if codes.numel():
        low, high = (int(v) for v in torch.aminmax(codes))
        if low < 0 or high >= n_symbols:
            raise DataError(f"codes from {low} to {high} are not all in 0 to {n_symbols - 1}")
    flat = codes.detach().reshape(-1)
    return torch.bincount(flat, minlength=n_symbols).cpu()


def _code_words(lengths: Tensor) -> Tensor:
    """Return the canonical code word of each symbol as a number, int64 ``[n_symbols]``."""
    order = torch.argsort(lengths, stable=True)
    order = order[lengths[order] > 0]
    share = 1 << (_LONGEST - lengths[order].long())  # of the 2^16 longest words
    words = torch.zeros(len(lengths), dtype=torch.int64)
    words[order] = (share.cumsum(0) - share) >> (_LONGEST - lengths[order].long())
    return words


def _place(words: Tensor, length: Tensor, ends: Tensor) -> Tensor:
    """Return bytes, int32, with each word's bits up to bit ``ends`` of the stream, and one more."""
    begin = ends - length
    shifted = (words << (24 - length - begin % 8)).to(torch.int32)  # over three bytes
    packed = torch.zeros(int(ends[-1]) // 8 + 4, dtype=torch.int32)
    for byte in range(3):
        packed.index_add_(0, begin // 8 + byte, (shifted >> (16 - 8 * byte)) & 255)
    return packed


def _table(lengths: Tensor, longest: int) -> Array:
    """Return ``symbol·32 + length`` for each of the next ``longest`` bits, ``[2^longest]``."""
    order = torch.argsort(lengths, stable=True)
    order = order[lengths[order] > 0]
    repeats = 1 << (longest - lengths[order].long())
    entries = (order * 32 + lengths[order].long()).repeat_interleave(repeats)
    return entries.to(torch.int32).numpy()


def _windows(data: Array) -> Array:
    """Return the 24 bits from each byte on, and zeros as far as a damaged block can run."""
    beyond = np.zeros(_BLOCK * _LONGEST // 8 + 4, np.int32)
    wide = np.concatenate([data.astype(np.int32), beyond])
    return np.asarray((wide[:-2] << 16) | (wide[1:-1] << 8) | wide[2:])


def _lockstep(
    window: Array, place: Array, table: Array, longest: int, last: int
) -> tuple[Array, Array]:
    """Return the symbols ``[blocks, 4096]`` and the bit after each block's last.

    ``place`` is the bit at which each block begins, ``last`` the symbols of the last block.
    """
    place, symbols = place.copy(), np.zeros((_BLOCK, len(place)), np.uint8)
    active, shift, mask = place, 24 - longest, (1 << longest) - 1
    for step in range(_BLOCK if len(place) > 1 else last):
        if step == last:
            active = place[:-1]
        entry = table[(window[active >> 3] >> (shift - (active & 7))) & mask]
        symbols[step, : len(active)] = entry >> 5
        active += entry & 31
    return symbols.T, place


def _check_stream(stream: HuffmanStream) -> None:
    """Raise DataError, with everything that is wrong, unless the parts fit together."""
    lengths, blocks, data = stream.lengths, stream.block_bits, stream.stream
    wrong = [
        f"{name} is {t.dtype} of shape {tuple(t.shape)}, not a vector of {dtype}"
        for name, t, dtype in (
            ("lengths", lengths, torch.uint8),
            ("block_bits", blocks, torch.int32),
            ("stream", data, torch.uint8),
        )
        if t.dtype != dtype or t.ndim != 1
    ]
    if wrong:
        raise DataError("damaged Huffman stream: " + "; ".join(wrong))
    used = lengths[lengths > 0].tolist()
    if not 1 <= len(lengths) <= 256 or max(used, default=0) > _LONGEST:
        wrong.append(f"{len(lengths)} lengths up to {max(used, default=0)}, not 1 to 256 up to 16")
    elif sum(2.0**-n for n in used) != 1.0 and used != [1] and (used or stream.count):
        total = sum(2.0**-n for n in used)
        wrong.append(f"the lengths fill {total:g} of the code space, not all of it")
    if len(blocks) != math.ceil(max(0, stream.count) / _BLOCK) or stream.count < 0:
        wrong.append(f"{len(blocks)} blocks of {_BLOCK} for {stream.count} symbols")
    elif len(blocks) and (blocks.min() < 0 or blocks.max() > _BLOCK * _LONGEST):
        wrong.append(f"blocks of {int(blocks.min())} to {int(blocks.max())} bits")
    elif data.numel() != -(-int(blocks.sum()) // 8):
        wrong.append(f"{data.numel()} bytes for blocks of {int(blocks.sum())} bits in all")
    elif len(used) == 1 and blocks.any():
        wrong.append("bits for a symbol that is alone")
    if wrong:
        raise DataError("damaged Huffman stream: " + "; ".join(wrong) + "; restore the file")

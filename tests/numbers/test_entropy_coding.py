"""Huffman coding: lossless, optimal, and safe with damaged streams."""

from __future__ import annotations

import contextlib
import heapq
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from bitsmith.errors import DataError, SchemeError
from bitsmith.numbers import entropy_coding
from bitsmith.numbers.entropy_coding import (
    HuffmanStream,
    entropy_bits,
    huffman_decode,
    huffman_encode,
    huffman_lengths,
)


def huffman_cost(counts: list[int]) -> int:
    """Bits of an unlimited Huffman code, by the two-smallest rule."""
    heap = [c for c in counts if c]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


def read_by_hand(stream: HuffmanStream) -> list[int]:
    """Decode bit by bit with a dictionary of canonical code words."""
    words, word, before = {}, 0, 0
    lengths = stream.lengths.tolist()
    for length, symbol in sorted((n, s) for s, n in enumerate(lengths) if n):
        word <<= length - before
        words[format(word, f"0{length}b")] = symbol
        word, before = word + 1, length
    bits = "".join(format(b, "08b") for b in stream.stream.tolist())
    out, start = [], 0
    while len(out) < stream.count:
        stop = start + 1
        while bits[start:stop] not in words:
            stop += 1
        out.append(words[bits[start:stop]])
        start = stop
    assert set(bits[start:]) <= {"0"}
    assert len(bits) - start < 8
    return out


def skewed(n: int, symbols: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(n).exponential_(3 / symbols, generator=generator).long() % symbols


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 2**48), min_size=1, max_size=256))
def test_lengths_are_a_complete_code_of_least_size(counts):
    lengths = huffman_lengths(torch.tensor(counts))
    used = [(c, n) for c, n in zip(counts, lengths.tolist(), strict=True) if c]
    assert all(n == 0 for c, n in zip(counts, lengths.tolist(), strict=True) if not c)
    if len(used) == 1:
        assert used[0][1] == 1
        return
    assert sum(2 ** (16 - n) for _, n in used) == (2**16 if used else 0)
    assert all(1 <= n <= 16 for _, n in used)
    cost = sum(c * n for c, n in used)
    assert cost >= huffman_cost(counts)
    if max((n for _, n in used), default=0) < 16:
        assert cost == huffman_cost(counts)


def test_lengths_are_limited_where_huffman_would_exceed():
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = huffman_lengths(torch.tensor(fibonacci)).tolist()
    assert max(lengths) == 16
    assert sum(2.0**-n for n in lengths) == 1
    assert lengths == sorted(lengths, reverse=True)
    cost = sum(c * n for c, n in zip(fibonacci, lengths, strict=True))
    assert huffman_cost(fibonacci) < cost < 1.001 * huffman_cost(fibonacci)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 256), st.integers(0, 300), st.integers(0, 10))
def test_round_trip(symbols, n, seed):
    codes = skewed(n, symbols, seed)
    stream = huffman_encode(codes, symbols)
    assert torch.equal(huffman_decode(stream), codes.to(torch.uint8))
    if len(codes.unique()) > 1:
        assert read_by_hand(stream) == codes.tolist()


@pytest.mark.parametrize("n", [4095, 4096, 4097, 8192, 50_001])
@pytest.mark.parametrize("pieces", [1, 3, 256])
def test_round_trip_over_many_blocks_and_pieces(n, pieces, monkeypatch):
    codes = skewed(n, 40)
    whole = huffman_encode(codes, 40)
    monkeypatch.setattr(entropy_coding, "_PIECE", pieces)
    stream = huffman_encode(codes.reshape(1, -1).to(torch.int32), 40)
    assert torch.equal(stream.stream, whole.stream)
    assert torch.equal(stream.block_bits, whole.block_bits)
    assert torch.equal(huffman_decode(stream), codes.to(torch.uint8))


def test_size_is_near_the_entropy_and_counts_everything():
    codes = skewed(100_000, 16)
    stream = huffman_encode(codes, 16)
    bound = entropy_bits(codes, 16)
    assert bound == pytest.approx(entropy(torch.bincount(codes).numpy(), base=2), rel=1e-12)
    assert bound <= stream.stream.numel() * 8 / 100_000 < bound + 0.1
    assert stream.nbytes == 16 + 4 * 25 + stream.stream.numel() + 8


def test_one_symbol_and_none():
    alone = huffman_encode(torch.full((5000,), 3, dtype=torch.uint8), 4)
    assert alone.stream.numel() == 0
    assert huffman_decode(alone).tolist() == [3] * 5000
    assert entropy_bits(torch.full((5,), 3), 4) == 0
    empty = huffman_encode(torch.zeros(0, 3, dtype=torch.int64), 1)
    assert huffman_decode(empty).shape == (0,)
    assert empty.nbytes == 1 + 8
    assert entropy_bits(torch.zeros(0, dtype=torch.int8), 2) == 0


def test_codes_that_cannot_be_encoded():
    for codes in (torch.tensor([0, 4]), torch.tensor([-1, 0])):
        with pytest.raises(DataError, match="not all in 0 to 3"):
            huffman_encode(codes, 4)
    with pytest.raises(DataError, match="integers"):
        huffman_encode(torch.tensor([0.0]), 4)
    for symbols in (0, 257):
        with pytest.raises(SchemeError, match="1 to 256"):
            huffman_encode(torch.tensor([0]), symbols)
    with pytest.raises(DataError, match="counts"):
        huffman_lengths(torch.tensor([-1]))


DAMAGE = {
    "truncated": (lambda s: {"stream": s.stream[:-1]}, "bytes for blocks"),
    "longer": (lambda s: {"stream": torch.cat([s.stream, s.stream[:1]])}, "bytes for blocks"),
    "kraft above": (lambda s: {"lengths": torch.ones_like(s.lengths)}, "code space"),
    "kraft below": (lambda s: {"lengths": torch.full_like(s.lengths, 16)}, "code space"),
    "no lengths": (lambda s: {"lengths": torch.zeros_like(s.lengths)}, "code space"),
    "long word": (lambda s: {"lengths": s.lengths + 200}, "up to 16"),
    "too many": (lambda s: {"lengths": s.lengths.repeat(100)}, "not 1 to 256"),
    "negative count": (lambda s: {"count": -5}, "symbols"),
    "huge count": (lambda s: {"count": 2**60}, "symbols"),
    "short count": (lambda s: {"count": s.count - 1}, "do not end"),
    "long count": (lambda s: {"count": s.count + 1}, "do not end"),
    "negative block": (lambda s: {"block_bits": s.block_bits * -1}, "bits"),
    "huge block": (lambda s: {"block_bits": s.block_bits * 2**10}, "bits"),
    "moved block": (
        lambda s: {"block_bits": s.block_bits + torch.tensor([8, -8, 0], dtype=torch.int32)},
        "do not end",
    ),
    "missing block": (lambda s: {"block_bits": s.block_bits[1:]}, "blocks of 4096"),
    "types": (lambda s: {"stream": s.stream.int(), "lengths": s.lengths[None]}, "lengths.*stream"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_stream_is_refused(damage):
    stream = huffman_encode(skewed(10_000, 12), 12)
    change, message = DAMAGE[damage]
    with pytest.raises(DataError, match=message):
        huffman_decode(replace(stream, **change(stream)))


def test_bits_for_a_symbol_that_is_alone_are_refused():
    alone = huffman_encode(torch.zeros(10, dtype=torch.uint8), 2)
    bits = torch.tensor([8], dtype=torch.int32)
    with pytest.raises(DataError, match="alone"):
        huffman_decode(replace(alone, block_bits=bits, stream=torch.zeros(1, dtype=torch.uint8)))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 20))
def test_random_damage_never_crashes(seed, flips):
    """Flipped bits give either other codes of the right count, or DataError."""
    stream = huffman_encode(skewed(5000, 9), 9)
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(len(stream.stream), (flips,), generator=generator)
    noise = torch.randint(1, 256, (flips,), generator=generator).to(torch.uint8)
    bad = stream.stream.clone()
    bad[places] ^= noise
    damaged = replace(stream, stream=bad)
    with contextlib.suppress(DataError):
        assert len(huffman_decode(damaged)) == 5000

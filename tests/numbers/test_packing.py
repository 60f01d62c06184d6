"""Packing against an independent bit stream written with Python integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsmith.errors import DataError, SchemeError
from bitsmith.numbers.packing import pack, packed_bytes, unpack


def reference(codes: list[int], bits: int) -> list[int]:
    """One big integer: code i at bit i·bits."""
    stream = sum((c & (2**bits - 1)) << (i * bits) for i, c in enumerate(codes))
    return list(stream.to_bytes((len(codes) * bits + 7) // 8, "little"))


@given(st.data(), st.integers(1, 8), st.booleans(), st.integers(0, 40))
def test_packing_is_a_little_endian_bit_stream_and_lossless(
    data: st.DataObject, bits: int, signed: bool, n: int
) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    codes = data.draw(st.lists(st.integers(low, high), min_size=n, max_size=n))
    x = torch.tensor(codes, dtype=torch.int8 if signed else torch.uint8)
    packed = pack(x, bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == reference(codes, bits)
    assert len(packed) == packed_bytes(n, bits)
    assert torch.equal(unpack(packed, bits, n, signed), x)


@pytest.mark.parametrize("bits", range(1, 9))
def test_large_non_contiguous_tensors_pack_in_row_major_order(bits: int) -> None:
    x = torch.randint(0, 2**bits, (37, 101), generator=torch.Generator().manual_seed(bits)).T
    packed = pack(x, bits)
    assert torch.equal(unpack(packed, bits, x.numel(), False).view(x.shape).long(), x)
    assert len(packed) == -(-x.numel() * bits // 8)


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="codes from 0 to 16 do not fit in 4 bits"):
        pack(torch.tensor([0, 16]), 4)
    with pytest.raises(DataError, match="codes from -1 to 8 do not fit in 4 bits"):
        pack(torch.tensor([-1, 8]), 4)
    with pytest.raises(DataError, match="codes from -9 to 0"):
        pack(torch.tensor([-9, 0]), 4)
    for codes in (torch.tensor([1.0]), torch.tensor([True])):
        with pytest.raises(DataError, match="integers, not"):
            pack(codes, 4)
    for bits in (0, 9):
        with pytest.raises(SchemeError, match=f"not {bits}"):
            pack(torch.tensor([0]), bits)
    with pytest.raises(DataError, match=r"uint8 of shape \(2,\)"):
        unpack(torch.zeros(3, dtype=torch.uint8), 4, 3, True)
    with pytest.raises(DataError, match="int8"):
        unpack(torch.zeros(2, dtype=torch.int8), 4, 3, True)

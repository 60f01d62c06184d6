"""The bytes of GGUF's blocks: the ``gguf`` package reads from them exactly our values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitsmith.deploy.export.gguf.block_types import BLOCK_TYPES, BlockType, block_type, misfit
from bitsmith.deploy.export.gguf.blocks import from_blocks, to_blocks
from bitsmith.errors import UnknownNameError, WeightsError
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.block_search import search_blocks
from bitsmith.numbers.formats.integer import int4, int8, uint4
from bitsmith.numbers.formats.minifloat import bf16, fp16
from bitsmith.numbers.pieces import PIECE
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import PerGroup, Scheme

gguf = pytest.importorskip("gguf")

KINDS = pytest.mark.parametrize("kind", BLOCK_TYPES.values(), ids=BLOCK_TYPES)


def theirs(raw: torch.Tensor, kind: BlockType) -> torch.Tensor:
    """What the package makes of bytes ``[rows, bytes]``."""
    number = gguf.GGMLQuantizationType[kind.name]
    with np.errstate(all="ignore"):
        return torch.from_numpy(gguf.quants.dequantize(raw.numpy(), number))


def bytes_of(q: QTensor, kind: BlockType) -> torch.Tensor:
    return torch.cat(list(to_blocks(q, kind))).reshape(q.shape[0], -1)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def hard_values() -> torch.Tensor:
    """Rows of 512: ordinary, heavy tails, zeros, denormals, one sign, constants, outliers."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 512, generator=g)
    x[1] = x[1] ** 3
    x[2] = 0
    x[3] *= 1e-40
    x[4] *= 1e-7
    x[5] = x[5].abs() + 1
    x[6] = -x[6].abs() - 1
    x[7] = 0.3
    x[8, ::40] *= 1000
    x[9, :256] = 0
    x[10] = -0.0
    x[11] *= 2000
    return x


@KINDS
def test_sizes_and_numbers_are_those_of_the_package(kind: BlockType) -> None:
    number = gguf.GGMLQuantizationType[kind.name]
    assert number == kind.number
    assert gguf.GGML_QUANT_SIZES[number] == (kind.values, kind.nbytes)
    q = quantize(torch.randn(2, 512), kind.scheme)
    assert q.nbytes == 2 * 512 // kind.values * kind.nbytes


@KINDS
@pytest.mark.parametrize("method", [quantize, search_blocks])
def test_the_package_reads_our_values_bit_for_bit(kind: BlockType, method) -> None:
    q = method(hard_values(), kind.scheme)
    raw = bytes_of(q, kind)
    assert same_bits(theirs(raw, kind), q.dequantize())
    back = from_blocks(raw, kind, q.shape, kind.scheme)
    for name in ("codes", "scale", "zero_point", "offset"):
        mine, other = getattr(q, name), getattr(back, name)
        assert (mine is None and other is None) or torch.equal(mine, other)


@KINDS
def test_any_bytes_mean_to_us_what_they_mean_to_the_package(kind: BlockType) -> None:
    """Also what no quantizer writes: negative and denormal scales, the lowest codes."""
    made = np.random.default_rng(0).integers(0, 256, (3000, kind.nbytes), np.uint8)
    raw = torch.from_numpy(made)
    raw = raw[torch.isfinite(theirs(raw, kind)).all(1)]
    assert len(raw) > 2000
    q = from_blocks(raw, kind, (len(raw), kind.values), kind.scheme)
    assert same_bits(q.dequantize(), theirs(raw, kind))
    assert torch.equal(bytes_of(q, kind), raw)


@KINDS
def test_more_than_one_piece(kind: BlockType) -> None:
    x = torch.randn(3, PIECE // 2, generator=torch.Generator().manual_seed(1))
    q = quantize(x, kind.scheme)
    raw = bytes_of(q, kind)
    assert same_bits(theirs(raw, kind), q.dequantize())
    assert torch.equal(from_blocks(raw, kind, x.shape, kind.scheme).codes, q.codes)


@KINDS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_is_refused(kind: BlockType, bad: float) -> None:
    q = quantize(torch.randn(1, 512), kind.scheme)
    raw = bytes_of(q, kind)
    d = q.scale if q.scales is None else q.scales.scale
    at = bytes(raw.flatten()).index(bytes(d.flatten()[:1].half().view(torch.uint8)))
    raw[0, at : at + 2] = torch.tensor([bad]).half().view(torch.uint8)
    with pytest.raises(WeightsError, match=r"1 of .* blocks have a d that is not finite"):
        from_blocks(raw, kind, q.shape, kind.scheme)


def test_which_schemes_have_a_block_type() -> None:
    for kind in BLOCK_TYPES.values():
        assert block_type(kind.scheme, 2) is kind
    assert (
        block_type(Scheme(int8, granularity=PerGroup(32, 1), scale_format=fp16), 2).name == "Q8_0"
    )
    assert block_type(Scheme(int4, granularity=PerGroup(32), scale_format=bf16), 2) is None
    assert block_type(Scheme(int4, granularity=PerGroup(64), scale_format=fp16), 2) is None
    assert block_type(Scheme(int4, granularity=PerGroup(32, 0), scale_format=fp16), 2) is None
    assert block_type(Scheme(uint4, False, PerGroup(32), scale_format=fp16), 2) is None


def test_rows_that_are_not_whole_blocks() -> None:
    assert misfit((3, 512), "Q4_K") is None
    assert misfit((3, 0), "Q4_K") is None
    assert "blocks of 32 fit: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0" in misfit((512, 288), "Q6_K")
    assert "leave the tensor float" in misfit((512, 172), "Q4_0")
    assert "rows of 1 values" in misfit((), "Q4_0")
    with pytest.raises(UnknownNameError, match="did you mean 'Q4_K'"):
        misfit((3, 512), "Q4K")

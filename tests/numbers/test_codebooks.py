"""Tensors clustered to tables: the right groups, the least error, the bytes that are stored."""

from __future__ import annotations

import pytest
import torch

from bitsmith.errors import DataError, InputError, SchemeError
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.codebooks import cluster, huffman_bytes, nearest_entries
from bitsmith.numbers.entropy_coding import huffman_decode, huffman_encode
from bitsmith.numbers.formats.codebook import LearnedFormat, codebook2, codebook4, codebook8, nf4
from bitsmith.numbers.formats.integer import int4, int16
from bitsmith.numbers.formats.minifloat import fp16
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import PerBlock, PerChannel, PerGroup, PerTensor, Scheme


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("granularity", "blocks"),
    [
        (PerTensor(), lambda x: [x]),
        (PerChannel(0), list),
        (PerChannel(2), lambda x: list(x.unbind(2))),
        (PerGroup(4, axis=1), lambda x: [b for r in x for c in r.split(4) for b in c.T]),
        (PerBlock((4, 2)), lambda x: [b for r in x for c in r.split(4) for b in c.split(2, 1)]),
    ],
    ids=["tensor", "channel 0", "channel 2", "groups of 4", "blocks"],
)
def test_each_group_has_its_own_best_table(granularity, blocks) -> None:
    x = weights(3, 8, 6)
    q = cluster(x, Scheme(codebook2, granularity=granularity))
    back = q.dequantize()
    assert back.shape == x.shape
    assert q.codebook.shape == (*granularity.scale_shape(x.shape), 4)
    for mine, given in zip(blocks(back), blocks(x), strict=True):
        alone = cluster(given.reshape(-1), Scheme(codebook2)).dequantize()
        assert torch.equal(mine.reshape(-1), alone)


def test_a_learned_table_beats_every_fixed_one_of_its_size() -> None:
    x = weights(16, 64)
    loss = {}
    for scheme in (Scheme(int4), Scheme(nf4), Scheme(codebook4)):
        q = cluster(x, scheme) if scheme.learned else quantize(x, scheme)
        loss[scheme.format.name] = float((q.dequantize() - x).square().mean())
    assert loss["codebook4"] < min(loss["int4"], loss["nf4"])
    lloyd = cluster(x, Scheme(codebook4), method="lloyd").dequantize()
    exact = cluster(x, Scheme(codebook4), method="exact").dequantize()
    assert float((exact - x).double().square().sum()) <= float((lloyd - x).double().square().sum())


def test_importance_buys_accuracy_where_it_is() -> None:
    x, h = weights(8, 64, seed=1), torch.ones(64)
    h[:8] = 1000.0
    scheme = Scheme(codebook2, granularity=PerChannel(0))
    plain, aware = (cluster(x, scheme, i).dequantize() - x for i in (None, h))
    assert float(aware[:, :8].square().sum()) < 0.5 * float(plain[:, :8].square().sum())
    assert float((h * aware.square()).sum()) < float((h * plain.square()).sum())


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(16)], ids=str)
def test_vectors_are_neighbours_along_the_last_axis(granularity) -> None:
    x = weights(6, 32, seed=2)
    q = cluster(x, Scheme(LearnedFormat(3, dimension=4), granularity=granularity))
    assert (q.shape, q.codes.shape) == (x.shape, (6, 8))
    groups = granularity.scale_shape(x.shape)
    assert q.codebook.shape == (*groups, 8, 4)
    tables = q.codebook.expand(6, *q.codebook.shape[1:]) if groups else q.codebook
    for row in range(6):
        for at in range(8):
            table = tables
            if groups:
                table = tables[row, at * 4 // (32 // groups[1])]
            found = table[int(q.codes[row, at])]
            part = x[row, 4 * at : 4 * at + 4]
            assert torch.equal(q.dequantize()[row, 4 * at : 4 * at + 4], found)
            distance = (table - part).square().sum(1)
            assert float((found - part).square().sum()) <= float(distance.min()) + 1e-6
    codes = 6 * 8 * 3 / 8
    assert q.nbytes == codes + 4 * q.codebook.numel()


def test_entries_round_to_their_stored_format_and_codes_follow() -> None:
    x = weights(4, 100, seed=3)
    q = cluster(x, Scheme(codebook4, granularity=PerChannel(0), scale_format=fp16))
    assert torch.equal(q.codebook, q.codebook.half().float())
    distance = (x[:, :, None] - q.codebook.reshape(4, 1, 16)).abs()
    assert torch.equal((q.dequantize() - x).abs(), distance.amin(-1))
    assert q.nbytes == 4 * 100 // 2 + 4 * 16 * 2


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize(
    "granularity", [PerTensor(), PerChannel(0), PerGroup(8), PerBlock((3, 4))], ids=str
)
def test_known_tables_give_the_nearest_entry_of_each_group(granularity, dimension) -> None:
    number = LearnedFormat(3, dimension=dimension) if dimension > 1 else codebook2
    scheme = Scheme(number, granularity=granularity, scale_format=fp16)
    like = cluster(weights(6, 16, seed=3), scheme)
    x = weights(6, 16, seed=5)
    codes = nearest_entries(x, like.codebook, scheme)
    assert (codes.dtype, codes.shape) == (like.codes.dtype, like.codes.shape)
    found = QTensor(codes, like.scale, like.zero_point, like.codebook, scheme).dequantize()
    groups = like.codebook.shape[: 2 if like.codebook.dim() > 2 else 0]
    rows, columns = (6 // groups[0], 16 // groups[1]) if granularity != PerTensor() else (6, 16)
    for i in range(6):
        for j in range(0, 16, dimension):
            at = (i // rows, j // columns) if granularity != PerTensor() else ()
            table = like.codebook[at].reshape(-1, dimension)
            least = (table - x[i, j : j + dimension]).square().sum(1).min()
            mine = (found[i, j : j + dimension] - x[i, j : j + dimension]).square().sum()
            assert float(mine) == pytest.approx(float(least), abs=1e-12)


def test_known_tables_have_to_fit() -> None:
    with pytest.raises(DataError, match=r"tables are \[4\], not \[3\]"):
        nearest_entries(weights(8), torch.arange(3.0), Scheme(codebook2))
    with pytest.raises(SchemeError, match="int4 has a table of its own"):
        nearest_entries(weights(8), torch.arange(16.0), Scheme(int4))
    with pytest.raises(DataError, match="1 NaN"):
        nearest_entries(torch.tensor([float("nan")]), torch.arange(4.0), Scheme(codebook2))


def test_huffman_bytes_are_those_of_a_stream_that_can_be_read() -> None:
    x = weights(200, 200, seed=4) ** 3  # peaked: entries are used unequally
    q = cluster(x, Scheme(codebook8))
    stream = huffman_encode(q.codes, 256)
    assert torch.equal(huffman_decode(stream).view(200, 200), q.codes)
    assert huffman_bytes(q) == stream.nbytes + 256 * 4
    assert huffman_bytes(q) < 0.95 * q.nbytes
    one = torch.tensor(1.0), torch.tensor(0, dtype=torch.int32)
    even = quantize(torch.arange(-8.0, 8.0).repeat(1000), Scheme(int4), *one)
    assert huffman_bytes(even) > even.nbytes  # signed codes; used alike, so only the table is added
    with pytest.raises(SchemeError, match="1 to 8 bits are Huffman coded, not 16"):
        huffman_bytes(quantize(x, Scheme(int16)))


def test_fewer_values_than_entries_are_kept_exactly() -> None:
    x = torch.tensor([3.0, -1.0, 3.0, 0.0])
    assert torch.equal(cluster(x, Scheme(codebook4)).dequantize(), x)
    assert torch.equal(cluster(torch.full((5,), 2.5), Scheme(codebook2)).dequantize().unique(),
                       torch.tensor([2.5]))  # fmt: skip


def test_bad_input_is_refused() -> None:
    x = weights(4, 6)
    with pytest.raises(SchemeError, match="int4 has a table of its own: use quantize"):
        cluster(x, Scheme(int4))
    with pytest.raises(InputError, match="method is auto, exact or lloyd, not 'best'"):
        cluster(x, Scheme(codebook2), method="best")
    with pytest.raises(DataError, match="has no values"):
        cluster(torch.empty(0), Scheme(codebook2))
    with pytest.raises(DataError, match="1 NaN"):
        cluster(torch.tensor([1.0, float("nan")]), Scheme(codebook2))
    with pytest.raises(DataError, match=r"importance of shape \(5,\) does not broadcast"):
        cluster(x, Scheme(codebook2), torch.ones(5))
    with pytest.raises(DataError, match="negative"):
        cluster(x, Scheme(codebook2), -torch.ones(6))
    with pytest.raises(SchemeError, match="vectors of 4 weights must divide the last axis"):
        cluster(x, Scheme(LearnedFormat(2, dimension=4)))
    with pytest.raises(SchemeError, match="each of its 8 groups"):
        cluster(x, Scheme(LearnedFormat(2, dimension=2), granularity=PerGroup(3)))


def test_the_record_refuses_tables_that_do_not_fit() -> None:
    q = cluster(weights(4, 8), Scheme(codebook2, granularity=PerChannel(0)))
    parts = q.codes, q.scale, q.zero_point
    with pytest.raises(SchemeError, match="needs the codebook that was learned"):
        QTensor(*parts, None, q.scheme)
    with pytest.raises(SchemeError, match=r"must be float32 of shape \(4, 1, 4\)"):
        QTensor(*parts, q.codebook[:2], q.scheme)
    with pytest.raises(SchemeError, match="not finite"):
        QTensor(*parts, q.codebook * float("inf"), q.scheme)

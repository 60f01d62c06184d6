"""Every tensor of the format, bit for bit against the compressed-tensors package itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitsmith.deploy.export.compressed_tensors.group import Group, refusals
from bitsmith.deploy.export.compressed_tensors.layout import (
    INT,
    PACK,
    from_parts,
    from_words,
    part_specs,
    to_parts,
    to_words,
)
from bitsmith.errors import WeightsError
from bitsmith.numbers import (
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    QTensor,
    Scheme,
    bf16,
    e8m0,
    fp8_e4m3fn,
    fp16,
    fp32,
    int4,
    int8,
    int16,
    integer_format,
    nf4,
    quantize,
    ternary,
    uint4,
)

package = pytest.importorskip("compressed_tensors")

BITS = range(1, 9)


def schemes() -> list[Scheme]:
    """Every width, sign and symmetry that has a layout, in every granularity."""
    grains = [PerTensor(), PerChannel(0), PerChannel(-2), PerGroup(4), PerGroup(12, axis=1)]
    found = [Scheme(integer_format(b, True), True, g) for b in BITS if b > 1 for g in grains]
    found += [Scheme(integer_format(b, True), False, g) for b in BITS if b > 1 for g in grains]
    found += [Scheme(integer_format(b, False), False, g) for b in BITS for g in grains]
    found += [Scheme(int4, False, PerGroup(4), scale_format=f) for f in (fp32, fp16, bf16)]
    return [*found, Scheme(ternary, True, PerGroup(4)), Scheme(int8, narrow_range=False)]


def weight(rows: int = 37, columns: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * columns)
    return torch.randn(rows, columns, generator=generator) + 0.3


def theirs(q: QTensor, dynamic: bool = False):
    """Return the package's own scheme object and its compressor of the layout."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    group = Group(q.scheme, dynamic)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**group.weights))
    return scheme, BaseCompressor.get_value_from_registry(group.layout)


def same(a: QTensor, b: QTensor) -> bool:
    return a.scheme == b.scheme and all(
        torch.equal(getattr(a, part), getattr(b, part)) for part in ("codes", "scale", "zero_point")
    )


@pytest.mark.parametrize("bits", BITS)
@given(rows=st.integers(1, 9), columns=st.integers(1, 130), seed=st.integers(0, 99))
def test_words_are_those_of_the_package(bits, rows, columns, seed):
    from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32

    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)
    signed = (codes.int() - (1 << bits - 1)).to(torch.int8)
    words = to_words(codes, bits)
    assert torch.equal(words, pack_to_int32(signed, bits))
    assert torch.equal(to_words(codes.T.contiguous(), bits).T, pack_to_int32(signed, bits, 0))
    assert torch.equal(unpack_from_int32(words, bits, signed.shape), signed)
    assert torch.equal(from_words(words, bits, columns), codes)


@pytest.mark.parametrize("scheme", schemes(), ids=str)
def test_the_package_restores_our_values(scheme):
    q = quantize(weight(), scheme)
    parts = to_parts(q, PACK)
    specs = part_specs(scheme, q.shape, PACK)
    assert {n: (p.dtype, tuple(p.shape)) for n, p in parts.items()} == specs
    described, compressor = theirs(q)
    restored = compressor.decompress(parts, described)["weight"]
    assert restored.dtype == parts["weight_scale"].dtype
    assert torch.equal(restored, q.dequantize().to(restored.dtype))


@pytest.mark.parametrize("scheme", schemes(), ids=str)
def test_the_package_stores_the_same_tensors(scheme):
    q = quantize(weight(), scheme)
    described, compressor = theirs(q)
    ours = to_parts(q, PACK)
    shift = 0 if scheme.format.signed else 1 << scheme.format.bits - 1
    scale = ours["weight_scale"]
    zero_point = (q.zero_point - shift).to(torch.int8).view(scale.shape)
    state = {"weight": q.dequantize(), "weight_scale": scale, "weight_zero_point": zero_point}
    stored = compressor.compress(state, described)
    assert set(stored) == set(ours)
    assert all(torch.equal(stored[name], ours[name]) for name in ours)
    assert set(compressor.compression_param_names(described)) == set(ours)


@pytest.mark.parametrize("scheme", schemes(), ids=str)
@pytest.mark.parametrize("rows", [1, 32, 37])
def test_read_back_bit_for_bit(scheme, rows):
    q = quantize(weight(rows), scheme)
    assert same(from_parts(to_parts(q, PACK), scheme, PACK), q)


@pytest.mark.parametrize("grain", [PerTensor(), PerChannel(0)])
def test_int_quantized_is_the_package_s(grain):
    q = quantize(weight(), Scheme(int8, True, grain))
    parts = to_parts(q, INT)
    described, compressor = theirs(q, dynamic=True)
    assert torch.equal(compressor.decompress(parts, described)["weight"], q.dequantize())
    assert torch.equal(parts["weight"], q.codes)
    assert same(from_parts(parts, q.scheme, INT), q)


def test_codes_may_be_a_view():
    q = quantize(weight(12, 37), Scheme(int4))
    turned = QTensor(q.codes.T, q.scale, q.zero_point, None, q.scheme)
    assert same(from_parts(to_parts(turned, PACK), q.scheme, PACK), turned)


@pytest.mark.parametrize(
    ("scheme", "shape", "dynamic", "word"),
    [
        (Scheme(integer_format(1, True)), (4, 4), False, "int1"),
        (Scheme(int16), (4, 4), False, "int16"),
        (Scheme(nf4), (4, 4), False, "nf4"),
        (Scheme(fp8_e4m3fn), (4, 4), False, "fp8_e4m3fn"),
        (Scheme(fp16), (4, 4), False, "fp16"),
        (Scheme(int4, True, PerBlock((2, 2))), (4, 4), False, "PerBlock"),
        (Scheme(int4, True, PerChannel(1)), (4, 4), False, "PerChannel"),
        (Scheme(int4, True, PerGroup(2, axis=0)), (4, 4), False, "PerGroup"),
        (Scheme(int4, True, PerGroup(2), scale_format=e8m0), (4, 4), False, "e8m0"),
        (
            Scheme(int4, True, PerGroup(2), scale_format=Scheme(fp8_e4m3fn)),
            (4, 4),
            False,
            "two levels",
        ),
        (Scheme(uint4, False, PerGroup(2), offset_format=fp16), (4, 4), False, "offsets"),
        (Scheme(int8), (4, 4, 3), False, "(4, 4, 3)"),
        (Scheme(int8), (4,), False, "(4,)"),
        (Scheme(int8), (0, 4), False, "no values"),
        (Scheme(int4), (4, 4), True, "int8"),
        (Scheme(int8, False), (4, 4), True, "symmetric"),
        (Scheme(int8, True, PerGroup(2)), (4, 4), True, "per row"),
    ],
)
def test_what_has_no_layout_is_named(scheme, shape, dynamic, word):
    (reason,) = refusals(Group(scheme, dynamic), shape)
    assert word in reason


def test_every_reason_is_given_at_once():
    scheme = Scheme(nf4, True, PerBlock((2, 2)), scale_format=e8m0)
    assert len(refusals(Group(scheme, True), (4, 4))) == 4


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("weight_packed", lambda t: t[:, :1], ["weight_packed", "(37, 1)", "(37, 2)"]),
        ("weight_packed", lambda t: t.long(), ["torch.int64", "torch.int32"]),
        ("weight_scale", lambda t: t[:, :2], ["weight_scale"]),
        ("weight_scale", lambda t: t.half(), ["torch.float16"]),
        ("weight_scale", lambda t: -t, ["111 of 111 scales"]),
        ("weight_scale", lambda t: t * torch.inf, ["111 of 111 scales"]),
        ("weight_shape", lambda t: t * 2, ["weight_packed", "weight_zero_point"]),
        ("weight_shape", lambda t: t * 0, ["[0, 0]"]),
        ("weight_shape", lambda t: t[:1], ["[37]"]),
        ("weight_shape", lambda t: t.float() * torch.nan, ["weight_shape"]),
        ("weight_zero_point", lambda t: t.T, ["weight_zero_point"]),
    ],
)
def test_parts_that_do_not_fit_are_named(name, change, words):
    scheme = Scheme(uint4, False, PerGroup(4))
    parts = to_parts(quantize(weight(), scheme), PACK)
    with pytest.raises(WeightsError) as error:
        from_parts(parts | {name: change(parts[name])}, scheme, PACK)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("name", ["weight_packed", "weight_scale", "weight_shape"])
def test_a_missing_part_is_named(name):
    parts = to_parts(quantize(weight(), Scheme(int4)), PACK)
    del parts[name]
    with pytest.raises(WeightsError, match=f"{name} is missing"):
        from_parts(parts, Scheme(int4), PACK)


def test_a_part_too_many_is_named():
    parts = to_parts(quantize(weight(), Scheme(int4)), PACK) | {"weight_g_idx": torch.ones(1)}
    with pytest.raises(WeightsError, match="weight_g_idx does not belong"):
        from_parts(parts, Scheme(int4), PACK)

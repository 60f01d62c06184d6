"""Layers with packed weights compute what the float layer with dequantized weights computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bitsmith.errors import WeightsError
from bitsmith.model.kernels.library import kernels, why_not
from bitsmith.model.layers.embedding import QuantEmbedding
from bitsmith.model.layers.linear import QuantLinear
from bitsmith.model.layers.other import WeightOnly
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.codebooks import cluster
from bitsmith.numbers.formats.codebook import codebook3, nf4
from bitsmith.numbers.formats.integer import int3, int8, uint4
from bitsmith.numbers.formats.minifloat import fp16
from bitsmith.numbers.named_schemes import named_scheme
from bitsmith.numbers.scheme import PerChannel, PerGroup, PerToken, Scheme

SCHEMES = [
    Scheme(int8, granularity=PerChannel(0)),
    Scheme(int3, granularity=PerChannel(0)),
    Scheme(uint4, False, PerGroup(32), scale_format=fp16),
    Scheme(nf4, granularity=PerGroup(32)),
    Scheme(codebook3, granularity=PerChannel(0), scale_format=fp16),
    named_scheme("mxfp4"),
    named_scheme("nvfp4"),
]
ROWS = Scheme(int8, granularity=PerChannel(0))


@pytest.fixture(params=["native", "torch"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run with the native kernels, and with PyTorch's."""
    if request.param == "torch":
        monkeypatch.setattr(PackedWeight, "ready", lambda self: False)
    elif kernels() is None:
        pytest.skip(f"no native kernels: {why_not()}")
    return str(request.param)


def dequantized(weights: dict[str, PackedWeight]) -> dict[str, Tensor]:
    return {name: weight.dequantize() for name, weight in weights.items()}


def near(found: torch.Tensor, x: torch.Tensor, layer: QuantLinear) -> bool:
    """Whether a float32 product is within the error of any order of summation."""
    weight = layer.packed.qtensor().dequantize().double()
    bias = torch.zeros(()) if layer.bias is None else layer.bias.detach()
    exact = nn.functional.linear(x.double(), weight) + bias.double()
    sizes = nn.functional.linear(x.double().abs(), weight.abs()) + bias.double().abs()
    bound = (x.shape[-1] + 3) * torch.finfo(torch.float32).eps * sizes
    return bool(((found.double() - exact).abs() <= bound).all())


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    """PyTorch counts what it compiles of a function, over tests, and stops at eight."""
    torch.compiler.reset()


def packed(weight: torch.Tensor, scheme: Scheme) -> PackedWeight:
    flat = weight.detach().flatten(1)
    q = cluster(flat, scheme) if scheme.learned else quantize(flat, scheme)
    return PackedWeight(q, weight.shape)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_linear_and_its_compiled_form(scheme: Scheme, by: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 24)
    weight = packed(linear.weight, scheme)
    size, before = weight.nbytes, weight.qtensor()
    layer, x = QuantLinear(weight, linear.bias), torch.randn(2, 5, 64)
    found = layer(x)
    if by == "torch":
        assert torch.equal(found, nn.functional.linear(x, before.dequantize(), linear.bias))
    assert near(found, x, layer)
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), found)
    assert weight.nbytes == size == weight.qtensor().nbytes
    assert torch.equal(layer.weight, before.dequantize())
    assert (weight.machine is not None) == (by == "native")
    assert layer.kernel.startswith("native")


def test_moving_to_half_leaves_the_bits_alone() -> None:
    linear = nn.Linear(64, 24)
    layer = QuantLinear(packed(linear.weight, ROWS), linear.bias)
    before = {k: v.clone() for k, v in layer.packed.parts().items()}
    layer.half()
    assert all(torch.equal(v, before[k]) for k, v in layer.packed.parts().items())
    assert {v.dtype for v in layer.packed.parts().values()} == {torch.uint8, torch.float32}
    assert layer(torch.randn(3, 64).half()).dtype == torch.float16


def test_dynamic_activations_are_integers_per_token(by: str) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(48, 16)
    weight = packed(linear.weight, ROWS)
    layer = QuantLinear(weight, linear.bias, Scheme(int8, granularity=PerToken()))
    x = torch.randn(2, 7, 48) * torch.tensor([1.0, 100.0]).view(2, 1, 1)
    x[0, 3] = 0
    scale = x.abs().amax(-1, keepdim=True) / 127
    scale[0, 3] = 1
    codes = torch.round(x / scale).long()
    q = weight.qtensor()
    sums = (codes.double() @ q.codes.double().T).float()
    expected = sums * scale * q.scale.flatten() + linear.bias
    assert torch.equal(layer(x), expected)
    assert layer(x[:, :0]).shape == (2, 0, 16)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_an_embedding_decodes_rows(scheme: Scheme, by: str) -> None:
    table = nn.Embedding(40, 64, padding_idx=3)
    layer = QuantEmbedding(packed(table.weight, scheme), 3, torch.float32)
    index = torch.tensor([[0, 3, 39], [7, 7, 1]])
    assert torch.equal(layer(index), layer.weight[index])
    by_rows = scheme.granularity != PerGroup(16) and not scheme.learned  # nvfp4 has two levels
    by_rows |= by == "native"
    assert (layer.packed.rows(index) is not None) == by_rows


@pytest.mark.parametrize("scheme", [ROWS, SCHEMES[-1]], ids=["rows", "whole table"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_an_embedding_refuses_what_no_row_has(scheme: Scheme, dtype: torch.dtype, by: str) -> None:
    table = nn.Embedding(40, 64)
    layer = QuantEmbedding(packed(table.weight, scheme), None, torch.float32)
    for bad, named in (([[3, -1]], -1), ([40], 40), ([-41, 2], -41)):
        index = torch.tensor(bad, dtype=dtype)
        with pytest.raises(IndexError):
            table(index)
        with pytest.raises(IndexError, match=f"^index {named} is not a row of a table of 40: 0 to"):
            layer(index)
    assert layer(torch.empty(0, 3, dtype=dtype)).shape == (0, 3, 64)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(torch.tensor([0, 39], dtype=dtype)), layer.weight[[0, 39]])
    with pytest.raises(IndexError, match=r"out of range|index -1 is not a row"):
        compiled(torch.tensor([0, -1], dtype=dtype))


def test_an_embedding_refuses_masks_as_the_float_one_does(by: str) -> None:
    table = nn.Embedding(2, 64)
    layer, mask = QuantEmbedding(packed(table.weight, ROWS), None, torch.float32), torch.ones(2) > 0
    for each, says in ((table, "scalar types: Long, Int"), (layer, "dtype int32 or int64")):
        with pytest.raises(RuntimeError, match=says):
            each(mask)


@pytest.mark.parametrize(
    ("module", "names", "shape"),
    [
        (nn.Conv2d(8, 6, 3, padding=1, stride=2), ["weight"], (2, 8, 9, 9)),
        (nn.Conv1d(8, 6, 4, groups=2), ["weight"], (2, 8, 9)),
        (
            nn.LSTM(8, 12, 2, bidirectional=True),
            ["weight_ih_l0", "weight_hh_l1_reverse"],
            (5, 2, 8),
        ),
        (nn.GRU(8, 12, batch_first=True), ["weight_ih_l0", "weight_hh_l0"], (2, 5, 8)),
    ],
    ids=["conv2d", "conv1d", "lstm", "gru"],
)
def test_any_module_runs_with_its_weights_dequantized(module, names, shape, by) -> None:
    torch.manual_seed(2)
    weights = {n: packed(module.get_parameter(n), ROWS) for n in names}
    reference = copy.deepcopy(module)
    for name in names:
        reference.get_parameter(name).data = weights[name].dequantize()
    x = torch.randn(shape)
    expected = reference(x)
    layer = WeightOnly(copy.deepcopy(module), weights)
    found, given = layer(x), functional_call(module, dequantized(weights), (x,))
    if isinstance(found, tuple):
        found, given, expected = found[0], given[0], expected[0]
    assert torch.equal(found, given)
    torch.testing.assert_close(found, expected)  # for parameters PyTorch may take another kernel
    for name in names:
        assert torch.equal(getattr(layer, name), weights[name].dequantize())
    assert sum(p.numel() for p in layer.parameters() if not p.is_meta) < sum(
        p.numel() for p in module.parameters()
    )


def test_attention_and_the_attributes_of_the_inner_module() -> None:
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    names = ["in_proj_weight", "out_proj.weight"]
    weights = {n: packed(attention.get_parameter(n), ROWS) for n in names}
    reference = copy.deepcopy(attention)
    for name in names:
        reference.get_parameter(name).data = weights[name].dequantize()
    layer, x = WeightOnly(attention, weights), torch.randn(2, 5, 16)
    found = layer(x, x, x)[0]
    assert torch.equal(found, functional_call(attention, dequantized(weights), (x, x, x))[0])
    torch.testing.assert_close(found, reference(x, x, x)[0])
    assert layer.embed_dim == 16
    assert torch.equal(layer.in_proj_weight, weights["in_proj_weight"].dequantize())
    assert torch.equal(layer.weights()["out_proj.weight"], weights["out_proj.weight"].dequantize())
    with pytest.raises(AttributeError):
        _ = layer.no_such_thing


def test_a_damaged_weight_is_an_error() -> None:
    weight = packed(torch.randn(4, 32), ROWS)
    weight.codes = weight.codes[:-1]
    with pytest.raises(WeightsError, match="a packed weight is damaged: 128 codes of 8 bits"):
        weight.dequantize()

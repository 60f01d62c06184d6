"""Convolutions of few positions: rows on native kernels, as the dequantized weight computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitsmith.model.kernels import operators
from bitsmith.model.kernels.library import INSTRUCTIONS, kernels, why_not
from bitsmith.model.layers.convolution import most_positions
from bitsmith.model.layers.other import WeightOnly
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.formats.integer import int4, int8
from bitsmith.numbers.scheme import PerChannel, PerGroup, Scheme

if kernels() is None:
    pytest.skip(f"no native kernels: {why_not()}", allow_module_level=True)

CHANNELS = Scheme(int8, granularity=PerChannel(0))
GROUPS = Scheme(int4, granularity=PerGroup(32))


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the shapes of the rows that the kernels multiply from now on."""
    seen: list[tuple[int, ...]] = []
    linear = operators.linear

    def watched(x: Tensor, *args: Any) -> Tensor:
        seen.append(tuple(x.shape))
        return linear(x, *args)

    monkeypatch.setattr(operators, "linear", watched)
    return seen


def layer(scheme: Scheme = CHANNELS, **settings: Any) -> tuple[WeightOnly, nn.Conv2d]:
    """Return a packed convolution of 64 to 128 channels, and its twin of dequantized weights."""
    given = {"kernel_size": 3, "padding": 1} | settings
    twin = nn.Conv2d(64, 128, **given)
    weight = twin.weight.detach()
    q = quantize(weight.flatten(1), scheme)
    twin.weight = nn.Parameter(q.dequantize().reshape(weight.shape).to(weight.dtype), False)
    inner = nn.Conv2d(64, 128, **given)
    inner.bias = twin.bias
    return WeightOnly(inner, {"weight": PackedWeight(q, weight.shape)}), twin


@pytest.mark.parametrize("scheme", [CHANNELS, GROUPS], ids=["channels", "groups"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2},
        {"stride": (1, 2), "padding": (2, 0)},
        {"dilation": 2, "padding": 2, "bias": False},
        {"kernel_size": (5, 2), "padding": 0},
        {"kernel_size": (4, 4), "stride": 4, "padding": 0},
        {"kernel_size": (4, 2), "padding": (1, 1)},
    ],
    ids=str,
)
def test_as_the_dequantized_weight_computes(
    scheme: Scheme, settings: dict[str, Any], products: list[tuple[int, ...]]
) -> None:
    packed, twin = layer(scheme, **settings)
    for shape in ((1, 64, 9, 7), (2, 64, 5, 4)):
        x = torch.randn(shape)
        found, expected = packed(x), twin(x)
        assert found.shape == expected.shape
        assert found.is_contiguous()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    positions = expected.numel() // 128
    assert products[-1] == (positions, twin.weight[0].numel())


def test_a_kernel_of_one_takes_the_inputs_as_they_are(products: list[tuple[int, ...]]) -> None:
    twin = nn.Conv2d(512, 256, 1, stride=2).requires_grad_(False)
    q = quantize(twin.weight.flatten(1), GROUPS)
    twin.weight.copy_(q.dequantize().reshape(twin.weight.shape))
    inner = nn.Conv2d(512, 256, 1, stride=2)
    inner.bias = twin.bias
    packed = WeightOnly(inner, {"weight": PackedWeight(q, twin.weight.shape)})
    x = torch.randn(3, 512, 7, 5)
    torch.testing.assert_close(packed(x), twin(x), rtol=1e-5, atol=1e-4)
    assert products == [(3 * 4 * 3, 512)]
    assert packed.kernel.endswith(
        f"float rows up to {most_positions()} positions, else decoded for torch"
    )


def test_layout_type_and_gradients_are_those_of_pytorch(products: list[tuple[int, ...]]) -> None:
    packed, twin = layer()
    x = torch.randn(2, 64, 4, 6).to(memory_format=torch.channels_last)
    found = packed(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, twin(x), rtol=1e-5, atol=1e-4)
    ours, theirs = (x.detach().clone().requires_grad_() for _ in range(2))
    packed(ours).square().sum().backward()
    twin(theirs).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-3)
    assert len(products) == 2
    half, other = layer(dtype=torch.bfloat16)
    x = torch.randn(1, 64, 4, 4, dtype=torch.bfloat16)
    assert half(x).dtype == torch.bfloat16
    torch.testing.assert_close(half(x), other(x), rtol=0.02, atol=0.02)


def test_what_does_not_pay_or_is_something_else_is_decoded(
    products: list[tuple[int, ...]],
) -> None:
    packed, twin = layer()
    x = torch.randn(1, 64, 17, 17)  # 289 positions
    assert torch.equal(packed(x), twin(x))
    for settings in ({"groups": 2}, {"padding": "same"}, {"padding_mode": "reflect"}):
        other, float_twin = layer(**settings)
        some = torch.randn(1, 64, 8, 8)
        assert torch.equal(other(some), float_twin(some))
        assert other.kernel.endswith(", decoded for torch")
    assert torch.equal(packed(x[0, :, :4, :4]), twin(x[0, :, :4, :4]))  # without a batch
    assert packed(torch.zeros(0, 64, 8, 8)).shape == (0, 128, 8, 8)
    with pytest.raises(RuntimeError, match="channels"):
        packed(torch.zeros(1, 63, 8, 8))
    with pytest.raises(RuntimeError, match="Kernel size"):
        layer(padding=0)[0](torch.zeros(1, 64, 2, 2))
    assert not products


def test_compiled_and_exported_it_computes_the_same() -> None:
    packed, twin = layer()
    x = torch.randn(2, 64, 4, 6)
    compiled = torch.compile(packed, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), twin(x), rtol=1e-5, atol=1e-4)
    dynamic = (({0: torch.export.Dim.DYNAMIC},),)
    program = torch.export.export(layer()[0], (x,), dynamic_shapes=dynamic).module()
    assert program(x[:1]).shape == (1, 128, 4, 6)


def test_saved_and_loaded_it_is_the_canonical_form() -> None:
    packed, _ = layer(GROUPS)
    before = {k: v.clone() for k, v in packed.packed.state_dict().items()}
    packed(torch.randn(1, 64, 4, 4))
    after = packed.packed.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


@pytest.mark.parametrize(("name", "most"), [("avx2", 49), ("avx512", 49), ("amx", 256)])
def test_slower_machines_multiply_fewer_positions(
    name: str, most: int, products: list[tuple[int, ...]]
) -> None:
    library = kernels()
    assert library is not None
    number = {of: i for i, of in INSTRUCTIONS.items()}[name]
    if library.machine not in (1, 2, 3) or number > library.machine:
        pytest.skip(f"this machine has {INSTRUCTIONS[library.machine]}, not {name}")
    before = library.in_use
    library.use(number)
    try:
        packed, twin = layer()
        assert f" {most} positions" in packed.kernel
        for positions in (most, most + 1):
            x = torch.randn(1, 64, 1, positions)
            torch.testing.assert_close(packed(x), twin(x), rtol=1e-5, atol=1e-4)
        assert products == [(most, 64 * 9)]
    finally:
        library.use(before)

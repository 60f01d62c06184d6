"""Weights and biases in integers: every bias fits int32, whatever the scales."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitsmith.errors import WeightsError
from bitsmith.model.convert import IntegerLayer, integer_layer, layer_of
from bitsmith.model.graph import capture
from bitsmith.model.place import place
from bitsmith.model.presets import make_recipe
from bitsmith.model.recipe import weight_scheme
from bitsmith.model.targets import make_target
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.integer import max_pair_sum

U8 = integer_format(8, signed=False)


def converted(
    layer: nn.Module, x_scale: float = 0.02, machine: str = "any", recipe: str = "W8A8"
) -> IntegerLayer:
    channels = layer.weight.shape[1] * getattr(layer, "groups", 1)
    shape = (2, channels) + (9,) * (layer.weight.dim() - 2)
    graph = capture(layer, torch.randn(shape), check=False)
    target = make_target("onnxruntime", machine)
    placement = place(graph, target, make_recipe(recipe))
    return integer_layer(graph.nodes[0], placement, target, Encoding(x_scale, 3, U8))


def real_bias(found: IntegerLayer, x_scale: float = 0.02) -> torch.Tensor:
    step = torch.tensor(x_scale) * found.weight.scale.reshape(-1)
    return found.bias.double() * step.double()


@pytest.mark.parametrize("layer", [nn.Linear(7, 5), nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3)])
def test_codes_and_bias(layer):
    found = converted(layer)
    step = found.weight.scale
    assert found.weight.codes.dtype == torch.int8
    assert found.bias.dtype == torch.int32
    assert ((found.weight.dequantize() - layer.weight).abs() <= step * 0.51 + step * 63).all()
    assert (real_bias(found) - layer.bias).abs().max() < 0.02 * float(step.max())
    assert 7 <= found.effective_bits <= 8
    assert found.error >= 0 < found.nearest_error


def test_a_layer_without_bias():
    assert converted(nn.Conv2d(4, 6, 3, bias=False)).bias is None


@pytest.mark.parametrize("machine", ["any", "any-order", "vnni"])
@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-12, 1e-30])
def test_a_huge_bias_on_tiny_weights_fits(machine, size):
    layer = nn.Conv2d(4, 3, 3)
    with torch.no_grad():
        layer.weight[1] *= size
        layer.bias[:] = torch.tensor([0.5, 1e4, -1e4])
    found = converted(layer, machine=machine)
    assert found.bias.abs().max() <= 1 << 30
    error = (real_bias(found) - layer.bias).abs() / layer.bias.abs()
    assert error.max() < 1e-4
    assert error[1:].max() < 1e-8
    # The other channels keep their own scales.
    alone = converted(nn.Conv2d(4, 3, 3), machine=machine)
    assert found.weight.scale[0] < 1e-2 < 1 < alone.weight.scale[0] * 1e6


@pytest.mark.parametrize("machine", ["any", "any-order", "vnni"])
def test_a_channel_of_zeros_keeps_its_bias(machine):
    layer = nn.Conv2d(4, 3, 3)
    with torch.no_grad():
        layer.weight[1] = 0
        layer.bias[:] = torch.tensor([0.1, 0.123456, 0.0])
        layer.weight[2] = 0
    found = converted(layer, machine=machine)
    assert found.weight.codes[1:].abs().sum() == 0
    torch.testing.assert_close(real_bias(found)[1], layer.bias[1].double(), rtol=1e-6, atol=0)
    assert found.bias[2] == 0
    assert (found.weight.scale > 0).all()


@pytest.mark.parametrize("machine", ["any", "any-order", "vnni"])
@pytest.mark.parametrize(
    "layer", [nn.Linear(7, 5), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3, groups=6)]
)
def test_one_scale_for_all_channels(layer, machine):
    found = converted(layer, machine=machine, recipe="W8A8-pertensor")
    assert found.weight.scale.shape == ()
    assert found.weight.codes.shape == layer.weight.shape
    assert (real_bias(found) - layer.bias).abs().max() <= 0.011 * float(found.weight.scale)
    assert found.error >= 0


def test_one_scale_fits_the_largest_bias():
    layer = nn.Conv2d(4, 3, 3)
    with torch.no_grad():
        layer.weight *= 1e-9
        layer.bias[:] = torch.tensor([0.5, 1e4, -2e4])
    found = converted(layer, recipe="W8A8-pertensor")
    assert 1 << 29 < found.bias.abs().max() <= 1 << 30
    assert ((real_bias(found) - layer.bias).abs() / layer.bias.abs()).max() < 1e-4


def test_one_scale_and_no_weights_keep_the_bias():
    layer = nn.Conv2d(4, 3, 3)
    nn.init.zeros_(layer.weight)
    found = converted(layer, recipe="W8A8-pertensor")
    assert found.weight.codes.abs().sum() == 0
    torch.testing.assert_close(real_bias(found), layer.bias.double(), rtol=1e-5, atol=1e-7)


def test_channels_of_small_range_have_few_bits_of_a_scale_for_all():
    layer = nn.Conv2d(4, 4, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 36).reshape(4, 3, 3).expand(4, 4, 3, 3))
        layer.weight *= torch.tensor([1, 1 / 8, 1 / 64, 1e-6]).reshape(-1, 1, 1, 1)
    one = converted(layer, machine="vnni", recipe="W8A8-pertensor")
    assert one.effective_bits == pytest.approx((8 + 5 + 2 + 0) / 4, abs=0.2)
    with torch.no_grad():
        layer.weight[3] = 0
    assert converted(layer, machine="vnni").effective_bits == pytest.approx(8, abs=1e-6)


@pytest.mark.parametrize(("machine", "order"), [("any", "channels_last"), ("any-order", "any")])
def test_weights_are_bounded_for_the_machine(machine, order):
    layer = nn.Conv2d(6, 8, 3)
    nn.init.ones_(layer.weight)
    assert max_pair_sum(converted(layer, machine=machine).weight.codes, order).max() <= 128
    assert max_pair_sum(converted(layer, machine="vnni").weight.codes, order).max() == 254


def test_any_order_holds_for_every_layer_of_random_weights():
    torch.manual_seed(0)
    for layer in (nn.Linear(33, 9), nn.Conv2d(5, 8, 3), nn.Conv2d(8, 8, 3, groups=8)):
        codes = converted(layer, machine="any-order").weight.codes
        assert max_pair_sum(codes, "any").max() <= 128


def test_depthwise_weights_keep_eight_bits_where_the_runtime_is_exact():
    layer = nn.Conv2d(8, 8, 3, groups=8)
    nn.init.ones_(layer.weight)
    graph = capture(layer, torch.randn(2, 8, 9, 9))
    for machine, top in (("any", 127), ("any-order", 64)):
        target = make_target("onnxruntime", machine)
        placement = place(graph, target, make_recipe("W8A8"))
        found = integer_layer(graph.nodes[0], placement, target, Encoding(0.1, 0, U8))
        assert found.weight.codes.max() == top


@pytest.mark.parametrize(("recipe", "low", "high"), [("W4A8", -8, 7), ("W2A8", -2, 1)])
def test_fewer_bits(recipe, low, high):
    torch.manual_seed(0)
    found = converted(nn.Conv2d(4, 6, 3), recipe=recipe)
    assert found.weight.codes.min() >= low
    assert found.weight.codes.max() <= high
    assert found.error == found.nearest_error
    assert found.effective_bits == pytest.approx(int(recipe[1]), abs=0.6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["weight", "bias"])
def test_what_is_not_finite_is_refused(where, bad):
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        getattr(layer, where).view(-1)[1] = bad
    with pytest.raises(WeightsError, match=r"layer linear: .*(NaN|not finite)"):
        converted(layer)


@pytest.mark.parametrize(("machine", "limit"), [("any", 64), ("any-order", 64), ("vnni", 127)])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_codes_from_a_table(machine, limit, bits):
    torch.manual_seed(0)
    found = converted(nn.Conv2d(8, 16, 3), machine=machine, recipe=f"CODEBOOK{bits}A8")
    codes, table = found.weight.codes, found.table
    assert torch.equal(codes.unique(), table)
    assert 2 <= len(table) <= 1 << bits
    assert table.dtype == torch.int8
    assert int(table.abs().max()) == limit
    assert (found.bits, found.effective_bits) == (bits, float(bits))
    assert found.nbytes == 8 * 16 * 9 * bits // 8 + len(table) + 4 * 16


def test_a_depthwise_table_has_the_whole_range():
    layer = nn.Conv2d(16, 16, 3, groups=16)
    assert int(converted(layer, recipe="CODEBOOK4A8").table.abs().max()) == 127


def test_inputs_below_eight_bits_need_no_bound():
    torch.manual_seed(0)
    layer = nn.Linear(64, 8)
    graph = capture(layer, torch.randn(2, 64), check=False)
    target = make_target("onnxruntime")
    placement = place(graph, target, make_recipe("W8A7"))
    x = Encoding(0.02, 3, integer_format(7, signed=False))
    found = integer_layer(graph.nodes[0], placement, target, x)
    assert int(max_pair_sum(found.weight.codes).max()) > 128
    assert found.effective_bits == pytest.approx(8)


def test_sign_bits_become_codes_to_calculate_with():
    w = torch.tensor([[0.5, -0.25, 0.0], [-1.0, 2.0, -3.0]])
    layer = nn.Linear(3, 2)
    node = capture(layer, torch.randn(2, 3), check=False).nodes[0]
    q = quantize(w, weight_scheme(1))
    found = layer_of(node, q, None, Encoding(0.1, 0, U8), 0.0, 0.0)
    assert found.weight.codes.tolist() == [[1, -1, 1], [-1, 1, -1]]
    assert torch.equal(found.weight.dequantize(), q.dequantize())
    assert (found.bits, found.effective_bits) == (1, 1.0)
    assert found.table.tolist() == [-1, 1]


def test_a_table_that_is_too_small():
    node = capture(nn.Linear(3, 2), torch.randn(2, 3), check=False).nodes[0]
    q = quantize(torch.randn(2, 3), weight_scheme(8))
    with pytest.raises(
        WeightsError, match=r"its codes take \d values, and a table of 1 bits holds 2"
    ):
        layer_of(node, q, None, Encoding(0.1, 0, U8), 0.0, 0.0, table_bits=1)

"""How many bits each tensor has: what its readers want, and requantize where they disagree."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.model.calibrate import encodings, gather
from bitsmith.model.graph import capture, simplify
from bitsmith.model.graph.operators import run_float
from bitsmith.model.place import Placement, place
from bitsmith.model.presets import make_recipe
from bitsmith.model.ptq import ptq
from bitsmith.model.targets import make_target
from bitsmith.numbers.calibrators import make_calibrator

TARGET = make_target("onnxruntime")


class Net(nn.Module):
    """A function of x and layers that can be used anywhere in it."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.head = nn.Linear(8, 8)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def placed(function: Callable[..., Tensor], recipe: str = "W4A4") -> Placement:
    graph = simplify(capture(Net(function), torch.randn(2, 8, 6, 6)))
    return place(graph, TARGET, make_recipe(recipe))


def bits(placement: Placement) -> dict[str, int]:
    return {t: placement.activation(t).integer.bits for t in placement.group}


def requantized(placement: Placement) -> dict[str, tuple[str, ...]]:
    """Name of every requantize node → the nodes that read it."""
    graph = placement.graph
    return {
        n.name: tuple(r.name for r in graph.consumers(n.name))
        for n in graph
        if n.op == "requantize"
    }


def chain(m: Net, x: Tensor) -> Tensor:
    return m.head(m.c(m.b(m.a(x).relu()).relu()).mean((2, 3)))


def residual(m: Net, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    return m.head((y + m.b(y)).relu().mean((2, 3)))


def test_a_chain_has_the_bits_of_its_layers_and_the_pool_eight():
    placement = placed(chain)
    assert requantized(placement) == {}
    assert bits(placement) == {"x": 4, "a": 4, "b": 4, "c": 8, "mean.pool": 4, "mean": 4}


def test_edges_have_eight_bits_in_weights_and_inputs():
    placement = placed(chain, "W4A4-edge8")
    assert bits(placement) == {"x": 8, "a": 4, "b": 4, "c": 8, "mean.pool": 8, "mean": 8}
    found = {name: scheme.format.bits for name, scheme in placement.weights.items()}
    assert found == {"a": 8, "b": 4, "c": 4, "head": 8}


def test_eight_bits_add_nothing():
    graph = simplify(capture(Net(residual), torch.randn(2, 8, 6, 6)))
    placement = place(graph, TARGET, make_recipe("W4A8"))
    assert placement.graph is graph
    assert set(bits(placement).values()) == {8}


def test_a_sum_reads_eight_bits_and_the_layer_its_own():
    placement = placed(residual)
    assert requantized(placement) == {"a.a4": ("b",)}
    found = bits(placement)
    assert (found["a"], found["a.a4"], found["b"]) == (8, 4, 8)
    outcome = placement.outcomes["a.a4"]
    assert (outcome.kind, outcome.reason) == ("codes", "DequantizeLinear, QuantizeLinear")
    assert placement.group["a.a4"] == "a.a4"
    node = placement.graph.node("a.a4")
    assert (node.op, node.inputs, node.shape) == ("requantize", ("a",), (-1, 8, 6, 6))
    assert placement.graph.node("add").inputs[0] == "a"


def test_one_node_serves_all_readers_of_one_width():
    placement = placed(lambda m, x: m.c(m.a(y := m.c(x)) + m.b(y) + y))
    (readers,) = requantized(placement).values()
    assert set(readers) == {"a", "b"}


def test_each_width_has_its_node():
    """The first layer is an edge: it and the second read x, and so does a sum."""
    placement = placed(lambda m, x: m.c(m.a(x) + m.b(x)), "W3A3-edge8")
    assert bits(placement)["x"] == 8
    assert requantized(placement) == {"x.a3": ("b",)}


def test_moves_pass_on_what_their_readers_want():
    placement = placed(lambda m, x: m.b(F.pad(F.max_pool2d(m.a(x), 2), (1, 1, 0, 0))))
    found = bits(placement)
    assert found["a"] == found["max_pool"] == found["pad"] == 4
    mixed = placed(
        lambda m, x: m.c((y := m.a(x)) + F.interpolate(m.b(F.max_pool2d(y, 2)), None, 2))
    )
    assert requantized(mixed) == {"max_pool.a4": ("b",)}
    assert bits(mixed)["max_pool"] == bits(mixed)["a"] == 8


def test_what_leaves_as_codes_has_eight_bits():
    """A float reader, or the output, reads 8-bit codes; a layer beside it its own."""
    placement = placed(lambda m, x: F.silu(y := m.a(x)) * m.b(y))
    assert bits(placement)["a"] == 8
    assert requantized(placement) == {"a.a4": ("b",)}
    assert bits(placed(lambda m, x: m.b(m.a(x))))["b"] == 8


def test_softmax_has_eight_bits_always():
    """Its kernel demands a range that fewer bits cannot have."""
    placement = placed(
        lambda m, x: (m.a(x).flatten(2) @ m.b(x).flatten(2).mT).softmax(-1) @ m.c(x).flatten(2)
    )
    found = bits(placement)
    assert found["softmax"] == 8
    assert requantized(placement) == {"softmax.a4": ("matmul_2",)}


def test_a_name_that_is_taken():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential()
            self.a.a4 = nn.Conv2d(8, 8, 1)
            self.first = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.a.a4(x) + x

    graph = simplify(capture(Named(), torch.randn(2, 8, 6, 6)))
    first = graph.node("first")
    renamed = graph.with_nodes(
        [n.with_(name="a") if n.name == "first" else n for n in graph], renamed={"first": "a"}
    )
    assert first is not None
    placement = place(renamed, TARGET, make_recipe("W4A4"))
    assert requantized(placement) == {"a.a4_": ("a.a4",)}


def test_ranges_are_those_of_the_same_values():
    """The narrow encoding keeps inside the fused clamp and around pads, like the wide one."""
    net = Net(lambda m, x: m.c((y := F.pad(m.a(x).relu(), (1, 1, 1, 1), value=-0.5)) + m.b(y)))
    graph = simplify(capture(net, torch.randn(2, 8, 6, 6)))
    placement = place(graph, TARGET, make_recipe("W4A4"))
    calibrator = make_calibrator("minmax")
    statistics = gather(placement, calibrator, [torch.randn(16, 8, 6, 6)])
    found = encodings(placement, TARGET, calibrator, statistics)
    wide, narrow = found["pad"], found["pad.a4"]
    assert (wide.format.bits, narrow.format.bits) == (8, 4)
    assert wide.low == pytest.approx(-0.5, abs=wide.scale)
    assert narrow.low == pytest.approx(-0.5, abs=narrow.scale)
    assert narrow.scale == pytest.approx(wide.scale * 17, rel=0.05)


def test_a_requantized_relu_has_zero_point_zero():
    graph = simplify(capture(Net(residual), torch.randn(2, 8, 6, 6)))
    placement = place(graph, TARGET, make_recipe("W4A4"))
    calibrator = make_calibrator("percentile:99")
    statistics = gather(placement, calibrator, [torch.randn(16, 8, 6, 6)])
    found = encodings(placement, TARGET, calibrator, statistics)
    assert found["a.a4"].zero_point == found["a"].zero_point == 0


def test_in_float_it_is_the_identity():
    placement = placed(residual)
    x = torch.randn(3, 8, 6, 6)
    seen: dict[str, Tensor] = {}
    run_float(placement.graph, [x], lambda name, value: seen.update({name: value}))
    assert torch.equal(seen["a"], seen["a.a4"])


def test_in_integers_it_is_dequantize_then_quantize():
    model = ptq(Net(residual), "W3A3", [torch.randn(16, 8, 6, 6)])
    values = model.trace(torch.randn(4, 8, 6, 6))
    wide, narrow = model.program.encodings["a"], model.program.encodings["a.a3"]
    expected = narrow.quantize(wide.dequantize(values.codes["a"]))
    assert torch.equal(values.codes["a.a3"], expected)
    assert int(values.codes["a.a3"].max()) == 7
    assert values.codes["a.a3"].dtype == torch.uint8


def test_what_is_real_is_quantized_once():
    """A tensor that is computed in float is not rounded to 8 bits on its way to 4."""
    model = ptq(Net(lambda m, x: m.c(m.a(x) + x)), "W4A4", [torch.randn(16, 8, 6, 6)])
    x = torch.randn(4, 8, 6, 6)
    values = model.trace(x)
    assert torch.equal(values.codes["x.a4"], model.program.encodings["x.a4"].quantize(x))

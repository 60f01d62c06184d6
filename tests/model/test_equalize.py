"""Cross-layer equalization of graphs: the function stays, weights of one scale lose less."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from bitsmith.algorithms import Nearest, Rounded
from bitsmith.errors import DataError, InputError
from bitsmith.model.calibrate import encodings, gather
from bitsmith.model.channel_links import Link, Stop, channel_links
from bitsmith.model.convert import integer_layer
from bitsmith.model.equalize import equalize
from bitsmith.model.graph import Graph, capture, run_float, simplify
from bitsmith.model.place import place
from bitsmith.model.presets import make_recipe
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.sequential import Sweep, sequential
from bitsmith.model.simulate import Program
from bitsmith.model.targets import make_target
from bitsmith.numbers import QTensor, Scheme, int8
from bitsmith.numbers.calibrators import make_calibrator
from bitsmith.zoo.models.mobilenet_small import MobileNet
from networks.harness import randomised
from networks.structured import Residual

SHAPE = (3, 12, 12)


def images(n: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def depthwise_net(act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A stem, two depthwise separable blocks, a classifier."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        act(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        act(),
        nn.Conv2d(16, 24, 1),
        act(),
        nn.Conv2d(24, 24, 3, 2, padding=1, groups=24),
        act(),
        nn.Conv2d(24, 32, 1),
        act(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


@torch.no_grad()
def badly_scaled(net: nn.Sequential, decades: float = 1.2, seed: int = 0) -> nn.Sequential:
    """The same function with every channel between two layers multiplied by up to 10^±decades."""
    generator = torch.Generator().manual_seed(seed)
    layers = [m for m in net if isinstance(m, nn.Conv2d | nn.Linear)]
    for one, two in itertools.pairwise(layers):
        s = 10 ** ((torch.rand(len(one.weight), generator=generator) * 2 - 1) * decades)
        one.weight *= s.reshape(-1, *[1] * (one.weight.dim() - 1))
        one.bias *= s
        depthwise = getattr(two, "groups", 1) > 1
        two.weight /= s.reshape(-1, 1, 1, 1) if depthwise else s.reshape(1, -1, *[1] * (
            two.weight.dim() - 2))  # fmt: skip
    return net


def graph_of(net: nn.Module, shape: tuple[int, ...] = SHAPE) -> Graph:
    return simplify(capture(net, [images(2, 9, shape)]))


def test_the_function_stays_and_the_ranges_become_equal():
    graph = graph_of(badly_scaled(depthwise_net()))
    done, rows = equalize(graph)
    x = images(32)
    (before,), (after,) = run_float(graph, [x]), run_float(done, [x])
    assert float((before - after).abs().max()) <= 1e-5 * float(before.abs().max())
    assert [r.outcome for r in rows] == ["equalized"] * 5 + ["skipped"]
    assert "output of the model" in rows[-1].reason
    assert max(r.after for r in rows) < 4 < min(r.before for r in rows[:-1])


def test_per_tensor_weights_win_back_their_accuracy():
    """W8A8 with one scale a tensor, in integers: what bad scaling cost is back, and more."""
    graph = graph_of(badly_scaled(depthwise_net()))
    plain, x = graph_of(depthwise_net()), images(256, 5)
    (expected,) = run_float(graph, [x])

    def noise(graph: Graph, sweep: bool) -> float:
        return float(
            (in_integers(graph, sweep)(x) - expected).square().mean() / expected.var(0).mean()
        )

    spoilt, ordinary = noise(graph, False), noise(plain, False)
    won = noise(equalize(graph)[0], True)
    assert spoilt > 10 * ordinary
    assert won < spoilt - 0.9 * (spoilt - ordinary)
    assert won < 2 * ordinary


@dataclass(frozen=True)
class OneScale:
    """What a runtime demands that has one scale for a whole weight: it is repeated per channel."""

    name = "one-scale"
    lowers_error = False
    needs = takes = None

    def __call__(self, weight: Tensor, scheme: Scheme, **_: object) -> Rounded:
        found = Nearest()(weight, Scheme(int8))
        scale = found.qtensor.scale.expand(len(weight)).reshape(
            scheme.granularity.scale_shape(weight.shape)
        )
        zero = torch.zeros_like(scale, dtype=torch.int32)
        q = QTensor(found.qtensor.codes, scale.contiguous(), zero, None, scheme)
        return replace(found, qtensor=q)


def in_integers(graph: Graph, sweep: bool) -> QuantizedModel:
    recipe = make_recipe("W8A8")
    target, ranges = make_target("onnxruntime"), make_calibrator("mse")
    target.rounding = lambda *_: OneScale()
    placement, batches = place(graph, target, recipe), images(64).split(16)
    found = encodings(placement, target, ranges, gather(placement, ranges, batches))
    layers = {
        name: integer_layer(node, placement, target, found[node.inputs[0]])
        for name in placement.weights
        if (node := placement.graph.node(name)) is not None
    }
    if sweep:
        layers, _ = sequential(placement, target, found, batches, Sweep(toward_float=False))
    program = Program(placement.graph, placement.outcomes, found, layers)
    return QuantizedModel(program, recipe, "onnxruntime", "any", {})


def test_relu6_stays_unless_its_end_is_never_reached():
    net = badly_scaled(depthwise_net(nn.ReLU6), 0.5)
    graph = graph_of(net)
    _, rows = equalize(graph)
    assert all(r.outcome == "skipped" for r in rows)
    assert "which no factor passes" in rows[0].reason
    data = [images(16) * 20]
    _, strict = equalize(graph, data, replace_relu6=True, tolerance=0.0)
    (before,) = run_float(graph, data)
    with torch.no_grad():
        free = nn.Sequential(*[nn.ReLU() if isinstance(m, nn.ReLU6) else m for m in net])
        reached = not torch.equal(free(data[0]), before)
    assert reached
    assert any("the outputs change by" in r.reason for r in strict)
    done, loose = equalize(graph, data, replace_relu6=True, tolerance=1e9)
    assert all(r.outcome == "equalized" for r in loose[:-1])
    assert "relu instead of the clamp" in loose[0].reason
    (after,) = run_float(done, data)
    assert torch.allclose(after, free(data[0]), atol=1e-5 * float(after.abs().max()))


def test_high_biases_move_on_where_the_next_layer_pads_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)
    )
    with torch.no_grad():
        net[0].bias[:4] += 40
        net[2].bias[:4] += 400
    graph, x = graph_of(net), [images(64)]
    done, rows = equalize(graph, x, absorb=True, tolerance=1e-6)
    assert [r.absorbed > 0 for r in rows] == [True, False, False]
    node = done.node(rows[0].layer)
    low, high = (
        float(graph.param(graph.nodes[0], "bias").max()),
        float(done.param(node, "bias").max()),
    )
    assert high < 0.2 * low
    (before,), (after,) = run_float(graph, x), run_float(done, x)
    assert float((before - after).square().mean() / before.var()) <= 1e-6


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 4, 3)), "sigmoid"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardtanh(0.5, 2.0), nn.Conv2d(8, 4, 3)), "0.5"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConstantPad2d(1, 1.0), nn.Conv2d(8, 4, 3)), "pad"),
    ],
)
def test_what_lets_no_factor_pass(net, expected):
    graph = graph_of(net)
    done, rows = equalize(graph)
    assert done is not None
    assert rows[0].outcome == "skipped"
    assert expected in rows[0].reason


def test_layers_that_share_a_weight_or_a_reader_are_left_alone():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(self.one(x)))

    found = channel_links(graph_of(Twice(), (4, 5, 5)))
    assert all(isinstance(x, Stop) for x in found)
    assert "other layers use the weight" in found[0].reason
    residual = channel_links(graph_of(randomised(Residual()), (8, 9, 10)))
    assert any(isinstance(x, Link) for x in residual)
    assert any(isinstance(x, Stop) and "read by" in x.reason for x in residual)


@pytest.mark.parametrize(
    "between",
    [
        nn.MaxPool2d(2),
        nn.AvgPool2d(2, padding=1),
        nn.Upsample(scale_factor=2),
        nn.ZeroPad2d(1),
        nn.LeakyReLU(0.1),
    ],
)
def test_factors_pass(between):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), between, nn.Conv2d(6, 4, 3, padding=1))
    with torch.no_grad():
        net[0].weight *= 10 ** torch.linspace(-2, 2, 6).reshape(-1, 1, 1, 1)
    graph = graph_of(net)
    done, rows = equalize(graph)
    assert rows[0].outcome == "equalized"
    assert rows[0].after < 0.1 * rows[0].before
    x = images(4)
    (before,), (after,) = run_float(graph, [x]), run_float(done, [x])
    assert float((before - after).abs().max()) <= 1e-5 * float(before.abs().max())


def test_a_flattened_image_counts_each_channel_with_its_positions():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 100, 5))
    graph = graph_of(net)
    (link, _) = channel_links(graph)
    assert isinstance(link, Link)
    assert link.repeat == 100
    done, rows = equalize(graph)
    assert rows[0].outcome == "equalized"
    x = images(4)
    assert torch.allclose(run_float(graph, [x])[0], run_float(done, [x])[0], atol=1e-5)


def test_mobilenet_of_the_zoo_is_all_chains():
    torch.manual_seed(0)
    graph = graph_of(randomised(MobileNet(channels=3)), (3, 32, 32))
    data = [images(8, 0, (3, 32, 32))]
    done, rows = equalize(graph, data, replace_relu6=True, tolerance=10.0)
    passed = [r for r in rows if r.outcome == "equalized"]
    assert len(passed) >= 2 * 7 + 1
    assert sum(r.after for r in passed) < 0.7 * sum(r.before for r in passed)
    assert done.outputs == graph.outputs


def test_bad_input():
    graph = graph_of(depthwise_net())
    with pytest.raises(InputError, match="give data"):
        equalize(graph, replace_relu6=True)
    with pytest.raises(InputError, match="tolerance"):
        equalize(graph, tolerance=float("nan"))
    with pytest.raises(DataError, match="no samples"):
        equalize(graph, [])
    with pytest.raises(DataError, match="NaN"):
        equalize(graph, [torch.full((8, *SHAPE), float("nan"))])

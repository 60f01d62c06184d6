"""A float graph with rounded layers: against PyTorch by hand, in parts and whole."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bitsmith.errors import DataError, WeightsError
from bitsmith.model.graph import capture, simplify
from bitsmith.model.graph.operators import run_float
from bitsmith.model.rounded import (
    RoundedModel,
    input_statistics,
    multiplying,
    round_inputs,
    round_layers,
    run_part,
)
from bitsmith.numbers.calibrators import make_calibrator
from bitsmith.numbers.formats.integer import int4, int8, uint4
from bitsmith.numbers.scheme import PerChannel, Scheme


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(3 * 3 * 3, 5),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def graph(module):
    return simplify(capture(module, torch.zeros(2, 2, 8, 8)))


@pytest.fixture(scope="module")
def x():
    return torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def by_hand(x, low, high, levels):
    """Unsigned codes of a range that holds 0, in NumPy."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / levels)
    zero = np.clip(np.round(-low / scale), 0, levels)
    return (np.clip(np.round(x / scale) + zero, 0, levels) - zero) * scale


def test_a_network_rounded_by_hand(module, graph, x):
    weight = Scheme(int8, granularity=PerChannel(0))
    calibrator = make_calibrator("minmax")
    statistics = input_statistics(graph, calibrator, [x])
    layers = round_inputs(
        graph, round_layers(graph, weight), Scheme(uint4, False), calibrator, statistics
    )
    got = RoundedModel(graph, layers)(x)
    a, real = x, x
    for layer in module:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            low, high = float(real.detach().min()), float(real.detach().max())
            read = torch.from_numpy(by_hand(a.numpy(), low, high, 15)).float()
            w = layer.weight.detach().numpy()
            scale = np.abs(w).reshape(len(w), -1).max(1).reshape(-1, *[1] * (w.ndim - 1)) / 127
            w = torch.from_numpy(np.round(w / scale) * scale).float()
            if isinstance(layer, nn.Linear):
                a = functional.linear(read, w, layer.bias)
            else:
                a = functional.conv2d(read, w, layer.bias, layer.stride, layer.padding)
            real = layer(real)
        else:
            a, real = layer(a), layer(real)
        a = a.detach()
    # one code of difference at a tie is far more than this
    assert torch.allclose(got, a, atol=1e-4)


def test_without_rounded_layers_it_is_the_float_graph(graph, x):
    whole = run_float(graph, [x])[0]
    assert torch.equal(RoundedModel(graph, {})(x), whole)


def test_parts_are_the_whole(graph, x):
    layers = round_layers(graph, Scheme(int4, granularity=PerChannel(0)))
    name = graph.inputs[0].name
    whole = run_part(graph, {name: x}, layers, keep=True)
    for cut in range(len(graph.nodes) + 1):
        given = {name: x}
        first = run_part(graph, given, layers, 0, cut)
        assert given == {name: x}
        last = run_part(graph, first, layers, cut)
        assert torch.equal(last[graph.outputs[0]], whole[graph.outputs[0]])


def test_one_layer_alone(graph, x):
    layers = round_layers(graph, Scheme(int4, granularity=PerChannel(0)))
    node = multiplying(graph)[1]
    plain = run_part(graph, {graph.inputs[0].name: x}, {}, keep=True)
    found = run_part(graph, {graph.inputs[0].name: x}, {node.name: layers[node.name]}, keep=True)
    before = [n.name for n in graph.nodes[: graph.nodes.index(node)]]
    assert all(torch.equal(plain[n], found[n]) for n in before)
    assert not torch.equal(plain[node.name], found[node.name])


def test_bad_weights_and_bad_data_are_refused(graph):
    broken = nn.Sequential(nn.Linear(3, 2))
    small = simplify(capture(broken, torch.zeros(2, 3)))
    small.params[small.nodes[0].params["weight"]][0, 0] = float("nan")
    with pytest.raises(WeightsError, match="1 weights are NaN or infinite"):
        round_layers(small, Scheme(int8))
    bad = torch.full((2, 2, 8, 8), float("inf"))
    with pytest.raises(DataError):
        input_statistics(graph, make_calibrator("mse"), [bad])

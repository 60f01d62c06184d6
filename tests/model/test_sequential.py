"""The sweep over a placed graph: sums against brute force, codes, biases, bounds and memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bitsmith.algorithms import Rounding
from bitsmith.errors import DataError, InputError, UnknownNameError
from bitsmith.model import sequential as module
from bitsmith.model.calibrate import encodings, gather
from bitsmith.model.convert import integer_layer
from bitsmith.model.graph import capture, run_float, simplify
from bitsmith.model.graph.ir import Node
from bitsmith.model.layer_sums import LayerSums, input_rows
from bitsmith.model.place import Placement, place
from bitsmith.model.presets import make_recipe
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.sequential import Sweep, sequential
from bitsmith.model.simulate import Program
from bitsmith.model.targets import make_target
from bitsmith.numbers.calibrators import make_calibrator
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.integer import max_pair_sum
from networks.harness import randomised
from networks.structured import Residual

PLAIN = Sweep(toward_float=False)


def images(n: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=(0, 2), dilation=(1, 2), groups=4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 15, 24),
        nn.ReLU(),
        nn.Linear(24, 5),
    ).eval()


def prepared(
    net: nn.Module, recipe: str, shape: tuple[int, ...], machine: str = "any"
) -> tuple[Placement, dict[str, Encoding]]:
    x = images(64, shape)
    graph = simplify(capture(net, [x[:2]]))
    chosen, target = make_recipe(recipe), make_target("onnxruntime", machine)
    placement, ranges = place(graph, target, chosen), make_calibrator("mse")
    return placement, encodings(placement, target, ranges, gather(placement, ranges, [x]))


def model(placement: Placement, found: dict[str, Encoding], layers: dict) -> QuantizedModel:
    program = Program(placement.graph, placement.outcomes, found, layers)
    return QuantizedModel(program, make_recipe("W8A8"), "onnxruntime", "any", {})


def _layers() -> list[nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [
            nn.Conv2d(6, 4, 3),
            nn.Conv2d(6, 6, (3, 2), (2, 1), padding=(1, 2), groups=6),
            nn.Conv2d(6, 9, 3, padding=2, dilation=(1, 2), groups=3),
            nn.Conv1d(6, 8, 3, 2, padding=1, groups=2),
            nn.Linear(11, 4),
        ]


CONVOLUTIONS = _layers()


def as_node(layer: nn.Module) -> Node:
    if isinstance(layer, nn.Linear):
        return Node("n", "linear", ("x",))
    attrs = {k: list(getattr(layer, k)) for k in ("stride", "padding", "dilation")}
    return Node("n", "conv", ("x",), {**attrs, "groups": layer.groups})


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_rows_times_weights_are_the_layer(layer):
    shape = (5, 6, 11, 11)[: layer.weight.dim()] if layer.weight.dim() > 2 else (5, 3, 11)
    x, w = images(shape[0], shape[1:]), layer.weight.detach()
    rows = input_rows(as_node(layer), x, tuple(w.shape[2:]))
    groups = getattr(layer, "groups", 1)
    found = w.reshape(groups, -1, rows.shape[1]) @ rows
    with torch.no_grad():
        y = layer(x) - layer.bias.reshape(-1, *[1] * (layer.weight.dim() - 2))
    axis = -1 if isinstance(layer, nn.Linear) else 1
    assert torch.allclose(found.flatten(0, 1), y.movedim(axis, 0).flatten(1), atol=1e-5)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_the_miss_is_what_running_both_layers_shows(layer, centred):
    """Exactly the mean square of a difference of outputs, whatever the codes and the inputs."""
    shape = (40, 6, 11, 11)[: layer.weight.dim()] if layer.weight.dim() > 2 else (80, 3, 11)
    real, seen = images(shape[0], shape[1:]), images(shape[0], shape[1:], 1) + 1
    seen = seen + real
    w, axis = layer.weight.detach(), -1 if isinstance(layer, nn.Linear) else 1
    q = (w * 8).round() / 8

    def run(weight: Tensor, x: Tensor) -> Tensor:
        twin = type(layer)(*_arguments(layer), bias=False).double()
        twin.weight.data = weight.double()
        with torch.no_grad():
            return twin(x.double()).movedim(axis, 0).flatten(1)

    sums = LayerSums(as_node(layer), w)
    y = run(w, real)
    for part, out in zip(seen.split(13), real.split(13), strict=True):
        twin = run(w, out).float()
        sums.update(part, _unflattened(layer, twin, out))
    difference = run(q, seen) - y
    expected = difference.var(1, correction=0) if centred else difference.square().mean(1)
    assert torch.allclose(sums.miss(q, centred), expected, rtol=1e-4)
    assert torch.allclose(sums.mean_y, y.mean(1), atol=1e-5)
    assert torch.allclose(sums.mean_output(q), run(q, seen).mean(1), atol=1e-5)
    best, damping = sums.toward_float(centred, [1e-6])
    assert damping == 1e-6
    assert (sums.miss(best, centred) <= sums.miss(w, centred) * (1 + 1e-6)).all()
    g = torch.Generator().manual_seed(0)
    for _ in range(5):  # no other weight near it misses less
        other = best + 0.02 * torch.randn(w.shape, generator=g)
        assert (sums.miss(best, centred) <= sums.miss(other, centred) * (1 + 1e-4)).all()


def _arguments(layer: nn.Module) -> tuple:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
            layer.dilation, layer.groups)  # fmt: skip


def _unflattened(layer: nn.Module, rows: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        like = layer(x)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    return rows.reshape(like.movedim(axis, 0).shape).movedim(0, axis)


def test_too_few_samples_leave_the_weight_as_it_is():
    """What the inputs cost at random on one half of the samples says nothing of the other."""
    layer = nn.Linear(60, 4)
    sums, w = LayerSums(as_node(layer), layer.weight.detach()), layer.weight.detach()
    x = images(30, (60,))
    sums.update(x, x @ w.T + images(30, (4,), 1))
    best, damping = sums.toward_float(True, [1e-6, 1e-3])
    assert damping == float("inf")
    assert torch.equal(best, w)


def test_a_share_of_the_rows_is_near_and_means_are_exact():
    layer = CONVOLUTIONS[0]
    x, w = images(40, (6, 11, 11)), layer.weight.detach()
    whole, some = LayerSums(as_node(layer), w), LayerSums(as_node(layer), w, 0.25)
    y = torch.nn.functional.conv2d(x, w)
    for sums in (whole, some):
        sums.update(x * 0.9, y)
    assert some.rows == pytest.approx(whole.rows / 4, abs=1)
    assert torch.equal(some.mean_x, whole.mean_x)
    q = (w * 8).round() / 8
    assert torch.allclose(some.miss(q, False), whole.miss(q, False), rtol=0.15)


@pytest.mark.parametrize("recipe", ["W4A8", "W3A8", "W2A8", "W4A4"])
def test_the_sweep_is_better_than_nearest(recipe):
    placement, found = prepared(small(), recipe, (3, 12, 12))
    target = make_target("onnxruntime")
    layers, rows = sequential(placement, target, found, [images(64, (3, 12, 12))])
    plain = {
        n: integer_layer(placement.graph.node(n), placement, target,
                         found[placement.graph.node(n).inputs[0]])
        for n in placement.weights
    }  # fmt: skip
    x = images(256, (3, 12, 12), 7)
    (expected,) = run_float(placement.graph, [x])

    def noise(layers: dict) -> float:
        found_y = model(placement, found, layers)(x)
        return float((found_y - expected).square().mean())

    assert noise(layers) < 0.75 * noise(plain)
    assert [r.layer for r in rows] == list(placement.weights)
    for r in rows:
        assert r.objective <= r.nearest_objective
        assert r.bias_error <= r.bias_error_before
        assert r.kept_nearest == (r.objective == r.nearest_objective)
    assert "grouped-descent" in {r.rounding for r in rows}
    assert "coordinate" in {r.rounding for r in rows}


@pytest.mark.parametrize("name", ["nearest", "searched", "gptq", "coordinate"])
@pytest.mark.parametrize("toward_float", [False, True])
def test_the_stated_errors_are_those_of_the_run(name, toward_float):
    """Of every layer, by running it: variance and squared mean of what its output misses."""
    net, shape = small(), (3, 12, 12)
    placement, found = prepared(net, "W4A8", shape)
    x = images(48, shape, 3)
    sweep = Sweep(name, toward_float=toward_float)
    layers, rows = sequential(placement, make_target("onnxruntime"), found, x.split(20), sweep)
    floats: dict[str, Tensor] = {}
    run_float(placement.graph, [x], floats.__setitem__)
    values = model(placement, found, layers).trace(x)
    for row in rows:
        node = placement.graph.node(row.layer)
        layer, source = layers[row.layer], node.inputs[0]
        step = torch.tensor(found[source].scale) * layer.weight.scale.reshape(-1)
        params = {"weight": placement.graph.param(node, "weight"),
                  "bias": placement.graph.param(node, "bias")}  # fmt: skip
        y = _before_activation(node, params, floats[source])
        q = {"weight": layer.weight.dequantize(), "bias": (layer.bias * step).float()}
        x_q = found[source].dequantize(values.code(source))
        miss = _before_activation(node, q, x_q) - y
        miss = miss.movedim(1, 0).flatten(1).double()
        assert row.objective == pytest.approx(float(miss.var(1, correction=0).mean()), rel=1e-3)
        assert row.bias_error == pytest.approx(
            float(miss.mean(1).square().mean()), rel=2e-2, abs=1e-9
        )


def _before_activation(node: Node, params: dict[str, Tensor], x: Tensor) -> Tensor:
    w, b = params["weight"].double(), params["bias"].double()
    if node.op == "linear":
        return nn.functional.linear(x.double(), w, b)
    a = node.attrs
    return nn.functional.conv2d(
        x.double(), w, b, a["stride"], a["padding"], a["dilation"], a["groups"]
    )


def test_signs_and_tables():
    data, target = [images(64, (3, 12, 12))], make_target("onnxruntime")
    placement, found = prepared(small(), "W1A8", (3, 12, 12))
    layers, rows = sequential(placement, target, found, data)
    assert {r.bits for r in rows} == {1}
    assert all(set(x.weight.codes.unique().tolist()) == {-1, 1} for x in layers.values())
    placement, found = prepared(small(), "CODEBOOK2A8", (3, 12, 12))
    layers, rows = sequential(placement, target, found, data)
    for r in rows:
        assert (r.bits, r.kept_nearest) == (2, False)
        assert r.objective < r.nearest_objective
        assert r.bias_error < r.bias_error_before
        assert len(layers[r.layer].weight.codes.unique()) <= 4
        assert layers[r.layer].table is not None
    assert {r.rounding for r in rows} == {"shared-table", "grouped-descent"}


def test_codes_of_eight_bits_obey_the_machine():
    placement, found = prepared(small(), "W4A8-edge8", (3, 12, 12))
    data = [images(32, (3, 12, 12))]
    layers, rows = sequential(placement, make_target("onnxruntime"), found, data)
    first, last = (layers[r.layer] for r in (rows[0], rows[-1]))
    assert [r.bits for r in rows] == [8, 4, 4, 4, 8]
    assert int(max_pair_sum(first.weight.codes).max()) <= 128
    assert int(max_pair_sum(last.weight.codes).max()) <= 128
    assert rows[0].rounding == "pair-bound"


def test_a_layer_without_bias_gets_one_and_zeros_stay_zero():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.Flatten(),
        nn.Linear(256, 3),
    )
    with torch.no_grad():
        net[2].weight[1] = 0
        net[2].bias[1] = 1.5
    placement, found = prepared(net, "W3A8", (3, 12, 12))
    layers, rows = sequential(
        placement, make_target("onnxruntime"), found, [images(32, (3, 12, 12))]
    )
    assert layers[rows[0].layer].bias is not None
    plain, _ = sequential(
        placement, make_target("onnxruntime"), found, [images(32, (3, 12, 12))],
        Sweep(correct_bias=False, toward_float=False),
    )  # fmt: skip
    assert plain[rows[0].layer].bias is None
    empty = layers[rows[1].layer]
    assert not empty.weight.codes[1].any()
    step = found[placement.graph.node(rows[1].layer).inputs[0]].scale * empty.weight.scale[1].item()
    assert float(empty.bias[1] * step) == pytest.approx(1.5, rel=1e-4)


def test_branches_and_the_same_result_every_time():
    placement, found = prepared(randomised(Residual()), "W4A4-edge8", (8, 9, 10))
    data = images(40, (8, 9, 10)).split(16)
    target = make_target("onnxruntime")
    (one, rows), (two, again) = (sequential(placement, target, found, data) for _ in range(2))
    assert rows == again
    for name in one:
        assert torch.equal(one[name].weight.codes, two[name].weight.codes)
        assert torch.equal(one[name].bias, two[name].bias)


def test_tensors_go_after_their_last_reader(monkeypatch):
    placement, found = prepared(randomised(Residual()), "W4A8", (8, 9, 10))
    held: list[int] = []

    def counted(node: Node, placement: Placement, batch: object) -> None:
        run(node, placement, batch)
        held.append(len(batch.floats))

    run = module._run
    monkeypatch.setattr(module, "_run", counted)
    sequential(placement, make_target("onnxruntime"), found, [images(16, (8, 9, 10))])
    assert max(held) <= 4 < len(placement.graph.nodes)


def test_no_more_samples_than_asked_for(monkeypatch):
    placement, found = prepared(small(), "W4A8", (3, 12, 12))
    taken: list[int] = []

    def endless():
        for seed in range(1000):
            taken.append(seed)
            yield images(16, (3, 12, 12), seed)

    sequential(placement, make_target("onnxruntime"), found, endless(), replace(PLAIN, samples=24))
    assert taken == [0, 1]


def test_bad_input():
    placement, found = prepared(small(), "W4A8", (3, 12, 12))
    target = make_target("onnxruntime")
    with pytest.raises(DataError, match="no samples"):
        sequential(placement, target, found, [])
    with pytest.raises(DataError, match="shape"):
        sequential(placement, target, found, [torch.zeros(4, 3, 9, 12)])
    with pytest.raises(DataError, match="NaN"):
        sequential(placement, target, found, [torch.full((4, 3, 12, 12), float("nan"))])
    with pytest.raises(UnknownNameError, match="did you mean 'gptq'"):
        Sweep("gptqq")
    for wrong in (
        {"dampings": (1.0, 0.0)},
        {"samples": 0},
        {"rows": 0},
        {"dampings": (float("nan"),)},
    ):
        with pytest.raises(InputError):
            Sweep(**wrong)
    assert "gptq" in Rounding.registry

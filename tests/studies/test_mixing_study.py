"""Mixing: the four sums against integers by brute force, operations counted by hand."""

import itertools

import pytest
import torch
from torch import nn

from bitsmith.errors import InputError
from bitsmith.insight.evaluation import Evaluation, difference
from bitsmith.model.graph import capture, simplify
from bitsmith.model.rounded import (
    input_statistics,
    multiplying,
    round_inputs,
    round_layers,
    run_part,
)
from bitsmith.numbers.affine import quantize_codes
from bitsmith.numbers.calibrators import make_calibrator
from bitsmith.numbers.formats.integer import int4, int8
from bitsmith.numbers.scheme import PerChannel, Scheme
from bitsmith.studies import Options, studies
from bitsmith.studies.mixing.findings import findings
from bitsmith.studies.mixing.outcomes import BITS, COMBINATIONS, Outcome
from bitsmith.studies.mixing.terms import TERMS, Cost, LayerTerms, cost, layer_terms


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 9, 3),
    )  # fmt: skip
    return simplify(capture(module.eval(), torch.zeros(2, 2, 6, 6)))


@pytest.fixture(scope="module")
def x():
    return torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1)) + 0.4


def rounded(graph, x, inputs, weights, number=int8):
    calibrator = make_calibrator("minmax")
    layers = round_layers(graph, Scheme(number, weights == "symmetric", PerChannel(0)))
    scheme = Scheme(number, inputs == "symmetric")
    statistics = input_statistics(graph, calibrator, [x])
    return round_inputs(graph, layers, scheme, calibrator, statistics)


def brute_force(q_x, z_x, q_w, z_w, stride, padding):
    """The four sums and the whole of a convolution in two groups, number by number."""
    n, _, height, width = q_x.shape
    out = (height + 2 * padding - 3) // stride + 1
    terms = dict.fromkeys(TERMS, 0.0)
    whole, count = 0.0, 0
    for b, o, i, j in itertools.product(range(n), range(len(q_w)), range(out), range(out)):
        sums = dict.fromkeys(TERMS, 0)
        for c, u, v in itertools.product(range(q_w.shape[1]), range(3), range(3)):
            channel = c + (o // 2) * q_w.shape[1]
            row, column = i * stride + u - padding, j * stride + v - padding
            inside = 0 <= row < height and 0 <= column < width
            code = int(q_x[b, channel, row, column]) if inside else z_x
            w = int(q_w[o, c, u, v])
            sums["products"] += code * w
            sums["inputs"] -= z_w[o] * code
            sums["weights"] -= z_x * w
            sums["constant"] += z_x * z_w[o]
        for name in TERMS:
            terms[name] += abs(sums[name])
        whole += abs(sum(sums.values()))
        count += 1
    return {name: value / count for name, value in terms.items()}, whole / count


@pytest.mark.parametrize(("inputs", "weights"), COMBINATIONS)
def test_the_four_sums_are_those_of_brute_force(graph, x, inputs, weights):
    layers = rounded(graph, x, inputs, weights)
    found = layer_terms(graph, layers, x)
    assert [t.difference for t in found] == [0.0, 0.0]
    node = multiplying(graph)[0]
    layer = layers[node.name]
    reads = layer.reads
    q_x = quantize_codes(x, reads.scale, reads.zero_point, reads.scheme)
    z_w = [int(z) for z in layer.weight.zero_point.reshape(-1)]
    q_w = layer.weight.codes
    terms, whole = brute_force(q_x, int(reads.zero_point), q_w, z_w, 2, 1)
    assert found[0].sizes == pytest.approx(terms)
    assert found[0].result == pytest.approx(whole)
    assert (found[0].sizes["inputs"] > 0) == (weights == "asymmetric")
    assert (found[0].sizes["weights"] > 0) == (inputs == "asymmetric")


def test_the_sum_times_the_scales_is_what_the_layer_gives(graph, x):
    layers = rounded(graph, x, "asymmetric", "asymmetric", int4)
    found = layer_terms(graph, layers, x)[0]
    node = multiplying(graph)[0]
    values = run_part(graph, {graph.inputs[0].name: x}, layers, keep=True)
    bias = graph.param(node, "bias").reshape(-1, 1, 1)
    layer = layers[node.name]
    plain = node.with_(attrs={k: v for k, v in node.attrs.items() if k != "activation"})
    from bitsmith.model.graph.operators import run_node

    y = run_node(plain, {"weight": layer.values}, [layer.reads(x)])
    step = float(layer.reads.scale) * layer.weight.scale.reshape(-1, 1, 1)
    assert float((y / step).abs().mean()) == pytest.approx(found.result, rel=1e-4)
    assert values[node.name].shape == (y + bias).shape


def test_operations_are_counted(graph, x):
    both = cost(graph, rounded(graph, x, "asymmetric", "asymmetric"))
    # convolution: 9 positions, 2 groups of K = 9; 36 outputs. Linear: 1 position, K = 36; 3.
    assert both.macs == 36 * 9 + 36 * 3
    assert both.run_time == 9 * 2 * 9 + 2 * 36 + 36 + 2 * 3
    assert both.constants == 4 + 3
    none = cost(graph, rounded(graph, x, "symmetric", "symmetric"))
    assert (none.run_time, none.constants, none.macs) == (0, 0, both.macs)
    assert both.share == pytest.approx(100 * both.run_time / both.macs)


def outcome(bits, inputs, weights, wrong):
    right = torch.ones(1000, dtype=torch.bool)
    right[:wrong] = False
    e = Evaluation("x", "simulation", "ptq", right.long(), right, None, {})
    terms = [LayerTerms("a", dict.fromkeys(TERMS, 1.0), 1.0, 0.0)]
    return Outcome(bits, inputs, weights, e, difference(e, plain()), terms, Cost(1000, 50, 4))


def plain():
    right = torch.ones(1000, dtype=torch.bool)
    return Evaluation("float", "simulation", "float", right.long(), right, None, {})


def test_findings_claim_what_intervals_support():
    wrong = {"symmetric": 200, "asymmetric": 20}
    found = [
        outcome(bits, inputs, weights, wrong[inputs] if bits == 4 else 1)
        for bits in BITS
        for inputs, weights in COMBINATIONS
    ]
    said = findings(plain(), found)
    assert said[1].count("not distinguishable") == 4
    assert "asymmetric inputs are not distinguishable" in said[2]
    assert "not distinguishable" not in said[3]
    assert "asymmetric inputs are better with symmetric weights (+18.00" in said[4]
    assert "asymmetric weights are not distinguishable" in said[4]
    assert "50 more operations" in said[5]


def test_settings_are_refused():
    with pytest.raises(InputError, match="channel or tensor, not 'row'"):
        studies["mixing"]().run(Options(settings={"granularity": "row"}))

"""Blocks start from what suits the blocks before them as they are now."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitsmith.model.ptq import ptq
from bitsmith.model.qat.block_inputs import BlockInputs
from bitsmith.model.qat.block_start import choose_start, kept_values, layers_of, restore
from bitsmith.model.qat.reconstruct import Reconstruction, reconstruct
from bitsmith.model.qat.segments import Segment, segments
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.qat.weights.kept import FrozenWeight


def started() -> tuple[TrainableModel, BlockInputs, list[Segment]]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 6)
    )
    x = torch.randn(256, 16)
    model = TrainableModel(ptq(net, "W4A8-edge8", x.split(64)))
    parts = segments(model.source.program.graph, model.layer_names())
    return model, BlockInputs(model, x), parts


def last(model: TrainableModel, inputs: BlockInputs, parts: list[Segment]) -> Segment:
    for part in parts[:-1]:
        inputs.begin(part)
        inputs.end(part)
    inputs.begin(parts[-1])
    return parts[-1]


def frozen(model: TrainableModel, part: Segment) -> tuple[FrozenWeight, Tensor]:
    name = layers_of(model, part)[-1]
    rule, bias = model.codes_of(name), model.bias_of(name)
    assert isinstance(rule, FrozenWeight)
    assert bias is not None
    return rule, bias


def test_codes_and_biases_that_take_back_errors_of_others_are_given_up() -> None:
    model, inputs, parts = started()
    part = last(model, inputs, parts)
    rule, bias = frozen(model, part)
    fine = inputs.error(part)
    with torch.no_grad():
        rule.codes.copy_(torch.randint_like(rule.codes, -60, 60))
        rule.scales.mul_(5)
        bias.add_(10)
    spoilt = inputs.error(part)
    assert choose_start(model, part, inputs) == ("float biases", "float weights in 8 bits")
    assert inputs.error(part) < 2 * fine
    assert inputs.error(part) < 1e-3 * spoilt
    node = model.source.program.graph.node(layers_of(model, part)[-1])
    assert node is not None
    plain = model.source.program.graph.param(node, "bias")
    assert plain is not None
    assert torch.equal(bias, plain)


def test_what_is_better_stays() -> None:
    model, inputs, parts = started()
    part = last(model, inputs, parts)
    rule, bias = frozen(model, part)
    with torch.no_grad():  # no start is nearer than the one whose target is its own output
        inputs.target = model.part(part.nodes, part.input, inputs.given, part.output)
        bias.add_(0.01)
        inputs.target = inputs.target + 0.01
    codes, before = rule.codes.clone(), bias.detach().clone()
    assert choose_start(model, part, inputs) == ()
    assert torch.equal(rule.codes, codes)
    assert torch.equal(bias, before)


def test_everything_can_be_put_back() -> None:
    model, inputs, parts = started()
    part = last(model, inputs, parts)
    rule, bias = frozen(model, part)
    before = [t.detach().clone() for t in (rule.codes, rule.scales, bias)]
    values = kept_values(model, part)
    with torch.no_grad():
        for tensor in (rule.codes, rule.scales, bias):
            tensor.zero_()
    restore(values)
    after = (rule.codes, rule.scales, bias)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_a_last_layer_that_was_fitted_to_broken_ones_does_not_stay_so() -> None:
    model, _, parts = started()
    rule, _ = frozen(model, parts[-1])
    with torch.no_grad():
        rule.scales.mul_(30)
    rows = reconstruct(model, torch.randn(128, 16), Reconstruction(steps=5, batch_size=16))
    assert rows[-1].before is not None
    assert rows[-1].after is not None
    assert rows[-1].kept
    assert rows[-1].after < 0.01 * rows[-1].before

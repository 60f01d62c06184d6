"""What a block starts from before it is tuned, and how it is put back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitsmith.model.convert import demanded_codes
from bitsmith.model.qat.block_inputs import BlockInputs
from bitsmith.model.qat.segments import Segment
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.qat.weights.kept import FrozenWeight
from bitsmith.model.targets import make_target

__all__ = ["choose_start", "kept_values", "layers_of", "restore", "scales_of"]


def layers_of(model: TrainableModel, part: Segment) -> list[str]:
    """Return the layers of a block."""
    known = set(model.layer_names())
    return [n.name for n in part.nodes if n.name in known]


def scales_of(model: TrainableModel, part: Segment) -> list[nn.Parameter]:
    """Scales that the block may move: not that of its input, which the block before has given."""
    given: set[int] = set()
    if part.input in model.source.program.encodings:
        given = {id(p) for p in model.range_of(part.input).parameters()}
    return [p for p in model.scales_of(part.nodes) if id(p) not in given]


def kept_values(model: TrainableModel, part: Segment) -> list[tuple[Tensor, Tensor]]:
    """Everything that the tuning of ``part`` may change, with its value."""
    layers = layers_of(model, part)
    own = [*model.weights_of(layers), *model.biases_of(layers), *scales_of(model, part)]
    frozen = [b for rule in _frozen(model, part).values() for b in (rule.codes, rule.scales)]
    return [(t, t.detach().clone()) for t in (*own, *frozen)]


@torch.no_grad()
def restore(values: list[tuple[Tensor, Tensor]]) -> None:
    """Put back what :func:`kept_values` gave."""
    for tensor, value in values:
        tensor.copy_(value)


@torch.no_grad()
def choose_start(model: TrainableModel, part: Segment, inputs: BlockInputs) -> tuple[str, ...]:
    """Go back to the float biases, and to the float weights in 8 bits, where that is better.

    Returns what it went back to; nothing where the block is best as it is.

    A sweep over the layers has let both take back errors of the layers before: errors that tuned
    blocks no longer make. What is left of them no gradient removes: biases take small steps, and
    codes of 8 bits none.
    """
    least, best = inputs.error(part), kept_values(model, part)
    done: list[str] = []
    start: tuple[str, ...] = ()
    for name, change in (
        ("float biases", _plain_biases),
        ("float weights in 8 bits", _plain_codes),
    ):
        change(model, part)
        done.append(name)
        found = inputs.error(part)
        if found < least:
            least, best, start = found, kept_values(model, part), tuple(done)
    restore(best)
    return start


def _plain_biases(model: TrainableModel, part: Segment) -> None:
    graph = model.source.program.graph
    for name in layers_of(model, part):
        node, own = graph.node(name), model.bias_of(name)
        plain = None if node is None else graph.param(node, "bias")
        if own is not None and plain is not None:
            own.copy_(plain)


def _plain_codes(model: TrainableModel, part: Segment) -> None:
    source = model.source
    target, graph = make_target(source.target, source.machine), source.program.graph
    for name, rule in _frozen(model, part).items():
        node = graph.node(name)
        weight = None if node is None else graph.param(node, "weight")
        if node is None or weight is None:
            continue
        x = model.range_of(node.inputs[0]).encoding()
        scheme = source.program.layers[name].weight.scheme
        q = demanded_codes(node, weight, graph.param(node, "bias"), scheme, target, x)
        rule.codes.copy_(q.codes)
        rule.scales.copy_(q.scale.reshape(-1).expand_as(rule.scales))


def _frozen(model: TrainableModel, part: Segment) -> dict[str, FrozenWeight]:
    program = model.source.program
    rules = {name: model.codes_of(name) for name in layers_of(model, part)}
    return {
        name: rule
        for name, rule in rules.items()
        if isinstance(rule, FrozenWeight) and program.layers[name].table is None
    }

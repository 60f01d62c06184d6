"""Run every layer alone on the codes that make its sums as large as they get.

For an output channel, the largest code under every positive weight and 0 under every negative one
gives the largest sum, and the reverse the smallest. Random and real data hardly ever come near:
the 16-bit saturation of machines without VNNI would stay unseen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitsmith.deploy.export.onnx.model_writer import write_graph
from bitsmith.deploy.runtimes import open_session
from bitsmith.deploy.verify.compare import Difference
from bitsmith.deploy.verify.expose import with_outputs
from bitsmith.deploy.verify.result import WorstCase
from bitsmith.model.graph.ir import Graph, GraphInput, Node
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.simulate import Program, Values, execute
from bitsmith.numbers import integer

__all__ = ["worst_cases"]

#: Patterns per layer: two for each of the output channels with the largest pair sums.
_CHANNELS = 64
#: Every pattern is repeated, so that the runtime works on more than one position.
_REPEATS = 8


def worst_cases(model: QuantizedModel, runtime: str) -> list[WorstCase]:
    """Return, per convolution and linear layer, how its worst-case codes compare."""
    found = []
    for name in model.program.layers:
        node = model.program.graph.node(name)
        assert node is not None
        if node.op != "embedding":  # nothing is summed
            found.append(_layer(model.program, node, runtime))
    return found


def _layer(program: Program, node: Node, runtime: str) -> WorstCase:
    alone, codes = (_linear if node.op == "linear" else _convolution)(program, node)
    values = Values(alone)
    name = alone.graph.inputs[0].name
    values.codes[name] = codes
    execute(alone.graph.nodes[0], values)
    float_output = alone.outcomes[node.name].float_output
    ours = values.reals[node.name] if float_output else values.codes[node.name]
    proto = write_graph(alone, {})
    wanted = node.name if float_output else f"{node.name}.codes"
    session = open_session(with_outputs(proto, [wanted]), runtime)
    outputs = session.run(alone.encodings[name].dequantize(codes))
    theirs = outputs[list(session.output_names).index(wanted)]
    difference = Difference()
    difference.add(ours, theirs)
    saturated = _saturated(alone, alone.graph.nodes[0], codes)
    return WorstCase(node.name, difference.n, difference.differing, difference.largest, saturated)


def _alone(program: Program, node: Node, shape: tuple[int, ...], out: tuple[int, ...]) -> Program:
    """A program of one layer that reads the layer's input from a graph input."""
    source = node.inputs[0]
    single = node.with_(shape=out, params={})
    graph = Graph((GraphInput(source, shape, "float32"),), (node.name,), (single,), {})
    encodings = {k: e for k, e in program.encodings.items() if k in (source, node.name)}
    outcomes = {node.name: program.outcomes[node.name]}
    return Program(graph, outcomes, encodings, {node.name: program.layers[node.name]})


def _patterns(program: Program, node: Node) -> Tensor:
    """uint8 ``[patterns, I/groups, *kernel]``, two for each chosen channel, and all at the top."""
    weight = program.layers[node.name].weight.codes
    sums = integer.max_pair_sum(weight)
    channels = sums.argsort(descending=True)[:_CHANNELS]
    chosen = weight[channels]
    top = program.encodings[node.inputs[0]].format.code_max
    both = torch.cat([chosen > 0, chosen < 0]).to(torch.uint8) * top
    return torch.cat([both, torch.full_like(both[:1], top)])


def _linear(program: Program, node: Node) -> tuple[Program, Tensor]:
    patterns = _patterns(program, node)
    features = len(program.layers[node.name].weight.codes)
    return _alone(program, node, (-1, patterns.shape[1]), (-1, features)), patterns


def _convolution(program: Program, node: Node) -> tuple[Program, Tensor]:
    """The convolution without padding on its patterns, side by side along the last axis."""
    patterns = _patterns(program, node)
    groups, dilation = node.attrs["groups"], node.attrs["dilation"]
    patterns = patterns.repeat(1, groups, *[1] * (patterns.dim() - 2))
    extent = [(k - 1) * d + 1 for k, d in zip(patterns.shape[2:], dilation, strict=True)]
    spread = torch.zeros(*patterns.shape[:2], *extent, dtype=torch.uint8)
    taps = tuple(slice(None, None, d) for d in dilation)
    spread[(slice(None), slice(None), *taps)] = patterns
    tiled = torch.cat([spread] * _REPEATS, dim=-1).contiguous()
    attrs = {**node.attrs, "stride": extent, "padding": [0] * len(extent)}
    channels = len(program.layers[node.name].weight.codes)
    ones = [1] * (len(extent) - 1)
    single = node.with_(attrs=attrs)
    alone = _alone(program, single, (-1, *tiled.shape[1:]), (-1, channels, *ones, _REPEATS))
    return alone, tiled


def _saturated(program: Program, node: Node, codes: Tensor) -> int:
    layer = program.layers[node.name]
    zero_point = program.encodings[node.inputs[0]].zero_point
    if node.op == "linear":
        return integer.linear_accumulate_saturating(codes, zero_point, layer.weight.codes)[1]
    a = node.attrs
    steps = (a["stride"], a["padding"], a["dilation"], a["groups"])
    return integer.conv_accumulate_saturating(codes, zero_point, layer.weight.codes, None, *steps)[
        1
    ]

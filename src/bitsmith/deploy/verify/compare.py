"""Differences of one tensor, accumulated over batches, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.model.graph.ir import Node
from bitsmith.model.graph.operators import run_node
from bitsmith.model.simulate import Program, Values, accumulate, requantized
from bitsmith.numbers import integer

__all__ = ["Difference", "cause_of"]

#: A value this close to the middle between two codes may round either way in float32.
_TIE = 2e-3


@final
@dataclass
class Difference:
    """Running count, maximum and mean of |ours − theirs|, and the largest |ours|."""

    n: int = 0
    magnitude: float = 0.0
    differing: int = 0
    largest: float = 0.0
    total: float = 0.0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Account for one batch, of any type: masks are bool."""
        values = ours.double()
        gap = (values - theirs.double()).abs()
        self.n += gap.numel()
        self.differing += int((gap != 0).sum())
        self.total += float(gap.sum())
        if gap.numel():
            self.largest = max(self.largest, float(gap.max()))
            self.magnitude = max(self.magnitude, float(values.abs().max()))

    @property
    def mean(self) -> float:
        """Mean absolute difference."""
        return self.total / self.n if self.n else 0.0


def cause_of(node: Node, runtime: Values, theirs: Tensor, in_integers: bool) -> str:
    """Return why the runtime's codes of ``node`` differ from ours on the runtime's own inputs.

    Args:
        node: an operator whose isolated result differs.
        runtime: the runtime's tensors.
        theirs: what the runtime computed.
        in_integers: whether the runtime ran it as planned.
    """
    outcome = runtime.program.outcomes[node.name]
    if outcome.kind == "float":
        return "float island"
    if not in_integers:
        return "unfused region"
    if node.op in ("conv", "linear") and _saturates(node, runtime, theirs):
        return "saturation"
    if outcome.float_output:
        return "float rounding"
    return "rounding tie" if _ties(node, runtime, theirs) else "unexplained"


def _saturates(node: Node, runtime: Values, theirs: Tensor) -> bool:
    """Whether 16-bit pair sums give the runtime's result."""
    program = runtime.program
    layer = program.layers[node.name]
    x, zero_point = runtime.code(node.inputs[0]), program.encodings[node.inputs[0]].zero_point
    if node.op == "linear":
        acc, count = integer.linear_accumulate_saturating(
            x, zero_point, layer.weight.codes, layer.bias
        )
    else:
        a = node.attrs
        steps = (a["stride"], a["padding"], a["dilation"], a["groups"])
        acc, count = integer.conv_accumulate_saturating(
            x, zero_point, layer.weight.codes, layer.bias, *steps
        )
    return count > 0 and torch.equal(requantized(node, program, acc), theirs)


def _ties(node: Node, runtime: Values, theirs: Tensor) -> bool:
    """Whether every differing value lies close to the middle between two codes."""
    program = runtime.program
    if node.name not in program.encodings:
        return False
    encoding = program.encodings[node.name]
    if node.op in ("conv", "linear", "matmul"):
        scaled = _scaled(node, program, accumulate(node, runtime))
    else:
        inputs = [runtime.real(i).double() for i in node.inputs]
        scaled = run_node(node, {}, inputs) / encoding.scale + encoding.zero_point
    ours = scaled.round().clamp(encoding.format.code_min, encoding.format.code_max)
    gap = (ours - theirs.double()).abs()
    fraction = (scaled - scaled.floor() - 0.5).abs()
    wrong = gap != 0
    return bool(((gap <= 1) & (fraction < _TIE))[wrong].all())


def _scaled(node: Node, program: Program, acc: Tensor) -> Tensor:
    ex, ey = program.encodings[node.inputs[0]], program.encodings[node.name]
    if node.op == "matmul":
        factor = torch.tensor(program.encodings[node.inputs[1]].scale).double()
    else:
        weight = program.layers[node.name].weight.scale.reshape(-1).double()
        shape = [1] * acc.dim()
        shape[1 if node.op == "conv" else -1] = -1
        factor = weight.reshape(shape)
    return acc.double() * (ex.scale * factor / ey.scale) + ey.zero_point

"""Execute one node of a quantized graph the way the runtime does.

Integer kernels go to :mod:`bitsmith.numbers.integer`, moves act on the codes themselves, float
islands run in float32 between a dequantization and a quantization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from bitsmith.model.convert import IntegerLayer
from bitsmith.model.graph.ir import Graph, Node
from bitsmith.model.graph.operators import run_node
from bitsmith.model.place import Outcome
from bitsmith.numbers import integer
from bitsmith.numbers.encoding import Encoding

__all__ = ["Program", "Values", "execute"]


@final
@dataclass(frozen=True)
class Program:
    """Everything an execution needs: the graph and its integers."""

    graph: Graph
    outcomes: Mapping[str, Outcome]
    encodings: Mapping[str, Encoding]
    layers: Mapping[str, IntegerLayer]


@final
@dataclass
class Values:
    """The tensors of one execution: codes where quantized, reals where float."""

    program: Program
    codes: dict[str, Tensor] = field(default_factory=dict)
    reals: dict[str, Tensor] = field(default_factory=dict)

    def code(self, name: str) -> Tensor:
        """Return the codes of tensor ``name``, quantizing its real values where needed."""
        if name not in self.codes:
            self.codes[name] = self.program.encodings[name].quantize(self.reals[name])
        return self.codes[name]

    def real(self, name: str) -> Tensor:
        """Return the real values of ``name``; not kept where they come from codes."""
        if name in self.reals:
            return self.reals[name]
        return self.program.encodings[name].dequantize(self.codes[name])

    def drop(self, name: str) -> None:
        """Forget a tensor."""
        self.codes.pop(name, None)
        self.reals.pop(name, None)


def execute(node: Node, values: Values) -> None:
    """Compute ``node`` from ``values`` and put its result there."""
    outcome = values.program.outcomes[node.name]
    if outcome.kind == "integer":
        result = _INTEGER[node.op](node, values)
        if outcome.float_output:
            values.reals[node.name] = _clamped(node, result)
        else:
            values.codes[node.name] = result
    elif node.op == "requantize":
        values.codes[node.name] = _requantize(node, values)
    elif outcome.kind == "codes":
        values.codes[node.name] = _move(node, values)
    elif node.op == "embedding" and node.name in values.program.layers:
        values.reals[node.name] = _look_up(node, values)
    else:
        params = {role: values.program.graph.params[p] for role, p in node.params.items()}
        inputs = [values.real(i) for i in node.inputs]
        values.reals[node.name] = run_node(node, params, inputs)


def _requantize(node: Node, values: Values) -> Tensor:
    """Other codes for the same tensor: from its real values, which codes have to be made first."""
    return values.program.encodings[node.name].quantize(values.real(node.inputs[0]))


def _look_up(node: Node, values: Values) -> Tensor:
    """Rows of codes, each times its scale, or that of all."""
    table, ids = values.program.layers[node.name].weight, values.real(node.inputs[0])
    scale = table.scale.reshape(-1, 1).expand(len(table.codes), 1)
    return table.codes[ids].to(torch.float32) * scale[ids]


def _clamped(node: Node, x: Tensor) -> Tensor:
    activation = node.attrs.get("activation")
    return x if activation is None else torch.clamp(x, activation[0], activation[1])


def accumulate(node: Node, values: Values) -> Tensor:
    """Return the exact int32 sums of a convolution, linear layer or matmul, bias included."""
    program = values.program
    first = node.inputs[0]
    x, ex = values.code(first), program.encodings[first]
    if node.op == "matmul":
        second = node.inputs[1]
        e2 = program.encodings[second]
        return integer.matmul_accumulate(x, ex.zero_point, values.code(second), e2.zero_point)
    layer = program.layers[node.name]
    if node.op == "linear":
        return integer.linear_accumulate(x, ex.zero_point, layer.weight.codes, layer.bias)
    a = node.attrs
    return integer.conv_accumulate(
        x,
        ex.zero_point,
        layer.weight.codes,
        layer.bias,
        a["stride"],
        a["padding"],
        a["dilation"],
        a["groups"],
    )


def requantized(node: Node, program: Program, acc: Tensor) -> Tensor:
    """Return output codes (or float, for a float output) of int32 sums."""
    ex = program.encodings[node.inputs[0]]
    if node.op == "matmul":
        w_scale = torch.tensor(program.encodings[node.inputs[1]].scale, dtype=torch.float32)
    else:
        w_scale = program.layers[node.name].weight.scale.reshape(-1)
    axis = 1 if node.op == "conv" else acc.dim() - 1
    if program.outcomes[node.name].float_output:
        x_scale = torch.tensor(ex.scale, dtype=torch.float32)
        return integer.dequantize_accumulator(acc, x_scale * w_scale, axis)
    ey = program.encodings[node.name]
    return integer.requantize(acc, integer.multiplier(ex.scale, w_scale, ey.scale), ey, axis)


def _arithmetic(node: Node, values: Values) -> Tensor:
    return requantized(node, values.program, accumulate(node, values))


def _binary(kernel: Callable[..., Tensor]) -> Callable[[Node, Values], Tensor]:
    def run(node: Node, values: Values) -> Tensor:
        e = values.program.encodings
        a, b = node.inputs
        return kernel(values.code(a), e[a], values.code(b), e[b], e[node.name])

    return run


def _concat(node: Node, values: Values) -> Tensor:
    e = values.program.encodings
    codes = [values.code(i) for i in node.inputs]
    rest = [e[i] for i in node.inputs]
    return integer.concat(codes, rest, e[node.name], node.attrs["axis"])


def _unary(kernel: Callable[..., Tensor], *attrs: str) -> Callable[[Node, Values], Tensor]:
    def run(node: Node, values: Values) -> Tensor:
        e = values.program.encodings
        source = node.inputs[0]
        extra = [node.attrs[a] for a in attrs]
        return kernel(values.code(source), e[source], e[node.name], *extra)

    return run


def _leaky(x: Tensor, ex: Encoding, ey: Encoding, slope: float) -> Tensor:
    return integer.lookup(x, ex, ey, integer.leaky_relu(slope))


def _sigmoid(x: Tensor, ex: Encoding, ey: Encoding) -> Tensor:
    return integer.lookup(x, ex, ey, integer.logistic)


_INTEGER: dict[str, Callable[[Node, Values], Tensor]] = {
    "conv": _arithmetic,
    "linear": _arithmetic,
    "matmul": _arithmetic,
    "add": _binary(integer.add),
    "mul": _binary(integer.mul),
    "concat": _concat,
    "global_avg_pool": _unary(integer.global_average_pool),
    "avg_pool": _unary(
        integer.average_pool, "kernel", "stride", "padding", "count_include_pad", "ceil_mode"
    ),
    "softmax": _unary(integer.softmax, "axis"),
    "sigmoid": _unary(_sigmoid),
    "leaky_relu": _unary(_leaky, "slope"),
}


def _move(node: Node, values: Values) -> Tensor:
    """Move codes: what the float operator does, on integers held exactly in float32."""
    encoding = values.program.encodings[node.name]
    codes = values.code(node.inputs[0])
    if node.op in ("relu", "clamp"):
        low, high = code_bounds(node, encoding)
        return codes.clamp(low, high)
    attrs = dict(node.attrs)
    if node.op == "pad":
        attrs["value"] = pad_code(node, encoding)
    moved = run_node(node.with_(attrs=attrs), {}, [codes.to(torch.float32)])
    return moved.to(codes.dtype)


def code_bounds(node: Node, encoding: Encoding) -> tuple[int, int]:
    """Return the lowest and highest code that a relu or clamp lets through."""
    low = 0.0 if node.op == "relu" else node.attrs["low"]
    high = None if node.op == "relu" else node.attrs["high"]
    bounds = [encoding.format.code_min, encoding.format.code_max]
    for position, bound in enumerate((low, high)):
        if bound is not None:
            bounds[position] = int(encoding.quantize(torch.tensor(float(bound))))
    return bounds[0], bounds[1]


def pad_code(node: Node, encoding: Encoding) -> int:
    """Return the code of the value that a pad puts in."""
    return int(encoding.quantize(torch.tensor(float(node.attrs["value"]))))

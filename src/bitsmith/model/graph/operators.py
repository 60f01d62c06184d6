"""What each word of the graph's vocabulary computes, in float32.

This table is the meaning of a graph. Calibration runs it, the float islands of a quantized
model run it, and the capture is checked against the original module with it.

=================  ===========================================================================
``conv``           x, params weight ``[O, I/groups, *k]``, bias; stride, padding, dilation, groups
``conv_transpose`` x, params weight ``[I, O/groups, *k]``, bias; … output_padding
``linear``         x ``[..., K]``, params weight ``[N, K]``, bias
``matmul``         a ``[..., M, K]``, b ``[..., K, N]``
``constant``       no input, params value: a tensor of the model's own that takes part in the graph
``batch_constant``  params value ``[1, …]``, repeated for every sample of the input it reads
``add sub mul div``  two tensors, broadcast; an optional fused ``activation``
``concat``         any number of tensors; axis
``max_pool`` ``avg_pool`` ``global_avg_pool``  over the last dimensions
``batch_norm``     only until it is folded; params weight, bias, mean, var
``relu clamp leaky_relu sigmoid tanh silu hardswish hardsigmoid gelu softmax layer_norm``
``mean sum norm reshape transpose slice pad upsample_nearest``  0 in a reshape keeps that axis
``requantize``     x: between integers a change of encoding, in float the identity
``embedding``      ids of any integer type, params weight ``[rows, width]``
``arange``         0, 1, … of the length of one axis of its input
``slice_to``       the first of x along axis, as many as the second tensor has along size_of
``expand_as``      x repeated to the shape of the second tensor
``full_like cast ne``  constants of a shape, change of type, comparison with a number
``aten``           any other PyTorch operator, run as it is
=================  ===========================================================================

``activation`` = ``[low, high]`` on a node means that a clamp was fused into it (relu is
``[0, None]``, relu6 ``[0, 6]``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitsmith.errors import CaptureError
from bitsmith.model.graph.ir import Graph, Node

__all__ = ["OPERATORS", "aten_overload", "run_float", "run_node"]

Params = Mapping[str, Tensor]
Kernel = Callable[[Mapping[str, Any], Params, Sequence[Tensor]], Tensor]
Attrs = Mapping[str, Any]


def _conv(a: Attrs, p: Params, x: Sequence[Tensor]) -> Tensor:
    op = F.conv1d if p["weight"].dim() == 3 else F.conv2d
    return op(
        x[0], p["weight"], p.get("bias"), a["stride"], a["padding"], a["dilation"], a["groups"]
    )


def _conv_transpose(a: Attrs, p: Params, x: Sequence[Tensor]) -> Tensor:
    op = F.conv_transpose1d if p["weight"].dim() == 3 else F.conv_transpose2d
    return op(
        x[0],
        p["weight"],
        p.get("bias"),
        stride=a["stride"],
        padding=a["padding"],
        output_padding=a["output_padding"],
        groups=a["groups"],
        dilation=a["dilation"],
    )


def _batch_norm(a: Attrs, p: Params, x: Sequence[Tensor]) -> Tensor:
    return F.batch_norm(
        x[0], p["mean"], p["var"], p.get("weight"), p.get("bias"), False, 0.0, a["eps"]
    )


def _max_pool(a: Attrs, p: Params, x: Sequence[Tensor]) -> Tensor:
    op = F.max_pool1d if len(a["kernel"]) == 1 else F.max_pool2d
    return op(x[0], a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])


def _avg_pool(a: Attrs, p: Params, x: Sequence[Tensor]) -> Tensor:
    op = F.avg_pool1d if len(a["kernel"]) == 1 else F.avg_pool2d
    return op(
        x[0],
        a["kernel"],
        a["stride"],
        a["padding"],
        a["ceil_mode"],
        a["count_include_pad"],
    )


def _slice(a: Attrs, p: Params, x: Sequence[Tensor]) -> Tensor:
    index = [slice(None)] * x[0].dim()
    index[a["axis"]] = slice(a["start"], a["end"], a["step"])
    return x[0][tuple(index)]


def _upsample(a: Attrs, p: Params, x: Sequence[Tensor]) -> Tensor:
    for axis, factor in enumerate(a["scale"], start=2):
        x = [x[0].repeat_interleave(factor, dim=axis)]
    return x[0]


def _layer_norm(a: Attrs, p: Params, x: Sequence[Tensor]) -> Tensor:
    return F.layer_norm(x[0], a["normalized_shape"], p.get("weight"), p.get("bias"), a["eps"])


def _reshape(a: Attrs, p: Params, x: Sequence[Tensor]) -> Tensor:
    return x[0].reshape([x[0].shape[i] if s == 0 else s for i, s in enumerate(a["shape"])])


def _norm(a: Attrs, p: Params, x: Sequence[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x[0], 2.0, a["axes"], a["keepdim"])
    return norm


def aten_overload(name: str) -> Any:
    """Return PyTorch's operator for ``aten.name.overload``; CaptureError when there is none."""
    namespace, op, overload = name.split(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), op), overload)
    except AttributeError:
        raise CaptureError(f"this PyTorch ({torch.__version__}) has no operator {name}") from None


def _aten(a: Attrs, p: Params, x: Sequence[Tensor]) -> Tensor:
    def fill(arg: Any) -> Any:
        if isinstance(arg, dict):
            if "input" in arg:
                return x[arg["input"]]
            if "dtype" in arg:
                return getattr(torch, arg["dtype"])
            return p[arg["param"]]
        return [fill(v) for v in arg] if isinstance(arg, list) else arg

    kwargs = {k: fill(v) for k, v in a["kwargs"].items()}
    out = aten_overload(a["target"])(*(fill(v) for v in a["args"]), **kwargs)
    result: Tensor = out if a.get("item") is None else out[a["item"]]
    return result


OPERATORS: dict[str, Kernel] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": lambda a, p, x: F.linear(x[0], p["weight"], p.get("bias")),
    "matmul": lambda a, p, x: torch.matmul(x[0], x[1]),
    "batch_norm": _batch_norm,
    "constant": lambda a, p, x: p["value"],
    "batch_constant": lambda a, p, x: p["value"].expand(len(x[0]), *p["value"].shape[1:]),
    "add": lambda a, p, x: x[0] + x[1],
    "sub": lambda a, p, x: x[0] - x[1],
    "mul": lambda a, p, x: x[0] * x[1],
    "div": lambda a, p, x: x[0] / x[1],
    "concat": lambda a, p, x: torch.cat(list(x), a["axis"]),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "global_avg_pool": lambda a, p, x: x[0].mean(list(range(2, x[0].dim())), keepdim=True),
    "mean": lambda a, p, x: x[0].mean(a["axes"], keepdim=a["keepdim"]),
    "relu": lambda a, p, x: F.relu(x[0]),
    "clamp": lambda a, p, x: torch.clamp(x[0], a["low"], a["high"]),
    "leaky_relu": lambda a, p, x: F.leaky_relu(x[0], a["slope"]),
    "sigmoid": lambda a, p, x: torch.sigmoid(x[0]),
    "tanh": lambda a, p, x: torch.tanh(x[0]),
    "silu": lambda a, p, x: F.silu(x[0]),
    "hardswish": lambda a, p, x: F.hardswish(x[0]),
    "hardsigmoid": lambda a, p, x: F.hardsigmoid(x[0]),
    "gelu": lambda a, p, x: F.gelu(x[0], approximate=a["approximate"]),
    "softmax": lambda a, p, x: torch.softmax(x[0], a["axis"]),
    "layer_norm": _layer_norm,
    "sum": lambda a, p, x: x[0].sum(a["axes"], keepdim=a["keepdim"]),
    "norm": _norm,
    "embedding": lambda a, p, x: F.embedding(x[0], p["weight"]),
    "arange": lambda a, p, x: torch.arange(x[0].shape[a["axis"]]),
    "slice_to": lambda a, p, x: x[0].narrow(a["axis"], 0, x[1].shape[a["size_of"]]),
    "expand_as": lambda a, p, x: x[0].expand_as(x[1]),
    "full_like": lambda a, p, x: torch.full_like(
        x[0], a["value"], dtype=getattr(torch, a["dtype"])
    ),
    "cast": lambda a, p, x: x[0].to(getattr(torch, a["dtype"])),
    "ne": lambda a, p, x: x[0] != a["value"],
    "requantize": lambda a, p, x: x[0],
    "reshape": _reshape,
    "transpose": lambda a, p, x: x[0].permute(a["perm"]),
    "slice": _slice,
    "pad": lambda a, p, x: F.pad(x[0], a["pads"], value=a["value"]),
    "upsample_nearest": _upsample,
    "aten": _aten,
}


def run_node(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    """Return the float32 result of one node; ``params`` are its own, by role."""
    out = OPERATORS[node.op](node.attrs, params, inputs)
    activation = node.attrs.get("activation")
    return out if activation is None else torch.clamp(out, activation[0], activation[1])


def run_float(
    graph: Graph,
    inputs: Sequence[Tensor],
    observe: Callable[[str, Tensor], None] | None = None,
) -> tuple[Tensor, ...]:
    """Run ``graph`` in float32 and return its outputs.

    ``observe(name, tensor)`` sees the graph inputs and every node's result; a tensor is freed as
    soon as its last reader has run.
    """
    values: dict[str, Tensor] = {}
    last_use = last_uses(graph)
    for declared, tensor in zip(graph.inputs, inputs, strict=True):
        values[declared.name] = tensor
        if observe is not None:
            observe(declared.name, tensor)
    for position, node in enumerate(graph.nodes):
        params = {role: graph.params[name] for role, name in node.params.items()}
        values[node.name] = run_node(node, params, [values[i] for i in node.inputs])
        if observe is not None:
            observe(node.name, values[node.name])
        for name in {*node.inputs, node.name}:
            if last_use.get(name, position) <= position and name not in graph.outputs:
                del values[name]
    return tuple(values[o] for o in graph.outputs)


def last_uses(graph: Graph) -> dict[str, int]:
    """Return tensor name → position of the last node that reads it."""
    return {name: position for position, n in enumerate(graph.nodes) for name in n.inputs}

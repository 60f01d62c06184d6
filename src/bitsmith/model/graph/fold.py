"""Rewrites that leave the function as it is and make the graph simpler to quantize.

Each pass returns a new graph; a pattern that does not match is left alone.

* batch norms are folded into the convolution or linear layer before them, or after them where
  that is exact (no padding between: a padded 0 is not a normalised 0); one that stands alone
  becomes a depthwise 1×1 convolution, which integers can run;
* calls without a word that read constants only are computed once;
* a mean over all spatial dimensions becomes a global average pool;
* the broadcast operand of an add or mul comes second;
* relu and clamp(0, c) move in front of data movement and into the operator that computes their
  input, where the output range of the quantizer does their work.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bitsmith.model.graph.ir import Graph, Node
from bitsmith.model.graph.operators import aten_overload, run_node

__all__ = ["MOVES", "simplify"]

#: Operators that move values without changing them.
MOVES = frozenset({"reshape", "transpose", "slice", "pad", "max_pool", "upsample_nearest"})
#: Operators whose output quantizer can take over a clamp at zero.
_CLAMPABLE = frozenset(
    {"conv", "linear", "matmul", "add", "sub", "mul", "concat", "avg_pool", "global_avg_pool"}
)


def simplify(graph: Graph) -> Graph:
    """Return the graph with all rewrites applied, in float32 arithmetic folded in float64."""
    for rewrite in (
        compute_constants,
        drop_empty_reshapes,
        fold_batch_norms_backward,
        fold_batch_norms_forward,
        batch_norms_to_convolutions,
        means_to_pools,
        order_operands,
        drop_empty_reshapes,
        hoist_activations,
        fuse_activations,
    ):
        graph = rewrite(graph)
    return graph.without_dead()


def compute_constants(graph: Graph) -> Graph:
    """aten of constants (tables of angles, ranges) → constant, unless its result is random."""
    params: dict[str, Tensor] = {}
    nodes: dict[str, Node] = {}
    for node in graph:
        sources = [nodes.get(i) for i in node.inputs]
        if node.op == "aten" and all(s is not None and s.op == "constant" for s in sources):
            known = {**graph.params, **params}
            inputs = [known[s.params["value"]] for s in sources if s is not None]
            if torch.Tag.nondeterministic_seeded not in aten_overload(node.attrs["target"]).tags:
                own = {role: known[p] for role, p in node.params.items()}
                name = f"{node.name}.value"
                params[name] = run_node(node, own, inputs)
                node = node.with_(op="constant", inputs=(), attrs={}, params={"value": name})
        nodes[node.name] = node
    return graph.with_nodes(list(nodes.values()), params=params)


def drop_empty_reshapes(graph: Graph) -> Graph:
    """Remove reshapes to the shape the tensor already has."""
    gone = {
        n.name: n.inputs[0]
        for n in graph
        if n.op == "reshape" and n.shape == graph.shape(n.inputs[0]) and n.shape.count(-1) <= 1
    }
    return graph.with_nodes([n for n in graph if n.name not in gone], renamed=gone)


def _affine(graph: Graph, norm: Node) -> tuple[Tensor, Tensor]:
    """A batch norm as y = a·x + b per channel, float64."""
    mean, var = graph.param(norm, "mean"), graph.param(norm, "var")
    assert mean is not None
    assert var is not None
    weight, bias = graph.param(norm, "weight"), graph.param(norm, "bias")
    a = torch.rsqrt(var.double() + norm.attrs["eps"])
    a = a if weight is None else a * weight.double()
    b = -mean.double() * a
    return a, b if bias is None else b + bias.double()


def fold_batch_norms_backward(graph: Graph) -> Graph:
    """conv → bn, conv_transpose → bn, linear → bn: W′ = a·W, b′ = a·b + shift."""
    nodes = {n.name: n for n in graph}
    params: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    for norm in graph:
        before = nodes.get(norm.inputs[0]) if norm.op == "batch_norm" else None
        if before is None or before.op not in ("conv", "conv_transpose", "linear"):
            continue
        if not _only_reader(graph, before.name, norm):
            continue
        if before.op == "linear" and len(before.shape) != 2:
            continue  # bn normalises dimension 1, the layer computes the last
        a, b = _affine(graph, norm)
        weight, bias = graph.param(before, "weight"), graph.param(before, "bias")
        assert weight is not None
        scaled = _scale_outputs(before, weight.double(), a)
        shift = b if bias is None else b + a * bias.double()
        nodes[before.name] = _with_params(before, scaled, shift, params)
        renamed[norm.name] = before.name
    kept = [nodes[n.name] for n in graph if n.name not in renamed]
    return graph.with_nodes(kept, renamed=renamed, params=params)


def _scale_outputs(node: Node, weight: Tensor, a: Tensor) -> Tensor:
    if node.op != "conv_transpose":
        return weight * a.reshape(-1, *[1] * (weight.dim() - 1))
    groups = node.attrs["groups"]  # weight is [I, O/groups, *k]
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    factor = a.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
    return (grouped * factor).reshape(weight.shape)


def fold_batch_norms_forward(graph: Graph) -> Graph:
    """bn → conv without padding, bn → linear: W′ = W·a, b′ = b + Σ W·shift; exact."""
    nodes = {n.name: n for n in graph}
    params: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    for norm in graph:
        if norm.op != "batch_norm" or norm.name in graph.outputs:
            continue
        readers = graph.consumers(norm.name)
        if len(readers) != 1 or not _takes_affine_input(readers[0]):
            continue
        after = nodes[readers[0].name]
        a, b = _affine(graph, norm)
        weight, bias = graph.param(after, "weight"), graph.param(after, "bias")
        assert weight is not None
        w = weight.double()
        if after.op == "conv":
            groups = after.attrs["groups"]
            per_group = (len(w) // groups, w.shape[1])
            tail = [1] * (w.dim() - 2)
            a_in = a.reshape(groups, 1, per_group[1]).expand(-1, per_group[0], -1)
            b_in = b.reshape(groups, 1, per_group[1]).expand(-1, per_group[0], -1)
            shift = (w * b_in.reshape(*w.shape[:2], *tail)).flatten(1).sum(1)
            w = w * a_in.reshape(*w.shape[:2], *tail)
        else:
            shift, w = w @ b, w * a
        shift = shift if bias is None else shift + bias.double()
        nodes[after.name] = _with_params(after, w, shift, params)
        renamed[norm.name] = norm.inputs[0]
    kept = [nodes[n.name] for n in graph if n.name not in renamed]
    return graph.with_nodes(kept, renamed=renamed, params=params)


def _takes_affine_input(node: Node) -> bool:
    if node.op == "linear":
        return len(node.shape) == 2
    return node.op == "conv" and not any(node.attrs["padding"])


def batch_norms_to_convolutions(graph: Graph) -> Graph:
    """A batch norm that stands alone is a depthwise 1×1 convolution."""
    params: dict[str, Tensor] = {}
    nodes = []
    for node in graph:
        if node.op == "batch_norm" and len(node.shape) in (3, 4):
            a, b = _affine(graph, node)
            spatial = len(node.shape) - 2
            ones, zeros = [1] * spatial, [0] * spatial
            attrs = {"stride": ones, "padding": zeros, "dilation": ones, "groups": len(a)}
            plain = node.with_(op="conv", attrs=attrs, params={})
            node = _with_params(plain, a.reshape(-1, 1, *ones), b, params)
        nodes.append(node)
    return graph.with_nodes(nodes, params=params)


def means_to_pools(graph: Graph) -> Graph:
    """mean over every spatial dimension → global_avg_pool (and a reshape without keepdim).

    Where the second axis is free it counts tokens, not channels, and the mean is that of a norm.
    """
    nodes = []
    for node in graph:
        before = graph.shape(node.inputs[0]) if node.inputs else ()
        rank = 0 if before[1:2] == (-1,) else len(before)
        if node.op == "mean" and rank in (3, 4) and node.attrs["axes"] == list(range(2, rank)):
            shape = (*graph.shape(node.inputs[0])[:2], *[1] * (rank - 2))
            if node.attrs["keepdim"]:
                node = node.with_(op="global_avg_pool", attrs={})
            else:
                pool = node.with_(
                    name=f"{node.name}.pool", op="global_avg_pool", attrs={}, shape=shape
                )
                nodes.append(pool)
                attrs = {"shape": list(node.shape)}
                node = node.with_(op="reshape", inputs=(pool.name,), attrs=attrs)
        nodes.append(node)
    return graph.with_nodes(nodes)


def order_operands(graph: Graph) -> Graph:
    """Put the operand that is broadcast second in add and mul, which do not care.

    ONNX Runtime's float32 rounding of a sum depends on which side repeats.
    """
    nodes = []
    for node in graph:
        if node.op in ("add", "mul"):
            first, second = (graph.shape(i) for i in node.inputs)
            if first != node.shape and second == node.shape:
                node = node.with_(inputs=node.inputs[::-1])
        nodes.append(node)
    return graph.with_nodes(nodes)


def _clamp_bounds(node: Node) -> list[float | None] | None:
    """``[0, high]`` of a relu or a clamp at zero; None for anything else."""
    if node.op == "relu":
        return [0.0, None]
    if node.op == "clamp" and node.attrs["low"] == 0.0 and (node.attrs["high"] or 1.0) > 0.0:
        return [0.0, node.attrs["high"]]
    return None


def hoist_activations(graph: Graph) -> Graph:
    """move → relu becomes relu → move: the values are the same, the relu can then be fused."""
    while True:
        for node in graph:
            moved = graph.node(node.inputs[0]) if _clamp_bounds(node) else None
            if moved is None or moved.op not in MOVES or moved.attrs.get("value", 0.0) != 0.0:
                continue
            if not _only_reader(graph, moved.name, node):
                continue
            inner = node.with_(inputs=moved.inputs, shape=graph.shape(moved.inputs[0]))
            outer = moved.with_(inputs=(inner.name,))
            swapped = [inner if n is moved else outer if n is node else n for n in graph]
            # The relu keeps its name and now feeds the move; readers follow the move.
            readers = {node.name: moved.name}
            fixed = [
                n if n is outer else n.with_(inputs=tuple(readers.get(i, i) for i in n.inputs))
                for n in swapped
            ]
            outputs = tuple(readers.get(o, o) for o in graph.outputs)
            graph = replace(graph, nodes=tuple(fixed), outputs=outputs)
            break
        else:
            return graph


def fuse_activations(graph: Graph) -> Graph:
    """op → relu: the op clamps its own output, and its quantizer's range will do it for free."""
    nodes = {n.name: n for n in graph}
    renamed: dict[str, str] = {}
    for node in graph:
        bounds = _clamp_bounds(node)
        source = nodes.get(renamed.get(node.inputs[0], node.inputs[0])) if bounds else None
        if source is None or source.op not in _CLAMPABLE or "activation" in source.attrs:
            continue
        if not _only_reader(graph, node.inputs[0], node):
            continue
        nodes[source.name] = source.with_(attrs={**source.attrs, "activation": bounds})
        renamed[node.name] = source.name
    kept = [nodes[n.name] for n in graph if n.name not in renamed]
    return graph.with_nodes(kept, renamed=renamed)


def _only_reader(graph: Graph, tensor: str, reader: Node) -> bool:
    return tensor not in graph.outputs and graph.consumers(tensor) == [reader]


def _with_params(node: Node, weight: Tensor, bias: Tensor, params: dict[str, Tensor]) -> Node:
    """Give ``node`` its own folded weight and bias, float32, under fresh names."""
    names: dict[str, Any] = {
        "weight": f"{node.name}.folded_weight",
        "bias": f"{node.name}.folded_bias",
    }
    params[names["weight"]] = weight.float().contiguous()
    params[names["bias"]] = bias.float().contiguous()
    return node.with_(params=names)

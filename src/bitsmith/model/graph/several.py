"""ATen operators that become several nodes, or none: splits, selections, attention.

One function per operator, like in :mod:`bitsmith.model.graph.lower`; it returns False when this
use of the operator is outside the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx

from bitsmith.model.graph.origin import shape_of

if TYPE_CHECKING:
    from bitsmith.model.graph.build import Builder

__all__ = ["SEVERAL"]

Expansion = Callable[["Builder", fx.Node], bool]
SEVERAL: dict[str, Expansion] = {}


def _expands(*names: str) -> Callable[[Expansion], Expansion]:
    def register(function: Expansion) -> Expansion:
        SEVERAL.update(dict.fromkeys(names, function))
        return function

    return register


def _cut(
    b: Builder,
    node: fx.Node,
    source: str,
    before: tuple[int, ...],
    axis: int,
    span: tuple[int, int],
) -> str:
    start, end = span
    attrs = {"axis": axis, "start": start, "end": end, "step": 1}
    shape = (*before[:axis], end - start, *before[axis + 1 :])
    return b.add(node, "slice", [source], attrs, {}, shape)


@_expands("chunk", "split", "split_with_sizes")
def _split(b: Builder, node: fx.Node) -> bool:
    call = b.call_of(node)
    before = call.shapes["self"]
    axis = call.args.get("dim", 0) % len(before)
    if before[axis] == -1:
        return False
    source = b.tensor_of(call.args["self"], node)
    start, parts = 0, []
    for value in node.meta["val"]:
        end = start + shape_of(value)[axis]
        parts.append(_cut(b, node, source, before, axis, (start, end)))
        start = end
    b.hold_parts(node, parts)
    return True


@_expands("unbind")
def _unbind(b: Builder, node: fx.Node) -> bool:
    call = b.call_of(node)
    before = call.shapes["self"]
    axis = call.args.get("dim", 0) % len(before)
    after = (*before[:axis], *before[axis + 1 :])
    if before[axis] == -1 or after.count(-1) > 1:
        return False
    source = b.tensor_of(call.args["self"], node)
    parts = [_pick(b, node, source, before, axis, i) for i in range(before[axis])]
    b.hold_parts(node, parts)
    return True


@_expands("select")
def _select(b: Builder, node: fx.Node) -> bool:
    call = b.call_of(node)
    before = call.shapes["self"]
    axis = call.args["dim"] % len(before)
    if before[axis] == -1 or call.shape.count(-1) > 1:
        return False
    source = b.tensor_of(call.args["self"], node)
    b.hold(node, _pick(b, node, source, before, axis, call.args["index"] % before[axis]))
    return True


def _pick(
    b: Builder, node: fx.Node, source: str, before: tuple[int, ...], axis: int, index: int
) -> str:
    cut = _cut(b, node, source, before, axis, (index, index + 1))
    after = (*before[:axis], *before[axis + 1 :])
    return b.add(node, "reshape", [cut], {"shape": list(after)}, {}, after)


@_expands("to", "_to_copy", "type_as")
def _to(b: Builder, node: fx.Node) -> bool:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if source.meta["val"].dtype != node.meta["val"].dtype:
        return False
    b.hold(node, b.tensor_of(source, node))
    return True


@_expands("expand", "expand_as")
def _expand(b: Builder, node: fx.Node) -> bool:
    """No change of shape, or a parameter repeated once for every sample (a class token)."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = shape_of(source.meta["val"]), shape_of(node.meta["val"])
    if before == after:
        b.hold(node, b.tensor_of(source, node))
        return True
    owned = b.param_of(source)
    size = str(node.meta["val"].shape[0])
    if owned is None or before[:1] != (1,) or before[1:] != after[1:] or size not in b.batches:
        return False
    name = b.add(node, "batch_constant", [b.batches[size]], {}, {"value": owned}, after)
    b.hold(node, name)
    return True


@_expands("arange")
def _arange(b: Builder, node: fx.Node) -> bool:
    """0, 1, … up to a size of an input that is free: positions."""
    call = b.call_of(node)
    end = call.args["end"]
    size = str(end.meta["val"]) if isinstance(end, fx.Node) else ""
    plain = call.args.get("start", 0) == 0 and call.args.get("step", 1) == 1
    if not plain or size not in b.sizes or call.dtype != "int64":
        return False
    source, axis = b.sizes[size]
    b.hold(node, b.add(node, "arange", [source], {"axis": axis}, {}, call.shape))
    return True


@_expands("slice")
def _slice_to(b: Builder, node: fx.Node) -> bool:
    """The first rows of a table, as many as an input has tokens; other slices are moves."""
    call = b.call_of(node)
    end = call.args.get("end")
    size = str(end.meta["val"]) if isinstance(end, fx.Node) else ""
    if size not in b.sizes or call.args.get("start") or call.args.get("step", 1) != 1:
        return False
    source, axis = b.sizes[size]
    names = [b.tensor_of(call.args["self"], node), source]
    attrs = {"axis": call.args.get("dim", 0) % len(call.shape), "size_of": axis}
    b.hold(node, b.add(node, "slice_to", names, attrs, {}, call.shape))
    return True


@_expands("rsub")
def _rsub(b: Builder, node: fx.Node) -> bool:
    """other − self."""
    call = b.call_of(node)
    if call.args.get("alpha", 1) != 1:
        return False
    names = [b.tensor_of(call.args[n], node) for n in ("other", "self")]
    b.hold(node, b.add(node, "sub", names, {}, {}, call.shape))
    return True


@_expands("pixel_shuffle")
def _pixel_shuffle(b: Builder, node: fx.Node) -> bool:
    """[N, C·r², H, W] → [N, C, H·r, W·r], three moves."""
    call = b.call_of(node)
    if len(call.shape) != 4 or -1 in call.shape[1:]:
        return False
    r = call.args["upscale_factor"]
    n, c, (height, width) = call.shape[0], call.shape[1], call.shapes["self"][2:]
    split = (n, c, r, r, height, width)
    source = b.tensor_of(call.args["self"], node)
    x = b.add(node, "reshape", [source], {"shape": list(split)}, {}, split)
    woven = (n, c, height, r, width, r)
    x = b.add(node, "transpose", [x], {"perm": [0, 1, 4, 2, 5, 3]}, {}, woven)
    b.hold(node, b.add(node, "reshape", [x], {"shape": list(call.shape)}, {}, call.shape))
    return True


@_expands("scaled_dot_product_attention")
def _attention(b: Builder, node: fx.Node) -> bool:
    """softmax(q kᵀ · scale + mask) v, so that its two products can run in integers."""
    call = b.call_of(node)
    mask = call.args.get("attn_mask")
    if call.args.get("is_causal"):
        return False
    if mask is not None and not mask.meta["val"].is_floating_point():
        return False  # a mask of truth values selects, it is not added
    if call.args.get("dropout_p", 0.0) or call.args.get("enable_gqa"):
        return False
    q, k, v = (b.tensor_of(call.args[n], node) for n in ("query", "key", "value"))
    kshape, vshape, qshape = (call.shapes[n] for n in ("key", "value", "query"))
    rank = len(kshape)
    scale: Any = call.args.get("scale") or 1.0 / math.sqrt(qshape[-1])
    perm = [*range(rank - 2), rank - 1, rank - 2]
    kt = b.add(node, "transpose", [k], {"perm": perm}, {}, tuple(kshape[i] for i in perm))
    scores_shape = (*qshape[:-1], kshape[-2])
    factor = b.scalar(node, scale)
    # Scaling the query first keeps the scores' own range in one quantizer.
    scaled = b.add(node, "mul", [q, factor], {}, {}, qshape)
    scores = b.add(node, "matmul", [scaled, kt], {}, {}, scores_shape)
    if mask is not None:
        terms = [scores, b.tensor_of(mask, node)]
        scores = b.add(node, "add", terms, {}, {}, scores_shape)
    weights = b.add(node, "softmax", [scores], {"axis": rank - 1}, {}, scores_shape)
    out = (*qshape[:-1], vshape[-1])
    b.hold(node, b.add(node, "matmul", [weights, v], {}, {}, out))
    return True

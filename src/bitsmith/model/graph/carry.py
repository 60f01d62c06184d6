"""Keep an ATen call as it is: PyTorch runs it in float, and it is never quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from bitsmith.errors import CaptureError
from bitsmith.model.graph.origin import schema_of, shape_of, source_of

if TYPE_CHECKING:
    from bitsmith.model.graph.build import Builder

__all__ = ["carry"]


def carry(b: Builder, node: fx.Node) -> None:
    """Add the call ``node`` to the graph under construction as ``aten``, one node a result."""
    inputs: list[str] = []
    params: dict[str, str] = {}

    def keep(arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            owned = b.param_of(arg)
            if owned is not None:
                params[f"p{len(params)}"] = owned
                return {"param": f"p{len(params) - 1}"}
            if not isinstance(arg.meta.get("val"), Tensor):
                raise CaptureError(
                    f"{node.target} at {source_of(node)} takes a size that depends on the batch; "
                    "use -1 or an operator that infers it"
                )
            inputs.append(b.tensor_of(arg, node))
            return {"input": len(inputs) - 1}
        if isinstance(arg, torch.dtype):
            return {"dtype": str(arg).removeprefix("torch.")}
        if isinstance(arg, torch.device | torch.layout | torch.memory_format):
            return None
        return [keep(a) for a in arg] if isinstance(arg, list | tuple) else arg

    args = [keep(a) for a in node.args]
    kwargs = {k: keep(v) for k, v in node.kwargs.items()}
    attrs = {"target": _functional(node), "args": args, "kwargs": kwargs, "item": None}
    value = node.meta["val"]
    if isinstance(value, Tensor):
        op = schema_of(node).name.split("::")[1]
        b.hold(node, b.append(node, "aten", op, inputs, attrs, params, shape_of(value)))
        return
    parts = []
    for index, part in enumerate(value):  # several results: one node each
        own = {**attrs, "item": index}
        stem = f"{node.name}.{index}"
        parts.append(b.append(node, "aten", stem, inputs, own, params, shape_of(part)))
    b.hold_parts(node, parts)


def _functional(node: fx.Node) -> str:
    """The call's ``aten.name.overload``; for an in-place form, that which returns a new tensor."""
    namespace, name, overload = str(node.target).split(".")
    if not name.endswith("_") or name.endswith("__"):
        return str(node.target)
    target = f"{namespace}.{name.rstrip('_')}.{overload}"
    if not hasattr(getattr(torch.ops.aten, name.rstrip("_"), None), overload):
        raise CaptureError(
            f"{node.target} at {source_of(node)} works in place only; use an operator that returns "
            "a new tensor"
        )
    return target

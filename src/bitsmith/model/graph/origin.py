"""Where a traced value comes from: its module, its source line, its shape."""

from __future__ import annotations

import re

import torch
from torch import Tensor, fx

__all__ = ["layer_of", "schema_of", "shape_of", "source_of"]


def shape_of(value: Tensor) -> tuple[int, ...]:
    """Return the shape of a traced tensor; −1 where it depends on the batch."""
    return tuple(s if isinstance(s, int) else -1 for s in value.shape)


def layer_of(node: fx.Node) -> str:
    """Return the path of the innermost module the call was made in; empty for the model."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if isinstance(entry[0], str)]
    paths = [p for p in paths if not p.startswith("_")]
    return paths[-1] if paths else ""


def source_of(node: fx.Node) -> str:
    """Return ``file:line`` of the user's code that made the call."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    ours = [f for f in frames if "/torch/" not in f[0]] or frames
    return f"{ours[-1][0].rsplit('/', 1)[-1]}:{ours[-1][1]}" if ours else "an unknown line"


def schema_of(node: fx.Node) -> torch.FunctionSchema:
    """Return the schema of the ATen operator that ``node`` calls."""
    assert isinstance(node.target, torch._ops.OpOverload)
    return node.target._schema

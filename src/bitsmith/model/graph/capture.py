"""Capture a PyTorch module as a :class:`~bitsmith.model.graph.ir.Graph` with ``torch.export``.

The batch is dynamic. Every ATen call becomes a word of the vocabulary, or ``aten`` when there is
none. The captured graph is run on the example and must give what the module gives.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from bitsmith.errors import CaptureError, DataError
from bitsmith.model.graph.build import Builder
from bitsmith.model.graph.explain import explain, forward_line
from bitsmith.model.graph.ir import Graph
from bitsmith.model.graph.operators import run_float

__all__ = ["capture", "from_exported"]

#: Relative tolerance between the module and its captured graph: float32 sums in another order.
TOLERANCE = 1e-4


def capture(model: nn.Module, example: Tensor | Sequence[Tensor], *, check: bool = True) -> Graph:
    """Return the graph of ``model`` in evaluation mode, with a dynamic batch.

    Args:
        model: any module that ``torch.export`` can trace; it is not changed.
        example: its input or inputs, float32 ``[batch, …]`` or token ids and masks ``[batch,
            tokens]`` of integers, whose length is free where the model leaves it open; a batch
            of one is doubled, because tracing would take 1 for a constant.
        check: run module and graph on the example and compare.

    Raises:
        CaptureError: tracing failed (with the source line and a remedy), the batch is not free,
            or the graph does not compute what the module computes.
    """
    _check_precision(model)
    inputs = [example] if isinstance(example, Tensor) else list(example)
    inputs = [torch.cat([x, x]) if x.shape[0] == 1 else x for x in inputs]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            try:  # on copies: a model may change its input in place
                expected = model(*(x.clone() for x in inputs))
            except Exception as error:
                shapes = ", ".join(str(list(x.shape)) for x in inputs)
                raise DataError(
                    f"the model does not accept input of shape {shapes}: {error}"
                ) from error
            _check_outputs(model, expected)
            graph = from_exported(_export(model, inputs))
            if check:
                _check(graph, inputs, expected)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return graph


def from_exported(program: ExportedProgram) -> Graph:
    """Return the graph of an exported program (for example a loaded ``.pt2`` file)."""
    return Builder(program).build().without_dead()


def _export(model: nn.Module, inputs: Sequence[Tensor]) -> ExportedProgram:
    shapes = tuple(_free_axes(x) for x in inputs)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it prints the partial graph there
            return torch.export.export(model, tuple(inputs), dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises many types, none of them documented
        raise CaptureError(explain(model, inputs, error)) from error


def _free_axes(x: Tensor) -> dict[int, Any]:
    """The batch; of token ids and masks every axis whose size the model leaves open."""
    others = {} if x.is_floating_point() else dict.fromkeys(range(1, x.dim()), Dim.AUTO)
    return {0: Dim.DYNAMIC, **others}


def _check_precision(model: nn.Module) -> None:
    other = [
        f"{name} ({str(p.dtype).removeprefix('torch.')})"
        for name, p in model.named_parameters()
        if p.is_floating_point() and p.dtype != torch.float32
    ]
    if other:
        shown = ", ".join(other[:8]) + (f" and {len(other) - 8} more" if len(other) > 8 else "")
        raise CaptureError(
            f"{type(model).__name__} is not in float32: {shown}\n  what to do: call model.float() "
            "first; integers are rounded from float32"
        )


def _check_outputs(model: nn.Module, outputs: Any) -> None:
    """Every output is a tensor whose first axis is the batch."""
    parts = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    if parts and all(isinstance(p, Tensor) and p.dim() > 0 for p in parts):
        return
    kinds = ", ".join(
        f"{type(p).__name__} of no axes" if isinstance(p, Tensor) else type(p).__name__
        for p in parts
    )
    raise CaptureError(
        f"{type(model).__name__} cannot be captured{forward_line(model)}: it returns "
        f"{kinds or 'nothing'}\n  what to do: return a tensor [batch, …] or a tuple of them, for "
        "example from a small module around this one"
    )


def _check(graph: Graph, inputs: Sequence[Tensor], expected: Any) -> None:
    wanted = [expected] if isinstance(expected, Tensor) else list(expected)
    got = run_float(graph, inputs)
    for name, a, b in zip(graph.outputs, got, wanted, strict=True):
        # Values that are infinite or NaN on both sides agree: calibration will name their layer.
        same = (a == b) | (a.isnan() & b.isnan())
        worst = float(torch.where(same, 0.0, (a - b).abs()).max()) if a.numel() else 0.0
        scale = float(b.abs().max()) if b.numel() else 0.0
        if worst and not worst <= TOLERANCE * max(scale, 1.0):
            raise CaptureError(
                f"the captured graph differs from the model at output {name}: {worst:.3g} on "
                f"values up to {scale:.3g}; the model may be random or keep state between calls"
            )

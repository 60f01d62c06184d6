"""Capture a PyTorch module as a :class:`~bitsmith.model.graph.ir.Graph` with ``torch.export``.

The batch is dynamic. Every ATen call becomes a word of the vocabulary, or ``aten`` when there is
none. The captured graph is run on the example and must give what the module gives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from bitsmith.errors import CaptureError, DataError
from bitsmith.model.graph.build import Builder
from bitsmith.model.graph.ir import Graph
from bitsmith.model.graph.operators import run_float

__all__ = ["capture", "from_exported"]

#: Relative tolerance between the module and its captured graph: float32 sums in another order.
TOLERANCE = 1e-4


def capture(model: nn.Module, example: Tensor | Sequence[Tensor], *, check: bool = True) -> Graph:
    """Return the graph of ``model`` in evaluation mode, with a dynamic batch.

    Args:
        model: any module that ``torch.export`` can trace; it is not changed.
        example: its input or inputs, float32 ``[batch, …]``; a batch of one is doubled, because
            tracing would take 1 for a constant.
        check: run module and graph on the example and compare.

    Raises:
        CaptureError: tracing failed (with the source line and a remedy), the batch is not free,
            or the graph does not compute what the module computes.
    """
    inputs = [example] if isinstance(example, Tensor) else list(example)
    inputs = [torch.cat([x, x]) if x.shape[0] == 1 else x for x in inputs]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            try:
                expected = model(*inputs)
            except Exception as error:
                shapes = ", ".join(str(list(x.shape)) for x in inputs)
                raise DataError(f"the model does not accept input of shape {shapes}: {error}") from error
            graph = from_exported(_export(model, inputs))
            if check:
                _check(graph, inputs, expected)
    finally:
        model.train(training)
    return graph


def from_exported(program: ExportedProgram) -> Graph:
    """Return the graph of an exported program (for example a loaded ``.pt2`` file)."""
    return Builder(program).build().without_dead()


def _export(model: nn.Module, inputs: Sequence[Tensor]) -> ExportedProgram:
    shapes = tuple({0: Dim.DYNAMIC} for _ in inputs)
    try:
        return torch.export.export(model, tuple(inputs), dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises many types, none of them documented
        raise CaptureError(_explain(model, error)) from error


def _explain(model: nn.Module, error: Exception) -> str:
    text = str(error)
    where = _user_line(text, error)
    if "specialized" in text or "Constraints violated" in text:
        remedy = (
            "the batch size is baked into the model; use x.shape[0], flatten or -1 "
            "instead of a number"
        )
    elif "data-dependent" in text.lower() or "Data-dependent" in text or "GuardOnDataDependent" in text:
        remedy = (
            "control flow depends on the values of a tensor; use torch.where or torch.cond, "
            "or quantize with a weight-only recipe (W8, W4G64), which needs no tracing"
        )
    else:
        remedy = (
            "rewrite that line with operators torch.export can trace, or quantize with a "
            "weight-only recipe (W8, W4G64), which needs no tracing"
        )
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{type(model).__name__} cannot be captured{where}: {first.strip()}\n  what to do: {remedy}"


def _user_line(text: str, error: Exception) -> str:
    """Return `` at file:line (code)`` of the innermost frame outside PyTorch."""
    found = re.findall(r'File "([^"]+)", line (\d+), in [^\n]+\n\s*([^\n]*)', text)
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        found.append((code.co_filename, str(traceback.tb_lineno), code.co_name))
        traceback = traceback.tb_next
    ours = [f for f in found if "/torch/" not in f[0] and "/bitsmith/model/graph/" not in f[0]]
    ours = [f for f in ours if not f[0].startswith("<")]
    return f" at {ours[0][0]}:{ours[0][1]} ({ours[0][2].strip()})" if ours else ""


def _check(graph: Graph, inputs: Sequence[Tensor], expected: Any) -> None:
    wanted = [expected] if isinstance(expected, Tensor) else list(expected)
    got = run_float(graph, inputs)
    for name, a, b in zip(graph.outputs, got, wanted, strict=True):
        worst = float((a - b).abs().max()) if a.numel() else 0.0
        scale = float(b.abs().max()) if b.numel() else 0.0
        if not worst <= TOLERANCE * max(scale, 1.0):
            raise CaptureError(
                f"the captured graph differs from the model at output {name}: {worst:.3g} on values "
                f"up to {scale:.3g}; the model may be random or keep state between calls"
            )

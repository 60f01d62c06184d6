"""The quantized model: a graph with its integers, executed as the runtime executes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from bitsmith.errors import InputError
from bitsmith.model.graph.macs import macs_by_node
from bitsmith.model.graph.operators import last_uses
from bitsmith.model.recipe import Recipe
from bitsmith.model.simulate import Program, Values, execute

__all__ = ["CoverageRow", "QuantizedModel"]


@final
@dataclass(frozen=True)
class CoverageRow:
    """What became of one operator: the line of the coverage table."""

    layer: str
    op: str
    outcome: str
    reason: str
    macs_share: float
    weight_bits: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain data, without keys that do not apply."""
        return {k: v for k, v in vars(self).items() if v is not None}


@final
class QuantizedModel(nn.Module):
    """A model in integers. Calling it runs the integer reference: the simulation of the file.

    Attributes:
        program: graph, outcomes, encodings and integer layers.
        recipe: what it was made with.
        target, machine: for which runtime, exact on which machines.
        provenance: plain data on the calibration (data hash, samples, versions).
        coverage: one row per operator: integer, moved as codes, or float and why.
    """

    def __init__(
        self,
        program: Program,
        recipe: Recipe,
        target: str,
        machine: str,
        provenance: dict[str, Any],
        coverage: list[CoverageRow] | None = None,
    ) -> None:
        super().__init__()
        self.program = program
        self.recipe = recipe
        self.target = target
        self.machine = machine
        self.provenance = provenance
        self.coverage = _coverage(program) if coverage is None else coverage
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the float outputs (logits) for its inputs, as the runtime computes them."""
        values = self._run(inputs, keep=False)
        outputs = tuple(values.real(o) for o in self.program.graph.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def trace(self, *inputs: Tensor) -> Values:
        """Run and return every tensor: codes where quantized, reals where float."""
        return self._run(inputs, keep=True)

    @property
    def encodings(self) -> dict[str, dict[str, Any]]:
        """Tensor name → scale, zero point and format, of every quantized activation."""
        return {k: e.to_json() for k, e in self.program.encodings.items()}

    def file_provenance(self) -> dict[str, Any]:
        """Return ``provenance`` without the seconds: the same run then writes the same bytes."""
        return {k: _untimed(v) for k, v in self.provenance.items() if not _is_time(k)}

    @torch.no_grad()
    def _run(self, inputs: Iterable[Tensor], keep: bool) -> Values:
        graph = self.program.graph
        values, given = Values(self.program), tuple(inputs)
        if len(given) != len(graph.inputs):
            names = ", ".join(declared.name for declared in graph.inputs)
            raise InputError(
                f"the model takes {len(graph.inputs)} inputs ({names}), not {len(given)}"
            )
        if empty := [d.name for d, x in zip(graph.inputs, given, strict=True) if not x.numel()]:
            raise InputError(f"input {', '.join(empty)} has no values: a batch has a sample")
        for declared, x in zip(graph.inputs, given, strict=True):
            values.reals[declared.name] = x.to(getattr(torch, declared.dtype))
        last = last_uses(graph)
        for position, node in enumerate(graph.nodes):
            execute(node, values)
            if keep:
                continue
            for name in node.inputs:
                if last[name] <= position and name not in graph.outputs:
                    values.drop(name)
        return values


def _is_time(key: str) -> bool:
    return key == "seconds" or key.endswith("_seconds")


def _untimed(value: Any) -> Any:
    if isinstance(value, list):
        return [_untimed(v) for v in value]
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if not _is_time(k)}
    return value


def _coverage(program: Program) -> list[CoverageRow]:
    macs = macs_by_node(program.graph)
    total = sum(macs.values()) or 1
    rows = []
    for node in program.graph:
        outcome = program.outcomes[node.name]
        if outcome.kind == "constant":
            continue
        layer = program.layers.get(node.name)
        bits = None if layer is None else layer.effective_bits
        reason = outcome.reason + (" with float output" if outcome.float_output else "")
        share = macs[node.name] / total
        rows.append(CoverageRow(node.name, node.op, outcome.kind, reason, share, bits))
    return rows

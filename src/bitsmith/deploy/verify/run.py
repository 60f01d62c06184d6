"""Run file and simulation side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, final

import onnx
from torch import Tensor

from bitsmith.deploy.export.onnx.graph_writer import code_name
from bitsmith.deploy.runtimes import Session, open_session
from bitsmith.deploy.verify.compare import Difference, cause_of
from bitsmith.deploy.verify.expose import (
    exposed_tensors,
    integer_nodes,
    operator_counts,
    with_outputs,
)
from bitsmith.deploy.verify.result import TensorComparison, Verification
from bitsmith.deploy.verify.worst_case import worst_cases
from bitsmith.errors import DataError, InputError
from bitsmith.model.calibrate import as_inputs
from bitsmith.model.graph.ir import Graph, Node
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.simulate import Program, Values, execute
from bitsmith.numbers.machine import instruction_sets

__all__ = ["verify"]


def verify(
    model: QuantizedModel,
    path: str | Path,
    data: Iterable[Any],
    *,
    runtime: str = "onnxruntime",
    samples: int = 256,
    isolated_samples: int = 64,
    threads: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> Verification:
    """Return what the file at ``path`` computes against what ``model`` computes.

    Args:
        model: the simulation, as saved beside the file (never rebuilt from it).
        path: the ONNX file.
        data: batches ``x`` or ``(x, y)``, or a tensor, which is one batch; the first ``samples``
            are compared.
        runtime: ``onnxruntime`` or ``openvino``.
        isolated_samples: how many samples are also compared layer by layer on the runtime's own
            inputs.
        threads: of the runtime.
        advance: told the samples of each batch (for a progress bar).

    Raises:
        InputError: the file is not one the runtime accepts, or not this simulation's.
        DataError: no data, or a batch of another number or shape of inputs than the model's.
    """
    try:
        proto = onnx.load(str(path))
    except Exception as error:
        raise InputError(f"{path} is not a readable ONNX file: {error}") from error
    program = model.program
    codes, reals = exposed_tensors(program)
    names = [code_name(t) for t in codes] + reals
    plain = open_session(proto.SerializeToString(), runtime, threads=threads)
    exposed = open_session(with_outputs(proto, names), runtime, threads=threads)
    executed = plain.executed()
    integers = _integers(program, exposed)
    comparison = _Comparison(program, codes, reals, integers or {})
    seen = 0
    for batch in [data] if isinstance(data, Tensor) else data:
        inputs = [x[: samples - seen] for x in _fitting(program.graph, as_inputs(batch))]
        comparison.compare(inputs, plain, exposed, isolate=seen < isolated_samples)
        seen += len(inputs[0])
        if advance is not None:
            advance(len(inputs[0]))
        if seen >= samples:
            break
    if seen == 0:
        raise DataError("verification needs data, and the iterable gave no batch")
    return Verification(
        runtime=runtime,
        target=model.target,
        runtime_version=plain.version,
        instruction_sets=tuple(sorted(instruction_sets())),
        machine=model.machine,
        order_assumed="kernel, then input channels" if model.machine != "any-order" else "any",
        samples=seen,
        tensors=tuple(comparison.rows()),
        worst_cases=tuple(worst_cases(model, runtime)),
        operators=operator_counts(executed),
        planned_integer=sum(o.kind == "integer" for o in program.outcomes.values()),
        executed_integer=None if integers is None else sum(integers.values()),
        not_integer=tuple(name for name, ran in (integers or {}).items() if not ran),
        output_max_difference=comparison.output.largest,
        changed_predictions=comparison.changed,
    )


def _fitting(graph: Graph, inputs: list[Tensor]) -> list[Tensor]:
    """Return the inputs, after refusing those that the model was not captured for."""
    wanted = [i.shape for i in graph.inputs]
    fits = len(inputs) == len(wanted) and all(
        x.dim() == len(shape)
        and all(size in (-1, given) for size, given in zip(shape[1:], x.shape[1:], strict=True))
        for x, shape in zip(inputs, wanted, strict=True)
    )
    if not fits:
        expected = " and ".join(
            f"{i.name} [batch, {', '.join('any' if s == -1 else str(s) for s in i.shape[1:])}]"
            for i in graph.inputs
        )
        given = " and ".join(str(list(x.shape)) for x in inputs)
        raise DataError(
            f"a batch of shape {given} is not what the model takes: {expected}; data is a list of "
            "batches, or one batch as a tensor"
        )
    return inputs


def _integers(program: Program, session: Session) -> dict[str, bool] | None:
    """Planned integer node → whether it ran so; None where the runtime's graph does not tell."""
    if session.name != "onnxruntime":
        return None
    return integer_nodes(program, session.executed())


@final
class _Comparison:
    """Differences per tensor over all batches."""

    def __init__(
        self, program: Program, codes: list[str], reals: list[str], integers: dict[str, bool]
    ) -> None:
        self.program = program
        self.codes, self.reals, self.integers = codes, reals, integers
        self.cumulative = {t: Difference() for t in [*codes, *reals]}
        self.isolated = {n.name: Difference() for n in program.graph}
        self.unequal: set[str] = set()  # real values differ, whether or not their codes do
        self.causes: dict[str, str] = {}
        self.output = Difference()
        self.changed = 0

    def compare(
        self, inputs: list[Tensor], plain: Session, exposed: Session, isolate: bool
    ) -> None:
        """Account for one batch."""
        ours = Values(self.program)
        for declared, x in zip(self.program.graph.inputs, inputs, strict=True):
            ours.reals[declared.name] = x
        for node in self.program.graph:
            execute(node, ours)
        theirs = self._runtime_values(inputs, exposed)
        for name in self.codes:
            self.cumulative[name].add(ours.code(name), theirs.codes[name])
        for name in set(self.reals) - set(self.codes):
            self.cumulative[name].add(ours.reals[name], theirs.reals[name])
        self.unequal |= {n for n in self.reals if not ours.reals[n].equal(theirs.reals[n])}
        for position, output in enumerate(plain.run(*inputs)):
            expected = ours.real(self.program.graph.outputs[position])
            self.output.add(expected, output)
            if position == 0 and expected.dim() >= 2:
                self.changed += int((expected.argmax(1) != output.argmax(1)).sum())
        if isolate:
            for node in self.program.graph:
                if self.program.outcomes[node.name].kind != "constant":
                    self._isolate(node, theirs)

    def _runtime_values(self, inputs: list[Tensor], exposed: Session) -> Values:
        got = dict(zip(exposed.output_names, exposed.run(*inputs), strict=True))
        theirs = Values(self.program)
        for declared, x in zip(self.program.graph.inputs, inputs, strict=True):
            theirs.reals[declared.name] = x
        for node in self.program.graph:
            if node.op == "constant":
                execute(node, theirs)
        for name in self.codes:
            kind = self.program.encodings[name].format.dtype
            theirs.codes[name] = got[code_name(name)].to(kind)
        for name in self.reals:
            theirs.reals[name] = got[name]
        return theirs

    def _isolate(self, node: Node, theirs: Values) -> None:
        """Compute ``node`` from the runtime's inputs and compare with the runtime's result."""
        local = Values(self.program, dict(theirs.codes), dict(theirs.reals))
        local.drop(node.name)
        execute(node, local)
        if node.name in theirs.codes:
            ours, runtime = local.code(node.name), theirs.codes[node.name]
        else:
            ours, runtime = local.reals[node.name], theirs.reals[node.name]
        before = self.isolated[node.name].differing
        self.isolated[node.name].add(ours, runtime)
        if self.isolated[node.name].differing > before and node.name not in self.causes:
            ran = self.integers.get(node.name, True)
            self.causes[node.name] = cause_of(node, theirs, runtime, ran)

    def rows(self) -> list[TensorComparison]:
        """One row per compared tensor, in the order of the graph."""
        rows = []
        for declared in self.program.graph.inputs:
            if declared.name in self.cumulative:
                rows.append(self._row(declared.name, None))
        for node in self.program.graph:
            if node.name in self.cumulative:
                rows.append(self._row(node.name, node))
        return rows

    def _differs_before(self, node: Node | None) -> bool:
        return node is not None and any(
            i in self.unequal or (i in self.cumulative and self.cumulative[i].differing)
            for i in node.inputs
        )

    def _row(self, name: str, node: Node | None) -> TensorComparison:
        whole = self.cumulative[name]
        alone = self.isolated[name] if node is not None else whole
        outcome = self.program.outcomes[name] if node is not None else None
        cause = self.causes.get(name, "")
        if whole.differing and not cause:
            # Equal on the runtime's own inputs; if those never differed, it was not compared so.
            cause = "upstream" if self._differs_before(node) else "not isolated"
        return TensorComparison(
            tensor=name,
            op=node.op if node is not None else "quantize",
            kernel=outcome.reason if outcome is not None else "QuantizeLinear",
            outcome=outcome.kind if outcome is not None else "input",
            n=whole.n,
            differing=whole.differing,
            max_lsb=whole.largest,
            mean_lsb=whole.mean,
            isolated_n=alone.n,
            isolated_differing=alone.differing,
            isolated_max_lsb=alone.largest,
            isolated_mean_lsb=alone.mean,
            magnitude=None if name in self.codes else whole.magnitude,
            cause=cause,
        )

"""Make inner tensors of a file visible as outputs, and see what the runtime made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import onnx
from onnx import helper

from bitsmith.deploy.export.onnx.graph_writer import code_name
from bitsmith.deploy.runtimes import ExecutedNode
from bitsmith.errors import InputError
from bitsmith.model.simulate import Program

__all__ = ["exposed_tensors", "integer_nodes", "operator_counts", "with_outputs"]

_INTEGER_KERNELS = frozenset({"MatMulIntegerToFloat", "QGemm", "MatMulInteger", "ConvInteger"})
_CARRIERS = frozenset({"Transpose", "Reshape"})


def with_outputs(proto: onnx.ModelProto, names: Iterable[str]) -> bytes:
    """Return the model with the tensors ``names`` as further outputs (their types inferred)."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    present = {o.name for o in changed.graph.output}
    known = {o for n in changed.graph.node for o in n.output}
    wanted = [n for n in names if n not in present]
    if missing := [n for n in wanted if n not in known]:
        raise InputError(
            f"the file has no tensor {', '.join(missing[:5])}: it is not the file this simulation "
            "was saved with"
        )
    for name in wanted:
        changed.graph.output.append(helper.make_empty_tensor_value_info(name))
    return bytes(changed.SerializeToString())


def exposed_tensors(program: Program) -> tuple[list[str], list[str]]:
    """Return the tensors to compare: those with codes, and those that exist as reals."""
    constants = {n.name for n in program.graph if n.op == "constant"}
    codes = [t for t in program.encodings if t not in constants]
    reals = [
        n.name
        for n in program.graph
        if program.outcomes[n.name].kind == "float" or program.outcomes[n.name].float_output
    ]
    return codes, reals


def integer_nodes(program: Program, executed: list[ExecutedNode]) -> dict[str, bool]:
    """Return planned integer node → whether the runtime ran it with an integer kernel."""
    producer = {o: n for n in executed for o in n.outputs}
    found = {}
    for node in program.graph:
        outcome = program.outcomes[node.name]
        if outcome.kind == "integer":
            tensor = node.name if outcome.float_output else code_name(node.name)
            found[node.name] = _is_integer(producer, tensor)
    return found


def _is_integer(producer: dict[str, ExecutedNode], tensor: str) -> bool:
    node = producer.get(tensor)
    while node is not None and (node.op in _CARRIERS or node.op in ("Clip", "Relu")):
        node = producer.get(node.inputs[0]) if node.inputs else None
    return node is not None and (node.op.startswith("QLinear") or node.op in _INTEGER_KERNELS)


def operator_counts(executed: list[ExecutedNode]) -> dict[str, int]:
    """Return operator → count, most frequent first."""
    return dict(Counter(n.op for n in executed).most_common())

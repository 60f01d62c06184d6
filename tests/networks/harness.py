"""Take a small model all the way: quantize, export, run in ONNX Runtime, compare every tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from bitsmith.deploy.export.onnx.graph_writer import code_name
from bitsmith.deploy.export.onnx.model_writer import write_model
from bitsmith.model.ptq import ptq
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.recipe import Recipe
from bitsmith.model.simulate import Values, execute
from emulate.sessions import Case, Result, run_all

#: The runtime's names of one planned kernel.
SYNONYMS = {
    "NhwcQLinearConv": "QLinearConv",
    "MatMulIntegerToFloat": "QLinearMatMul",
}


@dataclass(frozen=True)
class Specimen:
    """A model, the shapes of its inputs without the batch, and what should become of it.

    ``floats`` names the operators (words of the vocabulary) that stay float.
    """

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    floats: frozenset[str] = frozenset()
    recipe: str | Recipe = "W8A8"


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics that folding them must take into account."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean = uniform(module.running_mean, -0.5, 0.5)
            module.running_var = uniform(module.running_var, 0.5, 2.0)
            if module.affine:
                module.weight.data = uniform(module.weight, -1.0, 2.0)
                module.bias.data = uniform(module.bias, -0.5, 0.5)
    return model.eval()


def batches(
    shapes: Sequence[tuple[int, ...]], sizes: Sequence[int], seed: int = 1
) -> list[list[Tensor]]:
    """Random inputs, one list per batch."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(n, *s, generator=generator) for s in shapes] for n in sizes]


def quantized(specimen: Specimen, machine: str = "any") -> QuantizedModel:
    """The specimen after training quantization on 32 random samples."""
    torch.manual_seed(0)
    model = randomised(specimen.build())
    return ptq(model, specimen.recipe, batches(specimen.shapes, (16, 16)), machine=machine)


def exposed(model: QuantizedModel) -> tuple[bytes, list[str]]:
    """The exported file with the codes of every quantized tensor as outputs, and their names."""
    proto = write_model(model, {})
    onnx.checker.check_model(proto, full_check=True)
    made = {o for n in proto.graph.node for o in n.output}
    names = [t for t in model.program.encodings if code_name(t) in made]
    for tensor in names:
        kind = TensorProto.UINT8
        proto.graph.output.append(helper.make_tensor_value_info(code_name(tensor), kind, None))
    return proto.SerializeToString(), names


@dataclass(frozen=True)
class Comparison:
    """What a runtime computed beside what we did.

    ``cumulative`` and ``isolated`` are the largest differences in codes by tensor: from the
    input on, and with every operator on the runtime's own input codes.
    """

    operators: Counter[str]
    cumulative: dict[str, int]
    isolated: dict[str, int]
    outputs: list[tuple[Tensor, Tensor]] = field(default_factory=list)


def compare(
    model: QuantizedModel, inputs: Sequence[Sequence[Tensor]], machine: str = "native"
) -> list[Comparison]:
    """Run the exported file on every batch of ``inputs`` and compare with the simulation."""
    content, names = exposed(model)
    declared = [i.name for i in model.program.graph.inputs]
    cases = [
        Case(content, {n: x.numpy() for n, x in zip(declared, batch, strict=True)})
        for batch in inputs
    ]
    results = run_all(machine, cases)
    return [compared(model, b, names, r) for b, r in zip(inputs, results, strict=True)]


def compared(
    model: QuantizedModel, batch: Sequence[Tensor], names: list[str], result: Result
) -> Comparison:
    """Compare one run of the file with the simulation of the same batch."""
    outputs = model.program.graph.outputs
    theirs = [torch.from_numpy(np.array(v)) for v in result.outputs]
    codes = dict(zip(names, theirs[len(outputs) :], strict=True))
    trace = model.trace(*batch)
    cumulative = {name: _lsb(trace.code(name), codes[name]) for name in names}
    pairs = list(zip((trace.real(o) for o in outputs), theirs, strict=False))
    operators = Counter(SYNONYMS.get(op, op) for op in result.operators)
    return Comparison(operators, cumulative, _isolated(model, batch, codes), pairs)


@torch.no_grad()
def _isolated(
    model: QuantizedModel, batch: Sequence[Tensor], codes: dict[str, Tensor]
) -> dict[str, int]:
    values, found = Values(model.program), {}
    for declared, x in zip(model.program.graph.inputs, batch, strict=True):
        values.reals[declared.name] = x
    for name in [*values.reals, *(n.name for n in model.program.graph)]:
        node = model.program.graph.node(name)
        if node is not None:
            execute(node, values)
        if name in codes:
            found[name] = _lsb(values.code(name), codes[name])
            values.codes[name] = codes[name]
    return found


def _lsb(ours: Tensor, theirs: Tensor) -> int:
    assert ours.shape == theirs.shape
    return int((ours.int() - theirs.int()).abs().max()) if ours.numel() else 0


def planned(model: QuantizedModel) -> Counter[str]:
    """The integer kernels that the coverage promises."""
    return Counter(row.reason.split()[0] for row in model.coverage if row.outcome == "integer")


def integer_operators(found: Comparison) -> Counter[str]:
    """The integer kernels in the runtime's optimized graph."""
    names = {op: n for op, n in found.operators.items() if op.startswith("QLinear")}
    return Counter(names | {"QGemm": found.operators["QGemm"]}) + Counter()


def islands(model: QuantizedModel) -> set[str]:
    """Names of the tensors that are computed in float."""
    return {name for name, o in model.program.outcomes.items() if o.kind == "float"}

"""How far float fake-quantize is from what the runtime computes, beside the integer simulation.

The float simulation has the same weights, biases and encodings as the file; it computes in float32
between a dequantization and a quantization, as QDQ graphs are usually simulated. ResNet-20, W8A8,
CIFAR-10 test images; codes of every quantized tensor against ONNX Runtime.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from bitsmith.data import load_dataset
from bitsmith.deploy.export import export
from bitsmith.deploy.export.onnx.graph_writer import code_name
from bitsmith.deploy.runtimes import open_session
from bitsmith.deploy.verify.compare import Difference
from bitsmith.deploy.verify.expose import exposed_tensors, with_outputs
from bitsmith.model.graph.operators import run_node
from bitsmith.model.ptq import ptq
from bitsmith.model.quantized import QuantizedModel
from bitsmith.zoo import load_model
from record import arguments, on_machine, save


def float_simulation(model: QuantizedModel, x: Tensor, int32_bias: bool) -> dict[str, Tensor]:
    """Codes of every quantized tensor (and the real outputs) when all arithmetic is float32."""
    program = model.program
    reals, codes = {program.graph.inputs[0].name: x}, {}
    for name in [program.graph.inputs[0].name, *(n.name for n in program.graph)]:
        node = program.graph.node(name)
        if node is not None:
            params = {r: program.graph.params[p] for r, p in node.params.items()}
            layer = program.layers.get(name)
            if layer is not None:
                params["weight"] = layer.weight.dequantize()
                if int32_bias and layer.bias is not None:
                    step = program.encodings[node.inputs[0]].scale * layer.weight.scale.reshape(-1)
                    params["bias"] = layer.bias.float() * step
            reals[name] = run_node(node, params, [reals[i] for i in node.inputs])
        if name in program.encodings:
            codes[name] = program.encodings[name].quantize(reals[name])
            reals[name] = program.encodings[name].dequantize(codes[name])
    return codes | {o: reals[o] for o in program.graph.outputs}


def measure(images: int, threads: int) -> list[dict[str, Any]]:
    """One row per simulation."""
    data = load_dataset("cifar10")
    model = ptq(
        load_model("cifar-resnet20").module,
        "W8A8",
        data.split("train").batches(64, limit=256, seed=0),
    )
    names, _ = exposed_tensors(model.program)
    (output,) = model.program.graph.outputs
    last = [n.name for n in model.program.graph if n.op == "conv"][-1]
    found = {
        k: (Difference(), Difference(), [0]) for k in ("float32", "float32, int32 bias", "integers")
    }
    with tempfile.TemporaryDirectory() as folder:
        proto = onnx.load(str(export(model, Path(folder) / "m.onnx")))
        session = open_session(with_outputs(proto, [code_name(n) for n in names]), threads=threads)
    for x, _ in data.split("test").batches(250, limit=images):
        theirs = dict(zip(session.output_names, session.run(x), strict=True))
        trace = model.trace(x)
        ours = {
            "float32": float_simulation(model, x, False),
            "float32, int32 bias": float_simulation(model, x, True),
            "integers": {n: trace.code(n) for n in names} | {output: trace.real(output)},
        }
        for kind, (every, at_last, changed) in found.items():
            for name in names:
                every.add(ours[kind][name], theirs[code_name(name)])
            at_last.add(ours[kind][last], theirs[code_name(last)])
            changed[0] += int((ours[kind][output].argmax(1) != theirs[output].argmax(1)).sum())
    return [
        {
            "simulation": kind,
            "largest difference, LSB": every.largest,
            "differing codes": f"{every.differing:,} of {every.n:,}",
            "share at the last convolution, %": 100 * at_last.differing / at_last.n,
            "changed predictions": f"{changed[0]} of {images}",
        }
        for kind, (every, at_last, changed) in found.items()
    ]


def exporter_seconds() -> dict[str, float]:
    """Seconds of ``torch.onnx.export`` (float network) and of our writer (the int8 one)."""
    model = load_model("cifar-resnet20").module
    x = torch.zeros(2, 3, 32, 32)
    quantized = ptq(model, "W8A8", [torch.randn(16, 3, 32, 32)])
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):  # the second time: imports are done
            started = time.perf_counter()
            export(quantized, Path(folder) / "ours.onnx")
            seconds["bitsmith export, s"] = time.perf_counter() - started
            started = time.perf_counter()
            torch.onnx.export(model, (x,), Path(folder) / "torch.onnx", dynamo=True, verbose=False)
            seconds["torch.onnx.export, s"] = time.perf_counter() - started
    return seconds


def main() -> None:
    """Run and record."""
    options = arguments(__doc__ or "").parse_args()
    suffix = on_machine(options)
    rows = measure(250 if options.quick else 2000, options.threads)
    rows += [] if options.quick else [exporter_seconds()]
    save(f"float_simulation{suffix}", rows, options.quick)


if __name__ == "__main__":
    main()

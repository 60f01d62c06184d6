"""The network in integers: calibrated, exported, verified, and run by ONNX Runtime."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from bitsmith.deploy.export import export
from bitsmith.deploy.runtimes import open_session
from bitsmith.deploy.verify import Verification, verify
from bitsmith.model.ptq import ptq
from bitsmith.model.quantized import QuantizedModel
from bitsmith.numbers.encoding import Encoding
from bitsmith.studies.cnn.networks import Judged, Subject

__all__ = ["RECIPE", "Codes", "Layer", "Static", "judged_file", "static"]

RECIPE = "W8A8"


@final
@dataclass(frozen=True)
class Layer:
    """A layer in integers.

    Attributes:
        name: in the network.
        op: what was fused into one operator.
        kernel: the runtime's.
        input: how its input is encoded.
        weight: smallest and largest scale of its int8 weight, one an output channel.
        output: how its output is encoded; None: float logits.
    """

    name: str
    op: str
    kernel: str
    input: Encoding
    weight: tuple[float, float]
    output: Encoding | None


@final
@dataclass(frozen=True, eq=False)
class Codes:
    """The codes of one tensor on some test images.

    Attributes:
        name: what it is.
        encoding: of the codes.
        counts: how often each of them occurs, int64 ``[256]``.
    """

    name: str
    encoding: Encoding
    counts: NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class Static:
    """The quantized network, as a simulation and as a file.

    Attributes:
        quantized: the simulation.
        layers: in order.
        codes: of the input and of every layer that hands on codes.
        simulated, runtime: what both give on the test images.
        verification: of the file against the simulation, tensor by tensor.
        bytes, float_bytes: of the file, and of the float parameters.
    """

    quantized: QuantizedModel
    layers: tuple[Layer, ...]
    codes: tuple[Codes, ...]
    simulated: Judged
    runtime: Judged
    verification: Verification
    bytes: int
    float_bytes: int


def static(subject: Subject) -> Static:
    """Return the network in 8-bit integers, calibrated on training images."""
    quantized = ptq(subject.module, RECIPE, subject.images)
    with tempfile.TemporaryDirectory() as folder:
        path = export(quantized, Path(folder) / "cnn.onnx")
        verification = verify(quantized, path, subject.judges, samples=subject.compared)
        runtime = _run(subject, path)
        size = path.stat().st_size
    return Static(
        quantized,
        _layers(quantized),
        _codes(quantized, subject),
        subject.judge("simulation", quantized, "simulation"),
        runtime,
        verification,
        size,
        4 * sum(p.numel() for p in subject.module.parameters()),
    )


def judged_file(subject: Subject, quantized: QuantizedModel) -> Judged:
    """Return what the file of a quantized network gives in ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        return _run(subject, export(quantized, Path(folder) / "cnn.onnx"))


def _run(subject: Subject, path: Path) -> Judged:
    session = open_session(path, threads=torch.get_num_threads())
    return subject.judge("ONNX Runtime", session, "onnxruntime")


def _layers(quantized: QuantizedModel) -> tuple[Layer, ...]:
    program = quantized.program
    found = []
    for node in program.graph:
        if node.name not in program.layers:
            continue
        scales = program.layers[node.name].weight.scale
        outcome = program.outcomes[node.name]
        found.append(
            Layer(
                name=node.layer or node.name,
                op=f"{node.op} + relu" if node.attrs.get("activation") else node.op,
                kernel=outcome.reason,
                input=program.encodings[node.inputs[0]],
                weight=(float(scales.min()), float(scales.max())),
                output=None if outcome.float_output else program.encodings[node.name],
            )
        )
    return tuple(found)


def _codes(quantized: QuantizedModel, subject: Subject) -> tuple[Codes, ...]:
    """Return how often each code occurs in the input and in the output of each layer."""
    program = quantized.program
    names = {i.name: "input" for i in program.graph.inputs}
    for node in program.graph:
        if node.name in program.layers and not program.outcomes[node.name].float_output:
            names[node.name] = node.layer or node.name
    counts = {name: np.zeros(256, np.int64) for name in names}
    for x, _ in subject.test.batches(64, limit=subject.compared):
        values = quantized.trace(x)
        for name in names:
            codes = values.code(name).flatten().to(torch.int64).numpy()
            counts[name] += np.bincount(codes, minlength=256)
    return tuple(Codes(names[n], program.encodings[n], counts[n]) for n in names)

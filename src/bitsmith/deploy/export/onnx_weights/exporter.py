"""ONNX files of modules with packed weights, as an exporter of the module lane."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from bitsmith.deploy.export import ModuleExport, ModuleExporter
from bitsmith.deploy.export.onnx_weights.reader import read
from bitsmith.deploy.export.onnx_weights.writer import check, write

__all__ = ["OnnxWeights"]


@final
class OnnxWeights(ModuleExporter, name="onnx-weights"):
    """ONNX with packed weights: MatMulNBits, or the standard operators; give an example input."""

    suffix = ".onnx"
    takes = ("form", "activations", "dynamic_shapes")

    def check(self, job: ModuleExport) -> list[str]:
        known = {k: v for k, v in job.options.items() if k in ("form", "activations")}
        missing = [] if job.example else ["a file without example inputs (example=…)"]
        return [*missing, *job.scaled_inputs(), *check(job.model, **known)]

    def write(self, job: ModuleExport, path: Path) -> None:
        assert job.example is not None
        write(job.model, path, job.example, metadata=job.metadata, **job.options)

    def read(self, path: Path) -> Mapping[str, Any]:
        return read(path)

"""The compressed-tensors folder as an exporter of the module lane."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from bitsmith.deploy.export import ModuleExport, ModuleExporter
from bitsmith.deploy.export.compressed_tensors.reader import read
from bitsmith.deploy.export.compressed_tensors.writer import check, write

__all__ = ["CompressedTensors"]


@final
class CompressedTensors(ModuleExporter, name="compressed-tensors"):
    """A folder that ``transformers`` and vLLM load; give the model's ``config.json``."""

    suffix = ""

    def check(self, job: ModuleExport) -> list[str]:
        return [*job.scaled_inputs(), *job.padded_rows(), *check(job.stream, **_about(job))]

    def write(self, job: ModuleExport, path: Path) -> None:
        write(job.stream, path, **_about(job))

    def read(self, path: Path) -> Mapping[str, Any]:
        return read(path)


def _about(job: ModuleExport) -> dict[str, Any]:
    stream = job.stream
    return {
        "linears": stream.linears,
        "embeddings": stream.embeddings,
        "dynamic": stream.dynamic,
        "config": job.config,
    }

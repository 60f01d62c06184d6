"""GGUF as an exporter of the module lane."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from bitsmith.deploy.export import ModuleExport, ModuleExporter
from bitsmith.deploy.export.gguf.reader import read
from bitsmith.deploy.export.gguf.writer import check, write

__all__ = ["Gguf"]


@final
class Gguf(ModuleExporter, name="gguf"):
    """GGUF version 3: tensors in the block types of llama.cpp, under the model's own names."""

    suffix = ".gguf"

    def check(self, job: ModuleExport) -> list[str]:
        return [*job.scaled_inputs(), *job.padded_rows(), *check(job.stream, _keys(job))]

    def write(self, job: ModuleExport, path: Path) -> None:
        write(job.stream, path, metadata=_keys(job))

    def read(self, path: Path) -> Mapping[str, Any]:
        return read(path)


def _keys(job: ModuleExport) -> dict[str, Any]:
    return {**(job.config or {}), **job.metadata}

"""Write a folder in the compressed-tensors format, at once or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bitsmith.deploy.export.compressed_tensors.layout import to_parts
from bitsmith.deploy.export.compressed_tensors.settings import settings
from bitsmith.deploy.export.compressed_tensors.shards import shard_names
from bitsmith.deploy.export.compressed_tensors.survey import Kinds, Parameter, survey
from bitsmith.errors import ExportError, InputError
from bitsmith.model.store.safetensors_file import TensorFile, nbytes
from bitsmith.numbers.qtensor import QTensor

__all__ = ["SHARD_BYTES", "check", "write"]

SHARD_BYTES = 5_000_000_000
"""Largest file, unless a single parameter is larger."""


def check(
    tensors: Mapping[str, QTensor | Tensor],
    *,
    linears: Collection[str],
    embeddings: Collection[str] = (),
    config: Mapping[str, Any] | None = None,
    dynamic: Collection[str] = (),
) -> list[str]:
    """Return everything that the format cannot represent; empty: all of it can.

    Arguments as of :func:`write`.
    """
    return list(survey(tensors, config or {}, Kinds.of(linears, embeddings), dynamic).problems)


def write(
    tensors: Mapping[str, QTensor | Tensor],
    folder: str | Path,
    *,
    linears: Collection[str],
    embeddings: Collection[str] = (),
    config: Mapping[str, Any] | None = None,
    dynamic: Collection[str] = (),
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write config.json and the safetensors files to ``folder``; returns the folder.

    Everything is written to a temporary folder beside it, which then takes its name. A tensor
    is asked for when it is looked at and again when it is written, and never kept: a mapping
    that makes tensors on demand needs memory for one.

    Args:
        tensors: parameter → value: quantized weights ``[out, in]`` of modules, and everything
            else as it is. Of tied parameters one name is given.
        folder: new, or empty.
        linears: the names of all ``nn.Linear`` of the model, also of those whose weight is tied
            and therefore not in ``tensors``.
        embeddings: the names of all ``nn.Embedding``; weights of no other modules can be
            quantized.
        config: the float model's config.json, by which ``transformers`` finds its class; without
            it config.json has the quantization alone.
        dynamic: parameters whose module's inputs are quantized to 8 bits on the fly.
        shard_bytes: a new file is begun above it.

    Raises:
        ExportError: the format cannot represent something; all of it is listed.
        InputError: the folder holds something, or cannot be written.
    """
    folder = Path(folder)
    looked = survey(tensors, config or {}, Kinds.of(linears, embeddings), dynamic)
    if looked.problems:
        lines = "\n  ".join(looked.problems)
        raise ExportError(f"compressed-tensors cannot represent:\n  {lines}")
    quantization = settings(looked.grouped, dict.fromkeys(linears))
    description = dict(config or {}) | {"quantization_config": quantization}
    temporary = _beside(folder)
    try:
        text = json.dumps(description, indent=2) + "\n"
        (temporary / "config.json").write_text(text, encoding="utf-8")
        _write_tensors(tensors, looked.parameters, temporary, shard_bytes)
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _beside(folder: Path) -> Path:
    """Return a new temporary folder beside ``folder``, whose name has to be free."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; choose another name")
    try:
        return Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from error


def _write_tensors(
    tensors: Mapping[str, QTensor | Tensor],
    parameters: Sequence[Parameter],
    folder: Path,
    shard_bytes: int,
) -> None:
    sizes = [sum(map(nbytes, p.specs.values())) for p in parameters]
    files: dict[str, list[Parameter]] = {}
    for p, name in zip(parameters, shard_names(sizes, shard_bytes), strict=True):
        files.setdefault(name, []).append(p)
    for name, held in files.items():
        specs = {part: spec for p in held for part, spec in p.specs.items()}
        with TensorFile(folder / name, specs) as shard:
            for p in held:
                for part, tensor in _parts(tensors[p.name], p).items():
                    shard.put(part, tensor)
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(sizes)},
            "weight_map": {
                part: name for name, held in files.items() for p in held for part in p.specs
            },
        }
        text = json.dumps(index, indent=2) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _parts(value: QTensor | Tensor, parameter: Parameter) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {parameter.name: value}
    assert parameter.group is not None
    parts = to_parts(value, parameter.group.layout)
    return {f"{parameter.module}.{name}": part for name, part in parts.items()}

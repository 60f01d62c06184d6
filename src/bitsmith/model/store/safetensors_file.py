"""Safetensors files: written one tensor at a time, read by mapping them into memory.

A file is 8 bytes with the length of the header (little-endian), the header (JSON: name → type,
shape and place), and the tensors without gaps, those of wide types first, so that all are aligned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitsmith.errors import InputError, WeightsError

__all__ = ["file_sha256", "map_tensors", "tensor_sha256", "write_tensors"]

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.bool: "BOOL",
}
"""What safetensors calls each type."""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a file and return its SHA-256.

    No copy is made of a contiguous tensor on the CPU; of any other, one at a time.

    Raises:
        InputError: tensors that the format cannot hold; all are listed.
    """
    if bad := [f"{name} ({what})" for name, t in tensors.items() if (what := _unfit(t))]:
        raise InputError(f"tensors that safetensors cannot hold: {', '.join(bad)}")
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        header[name] = {
            "dtype": _TYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            file.write(piece)
            digest.update(piece)
        for name in order:
            content = _bytes(tensors[name])
            file.write(content)
            digest.update(content)
    return digest.hexdigest()


def map_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return name → tensor and the metadata of a file.

    The tensors are views of the file's pages, which are read when a value is. A value that is
    changed in memory does not change the file.

    Raises:
        InputError: there is no such file.
        WeightsError: it is damaged, or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        size = path.stat().st_size if path.is_file() else 0
        raise WeightsError(
            f"{path} ({size} bytes) is damaged, or no safetensors file: {error}"
        ) from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, which is read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_sha256(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's values in row-major order."""
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _unfit(tensor: Tensor) -> str:
    """Return why a tensor cannot be written; empty when it can."""
    if tensor.is_meta:
        return "on the meta device: it has no values"
    if tensor.layout != torch.strided:
        return str(tensor.layout)
    return "" if tensor.dtype in _TYPES else str(tensor.dtype)

"""Safetensors files: written one tensor at a time, read by mapping them into memory.

A file is 8 bytes with the length of the header (little-endian), the header (JSON: name → type,
shape and place), and the tensors without gaps, those of wide types first, so that all are aligned.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitsmith.errors import InputError, WeightsError

__all__ = [
    "DTYPES",
    "TensorFile",
    "TensorSpec",
    "file_sha256",
    "map_tensors",
    "nbytes",
    "tensor_sha256",
    "write_tensors",
]

TensorSpec = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of a tensor in a file."""

DTYPES = {
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


def nbytes(spec: TensorSpec) -> int:
    """Return the bytes of a tensor of that type and shape."""
    return spec[0].itemsize * math.prod(spec[1])


@final
class TensorFile:
    """A safetensors file to be written: a context in which every tensor is put in its place.

    The header comes first, so types and shapes have to be known before the values, which may come
    in any order, one at a time.

    Attributes:
        order: names in the order of their places: wide types first, then by name.
        head: the bytes before the first tensor.

    Args:
        path: of the file.
        specs: name → type and shape, of the types in :data:`DTYPES`.
        metadata: text for the header.
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, TensorSpec],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.order = sorted(specs, key=lambda name: (-specs[name][0].itemsize, name))
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
        self._places: dict[str, int] = {}
        end = 0
        for name in self.order:
            dtype, shape = specs[name]
            self._places[name], end = end, end + nbytes(specs[name])
            place = [self._places[name], end]
            header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": place}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self.head = len(text).to_bytes(8, "little") + text
        self._specs, self._missing = specs, set(specs)
        self._file = path.open("wb")
        self._file.write(self.head)

    def put(self, name: str, tensor: Tensor) -> memoryview:
        """Write one tensor, once, of exactly the type and shape announced; returns its bytes.

        Raises:
            ValueError: it was not announced, has another type or shape, or comes twice.
        """
        found = (tensor.dtype, tuple(tensor.shape))
        if found != self._specs.get(name) or name not in self._missing:
            raise ValueError(f"{name} is {found}, not {self._specs.get(name)}, or comes twice")
        self._missing.remove(name)
        content = _bytes(tensor)
        self._file.seek(len(self.head) + self._places[name])
        self._file.write(content)
        return content

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None and self._missing:
            raise ValueError(f"not written: {', '.join(sorted(self._missing))}")


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
    specs = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    with TensorFile(path, specs, metadata) as file:
        digest = hashlib.sha256(file.head)
        for name in file.order:
            digest.update(file.put(name, tensors[name]))
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
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
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
    return "" if tensor.dtype in DTYPES else str(tensor.dtype)

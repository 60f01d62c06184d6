"""Write a GGUF file, at once or not at all."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, final

import torch
from torch import Tensor

from bitsmith.deploy.export.gguf.block_types import BLOCK_TYPES, PLAIN_TYPES, BlockType, block_type
from bitsmith.deploy.export.gguf.blocks import to_blocks
from bitsmith.deploy.export.gguf.metadata import Value, metadata_problems, pack_string, pack_value
from bitsmith.errors import ExportError, InputError
from bitsmith.numbers.qtensor import QTensor

__all__ = ["ALIGNMENT", "SCHEMES_KEY", "check", "write"]

ALIGNMENT = 32
"""Bytes to a multiple of which the data of every tensor begins."""

SCHEMES_KEY = "bitsmith.schemes"
"""Key of the schemes that say more than the type does, as JSON."""

_NAME_BYTES = 63
_AXES = 4
_OWN_KEYS = ("general.alignment", SCHEMES_KEY)


@final
@dataclass(frozen=True)
class _Entry:
    """A tensor as it will be written."""

    name: str
    shape: tuple[int, ...]
    number: int
    nbytes: int
    scheme: str | None


def check(
    tensors: Mapping[str, QTensor | Tensor], metadata: Mapping[str, Value] | None = None
) -> list[str]:
    """Return everything that the format cannot represent; empty: all of it can.

    Arguments as of :func:`write`.
    """
    return _survey(tensors, metadata or {})[1]


def write(
    tensors: Mapping[str, QTensor | Tensor],
    path: str | Path,
    *,
    metadata: Mapping[str, Value] | None = None,
) -> Path:
    """Write a GGUF file of version 3; returns its path.

    It is written under a temporary name beside it, which is then changed. A tensor is asked for
    when it is looked at and again when it is written, and never kept.

    Args:
        tensors: name → value: quantized tensors in the scheme of a block type, and float or
            integer tensors, which are stored as they are.
        path: of the file; one of that name is replaced.
        metadata: key → value. ``general.architecture``, which every file has, is ``bitsmith``
            unless it is given, and ``general.quantization_version`` 2.

    Raises:
        ExportError: the format cannot represent something; all of it is listed.
        InputError: the file cannot be written.
    """
    path = Path(path)
    entries, problems = _survey(tensors, metadata or {})
    if problems:
        lines = "\n  ".join(problems)
        raise ExportError(f"GGUF cannot represent:\n  {lines}")
    keys: dict[str, Value] = {"general.architecture": "bitsmith", "general.quantization_version": 2}
    keys |= dict(metadata or {})
    if schemes := {e.name: json.loads(e.scheme) for e in entries if e.scheme}:
        keys[SCHEMES_KEY] = json.dumps(schemes)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_header(entries, keys))
            _pad(file)
            for entry in entries:
                _write_tensor(file, entry, tensors[entry.name])
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return path


def _survey(
    tensors: Mapping[str, QTensor | Tensor], metadata: Mapping[str, Value]
) -> tuple[list[_Entry], list[str]]:
    """Look at one tensor after the other; none is kept."""
    entries: list[_Entry] = []
    problems = metadata_problems(metadata)
    problems += [f"{key}: this key is written here" for key in _OWN_KEYS if key in metadata]
    for name in tensors:
        value = tensors[name]
        found = [*_name_problems(name), *_value_problems(value)]
        if not found:
            entries.append(_entry(name, value))
        problems += [f"{name}: {reason}" for reason in found]
    return entries, problems


def _name_problems(name: str) -> Iterator[str]:
    size = len(name.encode())
    if not 0 < size <= _NAME_BYTES:
        yield f"its name has {size} bytes, and a name 1 to {_NAME_BYTES}: rename it"


def _value_problems(value: object) -> Iterator[str]:
    if not isinstance(value, QTensor | Tensor):
        yield f"it is a {type(value).__name__}, not a tensor"
        return
    data = value.codes if isinstance(value, QTensor) else value
    if data.is_meta:
        yield "it is on the meta device, so it has no values"
    if len(value.shape) > _AXES:
        yield f"it has {len(value.shape)} axes, and a tensor at most {_AXES}: reshape it"
    if isinstance(value, QTensor):
        if block_type(value.scheme, len(value.shape)) is None:
            yield (
                f"no block type holds {value.scheme.format.name} with {value.scheme.granularity}, "
                f"scale_format={value.scheme.scale_format} and offset_format="
                f"{value.scheme.offset_format}; quantize it to named_scheme(…) of one of "
                f"{', '.join(BLOCK_TYPES)}"
            )
    elif value.dtype not in PLAIN_TYPES:
        yield f"there is no type for {value.dtype}"


def _entry(name: str, value: QTensor | Tensor) -> _Entry:
    shape = tuple(value.shape)
    count = torch.Size(shape).numel()
    if isinstance(value, Tensor):
        nbytes = count * value.element_size()
        return _Entry(name, shape, PLAIN_TYPES[value.dtype], nbytes, None)
    kind = _kind(value)
    other = None if value.scheme == kind.scheme else json.dumps(value.scheme.to_json())
    return _Entry(name, shape, kind.number, count // kind.values * kind.nbytes, other)


def _kind(q: QTensor) -> BlockType:
    kind = block_type(q.scheme, len(q.shape))
    assert kind is not None
    return kind


def _header(entries: list[_Entry], keys: Mapping[str, Value]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(entries), len(keys))]
    parts += [pack_string(key) + pack_value(value) for key, value in keys.items()]
    offset = 0
    for e in entries:
        parts.append(pack_string(e.name))
        parts.append(struct.pack(f"<I{len(e.shape)}Q", len(e.shape), *reversed(e.shape)))
        parts.append(struct.pack("<IQ", e.number, offset))
        offset += -(-e.nbytes // ALIGNMENT) * ALIGNMENT
    return b"".join(parts)


def _write_tensor(file: BinaryIO, entry: _Entry, value: QTensor | Tensor) -> None:
    start = file.tell()
    if isinstance(value, QTensor):
        for piece in to_blocks(value, _kind(value)):
            file.write(piece.cpu().numpy().data)
    else:
        flat = value.detach().cpu().contiguous().reshape(-1)
        file.write(flat.view(torch.uint8).numpy().data)
    if file.tell() - start != entry.nbytes:
        raise ExportError(f"{entry.name} changed while it was written")
    _pad(file)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))

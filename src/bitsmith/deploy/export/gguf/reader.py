"""Read a GGUF file, ours or another's."""

from __future__ import annotations

import json
import math
import mmap
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from bitsmith.deploy.export.gguf.block_types import BLOCK_TYPES, PLAIN_TYPES, block_type, misfit
from bitsmith.deploy.export.gguf.blocks import from_blocks
from bitsmith.deploy.export.gguf.metadata import Cursor, read_value
from bitsmith.deploy.export.gguf.writer import ALIGNMENT, SCHEMES_KEY
from bitsmith.errors import InputError, WeightsError
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme

__all__ = ["read", "read_metadata"]

_PLAIN = {number: dtype for dtype, number in PLAIN_TYPES.items()}
_BLOCKS = {kind.number: kind for kind in BLOCK_TYPES.values()}
_AXES = 4


def read(path: str | Path) -> dict[str, QTensor | Tensor]:
    """Return name → tensor of a GGUF file, in the file's order.

    What :func:`write` wrote comes back bit for bit. Tensors of other writers get the scheme of
    their block type.

    Raises:
        InputError: there is no such file.
        WeightsError: it is not a GGUF file of version 2 or 3, is damaged, or has tensors of types
            that cannot be read; all of these are listed.
    """
    with _opened(Path(path)) as data:
        head = _head(data)
        schemes = _schemes(head.metadata)
        values: dict[str, QTensor | Tensor] = {}
        problems = []
        for entry in head.entries:
            try:
                values[entry.name] = _value(entry, data, head.start, schemes.get(entry.name))
            except InputError as error:
                problems.append(f"{entry.name}: {error}")
        if strange := sorted(schemes.keys() - {e.name for e in head.entries}):
            problems.append(f"{SCHEMES_KEY} names what is not there: {', '.join(strange)}")
        if problems:
            lines = "\n  ".join(problems)
            raise WeightsError(f"{len(problems)} tensors cannot be read:\n  {lines}")
        return values


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return key → value of a GGUF file; errors as of :func:`read`."""
    with _opened(Path(path)) as data:
        return _head(data).metadata


@final
@dataclass(frozen=True)
class _Entry:
    name: str
    shape: tuple[int, ...]
    number: int
    offset: int


@final
@dataclass(frozen=True)
class _Head:
    metadata: dict[str, Any]
    entries: list[_Entry]
    start: int


@contextmanager
def _opened(path: Path) -> Iterator[memoryview]:
    """Give the file's bytes, mapped into memory; name the file in every WeightsError."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise WeightsError(f"{path} is empty")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    view = memoryview(mapped)
    try:
        yield view
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    finally:
        view.release()
        mapped.close()


def _head(data: memoryview) -> _Head:
    cursor = Cursor(data)
    cursor.need(24)
    if bytes(data[:4]) != b"GGUF":
        raise WeightsError(f"not a GGUF file: it begins with {bytes(data[:4])!r}")
    cursor.at = 4
    version = cursor.number("<I")
    if version not in (2, 3):
        kind = "big-endian" if not version & 0xFFFF else f"of version {version}"
        raise WeightsError(f"a GGUF file {kind}; little-endian ones of version 2 and 3 are read")
    count, keys = cursor.number("<Q"), cursor.number("<Q")
    cursor.need(24 * count + 12 * keys)
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.string()
        if key in metadata:
            raise WeightsError(f"the key {key} is there twice")
        metadata[key] = read_value(cursor)
    entries = [_entry(cursor) for _ in range(count)]
    names = Counter(entry.name for entry in entries)
    if twice := sorted(name for name, times in names.items() if times > 1):
        raise WeightsError(f"tensors are there twice: {', '.join(twice)}")
    step = metadata.get("general.alignment", ALIGNMENT)
    if type(step) is not int or step < 1 or step & (step - 1):
        raise WeightsError(f"general.alignment is a power of two, not {step!r}")
    return _Head(metadata, entries, -(-cursor.at // step) * step)


def _entry(cursor: Cursor) -> _Entry:
    name = cursor.string()
    axes = cursor.number("<I")
    if axes > _AXES:
        raise WeightsError(f"{name}: a tensor has at most {_AXES} axes, not {axes}")
    shape = tuple(cursor.number("<Q") for _ in range(axes))[::-1]
    if math.prod(max(size, 1) for size in shape) >= 1 << 60:
        raise WeightsError(f"{name}: no file holds a tensor of shape {shape}")
    return _Entry(name, shape, cursor.number("<I"), cursor.number("<Q"))


def _value(entry: _Entry, data: memoryview, start: int, scheme: Scheme | None) -> QTensor | Tensor:
    kind, dtype = _BLOCKS.get(entry.number), _PLAIN.get(entry.number)
    count = math.prod(entry.shape)
    if dtype is not None:
        nbytes = count * dtype.itemsize
    elif kind is None:
        known = ", ".join([*BLOCK_TYPES, *(str(d).removeprefix("torch.") for d in PLAIN_TYPES)])
        raise WeightsError(f"type {entry.number} cannot be read; these can: {known}")
    else:
        if reason := misfit(entry.shape, kind.name):
            raise WeightsError(reason)
        nbytes = count // kind.values * kind.nbytes
    at = start + entry.offset
    if at + nbytes > len(data):
        raise WeightsError(
            f"its {nbytes} bytes at byte {at} end beyond the file's {len(data)}: it is truncated"
        )
    raw = np.frombuffer(data, np.uint8, nbytes, at).copy()
    bytes_ = torch.from_numpy(raw)
    if kind is None:
        assert dtype is not None
        if not nbytes:
            return torch.empty(entry.shape, dtype=dtype)
        return bytes_.view(dtype).reshape(entry.shape)
    if scheme is not None and block_type(scheme, len(entry.shape)) != kind:
        raise WeightsError(f"{SCHEMES_KEY} gives a scheme that {kind.name} does not hold")
    return from_blocks(bytes_, kind, entry.shape, scheme or kind.scheme)


def _schemes(metadata: Mapping[str, Any]) -> dict[str, Scheme]:
    text = metadata.get(SCHEMES_KEY, "{}")
    try:
        return {str(k): Scheme.from_json(v) for k, v in json.loads(text).items()}
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{SCHEMES_KEY} cannot be read: {error}") from error

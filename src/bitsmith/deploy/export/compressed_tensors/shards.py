"""Write safetensors files one tensor at a time, so that no more than one is in memory.

A file is 8 bytes with the length of the header (little-endian), the header (JSON: name → type,
shape and place), and the tensors without gaps, those of wide types first, so that all are
aligned. The header comes first, so sizes have to be known before the values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, final

import torch
from torch import Tensor

from bitsmith.deploy.export.compressed_tensors.layout import Spec

__all__ = ["DTYPES", "ShardWriter", "nbytes", "shard_names"]

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls each type."""


def nbytes(spec: Spec) -> int:
    """Return the bytes of a tensor of that type and shape."""
    return spec[0].itemsize * math.prod(spec[1])


def shard_names(sizes: Sequence[int], limit: int) -> list[str]:
    """Return the file of each parameter: as many in a file, in order, as ``limit`` bytes allow.

    >>> shard_names([4, 4, 4], 8)[1:]
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    >>> shard_names([4, 4, 4], 12)
    ['model.safetensors', 'model.safetensors', 'model.safetensors']
    """
    shard, filled, places = 1, 0, []
    for size in sizes:
        if filled and filled + size > limit:
            shard, filled = shard + 1, 0
        filled += size
        places.append(shard)
    if shard == 1:
        return ["model.safetensors"] * len(places)
    return [f"model-{place:05}-of-{shard:05}.safetensors" for place in places]


@final
class ShardWriter:
    """One safetensors file; a context in which every tensor is put in its place, in any order."""

    def __init__(self, path: Path, specs: Mapping[str, Spec]) -> None:
        """Write the header of ``path`` for tensors of these names, types and shapes."""
        places = _places(specs)
        header = {
            name: {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": places[name]}
            for name, (dtype, shape) in specs.items()
        }
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._specs, self._places, self._missing = specs, places, set(specs)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, once, of exactly the type and shape announced.

        Raises:
            ValueError: it has another type or shape, or comes twice.
        """
        found = (tensor.dtype, tuple(tensor.shape))
        if found != self._specs[name] or name not in self._missing:
            raise ValueError(f"{name} is {found}, not {self._specs[name]}, or comes twice")
        self._missing.remove(name)
        self._file.seek(self._start + self._places[name][0])
        flat = tensor.detach().cpu().reshape(-1)
        self._file.write(flat.view(torch.uint8).numpy().data)

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


def _places(specs: Mapping[str, Spec]) -> dict[str, tuple[int, int]]:
    """Return where each tensor begins and ends, counted from the end of the header."""
    end, places = 0, {}
    for name in sorted(specs, key=lambda name: -specs[name][0].itemsize):
        start, end = end, end + nbytes(specs[name])
        places[name] = (start, end)
    return places

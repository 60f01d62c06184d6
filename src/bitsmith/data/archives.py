"""Parsers of the published archives: IDX (MNIST and its kin) and CIFAR-10's binary version.

Neither format holds pickles. Every size is checked before it is believed, nothing is unpacked
to disk, and no more is decompressed than an image data set can be.
"""

from __future__ import annotations

import gzip
import math
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitsmith.errors import DataError

__all__ = ["IDX_FILES", "cifar10_arrays", "idx_arrays", "read_idx"]

Array = NDArray[Any]

IDX_FILES = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}
"""Array name → the file of MNIST, and of the sets made in its image, that holds it."""

_MOST_BYTES = 2**28
_RECORD = 1 + 3 * 32 * 32
_DAMAGE = (OSError, EOFError, ValueError, zlib.error, struct.error, tarfile.TarError)


def read_idx(path: Path) -> Array:
    """Return the uint8 array of a gzipped IDX file.

    Layout: two zero bytes, type 8 (uint8), the number of axes, each axis as a big-endian
    uint32, then the values.

    Raises:
        DataError: not gzip, not IDX of uint8, or not exactly as long as its header says.
    """
    try:
        with gzip.open(path) as file:
            magic = file.read(4)
            if magic[:3] != b"\0\0\x08" or len(magic) < 4 or not 1 <= magic[3] <= 4:
                raise DataError(f"{path.name} is not an IDX file of uint8 (it begins {magic!r})")
            shape = struct.unpack(f">{magic[3]}I", file.read(4 * magic[3]))
            size = math.prod(shape)
            if not 0 < size <= _MOST_BYTES:
                raise DataError(f"{path.name} claims the shape {shape}; that cannot be right")
            content = file.read(size + 1)
    except _DAMAGE as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(path, error) from error
    if len(content) != size:
        more = "more" if len(content) > size else f"only {len(content)}"
        raise DataError(f"{path.name} should hold {size} values of shape {shape}, but has {more}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def idx_arrays(folder: Path) -> dict[str, Array]:
    """Return ``x_train, y_train, x_test, y_test`` of the four IDX files in ``folder``.

    Raises:
        DataError: a file is damaged.
    """
    return {key: read_idx(folder / name) for key, name in IDX_FILES.items()}


def cifar10_arrays(path: Path) -> dict[str, Array]:
    """Return ``x_train, y_train, x_test, y_test`` of CIFAR-10's binary archive.

    Images come as uint8 [N, 32, 32, 3], labels as uint8 [N]. A record of the archive is one
    label byte, then 1,024 red, 1,024 green and 1,024 blue bytes.

    Raises:
        DataError: the archive is damaged, lacks a batch, or a batch is not whole records.
    """
    parts = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    arrays: dict[str, Array] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for split, names in parts.items():
                records = np.concatenate([_cifar_records(archive, path, n) for n in names])
                images = records[:, 1:].reshape(-1, 3, 32, 32)
                arrays[f"x_{split}"] = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
                arrays[f"y_{split}"] = records[:, 0].copy()
    except _DAMAGE as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(path, error) from error
    return arrays


def _cifar_records(archive: tarfile.TarFile, path: Path, name: str) -> Array:
    """Return the records of one batch, uint8 [N, 3073]."""
    try:
        member = archive.getmember(f"cifar-10-batches-bin/{name}")
    except KeyError:
        raise DataError(f"{path.name} has no cifar-10-batches-bin/{name}") from None
    if not member.isreg() or member.size % _RECORD or not 0 < member.size <= _MOST_BYTES:
        raise DataError(
            f"{path.name}: {name} has {member.size} bytes; it must be a plain file of records of "
            f"{_RECORD} bytes"
        )
    stream = archive.extractfile(member)
    content = b"" if stream is None else stream.read()
    if len(content) != member.size:
        raise DataError(f"{path.name}: {name} ends after {len(content)} of {member.size} bytes")
    return np.frombuffer(content, np.uint8).reshape(-1, _RECORD)


def _damaged(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"{path.name} is damaged or truncated ({type(error).__name__}: {error}); fetch it again"
    )

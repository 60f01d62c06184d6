"""Reading ``.npz`` files that may be damaged or hostile: no pickles, one kind of error."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitsmith.errors import DataError

__all__ = ["npz_keys", "npz_shape", "read_npz", "write_npz"]

Array = NDArray[Any]

# What numpy and zipfile raise on files that are truncated, damaged or made to harm.
_DAMAGE = (
    ValueError,
    KeyError,
    EOFError,
    OSError,
    MemoryError,
    NotImplementedError,  # zipfile, of a compression it does not know
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def npz_keys(path: Path) -> tuple[str, ...]:
    """Return the names of the arrays in the file at ``path``, sorted.

    Raises:
        DataError: there is no such file, or it is not a readable ``.npz``.
    """
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}; give the path of an .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [i.filename for i in archive.infolist() if i.filename.endswith(".npy")]
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    return tuple(sorted(name.removesuffix(".npy") for name in names))


def npz_shape(path: Path, key: str) -> tuple[int, ...]:
    """Return the shape of one array, from its header alone.

    Raises:
        DataError: there is no such file or array, or it is damaged.
    """
    npz_keys(path)
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
            version = np.lib.format.read_magic(member)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            return tuple(read(member)[0])
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def read_npz(
    path: Path, keys: Iterable[str], *, sample_shape: tuple[int, ...] | None = None
) -> dict[str, Array]:
    """Return the arrays called ``keys``; pickles inside are never read.

    Args:
        path: an ``.npz`` file.
        keys: the arrays to read.
        sample_shape: what the first array's shape must be after its first axis, if given; the
            array is then also uint8.

    Raises:
        DataError: there is no such file; arrays are missing (all are listed); the file is
            truncated, damaged, or holds pickled objects; the shape or type is another.
    """
    wanted, there = list(keys), npz_keys(path)
    missing = [key for key in wanted if key not in there]
    if missing:
        raise DataError(
            f"{str(path)!r} lacks the arrays {', '.join(missing)}; "
            f"it holds {', '.join(there) or 'none'}"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in wanted}
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    strange = [key for key, a in arrays.items() if not isinstance(a, np.ndarray)]
    if strange:
        raise DataError(f"{str(path)!r}: {', '.join(strange)} are not arrays in numpy's format")
    first = arrays[wanted[0]]
    if sample_shape is not None and (first.shape[1:] != sample_shape or first.dtype != np.uint8):
        expected = ", ".join(map(str, ("samples", *sample_shape)))
        raise DataError(
            f"{str(path)!r}: {wanted[0]} is {first.dtype} of shape {first.shape}; it must be uint8 "
            f"[{expected}]"
        )
    return arrays


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write ``arrays`` to ``path``, uncompressed, as `read_npz` and ``numpy.load`` read them."""
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _damaged(path: Path, error: BaseException) -> DataError:
    if "allow_pickle" in str(error):
        return DataError(
            f"{str(path)!r} holds pickled objects, which could run code and are refused; "
            "save plain numeric arrays with numpy.savez"
        )
    return DataError(
        f"{str(path)!r} is not a readable .npz file ({type(error).__name__}: {error}); "
        "it may be truncated: fetch or write it again"
    )

"""The library of native kernels: found, checked and loaded when it is first needed."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, final

import torch

from bitsmith.errors import BitsmithError, DataError, InputError, SchemeError, WeightsError

__all__ = ["INSTRUCTIONS", "ROWS", "Kernels", "fail", "instructions", "kernels", "why_not"]

VARIABLE = "BITSMITH_KERNELS"
"""A library to load in place of the installed one, or ``off`` for none."""
VERSION = 2
NOT_FINITE = -9
INSTRUCTIONS = {0: "portable", 1: "avx2", 2: "avx512", 3: "amx", 8: "neon"}
ROWS = {"float": 0, "int8": 1, "lookup": 2}
"""What a weight is mostly used for: which rows it is multiplied with, or that it is looked up."""
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

_Error = type[BitsmithError] | type[IndexError] | type[MemoryError]
_ERRORS: dict[int, tuple[_Error, str]] = {
    -1: (SchemeError, "no such kind, width, size or group of a packed weight"),
    -2: (WeightsError, "codes or zero points out of range"),
    -3: (WeightsError, "a scale or table entry is NaN or infinite"),
    -4: (
        WeightsError,
        "the bytes are of another weight, machine or version: pack the weight here",
    ),
    -5: (InputError, "a size below 0, or no memory where some is needed"),
    -6: (IndexError, "an index that is no row of the table"),
    -7: (MemoryError, "no memory left for the product"),
    -8: (SchemeError, "the library leaves this weight to PyTorch"),
    NOT_FINITE: (DataError, "NaN or infinite values have no int8 codes"),
}


@final
class Kernels:
    """The functions of ``csrc/bitsmith_kernels.h``, loaded.

    Attributes:
        path: of the library.
        linear, embedding, pack, unpack, packed_bytes, packed_used, large_pages: the functions;
            pointers are plain integers.
        team: whether the threads are those of PyTorch's OpenMP; else the library has its own.

    Raises:
        OSError: it cannot be loaded, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._library = path, ctypes.CDLL(str(path))
        pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        try:
            version = int(self._library.bsk_version())
            if version != VERSION:
                raise OSError(f"{path} is version {version} of the kernels, {VERSION} is needed")
            self.packed_bytes = self._function("packed_bytes", [pointer], long)
            self.packed_used = self._function("packed_used", [pointer, pointer], long)
            self.pack = self._function(
                "pack", [pointer, pointer, pointer, pointer, ctypes.c_int32, pointer, pointer]
            )
            self.large_pages = self._function("large_pages", [pointer, long], None)
            self.unpack = self._function("unpack", [pointer] * 6)
            self.linear = self._function(
                "linear",
                [pointer, pointer, long, integer, pointer, long, long, pointer, pointer, long,
                 integer, integer],
            )  # fmt: skip
            self.embedding = self._function(
                "embedding", [pointer, pointer, pointer, long, integer, pointer, integer]
            )
            self._library.bsk_use_gomp.argtypes = [pointer]
        except AttributeError as error:
            raise OSError(f"{path} is not the library of bitsmith's kernels: {error}") from None
        address = _openmp_team()
        self.team = address is not None
        self._library.bsk_use_gomp(address)

    def _function(
        self, name: str, arguments: list[Any], result: Any = ctypes.c_int
    ) -> Callable[..., int]:
        found = getattr(self._library, f"bsk_{name}")
        found.argtypes, found.restype = arguments, result
        function: Callable[..., int] = found
        return function

    @property
    def machine(self) -> int:
        """The best instruction set of this machine, a key of :data:`INSTRUCTIONS`."""
        return int(self._library.bsk_machine())

    @property
    def in_use(self) -> int:
        """The instruction set in use."""
        return int(self._library.bsk_in_use())

    def use(self, instructions: int) -> None:
        """Use another instruction set from now on; what is packed already has to be packed anew.

        Raises:
            SchemeError: this machine does not have it.
        """
        status = int(self._library.bsk_use(instructions))
        if status:
            fail(status, f"instruction set {INSTRUCTIONS.get(instructions, instructions)}")


def fail(status: int, what: str) -> NoReturn:
    """Raise the error that a function of the library returned."""
    kind, rule = _ERRORS.get(status, (BitsmithError, f"error {status}"))
    raise kind(f"{what}: {rule}")


def kernels() -> Kernels | None:
    """Return the library, loaded once; None where there is none: see :func:`why_not`."""
    return _loaded()[0]


def why_not() -> str:
    """Return why there are no native kernels; empty when there are."""
    return _loaded()[1]


def instructions() -> str:
    """Return the name of the instruction set in use; empty without kernels."""
    library = kernels()
    return "" if library is None else INSTRUCTIONS[library.in_use]


@lru_cache(maxsize=1)
def _loaded() -> tuple[Kernels | None, str]:
    chosen = os.environ.get(VARIABLE)
    if chosen == "off":
        return None, f"{VARIABLE}=off"
    if chosen:  # asked for by name: anything wrong with it is an error
        try:
            return Kernels(Path(chosen)), ""
        except OSError as error:
            raise InputError(f"{VARIABLE}={chosen}: {error}") from error
    reasons = []
    for path in _installed():
        try:
            return Kernels(path), ""
        except OSError as error:
            reasons.append(str(error))
    return None, "; ".join(reasons) or "the kernels were not built when bitsmith was installed"


def _installed() -> Iterator[Path]:
    """Give libraries beside the package, then those of an editable installation."""
    places = [Path(__file__).parents[2] / "_native"]
    try:
        found = importlib.metadata.distribution("bitsmith").locate_file("bitsmith/_native")
        places.append(Path(str(found)))
    except importlib.metadata.PackageNotFoundError:
        pass
    for place in dict.fromkeys(places):
        yield from sorted(p for p in place.glob("*bitsmith_kernels*") if p.suffix in _SUFFIXES)


_SUFFIXES = (".so", ".dylib", ".dll")


def _openmp_team() -> int | None:
    """Return the address of ``GOMP_parallel`` as PyTorch itself calls it; None without one.

    Looked up through PyTorch's own library, so that it is the OpenMP it is linked to and not
    another that some package has brought along.
    """
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        if not path.is_file():
            continue
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            return None
    return None

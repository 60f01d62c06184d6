"""llama.cpp's products, through the shared libraries that ``llama-cpp-python`` brings."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.errors import InputError
from bitsmith.insight.bench.contender import Contender, Job, Prepared, random_weight

__all__ = ["ggml_contenders", "ggml_folder"]

_FLOAT32 = 0
#: Bits and group of ours → llama.cpp's types, by their numbers in ``enum ggml_type``.
_TYPES: dict[tuple[int, int | None], dict[str, int]] = {
    (8, None): {"Q8_0": 8},
    (4, 32): {"Q4_0": 2, "Q4_K": 12},
    (3, 64): {"Q3_K": 11},
    (2, 64): {"Q2_K": 10},
}
_BLOCKS = {8: 32, 2: 32}
"""Type → columns of a block, where they are not 256."""
_ROWS = 64
"""Rows that are quantized, and then repeated."""
_SUFFIX = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
_PREFIX = "" if sys.platform == "win32" else "lib"


def ggml_folder() -> Path | None:
    """Return the folder of ``llama-cpp-python``'s libraries; None where it is not installed."""
    found = importlib.util.find_spec("llama_cpp")
    places = [] if found is None else list(found.submodule_search_locations or [])
    folders = [Path(place) / "lib" for place in places]
    return next((f for f in folders if (f / f"{_PREFIX}ggml-base.{_SUFFIX}").is_file()), None)


def ggml_contenders(bits: int, group: int | None, folder: Path | None) -> list[Contender]:
    """Return llama.cpp's types nearest to weights of ``bits`` bits in groups, or per channel.

    Args:
        bits, group: of ours.
        folder: of the libraries; None: the rows say that there are none.
    """
    found = _TYPES.get((bits, group), {})
    return [Contender(f"llama.cpp {n}", "llama.cpp", _prepare(t, folder)) for n, t in found.items()]


def _prepare(kind: int, folder: Path | None) -> Callable[[Job], Prepared]:
    def prepare(job: Job) -> Prepared:
        if folder is None:
            raise InputError("llama-cpp-python is not installed")
        if job.k % (block := _BLOCKS.get(kind, 256)):  # which ggml would end the process for
            raise InputError(f"rows of {job.k} columns are no blocks of {block}")
        library = _Library(folder, job.threads)
        rows = library.quantized(kind, random_weight(job))
        weights = [library.weight(kind, job, rows) for _ in range(job.copies(rows.nbytes))]

        def bind(x: Tensor) -> Sequence[Callable[[], object]]:
            product = _Products(library, job, x)
            return [product.call(weight) for weight in weights]

        return Prepared(bind, rows.nbytes)

    return prepare


#: A log that goes nowhere; the library keeps it for good.
_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


@final
class _InitParams(ctypes.Structure):
    _fields_ = [
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    ]


@final
class _ThreadParams(ctypes.Structure):
    _fields_ = [
        ("cpumask", ctypes.c_bool * 512),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    ]


@final
class _Library:
    """ggml's functions, with a backend and its threads.

    Weights go where llama.cpp puts them: into the first of the CPU's buffer types that can
    multiply them (AMX tiles, repacked rows, plain).
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self._base = self._load(folder, "ggml-base")
        self._cpu = self._load(folder, "ggml-cpu")
        self.pointer("ggml_log_set", _SILENT, None)
        self.backend = self.pointer("ggml_backend_cpu_init", cpu=True)
        self._compute: Callable[..., int] = self._base.ggml_backend_graph_compute
        count = ctypes.c_int(threads)
        self.pointer("ggml_backend_cpu_set_n_threads", self.backend, count, cpu=True)
        settings = _ThreadParams()
        self.pointer("ggml_threadpool_params_init", ctypes.byref(settings), count)
        settings.poll = 1  # wait on a core for some ms and not for hundreds: others have a turn
        pool = self.pointer("ggml_threadpool_new", ctypes.byref(settings), cpu=True)
        self.pointer("ggml_backend_cpu_set_threadpool", self.backend, pool, cpu=True)
        registry = self.pointer("ggml_backend_cpu_reg", cpu=True)
        self._device = self.pointer("ggml_backend_reg_dev_get", registry, ctypes.c_size_t(0))
        self._plain = self.pointer("ggml_backend_cpu_buffer_type")
        self._types = [*self._extra(registry), self._plain]
        self._chosen: dict[int, int] = {}
        self._contexts: list[int] = []
        self._memory: list[int] = []

    def __del__(self) -> None:
        """Give the memory of all tensors back."""
        for buffer in getattr(self, "_memory", []):
            self.pointer("ggml_backend_buffer_free", buffer)
        for context in getattr(self, "_contexts", []):
            self.pointer("ggml_free", context)

    def pointer(self, name: str, *arguments: Any, cpu: bool = False) -> Any:
        """Call a function; what it returns is a pointer, a size or nothing."""
        function = getattr(self._cpu if cpu else self._base, name)
        function.restype = ctypes.c_void_p
        given = [ctypes.c_void_p(a) if isinstance(a, int) else a for a in arguments]
        return function(*given)

    def context(self) -> Any:
        """Return a context for the descriptions of a few tensors and a graph."""
        function = self._base.ggml_init
        function.argtypes, function.restype = [_InitParams], ctypes.c_void_p
        self._contexts.append(function(_InitParams(1 << 20, None, True)))
        return self._contexts[-1]

    def tensor(self, context: Any, kind: int, columns: int, rows: int) -> Any:
        """Describe a matrix of ``rows`` rows."""
        shape = ctypes.c_int64(columns), ctypes.c_int64(rows)
        return self.pointer("ggml_new_tensor_2d", context, ctypes.c_int(kind), *shape)

    def allocate(self, context: Any, where: int | None = None) -> None:
        """Give the tensors of a context memory."""
        kind = where or self._plain
        buffer = self.pointer("ggml_backend_alloc_ctx_tensors_from_buft", context, kind)
        if not buffer:
            raise MemoryError("ggml could not allocate its tensors")
        self._memory.append(buffer)

    def fill(self, tensor: Any, values: Tensor) -> None:
        """Copy values into a tensor, which repacks them where its memory is of such a type."""
        size = ctypes.c_size_t(values.nbytes)
        self.pointer("ggml_backend_tensor_set", tensor, values.data_ptr(), ctypes.c_size_t(0), size)

    def run(self, graph: Any) -> None:
        """Compute a graph."""
        status = self._compute(ctypes.c_void_p(self.backend), ctypes.c_void_p(graph))
        if status:
            raise RuntimeError(f"ggml could not compute its graph: status {status}")

    def quantized(self, kind: int, weight: Tensor) -> Tensor:
        """Return the bytes of ``weight`` ``[n, k]`` in a type."""
        n, k = weight.shape
        part = n if n % _ROWS else _ROWS
        row = self.pointer("ggml_row_size", ctypes.c_int(kind), ctypes.c_int64(k))
        found = torch.empty(part * int(row), dtype=torch.uint8)
        self.pointer(
            "ggml_quantize_chunk", ctypes.c_int(kind), weight.data_ptr(), found.data_ptr(),
            *map(ctypes.c_int64, (0, part, k)), None,
        )  # fmt: skip
        return found.repeat(n // part)

    def weight(self, kind: int, job: Job, rows: Tensor) -> Any:
        """Return a weight in the memory that llama.cpp would choose for it."""
        for where in [self._chosen[kind]] if kind in self._chosen else self._types:
            context = self.context()
            weight = self.tensor(context, kind, job.k, job.n)
            self.allocate(context, where)
            if where == self._plain or self._multiplies(weight, job):
                self._chosen[kind] = where
                self.fill(weight, rows)
                return weight
        raise InputError("no buffer type takes the weight")

    def _multiplies(self, weight: Any, job: Job) -> bool:
        context = self.context()
        x = self.tensor(context, _FLOAT32, job.k, 1)
        product = self.pointer("ggml_mul_mat", context, weight, x)
        function = self._base.ggml_backend_dev_supports_op
        function.restype = ctypes.c_bool
        found: bool = function(ctypes.c_void_p(self._device), ctypes.c_void_p(product))
        return found

    def _extra(self, registry: Any) -> list[int]:
        """Return the CPU's buffer types that are tried before the plain one."""
        name = ctypes.c_char_p(b"ggml_backend_dev_get_extra_bufts")
        address = self.pointer("ggml_backend_reg_get_proc_address", registry, name)
        if not address:
            return []
        kind = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)
        listed = kind(address)(self._device)
        found: list[int] = []
        while listed and (one := listed[len(found)]):
            found.append(int(one))
        return found

    @staticmethod
    def _load(folder: Path, name: str) -> ctypes.CDLL:
        path = folder / f"{_PREFIX}{name}.{_SUFFIX}"
        try:
            return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise InputError(f"{path} cannot be loaded: {error}") from error


@final
class _Products:
    """Products of one input with weights, each a graph of one operator."""

    def __init__(self, library: _Library, job: Job, x: Tensor) -> None:
        self._library, self._job = library, job
        self._context = library.context()
        rows = x.numel() // job.k
        self._x = library.tensor(self._context, _FLOAT32, job.k, rows)
        library.allocate(self._context)
        library.fill(self._x, x.contiguous())

    def call(self, weight: Any) -> Callable[[], object]:
        """Return a call that multiplies by ``weight``, and gives its product ``[rows, n]``."""
        library = self._library
        context = library.context()
        product = library.pointer("ggml_mul_mat", context, weight, self._x)
        graph = library.pointer("ggml_new_graph", context)
        library.pointer("ggml_build_forward_expand", graph, product)
        library.allocate(context)

        def run() -> Any:
            library.run(graph)
            return product

        return run

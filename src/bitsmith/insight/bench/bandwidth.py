"""How fast this machine reads memory: the limit of a product with few rows."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import final

import psutil
import torch
from torch import Tensor

from bitsmith.errors import InputError
from bitsmith.model.speed.memory import last_level_cache
from bitsmith.model.speed.race import threads as use_threads

__all__ = ["Bandwidth", "read_bandwidth"]

_LEAST = 1 << 30


@final
@dataclass(frozen=True)
class Bandwidth:
    """The fastest reading of memory that was seen.

    Attributes:
        bytes_per_second: of all threads together.
        method: what read.
        others: method → bytes per second, of all that were tried.
    """

    bytes_per_second: float
    method: str
    others: dict[str, float]


def read_bandwidth(threads: int, *, size: int | None = None, seconds: float = 2.0) -> Bandwidth:
    """Return the bytes that ``threads`` threads together read in a second, the best of all tries.

    The C library's ``memchr`` for a byte that is not there, and PyTorch's sum and matrix-vector
    product, each several times over a buffer of twice the last-level cache and at least 1 GiB (no
    more than a quarter of the free memory). The limit is the fastest of all: what is slower is
    disturbed, or computes.

    Args:
        threads: that read.
        size: of the buffer; None: as said.
        seconds: for all tries.

    Raises:
        InputError: a size below 1 MiB, or no threads.

    >>> read_bandwidth(1, size=1 << 20, seconds=0.01).bytes_per_second > 1e6
    True
    """
    if threads < 1 or (size is not None and size < 1 << 20):
        raise InputError(f"bandwidth: {threads} threads, {size} bytes: at least 1, and 1 MiB")
    if size is None:
        wanted = max(_LEAST, 2 * last_level_cache())
        size = min(wanted, int(psutil.virtual_memory().available) // 4)
    buffer = torch.full((size >> 12, 1024), 2.0)  # rows of 4 KiB
    best: dict[str, float] = {}
    with use_threads(threads), torch.no_grad(), ThreadPoolExecutor(threads) as pool:
        tries = _tries(buffer, threads, pool)
        for name, read in tries.items():
            begin, least = time.perf_counter(), float("inf")
            while least == float("inf") or time.perf_counter() - begin < seconds / len(tries):
                started = time.perf_counter()
                read()
                least = min(least, time.perf_counter() - started)
            best[name] = buffer.nbytes / least
    method = max(best, key=lambda name: best[name])
    return Bandwidth(best[method], method, best)


def _tries(
    buffer: Tensor, threads: int, pool: ThreadPoolExecutor
) -> dict[str, Callable[[], object]]:
    vector = torch.ones(buffer.shape[1])
    tries: dict[str, Callable[[], object]] = {
        "torch.sum": buffer.sum,
        "torch.mv": lambda: torch.mv(buffer, vector),
    }
    try:
        search = ctypes.CDLL(None).memchr  # threads run beside each other while it searches
    except (AttributeError, OSError, TypeError):  # no such library by that name
        return tries
    search.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    search.restype = ctypes.c_void_p
    part = buffer.nbytes // threads
    starts = [buffer.data_ptr() + i * part for i in range(threads)]

    def look() -> object:
        return list(pool.map(lambda start: search(start, 1, part), starts))

    return {"memchr": look, **tries}

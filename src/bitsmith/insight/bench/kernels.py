"""Layers of one shape: every recipe, float32 and the operators of others, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import psutil
import torch

from bitsmith.errors import BitsmithError, InputError
from bitsmith.insight.bench.bandwidth import Bandwidth, read_bandwidth
from bitsmith.insight.bench.contender import Contender, Job, Prepared
from bitsmith.insight.bench.formats import Heat
from bitsmith.model.speed.layers import FLOAT
from bitsmith.model.speed.memory import copies, last_level_cache
from bitsmith.model.speed.race import Contestant, Ratio, Times, faster, race, threads

__all__ = ["Absent", "Cell", "KernelSpeeds", "kernel_speeds"]

_PAUSE = 0.03
"""Seconds between turns: as long as waiting threads of OpenMP keep a core busy, and more."""
_MEMORY = 0.4
"""Share of the free memory that the copies of all contenders of a heat may take."""


@final
@dataclass(frozen=True)
class Cell:
    """One contender at one number of rows.

    Attributes:
        heat: its contenders took turns.
        name, family: of the contender.
        rows: of the input.
        times: of one product.
        bytes: of one copy of the weight.
        to_float: times faster than float32 in the same turns.
        rival, to_rival: the row of ONNX Runtime that does the same, and times faster than it.
        bandwidth_share: of the bytes that could have been read in that time.
    """

    heat: str
    name: str
    family: str
    rows: int
    times: Times
    bytes: int
    to_float: Ratio
    rival: str | None
    to_rival: Ratio | None
    bandwidth_share: float

    @property
    def gigabytes_per_second(self) -> float:
        """At which the weight is read: 10^9 bytes a second."""
        return self.bytes / self.times.median_ms / 1e6


@final
@dataclass(frozen=True)
class Absent:
    """A contender that could not be measured, and why."""

    heat: str
    name: str
    reason: str


@final
@dataclass(frozen=True)
class KernelSpeeds:
    """What was measured.

    Attributes:
        n, k: outputs and inputs of the layers.
        threads: that everything used.
        bandwidth: of reading memory, before the first heat.
        cells: by heat, rows and contender.
        absent: what is not there.
        cached: contenders whose copies do not exceed the last-level cache, for want of memory.
    """

    n: int
    k: int
    threads: int
    bandwidth: Bandwidth
    cells: tuple[Cell, ...]
    absent: tuple[Absent, ...]
    cached: tuple[str, ...]


def kernel_speeds(
    shape: tuple[int, int],
    rows: Sequence[int],
    heats: Sequence[Heat],
    *,
    thread_count: int | None = None,
    seconds: float = 1.0,
    turns: int = 20,
    memory: float | None = None,
    bandwidth: Bandwidth | None = None,
    advance: Callable[[int], None] | None = None,
) -> KernelSpeeds:
    """Return how long a linear layer of ``shape`` takes in every way of ``heats``.

    Everything goes round over copies that together exceed the last-level cache by a quarter.

    Args:
        shape: outputs and inputs.
        rows: numbers of rows of the input.
        heats: what is timed by turns.
        thread_count: of everything; None: PyTorch's.
        seconds, turns: of each contender at each number of rows.
        memory: bytes for all copies of a heat; None: 0.4 of the free memory.
        bandwidth: measured before; None: measured now.
        advance: told 1 for each turn, of ``turns · len(rows) · contenders``.

    Raises:
        InputError: sizes below 1, no rows or no heats.
    """
    if min((*shape, *rows)) < 1 or not rows or not heats:
        raise InputError(f"a layer of {shape[0]}×{shape[1]} with rows {list(rows)}: all at least 1")
    cells: list[Cell] = []
    absent: list[Absent] = []
    cached: dict[str, None] = {}
    with threads(thread_count) as count, torch.no_grad():
        limit = bandwidth or read_bandwidth(count)
        for heat in heats:
            free = memory or _MEMORY * psutil.virtual_memory().available
            each = free / len(heat.contenders)
            ready: dict[str, tuple[Contender, Prepared]] = {}
            for contender in heat.contenders:
                job = Job(*shape, count, partial(copies, memory=each))
                try:
                    prepared = contender.prepare(job)
                    prepared.bind(torch.zeros(1, shape[1]))[0]()
                except Exception as error:  # libraries of others raise whatever they like
                    own = contender.family in (FLOAT, "bitsmith")
                    if own and not isinstance(error, BitsmithError):
                        raise
                    absent.append(Absent(heat.name, contender.name, _first_line(error)))
                    if advance is not None:
                        advance(turns * len(rows))
                    continue
                ready[contender.name] = contender, prepared
                size = prepared.bytes
                if copies(size, memory=each) * size < last_level_cache():
                    cached[contender.name] = None
            for m in rows:
                cells += _cells(heat.name, ready, m, shape[1], limit, seconds, turns, advance)
    return KernelSpeeds(*shape, count, limit, tuple(cells), tuple(absent), tuple(cached))


def _cells(
    heat: str,
    ready: dict[str, tuple[Contender, Prepared]],
    m: int,
    k: int,
    limit: Bandwidth,
    seconds: float,
    turns: int,
    advance: Callable[[int], None] | None,
) -> list[Cell]:
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(m))
    contestants = [Contestant(n, p.bind(x), p.products) for n, (_, p) in ready.items()]
    times = race(contestants, seconds=seconds, turns=turns, pause=_PAUSE, advance=advance)
    found = []
    for name, (contender, prepared) in ready.items():
        size = prepared.bytes
        own, rival = times[name], contender.rival if contender.rival in times else None
        found.append(
            Cell(
                heat, name, contender.family, m, own, size,
                faster(own, times[FLOAT]),
                rival, None if rival is None else faster(own, times[rival]),
                1e3 * size / own.median_ms / limit.bytes_per_second,
            )
        )  # fmt: skip
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

"""Time several ways to do the same work, by turns, so that a slow moment meets all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import final

import numpy as np
import torch

from bitsmith.errors import InputError

__all__ = ["Contestant", "Ratio", "Times", "faster", "race", "threads"]

_RESAMPLES = 2000
_LEAST = 5
"""Turns after which a contestant that is far too slow leaves the race."""
_PATIENCE = 4.0
"""Times its share of the time that a contestant may take before it leaves."""


@final
@dataclass(frozen=True, eq=False)
class Contestant:
    """One way to do the work.

    Attributes:
        name: of the result.
        calls: the same work, each on memory of its own; they are gone round, so that none finds
            its data in a cache that is smaller than all of them.
        works: how often a call does the work, where it does it on several memories itself.
    """

    name: str
    calls: Sequence[Callable[[], object]]
    works: int = 1


@final
@dataclass(frozen=True)
class Times:
    """How long the work took in each turn, the mean over the turn, in milliseconds.

    >>> times = Times("a", (1.0, 3.0, 2.0))
    >>> times.median_ms, times.n
    (2.0, 3)
    """

    name: str
    ms: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of turns."""
        return len(self.ms)

    @property
    def median_ms(self) -> float:
        """The median over the turns."""
        return median(self.ms)

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        """A quarter of the turns took at most the first, a quarter at least the second."""
        low, _, high = quantiles(self.ms, n=4, method="inclusive")
        return low, high


@final
@dataclass(frozen=True)
class Ratio:
    """How many times faster, with its 95 % interval."""

    value: float
    low: float
    high: float


def faster(times: Times, reference: Times) -> Ratio:
    """Return how many times faster ``times`` is than ``reference``: above 1 is faster.

    The median over turns of ``reference / times`` of the same turn, and the percentile interval
    of a bootstrap over turns (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13). Where one has fewer turns, the turns that both have count.

    >>> faster(Times("a", (1.0, 1.0, 2.0)), Times("b", (2.0, 2.0, 4.0)))
    Ratio(value=2.0, low=2.0, high=2.0)
    """
    n = min(times.n, reference.n)
    quotients = np.asarray(reference.ms[:n]) / np.asarray(times.ms[:n])
    chosen = np.random.default_rng(0).integers(0, n, (_RESAMPLES, n))
    low, high = np.quantile(np.median(quotients[chosen], axis=1), (0.025, 0.975))
    return Ratio(float(np.median(quotients)), float(low), float(high))


def race(
    contestants: Sequence[Contestant],
    *,
    seconds: float = 1.0,
    turns: int = 20,
    pause: float = 0.002,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Times]:
    """Return name → times of contestants that took turns: A B C, B C A, C A B …

    A turn of a contestant is a pause, in which the waiting threads of the one before go to sleep,
    a call that is not timed (unless a call does the work several times), and then as many calls
    as fit in its share of the time, at least one. Before the first turn every call was made once:
    what is done once (repacking, page faults) is not timed. Gradients are off, and no garbage is
    collected.

    Args:
        contestants: with different names.
        seconds: for the timed calls of each contestant. One of which a single call takes longer
            than its share takes longer, and leaves after 5 turns when it took 4 times as long.
        turns: of each contestant.
        pause: seconds before each turn.
        advance: told 1 after each turn of each contestant (for a progress bar).

    Raises:
        InputError: no contestant, one without calls, two of one name, fewer than 5 turns or no
            time.

    >>> found = race([Contestant("sum", [lambda: sum(range(1000))])], seconds=0.01, turns=5)
    >>> found["sum"].n
    5
    """
    _check(contestants, seconds, turns)
    kept: dict[str, list[float]] = {c.name: [] for c in contestants}
    spent = dict.fromkeys(kept, 0.0)
    with torch.no_grad(), _no_garbage():
        share = seconds / turns
        rounds = {c.name: _Round(c, share) for c in contestants}
        for turn in range(turns):
            shift = turn % len(contestants)
            for contestant in (*contestants[shift:], *contestants[:shift]):
                name = contestant.name
                if turn < _LEAST or spent[name] < _PATIENCE * seconds:
                    time.sleep(pause)
                    took = rounds[name].turn()
                    spent[name] += took * rounds[name].count
                    kept[name].append(1e3 * took / contestant.works)
                if advance is not None:
                    advance(1)
    return {name: Times(name, tuple(ms)) for name, ms in kept.items()}


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Let PyTorch use ``count`` threads inside the block; gives the number. None changes nothing.

    >>> with threads(1) as count:
    ...     torch.get_num_threads() == count == 1
    True
    """
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield before if count is None else count
    finally:
        if count is not None:
            torch.set_num_threads(before)


@final
class _Round:
    """The calls of one contestant, gone round from turn to turn."""

    def __init__(self, contestant: Contestant, share: float) -> None:
        self._calls, self._next = contestant.calls, 0
        self._wake = contestant.works == 1
        for call in self._calls:
            call()
        took, made = 0.0, 0
        while made < len(self._calls) and took < share:
            begin = time.perf_counter()
            self._step()
            took, made = took + time.perf_counter() - begin, made + 1
        self.count = max(1, round(share * made / max(took, 1e-9)))

    def turn(self) -> float:
        """Return the mean seconds of a call."""
        if self._wake:
            self._step()
        begin = time.perf_counter()
        for _ in range(self.count):
            self._step()
        return (time.perf_counter() - begin) / self.count

    def _step(self) -> None:
        self._calls[self._next]()
        self._next = (self._next + 1) % len(self._calls)


@contextmanager
def _no_garbage() -> Iterator[None]:
    on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _check(contestants: Sequence[Contestant], seconds: float, turns: int) -> None:
    names = [c.name for c in contestants]
    faults = []
    if not names or (idle := [c.name for c in contestants if not c.calls]):
        faults.append("nothing to time" if not names else f"no calls of {', '.join(idle)}")
    if len(set(names)) < len(names):
        faults.append(f"names that are there twice in {', '.join(names)}")
    if turns < _LEAST:
        faults.append(f"{turns} turns: at least {_LEAST}")
    if not seconds > 0:
        faults.append(f"{seconds} seconds")
    if faults:
        raise InputError("a race: " + "; ".join(faults))

"""Many measurements side by side in processes, each kept as it ends.

What decides a measurement is its key, plain data; its answer lies in a file of the user's cache
under the key's fingerprint. A run that is stopped, by Ctrl-C or by force, goes on with those that
are missing. A file that is damaged, or written by another version, is made anew, and the log says
so.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import psutil
import torch

from bitsmith.data.fetch import cache_folder
from bitsmith.errors import BitsmithError
from bitsmith.insight.processes import Means, run_in_processes
from bitsmith.version import __version__

__all__ = ["Cell", "default_memory", "default_processes", "run_cells"]

_FORMAT = 1
_SHARE = 0.7
"""Of the memory that is free, that the processes together may take."""

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        key: plain data, all that decides the answer.
        memory: GB that a process takes for it, at most.
        work: how long it takes, in any unit: the longest begin first.
    """

    key: Mapping[str, Any]
    memory: float
    work: float = 1.0


def default_processes() -> int:
    """Return the cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def default_memory() -> float:
    """Return how many GB processes may take together: 70 % of what is free."""
    return float(_SHARE * psutil.virtual_memory().available / 1e9)


def run_cells(
    name: str,
    cells: Sequence[Cell],
    measure: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    *,
    processes: int,
    memory: float,
    advance: Callable[[int], None] | None = None,
) -> list[Mapping[str, Any]]:
    """Return the answer of each cell, in order: kept from before, or measured now and kept.

    An answer is what ``measure`` gives, plain data, or ``{"refused": reason}`` where it raised an
    error of bitsmith or a cell needs more memory than there may be; refusals are not kept. Every
    measurement has one thread, so that an answer does not depend on how many run side by side.

    Args:
        name: of the files: letters, digits and dashes.
        cells: with different keys.
        measure: key → answer; a function of a module, which other processes import.
        processes: at most so many; 1 measures in this one. They are started with ``spawn``.
        memory: GB that those which run together may take, by their own statement.
        advance: told 1 for each cell that is there.

    Raises:
        InputError: a process ended without an answer, for example for want of memory.
        KeyboardInterrupt: after the processes have been stopped.
    """
    tell = advance or (lambda count: None)
    answers: dict[int, Mapping[str, Any]] = {}
    missing = []
    for index, cell in enumerate(cells):
        if (known := _read(name, cell.key)) is not None:
            answers[index] = known
            tell(1)
        else:
            missing.append(index)
    missing.sort(key=lambda index: (-cells[index].work, index))

    def keep(index: int, answer: Mapping[str, Any]) -> None:
        answers[index] = answer
        if "refused" not in answer:
            _write(name, cells[index].key, answer)
        tell(1)

    for index in [i for i in missing if cells[i].memory > memory]:
        reason = f"takes about {cells[index].memory:g} GB, and the limit is {memory:.1f} GB"
        answers[index] = {"refused": reason}
        tell(1)
    missing = [i for i in missing if i not in answers]
    if processes == 1 or len(missing) < 2:
        with _one_thread():
            for index in missing:
                keep(index, answer_of(measure, cells[index].key))
    else:
        means = Means(min(processes, len(missing)), memory)
        jobs = [(i, cells[i].key, cells[i].memory) for i in missing]
        run_in_processes(jobs, answer_of, measure, means, keep)
    return [answers[index] for index in range(len(cells))]


def answer_of(
    measure: Callable[[Mapping[str, Any]], Mapping[str, Any]], key: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return what ``measure`` gives for a key, or why it refuses."""
    try:
        return measure(key)
    except BitsmithError as error:
        return {"refused": str(error)}


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _file(name: str, key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
    return cache_folder() / "cells" / f"{name}-{digest[:16]}.json"


def _read(name: str, key: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the answer that is kept; None, and a line in the log, where a file is of no use."""
    path = _file(name, key)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        logger.warning("%s cannot be read and is made anew: %s", path, error)
        return None
    try:
        held = json.loads(text)
        written, format_, same = held["bitsmith"], held["format"], held["key"] == dict(key)
        answer = held["answer"]
        whole = same and isinstance(answer, dict)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s is damaged and is made anew: %r", path, error)
        return None
    if (written, format_) != (__version__, _FORMAT):
        logger.warning(
            "%s was written by bitsmith %s, this is %s; made anew", path, written, __version__
        )
        return None
    if not whole:
        logger.warning("%s is of another measurement and is made anew", path)
        return None
    kept: Mapping[str, Any] = answer
    return kept


def _write(name: str, key: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Keep an answer, whole or not at all; a cache that cannot be written costs time only."""
    path = _file(name, key)
    held = {"bitsmith": __version__, "format": _FORMAT, "key": dict(key), "answer": dict(answer)}
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(held, file, allow_nan=False)
        Path(temporary).replace(path)
    except OSError as error:
        logger.warning("%s: the answer is not kept: %s", path, error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)

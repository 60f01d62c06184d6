"""Work that is handed to processes, no more at a time than memory is for."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, final

import torch

from bitsmith.errors import InputError

__all__ = ["Means", "run_in_processes"]

_PATIENCE = 5.0
"""Seconds that a process has to end by itself."""

Key = Mapping[str, Any]
Answer = Mapping[str, Any]
Measure = Callable[[Key], Answer]
Job = tuple[int, Key, float]


@final
@dataclass(frozen=True)
class Means:
    """How many processes there may be, and how many GB they may take together."""

    processes: int
    memory: float


@final
class _Worker:
    """A process that answers keys, one after the other, until its pipe closes."""

    def __init__(self, answer: Callable[[Measure, Key], Answer], measure: Measure) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, answer, measure), daemon=True)
        self.process.start()
        other.close()
        self.job: Job | None = None

    def give(self, job: Job) -> None:
        """Hand it a job; what it answers comes through the pipe."""
        self.job = job
        self.pipe.send(job[1])

    def take(self) -> tuple[int, Answer]:
        """Return the answer to its job, once the pipe has it.

        Raises:
            InputError: the process ended without one.
            BaseException: what the work raised and did not expect.
        """
        assert self.job is not None
        index, key, memory = self.job
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(_PATIENCE)
            raise InputError(
                f"the process that measured {dict(key)} ended without an answer (exit code "
                f"{self.process.exitcode}; it may have been killed for want of memory: about "
                f"{memory:g} GB are needed). What was done before is kept: run again with fewer "
                "processes or a lower limit of memory"
            ) from None
        self.job = None
        if isinstance(answer, BaseException):
            raise answer
        return index, answer

    def end(self) -> None:
        """Stop it, whatever it does."""
        self.pipe.close()
        if self.job is not None:
            self.process.terminate()
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def run_in_processes(
    jobs: Sequence[Job],
    answer: Callable[[Measure, Key], Answer],
    measure: Measure,
    means: Means,
    keep: Callable[[int, Answer], None],
) -> None:
    """Answer every job in processes of one thread each; ``keep`` hears of each as it ends.

    Jobs begin in their order, but one that finds too little memory free waits for others to end.
    Processes end with this one, also where it is killed.

    Args:
        jobs: ``(index, key, GB)``; none needs more than ``means.memory``.
        answer: ``(measure, key)`` → answer, in the process.
        measure: passed to ``answer``; both are functions of modules.
        means: how many, and how much memory.
        keep: told ``(index, answer)`` in this process.

    Raises:
        InputError: a process ended without an answer.
        BaseException: what ``answer`` raised.
    """
    waiting = list(jobs)
    workers: list[_Worker] = []
    try:
        while waiting or any(w.job is not None for w in workers):
            _assign(waiting, workers, means, lambda: _Worker(answer, measure))
            busy = {w.pipe: w for w in workers if w.job is not None}
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                keep(*busy[pipe].take())
    finally:
        for worker in workers:
            worker.end()


def _assign(
    waiting: list[Job], workers: list[_Worker], means: Means, start: Callable[[], _Worker]
) -> None:
    """Give each job that there is memory for to a process that is idle or new."""
    for job in list(waiting):
        taken = sum(w.job[2] for w in workers if w.job is not None)
        idle = next((w for w in workers if w.job is None), None)
        if taken + job[2] > means.memory and taken > 0:
            continue
        if idle is None:
            if len(workers) == means.processes:
                return
            idle = start()
            workers.append(idle)
        waiting.remove(job)
        idle.give(job)


def _serve(pipe: Connection, answer: Callable[[Measure, Key], Answer], measure: Measure) -> None:
    """Answer keys until the pipe closes."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(1)
    while True:
        try:
            key = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            found: Any = answer(measure, key)
        except KeyboardInterrupt:
            return
        except BaseException as error:
            found = _sendable(error)
        pipe.send(found)


def _follow_parent() -> None:
    """End at once when the process that started this one is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _sendable(error: BaseException) -> BaseException:
    """Return the error as another process can raise it: its own class may not unpickle."""
    return RuntimeError(f"{type(error).__name__}: {error}")

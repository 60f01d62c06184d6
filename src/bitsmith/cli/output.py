"""What a command prints: tables and lines for people, one JSON object for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bitsmith.cli.staging import Staging

if TYPE_CHECKING:
    from bitsmith.insight.measure import Record

__all__ = ["Output", "json_path", "phase", "progress", "stages"]

#: Columns of a table where standard output is not a terminal: nothing is cut off in a log.
_LOG_WIDTH = 160


def json_path(option: str | None) -> Path | None:
    """Return the file that ``--json`` names; None for standard output, or without the option."""
    return None if option in (None, "-") else Path(str(option))


@final
class _Console(Console):
    """A console that leaves a broken pipe to the caller, who knows the exit code."""

    def on_broken_pipe(self) -> None:
        """Raise again what rich would make exit code 1 of."""
        raise BrokenPipeError


@final
class Output:
    """The printing of one command.

    Args:
        command: the verb, for the JSON object.
        json_option: the value of ``--json``; with ``-`` people's output moves to standard error.
    """

    def __init__(self, command: str, json_option: str | None) -> None:
        self._command = command
        self._json = json_option
        self._started = time.perf_counter()
        stream = sys.stderr if json_option == "-" else sys.stdout
        width = None if stream.isatty() else _LOG_WIDTH
        self._console = _Console(file=stream, width=width, highlight=False, soft_wrap=False)

    @property
    def seconds(self) -> float:
        """Seconds since the command began."""
        return time.perf_counter() - self._started

    def line(self, text: str = "") -> None:
        """Print a line as it is."""
        self._console.print(escape(text), soft_wrap=True)

    def heading(self, text: str) -> None:
        """Print a heading."""
        self._console.print(f"\n[bold]{escape(text)}[/bold]", soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table; columns whose name begins with ``>`` are numbers, aligned right."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            number = column.startswith(">")
            table.add_column(
                escape(column.removeprefix(">")),
                justify="right" if number else "left",
                no_wrap=number,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self._console.print(table)

    def facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Print names and values in two columns."""
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in pairs:
            table.add_row(escape(name), escape(value))
        self._console.print(table)

    def json(self, records: Iterable[Record], staging: Staging | None = None) -> None:
        """Write the JSON object to where ``--json`` said, through ``staging`` for a file."""
        if self._json is None:
            return
        from bitsmith.insight.measure import envelope

        text = json.dumps(envelope(self._command, records, self._started), indent=2) + "\n"
        path = json_path(self._json)
        if path is None:
            sys.stdout.write(text)
        elif staging is not None:
            staging.path(path).write_text(text)


@contextmanager
def stages() -> Iterator[Callable[[str, int | None], Callable[[int], None]]]:
    """Show one bar on standard error, if that is a terminal, for work in stages.

    Gives a function that begins the next stage, of that name and total, and returns what
    advances it.
    """
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as bar:

        def begin(description: str, total: int | None) -> Callable[[int], None]:
            for task in bar.task_ids:
                bar.remove_task(task)
            current = bar.add_task(description, total=total)
            return lambda count: bar.advance(current, count)

        yield begin


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error, if that is a terminal; gives a function that advances it."""
    with stages() as begin:
        yield begin(description, total)


@contextmanager
def phase(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add how long the block took to ``seconds[name]``."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun

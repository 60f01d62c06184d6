"""The files that the running command reads, which none of its outputs may take the place of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, final

from typer.core import TyperCommand

from bitsmith.cli.artefact import simulation

__all__ = ["Command", "location", "overlap", "overwritten", "reading"]

#: Parameters that say where to write; ``checkpoint`` is checked as an output as well.
_OUTPUTS = {"out", "json", "report", "plot", "checkpoint"}
#: Parameters that are always files. Of the others, names have no suffix and files have one.
_FILES = {"weights", "artefact"}

_read: ContextVar[tuple[Path, ...]] = ContextVar("_read", default=())


@final
class Command(TyperCommand):
    """A command that knows, while it runs, which of its arguments are files that it reads."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with reading(ctx.params):
            return super().invoke(ctx)


@contextmanager
def reading(parameters: Mapping[str, Any]) -> Iterator[None]:
    """Note every file and ``.bitsmith`` folder that ``parameters`` name, for :func:`overwritten`.

    Args:
        parameters: name → value of a command's options and arguments.
    """
    found: list[Path] = []
    for name, value in parameters.items():
        if name in _OUTPUTS or not isinstance(value, str | Path) or not str(value):
            continue
        path = Path(value)
        if name in _FILES or path.suffix:
            beside = [simulation(path)] if path.suffix == ".onnx" else []
            found += [p for p in (path, *beside) if _is_input(p)]
    before = _read.set(tuple(found))
    try:
        yield
    finally:
        _read.reset(before)


def overwritten(output: Path) -> Path | None:
    """Return the input of the running command that would be lost if ``output`` were written."""
    target, replaced = location(output), output.name.endswith(".bitsmith")
    for path in _read.get():
        # Of a link both are read: the link, and the file that it leads to.
        for read in (location(path), Path(os.path.realpath(path))):
            within = read in target.parents or (replaced and target in read.parents)
            if target == read or within:
                return path
    return None


def location(path: Path) -> Path:
    """Return where ``path`` is written: its folder without links, and its name in there."""
    return Path(os.path.realpath(path.parent)) / path.name


def overlap(a: Path, b: Path) -> bool:
    """Return whether two places are one, or one is a folder that has the other in it."""
    return a == b or a in b.parents or b in a.parents


def _is_input(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and path.name.endswith(".bitsmith"))

"""The folder of a command's results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitsmith.errors import InputError

__all__ = ["result_folder"]


@contextmanager
def result_folder(out: Path | None) -> Iterator[None]:
    """Make the folder ``--out`` names; one that is new goes away again if nothing came of it.

    Raises:
        InputError: it cannot be made.
    """
    if out is None or out.is_dir():
        yield
        return
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be made: {error.strerror or error}") from error
    try:
        yield
    except BaseException:
        if not any(out.iterdir()):
            out.rmdir()
        raise

"""A folder that is written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from bitsmith.errors import InputError

__all__ = ["GRAPH", "MODULES", "TENSORS", "WEIGHTS", "write_folder"]

GRAPH, TENSORS = "graph.json", "tensors.safetensors"
MODULES, WEIGHTS = "quantization.json", "weights.safetensors"

_OWN = {GRAPH: {GRAPH, TENSORS}, MODULES: {MODULES, WEIGHTS}}
"""The file that marks a folder → every file that such a folder has."""


def write_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Return ``folder`` with what ``write`` puts into it, in the place of an older one of ours.

    Everything is written to a temporary folder beside it, which then takes its name; if anything
    fails, the older folder stays as it is.

    Raises:
        InputError: the place cannot be written, or holds something else.
    """
    if folder.exists() and not _ours(folder):
        raise InputError(
            f"{folder} exists and is not a bitsmith folder, or holds other files too; choose "
            "another name"
        )
    try:
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        made = temporary / "new"
        made.mkdir()
        write(made)
        if folder.exists():
            os.replace(folder, temporary / "old")
        try:
            os.replace(made, folder)
        except BaseException:
            if (temporary / "old").exists():
                os.replace(temporary / "old", folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _ours(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    found = {path.name for path in folder.iterdir()}
    return any(mark in found and found <= files for mark, files in _OWN.items())

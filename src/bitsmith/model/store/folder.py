"""A folder that is written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitsmith.errors import BitsmithError, InputError, WeightsError

__all__ = [
    "GRAPH",
    "MODULES",
    "TENSORS",
    "UNREADABLE",
    "WEIGHTS",
    "damaged",
    "parse_json",
    "reason",
    "write_folder",
]

GRAPH, TENSORS = "graph.json", "tensors.safetensors"
MODULES, WEIGHTS = "quantization.json", "weights.safetensors"

_OWN = {GRAPH: {GRAPH, TENSORS}, MODULES: {MODULES, WEIGHTS}}
"""The file that marks a folder → every file that such a folder has."""

UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""What reading plain data that someone else wrote, or damaged, can raise."""


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


def damaged(place: str | Path, *reasons: str) -> WeightsError:
    """Return the error that says what is wrong with a file or folder, and what to do."""
    remedy = "fetch or copy it again, or write it anew (bitsmith quantize)"
    if len(reasons) == 1:
        return WeightsError(f"{place} is damaged or was changed: {reasons[0]}; {remedy}")
    lines = "\n  ".join(reasons)
    return WeightsError(f"{place} is damaged or was changed; {remedy}:\n  {lines}")


def reason(error: Exception) -> str:
    """Return in a few words why data that was read is of no use, without Python's own words."""
    if isinstance(error, BitsmithError):
        return str(error)[:500]  # it may quote the data
    if isinstance(error, KeyError):
        return f"{str(error)[:100]} is missing"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "it has another form than what bitsmith writes"


def parse_json(text: str | bytes, place: str | Path) -> Any:
    """Return what ``text`` says.

    Args:
        text: JSON, in UTF-8.
        place: where it was read, for messages.

    Raises:
        WeightsError: it is not JSON.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise damaged(place, reason(error)) from error
    except ValueError as error:  # the place in it helps, the content may be anything
        at = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise damaged(place, f"it is not JSON{at}") from error


def _ours(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    found = {path.name for path in folder.iterdir()}
    return any(mark in found and found <= files for mark, files in _OWN.items())

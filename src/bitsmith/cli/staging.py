"""Outputs that appear together when everything has succeeded, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from types import TracebackType
from typing import final

from bitsmith.cli.inputs import location, overlap, overwritten
from bitsmith.errors import InputError

__all__ = ["Staging"]

#: One of these is in every folder that bitsmith wrote: a graph in integers, or packed weights.
_WRITTEN = ("graph.json", "quantization.json")


@final
class Staging:
    """A context in which outputs are written under temporary names.

    Entering makes a temporary folder beside every output, which is also the proof that the
    place can be written, before any work is done. Leaving without an exception renames them all
    into place; leaving with one, an interrupt included, leaves the places as they were.

    Args:
        outputs: the final paths; those that end in ``.bitsmith`` are folders, the others files.
            None stands for an output that was not asked for.

    Raises:
        InputError: on construction: a path is taken by something else, is named twice, is an
            input of the running command, or its place does not exist or cannot be written. All
            are listed.
    """

    def __init__(self, outputs: Iterable[Path | None]) -> None:
        self._finals = [path for path in outputs if path is not None]
        self._temporary: dict[Path, Path] = {}
        faults = [f for path in self._finals if (f := _fault(path))]
        faults += _collisions(self._finals)
        if faults:
            raise InputError("; ".join(faults))

    def path(self, final: Path) -> Path:
        """Return the temporary path to write in place of ``final``; same name, other folder."""
        if final not in self._temporary:
            raise KeyError(f"{final} is not an output of this staging")
        return self._temporary[final] / final.name

    def __enter__(self) -> Staging:
        try:
            for final in self._finals:
                place = tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.")
                self._temporary[final] = Path(place)
        except OSError as error:
            self._clean()
            raise InputError(
                f"{final} cannot be written: {error.strerror or error} ({final.parent})"
            ) from error
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._commit()
        finally:
            self._clean()

    def _commit(self) -> None:
        """Rename everything into place; on any failure put back what was there."""
        begun: list[tuple[Path, Path, Path]] = []
        try:
            for final, place in self._temporary.items():
                source, before = place / final.name, place / f"{final.name}.before"
                if not source.exists():
                    continue
                begun.append((source, before, final))
                if final.exists():
                    os.replace(final, before)
                os.replace(source, final)
        except BaseException:
            for source, before, final in reversed(begun):
                if not source.exists():
                    os.replace(final, source)
                if before.exists():
                    os.replace(before, final)
            raise

    def _clean(self) -> None:
        for place in self._temporary.values():
            shutil.rmtree(place, ignore_errors=True)


def _collisions(paths: list[Path]) -> list[str]:
    """Return which outputs would be lost in each other."""
    faults: dict[str, None] = {}
    for first, second in combinations(paths, 2):
        a, b = location(first), location(second)
        if a == b:
            faults[f"{a} is named for two outputs; give each a name of its own"] = None
        elif overlap(a, b):
            inner, outer = (a, b) if b in a.parents else (b, a)
            faults[f"{inner} is inside of {outer}, another output; name another place"] = None
    return list(faults)


def _fault(path: Path) -> str | None:
    parent = path.parent
    if path.name == "-":
        return "- is no file's name: only --json writes to standard output; name a file"
    if (lost := overwritten(path)) is not None:
        return f"{path} cannot be written: this command reads {lost}; name another file"
    if path.name.endswith(".bitsmith"):
        if path.exists() and not any((path / name).is_file() for name in _WRITTEN):
            return f"{path} cannot be replaced: it is not a folder that bitsmith wrote"
    elif path.exists() and not path.is_file():
        return f"{path} cannot be written: it is a folder or a device, not a file"
    if not parent.is_dir():
        what = "is not a folder" if parent.exists() else "does not exist; create it first"
        return f"{path} cannot be written: {parent} {what}"
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"{path} cannot be written: no permission in {parent}"
    return None
